/**
 * The tunnels that are open on this node, both those that it dialled and those that it took: who, what, how much, by which path. Keeps them within
 * bounds, and tells the audit log of them when they are over.
 */
import type { AuditFields } from '../identity/audit.ts'

/** Each holds some 20 KB when idle. */
const FLOWS_MAX = 4_096
/** As long as a NAT must keep a TCP connection that says nothing (RFC 5382); applications that keep one open say something before. */
const STREAM_IDLE_MS_MAX = 124 * 60_000
/** As long as a NAT should keep a UDP mapping (RFC 4787). */
export const DATAGRAM_IDLE_MS_MAX = 2 * 60_000
/** What applications do not take up, in all tunnels together: eight windows at their largest. */
const HELD_BYTES_MAX = 128 * 1024 * 1024
const CHECK_MS = 2_000
/** In the audit log, flows alike are told once, and then together once a minute: a web server has hundreds a second. */
const TELL_MS = 60_000
/** Different ones told apart in that time. */
const TOLD_MAX = 1_024

export type Flow = {
  readonly direction: 'in' | 'out'
  readonly network: string
  readonly service: string
  /** The other member, and what it is called. */
  readonly peerId: string
  readonly node: string
  readonly carrier: 'tcp' | 'udp'
  readonly path: string
  /** The grant that allowed it, where this node decided. */
  readonly rule?: string
  readonly stream: {
    readonly sentBytes: number
    readonly receivedBytes: number
    readonly heldBytes: number
    /** By performance.now(). */
    readonly activeMs: number
    readonly destroyed: boolean
    destroy(error: Error): unknown
    once(event: 'close', listener: () => void): unknown
  }
}
export type OpenFlow = Flow & { readonly openedMs: number }

/** Since the start. */
export type FlowTotal = { opened: number; sentBytes: number; receivedBytes: number }

type Sum = { fields: AuditFields; flows: number; sentBytes: number; receivedBytes: number }

export class Flows implements Disposable {
  readonly #audit: { append(fields: AuditFields): void }
  readonly #flows = new Set<OpenFlow>()
  readonly #sums = new Map<string, Sum>()
  /** Of those that are over. */
  readonly #ended = {
    in: { opened: 0, sentBytes: 0, receivedBytes: 0 },
    out: { opened: 0, sentBytes: 0, receivedBytes: 0 },
  }
  readonly #timers: NodeJS.Timeout[]

  constructor(audit: { append(fields: AuditFields): void }) {
    this.#audit = audit
    this.#timers = [
      setInterval(() => this.#check(), CHECK_MS).unref(),
      setInterval(() => this.#tell(), TELL_MS).unref(),
    ]
  }

  get isFull(): boolean {
    return this.#flows.size >= FLOWS_MAX
  }

  /** Oldest first. */
  list(): OpenFlow[] {
    return [...this.#flows]
  }

  /** Of all that there were, those that are open included. */
  totals(): Record<Flow['direction'], FlowTotal> {
    const totals = { in: { ...this.#ended.in }, out: { ...this.#ended.out } }
    for (const { direction, stream } of this.#flows) addTo(totals[direction], stream)
    return totals
  }

  /** Counts it until its stream closes. */
  add(flow: Flow): void {
    const open = { ...flow, openedMs: performance.now() }
    this.#flows.add(open)
    flow.stream.once('close', () => this.#over(open))
    if (flow.stream.destroyed) this.#over(open)
  }

  /** Resets those that are not to be any more. */
  cut(isOut: (flow: Flow) => boolean, why: string): number {
    const out = this.list().filter(isOut)
    for (const { stream } of out) stream.destroy(new Error(why))
    return out.length
  }

  /** Tells of what is open, too: it ends with the agent. */
  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearInterval(timer)
    for (const flow of this.list()) this.#over(flow)
    this.#tell()
  }

  #check(): void {
    const now = performance.now()
    const idleMax = { tcp: STREAM_IDLE_MS_MAX, udp: DATAGRAM_IDLE_MS_MAX }
    this.cut(({ carrier, stream }) => now - stream.activeMs > idleMax[carrier], 'nothing went through it for too long')
    let held = this.#flows.values().reduce((sum, { stream }) => sum + stream.heldBytes, 0)
    if (held <= HELD_BYTES_MAX) return
    for (const { stream } of this.list().sort((a, b) => b.stream.heldBytes - a.stream.heldBytes)) {
      held -= stream.heldBytes
      stream.destroy(new Error('the application does not take what is sent to it, and memory is short'))
      if (held <= HELD_BYTES_MAX) return
    }
  }

  #over(flow: OpenFlow): void {
    if (!this.#flows.delete(flow)) return
    addTo(this.#ended[flow.direction], flow.stream)
    const { direction, network, service, peerId, node: name, path, rule, stream } = flow
    const event = direction === 'in' ? ('flow.served' as const) : ('flow.used' as const)
    const fields = { event, network, service, peerId, name, path, rule }
    const { sentBytes, receivedBytes } = stream
    const key = JSON.stringify(fields)
    const sum = this.#sums.get(key)
    if (sum !== undefined) {
      sum.flows++
      sum.sentBytes += sentBytes
      sum.receivedBytes += receivedBytes
      return
    }
    this.#audit.append({ ...fields, flows: 1, sentBytes, receivedBytes })
    if (this.#sums.size >= TOLD_MAX) this.#tell()
    this.#sums.set(key, { fields, flows: 0, sentBytes: 0, receivedBytes: 0 })
  }

  /** What did not happen again within a minute is told anew when it does. */
  #tell(): void {
    for (const [key, sum] of this.#sums) {
      const { fields, flows, sentBytes, receivedBytes } = sum
      this.#sums.delete(key)
      if (flows === 0) continue
      this.#audit.append({ ...fields, flows, sentBytes, receivedBytes })
      this.#sums.set(key, { fields, flows: 0, sentBytes: 0, receivedBytes: 0 })
    }
  }
}

function addTo(total: FlowTotal, { sentBytes, receivedBytes }: Flow['stream']): void {
  total.opened++
  total.sentBytes += sentBytes
  total.receivedBytes += receivedBytes
}
