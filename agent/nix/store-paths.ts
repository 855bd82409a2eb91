/**
 * What is known of store paths, asked of peers who may have them, and answered to peers of this node's store where it is given out. Wire
 * format: protocols/paths/spec.md. What the local Nix asks for at the same time is asked of a peer in one request.
 *
 * A peer that is silent or answers nonsense is not asked for a while; a peer's fault never reaches further than that.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import { SIGNATURES_MAX } from '../../protocols/artifact/artifact.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  ASKED_MAX,
  answerPaths,
  askPaths,
  factsFit,
  PATHS_PROTOCOL,
  type PathFacts,
} from '../../protocols/paths/exchange.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { signaturesOf } from './closure.ts'
import type { PublishedPath } from './closures.ts'
import type { PathInfo } from './nix-store.ts'
import { type CacheKey, isSignature } from './signing.ts'
import type { StoreIndex } from './store-index.ts'
import { nameOf, type StoreRules } from './store-rules.ts'

/** Whoever asks waits no longer for one peer: Nix waits for the narinfo. */
const ANSWER_MS_MAX = 700
/** A peer that is dialled for it may take longer the first time: until then nobody waits for it any more, and then it is there. */
const OPEN_MS_MAX = 5_000
/** Twice as long each time that it happens again. */
const SHUNNED_MS = 15_000
const SHUNNED_MS_MAX = 10 * 60_000
const SHUNNED_MAX = 1_000
/** A stream stays open so long between questions. */
const IDLE_MS = 10_000
/** Questions that wait for one peer. */
const WAITING_MAX = 1_000
/** Peers that are asked at the same time. */
const LINES_MAX = 256
/** An answerer gives up a stream on which nothing comes. */
const QUIET_MS_MAX = 30_000
/** Whether a peer may fetch is judged so often: each refusal is noted for people. */
const JUDGED_MS = 500
const STREAMS_MAX = 2
/** Streams that are answered at the same time, of all peers. */
const ANSWERED_MAX = 128
/** When answers have taken so long, all who ask wait as long: together they have at most half of a core. */
const REST_MS_MIN = 5

/** The part of the mesh that is one network. */
export type PathsScope = {
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

/** What a peer says of a path in its store. */
export type StorePath = PublishedPath & { deriver: string | undefined }

type Init = {
  index: Pick<StoreIndex, 'byHashPart'>
  /** Whether the store is given out in the network. */
  isShared: (network: string) => boolean
  rules: () => StoreRules
  storeDirectory: string
  key: Pick<CacheKey, 'publicKey' | 'sign'>
  /** Whether the peer may fetch anything of this node. */
  mayFetch: (peerId: string, network: string) => boolean
  log: Log
  answerMs?: number
}

type Question = { hashPart: string; resolve: (facts: PathFacts | null) => void; reject: (error: Error) => void }
/** What is asked of one peer in one network. */
type Line = {
  /** Since when a stream is being opened. */
  openingMs: number | undefined
  waiting: Question[]
  running: Promise<void> | undefined
  frames: Frames | undefined
  idle: NodeJS.Timeout | undefined
}

export class StorePaths implements AsyncDisposable {
  readonly #init: Init
  readonly #scopes = new Map<string, PathsScope>()
  /** By network and peer, as is the next. */
  readonly #lines = new Map<string, Line>()
  readonly #shunned = new Map<string, { untilMs: number; times: number }>()
  readonly #stopping = new AbortController()
  #answered = 0
  #workedMs = 0
  #resting: Promise<void> = Promise.resolve()

  constructor(init: Init) {
    this.#init = init
  }

  /** Asks and answers in a network until disposed. */
  async serve(network: string, scope: PathsScope): Promise<AsyncDisposable> {
    this.#scopes.set(network, scope)
    const handler = (stream: Stream, peerId: string) => this.#answer(stream, peerId, network)
    await scope.handle(PATHS_PROTOCOL, handler, { maxInboundStreams: STREAMS_MAX })
    return {
      [Symbol.asyncDispose]: async () => {
        this.#scopes.delete(network)
        await scope.unhandle(PATHS_PROTOCOL)
      },
    }
  }

  get #answerMs(): number {
    return this.#init.answerMs ?? ANSWER_MS_MAX
  }

  /** Whether it is of use to ask a peer now. */
  isShunned(peerId: string, network: string): boolean {
    const key = `${network} ${peerId}`
    const { openingMs = Number.POSITIVE_INFINITY } = this.#lines.get(key) ?? {}
    const isSlow = performance.now() - openingMs > this.#answerMs
    return isSlow || (this.#shunned.get(key)?.untilMs ?? 0) > performance.now()
  }

  /** What a peer says of a path; undefined when it does not give it out. Rejects when it cannot be asked, or is silent. */
  async ask(peerId: string, network: string, hashPart: string, signal: AbortSignal): Promise<StorePath | undefined> {
    const key = `${network} ${peerId}`
    const limited = AbortSignal.any([signal, AbortSignal.timeout(this.#answerMs)])
    try {
      const facts = await this.#queue(key, peerId, network, hashPart, limited)
      this.#shunned.delete(key)
      return facts === null ? undefined : storePathOf(facts)
    } catch (error) {
      if (!signal.aborted && this.#lines.get(key)?.openingMs === undefined) this.#shun(key)
      this.#init.log.debug({ peerId, hashPart, reason: reasonOf(error) }, 'store.unanswered')
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.all([...this.#lines.values()].flatMap(({ running }) => running ?? []))
    for (const [key, line] of this.#lines) this.#close(key, line)
  }

  #queue(
    key: string,
    peerId: string,
    network: string,
    hashPart: string,
    signal: AbortSignal,
  ): Promise<PathFacts | null> {
    const line = this.#lines.get(key) ?? {
      waiting: [],
      running: undefined,
      openingMs: undefined,
      frames: undefined,
      idle: undefined,
    }
    const isFull = line.waiting.length >= WAITING_MAX || (!this.#lines.has(key) && this.#lines.size >= LINES_MAX)
    if (isFull || this.#stopping.signal.aborted) throw new AgentError('limit', 'too much is asked already')
    this.#lines.set(key, line)
    return new Promise((resolve, reject) => {
      const question: Question = { hashPart, resolve, reject }
      const onAbort = () => {
        line.waiting = line.waiting.filter((one) => one !== question)
        reject(signal.reason as Error)
      }
      signal.addEventListener('abort', onAbort, { once: true })
      line.waiting.push(question)
      line.running ??= this.#run(key, line, { peerId, network })
    })
  }

  /** Asks what waits, all of it at once, until nothing does. */
  async #run(key: string, line: Line, of: { peerId: string; network: string }): Promise<void> {
    clearTimeout(line.idle)
    while (line.waiting.length > 0) {
      // What Nix asks in this turn of the event loop goes along.
      await new Promise<void>((resolve) => setImmediate(resolve))
      const asked = line.waiting.splice(0, ASKED_MAX)
      try {
        const limited = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(OPEN_MS_MAX)])
        if (line.frames === undefined) {
          line.openingMs = performance.now()
          line.frames = new Frames(await this.#open(of, limited))
        }
        line.openingMs = undefined
        const answers = await askPaths(
          line.frames,
          asked.map(({ hashPart }) => hashPart),
          limited,
        )
        for (const [at, { resolve }] of asked.entries()) resolve(answers[at] ?? null)
      } catch (error) {
        const failure = error instanceof Error ? error : new Error(reasonOf(error))
        line.frames?.abort(failure)
        line.frames = undefined
        // Those who asked have perhaps been gone for long.
        if (line.openingMs !== undefined && !this.#stopping.signal.aborted) this.#shun(key)
        line.openingMs = undefined
        for (const { reject } of [...asked, ...line.waiting.splice(0)]) reject(failure)
      }
    }
    line.running = undefined
    line.idle = setTimeout(() => this.#close(key, line), IDLE_MS).unref()
  }

  async #open({ peerId, network }: { peerId: string; network: string }, signal: AbortSignal): Promise<Stream> {
    const scope = this.#scopes.get(network)
    if (scope === undefined) throw new AgentError('not-found', 'this node is not in the network any more')
    return await scope.openStream(peerId, PATHS_PROTOCOL, signal)
  }

  #close(key: string, line: Line): void {
    clearTimeout(line.idle)
    if (line.running !== undefined) return
    this.#lines.delete(key)
    line.frames?.close(AbortSignal.timeout(OPEN_MS_MAX)).catch(() => undefined)
  }

  #shun(key: string): void {
    if (this.#shunned.size >= SHUNNED_MAX) this.#shunned.clear()
    const now = performance.now()
    const before = this.#shunned.get(key)
    // Several questions may fail together.
    if (before !== undefined && before.untilMs > now) return
    const times = before?.times ?? 0
    this.#shunned.set(key, { untilMs: now + Math.min(SHUNNED_MS_MAX, SHUNNED_MS * 2 ** times), times: times + 1 })
  }

  async #answer(stream: Stream, peerId: string, network: string): Promise<void> {
    if (this.#answered >= ANSWERED_MAX) {
      stream.abort(new AgentError('limit', 'too many streams'))
      return
    }
    this.#answered++
    const frames = new Frames(stream)
    const signal = () => AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(QUIET_MS_MAX)])
    let judged = { isAllowed: false, ms: Number.NEGATIVE_INFINITY }
    const mayFetch = () => {
      const ms = performance.now()
      if (ms - judged.ms > JUDGED_MS) judged = { isAllowed: this.#init.mayFetch(peerId, network), ms }
      return judged.isAllowed
    }
    try {
      await answerPaths(frames, (hashPart) => this.#factsFor(hashPart, mayFetch, network), signal)
      await frames.close(signal())
    } catch (error) {
      frames.abort(error instanceof Error ? error : new Error(reasonOf(error)))
      this.#init.log.debug({ peerId, reason: reasonOf(error) }, 'store.answer-failed')
    } finally {
      this.#answered--
    }
  }

  async #factsFor(hashPart: string, mayFetch: () => boolean, network: string): Promise<PathFacts | null> {
    if (this.#workedMs >= REST_MS_MIN) {
      this.#resting = delay(this.#workedMs)
      this.#workedMs = 0
    }
    await this.#resting
    const { index, isShared, storeDirectory } = this.#init
    const startMs = performance.now()
    const info = isShared(network) && mayFetch() ? index.byHashPart(hashPart) : undefined
    if (info === undefined || !info.path.startsWith(`${storeDirectory}/`)) return null
    const facts = this.#factsOf(info)
    this.#workedMs += performance.now() - startMs
    return factsFit(facts) ? facts : null
  }

  #factsOf(info: PathInfo): PathFacts {
    const { path, narHash, narSize, references, ca, deriver } = info
    // Only the name that what it made has, too, may be told.
    const isTold = deriver !== undefined && !this.#init.rules().isPrivate(nameOf(deriver).replace(/\.drv$/, ''))
    return {
      path,
      nar: Buffer.from(narHash, 'hex'),
      sizeBytes: narSize,
      references: references.map(baseName),
      signatures: signaturesOf(info, this.#init.key).slice(0, SIGNATURES_MAX),
      ...(ca !== undefined && { ca }),
      ...(isTold && { deriver: baseName(deriver) }),
    }
  }
}

function storePathOf({ path, nar, sizeBytes, references, signatures, ca, deriver }: PathFacts): StorePath {
  const directory = path.slice(0, path.lastIndexOf('/'))
  return {
    path,
    narHash: Buffer.from(nar).toString('hex'),
    narSize: sizeBytes,
    references: references.map((name) => `${directory}/${name}`),
    // A stranger's texts.
    signatures: signatures.filter(isSignature),
    ca,
    deriver: deriver === undefined ? undefined : `${directory}/${deriver}`,
  }
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}
