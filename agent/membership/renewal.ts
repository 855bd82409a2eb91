/**
 * Keeps this node's certificate of a network from ending, from start() until disposed: when half of its time is over, any member that may
 * issue is asked for the next one, this node itself first of all. Gives certificates to members that ask, if this node may; and takes one
 * that an issuer made for this node unasked (other labels). Whenever this node's certificate was replaced, connected members are shown it.
 *
 * Wire format: protocols/membership/spec.md, "Renewal". What a member asks for is its own, and how often is limited.
 */
import type { Stream } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import type { Chain } from '../../protocols/membership/certificate.ts'
import { answerRenewal, askRenewal, handOver, RENEWAL_PROTOCOL } from '../../protocols/membership/renewal.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'

/** Of a certificate's time, before it is renewed: so that an issuer may be away for as long as the other half. */
const RENEWED_AT = 0.5
/** Of a certificate's time, later than that, by chance: a fleet that joined in one minute does not come back in one. */
const SPREAD = 0.05
/** Between attempts that failed: from this, doubling, up to the last, and never more than a part of the time that is left. */
const RETRY_MS = 30_000
const RETRY_MS_MAX = 3_600_000
const RETRY_SHARE = 0.05
const RETRY_MS_MIN = 1_000
/** Members asked in one attempt, one after the other. */
const ASKED_MAX = 4
/** One question: an issuer signs within a millisecond, and may have to be dialled. */
const ASK_MS_MAX = 15_000
/** Timers take no more than 24 days, and laptops sleep: the clock is looked at this often. */
const LOOK_MS_MAX = 3_600_000
/** A member needs one answer in half a lifetime; some more if answers were lost. */
const ANSWERS_MAX = 4
const ANSWERS_MS = 10 * 60_000
/** Members whose questions are counted; of more, those who asked longest ago are forgotten. */
const COUNTED_MAX = 1_024
/** Per member: one question, and one that is just ending. */
const STREAMS_MAX = 2
/** Connected members that are shown a new certificate at once; each is a hello of some milliseconds. */
const REFRESHED_AT_ONCE = 4

/** What this needs of a membership. */
type RenewedMembership = {
  readonly network: Uint8Array
  /** This node's own. */
  readonly chain: Chain
  can(right: 'issue'): unknown
  /** Judges and stores it; false when it is the one that there is. @throws when it is not good */
  takeChain(chain: Chain): boolean
  onChange(listener: (what: 'revocations' | 'policy' | 'certificate' | 'rights') => void): () => void
}

export type RenewalOptions = {
  membership: RenewedMembership
  scope: Pick<NetworkScope, 'onPeer' | 'connected' | 'openStream' | 'handle' | 'unhandle'>
  /** Issues the key's next certificate, or says by a word why not. Called only while this node may issue. */
  renew: (subject: Uint8Array) => Chain | string
  /** Peer ids of members that say that they issue. */
  issuers: () => readonly string[]
  /** Says hello again to a connected peer: Gate.refresh. */
  refresh: (peerId: string, signal: AbortSignal) => Promise<unknown>
  log: Log
  now?: () => number
  /** From 0 to 1. */
  random?: () => number
}

export class Renewal implements AsyncDisposable {
  readonly #options: RenewalOptions
  readonly #log: Log
  readonly #now: () => number
  readonly #random: () => number
  readonly #stopping = new AbortController()
  readonly #work = new Set<Promise<void>>()
  readonly #unlisten: (() => void)[] = []
  /** Peer id -> when it asked. */
  readonly #answers = new Map<string, number[]>()
  #timer: NodeJS.Timeout | undefined
  /** Set from when a member came until it is asked. */
  #soon: NodeJS.Timeout | undefined
  #dueMs = 0
  #failures = 0
  #isRenewing = false

  private constructor(options: RenewalOptions) {
    this.#options = options
    this.#log = options.log
    this.#now = options.now ?? Date.now
    this.#random = options.random ?? Math.random
  }

  static async start(options: RenewalOptions): Promise<Renewal> {
    const renewal = new Renewal(options)
    const { scope, membership } = options
    await scope.handle(RENEWAL_PROTOCOL, (stream, peerId) => renewal.#answer(stream, peerId), {
      maxInboundStreams: STREAMS_MAX,
    })
    renewal.#unlisten.push(
      membership.onChange((what) => {
        if (what === 'certificate') renewal.#replaced()
      }),
      scope.onPeer(() => renewal.#met()),
    )
    renewal.#plan()
    return renewal
  }

  /** Hands a connected member the certificate that was made for it; false when it had it. @throws what the peer's refusal is, or the stream */
  async push(peerId: string, chain: Chain, signal: AbortSignal): Promise<boolean> {
    return this.#with(peerId, signal, (frames, limited) => handOver(frames, chain, limited))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new Error('the agent is stopping'))
    clearTimeout(this.#timer)
    clearTimeout(this.#soon)
    for (const unlisten of this.#unlisten) unlisten()
    await this.#options.scope.unhandle(RENEWAL_PROTOCOL)
    await Promise.all(this.#work)
  }

  /** After a start, and after each new certificate. */
  #plan(): void {
    const { notBefore, notAfter } = this.#options.membership.chain.statement
    this.#failures = 0
    this.#dueMs = notBefore + (notAfter - notBefore) * (RENEWED_AT + SPREAD * this.#random())
    this.#look()
  }

  #look(): void {
    clearTimeout(this.#timer)
    if (this.#stopping.signal.aborted) return
    const waitMs = this.#dueMs - this.#now()
    if (waitMs > 0 || this.#isRenewing) {
      this.#timer = setTimeout(() => this.#look(), Math.min(Math.max(waitMs, RETRY_MS_MIN), LOOK_MS_MAX)).unref()
      return
    }
    this.#isRenewing = true
    this.#begin(
      this.#renew().finally(() => {
        this.#isRenewing = false
        this.#look()
      }),
    )
  }

  /** A member came while we were waiting for one. */
  #met(): void {
    if (this.#failures === 0 || this.#soon !== undefined) return
    this.#soon = setTimeout(() => {
      this.#soon = undefined
      this.#dueMs = Math.min(this.#dueMs, this.#now())
      this.#look()
    }, RETRY_MS_MIN).unref()
  }

  async #renew(): Promise<void> {
    const { membership } = this.#options
    const before = membership.chain
    const reasons: string[] = []
    try {
      if (this.#takeOwn(reasons)) return
      for (const peerId of this.#candidates().slice(0, ASKED_MAX)) {
        try {
          const chain = await this.#with(peerId, this.#stopping.signal, askRenewal)
          if (this.#take(chain)) return
          reasons.push(`${peerId} gave one that ends no later`)
        } catch (error) {
          if (this.#stopping.signal.aborted) return
          reasons.push(reasonOf(error))
        }
      }
    } finally {
      if (membership.chain === before) this.#missed(reasons)
      else
        this.#log.info({ notAfter: new Date(membership.chain.statement.notAfter).toISOString() }, 'certificate.renewed')
    }
  }

  #takeOwn(reasons: string[]): boolean {
    const { membership, renew } = this.#options
    if (membership.can('issue') === undefined) return false
    const own = renew(membership.chain.statement.subject)
    if (typeof own === 'string') reasons.push(`this node: ${own}`)
    return typeof own !== 'string' && this.#take(own)
  }

  #missed(reasons: readonly string[]): void {
    if (this.#stopping.signal.aborted) return
    const { notAfter } = this.#options.membership.chain.statement
    const leftMs = notAfter - this.#now()
    const backoffMs = Math.min(RETRY_MS * 2 ** Math.min(this.#failures, 16), RETRY_MS_MAX)
    // What has ended cannot be renewed from here: it takes a token, and then the certificate is another one.
    const waitMs = leftMs > 0 ? Math.max(RETRY_MS_MIN, Math.min(backoffMs, leftMs * RETRY_SHARE)) : RETRY_MS_MAX
    this.#failures++
    this.#dueMs = this.#now() + waitMs * (0.75 + this.#random() / 2)
    this.#log.warn(
      { reasons, left: Math.round(leftMs / 1_000), retry: Math.round(waitMs / 1_000) },
      'certificate.unrenewed',
    )
  }

  /** Who is asked, in this order: issuers, first those that are connected; then members of whom nobody knows whether they issue. */
  #candidates(): string[] {
    const connected = new Set(this.#options.scope.connected())
    const issuers = this.#shuffled(this.#options.issuers())
    const near = issuers.filter((peerId) => connected.has(peerId))
    const others = this.#shuffled([...connected].filter((peerId) => !issuers.includes(peerId)))
    const far = issuers.filter((peerId) => !connected.has(peerId))
    return [...near, ...far, ...others]
  }

  #shuffled(peerIds: readonly string[]): string[] {
    return peerIds
      .map((peerId) => ({ peerId, rank: this.#random() }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ peerId }) => peerId)
  }

  /** Takes a certificate that ends later than the one that there is. */
  #take(chain: Chain): boolean {
    const { membership } = this.#options
    if (chain.statement.notAfter <= membership.chain.statement.notAfter) return false
    return membership.takeChain(chain)
  }

  /** This node has another certificate: the time until the next one begins, and connected members are shown it. */
  #replaced(): void {
    this.#plan()
    this.#begin(this.#show([...this.#options.scope.connected()]))
  }

  async #show(peerIds: string[]): Promise<void> {
    const showNext = async () => {
      for (let peerId = peerIds.pop(); peerId !== undefined; peerId = peerIds.pop()) {
        if (this.#stopping.signal.aborted) return
        try {
          await this.#options.refresh(peerId, this.#stopping.signal)
        } catch (error) {
          this.#log.debug({ peerId, reason: reasonOf(error) }, 'certificate.unshown')
        }
      }
    }
    await Promise.all(Array.from({ length: REFRESHED_AT_ONCE }, showNext))
  }

  async #answer(stream: Stream, peerId: string): Promise<void> {
    const frames = new Frames(stream)
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ASK_MS_MAX)])
    const renew = () => this.#given(peerId)
    await answerRenewal(frames, { renew, take: (chain) => this.#taken(peerId, chain) }, signal)
    await frames.close(signal)
  }

  /** A certificate for the one who asks, and for nobody else. */
  #given(peerId: string): Chain | string {
    if (this.#options.membership.can('issue') === undefined) return 'not-issuing'
    if (!this.#isAnswered(peerId)) return 'too-often'
    const given = this.#options.renew(keyOf(peerId))
    this.#log.info({ peerId, ...(typeof given === 'string' && { refused: given }) }, 'certificate.asked')
    return given
  }

  /** One for this node, made after the one that there is: an older one would take back what was given since. */
  #taken(peerId: string, chain: Chain): boolean | string {
    if (!this.#isAnswered(peerId)) return 'too-often'
    const { membership } = this.#options
    const own = membership.chain.statement
    if (!sameBytes(chain.statement.network, membership.network)) return 'foreign'
    if (!sameBytes(chain.statement.subject, own.subject)) return 'not-yours'
    if (chain.statement.issued <= own.issued) return sameBytes(chain.statement.id, own.id) ? false : 'older'
    try {
      return membership.takeChain(chain)
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      this.#log.debug({ peerId, reason: error.message }, 'certificate.refused')
      return 'not-good'
    }
  }

  #isAnswered(peerId: string): boolean {
    const now = performance.now()
    const recent = (this.#answers.get(peerId) ?? []).filter((at) => now - at < ANSWERS_MS)
    this.#answers.delete(peerId)
    const [oldest] = this.#answers.keys()
    if (this.#answers.size >= COUNTED_MAX && oldest !== undefined) this.#answers.delete(oldest)
    const isAnswered = recent.length < ANSWERS_MAX
    this.#answers.set(peerId, isAnswered ? [...recent, now] : recent)
    return isAnswered
  }

  async #with<T>(
    peerId: string,
    signal: AbortSignal,
    speak: (frames: Frames, signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const limited = AbortSignal.any([signal, AbortSignal.timeout(ASK_MS_MAX)])
    const frames = new Frames(await this.#options.scope.openStream(peerId, RENEWAL_PROTOCOL, limited))
    try {
      const answer = await speak(frames, limited)
      await frames.close(limited)
      return answer
    } catch (error) {
      frames.abort(error as Error)
      throw error
    }
  }

  /** Runs work that dispose waits for. It never fails. */
  #begin(work: Promise<void>): void {
    const settled = work.finally(() => this.#work.delete(settled))
    this.#work.add(settled)
  }
}

/** The raw key of a member. The gate lets in none with another kind of key. */
function keyOf(peerId: string): Uint8Array {
  const peer = peerIdFromString(peerId)
  if (peer.type !== 'Ed25519') throw new TypeError(`${peerId} has no Ed25519 key`)
  return peer.publicKey.raw
}
