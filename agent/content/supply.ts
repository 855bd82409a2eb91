/**
 * What several sources bring together of one blob, by one piece list: which pieces are asked of whom, who gives how much, and when there is
 * something new to do. It ends when the blob is whole, or another list is taken.
 */

import { GET_PIECES_MAX } from '../../protocols/pieces/exchange.ts'
import { SHARE_PIECES } from '../../protocols/pieces/share.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import type { PieceList } from './content.ts'
import { Pace } from './pace.ts'
import type { PartialBlob } from './partial-blob.ts'
import { type Offer, PiecePicker, type Run } from './piece-picker.ts'

/** Fellows that brought nothing for so long, or in which the source could have given several shares, are too slow to wait for. */
const FELLOWS_QUIET_MS = 2_000
const FELLOWS_QUIET_SHARES = 4
/** A fellow that has just begun is not judged by its speed. */
const FELLOWS_GRACE_MS = 2_000
/** Sources that have nothing to do look again after this at the latest: for pieces that are late. */
const LOOK_MS_MAX = 200
/** And after this at the earliest: pieces come by the hundred. */
const LOOK_MS_MIN = 20

/** A source that gives less than this part of what is usual makes room for another one. */
const SLOW = 4

type Giver = { pace: Pace; isFellow: boolean; sinceMs: number; lastMs: number }

export class Supply {
  readonly list: PieceList
  readonly partial: PartialBlob
  readonly #now: () => number
  readonly #picker: PiecePicker
  readonly #givers = new Map<string, Giver>()
  readonly #over = new AbortController()
  #fellowMs = 0
  #fellowsSinceMs = 0
  #changed = Promise.withResolvers<void>()

  constructor(partial: PartialBlob, self: string, now: () => number = () => performance.now()) {
    this.partial = partial
    this.list = partial.list
    this.#now = now
    this.#picker = new PiecePicker({ pieceCount: partial.pieceCount, has: (index) => partial.has(index), self, now })
  }

  /** Fires when nothing more is wanted by this list. */
  get over(): AbortSignal {
    return this.#over.signal
  }

  /** A peer is said to fetch the blob, too: its share is left to it from now on, until it turns out that nothing is to be had of it. */
  expect(peerId: string): void {
    if (this.#givers.has(peerId)) return
    if (!this.#picker.hasFellows) this.#fellowsSinceMs = this.#now()
    this.#fellowMs = this.#now()
    this.#picker.offer(peerId, new Uint8Array(Math.ceil(this.partial.pieceCount / 8)))
  }

  giveUp(peerId: string): void {
    if (!this.#givers.has(peerId)) this.#picker.leave(peerId)
  }

  /** A source begins to give. */
  join(peerId: string, offer: Offer): Pace {
    const pace = new Pace(this.#now)
    this.#givers.set(peerId, { pace, isFellow: false, sinceMs: this.#now(), lastMs: 0 })
    this.offer(peerId, offer)
    return pace
  }

  /** What the source has now. @returns whether that is more than before. */
  offer(peerId: string, offer: Offer): boolean {
    const giver = this.#givers.get(peerId)
    if (giver && giver.isFellow !== (offer !== 'all')) {
      giver.isFellow = offer !== 'all'
      if (giver.isFellow) this.#fellowsSinceMs = this.#now()
      if (giver.isFellow) this.#fellowMs = this.#now()
    }
    const hasMore = this.#picker.offer(peerId, offer)
    if (hasMore) this.tellChanged()
    return hasMore
  }

  leave(peerId: string): void {
    this.#givers.delete(peerId)
    this.#picker.leave(peerId)
    this.tellChanged()
  }

  /** Whether all comes from one source, and nobody else wants it. */
  get isAlone(): boolean {
    return this.#givers.size === 1 && !this.#picker.hasFellows
  }

  /** What to ask the source for now: a few pieces, or where nobody shares them up to `countMax`. */
  pick(peerId: string, countMax?: number): Run | undefined {
    const giver = this.#givers.get(peerId)
    if (!giver || this.partial.isFull) return undefined
    const { room } = giver.pace
    // Each request costs both sides about as much as a piece; small ones are for those who share.
    const most = countMax ?? (this.isAlone ? GET_PIECES_MAX : SHARE_PIECES)
    return this.#picker.pick(peerId, Math.min(most, room), { alsoOthers: this.#areFellowsSlow(giver) })
  }

  /** The source that gives least, of those that had the time to show what they can; none while all give about the same. */
  slowest(timeMs: number): string | undefined {
    const now = this.#now()
    const rates = [...this.#givers].map(([peerId, { pace, sinceMs }]) => {
      const isNew = now - sinceMs < timeMs
      return { peerId, rate: isNew ? Number.POSITIVE_INFINITY : pace.bytesPerSecond }
    })
    const known = rates.filter(({ rate }) => Number.isFinite(rate)).sort((one, other) => one.rate - other.rate)
    const [slowest] = known
    const median = known[Math.floor(known.length / 2)]?.rate ?? 0
    return slowest && slowest.rate < median / SLOW ? slowest.peerId : undefined
  }

  settle(peerId: string, run: Run): void {
    this.#picker.settle(peerId, run)
  }

  /** A piece of the source is on the disk. */
  wrote(peerId: string, index: number): void {
    const giver = this.#givers.get(peerId)
    if (giver) giver.lastMs = this.#now()
    if (giver?.isFellow) this.#fellowMs = giver.lastMs
    this.#picker.settle(peerId, { from: index, count: 1 })
    this.tellChanged()
  }

  /** The file lost pieces. */
  rewind(): void {
    this.#picker.rewind()
    this.tellChanged()
  }

  end(): void {
    this.#over.abort(new Error('no more is wanted'))
    this.tellChanged()
  }

  tellChanged(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }

  /** Resolves when there may be something new to do. */
  async change(msMax = LOOK_MS_MAX): Promise<void> {
    const look = Promise.withResolvers<void>()
    const timer = setTimeout(look.resolve, Math.max(LOOK_MS_MIN, Math.min(LOOK_MS_MAX, msMax)))
    const atLeast = new Promise((resolve) => setTimeout(resolve, LOOK_MS_MIN))
    try {
      await Promise.race([this.#changed.promise, look.promise])
      if (!this.#over.signal.aborted) await atLeast
    } finally {
      clearTimeout(timer)
    }
  }

  /**
   * Whether a whole source should give, too, what fellows would: they bring nothing, or less than half of what it could give each of us. What
   * it gives this node while the others want nothing is no measure of that: all would turn to it at once, and it would send a copy to each.
   */
  #areFellowsSlow(whole: Giver): boolean {
    const now = this.#now()
    const wholeRate = whole.pace.bytesPerSecond
    const sharesMs = wholeRate === 0 ? 0 : (FELLOWS_QUIET_SHARES * SHARE_PIECES * PIECE_BYTES * 1_000) / wholeRate
    if (now - this.#fellowMs > Math.max(FELLOWS_QUIET_MS, sharesMs)) return true
    if (now - this.#fellowsSinceMs < FELLOWS_GRACE_MS) return false
    let rate = 0
    let sharers = 1
    for (const { isFellow, lastMs, pace } of this.#givers.values()) {
      if (!isFellow || now - lastMs >= FELLOWS_QUIET_MS) continue
      rate += pace.bytesPerSecond
      sharers++
    }
    return rate * 2 < wholeRate / sharers
  }
}
