/**
 * Binary caches upstream, as further sources when no peer has a path. All are asked at the same time, and the first is taken that has it
 * signed as this agent wants it. Their NARs are decompressed, held against the hash that was signed, and kept as blobs.
 *
 * What none of them has is remembered for a while; so is a NAR that was not what its narinfo said, and then the next cache is asked. NARs are
 * fetched once, whoever waits; and where a closed network shares what comes from a cache, first it is agreed with its other members who
 * fetches it (see shared-fetches.ts).
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobStore } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { hashPartOf } from './closures.ts'
import { decompressed } from './compression.ts'
import type { HeldPaths } from './held-paths.ts'
import { type ForeignNarinfo, parseNarinfo } from './narinfo-read.ts'
import type { PathInfo } from './nix-store.ts'
import type { TrustedKeys } from './trust.ts'
import { Upstream, type UpstreamOptions } from './upstream.ts'

/** Nix asks again for what it has not got; a cache is filled in the meantime. */
const ABSENT_MS = 5 * 60_000
const ABSENT_MAX = 100_000
/** Until a NAR is asked for, the narinfo is known: Nix remembers it for a month, and then it is asked for again. */
const FOUND_MAX = 20_000
/** A NAR of other bytes than were signed. */
const SPOILT_MS = 10 * 60_000
const SPOILT_MAX = 1_000

/** Tries to get a NAR from members of a network that have it or fetch it. */
type SharedFetch = {
  /**
   * Runs `fetch` if this node is to fetch it from upstream, for everybody; else gets it from who has.
   *
   * @throws what `fetch` throws
   */
  once(
    digest: Digest,
    sizeBytes: number,
    network: string,
    fetch: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void>
}

export type UpstreamsInit = {
  urls: readonly string[]
  blobs: Pick<BlobStore, 'write' | 'has'>
  held: Pick<HeldPaths, 'put'>
  trust: Pick<TrustedKeys, 'judge'>
  storeDirectory: string
  /** The id of the network in which what comes from a cache is shared: the one that is named, or the only one; undefined: in none. */
  networkOf: (name: string | undefined) => string | undefined
  shared: SharedFetch
  log: Log
  now?: () => number
  limits?: Omit<UpstreamOptions, 'now'>
}

type Found = { said: ForeignNarinfo; info: PathInfo; upstream: Upstream }
type Job = { promise: Promise<void>; stop: AbortController; waiting: number }
export type UpstreamAnswer =
  | { info: PathInfo; refusals?: undefined }
  | { info?: undefined; refusals: readonly string[] }

export class Upstreams implements AsyncDisposable {
  readonly #init: UpstreamsInit
  readonly #now: () => number
  #all: Upstream[]
  /** Hash part -> until when nobody is asked. */
  readonly #absent = new Map<string, number>()
  /** By hash part, the one found last at the end. */
  readonly #found = new Map<string, Found>()
  /** `url digest` -> until when. */
  readonly #spoilt = new Map<string, number>()
  readonly #jobs = new Map<Digest, Job>()
  #fetchedBytes = 0

  constructor(init: UpstreamsInit) {
    this.#init = init
    this.#now = init.now ?? (() => performance.now())
    this.#all = this.#made(init.urls)
  }

  /** Takes a configuration that was read again. */
  configure(urls: readonly string[]): void {
    for (const upstream of this.#all) upstream[Symbol.dispose]()
    this.#absent.clear()
    this.#found.clear()
    this.#all = this.#made(urls)
  }

  /** Of NARs, decompressed, since the start. */
  get fetchedBytes(): number {
    return this.#fetchedBytes
  }

  /** Caches that are left alone at the moment, and why. */
  resting(): { url: string; reason: string }[] {
    return this.#all.flatMap(({ url, reason }) => (reason === undefined ? [] : [{ url, reason }]))
  }

  /** What a cache says of a path, to be believed; or why none is. Rejects only when the signal fires. */
  async find(hashPart: string, signal: AbortSignal): Promise<UpstreamAnswer> {
    if (this.#all.length === 0) return { refusals: [] }
    const known = this.#found.get(hashPart)
    if (known && !this.#isSpoilt(known.upstream, known.info.narHash)) return { info: known.info }
    if ((this.#absent.get(hashPart) ?? 0) > this.#now()) return { refusals: [] }
    const refusals: string[] = []
    const answers = this.#all.map((upstream) => this.#askOne(upstream, hashPart, signal, refusals))
    const found = await Promise.any(answers.map(foundOrWait)).catch(() => undefined)
    signal.throwIfAborted()
    if (found) {
      this.#remember(found)
      return { info: found.info }
    }
    // Only what every cache says itself is remembered: one that is down may have it.
    if ((await Promise.all(answers)).every((answer) => answer === 'absent')) this.#noteAbsent(hashPart)
    return { refusals }
  }

  /**
   * Brings a NAR here that `find` has found, into the blob directory.
   *
   * @throws {AgentError} `not-found`, `corrupt`, `failed`, `limit`; `cancelled` when the signal fires
   */
  async fetch(digest: Digest, hashPart: string, signal: AbortSignal): Promise<void> {
    if (this.#init.blobs.has(digest)) return
    const running = this.#jobs.get(digest)
    const job = running && !running.stop.signal.aborted ? running : this.#begin(digest, hashPart)
    job.waiting++
    const { promise: gone, reject } = Promise.withResolvers<never>()
    const leave = () => reject(signal.reason as Error)
    if (signal.aborted) leave()
    signal.addEventListener('abort', leave, { once: true })
    try {
      await Promise.race([job.promise, gone])
    } finally {
      signal.removeEventListener('abort', leave)
      if (--job.waiting === 0) job.stop.abort(new AgentError('cancelled', 'nobody waits for it any more'))
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const upstream of this.#all) upstream[Symbol.dispose]()
    for (const { stop } of this.#jobs.values()) stop.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.allSettled([...this.#jobs.values()].map(({ promise }) => promise))
  }

  #made(urls: readonly string[]): Upstream[] {
    return urls.map((url) => new Upstream(url, { now: this.#now, ...this.#init.limits }))
  }

  #begin(digest: Digest, hashPart: string): Job {
    const stop = new AbortController()
    const promise = this.#run(digest, hashPart, stop.signal).finally(() => {
      if (this.#jobs.get(digest)?.stop === stop) this.#jobs.delete(digest)
    })
    promise.catch(() => undefined)
    const job = { promise, stop, waiting: 0 }
    this.#jobs.set(digest, job)
    return job
  }

  /** One cache after the other, as long as they have this very NAR. */
  async #run(digest: Digest, hashPart: string, signal: AbortSignal): Promise<void> {
    const reasons: string[] = []
    for (let tried = 0; tried <= this.#all.length; tried++) {
      const { info } = await this.find(hashPart, signal)
      const found = this.#found.get(hashPart)
      if (info?.narHash !== digest || !found) break
      const { upstream } = found
      try {
        return await this.#fetchFrom(found, signal)
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof AgentError && error.code === 'limit') throw error
        reasons.push(reasonOf(error))
        this.#init.log.warn({ url: upstream.url, path: info.path, reason: reasonOf(error) }, 'upstream.nar-failed')
        this.#found.delete(hashPart)
        this.#noteSpoilt(upstream, digest)
      }
    }
    throw new AgentError('not-found', reasons.join('; ') || 'no cache upstream has it')
  }

  async #fetchFrom(found: Found, signal: AbortSignal): Promise<void> {
    const { info, upstream } = found
    const network = this.#init.networkOf(upstream.network)
    if (network === undefined) return await this.#download(found, undefined, signal)
    const fetch = () => this.#download(found, network, signal)
    await this.#init.shared.once(info.narHash, info.narSize, network, fetch, signal)
    this.#init.held.put(info)
  }

  async #download({ said, info, upstream }: Found, network: string | undefined, signal: AbortSignal): Promise<void> {
    const { blobs, held, log } = this.#init
    const bytes = decompressed(upstream.nar(said.url, signal), said.compression, signal)
    const options = network === undefined ? { isLate: true } : { isLate: true, network }
    await blobs.write(info.narHash, this.#counted(bytes, info.narSize), signal, options)
    held.put(info)
    log.info({ url: upstream.url, path: info.path, sizeBytes: info.narSize }, 'upstream.fetched')
  }

  async *#counted(chunks: AsyncIterable<Uint8Array>, sizeBytes: number): AsyncGenerator<Uint8Array> {
    let doneBytes = 0
    for await (const chunk of chunks) {
      doneBytes += chunk.byteLength
      if (doneBytes > sizeBytes)
        throw new AgentError('corrupt', `its NAR has more than the ${sizeBytes} bytes it should`)
      this.#fetchedBytes += chunk.byteLength
      yield chunk
    }
  }

  /** Never rejects. */
  async #askOne(
    upstream: Upstream,
    hashPart: string,
    signal: AbortSignal,
    refusals: string[],
  ): Promise<Found | 'absent' | 'refused'> {
    const { storeDirectory, trust, log } = this.#init
    try {
      const text = await upstream.narinfo(hashPart, signal)
      if (text === undefined) return 'absent'
      const said = parseNarinfo(text, storeDirectory)
      if (hashPartOf(said.path) !== hashPart)
        throw new AgentError('corrupt', `it answers with another path, ${said.path}`)
      if (this.#isSpoilt(upstream, said.narHash)) return 'refused'
      const verdict = trust.judge(said, said.signatures)
      if (!verdict.ok) throw new AgentError('not-allowed', `${said.path}: ${verdict.reason}`)
      const { path, narHash, narSize, deriver } = said
      const lists = { references: [...said.references], signatures: [...said.signatures] }
      return { said, upstream, info: { path, narHash, narSize, ...lists, deriver, ca: verdict.ca, ultimate: false } }
    } catch (error) {
      if (!signal.aborted) {
        refusals.push(`${upstream.url}: ${reasonOf(error)}`)
        log.debug({ url: upstream.url, hashPart, reason: reasonOf(error) }, 'upstream.refused')
      }
      return 'refused'
    }
  }

  #remember(found: Found): void {
    const hashPart = hashPartOf(found.info.path)
    this.#found.delete(hashPart)
    this.#found.set(hashPart, found)
    dropOldest(this.#found, FOUND_MAX)
  }

  #noteAbsent(hashPart: string): void {
    this.#absent.delete(hashPart)
    this.#absent.set(hashPart, this.#now() + ABSENT_MS)
    dropOldest(this.#absent, ABSENT_MAX)
  }

  #noteSpoilt({ url }: Upstream, digest: Digest): void {
    this.#spoilt.set(`${url} ${digest}`, this.#now() + SPOILT_MS)
    dropOldest(this.#spoilt, SPOILT_MAX)
  }

  #isSpoilt({ url }: Upstream, digest: Digest): boolean {
    return (this.#spoilt.get(`${url} ${digest}`) ?? 0) > this.#now()
  }
}

/** To Promise.any only a rejection means: wait for the others. */
async function foundOrWait(answer: Promise<Found | 'absent' | 'refused'>): Promise<Found> {
  const given = await answer
  if (typeof given === 'string') throw new AgentError('not-found', 'not from this one')
  return given
}

function dropOldest(map: Map<string, unknown>, max: number): void {
  if (map.size <= max) return
  for (const oldest of map.keys()) {
    map.delete(oldest)
    break
  }
}
