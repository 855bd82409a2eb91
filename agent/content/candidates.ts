/**
 * Whom to ask for one blob next. Those not asked yet come first, as they are found; then those that gave some of it and failed, and those
 * that had nothing yet, again and again with growing pauses while others give; and when nobody gives any more: those that state another
 * piece list than the one in use, and last those that keep silent.
 */
import type { FetchOptions } from './content.ts'
import { SourceQueue } from './sources.ts'

/** For a search for more sources while known ones could be asked again: in a small network the DHT answers within this. */
const SEARCH_MS_MAX = 50
/** Until a peer that had nothing, or could not be reached, is asked again; twice as long each time. */
const PAUSE_MS_MIN = 250
const PAUSE_MS_MAX = 8_000
/** Who still has nothing after so many pauses, about two seconds, is not waited for. */
const COMING_PAUSES_MAX = 3
/** A peer that gave something and then failed, while others give. */
const AGAIN_MS = 5_000
/** Peers that had nothing yet and are asked again: each costs a question now and then. */
const RESTING_MAX = 32
/** Peers that others named. */
const NAMED_MAX = 64

/** Whom to ask now, and how. */
export type Source = {
  peerId: string
  /** Its piece list is to be taken, whatever others stated. */
  isLastResort: boolean
  /** How long it may say nothing. */
  patienceMs: number
  /** It kept silent before: it is waited for only as long as nobody else comes up. */
  isPatient: boolean
  /** It was only named to us. */
  isHeard: boolean
}

export type CandidatesInit = {
  /** Patience with a source that others could stand in for, and with one that is the last hope. */
  hasteMs: number
  patienceMs: number
  /** Whether a source must not be asked at all; whoever says so remembers why. */
  isShunned: (peerId: string) => boolean
  /** Whether it kept somebody waiting a short while ago. */
  isSilent: (peerId: string) => boolean
  /** There may be somebody to ask now. */
  onChange: () => void
  signal: AbortSignal
}

type Resting = { dueMs: number; pauses: number }

export class Candidates implements Disposable {
  readonly #init: CandidatesInit
  readonly #queue = new SourceQueue()
  readonly #found: string[] = []
  /** Said to want the blob, too: by themselves, or by some source, which may name whom it likes. They come after those that were found. */
  readonly #heard: string[] = []
  /** Every peer that was ever found, so that each is asked anew only for a reason. */
  readonly #known = new Set<string>()
  #named = 0
  readonly #again = new Map<string, number>()
  readonly #resting = new Map<string, Resting>()
  readonly #dissenters: string[] = []
  readonly #silent: string[] = []
  /** Since when a search for more is under way. */
  #searchingMs: number | undefined
  #isExhausted = false
  #timer: NodeJS.Timeout | undefined

  constructor(init: CandidatesInit) {
    this.#init = init
  }

  /** `owner` is to be given again to `leave`. */
  join(owner: object, sources: FetchOptions['sources']): void {
    this.#queue.add(owner, sources)
    this.#isExhausted = false
    this.#init.onChange()
  }

  leave(owner: object): void {
    this.#queue.remove(owner)
  }

  /** A peer that is said to want the blob, too: it may have some of it, now or soon. @returns whether it will be asked for that. */
  heard(peerId: string): boolean {
    const resting = this.#resting.get(peerId)
    if (resting) resting.dueMs = 0
    else if (this.#named >= NAMED_MAX || !this.#isNew(peerId)) return false
    else {
      this.#named++
      this.#heard.push(peerId)
    }
    this.#init.onChange()
    return true
  }

  /** It gave something before it failed, and is worth another try. */
  failedOnTheWay(peerId: string): void {
    this.#again.set(peerId, performance.now() + AGAIN_MS)
  }

  /** It states another piece list than the one in use. */
  dissents(peerId: string): void {
    this.#dissenters.push(peerId)
  }

  /** The list in use was false: those who stated another are first in line. */
  hearDissenters(): void {
    this.#found.unshift(...this.#dissenters.splice(0))
  }

  /** It had nothing yet, or cannot be reached just now. */
  rests(peerId: string, pauses: number): void {
    if (this.#resting.size >= RESTING_MAX) return
    const pauseMs = Math.min(PAUSE_MS_MAX, PAUSE_MS_MIN * 2 ** pauses)
    this.#resting.set(peerId, { dueMs: performance.now() + pauseMs, pauses })
  }

  /** It had nothing, and is asked again within moments. */
  isComing(peerId: string): boolean {
    const resting = this.#resting.get(peerId)
    return resting !== undefined && resting.pauses < COMING_PAUSES_MAX
  }

  /** It said nothing in the time that it had: once it has had all the time that there is, it is not asked again. */
  keptSilent({ peerId, patienceMs }: Source): void {
    if (patienceMs < this.#init.patienceMs) this.#silent.push(peerId)
  }

  /**
   * Whom to ask now; `onChange` tells when there may be somebody later. `isAlone`: nobody gives or is about to. `isHeardWanted`: also one
   * that was only named to us.
   *
   * @returns undefined when there is nobody now; 'none' when there never will be, as far as can be known.
   */
  next(isAlone: boolean, isHeardWanted: boolean): (Source & { pauses: number }) | 'none' | undefined {
    const { hasteMs, patienceMs, isShunned } = this.#init
    const patient = { isLastResort: false, isPatient: false, isHeard: false, patienceMs, pauses: 0 }
    const haste = { ...patient, patienceMs: Math.min(hasteMs, patienceMs) }
    const found = this.#shift(this.#found)
    if (found !== undefined) return { ...haste, peerId: found }
    this.#search()
    const heard = isHeardWanted ? this.#shift(this.#heard) : undefined
    if (heard !== undefined) return { ...haste, peerId: heard, isHeard: true }
    if (isAlone && this.#isStillSearching()) return undefined
    const again = this.#due(isAlone)
    if (again !== undefined && !isShunned(again.peerId)) return { ...haste, ...again }
    if (!isAlone) return undefined
    const searchedMs = this.#searchingMs === undefined ? undefined : performance.now() - this.#searchingMs
    const dissenter = searchedMs === undefined || searchedMs > hasteMs ? this.#dissenters.shift() : undefined
    if (dissenter !== undefined) return { ...patient, peerId: dissenter, isLastResort: true }
    const silent = this.#silent.shift()
    if (silent !== undefined) return { ...patient, peerId: silent, isPatient: true }
    if (this.#dissenters.length > 0 && searchedMs !== undefined) this.#wake(hasteMs - searchedMs)
    return this.#isExhausted && this.#found.length + this.#heard.length === 0 ? 'none' : undefined
  }

  /** Somebody who was not asked yet. */
  get hasFound(): boolean {
    this.#search()
    return this.#found.length + this.#heard.length > 0
  }

  /** Peers that may have something later. */
  get hasResting(): boolean {
    return this.#resting.size > 0
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
  }

  /** The next of the queue that is to be asked; those that keep silent are put off. */
  #shift(queue: string[]): string | undefined {
    for (let peerId = queue.shift(); peerId !== undefined; peerId = queue.shift()) {
      if (this.#init.isShunned(peerId)) continue
      if (!this.#init.isSilent(peerId)) return peerId
      this.#silent.push(peerId)
    }
    return undefined
  }

  /** Looks for one more, unless that is under way. */
  #search(): void {
    if (this.#searchingMs !== undefined || this.#isExhausted) return
    this.#searchingMs = performance.now()
    this.#queue.next(this.#init.signal).then(
      (peerId) => {
        this.#searchingMs = undefined
        // That there is none is true of this moment only: a waiter who comes may know of one.
        if (peerId === undefined) this.#isExhausted = true
        else if (this.#isNew(peerId)) this.#found.push(peerId)
        this.#init.onChange()
      },
      () => undefined,
    )
  }

  /** A search that has just begun is worth a moment: the alternatives were tried before. */
  #isStillSearching(): boolean {
    if (this.#searchingMs === undefined) return false
    const leftMs = this.#searchingMs + SEARCH_MS_MAX - performance.now()
    if (leftMs <= 0) return false
    this.#wake(leftMs)
    return true
  }

  /** Somebody to ask again whose time has come. */
  #due(isAlone: boolean): { peerId: string; pauses: number } | undefined {
    const now = performance.now()
    for (const [peerId, dueMs] of this.#again) {
      if (!isAlone && dueMs > now) continue
      this.#again.delete(peerId)
      return { peerId, pauses: 0 }
    }
    for (const [peerId, { dueMs, pauses }] of this.#resting) {
      if (dueMs > now) continue
      this.#resting.delete(peerId)
      return { peerId, pauses: pauses + 1 }
    }
    const next = Math.min(...this.#again.values(), ...[...this.#resting.values()].map(({ dueMs }) => dueMs))
    if (Number.isFinite(next)) this.#wake(next - now)
    return undefined
  }

  #isNew(peerId: string): boolean {
    if (this.#known.has(peerId)) return false
    this.#known.add(peerId)
    return true
  }

  #wake(ms: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#init.onChange, Math.max(1, ms))
  }
}
