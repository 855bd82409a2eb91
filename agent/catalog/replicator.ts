/**
 * Keeps this node's records and those of its peers the same, from start() until disposed.
 *
 * What this node says is gossiped at once, and what others gossip is checked before it is passed on. Gossip loses messages and reaches
 * nobody who is away, so nodes also compare what they hold: when they connect, shortly after, and then each with one peer at random every half minute.
 * What a comparison brings is told to the other peers: a little of it by gossip, much of it by comparing with them, so that two halves of
 * a network that meet again at one node agree soon.
 *
 * Wire format and limits: protocols/records/spec.md. A peer's fault closes its stream, is logged at debug, and costs it a pause.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  answerRecords,
  type OfferResult,
  RECORDS_PROTOCOL,
  type RecordHoldings,
  RecordsAsker,
} from '../../protocols/records/exchange.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { PeerLimits } from './peer-limits.ts'
import type { Records } from './records.ts'
import { acceptInTurns, isFault, RefusedIds, type SyncStore, syncWith } from './sync.ts'

/** Between two comparisons with random peers. */
const INTERVAL_MS = 30_000
/**
 * After a connection, comparisons with that peer: what was said in the same moment, before gossip knew both sides, would
 * otherwise wait for INTERVAL_MS.
 */
const CONNECTED_MS = [0, 2_000, 6_000]
/** A comparison that brought at most this many records gossips them; one that brought more leads to comparisons with all peers. */
const GOSSIPED_MAX = 64
/** Before such a round, with jitter, so that one round serves several causes. */
const ROUND_MS = 500
/** Comparisons driven from here at once, and answered at once. Each holds about two frames in memory. */
const DRIVEN_MAX = 4
const ANSWERED_MAX = 32
/** Per connection: one comparison, and one that is just ending. */
const STREAMS_MAX = 2
/** One wait for a peer. An answer is made from memory and an index, within milliseconds. */
const WAIT_MS_MAX = 20_000
/** A whole comparison: SESSION_BYTES_MAX of sync.ts over a slow link. Then it ends, and the next one goes on. */
const SESSION_MS_MAX = 180_000
/** In one comparison: 10,000 publishers in batches of 256, and pages of records. */
const REQUESTS_MAX = 4_096

/** A peer that refused this many offers and took none will refuse them again: see DEAF_MS. A single one may just have expired. */
const DEAF_REFUSED_MIN = 16

export type Gossip = {
  /** How many peers it was sent to. */
  publish(bytes: Uint8Array): Promise<number>
  subscribe(validate: (bytes: Uint8Array, fromPeerId: string) => Verdict): void
}
/** Passed on; neither passed on nor held against anybody; held against who sent it. */
export type Verdict = 'accept' | 'ignore' | 'reject'

export type Peers = {
  onPeer(listener: (peerId: string, direction: 'inbound' | 'outbound') => void): () => void
  connected(): string[]
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void>,
    options: { maxInboundStreams: number },
  ): unknown
  unhandle(protocol: string): unknown
}

export type ReplicatorOptions = {
  records: SyncStore & Pick<Records, 'accept' | 'onChange'>
  gossip: Gossip
  peers: Peers
  /** In a closed network: told when who was a stranger may be one no more. */
  members?: { onChange(listener: () => void): () => void }
  log: Log
  /** From 0 to 1, for jitter and the choice of peers. */
  random?: () => number
  intervalMs?: number
}

export class Replicator implements AsyncDisposable {
  readonly #records: ReplicatorOptions['records']
  readonly #gossip: Gossip
  readonly #peers: Peers
  readonly #log: Log
  readonly #random: () => number
  readonly #intervalMs: number
  readonly #stopping = new AbortController()
  readonly #refused = new RefusedIds()
  readonly #limits: PeerLimits
  /** Peers to compare with next, in order. */
  readonly #queue = new Set<string>()
  readonly #driving = new Map<string, Promise<void>>()
  readonly #timers = new Set<NodeJS.Timeout>()
  readonly #publishing = new Set<Promise<unknown>>()
  #answering = 0
  #isRoundDue = false

  private constructor({ records, gossip, peers, log, random, intervalMs }: ReplicatorOptions) {
    this.#records = records
    this.#gossip = gossip
    this.#peers = peers
    this.#log = log
    this.#random = random ?? Math.random
    this.#intervalMs = intervalMs ?? INTERVAL_MS
    this.#limits = new PeerLimits(() => records.now())
  }

  static async start(options: ReplicatorOptions): Promise<Replicator> {
    const replicator = new Replicator(options)
    const { records, gossip, peers, members } = options
    await peers.handle(RECORDS_PROTOCOL, (stream, peerId) => replicator.#answer(stream, peerId), {
      maxInboundStreams: STREAMS_MAX,
    })
    const unlisten = records.onChange((changes) => {
      for (const { kind, name, cause, record } of changes) {
        if (cause === 'put' && record) replicator.#publish(record.bytes)
        replicator.#log.debug({ kind, name, cause }, 'record.changed')
      }
    })
    const unlistenPeers = peers.onPeer((peerId, direction) => {
      if (direction === 'outbound') replicator.#met(peerId)
    })
    const unlistenMembers = members?.onChange(() => replicator.#refused.forget())
    const stop = () => {
      unlisten()
      unlistenPeers()
      unlistenMembers?.()
    }
    replicator.#stopping.signal.addEventListener('abort', stop, { once: true })
    gossip.subscribe((bytes, from) => replicator.#validate(bytes, from))
    replicator.#compareNowAndThen()
    return replicator
  }

  /** Stops taking streams, ends the comparisons in flight, and lets go out what was said last (a goodbye). */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new Error('the agent is stopping'))
    for (const timer of this.#timers) clearTimeout(timer)
    await this.#peers.unhandle(RECORDS_PROTOCOL)
    await Promise.all([...this.#driving.values(), ...this.#publishing])
  }

  /** The clocks of the peers met minus ours: their median, or undefined when none is known. */
  clockOffsetMs(): number | undefined {
    return this.#limits.clockOffsetMs()
  }

  #validate(bytes: Uint8Array, from: string): Verdict {
    if (this.#stopping.signal.aborted || !this.#limits.takeGossip(from)) return 'ignore'
    try {
      const acceptance = this.#records.accept(bytes)
      if (acceptance === 'new') return 'accept'
      return isFault(acceptance) ? 'reject' : 'ignore'
    } catch (error) {
      this.#log.error({ reason: reasonOf(error) }, 'record.unstored')
      return 'ignore'
    }
  }

  #publish(bytes: Uint8Array): void {
    if (this.#stopping.signal.aborted) return
    const publishing = this.#gossip
      .publish(bytes)
      .catch((error) => this.#log.debug({ reason: reasonOf(error) }, 'record.ungossiped'))
      .finally(() => this.#publishing.delete(publishing))
    this.#publishing.add(publishing)
  }

  #met(peerId: string): void {
    for (const waitMs of CONNECTED_MS) this.#after(waitMs, () => this.#enqueue(peerId))
  }

  #compareNowAndThen(): void {
    this.#after(this.#intervalMs * (0.75 + this.#random() / 2), () => {
      const connected = this.#peers.connected()
      const peerId = connected[Math.floor(this.#random() * connected.length)]
      if (peerId) this.#enqueue(peerId)
      this.#compareNowAndThen()
    })
  }

  #enqueue(peerId: string): void {
    if (this.#stopping.signal.aborted || this.#limits.isPaused(peerId)) return
    this.#queue.add(peerId)
    this.#drive()
  }

  #drive(): void {
    for (const peerId of this.#queue) {
      if (this.#driving.size >= DRIVEN_MAX) return
      if (this.#driving.has(peerId)) continue
      this.#queue.delete(peerId)
      const driven = this.#compare(peerId).finally(() => {
        this.#driving.delete(peerId)
        this.#drive()
      })
      this.#driving.set(peerId, driven)
    }
  }

  /** One comparison; never fails. */
  async #compare(peerId: string): Promise<void> {
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(SESSION_MS_MAX)])
    let frames: Frames | undefined
    try {
      frames = new Frames(await this.#peers.openStream(peerId, RECORDS_PROTOCOL, signal))
      const result = await syncWith(new RecordsAsker(frames), this.#records, {
        refused: this.#refused,
        isOffering: !this.#limits.isDeaf(peerId),
        onReceived: (records) => this.#spread(records),
        signal,
      })
      await frames.close(signal)
      const { received, accepted, refused, clockOffsetMs } = result
      if (refused >= DEAF_REFUSED_MIN && accepted === 0) this.#limits.noteDeaf(peerId)
      if (clockOffsetMs !== undefined) this.#limits.noteClock(peerId, clockOffsetMs)
      if (received + accepted + refused > 0)
        this.#log.debug({ peerId, received, accepted, refused }, 'records.compared')
    } catch (error) {
      frames?.abort(error as Error)
      this.#failed(peerId, error)
    }
  }

  async #answer(stream: Stream, peerId: string): Promise<void> {
    if (this.#stopping.signal.aborted || this.#limits.isPaused(peerId) || this.#answering >= ANSWERED_MAX) {
      stream.abort(new Error('not now'))
      return
    }
    this.#answering++
    const frames = new Frames(stream)
    try {
      await answerRecords(frames, this.#holdingsFor(peerId), {
        requestsMax: REQUESTS_MAX,
        signal: () => AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(WAIT_MS_MAX)]),
      })
      await frames.close(AbortSignal.timeout(WAIT_MS_MAX))
    } catch (error) {
      frames.abort(error as Error)
      this.#failed(peerId, error)
    } finally {
      this.#answering--
    }
  }

  #holdingsFor(peerId: string): RecordHoldings {
    const records = this.#records
    return {
      network: records.network,
      now: records.now,
      bucketDigests: () => records.bucketDigests(),
      publishers: (buckets) => records.publishers(buckets),
      positions: (publisher) => records.positions(publisher),
      fetch: (id) => records.fetch(id),
      offer: (list) => this.#take(list),
      onClock: (peerNow) => this.#limits.noteClock(peerId, peerNow - records.now()),
    }
  }

  async #take(list: Uint8Array[]): Promise<OfferResult> {
    const acceptances = await acceptInTurns(this.#records, list)
    const fresh = list.filter((_, nth) => acceptances[nth] === 'new')
    this.#spread(fresh)
    const kept = acceptances.filter((acceptance) => acceptance === 'known' || acceptance === 'older').length
    return { accepted: fresh.length, refused: list.length - fresh.length - kept }
  }

  /** Tells other peers what one peer brought. */
  #spread(fresh: Uint8Array[]): void {
    if (fresh.length <= GOSSIPED_MAX) {
      for (const bytes of fresh) this.#publish(bytes)
      return
    }
    if (this.#isRoundDue) return
    this.#isRoundDue = true
    this.#after(ROUND_MS * (0.5 + this.#random()), () => {
      this.#isRoundDue = false
      for (const peerId of this.#peers.connected()) this.#enqueue(peerId)
    })
  }

  #failed(peerId: string, error: unknown): void {
    if (this.#stopping.signal.aborted) return
    this.#log.debug({ peerId, reason: reasonOf(error) }, 'records.uncompared')
    if (error instanceof WireError && error.code !== 'closed' && error.code !== 'refused') this.#limits.pause(peerId)
  }

  #after(waitMs: number, act: () => void): void {
    if (this.#stopping.signal.aborted) return
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      act()
    }, waitMs).unref()
    this.#timers.add(timer)
  }
}
