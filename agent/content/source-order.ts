/**
 * In which order the sources of one blob are asked: those not asked yet, as they are found; those that gave some of it; those that state
 * another piece list than the one in use; and last those that keep silent, who are waited for only as long as no other comes up.
 */
import { WireError } from '../../protocols/error.ts'
import type { FetchOptions } from './content.ts'
import { SourceQueue } from './sources.ts'

/** For a search for more sources while known ones could be asked again: in a small network the DHT answers within this. */
const SEARCH_MS_MAX = 50

/** Whom to ask now, and how. */
export type Source = {
  peerId: string
  /** Its piece list is to be taken, whatever others stated. */
  isLastResort: boolean
  /** How long it may say nothing. */
  patienceMs: number
  /** Fires when another source came up, of one that has kept silent. */
  giveWay?: AbortSignal
}

export type SourceOrderInit = {
  /** Patience with a source that others could stand in for, and with one that is the last hope. */
  hasteMs: number
  patienceMs: number
  /** Whether a source must not be asked at all; whoever says so remembers why. */
  isShunned: (peerId: string) => boolean
  /** Whether it kept somebody waiting a short while ago. */
  isSilent: (peerId: string) => boolean
  signal: AbortSignal
}

export class SourceOrder {
  readonly #init: SourceOrderInit
  readonly #queue = new SourceQueue()
  readonly #again: string[] = []
  readonly #dissenters: string[] = []
  readonly #silent: string[] = []
  /** Set while a source that keeps silent is waited for. */
  #waiting: AbortController | undefined
  /** What the queue will say next. */
  #upcoming: Promise<string | undefined> | undefined

  constructor(init: SourceOrderInit) {
    this.#init = init
  }

  /** `owner` is to be given again to `leave`. */
  join(owner: object, sources: FetchOptions['sources']): void {
    this.#queue.add(owner, sources)
    if (this.#waiting) this.#lookForOthers(this.#waiting)
  }

  leave(owner: object): void {
    this.#queue.remove(owner)
  }

  /** Undefined when all were asked. */
  async next(): Promise<Source | undefined> {
    this.#waiting = undefined
    const { hasteMs, patienceMs, isShunned, isSilent } = this.#init
    let isSearching = false
    for (;;) {
      isSearching = await this.#isSearching()
      const found = isSearching ? undefined : await this.#found()
      if (!isSearching) this.#upcoming = undefined
      const peerId = found ?? this.#again.shift()
      if (peerId === undefined) break
      if (isShunned(peerId)) continue
      if (!isSilent(peerId)) return { peerId, isLastResort: false, patienceMs: Math.min(hasteMs, patienceMs) }
      this.#silent.push(peerId)
    }
    const dissenter = this.#dissenters.shift()
    if (dissenter !== undefined) return { peerId: dissenter, isLastResort: true, patienceMs }
    const silent = this.#silent.shift()
    if (silent === undefined) return undefined
    this.#waiting = new AbortController()
    if (isSearching) this.#lookForOthers(this.#waiting)
    return { peerId: silent, isLastResort: false, patienceMs, giveWay: this.#waiting.signal }
  }

  /** The source asked last has begun to answer: it is not made to give way any more. */
  answered(): void {
    this.#waiting = undefined
  }

  /** It gave something before it failed, and is worth another try. */
  failedOnTheWay(peerId: string): void {
    this.#again.push(peerId)
  }

  /** It states another piece list than the one in use. */
  dissents(peerId: string): void {
    this.#dissenters.push(peerId)
  }

  /** It said nothing in the time that it had: once it has had all the time that there is, it is not asked again. */
  keptSilent({ peerId, patienceMs, giveWay }: Source): void {
    if (giveWay?.aborted || patienceMs < this.#init.patienceMs) this.#silent.push(peerId)
  }

  #found(): Promise<string | undefined> {
    this.#upcoming ??= this.#queue.next(this.#init.signal).then((peerId) => {
      // That there is none is true of this moment only: a waiter who comes may know of one.
      if (peerId === undefined) this.#upcoming = undefined
      return peerId
    })
    return this.#upcoming
  }

  /** Whether a search for more goes on that is not worth waiting for, since there are known ones to be asked again. */
  async #isSearching(): Promise<boolean> {
    if (this.#silent.length + this.#again.length === 0) return false
    const late = Promise.withResolvers<true>()
    const timer = setTimeout(() => late.resolve(true), SEARCH_MS_MAX)
    try {
      return await Promise.race([this.#found().then(() => false), late.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  /** More may be found, by a search or by a waiter who came: nobody is kept by a source that says nothing, once there is one that might. */
  #lookForOthers(waiting: AbortController): void {
    this.#found().then(
      (peerId) => peerId !== undefined && waiting.abort(new WireError('closed', 'another source came up')),
      () => undefined,
    )
  }
}
