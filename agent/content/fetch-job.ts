/**
 * The fetching of one blob for one network, for everybody who waits for it: whom to ask, how many at once, when to give up. See fetcher.ts
 * for the rules. A large blob comes from several sources at once, a small one from one at a time.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { BLOB_BYTES_MAX } from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Blobs } from './blobs.ts'
import { Candidates, type Source } from './candidates.ts'
import type { FetchOptions } from './content.ts'
import { Deadline } from './deadline.ts'
import { Feed } from './feed.ts'
import { Filling } from './filling.ts'
import type { JobLimits } from './job-limits.ts'
import { LANE_BYTES_MIN } from './lane-runs.ts'
import { cancelled, Outcomes, untilAborted } from './outcomes.ts'
import type { PartialBlob } from './partial-blob.ts'
import { fromHex } from './piece-lists.ts'
import type { Done, PieceSession, PieceSessions } from './piece-sessions.ts'
import type { SlotsByPeer } from './slots.ts'
import { type SignedList, type Stated, stateList } from './statements.ts'
import type { Supply } from './supply.ts'
import { WholeBlobs } from './whole-blobs.ts'

/** Below this another source would take longer to say what it has than the first one to give it. */
const SHARED_BYTES_MIN = 4 * 1024 * 1024
/** At once, of one blob. */
const SOURCES_MAX = 8
/** Of those, that were only named by others and are not reached yet: they may not exist. */
const HEARD_MAX = 4
/** A source is given so long to show what it can, where others wait for its place. */
const EXCHANGE_MS = 5_000
/** A source that gave some of the blob and cannot be reached is waited for so long: it restarts, or its link comes back. One that is busy, too. */
const COMEBACK_MS_MAX = 20_000

export type FetchJobInit = {
  digest: Digest
  terms: Pick<FetchOptions, 'network' | 'sizeBytes' | 'sizeBytesMax' | 'moreBytes' | 'hasteMs'>
  /** This node's peer id, by which its fellows know it. */
  self: string
  /** Somebody gave some of it before this agent was started again just now: its peers may be reached in a moment. */
  isResumed: boolean
  blobs: Blobs
  sessions: PieceSessions
  whole: WholeBlobs
  slots: SlotsByPeer
  limits: JobLimits
  /** Why this peer is not to be asked for this blob. */
  shunned: (peerId: string) => string | undefined
  /** Whether a peer that somebody named may be asked in this network. */
  mayAsk: (peerId: string) => boolean
  /** Whether this peer let somebody wait in vain a short while ago: it is asked when nobody else is left. */
  isSilent: (peerId: string) => boolean
  onSilence: (peerId: string) => void
  onAnswer: (peerId: string) => void
  onFault: (peerId: string, reason: string) => void
  /** A false list, as somebody signed it. */
  onLie: (proof: SignedList) => void
  onBytes: (bytes: number, isLane: boolean) => void
  log: Log
}

type Waiter = Pick<FetchOptions, 'onProgress' | 'pin'>
/** A source that is being asked. */
type Run = {
  source: Source
  /** It is waited for only as long as nobody else comes up. */
  isPatient: boolean
  isUnreachable: boolean
  gaveBytes: number
  /** Ends it, for a better one. */
  stop: AbortController
  ended: Promise<void>
}

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
  readonly #candidates: Candidates
  readonly #outcomes: Outcomes
  readonly #filling: Filling
  readonly #runs = new Map<string, Run>()
  readonly #result = Promise.withResolvers<void>()
  readonly #started = Promise.withResolvers<PartialBlob | undefined>()
  /** What went wrong here. */
  #fault: unknown
  #isWhole = false
  #isDone = false
  #gaveMs = Number.NEGATIVE_INFINITY
  /** When a source first said that it was busy. */
  #busyMs = Number.NEGATIVE_INFINITY
  #exchangedMs = Number.NEGATIVE_INFINITY
  #changed = Promise.withResolvers<void>()

  constructor(init: FetchJobInit) {
    this.#init = init
    this.digest = init.digest
    this.network = init.terms.network
    this.sizeBytes = init.terms.sizeBytes
    this.sizeBytesMax = init.terms.sizeBytesMax
    if (init.isResumed) this.#gaveMs = performance.now()
    this.#outcomes = new Outcomes(init.digest, init.onFault)
    this.#filling = new Filling({
      fetching: { digest: this.digest, network: this.network },
      self: init.self,
      blobs: init.blobs,
      onSupply: (supply) => this.#begin(supply),
      onFault: (peerId, reason) => this.#outcomes.blame(peerId, reason),
      onLie: init.onLie,
      signal: this.#stopping.signal,
    })
    this.#candidates = new Candidates({
      hasteMs: init.terms.hasteMs ?? init.limits.hasteMs,
      patienceMs: init.limits.pieceMs,
      isShunned: (peerId) => peerId === init.self || this.#isShunned(peerId),
      isSilent: init.isSilent,
      onChange: () => this.#tellChanged(),
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
    this.#candidates.join(waiter, options.sources)
    return () => {
      if (!this.#waiters.delete(waiter)) return
      this.#candidates.leave(waiter)
      if (this.#waiters.size === 0) this.cancel(cancelled())
    }
  }

  /** A peer of the network wants the blob, too. */
  heard(peerId: string): void {
    if (!this.#isLarge || peerId === this.#init.self || this.#runs.has(peerId)) return
    if (this.#candidates.heard(peerId)) this.#filling.supply?.expect(peerId)
  }

  cancel(reason: AgentError): void {
    this.#stopping.abort(reason)
    this.#tellChanged()
  }

  get isStopping(): boolean {
    return this.#stopping.signal.aborted
  }

  /** What is here of the blob, to be given on in its network. */
  get arriving(): PartialBlob | undefined {
    return this.#isDone ? undefined : this.#filling.partial
  }

  /** Resolves when the blob is whole. */
  wait(signal: AbortSignal): Promise<void> {
    return untilAborted(this.#result.promise, signal)
  }

  /** Resolves when the size is known and pieces are about to arrive; with nothing when it came as a whole. */
  started(signal: AbortSignal): Promise<PartialBlob | undefined> {
    return untilAborted(this.#started.promise, signal)
  }

  /** Resolves when the piece is there; for the last piece, when the blob is whole. */
  async piece(index: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      if (this.#isDone) return await this.wait(signal)
      const changed = this.#changed.promise
      const { partial } = this.#filling
      const isLast = partial && index === partial.pieceCount - 1
      if (!isLast && (await partial?.check(index))) return
      await untilAborted(changed, signal)
    }
  }

  /** Who failed and how, as far as it is known; liars first. */
  reasons(): string {
    return this.#outcomes.reasons()
  }

  async #run(): Promise<void> {
    // join() comes right after the constructor.
    await Promise.resolve()
    let failure: { error: unknown } | undefined
    try {
      await this.#fetch()
    } catch (error) {
      failure = { error: this.#stopping.signal.aborted ? this.#stopping.signal.reason : error }
    }
    this.#filling.supply?.end()
    this.#stopping.abort(new AgentError('cancelled', 'the fetch is over'))
    this.#candidates[Symbol.dispose]()
    await Promise.all([...this.#runs.values()].map(({ ended }) => ended))
    for (const promise of [this.#result, this.#started])
      if (failure) promise.reject(failure.error)
      else promise.resolve(undefined)
    this.#isDone = true
    this.#tellChanged()
    try {
      await this.#filling.partial?.leave()
    } catch (error) {
      this.#init.log.warn({ digest: this.digest, reason: reasonOf(error) }, 'blob.partial.unsaved')
    }
  }

  async #fetch(): Promise<void> {
    const { signal } = this.#stopping
    while (!this.#isWhole) {
      const changed = this.#changed.promise
      signal.throwIfAborted()
      if (this.#fault !== undefined) throw this.#fault
      const { supply } = this.#filling
      if (supply?.partial.isFull) {
        const verdict = await this.#filling.conclude(supply)
        this.#isWhole = verdict === 'whole'
        if (verdict === 'wrong') this.#candidates.hearDissenters()
        continue
      }
      if (!this.#startSources()) throw this.#outcomes.failure()
      await changed
    }
  }

  #begin({ partial, list }: Supply): void {
    this.#started.resolve(partial)
    this.#tellProgress(partial.doneBytes, list.sizeBytes)
    this.#tellChanged()
  }

  /** Asks as many sources as are of use. @returns false when there is nobody left to ask, and nobody being asked. */
  #startSources(): boolean {
    for (;;) {
      const runs = [...this.#runs.values()]
      const busy = runs.filter(({ isPatient }) => !isPatient).length
      const heard = runs.filter(({ source, isUnreachable }) => source.isHeard && isUnreachable).length
      const isWanted =
        busy < (this.#filling.supply && this.#isLarge ? SOURCES_MAX : 1) && this.#runs.size < 2 * SOURCES_MAX
      const next = isWanted ? this.#candidates.next(busy === 0, heard < HEARD_MAX) : undefined
      if (next === 'none') return this.#runs.size > 0 || this.#mayComeBack
      if (next === undefined) return true
      if (this.#runs.has(next.peerId)) continue
      const { pauses, ...source } = next
      const run: Run = {
        source,
        isPatient: source.isPatient,
        isUnreachable: true,
        gaveBytes: 0,
        stop: new AbortController(),
        ended: Promise.resolve(),
      }
      this.#runs.set(source.peerId, run)
      run.ended = this.#try(run, pauses).finally(() => {
        this.#runs.delete(source.peerId)
        // Who begins when we do has nothing at first: to take his share, too, would make the source send it twice.
        if (!this.#candidates.isComing(source.peerId)) this.#filling.supply?.giveUp(source.peerId)
        this.#tellChanged()
      })
    }
  }

  /** Better sources may be waiting for their turn: the slowest makes room for one now and then. */
  #exchange(): void {
    const now = performance.now()
    if (this.#runs.size < SOURCES_MAX || now - this.#exchangedMs < EXCHANGE_MS || !this.#candidates.hasFound) return
    this.#exchangedMs = now
    const slowest = this.#filling.supply?.slowest(EXCHANGE_MS)
    const run = slowest === undefined ? undefined : this.#runs.get(slowest)
    run?.stop.abort(new WireError('refused', 'others are quicker'))
  }

  /** Whether somebody who gave some of it and cannot be reached may still come back, or somebody be less busy. */
  get #mayComeBack(): boolean {
    const { comebackMs = COMEBACK_MS_MAX } = this.#init.limits
    return this.#candidates.hasResting && performance.now() - Math.max(this.#gaveMs, this.#busyMs) < comebackMs
  }

  get #isLarge(): boolean {
    return (this.#filling.supply?.list.sizeBytes ?? this.sizeBytes ?? 0) >= SHARED_BYTES_MIN
  }

  #isShunned(peerId: string): boolean {
    const reason = this.#init.shunned(peerId)
    if (reason !== undefined) this.#outcomes.note(peerId, { reason, lied: true })
    return reason !== undefined
  }

  async #try(run: Run, pauses: number): Promise<void> {
    const { signal } = this.#stopping
    let free: (() => void) | undefined
    try {
      if (WholeBlobs.isSmall(this.sizeBytes)) return await this.#fetchSmall(run.source)
      free = await this.#init.slots.take(run.source.peerId, signal)
      if (!(await this.#fetchOverLane(run.source))) await this.#fetchFrom(run)
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof WireError) this.#note(run, error, pauses)
      else this.#fault ??= error
    } finally {
      free?.()
    }
  }

  async #fetchSmall({ peerId, patienceMs }: Source): Promise<void> {
    const { digest, network, sizeBytes = 0 } = this
    await this.#init.whole.fetchSmall({ peerId, network, digest, sizeBytes, patienceMs }, this.#stopping.signal)
    this.#cameWhole(peerId, sizeBytes, false)
  }

  /** @returns false when it has to come by pieces. */
  async #fetchOverLane({ peerId }: Source): Promise<boolean> {
    const { digest, network, sizeBytes = 0 } = this
    const { whole, terms } = this.#init
    const { moreBytes = 0 } = terms
    if (!(await whole.fetchOverLane({ peerId, network, digest, sizeBytes, moreBytes }, this.#stopping.signal)))
      return false
    this.#cameWhole(peerId, sizeBytes, true)
    return true
  }

  #cameWhole(peerId: string, sizeBytes: number, isLane: boolean): void {
    this.#init.onAnswer(peerId)
    this.#init.onBytes(sizeBytes, isLane)
    this.#tellProgress(sizeBytes, sizeBytes)
    this.#isWhole = true
  }

  async #fetchFrom(run: Run): Promise<void> {
    const asked = { peerId: run.source.peerId, network: this.network }
    const terms = {
      openMs: this.#init.limits.openMs,
      signal: AbortSignal.any([this.#stopping.signal, run.stop.signal]),
    }
    await this.#init.sessions.use(asked, terms, (session) => this.#fetchOn(session, run))
  }

  async #fetchOn(session: PieceSession, run: Run): Promise<Done> {
    run.isUnreachable = false
    let stated: Stated
    try {
      stated = await this.#state(session, run)
    } catch (error) {
      if (error instanceof WireError && error.code === 'absent') return { isOrderly: true, failure: error }
      throw error
    }
    const supply = await this.#filling.settle(stated, run.source)
    if (supply) return { isOrderly: await this.#feed(session, run, supply, stated) }
    this.#candidates.dissents(run.source.peerId)
    return { isOrderly: true }
  }

  async #state({ asker, peerId, lanes }: PieceSession, { source }: Run): Promise<Stated> {
    const { limits, onAnswer } = this.#init
    const sizes = { sizeBytes: this.sizeBytes, sizeBytesMax: this.sizeBytesMax ?? BLOB_BYTES_MAX }
    const patience = { patienceMs: source.patienceMs, listMsPerGib: limits.listMsPerGib }
    const known = this.#filling.supply?.list
    const isListOnly = (this.sizeBytes ?? 0) >= LANE_BYTES_MIN && lanes?.hasOpen(peerId) === true
    const terms = { ...sizes, ...patience, known, isListOnly, peerId, network: this.network }
    const stated = await stateList(asker, fromHex(this.digest), terms, this.#stopping.signal)
    onAnswer(peerId)
    return stated
  }

  /** @returns whether the stream can be used again. */
  async #feed({ asker, peerId, lanes }: PieceSession, run: Run, supply: Supply, stated: Stated): Promise<boolean> {
    const { limits, onAnswer, onBytes } = this.#init
    using deadline = new Deadline(
      run.source.patienceMs,
      AbortSignal.any([this.#stopping.signal, run.stop.signal, supply.over]),
    )
    let isAnswering = false
    this.#hearAskers(stated.askers)
    return await Feed.run({
      peerId,
      asker,
      digest: fromHex(this.digest),
      supply,
      offer: stated.pieces ?? 'all',
      first: stated.first,
      deadline,
      lanes,
      onAnswer: () => {
        if (isAnswering) return
        isAnswering = true
        run.isPatient = false
        deadline.allow(limits.pieceMs)
        onAnswer(peerId)
      },
      onPiece: (bytes, isLane) => {
        run.gaveBytes += bytes
        this.#gaveMs = performance.now()
        onBytes(bytes, isLane)
        this.#exchange()
        this.#tellProgress(supply.partial.doneBytes, supply.list.sizeBytes)
        this.#tellChanged()
      },
      onStated: (now) => {
        this.#filling.restated(now, peerId)
        this.#hearAskers(now.askers)
      },
    })
  }

  #hearAskers(askers: readonly string[] = []): void {
    for (const peerId of askers) if (this.#init.mayAsk(peerId)) this.heard(peerId)
  }

  #note({ source, isUnreachable, gaveBytes }: Run, error: WireError, pauses: number): void {
    const { peerId } = source
    const { code, message: reason } = error
    this.#init.log.debug({ digest: this.digest, peerId, code, reason, gaveBytes }, 'blob.source.failed')
    if (code === 'mismatch' || code === 'malformed' || code === 'too-large') {
      this.#outcomes.blame(peerId, reason)
      return
    }
    const hasGiven = this.#init.isResumed || this.#outcomes.hasGiven(peerId) || gaveBytes > 0
    this.#outcomes.note(peerId, { reason, lied: false, hasGiven })
    // It may have some of it later, or be less busy.
    const isNo = (code === 'absent' || code === 'refused') && this.#isLarge
    if (code === 'busy' && !Number.isFinite(this.#busyMs)) this.#busyMs = performance.now()
    if (code === 'timeout') this.#init.onSilence(peerId)
    if (gaveBytes > 0) this.#candidates.failedOnTheWay(peerId)
    else if (code === 'timeout') this.#candidates.keptSilent(source)
    else if ((isUnreachable && hasGiven) || isNo || code === 'busy') this.#candidates.rests(peerId, pauses)
  }

  #tellProgress(doneBytes: number, sizeBytes: number): void {
    for (const { onProgress } of this.#waiters) onProgress?.(doneBytes, sizeBytes)
  }

  #tellChanged(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }
}
