/**
 * What the catalog's tests share: stores in memory with a clock that the test sets, records of publishers that are not nodes, and a
 * network of nodes in memory that gossips and opens streams.
 */
import type { Stream } from '@libp2p/interface'
import { Records } from '../../../agent/catalog/records.ts'
import { type Gossip, type Peers, Replicator, type ReplicatorOptions } from '../../../agent/catalog/replicator.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import type { Log } from '../../../agent/log.ts'
import { type Database, openDatabase } from '../../../agent/state/database.ts'
import { encodeRecord, OPEN_NETWORK, type SignedRecord } from '../../../protocols/records/record.ts'
import { streamPair } from '../../stream-pair.ts'

export const START_MS = Date.parse('2026-01-01T00:00:00Z')
export const MINUTE_MS = 60_000
export const DAY_MS = 24 * 60 * MINUTE_MS

export type Entry = { fields: unknown; event: string }

/** Keeps what was logged. */
export function keptLog(): Log & { entries: Entry[] } {
  const entries: Entry[] = []
  const keep = (fields: unknown, event?: string) => void entries.push({ fields, event: event ?? String(fields) })
  return { entries, debug: () => {}, info: keep, warn: keep, error: keep } as unknown as Log & { entries: Entry[] }
}

export type Clock = { now: () => number; at: number }

export function clockAt(at = START_MS): Clock {
  const clock = { at, now: () => clock.at }
  return clock
}

export type Store = { records: Records; db: Database; key: NodeKey; clock: Clock; log: ReturnType<typeof keptLog> }

export function makeStore(
  options: { clock?: Clock; key?: NodeKey; path?: string; network?: Uint8Array } = {},
): Store & Disposable {
  const { clock = clockAt(), key = ephemeralNodeKey(), path = ':memory:', network = OPEN_NETWORK } = options
  const log = keptLog()
  const db = openDatabase(path)
  const records = new Records(db, { network, signer: key, now: clock.now, log })
  const dispose = () => {
    records[Symbol.dispose]()
    db.close()
  }
  return { records, db, key, clock, log, [Symbol.dispose]: dispose }
}

export type Said = {
  kind?: string
  name?: string
  seq?: number
  issued?: number
  leaseMs?: number
  network?: Uint8Array
} & ({ body?: unknown } | { deleted: true })

/** A record of any publisher. */
export function recordBy(key: NodeKey, said: Said = {}): SignedRecord {
  const { kind = 'note', name = 'a', issued = START_MS, leaseMs = DAY_MS, network = OPEN_NETWORK, ...rest } = said
  const { seq = issued, ...what } = rest
  const content = 'deleted' in what ? { deleted: true as const } : { body: what.body ?? null }
  return encodeRecord({ network, kind, name, seq, issued, expires: issued + leaseMs, ...content }, key)
}

/** What two stores must have in common to agree. */
export function stateOf({ records }: Pick<Store, 'records'>): string {
  return Buffer.from(records.bucketDigests()).toString('hex')
}

export type FakeNode = Store & AsyncDisposable & { peerId: string; replicator: Replicator }

/** Nodes whose links, gossip and streams the test decides over. */
export class FakeMesh {
  readonly nodes: FakeNode[] = []
  readonly #links = new Map<string, Set<string>>()
  readonly #handlers = new Map<string, (stream: Stream, peerId: string) => Promise<void>>()
  readonly #validators = new Map<string, Parameters<Gossip['subscribe']>[0]>()
  readonly #listeners = new Map<string, Parameters<Peers['onPeer']>[0]>()
  /** Whether gossip gets through. */
  isGossiping = true
  /** Bytes sent over streams. */
  streamedBytes = 0
  readonly opened: { from: string; to: string }[] = []

  async node(
    options: { clock?: Clock; intervalMs?: number; store?: Store & Disposable } & Pick<
      ReplicatorOptions,
      'members'
    > = {},
  ): Promise<FakeNode> {
    const { store = makeStore(options), members } = options
    const peerId = peerIdOf(store.key.publicKey)
    this.#links.set(peerId, new Set())
    const { intervalMs = 3_600_000 } = options
    const replicator = await Replicator.start({
      records: store.records,
      gossip: this.#gossipOf(peerId),
      peers: this.#peersOf(peerId),
      log: store.log,
      random: () => 0.5,
      intervalMs,
      ...(members && { members }),
    })
    const dispose = async () => {
      await replicator[Symbol.asyncDispose]()
      store[Symbol.dispose]()
    }
    const node = { ...store, peerId, replicator, [Symbol.asyncDispose]: dispose }
    this.nodes.push(node)
    return node
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.nodes.map((node) => node[Symbol.asyncDispose]()))
  }

  /** The first dials the second. */
  connect(from: { peerId: string }, to: { peerId: string }): void {
    this.#links.get(from.peerId)?.add(to.peerId)
    this.#links.get(to.peerId)?.add(from.peerId)
    this.#listeners.get(from.peerId)?.(to.peerId, 'outbound')
    this.#listeners.get(to.peerId)?.(from.peerId, 'inbound')
  }

  disconnect(a: { peerId: string }, b: { peerId: string }): void {
    this.#links.get(a.peerId)?.delete(b.peerId)
    this.#links.get(b.peerId)?.delete(a.peerId)
  }

  /** As if `from` had gossiped it. */
  tell(from: string, to: { peerId: string }, bytes: Uint8Array): string | undefined {
    return this.#validators.get(to.peerId)?.(bytes, from)
  }

  #flood(from: string, bytes: Uint8Array, seen: Set<string>): number {
    seen.add(from)
    let reached = 0
    for (const to of this.#links.get(from) ?? []) {
      if (seen.has(to)) continue
      seen.add(to)
      reached++
      if (this.#validators.get(to)?.(Uint8Array.from(bytes), from) === 'accept') this.#flood(to, bytes, seen)
    }
    return reached
  }

  #gossipOf(peerId: string): Gossip {
    return {
      publish: async (bytes) => (this.isGossiping ? this.#flood(peerId, bytes, new Set()) : 0),
      subscribe: (validate) => void this.#validators.set(peerId, validate),
    }
  }

  #peersOf(peerId: string): Peers {
    return {
      onPeer: (listener) => {
        this.#listeners.set(peerId, listener)
        return () => void this.#listeners.delete(peerId)
      },
      connected: () => [...(this.#links.get(peerId) ?? [])],
      openStream: async (to) => {
        const handler = this.#handlers.get(to)
        if (!this.#links.get(peerId)?.has(to) || !handler) throw new Error('not connected')
        this.opened.push({ from: peerId, to })
        const [ours, theirs] = streamPair()
        void handler(theirs, peerId)
        for (const end of [ours, theirs]) {
          const send = end.send.bind(end)
          end.send = (bytes) => {
            this.streamedBytes += bytes.byteLength
            return send(bytes)
          }
        }
        return ours
      },
      handle: (_protocol, handler) => this.#handlers.set(peerId, handler),
      unhandle: () => this.#handlers.delete(peerId),
    }
  }
}

/** Waits until it holds. */
export async function until(holds: () => boolean, waitMs = 10_000): Promise<void> {
  const deadline = performance.now() + waitMs
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`still not so after ${waitMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
