/**
 * The addresses that the user named as ways into the mesh. Each is kept connected for as long as the node runs, with a back-off that
 * stays short while there are few other peers; what stands in the way is remembered, for `agent status` to say.
 *
 * An address may lack /p2p/...: whoever proves an id there is then the bootstrap. With one, another peer at that address is refused.
 */
import type { Multiaddr } from '@multiformats/multiaddr'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { parseAddress, peerIdIn } from './addresses.ts'
import { backoffMs } from './candidates.ts'
import type { Host } from './host.ts'

/** A bootstrap that restarts is back within this. */
const BACKOFF_MAX_MS = 30_000
/** While other peers are connected: thousands of nodes may share this bootstrap, and it may be refusing them. */
const BACKOFF_UNHURRIED_MAX_MS = 5 * 60_000
/** The address is our own, as where one configuration serves a whole fleet; it may be another's tomorrow. */
const SELF_MS = 10 * 60_000

type BootstrapState =
  /** Not tried yet, or being tried for the first time. */
  | 'connecting'
  | 'connected'
  /** It closed the connection in order, having others to look after; it is left in peace for a while. */
  | 'resting'
  /** Nobody answers, or not in a way that we understand. */
  | 'unreachable'
  /** Somebody answers who is not the peer in the address. */
  | 'wrong-peer'
  /** It is this node. */
  | 'self'

export type BootstrapView = {
  readonly address: string
  readonly state: BootstrapState
  /** From the address, or proven there. */
  readonly peerId: string | undefined
  /** Why it is not connected, in the words of the last error. */
  readonly reason: string | undefined
  /** Attempts since it was last connected. */
  readonly failures: number
}

type Entry = {
  readonly text: string
  readonly address: Multiaddr
  peerId: string | undefined
  state: BootstrapState
  reason: string | undefined
  failures: number
  dueMs: number
  dialling: boolean
}

export class Bootstraps {
  readonly #host: Pick<Host, 'dial' | 'isConnected'>
  readonly #log: Log
  readonly #random: () => number
  #entries: Entry[] = []

  constructor(host: Pick<Host, 'dial' | 'isConnected'>, log: Log, random: () => number) {
    this.#host = host
    this.#log = log
    this.#random = random
  }

  /** The addresses from now on; those that stay keep their state. @throws {AgentError} `usage` */
  set(addresses: readonly string[]): void {
    const before = new Map(this.#entries.map((entry) => [entry.text, entry]))
    this.#entries = [...new Set(addresses)].map((text) => {
      const address = parseAddress(text)
      return (
        before.get(text) ?? {
          text,
          address,
          peerId: peerIdIn(address),
          state: 'connecting',
          reason: undefined,
          failures: 0,
          dueMs: 0,
          dialling: false,
        }
      )
    })
  }

  /** Dials those that are not connected and due. Resolves when these attempts have ended; never rejects. */
  async tend(nowMs: number, enoughPeers: boolean, signal: AbortSignal): Promise<void> {
    for (const entry of this.#entries) {
      this.#look(entry)
      if (entry.state === 'resting' && !enoughPeers) entry.dueMs = 0
    }
    const due = this.#entries.filter((entry) => entry.state !== 'connected' && !entry.dialling && entry.dueMs <= nowMs)
    await Promise.all(due.map((entry) => this.#dial(entry, nowMs, enoughPeers, signal)))
  }

  /** Leaves a bootstrap that let us go alone until then, or until there are not enough peers. */
  rest(peerId: string, untilMs: number): void {
    for (const entry of this.#entries) {
      if (entry.peerId !== peerId) continue
      entry.state = 'resting'
      entry.dueMs = untilMs
    }
  }

  /** Those not connected are tried at the next tend(). */
  forgive(): void {
    for (const entry of this.#entries) entry.dueMs = 0
  }

  has(peerId: string): boolean {
    return this.#entries.some((entry) => entry.peerId === peerId && entry.state !== 'wrong-peer')
  }

  views(): BootstrapView[] {
    return this.#entries.map((entry) => {
      this.#look(entry)
      const { text, state, peerId, reason, failures } = entry
      return { address: text, state, peerId, reason, failures }
    })
  }

  /** Connections come and go without us: the peer may have been found on the LAN, or have dialled. */
  #look(entry: Entry): void {
    const connected = entry.peerId !== undefined && this.#host.isConnected(entry.peerId)
    if (connected) {
      entry.state = 'connected'
      entry.reason = undefined
      entry.failures = 0
    } else if (entry.state === 'connected') {
      entry.state = 'connecting'
      entry.dueMs = 0
    }
  }

  async #dial(entry: Entry, nowMs: number, enoughPeers: boolean, signal: AbortSignal): Promise<void> {
    entry.dialling = true
    const named = peerIdIn(entry.address)
    try {
      entry.peerId = await this.#host.dial([entry.address], signal)
      this.#look(entry)
    } catch (error) {
      if (signal.aborted) return
      entry.failures++
      entry.reason = reasonOf(error)
      entry.state = stateAfter(entry.reason)
      const maxMs = enoughPeers ? BACKOFF_UNHURRIED_MAX_MS : BACKOFF_MAX_MS
      entry.dueMs = nowMs + (entry.state === 'self' ? SELF_MS : backoffMs(entry.failures, maxMs, this.#random))
      if (named === undefined) entry.peerId = undefined
      this.#log.debug({ address: entry.text, state: entry.state, reason: entry.reason }, 'bootstrap.failed')
    } finally {
      entry.dialling = false
    }
  }
}

/** libp2p has no error type for these two. */
function stateAfter(reason: string): BootstrapState {
  if (/dial self/i.test(reason)) return 'self'
  return /identity key|unexpected peer/i.test(reason) ? 'wrong-peer' : 'unreachable'
}
