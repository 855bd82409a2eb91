/**
 * Blobs from outside are fetched once in a network: before this node fetches one, it asks the members that it is connected to; whoever has
 * it, or fetches it already, gives it. Who asks at the same time is put in an order that all agree on. Wire format: protocols/upstream/spec.md.
 *
 * It is a courtesy and no promise. A member that is silent, breaks off or says what is not so costs a bounded wait, once in a while, and
 * then this node fetches the blob itself.
 */
import { createHash } from 'node:crypto'
import type { Stream } from '@libp2p/interface'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  answerUpstream,
  askUpstream,
  UPSTREAM_PROTOCOL,
  type UpstreamRequest,
  type UpstreamState,
} from '../../protocols/upstream/exchange.ts'
import type { BlobFetcher } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'
import { publisherOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'

/** Members asked about one blob: the more there are, the likelier it is that one of those knows. */
const ASKED_MAX = 16
/** A member that is well answers in a round trip; one that is busy, in the middle of a build, takes longer than it would take to dial. */
const CLAIM_MS = 1_500
/** Of what is large a second copy costs more than waiting for a member that is busy: this much longer for each byte, up to the last. */
const CLAIM_BYTES_PER_MS = 10_000
const CLAIM_MS_MAX = 5_000
/** So often in a row a member may be silent; then, or when it did not keep what it said, it is not asked for a while. */
const SILENT_MAX = 3
const SHUNNED_MS = 30_000
const SHUNNED_MAX = 1_000
/** A claim that was answered `free` is remembered. */
const CLAIMED_MS = 1_000
const CLAIMED_MAX = 10_000
/** Whoever waits for this node is answered by then, and may ask again. */
const AWAIT_MS_MAX = 20_000
/** For another member's fetch: this long, and more for what is large. */
const PATIENCE_MS = 10_000
const PATIENCE_BYTES_PER_MS = 500
/** Then this node fetches, whatever others say. */
const ROUNDS_MAX = 5
/** Per member: Nix takes a few NARs at a time, and each may be waited for. */
const STREAMS_MAX = 64

/** The part of the mesh that is one network. */
export type SharedScope = {
  connected(): string[]
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type SharedFetchesInit = {
  self: string
  /** Whether this node has the blob, and gives it in this network. */
  gives: (digest: Digest, network: string) => boolean
  /** Whether the peer may fetch this of this node. */
  mayFetch: (peerId: string, network: string, digest: Digest) => boolean
  fetcher: Pick<BlobFetcher, 'fetch'>
  log: Log
  claimMs?: number
}

/** Who is to be asked for a blob, and whether he has all of it; or nobody, and then others are told that it comes until this is disposed. */
export type Claim = { readonly peerId: string | undefined; readonly isHere: boolean } & Disposable

type Claimant = { peerId: string; isHere: boolean }

/** A fetch of this node; `free` holds those who answered that it is theirs to do. */
type Own = { isClaiming: boolean; free: Set<string>; ended: Promise<void>; end: () => void }

export class SharedFetches implements AsyncDisposable {
  readonly #init: SharedFetchesInit
  readonly #scopes = new Map<string, SharedScope>()
  /** By network and digest, as are the next. */
  readonly #own = new Map<string, Own>()
  readonly #claimedBy = new Map<string, { peerId: string; untilMs: number }>()
  readonly #shunned = new Map<string, number>()
  /** How often in a row a member was silent. */
  readonly #silent = new Map<string, number>()
  readonly #stopping = new AbortController()

  constructor(init: SharedFetchesInit) {
    this.#init = init
  }

  /** Asks and answers in a network until disposed. */
  async serve(network: string, scope: SharedScope): Promise<AsyncDisposable> {
    this.#scopes.set(network, scope)
    const handler = (stream: Stream, peerId: string) => this.#answer(stream, peerId, network)
    await scope.handle(UPSTREAM_PROTOCOL, handler, { maxInboundStreams: STREAMS_MAX })
    return {
      [Symbol.asyncDispose]: async () => {
        this.#scopes.delete(network)
        await scope.unhandle(UPSTREAM_PROTOCOL)
      },
    }
  }

  /**
   * Resolves when the blob is here: from a member that had or fetched it, or by `fetch`.
   *
   * @throws what `fetch` throws
   */
  async once(
    digest: Digest,
    sizeBytes: number,
    network: string,
    fetch: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const scope = this.#scopes.get(network)
    if (scope === undefined) return await fetch()
    const key = `${network} ${digest}`
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const own = ownFetch()
      // Two fetches of one blob for one network are one, in Upstreams.
      this.#own.set(key, own)
      try {
        const other = this.#claimant(key) ?? (await this.#claim(digest, scope, own, signal))
        if (other === undefined) {
          own.isClaiming = false
          return await fetch()
        }
        this.#own.delete(key)
        if (await this.#take(digest, sizeBytes, network, scope, other.peerId, signal)) return
      } finally {
        this.#own.delete(key)
        own.end()
      }
      signal.throwIfAborted()
    }
    await fetch()
  }

  /** For who can take a blob from another member while it arrives there. There is one claim of a blob for a network at a time. */
  async claim(digest: Digest, sizeBytes: number, network: string, signal: AbortSignal): Promise<Claim> {
    const scope = this.#scopes.get(network)
    const nothing = { peerId: undefined, isHere: false }
    if (scope === undefined) return { ...nothing, [Symbol.dispose]: () => undefined }
    const key = `${network} ${digest}`
    const own = ownFetch()
    const release = () => {
      if (this.#own.get(key) === own) this.#own.delete(key)
      own.end()
    }
    this.#own.set(key, own)
    try {
      const patienceMs = Math.min(CLAIM_MS_MAX, CLAIM_MS + Math.ceil(sizeBytes / CLAIM_BYTES_PER_MS))
      const other = this.#claimant(key) ?? (await this.#claim(digest, scope, own, signal, patienceMs))
      own.isClaiming = false
      if (other === undefined) return { ...nothing, [Symbol.dispose]: release }
      release()
      return { ...other, [Symbol.dispose]: () => undefined }
    } catch (error) {
      release()
      throw error
    }
  }

  /** A member did not keep what it said. */
  distrust(peerId: string): void {
    this.#shun(peerId)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
  }

  /** Who has it, or fetches it; undefined when it is this node's to fetch. */
  async #claim(
    digest: Digest,
    scope: SharedScope,
    own: Own,
    signal: AbortSignal,
    patienceMs = CLAIM_MS,
  ): Promise<Claimant | undefined> {
    const members = scope.connected().filter((peerId) => !this.#isShunned(peerId))
    const limited = AbortSignal.any([signal, AbortSignal.timeout(this.#init.claimMs ?? patienceMs)])
    const coming: string[] = []
    const ask = async (peerId: string): Promise<string> => {
      const asked = this.#ask(peerId, scope, { ask: 'claim', digest: Buffer.from(digest, 'hex') }, limited)
      const state = await asked.catch((error: unknown) => {
        if (!signal.aborted) this.#noteSilence(peerId)
        this.#init.log.debug({ peerId, digest, reason: reasonOf(error) }, 'upstream.unanswered')
        throw error
      })
      this.#silent.delete(peerId)
      if (state === 'here') return peerId
      if (state === 'coming') coming.push(peerId)
      else own.free.add(peerId)
      throw new AgentError('not-found', 'it is not here')
    }
    const holder = await Promise.any(members.slice(0, ASKED_MAX).map(ask)).catch(() => undefined)
    signal.throwIfAborted()
    // Of those who claim it at the same time, all wait for the one that all give way to.
    if (holder !== undefined) return { peerId: holder, isHere: true }
    const [first] = coming.sort((one, other) => (isBefore(digest, one, other) ? -1 : 1))
    return first === undefined ? undefined : { peerId: first, isHere: false }
  }

  /** Gets it from a member, when that has it. False when that came to nothing. */
  async #take(
    digest: Digest,
    sizeBytes: number,
    network: string,
    scope: SharedScope,
    peerId: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    const patience = AbortSignal.timeout(PATIENCE_MS + Math.ceil(sizeBytes / PATIENCE_BYTES_PER_MS))
    const limited = AbortSignal.any([signal, patience])
    try {
      let state: UpstreamState = 'coming'
      while (state === 'coming')
        state = await this.#ask(peerId, scope, { ask: 'await', digest: Buffer.from(digest, 'hex') }, limited)
      // It gave up: whoever asks first now is next.
      if (state === 'free') return false
      await this.#init.fetcher.fetch(digest, { network, sources: [peerId], signal: limited, sizeBytes })
      return true
    } catch (error) {
      signal.throwIfAborted()
      this.#shun(peerId)
      this.#init.log.debug({ peerId, digest, reason: reasonOf(error) }, 'upstream.unshared')
      return false
    }
  }

  async #ask(
    peerId: string,
    scope: SharedScope,
    request: UpstreamRequest,
    signal: AbortSignal,
  ): Promise<UpstreamState> {
    let frames: Frames | undefined
    try {
      frames = new Frames(await scope.openStream(peerId, UPSTREAM_PROTOCOL, signal))
      const state = await askUpstream(frames, request, signal)
      void frames.close(signal).catch(() => undefined)
      return state
    } catch (error) {
      frames?.abort(error as Error)
      throw error
    }
  }

  async #answer(stream: Stream, peerId: string, network: string): Promise<void> {
    const frames = new Frames(stream)
    const { signal } = this.#stopping
    await answerUpstream(frames, (request) => this.#stateFor(request, peerId, network), signal)
    await frames.close(signal)
  }

  async #stateFor({ ask, digest: bytes }: UpstreamRequest, peerId: string, network: string): Promise<UpstreamState> {
    const digest = Buffer.from(bytes).toString('hex')
    const { gives, mayFetch, self } = this.#init
    if (!mayFetch(peerId, network, digest)) return 'free'
    if (gives(digest, network)) return 'here'
    const key = `${network} ${digest}`
    const own = this.#own.get(key)
    if (ask === 'await') {
      if (own === undefined) return 'free'
      await Promise.race([own.ended, elapsed(AWAIT_MS_MAX)])
      return gives(digest, network) ? 'here' : this.#own.has(key) ? 'coming' : 'free'
    }
    const isOurs = own !== undefined && (!own.isClaiming || own.free.has(peerId) || isBefore(digest, self, peerId))
    if (isOurs) return 'coming'
    this.#noteClaim(key, peerId)
    return 'free'
  }

  #noteClaim(key: string, peerId: string): void {
    if (this.#claimedBy.size >= CLAIMED_MAX) this.#claimedBy.clear()
    this.#claimedBy.set(key, { peerId, untilMs: performance.now() + CLAIMED_MS })
  }

  /** Who said a moment ago that it is about to fetch this, and was told to. */
  #claimant(key: string): Claimant | undefined {
    const claim = this.#claimedBy.get(key)
    this.#claimedBy.delete(key)
    const isGood = claim !== undefined && claim.untilMs > performance.now() && !this.#isShunned(claim.peerId)
    return isGood ? { peerId: claim.peerId, isHere: false } : undefined
  }

  #noteSilence(peerId: string): void {
    const count = (this.#silent.get(peerId) ?? 0) + 1
    if (this.#silent.size >= SHUNNED_MAX) this.#silent.clear()
    this.#silent.set(peerId, count)
    if (count >= SILENT_MAX) this.#shun(peerId)
  }

  #shun(peerId: string): void {
    this.#silent.delete(peerId)
    if (this.#shunned.size >= SHUNNED_MAX) this.#shunned.clear()
    this.#shunned.set(peerId, performance.now() + SHUNNED_MS)
  }

  #isShunned(peerId: string): boolean {
    return (this.#shunned.get(peerId) ?? 0) > performance.now()
  }
}

function ownFetch(): Own {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { isClaiming: true, free: new Set(), ended: promise, end: resolve }
}

/** Of two that claim a blob at the same time, whether this one fetches it. */
function isBefore(digest: Digest, one: string, other: string): boolean {
  return Buffer.compare(rank(digest, one), rank(digest, other)) < 0
}

function rank(digest: Digest, peerId: string): Buffer {
  return createHash('sha256')
    .update(Buffer.from(digest, 'hex'))
    .update(publisherOf(peerId) ?? new Uint8Array())
    .digest()
}

function elapsed(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref())
}
