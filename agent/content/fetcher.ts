/**
 * Fetches blobs from peers into the blob directory: from all who have some of it, until the whole hash is right.
 *
 * Every source states a piece list of its own before it is asked for pieces, so a wrong piece is its own fault; a list is judged by the
 * whole hash, so when that is wrong everybody who stated the list lied, and when it is right everybody who stated another one did. Those who
 * are fetching the blob themselves say so: they pass on the list that they were given, and are not to blame when it is false.
 * A blob of a few pieces is asked for as a whole first where that is quick (whole-blobs.ts): what goes wrong then is judged by its pieces.
 * Whoever lied about a blob is not asked for it again for a while. Fetches of one digest are one job, which ends when nobody waits.
 *
 * A job is for one network, all its bytes come from peers of that, and it is the only one in which they may be given on. Who wants the same
 * blob for another network waits for the job, and begins his own if it fails. When it does not, or the blob was here before, he has it, but
 * his network has no part in it: else any member could name a hash, and have this node hand what is private to one network to another.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError } from '../error.ts'
import type { Log } from '../log.ts'
import { ArrivingBlob } from './arriving-blob.ts'
import type { Blobs } from './blobs.ts'
import type { BlobFetcher, BlobSource, Fault, FetchOptions } from './content.ts'
import { FetchJob } from './fetch-job.ts'
import type { JobLimits } from './job-limits.ts'
import type { LaneSource } from './lanes.ts'
import type { Lie } from './lies.ts'
import { cancelled } from './outcomes.ts'
import type { PartialBlob } from './partial-blob.ts'
import { type OpenStreams, PieceSessions } from './piece-sessions.ts'
import { SlotsByPeer } from './slots.ts'
import { WholeBlobs } from './whole-blobs.ts'

/** Streams open at once to one peer, below what a server gives one; and to all. Each may have 8 MiB under way. */
const DOWNLOADS_PER_PEER_MAX = 12
const DOWNLOADS_MAX = 48
/** A piece that takes longer is 13 KB/s: another source, or a later time, serves the user better. */
const PIECE_MS_MAX = 20_000
/** An honest peer begins to answer in a round trip. One that does not may be overloaded, so it gets its time when nobody else is left. */
const HASTE_MS = 4_000
/** A peer may have to read the whole blob before it can list its pieces; it is given this much longer for each GiB. */
const LIST_MS_PER_GIB = 10_000
const OPEN_MS_MAX = 10_000
/** An agent that was started again meets its peers within this, on a busy machine too. */
const MEETING_MS = 30_000
/** A peer that repaired its disk is worth asking again. */
const SHUNNED_MS = 10 * 60_000
const SHUNNED_MAX = 10_000
/** A peer that let somebody wait in vain is asked last for this long, unless it answers meanwhile. */
const SILENT_MS = 60_000
const SILENT_MAX = 1_000

export type FetcherInit = {
  blobs: Blobs
  streams: OpenStreams
  /** This node's peer id. */
  self: string
  /** For large blobs. */
  lanes?: LaneSource
  log: Log
  /** Whether a peer that another one named may be asked in a network. Nobody, if it is not given. */
  mayAsk?: (peerId: string, network: string) => boolean
  onFault?: (fault: Fault) => void
  /** Told of every false list that somebody signed. */
  onLie?: (lie: Lie) => void
  limits?: Partial<JobLimits>
  now?: () => number
}

export class Fetcher implements BlobFetcher, AsyncDisposable {
  readonly #init: FetcherInit
  readonly #limits: JobLimits
  readonly #jobs = new Map<Digest, FetchJob>()
  readonly #slots = new SlotsByPeer(DOWNLOADS_PER_PEER_MAX, DOWNLOADS_MAX)
  /** `peerId digest` -> what it did, and until when it is remembered. */
  readonly #shunned = new Map<string, { reason: string; untilMs: number }>()
  /** Peer ids -> until when it is remembered that they let somebody wait. */
  readonly #silent = new Map<string, number>()
  readonly #now: () => number
  readonly #startedMs = performance.now()
  readonly #sessions: PieceSessions
  readonly #whole: WholeBlobs
  #isStopped = false
  #fetchedBytes = 0
  #laneBytes = 0

  constructor(init: FetcherInit) {
    this.#init = init
    this.#limits = {
      openMs: OPEN_MS_MAX,
      pieceMs: PIECE_MS_MAX,
      hasteMs: HASTE_MS,
      listMsPerGib: LIST_MS_PER_GIB,
      ...init.limits,
    }
    this.#now = init.now ?? Date.now
    this.#sessions = new PieceSessions(init.streams, init.lanes)
    const { blobs, lanes } = init
    this.#whole = new WholeBlobs({ blobs, sessions: this.#sessions, lanes, openMs: this.#limits.openMs })
  }

  /** Bytes of pieces received since the start. */
  get fetchedBytes(): number {
    return this.#fetchedBytes
  }

  /** Of those, over lanes. */
  get laneBytes(): number {
    return this.#laneBytes
  }

  async fetch(digest: Digest, options: FetchOptions): Promise<void> {
    const { blobs } = this.#init
    if (options.pin !== undefined) blobs.pin(digest, options.pin)
    try {
      const joined = await this.#join(digest, options)
      if (!joined) return
      try {
        await joined.job.wait(options.signal)
      } finally {
        joined.leave()
      }
    } catch (error) {
      if (options.pin !== undefined && !blobs.has(digest)) blobs.unpin(digest, options.pin)
      throw error
    }
  }

  async open(digest: Digest, options: FetchOptions): Promise<BlobSource> {
    const { blobs } = this.#init
    if (options.pin !== undefined) blobs.pin(digest, options.pin)
    for (;;) {
      const whole = await blobs.open(digest)
      if (whole) return whole
      const joined = await this.#join(digest, options)
      if (!joined) continue
      try {
        const partial = await joined.job.started(options.signal)
        if (partial === undefined) {
          joined.leave()
          continue
        }
        // Once it is whole, the reader is all that keeps it from being evicted.
        const release = blobs.hold(digest)
        return new ArrivingBlob(joined.job, partial, options.signal, () => {
          release()
          joined.leave()
        })
      } catch (error) {
        joined.leave()
        throw error
      }
    }
  }

  /** What is here of a blob that is being fetched for the network. */
  arriving(digest: Digest, network: string): PartialBlob | undefined {
    const job = this.#jobs.get(digest)
    return job?.network === network ? job.arriving : undefined
  }

  /** A peer that may have what is given out in the network asked for the blob: it wants it, too, and may have some of it. */
  heard(peerId: string, digest: Digest, network: string): void {
    const job = this.#jobs.get(digest)
    if (job?.network === network) job.heard(peerId)
  }

  /** Ends the fetches for a network that this node left. Resolves when none runs any more. */
  async forgetNetwork(network: string): Promise<void> {
    const jobs = [...this.#jobs.values()].filter((job) => job.network === network)
    for (const job of jobs) job.cancel(new AgentError('cancelled', 'this node left the network'))
    await Promise.all(jobs.map((job) => job.ended))
  }

  /** Ends every fetch; what came so far is kept for the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isStopped = true
    const jobs = [...this.#jobs.values()]
    for (const job of jobs) job.cancel(stopping())
    await Promise.all(jobs.map((job) => job.ended))
    await this.#whole[Symbol.asyncDispose]()
    await this.#sessions[Symbol.asyncDispose]()
  }

  /** The job for a digest, made if need be; undefined when the blob is here. */
  async #join(digest: Digest, options: FetchOptions): Promise<{ job: FetchJob; leave: () => void } | undefined> {
    for (;;) {
      if (options.signal.aborted) throw cancelled(options.signal)
      if (this.#init.blobs.has(digest)) return undefined
      if (this.#isStopped) throw stopping()
      const running = this.#jobs.get(digest)
      const job = running ?? this.#begin(digest, options)
      const isSize = job.sizeBytes === options.sizeBytes && job.sizeBytesMax === options.sizeBytesMax
      const isSame = isSize && job.network === options.network
      if (isSame && !job.isStopping) return { job, leave: job.join(options) }
      // It is ending, or for another network, or was told another size of the same digest: somebody is wrong there, and must not make this
      // one fail.
      await Promise.race([job.ended, aborted(options.signal)])
    }
  }

  #begin(digest: Digest, terms: FetchOptions): FetchJob {
    const { network } = terms
    const { blobs, self, mayAsk, log } = this.#init
    const job = new FetchJob({
      digest,
      terms,
      self,
      isResumed: performance.now() - this.#startedMs < MEETING_MS && blobs.index.partial(digest)?.network === network,
      blobs,
      sessions: this.#sessions,
      whole: this.#whole,
      slots: this.#slots,
      limits: this.#limits,
      mayAsk: (peerId) => mayAsk?.(peerId, network) ?? false,
      shunned: (peerId) => this.#shunnedFor(peerId, digest),
      isSilent: (peerId) => (this.#silent.get(peerId) ?? 0) > this.#now(),
      onSilence: (peerId) => this.#noteSilence(peerId),
      onAnswer: (peerId) => void this.#silent.delete(peerId),
      onFault: (peerId, reason) => this.#blame({ peerId, digest, reason }),
      onLie: (proof) => this.#init.onLie?.({ ...proof, digest, network }),
      onBytes: (bytes, isLane) => {
        this.#fetchedBytes += bytes
        if (isLane) this.#laneBytes += bytes
      },
      log,
    })
    this.#jobs.set(digest, job)
    void job.ended.then(() => this.#jobs.delete(digest))
    return job
  }

  #blame(fault: Fault): void {
    this.#shunned.set(`${fault.peerId} ${fault.digest}`, {
      reason: fault.reason,
      untilMs: this.#now() + SHUNNED_MS,
    })
    for (const key of this.#shunned.keys()) {
      if (this.#shunned.size <= SHUNNED_MAX) break
      this.#shunned.delete(key)
    }
    this.#init.log.warn({ ...fault }, 'blob.fault')
    this.#init.onFault?.(fault)
  }

  #noteSilence(peerId: string): void {
    if (this.#silent.size >= SILENT_MAX) this.#silent.clear()
    this.#silent.set(peerId, this.#now() + SILENT_MS)
  }

  #shunnedFor(peerId: string, digest: Digest): string | undefined {
    const key = `${peerId} ${digest}`
    const entry = this.#shunned.get(key)
    if (!entry) return undefined
    if (entry.untilMs > this.#now()) return entry.reason
    this.#shunned.delete(key)
    return undefined
  }
}

function stopping(): AgentError {
  return new AgentError('cancelled', 'the agent is stopping')
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}
