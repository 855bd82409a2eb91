/**
 * Datagrams of programs on this machine: those of one program to one service are a flow, with a tunnel of its own that is opened by the
 * first of them and closed when nothing has gone either way for a while.
 *
 * Whatever cannot be carried is dropped, as a network does: when a tunnel cannot be opened, and while too many wait for that.
 */
import { type AgentError, reasonOf } from '../error.ts'
import type { DatagramTunnel } from './dialer.ts'

/** NATs keep a UDP flow for 30 to 180 s. */
const IDLE_MS = 60_000
/** While a tunnel is opened: a program that hears nothing sends a few times. */
const WAITING_MAX = 16
/** Of one listener. Beyond, the flow that was quiet for longest makes room. */
const FLOWS_MAX = 256
const OPEN_MS_MAX = 15_000

type Opens = (signal: AbortSignal) => Promise<DatagramTunnel>
type Flow = {
  tunnel: DatagramTunnel | undefined
  waiting: Uint8Array[]
  timer: NodeJS.Timeout
  end: AbortController
}

export class DatagramFlows implements Disposable {
  readonly #flows = new Map<string, Flow>()
  readonly #onRefused: (error: AgentError | Error, key: string) => void

  /** `onRefused` is told why the tunnel of a flow could not be had. */
  constructor(onRefused: (error: Error, key: string) => void) {
    this.#onRefused = onRefused
  }

  get size(): number {
    return this.#flows.size
  }

  /** Sends within the flow of that key; `open` and `reply` are used when it is new. */
  send(key: string, bytes: Uint8Array, open: Opens, reply: (bytes: Uint8Array) => void): void {
    const flow = this.#flows.get(key) ?? this.#begin(key, open, reply)
    this.#touch(key, flow)
    if (flow.tunnel !== undefined) flow.tunnel.send(bytes)
    else if (flow.waiting.length < WAITING_MAX) flow.waiting.push(bytes)
  }

  [Symbol.dispose](): void {
    for (const key of this.#flows.keys()) this.#close(key)
  }

  #begin(key: string, open: Opens, reply: (bytes: Uint8Array) => void): Flow {
    const end = new AbortController()
    const timer = setTimeout(() => this.#close(key), IDLE_MS).unref()
    const flow: Flow = { tunnel: undefined, waiting: [], timer, end }
    this.#flows.set(key, flow)
    for (const oldest of this.#flows.keys()) {
      if (this.#flows.size <= FLOWS_MAX) break
      this.#close(oldest)
    }
    void this.#open(key, flow, open, reply)
    return flow
  }

  async #open(key: string, flow: Flow, open: Opens, reply: (bytes: Uint8Array) => void): Promise<void> {
    const { signal } = flow.end
    try {
      const tunnel = await open(AbortSignal.any([signal, AbortSignal.timeout(OPEN_MS_MAX)]))
      if (signal.aborted) return tunnel.close()
      flow.tunnel = tunnel
      tunnel.onDatagram((bytes) => {
        this.#touch(key, flow)
        reply(bytes)
      })
      tunnel.onClose(() => this.#close(key, flow))
      for (const bytes of flow.waiting.splice(0)) tunnel.send(bytes)
    } catch (error) {
      if (signal.aborted) return
      this.#onRefused(error instanceof Error ? error : new Error(reasonOf(error)), key)
      this.#close(key, flow)
    }
  }

  /** It is now the one that was used last. */
  #touch(key: string, flow: Flow): void {
    if (this.#flows.get(key) !== flow) return
    flow.timer.refresh()
    this.#flows.delete(key)
    this.#flows.set(key, flow)
  }

  #close(key: string, only?: Flow): void {
    const flow = this.#flows.get(key)
    if (flow === undefined || (only !== undefined && only !== flow)) return
    this.#flows.delete(key)
    clearTimeout(flow.timer)
    flow.end.abort()
    flow.tunnel?.close()
  }
}
