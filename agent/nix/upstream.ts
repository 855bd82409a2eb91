/**
 * One binary cache upstream, over HTTP: narinfos within a short time, NARs as streams that go on where they were cut. Nothing that it says
 * is believed here; see upstreams.ts.
 *
 * A cache that fails several times in a row (it is down, slow, or answers with a fault of its own) is left alone for a while, and all that wait
 * for it are told at once, so that a cache that hangs costs one wait and not one for each path. Then it is tried in the background, with
 * nobody waiting.
 */
import { AgentError, reasonOf } from '../error.ts'
import { NARINFO_BYTES_MAX } from './narinfo-read.ts'

/** Nix waits for the answer, and for those of peers before it: together below its patience. */
const NARINFO_MS_MAX = 1_500
/** An answer that takes longer is taken, and counts as a failure: a closure is thousands of them. */
const SLOW_MS = 1_000
/** With more of the time spent in this process it was the agent that was slow, and the cache is not to blame. */
const OWN_SHARE_MAX = 0.7
/** Failures in a row. */
const FAILURES_MAX = 3
/** It is left alone for this long, then twice as long, up to the last. */
const REST_MS = 15_000
const REST_MS_MAX = 10 * 60_000
/** Until a NAR begins, and between two parts of it. */
const QUIET_MS_MAX = 20_000
/** A NAR that is cut is asked for again from there, so often without anything new. */
const CUTS_MAX = 3

export type UpstreamOptions = { now?: () => number; narinfoMs?: number; slowMs?: number; quietMs?: number }
export type UpstreamState = 'well' | 'resting'

export class Upstream implements Disposable {
  /** As configured, without its parameters; ends with a slash. */
  readonly url: string
  /** The network in which what comes from it is shared, by name; undefined: the only closed one. */
  readonly network: string | undefined
  readonly #now: () => number
  readonly #narinfoMs: number
  readonly #slowMs: number
  readonly #quietMs: number
  readonly #stopping = new AbortController()
  /** Fires, for all that wait for narinfos, when it is to be left alone. */
  #waiting = new AbortController()
  #failures = 0
  #restMs = REST_MS
  #restsUntil = 0
  #isTrying = false
  #reason: string | undefined

  constructor(configured: string, { now, narinfoMs, slowMs, quietMs }: UpstreamOptions = {}) {
    const url = new URL(configured)
    this.network = url.searchParams.get('network') ?? undefined
    url.search = ''
    this.url = url.href.endsWith('/') ? url.href : `${url.href}/`
    this.#now = now ?? (() => performance.now())
    this.#narinfoMs = narinfoMs ?? NARINFO_MS_MAX
    this.#slowMs = slowMs ?? SLOW_MS
    this.#quietMs = quietMs ?? QUIET_MS_MAX
  }

  get state(): UpstreamState {
    return this.#failures >= FAILURES_MAX ? 'resting' : 'well'
  }

  /** What went wrong last, while it is left alone. */
  get reason(): string | undefined {
    return this.state === 'resting' ? this.#reason : undefined
  }

  /**
   * The text of a narinfo; undefined when the cache says that it has none.
   *
   * @throws {AgentError} `failed` when it does not answer, at once while it is left alone
   */
  async narinfo(hashPart: string, signal: AbortSignal): Promise<string | undefined> {
    if (this.state === 'resting') {
      this.#tryAgain()
      throw new AgentError('failed', `it is left alone, since ${this.#reason}`)
    }
    return await this.#ask(`${hashPart}.narinfo`, signal)
  }

  /**
   * The bytes of a NAR file as they are there, compressed. Cut off, it goes on where it was.
   *
   * @throws {AgentError} while it is read: `not-found`, `failed`
   */
  async *nar(url: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const target = new URL(url, this.url)
    if (target.origin !== new URL(this.url).origin)
      throw new AgentError('corrupt', `its NAR is on another host, ${target.origin}`)
    let at = 0
    for (let cuts = 0; ; cuts++) {
      const before = at
      try {
        for await (const chunk of this.#part(target, at, signal)) {
          at += chunk.byteLength
          yield chunk
        }
        return
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof AgentError && error.code === 'not-found') throw error
        if (at > before) cuts = 0
        if (cuts + 1 >= CUTS_MAX) {
          this.#failed(reasonOf(error))
          throw new AgentError('failed', `${this.url} does not give its NAR: ${reasonOf(error)}`, { cause: error })
        }
      }
    }
  }

  [Symbol.dispose](): void {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
  }

  async *#part(target: URL, at: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const quiet = new AbortController()
    const timer = setTimeout(() => quiet.abort(new Error(`nothing came for ${this.#quietMs} ms`)), this.#quietMs)
    const limited = AbortSignal.any([signal, quiet.signal, this.#stopping.signal])
    try {
      const headers = { 'accept-encoding': 'identity', ...(at > 0 && { range: `bytes=${at}-` }) }
      const response = await fetch(target, { headers, signal: limited })
      if (response.status === 404 || response.status === 403 || response.status === 410) {
        await response.body?.cancel()
        throw new AgentError('not-found', `${this.url} does not have the NAR any more`)
      }
      // A server that knows no ranges begins anew: what is known already is passed over.
      let skip = response.status === 206 ? 0 : at
      if (!response.ok || response.body === null) throw new Error(`HTTP ${response.status}`)
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        timer.refresh()
        const rest = chunk.subarray(Math.min(skip, chunk.byteLength))
        skip -= chunk.byteLength - rest.byteLength
        // While the reader is busy it is not the cache that is slow.
        if (rest.byteLength > 0) yield rest
        timer.refresh()
      }
      this.#succeeded()
    } finally {
      clearTimeout(timer)
    }
  }

  async #ask(file: string, signal: AbortSignal): Promise<string | undefined> {
    const timeout = AbortSignal.timeout(this.#narinfoMs)
    const { signal: given } = this.#waiting
    const begunMs = performance.now()
    const begun = performance.eventLoopUtilization()
    const isOurs = () => performance.eventLoopUtilization(begun).utilization > OWN_SHARE_MAX
    const answered = () => {
      const tookMs = performance.now() - begunMs
      if (tookMs > this.#slowMs && !isOurs()) this.#failed(`it takes ${Math.round(tookMs)} ms to answer`)
      else this.#succeeded()
    }
    try {
      const limited = AbortSignal.any([signal, timeout, given, this.#stopping.signal])
      const response = await fetch(new URL(file, this.url), { signal: limited })
      // 403 is what some object stores say of what is not there.
      if (response.status === 404 || response.status === 403) {
        await response.body?.cancel()
        answered()
        return undefined
      }
      if (!response.ok) {
        await response.body?.cancel()
        throw new Error(`it answers with HTTP ${response.status}`)
      }
      const text = await textOf(response)
      answered()
      return text
    } catch (error) {
      signal.throwIfAborted()
      // Whoever waits when it fails for others is told why they gave up, and counts no failure of his own.
      if (given.aborted) throw given.reason as Error
      const reason = timeout.aborted ? `it did not answer within ${this.#narinfoMs} ms` : causeOf(error)
      if (!timeout.aborted || !isOurs()) this.#failed(reason)
      throw new AgentError('failed', reason, { cause: error })
    }
  }

  /** Nobody waits for this. */
  #tryAgain(): void {
    if (this.#isTrying || this.#now() < this.#restsUntil || this.#stopping.signal.aborted) return
    this.#isTrying = true
    this.#ask('nix-cache-info', this.#stopping.signal)
      .catch(() => undefined)
      .finally(() => {
        this.#isTrying = false
      })
  }

  #succeeded(): void {
    this.#failures = 0
    this.#restMs = REST_MS
  }

  #failed(reason: string): void {
    this.#reason = reason
    this.#failures++
    if (this.#failures < FAILURES_MAX) return
    if (this.#failures > FAILURES_MAX) this.#restMs = Math.min(2 * this.#restMs, REST_MS_MAX)
    this.#restsUntil = this.#now() + this.#restMs
    this.#waiting.abort(new AgentError('failed', reason))
    this.#waiting = new AbortController()
  }
}

async function textOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of (response.body ?? []) as unknown as AsyncIterable<Uint8Array>) {
    bytes += chunk.byteLength
    if (bytes > NARINFO_BYTES_MAX) throw new Error(`its answer has more than ${NARINFO_BYTES_MAX} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** What fetch says is `fetch failed`; why is in its cause. */
function causeOf(error: unknown): string {
  const { cause } = error as Error
  return cause instanceof Error && cause.message !== '' ? cause.message : reasonOf(error)
}
