/**
 * Brings pieces of a blob from one source, as long as it has some that are wanted: several requests under way, so that the line is never
 * idle for a round trip; each piece held against the list on arrival, and written while the next one arrives. A source that is fetching the
 * blob itself is asked now and then what more it has.
 *
 * Of a large blob pieces are asked for on lanes as soon as there are some, and on the stream again when there are none any more.
 */
import { WireError } from '../../protocols/error.ts'
import type { PieceAsker, PieceHashes } from '../../protocols/pieces/exchange.ts'
import { isPiece, PIECE_BYTES, pieceBytes, rangeBytes } from '../../protocols/pieces/tree.ts'
import { isSameList } from './claims.ts'
import type { Deadline } from './deadline.ts'
import { LANE_BYTES_MIN, LaneRuns } from './lane-runs.ts'
import type { LaneSource } from './lanes.ts'
import type { Pace } from './pace.ts'
import type { Offer, Run } from './piece-picker.ts'
import { PieceWrites } from './piece-writes.ts'
import type { Supply } from './supply.ts'

/** Between two questions what more a fellow has: the next one is later when he had nothing new. */
const POLL_MS_MIN = 200
const POLL_MS_MAX = 2_000
/** Bitmaps are to be a small part of the traffic: bytes of them for each millisecond. */
const POLL_BYTES_PER_MS = 100
/** A fellow that had nothing for us for so long is as stuck as we are. */
const BARREN_MS_MAX = 20_000
/** Of one request on a lane: each costs both sides as much as a piece does. */
const LANE_RUN_PIECES = 8
/** Pieces that a fellow said to have and did not give, in a row. */
const BROKEN_OFFERS_MAX = 3

export type FeedInit = {
  peerId: string
  asker: PieceAsker
  digest: Uint8Array
  supply: Supply
  offer: Offer
  /** Came with the list. */
  first: Uint8Array | undefined
  deadline: Deadline
  /** Where lanes to the peer are to be had, if anywhere. */
  lanes?: LaneSource | undefined
  /** The peer has begun to give. */
  onAnswer: () => void
  onPiece: (bytes: number, isLane: boolean) => void
  /** What a fellow says anew: it may have all of it by now. */
  onStated: (stated: PieceHashes) => void
}

/** What was asked for and not answered yet: pieces, or what more there is. */
type Asked = Run | 'pieces'

export class Feed {
  readonly #init: FeedInit
  readonly #pace: Pace
  readonly #writes: PieceWrites
  readonly #lanes: LaneRuns | undefined
  readonly #asked: Asked[] = []
  #isFellow: boolean
  #pollMs = POLL_MS_MIN
  #pollDueMs: number
  #isPolling = false
  #usefulMs = performance.now()
  #brokenOffers = 0

  /**
   * Resolves when nothing more is wanted: true when everything that was asked for was answered, so that the stream can be used again.
   *
   * @throws {WireError} what the peer did wrong: `mismatch` and `malformed` are lies, the others may happen to anybody.
   * @throws {AgentError} what went wrong here.
   */
  static async run(init: FeedInit): Promise<boolean> {
    const feed = new Feed(init)
    try {
      return await feed.#run()
    } finally {
      await feed.#lanes?.end()
      await feed.#writes.settle()
      init.supply.leave(init.peerId)
    }
  }

  private constructor(init: FeedInit) {
    const { supply, peerId, offer, onPiece } = init
    this.#init = init
    this.#isFellow = offer !== 'all'
    this.#pollDueMs = performance.now() + POLL_MS_MIN
    this.#pace = supply.join(peerId, offer)
    this.#writes = new PieceWrites(supply.partial, (index, bytes) => {
      supply.wrote(peerId, index)
      onPiece(bytes, false)
    })
    this.#lanes = init.lanes && this.#lanesOf(init.lanes)
  }

  async #run(): Promise<boolean> {
    const { supply, first, deadline } = this.#init
    this.#lanes?.start()
    if (first !== undefined && !supply.partial.has(0)) this.#take(0, first)
    try {
      while (!supply.over.aborted) {
        deadline.signal.throwIfAborted()
        await this.#ask()
        const next = this.#asked.shift()
        if (next === undefined) await this.#rest()
        else if (next === 'pieces') await this.#hear()
        else await this.#receive(next)
      }
    } catch (error) {
      if (!supply.over.aborted || deadline.isLate) throw error
      return false
    }
    this.#writes.throwIfFailed()
    return this.#asked.length === 0
  }

  async #ask(): Promise<void> {
    const { asker, digest, supply, peerId, deadline } = this.#init
    this.#askOnLanes()
    while (!this.#lanes?.isOpen) {
      const run = supply.pick(peerId)
      if (!run) break
      this.#asked.push(run)
      this.#pace.asked(run.count)
      await asker.askGet(digest, run.from, run.count, deadline.signal)
    }
    if (!this.#isFellow || this.#isPolling || performance.now() < this.#pollDueMs) return
    this.#isPolling = true
    this.#asked.push('pieces')
    await asker.askPieces(digest, deadline.signal)
  }

  #askOnLanes(): void {
    const { supply, peerId } = this.#init
    const lanes = this.#lanes
    // Requests are worth their while for several pieces.
    if (!lanes?.isOpen || (lanes.isBusy && this.#pace.room < LANE_RUN_PIECES)) return
    while (lanes.isOpen) {
      const run = supply.pick(peerId, LANE_RUN_PIECES)
      if (!run) return
      this.#pace.asked(run.count)
      // Whose the fault is need not be known before the whole turns out to be wrong, where it came from one source and went to nobody.
      lanes.get(run, !(supply.isAlone && supply.partial.isTrusting))
    }
  }

  #lanesOf(source: LaneSource): LaneRuns | undefined {
    const { supply, peerId, deadline, onAnswer, onPiece } = this.#init
    const { partial } = supply
    if (partial.missing * PIECE_BYTES < LANE_BYTES_MIN) return undefined
    return new LaneRuns({
      source,
      peerId,
      partial,
      list: supply.list,
      isFellow: () => this.#isFellow,
      onOpen: () => {
        partial.hashBy(() => source.hasher(partial.fd))
        this.#pace.widen(true)
        this.#askOnLanes()
      },
      onPiece: (index, bytes, isChecked) => {
        onAnswer()
        deadline.wind()
        this.#usefulMs = performance.now()
        this.#pace.answered()
        this.#pace.arrived(bytes)
        partial.arrived(index, supply.list, isChecked)
        supply.wrote(peerId, index)
        onPiece(bytes, true)
        if (!supply.over.aborted) this.#askOnLanes()
      },
      onMissing: (runs) => {
        this.#pace.widen(this.#lanes?.isOpen === true)
        for (const run of runs) {
          this.#pace.lost(run.count)
          supply.settle(peerId, run)
        }
        supply.tellChanged()
      },
      onFault: (error) => this.#writes.fail(partial.faultOf(error)),
    })
  }

  /** There is nothing to ask for: until something changes, the peer is not waited for. */
  async #rest(): Promise<void> {
    const { supply, deadline } = this.#init
    this.#writes.throwIfFailed()
    if (this.#isFellow && performance.now() - this.#usefulMs > BARREN_MS_MAX && !supply.partial.isFull)
      throw new WireError('absent', 'it has nothing more yet')
    await deadline.hold(supply.change(this.#isFellow ? this.#pollDueMs - performance.now() : undefined))
  }

  async #receive(run: Run): Promise<void> {
    const { asker, supply, peerId, deadline, onAnswer } = this.#init
    const { sizeBytes } = supply.list
    const expectedBytes = rangeBytes(sizeBytes, run.from, run.count)
    let announcedBytes: number
    try {
      announcedBytes = await asker.readGet(deadline.signal)
    } catch (error) {
      return this.#refused(run, error)
    }
    onAnswer()
    this.#pace.answered()
    if (announcedBytes !== expectedBytes)
      throw new WireError('malformed', `it has ${announcedBytes} bytes in place of ${expectedBytes}`)
    this.#brokenOffers = 0
    for (let index = run.from; index < run.from + run.count; index++) {
      const heldSinceMs = performance.now()
      const piece = await deadline.hold(this.#writes.buffer(pieceBytes(sizeBytes, index)))
      const heldMs = performance.now() - heldSinceMs
      await asker.readInto(piece, deadline.signal)
      deadline.wind()
      this.#pace.arrived(piece.byteLength, heldMs)
      if (supply.over.aborted) return
      if (supply.partial.has(index)) supply.settle(peerId, { from: index, count: 1 })
      else this.#take(index, piece)
    }
    this.#usefulMs = performance.now()
  }

  #take(index: number, piece: Uint8Array): void {
    if (!isPiece(piece, this.#init.supply.list.hashes, index))
      throw new WireError('mismatch', `piece ${index} has another hash than it said`)
    this.#writes.begin(index, piece)
  }

  /** A fellow may have lost what it said to have; then it is asked again what it has. */
  #refused(run: Run, error: unknown): void {
    const { supply, peerId, deadline } = this.#init
    const isAbsent = error instanceof WireError && error.code === 'absent'
    if (!isAbsent || !this.#isFellow || ++this.#brokenOffers > BROKEN_OFFERS_MAX) throw error
    deadline.wind()
    this.#pace.refused()
    supply.settle(peerId, run)
    supply.offer(peerId, new Uint8Array(Math.ceil(supply.partial.pieceCount / 8)))
    this.#pollDueMs = Math.min(this.#pollDueMs, performance.now() + POLL_MS_MIN)
  }

  /** What more a fellow has. */
  async #hear(): Promise<void> {
    const { asker, supply, peerId, deadline, onStated } = this.#init
    const stated = await asker.readPieces(deadline.signal)
    deadline.wind()
    this.#isPolling = false
    if (!isSameList(stated, supply.list)) throw new WireError('absent', 'it fetches by another piece list now')
    onStated(stated)
    this.#isFellow = stated.pieces !== undefined
    const hasMore = supply.offer(peerId, stated.pieces ?? 'all')
    const least = Math.max(POLL_MS_MIN, (stated.pieces?.byteLength ?? 0) / POLL_BYTES_PER_MS)
    this.#pollMs = hasMore ? least : Math.min(Math.max(POLL_MS_MAX, least), this.#pollMs * 2)
    this.#pollDueMs = performance.now() + this.#pollMs
  }
}
