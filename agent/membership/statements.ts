/**
 * Keeps what this node knows of a network's revocations and policy the same as what its other members know, from start() until disposed.
 *
 * Two members compare when they meet, before anything else of the network is said between them (`onCompared`), and again after something
 * went wrong. What is learned or made here is offered to every connected member at once, as soon as those whom it throws out are cut.
 *
 * Wire format and limits: protocols/membership/spec.md, "Statements". A member's fault closes its stream, is logged at debug, and costs
 * it a pause.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  answerStatements,
  type Offer,
  type PolicyPosition,
  STATEMENTS_PROTOCOL,
  type Stated,
  StatementsAsker,
} from '../../protocols/membership/exchange.ts'
import type { Policy } from '../../protocols/membership/policy.ts'
import type { Revocation } from '../../protocols/membership/revocation.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { Turns } from '../mesh/gossip-intake.ts'
import type { Direction } from '../mesh/host.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'
import { type Compared, compareWith, RefusedStatements } from './comparison.ts'
import { type Held, StatementIndex } from './statement-index.ts'

/** Before a comparison that failed is tried again; the last one goes on. The first is for a peer that is just joining. */
const RETRY_MS = [250, 1_000, 4_000, 15_000, 60_000]
/** Who was dialled waits so long for the other to compare, and then does it. */
const PATIENCE_MS = 3_000
/** A member that broke the rules is left alone for this long. */
const PAUSE_MS = 60_000
/** News for one member, waiting to be offered. With more, comparing is cheaper. */
const NEWS_MAX = 256
/**
 * Comparisons driven from here at once: each holds about two frames in memory, and members that answer slowly must not keep it from others.
 * Offers are not counted: they must not wait.
 */
const DRIVEN_MAX = 16
/** Answered at once, of all members. */
const ANSWERED_MAX = 64
/** Per member: a comparison and an offer, and one of each that is just ending. */
const STREAMS_MAX = 4
/** One wait for a peer. An answer is made from memory; what is offered is verified first, 0.2 ms each. */
const WAIT_MS_MAX = 20_000
/** A whole comparison. Then it ends, and the next one goes on. */
const SESSION_MS_MAX = 120_000
/** In one comparison: pages of ids, and of what was asked for by them. */
const REQUESTS_MAX = 4_096

/** The kind of statement, as it is called on the wire. */
const REVOCATION = 'revocation'

/** What this needs of a membership. */
export type StatementStore = {
  readonly revocations: { list(): Revocation[] }
  readonly policy: Policy | undefined
  /** False when it was known. @throws {WireError} */
  takeRevocation(bytes: Uint8Array): boolean
  /** False when it is not newer. @throws {WireError} */
  takePolicy(bytes: Uint8Array): boolean
  onChange(listener: () => void): () => void
}

export type StatementsOptions = {
  membership: StatementStore
  scope: Pick<NetworkScope, 'onPeer' | 'onPeerGone' | 'connected' | 'openStream' | 'handle' | 'unhandle'>
  /** Cuts whoever is no member any more: Gate.recheck. Called when a revocation was learned, before it is passed on. */
  recheck: () => unknown
  log: Log
}

type Peer = {
  readonly direction: Direction
  isCompared: boolean
  isComparing: boolean
  isOffering: boolean
  /** To be offered next. */
  news: Stated[]
  isPolicyNews: boolean
  failures: number
  timer: NodeJS.Timeout | undefined
}

type Listener = (peerId: string, direction: Direction) => void

export class Statements implements AsyncDisposable {
  readonly #membership: StatementStore
  readonly #scope: StatementsOptions['scope']
  readonly #recheck: () => unknown
  readonly #log: Log
  readonly #index = new StatementIndex()
  readonly #refused = new RefusedStatements()
  readonly #turns = new Turns()
  readonly #peers = new Map<string, Peer>()
  /** Comparisons that wait for one of the places. */
  readonly #queue = new Set<string>()
  readonly #paused = new Map<string, number>()
  readonly #listeners = new Set<Listener>()
  readonly #work = new Set<Promise<void>>()
  readonly #stopping = new AbortController()
  readonly #unlisten: (() => void)[] = []
  /** From whom a statement came that was not passed on yet. */
  readonly #sources = new Map<Uint8Array, string>()
  #policyId: string
  #driven = 0
  #answering = 0
  #isSpreadDue = false

  private constructor({ membership, scope, recheck, log }: StatementsOptions) {
    this.#membership = membership
    this.#scope = scope
    this.#recheck = recheck
    this.#log = log
    this.#index.update(held(membership))
    this.#policyId = idOf(membership.policy)
  }

  static async start(options: StatementsOptions): Promise<Statements> {
    const statements = new Statements(options)
    const { scope, membership } = options
    await scope.handle(STATEMENTS_PROTOCOL, (stream, peerId) => statements.#answer(stream, peerId), {
      maxInboundStreams: STREAMS_MAX,
    })
    statements.#unlisten.push(
      membership.onChange(() => statements.#changed()),
      scope.onPeer((peerId, direction) => statements.#met(peerId, direction)),
      scope.onPeerGone((peerId) => statements.#gone(peerId)),
    )
    return statements
  }

  /**
   * Calls the listener for each member when this node has compared statements with it, once for each time that they meet: what else they
   * say to each other can begin. Returns how to stop that.
   */
  onCompared(listener: Listener): () => void {
    this.#listeners.add(listener)
    const present = [...this.#peers].filter(([, { isCompared }]) => isCompared)
    queueMicrotask(() => {
      for (const [peerId, peer] of present)
        if (this.#listeners.has(listener) && this.#peers.get(peerId) === peer) listener(peerId, peer.direction)
    })
    return () => void this.#listeners.delete(listener)
  }

  /** Whether this node has compared statements with the member since they met. */
  isCompared(peerId: string): boolean {
    return this.#peers.get(peerId)?.isCompared ?? false
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new Error('the agent is stopping'))
    for (const unlisten of this.#unlisten) unlisten()
    for (const { timer } of this.#peers.values()) clearTimeout(timer)
    this.#peers.clear()
    await this.#scope.unhandle(STATEMENTS_PROTOCOL)
    await Promise.all(this.#work)
  }

  #met(peerId: string, direction: Direction): void {
    this.#gone(peerId)
    const peer: Peer = {
      direction,
      isCompared: false,
      isComparing: false,
      isOffering: false,
      news: [],
      isPolicyNews: false,
      failures: 0,
      timer: undefined,
    }
    this.#peers.set(peerId, peer)
    if (direction === 'outbound') this.#enqueue(peerId)
    else this.#later(peerId, peer, PATIENCE_MS)
  }

  #gone(peerId: string): void {
    clearTimeout(this.#peers.get(peerId)?.timer)
    this.#peers.delete(peerId)
    this.#queue.delete(peerId)
  }

  /** Many changes of one turn are one. */
  #changed(): void {
    if (this.#isSpreadDue) return
    this.#isSpreadDue = true
    setImmediate(() => {
      this.#isSpreadDue = false
      if (!this.#stopping.signal.aborted) this.#spread()
    })
  }

  /** Passes on what is new here. */
  #spread(): void {
    const fresh = this.#index.update(held(this.#membership))
    const policyId = idOf(this.#membership.policy)
    const isPolicyNews = policyId !== this.#policyId
    this.#policyId = policyId
    if (fresh.length > 0) this.#recheck()
    if (fresh.length > 0 || isPolicyNews) {
      for (const peerId of this.#scope.connected()) {
        const peer = this.#peers.get(peerId)
        if (peer === undefined) continue
        peer.news.push(...fresh.filter(({ bytes }) => this.#sources.get(bytes) !== peerId))
        peer.isPolicyNews ||= isPolicyNews
        this.#offer(peerId, peer)
      }
    }
    this.#sources.clear()
  }

  #enqueue(peerId: string): void {
    if (this.#stopping.signal.aborted) return
    this.#queue.add(peerId)
    this.#drive()
  }

  #drive(): void {
    for (const peerId of this.#queue) {
      const peer = this.#peers.get(peerId)
      if (this.#driven >= DRIVEN_MAX) return
      if (peer?.isComparing) continue
      this.#queue.delete(peerId)
      if (peer === undefined) continue
      if (this.#isPaused(peerId)) {
        this.#later(peerId, peer, PAUSE_MS)
        continue
      }
      peer.isComparing = true
      this.#driven++
      this.#begin(
        this.#compare(peerId, peer).finally(() => {
          peer.isComparing = false
          this.#driven--
          this.#drive()
        }),
      )
    }
  }

  async #compare(peerId: string, peer: Peer): Promise<void> {
    const session = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(SESSION_MS_MAX)])
    const signal = () => AbortSignal.any([session, AbortSignal.timeout(WAIT_MS_MAX)])
    let frames: Frames | undefined
    try {
      frames = new Frames(await this.#scope.openStream(peerId, STATEMENTS_PROTOCOL, signal()))
      const result = await compareWith(new StatementsAsker(frames), this.#comparedBy(peerId), this.#refused, signal)
      await frames.close(signal())
      if (result.received + result.given > 0) this.#log.debug({ peerId, ...result }, 'statements.compared')
      this.#compared(peerId, peer)
    } catch (error) {
      frames?.abort(error as Error)
      this.#failed(peerId, peer, error)
    }
  }

  /** Offers a member what it was not told yet, in one stream at a time. */
  #offer(peerId: string, peer: Peer): void {
    if (peer.isOffering || (peer.news.length === 0 && !peer.isPolicyNews)) return
    if (peer.news.length > NEWS_MAX) {
      peer.news = []
      peer.isPolicyNews = false
      this.#enqueue(peerId)
      return
    }
    const statements = peer.news
    const policy = peer.isPolicyNews ? this.#membership.policy?.bytes : undefined
    peer.news = []
    peer.isPolicyNews = false
    peer.isOffering = true
    this.#begin(
      this.#send(peerId, peer, { statements, policy }).finally(() => {
        peer.isOffering = false
        if (this.#peers.get(peerId) === peer) this.#offer(peerId, peer)
      }),
    )
  }

  async #send(peerId: string, peer: Peer, offer: Offer): Promise<void> {
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(WAIT_MS_MAX)])
    let frames: Frames | undefined
    try {
      frames = new Frames(await this.#scope.openStream(peerId, STATEMENTS_PROTOCOL, signal))
      await new StatementsAsker(frames).offer(offer, signal)
      await frames.close(signal)
    } catch (error) {
      frames?.abort(error as Error)
      this.#failed(peerId, peer, error)
    }
  }

  async #answer(stream: Stream, peerId: string): Promise<void> {
    if (this.#stopping.signal.aborted || this.#isPaused(peerId) || this.#answering >= ANSWERED_MAX) {
      stream.abort(new Error('not now'))
      return
    }
    this.#answering++
    const frames = new Frames(stream)
    const ours = this.#comparedBy(peerId)
    const take = async (offer: Offer) => (await ours.takeAll(offer)).taken
    try {
      const { isCompared } = await answerStatements(
        frames,
        { ...ours, take },
        {
          requestsMax: REQUESTS_MAX,
          signal: () => AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(WAIT_MS_MAX)]),
        },
      )
      await frames.close(AbortSignal.timeout(WAIT_MS_MAX))
      const peer = this.#peers.get(peerId)
      if (isCompared && peer !== undefined) this.#compared(peerId, peer)
    } catch (error) {
      frames.abort(error as Error)
      this.#failed(peerId, this.#peers.get(peerId), error)
    } finally {
      this.#answering--
    }
  }

  /** What this node has, and takes from one peer. */
  #comparedBy(peerId: string): Compared {
    const index = this.#index
    return {
      digests: () => index.digests(),
      ids: (buckets, after) => index.ids(buckets, after),
      has: (id) => index.has(id),
      statement: (id) => index.get(id),
      policy: () => positioned(this.#membership.policy),
      takeAll: (offer) => this.#take(peerId, offer),
    }
  }

  async #take(peerId: string, { statements, policy }: Offer): Promise<{ taken: number; refused: number[] }> {
    const refused: number[] = []
    let taken = 0
    for (const [nth, { kind, bytes: given }] of statements.entries()) {
      await this.#turns.take()
      this.#stopping.signal.throwIfAborted()
      if (this.#index.holds(given)) continue
      // A copy: what arrived is part of a frame.
      const bytes = Uint8Array.from(given)
      try {
        if (!this.#takeOne({ kind, bytes })) continue
        taken++
        this.#sources.set(bytes, peerId)
      } catch (error) {
        // More of them than are kept, or of a later version: whoever passes that on need not know what else is here.
        if (!(error instanceof WireError && error.code === 'too-large')) throw faultOf(error)
        refused.push(nth)
      }
    }
    if (policy !== undefined && this.#takePolicy(peerId, Uint8Array.from(policy))) taken++
    // At once: whoever is out is cut, and the next one told, before the peer that told us is answered.
    if (taken > 0) this.#spread()
    return { taken, refused }
  }

  #takeOne({ kind, bytes }: Stated): boolean {
    if (kind === REVOCATION) return this.#membership.takeRevocation(bytes)
    throw new WireError('too-large', `a statement of a kind that is not known: ${kind}`)
  }

  #takePolicy(peerId: string, bytes: Uint8Array): boolean {
    try {
      return this.#membership.takePolicy(bytes)
    } catch (error) {
      // Its issuer was revoked, which the peer need not know.
      if (!(error instanceof WireError && error.code === 'refused')) throw error
      this.#log.debug({ peerId, reason: error.message }, 'policy.refused')
      return false
    }
  }

  #compared(peerId: string, peer: Peer): void {
    peer.failures = 0
    if (this.#peers.get(peerId) !== peer || peer.isCompared) return
    clearTimeout(peer.timer)
    peer.isCompared = true
    for (const listener of this.#listeners) listener(peerId, peer.direction)
  }

  /** What could not be exchanged is compared later, as long as the peer is there. */
  #failed(peerId: string, peer: Peer | undefined, error: unknown): void {
    if (this.#stopping.signal.aborted) return
    this.#log.debug({ peerId, reason: reasonOf(error) }, 'statements.uncompared')
    const isFault = error instanceof WireError && !['closed', 'refused', 'timeout'].includes(error.code)
    if (isFault) this.#pause(peerId)
    if (peer === undefined || this.#peers.get(peerId) !== peer) return
    const waitMs = isFault ? PAUSE_MS : (RETRY_MS[Math.min(peer.failures++, RETRY_MS.length - 1)] ?? PAUSE_MS)
    this.#later(peerId, peer, waitMs)
  }

  #later(peerId: string, peer: Peer, waitMs: number): void {
    clearTimeout(peer.timer)
    peer.timer = setTimeout(() => this.#enqueue(peerId), waitMs).unref()
  }

  #pause(peerId: string): void {
    const now = performance.now()
    for (const [other, until] of this.#paused) if (until <= now) this.#paused.delete(other)
    this.#paused.set(peerId, now + PAUSE_MS)
  }

  #isPaused(peerId: string): boolean {
    return (this.#paused.get(peerId) ?? 0) > performance.now()
  }

  /** Runs work that dispose waits for. It never fails. */
  #begin(work: Promise<void>): void {
    const settled = work.finally(() => this.#work.delete(settled))
    this.#work.add(settled)
  }
}

/** What has no force will have none tomorrow: nobody who keeps to the rules passes it on. */
function faultOf(error: unknown): unknown {
  if (!(error instanceof WireError && error.code === 'refused')) return error
  return new WireError('malformed', error.message, { cause: error })
}

function held({ revocations }: Pick<StatementStore, 'revocations'>): Held[] {
  return revocations.list().map(({ statement: { id }, bytes }) => ({ kind: REVOCATION, id, bytes }))
}

function idOf(policy: Policy | undefined): string {
  return policy === undefined ? '' : Buffer.from(policy.statement.id).toString('hex')
}

function positioned(policy: Policy | undefined): { position: PolicyPosition; bytes: Uint8Array } | undefined {
  if (policy === undefined) return undefined
  const { version, id } = policy.statement
  return { position: { version, id }, bytes: policy.bytes }
}
