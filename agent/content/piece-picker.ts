/**
 * Which pieces of a blob to ask of which source. Pure: no clock but the one passed in, no randomness.
 *
 * - A piece is asked of one source at a time. Only at the end, when every missing piece is under way, or when one is long overdue, is it
 *   asked of a second one, too.
 * - Of fellows, who are fetching themselves, the rarest pieces are asked first.
 * - Sources that have it all are asked for what no fellow has. So that several who fetch at once get different pieces from them, each
 *   stretch of the blob belongs to one of the fellows, as protocols/pieces/share.ts says. What belongs to others is asked of whole sources only when the caller says that fellows are too slow.
 * - Apart from that, from the beginning to the end: whoever reads while the blob arrives needs its beginning first.
 */

import { GET_PIECES_MAX } from '../../protocols/pieces/exchange.ts'
import { nameHash, SHARE_PIECES, shareWeight } from '../../protocols/pieces/share.ts'

/** The rarest are sought among so many missing pieces, 2 GiB: a bound on the work for one request. */
const LOOK_PIECES_MAX = 8_192
/** At the end a piece is asked of a second source when the first had it for so long. */
const LATE_AT_END_MS = 300
/** Before the end, only when it is so late that it may never come. */
const LATE_MS = 3_000
/** Sources of one piece at a time. */
const ASKED_OF_MAX = 2

export type Run = { from: number; count: number }
/** All, or a bitmap: bit 0x80 of byte 0 is piece 0. */
export type Offer = 'all' | Uint8Array

export type PiecePickerInit = {
  pieceCount: number
  /** Whether a piece is here, or on its way to the disk. */
  has: (index: number) => boolean
  /** This node's name among the fellows; every fellow must know it by the same. */
  self: string
  now?: () => number
}

type Asked = { of: string[]; sinceMs: number }

export class PiecePicker {
  readonly #init: PiecePickerInit
  readonly #now: () => number
  readonly #offers = new Map<string, Offer>()
  readonly #asked = new Map<number, Asked>()
  /** How many fellows have each piece. */
  readonly #spread: Uint16Array
  /** By stretch: 1 if it belongs to this node, 2 if to a fellow, 0 if that is to be found out. */
  readonly #owner: Uint8Array
  #fellows: number[] = []
  readonly #self: number
  /** All before it are here. */
  #first = 0

  constructor(init: PiecePickerInit) {
    this.#init = init
    this.#now = init.now ?? (() => performance.now())
    this.#spread = new Uint16Array(init.pieceCount)
    this.#owner = new Uint8Array(Math.ceil(init.pieceCount / SHARE_PIECES))
    this.#self = nameHash(init.self)
  }

  /** Whether others fetch the blob, too. */
  get hasFellows(): boolean {
    return this.#fellows.length > 0
  }

  /** What a source has now, in place of what it had. @returns whether it has more than before. */
  offer(source: string, offer: Offer): boolean {
    const before = this.#offers.get(source)
    this.#offers.set(source, offer)
    const hasMore = this.#count(before, offer)
    if ((before ?? 'all') === 'all' ? offer !== 'all' : offer === 'all') this.#meet()
    return hasMore
  }

  /** The source is gone: what it was asked for is asked of others. */
  leave(source: string): void {
    const before = this.#offers.get(source)
    this.#offers.delete(source)
    if (before !== undefined && before !== 'all') {
      this.#count(before, new Uint8Array(before.byteLength))
      this.#meet()
    }
    for (const index of this.#asked.keys()) this.#settle(source, index)
  }

  /** These pieces came from the source, or it will not give them. */
  settle(source: string, { from, count }: Run): void {
    for (let index = from; index < from + count; index++) this.#settle(source, index)
  }

  /** The file lost pieces: they are looked for again. */
  rewind(): void {
    this.#first = 0
  }

  /**
   * What to ask of the source now: at most `countMax` pieces, which count as asked from now on. `alsoOthers`: of a whole source, also what
   * fellows have or will have.
   */
  pick(source: string, countMax: number, { alsoOthers = false } = {}): Run | undefined {
    const offer = this.#offers.get(source)
    if (offer === undefined || countMax < 1) return undefined
    const { has, pieceCount } = this.#init
    while (this.#first < pieceCount && has(this.#first)) this.#first++
    let best: number | undefined
    let bestRank = Number.POSITIVE_INFINITY
    let looked = 0
    let isEnd = true
    for (let index = this.#first; index < pieceCount && looked < LOOK_PIECES_MAX; index++) {
      if (has(index)) continue
      looked++
      if (this.#asked.has(index)) continue
      isEnd = false
      const rank = this.#rank(offer, index, alsoOthers)
      // Of what belongs to others, from the end: they begin at the beginning.
      if (rank > bestRank || (rank === bestRank && !isTheirs(rank))) continue
      best = index
      bestRank = rank
      if (rank === 0) break
    }
    if (best !== undefined && Number.isFinite(bestRank)) {
      const isAsGood = (index: number) =>
        !has(index) && !this.#asked.has(index) && this.#rank(offer, index, alsoOthers) === bestRank
      return this.#take(source, best, countMax, isAsGood)
    }
    return this.#again(source, offer, isEnd ? LATE_AT_END_MS : LATE_MS)
  }

  #rank(offer: Offer, index: number, alsoOthers: boolean): number {
    if (!offers(offer, index)) return Number.POSITIVE_INFINITY
    if (this.#fellows.length === 0) return 0
    const spread = this.#spread[index] ?? 0
    const isOwn = this.#isOwn(index)
    if (offer !== 'all') return spread * 2 + (isOwn ? 0 : 1)
    if (spread === 0 && isOwn) return 0
    if (!alsoOthers) return Number.POSITIVE_INFINITY
    return spread === 0 ? THEIRS : HELD
  }

  /** The pieces around `index` that are as good, within its stretch. */
  #take(source: string, index: number, countMax: number, isAsGood: (index: number) => boolean): Run {
    const stretch = this.#fellows.length === 0 ? GET_PIECES_MAX : SHARE_PIECES
    const start = Math.floor(index / stretch) * stretch
    const end = Math.min(this.#init.pieceCount, start + stretch)
    let from = index
    while (from > start && index - from + 1 < countMax && isAsGood(from - 1)) from--
    let count = index - from + 1
    while (count < countMax && from + count < end && isAsGood(from + count)) count++
    const sinceMs = this.#now()
    for (let at = from; at < from + count; at++) this.#asked.set(at, { of: [source], sinceMs })
    return { from, count }
  }

  /** One piece that another source was asked for so long ago that this one may be quicker; the one that waits longest. */
  #again(source: string, offer: Offer, lateMs: number): Run | undefined {
    const before = this.#now() - lateMs
    let late: { index: number; asked: Asked } | undefined
    for (const [index, asked] of this.#asked) {
      if (asked.sinceMs > before || asked.of.length >= ASKED_OF_MAX || asked.of.includes(source)) continue
      if (this.#init.has(index) || !offers(offer, index)) continue
      if (late === undefined || asked.sinceMs < late.asked.sinceMs) late = { index, asked }
    }
    if (late === undefined) return undefined
    late.asked.of.push(source)
    return { from: late.index, count: 1 }
  }

  #settle(source: string, index: number): void {
    const asked = this.#asked.get(index)
    if (!asked) return
    asked.of = asked.of.filter((one) => one !== source)
    if (asked.of.length === 0 || this.#init.has(index)) this.#asked.delete(index)
  }

  /** Takes an offer into the spread in place of an earlier one. */
  #count(before: Offer | undefined, after: Offer): boolean {
    const [was, is] = [before === 'all' ? undefined : before, after === 'all' ? undefined : after]
    let hasMore = before === undefined || (after === 'all' && before !== 'all')
    const bytes = Math.max(was?.byteLength ?? 0, is?.byteLength ?? 0)
    for (let byte = 0; byte < bytes; byte++) {
      const [old, now] = [was?.[byte] ?? 0, is?.[byte] ?? 0]
      if (old === now) continue
      for (let bit = 0; bit < 8; bit++) {
        const change = ((now << bit) & 0x80) - ((old << bit) & 0x80)
        if (change === 0) continue
        const index = byte * 8 + bit
        this.#spread[index] = (this.#spread[index] ?? 0) + Math.sign(change)
        if (change > 0) hasMore = true
      }
    }
    return hasMore
  }

  /** The circle of fellows changed: what belongs to whom is found out anew. */
  #meet(): void {
    this.#fellows = [...this.#offers].filter(([, offer]) => offer !== 'all').map(([source]) => nameHash(source))
    this.#owner.fill(0)
  }

  #isOwn(index: number): boolean {
    const stretch = Math.floor(index / SHARE_PIECES)
    const known = this.#owner[stretch]
    if (known) return known === 1
    const own = shareWeight(this.#self, stretch)
    const isOwn = this.#fellows.every((fellow) => shareWeight(fellow, stretch) <= own)
    this.#owner[stretch] = isOwn ? 1 : 2
    return isOwn
  }
}

/** Ranks of what a whole source is asked for last: what belongs to a fellow who has not got it, and what fellows have. */
const THEIRS = 1e6
const HELD = 2e6

function isTheirs(rank: number): boolean {
  return rank >= THEIRS && Number.isFinite(rank)
}

export function offers(offer: Offer, index: number): boolean {
  return offer === 'all' || ((offer[index >> 3] ?? 0) & (0x80 >> (index & 7))) !== 0
}
