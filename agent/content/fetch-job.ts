/**
 * The fetching of one blob for one network, for everybody who waits for it. See fetcher.ts for who is to blame for what.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { BLOB_BYTES_MAX, PIECE_BYTES, pieceCount } from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Blobs } from './blobs.ts'
import type { FetchOptions } from './content.ts'
import { Deadline } from './deadline.ts'
import { download } from './download.ts'
import { PartialBlob } from './partial-blob.ts'
import { fromHex, listOf, type PieceList } from './piece-lists.ts'
import type { PieceSession, PieceSessions } from './piece-sessions.ts'
import type { Slots } from './slots.ts'
import { type Source, SourceOrder } from './source-order.ts'

/** A disk that loses what was just written to it is not to be argued with. */
const FILLINGS_MAX = 3
/** How large a blob of unknown size is thought to be, and how large one may be, when it is about waiting for its list. */
const UNKNOWN_BYTES = 2 ** 32
const LISTING_BYTES_MAX = 2 ** 35
/** Named in an error message; the log has them all. */
const REASONS_MAX = 5

export type JobLimits = {
  /** To open a stream, dialling included. */
  openMs: number
  /** Between two pieces. */
  pieceMs: number
  /** Until a source begins to answer; one that does not gives way to the others, and has `pieceMs` when there are none left. */
  hasteMs: number
  /** More for the list, for each GiB of blob: the peer may have to read it all first. */
  listMsPerGib: number
}

export type FetchJobInit = {
  digest: Digest
  network: string
  sizeBytes: number | undefined
  sizeBytesMax: number | undefined
  hasteMs: number | undefined
  blobs: Blobs
  sessions: PieceSessions
  slots: Slots
  limits: JobLimits
  /** Why this peer is not to be asked for this blob. */
  shunned: (peerId: string) => string | undefined
  /** Whether this peer let somebody wait in vain a short while ago: it is asked when nobody else is left. */
  isSilent: (peerId: string) => boolean
  onSilence: (peerId: string) => void
  onAnswer: (peerId: string) => void
  onFault: (peerId: string, reason: string) => void
  onBytes: (bytes: number) => void
  log: Log
}

type Waiter = Pick<FetchOptions, 'onProgress' | 'pin'>
/** What became of a source that was tried. */
type Outcome = { reason: string; lied: boolean }

export class FetchJob {
  readonly digest: Digest
  readonly network: string
  readonly sizeBytes: number | undefined
  readonly sizeBytesMax: number | undefined
  /** Resolves, however it ended, when nothing of the job runs any more. */
  readonly ended: Promise<void>
  readonly #init: FetchJobInit
  readonly #stopping = new AbortController()
  readonly #waiters = new Set<Waiter>()
  readonly #sources: SourceOrder
  readonly #outcomes = new Map<string, Outcome>()
  /** Who stated which list, by `listKey`. */
  readonly #claims = new Map<string, Set<string>>()
  readonly #falseLists = new Set<string>()
  readonly #result = Promise.withResolvers<void>()
  readonly #started = Promise.withResolvers<PartialBlob>()
  #partial: PartialBlob | undefined
  #isDone = false
  #changed = Promise.withResolvers<void>()

  constructor(init: FetchJobInit) {
    this.#init = init
    this.digest = init.digest
    this.network = init.network
    this.sizeBytes = init.sizeBytes
    this.sizeBytesMax = init.sizeBytesMax
    this.#sources = new SourceOrder({
      hasteMs: init.hasteMs ?? init.limits.hasteMs,
      patienceMs: init.limits.pieceMs,
      isShunned: (peerId) => this.#isShunned(peerId),
      isSilent: init.isSilent,
      signal: this.#stopping.signal,
    })
    // Whoever waits has these; a job that nobody waits for any more may end badly in silence.
    this.#result.promise.catch(() => undefined)
    this.#started.promise.catch(() => undefined)
    this.ended = this.#run()
  }

  /** Adds somebody who waits, and the peers it knows of. Returns how to leave. */
  join(options: FetchOptions): () => void {
    const waiter: Waiter = options
    this.#waiters.add(waiter)
    this.#sources.join(waiter, options.sources)
    return () => {
      if (!this.#waiters.delete(waiter)) return
      this.#sources.leave(waiter)
      if (this.#waiters.size === 0) this.cancel(cancelled())
    }
  }

  cancel(reason: AgentError): void {
    this.#stopping.abort(reason)
  }

  get isStopping(): boolean {
    return this.#stopping.signal.aborted
  }

  /** Resolves when the blob is whole. */
  wait(signal: AbortSignal): Promise<void> {
    return untilAborted(this.#result.promise, signal)
  }

  /** Resolves when the size is known and pieces are about to arrive. */
  started(signal: AbortSignal): Promise<PartialBlob> {
    return untilAborted(this.#started.promise, signal)
  }

  /** Resolves when the piece is there; for the last piece, when the blob is whole. */
  async piece(index: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      if (this.#isDone) return await this.wait(signal)
      const partial = this.#partial
      const isLast = partial && index === pieceCount(partial.list.sizeBytes) - 1
      if (partial?.has(index) && !isLast) return
      await untilAborted(this.#changed.promise, signal)
    }
  }

  async #run(): Promise<void> {
    // join() comes right after the constructor.
    await Promise.resolve()
    try {
      await this.#fetch()
      this.#result.resolve()
    } catch (error) {
      const reason = this.#stopping.signal.aborted ? (this.#stopping.signal.reason as Error) : error
      this.#result.reject(reason)
      this.#started.reject(reason)
    }
    this.#isDone = true
    this.#tellChanged()
    try {
      await this.#partial?.leave()
    } catch (error) {
      this.#init.log.warn({ digest: this.digest, reason: reasonOf(error) }, 'blob.partial.unsaved')
    }
  }

  async #fetch(): Promise<void> {
    const { signal } = this.#stopping
    for (;;) {
      const next = await this.#sources.next()
      if (!next) throw this.#failure()
      const free = await this.#init.slots.take(signal)
      const before = this.#partial?.doneBytes ?? 0
      try {
        if (await this.#fetchFrom(next, signal)) break
      } catch (error) {
        if (signal.aborted || error instanceof AgentError) throw error
        if (next.giveWay?.aborted) this.#sources.keptSilent(next)
        else this.#note(next, error, (this.#partial?.doneBytes ?? 0) > before)
      } finally {
        free()
      }
    }
    for (const [key, peers] of this.#claims) {
      if (this.#partial && key === listKey(this.#partial.list)) continue
      for (const peerId of peers) this.#blame(peerId, 'it stated piece hashes that are not those of the blob')
    }
  }

  #isShunned(peerId: string): boolean {
    const reason = this.#init.shunned(peerId)
    if (reason !== undefined) this.#outcomes.set(peerId, { reason, lied: true })
    return reason !== undefined
  }

  async #fetchFrom(source: Source, signal: AbortSignal): Promise<boolean> {
    const { peerId } = source
    const session = await this.#session(peerId, signal)
    try {
      return await this.#fetchOn(session, source, signal)
    } catch (error) {
      session.frames.abort(asError(error))
      // A stream kept from an earlier blob may have been closed since, and where both sides dialled at once the connection under the
      // stream is replaced by the other one: that says nothing of the peer.
      const isCut = error instanceof WireError && error.code === 'closed' && !source.giveWay?.aborted
      if (!isCut || signal.aborted) throw error
    }
    const fresh = await this.#session(peerId, signal, { fresh: true })
    try {
      return await this.#fetchOn(fresh, source, signal)
    } catch (error) {
      fresh.frames.abort(asError(error))
      throw error
    }
  }

  /** True when the blob is whole; false when this source states another list than the one in use, and others are to be tried first. */
  async #fetchOn(session: PieceSession, source: Source, signal: AbortSignal): Promise<boolean> {
    const list = await this.#listFrom(session, source, signal)
    const isAgreed = await this.#settleOn(list, session.peerId, source.isLastResort, signal)
    if (isAgreed) await this.#fill(session, source, signal)
    this.#init.sessions.give(session)
    return isAgreed
  }

  async #session(peerId: string, signal: AbortSignal, how?: { fresh: boolean }): Promise<PieceSession> {
    using deadline = new Deadline(this.#init.limits.openMs, signal)
    try {
      return await this.#init.sessions.take({ peerId, network: this.network }, deadline.signal, how)
    } catch (error) {
      // Not silence: more patience would not help.
      if (error instanceof WireError && error.code === 'timeout') throw new WireError('closed', 'it cannot be reached')
      throw error
    }
  }

  async #listFrom({ asker, peerId }: PieceSession, source: Source, signal: AbortSignal): Promise<PieceList> {
    const { digest, sizeBytes, sizeBytesMax = BLOB_BYTES_MAX } = this
    if (sizeBytes !== undefined && this.#isOnePiece) return listOf(sizeBytes, fromHex(digest))
    const { listMsPerGib } = this.#init.limits
    const known = this.#partial?.list
    const readBytes = Math.min(sizeBytes ?? UNKNOWN_BYTES, sizeBytesMax, LISTING_BYTES_MAX)
    using deadline = new Deadline(
      source.patienceMs + (listMsPerGib * readBytes) / 2 ** 30,
      anyOf(signal, source.giveWay),
    )
    const stated = await asker.hashes(
      fromHex(digest),
      { sizeBytesMax: sizeBytes ?? sizeBytesMax, known: known?.root },
      deadline.signal,
    )
    this.#init.onAnswer(peerId)
    if (sizeBytes !== undefined && stated.sizeBytes !== sizeBytes)
      throw new WireError('refused', `it has ${stated.sizeBytes} bytes in place of ${sizeBytes}`)
    const isKnown = known && stated.sizeBytes === known.sizeBytes && Buffer.compare(known.root, stated.root) === 0
    if (isKnown) return known
    if (stated.hashes.byteLength === 0 && stated.sizeBytes > 0)
      throw new WireError('mismatch', 'it stated one root for two sizes')
    return stated
  }

  /** Takes the list into use, unless another one is and peers stand by it. */
  async #settleOn(list: PieceList, peerId: string, isLastResort: boolean, signal: AbortSignal): Promise<boolean> {
    const key = listKey(list)
    if (this.#falseLists.has(key))
      throw new WireError('mismatch', 'it stated piece hashes that are not those of the blob')
    const claimants = this.#claims.get(key) ?? new Set()
    this.#claims.set(key, claimants.add(peerId))
    if (!this.#partial) {
      this.#partial = await PartialBlob.open(this.#init.blobs, this, list, signal)
      this.#started.resolve(this.#partial)
    } else if (key !== listKey(this.#partial.list)) {
      const isVouchedFor = this.#claims.has(listKey(this.#partial.list))
      if (isVouchedFor && !isLastResort) {
        this.#sources.dissents(peerId)
        return false
      }
      this.#partial.useList(list)
    }
    return true
  }

  /**
   * Said to be so small that its digest is its list: then nobody needs to state one. Less than a piece, because a whole piece may also be
   * the first of a larger blob whose size was signed wrongly, which is not its holder's fault.
   */
  get #isOnePiece(): boolean {
    return this.sizeBytes !== undefined && this.sizeBytes > 0 && this.sizeBytes < PIECE_BYTES
  }

  async #fill({ asker, peerId }: PieceSession, source: Source, signal: AbortSignal): Promise<void> {
    const partial = this.#partial
    if (!partial) throw new TypeError('pieces before a list')
    using deadline = new Deadline(source.patienceMs, anyOf(signal, source.giveWay))
    let isAnswering = false
    const onAnswer = () => {
      if (isAnswering) return
      isAnswering = true
      this.#sources.answered()
      deadline.allow(this.#init.limits.pieceMs)
      this.#init.onAnswer(peerId)
    }
    const onPiece = (bytes: number) => {
      this.#init.onBytes(bytes)
      this.#tellProgress(partial)
      this.#tellChanged()
    }
    this.#tellProgress(partial)
    for (let filling = 0; filling < FILLINGS_MAX; filling++) {
      await download(asker, fromHex(this.digest), partial, { isStated: !this.#isOnePiece, deadline, onAnswer, onPiece })
      const verdict = await partial.finish(signal)
      if (verdict === 'whole') return
      if (verdict === 'wrong') throw this.#refute(partial.list)
    }
    throw new AgentError('corrupt', 'the disk does not keep what is written to it', {
      next: 'Check the disk of the state directory.',
    })
  }

  /** The whole hash is wrong although every piece is as listed: whoever stated the list lied. */
  #refute(list: PieceList): WireError {
    const key = listKey(list)
    this.#falseLists.add(key)
    const reason = 'its pieces do not make up the blob'
    for (const peerId of this.#claims.get(key) ?? []) this.#blame(peerId, reason)
    this.#claims.delete(key)
    return new WireError('mismatch', reason)
  }

  #note(source: Source, error: unknown, progressed: boolean): void {
    const { peerId } = source
    const reason = reasonOf(error)
    const code = error instanceof WireError ? error.code : 'closed'
    this.#init.log.debug({ digest: this.digest, peerId, code, reason, progressed }, 'blob.source.failed')
    if (code === 'mismatch' || code === 'malformed' || code === 'too-large') {
      this.#blame(peerId, reason)
      return
    }
    this.#outcomes.set(peerId, { reason, lied: false })
    if (code === 'timeout') this.#init.onSilence(peerId)
    if (progressed) this.#sources.failedOnTheWay(peerId)
    else if (code === 'timeout') this.#sources.keptSilent(source)
  }

  #blame(peerId: string, reason: string): void {
    if (this.#outcomes.get(peerId)?.lied) return
    this.#outcomes.set(peerId, { reason, lied: true })
    this.#init.onFault(peerId, reason)
  }

  /** Who failed and how, as far as it is known; liars first. */
  reasons(): string {
    const told = [...this.#outcomes].sort(([, a], [, b]) => Number(b.lied) - Number(a.lied)).slice(0, REASONS_MAX)
    return told.map(([peerId, { reason }]) => `${peerId}: ${reason}`).join('; ')
  }

  #failure(): AgentError {
    const outcomes = [...this.#outcomes.values()]
    if (outcomes.some(({ lied }) => lied))
      return new AgentError('corrupt', `no peer gave the right bytes of ${this.digest}: ${this.reasons()}`)
    if (outcomes.length > 0) return new AgentError('not-found', `no peer could give ${this.digest}: ${this.reasons()}`)
    return new AgentError('not-found', `no peer is known to have ${this.digest}`)
  }

  #tellProgress(partial: PartialBlob): void {
    for (const { onProgress } of this.#waiters) onProgress?.(partial.doneBytes, partial.list.sizeBytes)
  }

  #tellChanged(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }
}

/** What someone is told who left, or was sent away: then whoever did that said why. */
export function cancelled(signal?: AbortSignal): AgentError {
  return signal?.reason instanceof AgentError ? signal.reason : new AgentError('cancelled', 'the fetch was cancelled')
}

function listKey({ sizeBytes, root }: PieceList): string {
  return `${sizeBytes} ${Buffer.from(root).toString('hex')}`
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(reasonOf(error))
}

function anyOf(signal: AbortSignal, other: AbortSignal | undefined): AbortSignal {
  return other ? AbortSignal.any([signal, other]) : signal
}

/** The promise's outcome, or an AgentError `cancelled` as soon as the signal fires. */
function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) return Promise.reject(cancelled(signal))
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(cancelled(signal))
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
