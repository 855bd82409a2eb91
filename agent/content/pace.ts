/**
 * How much to ask of one source ahead of its answers: what it gives in a round trip and a little, as measured. Too little leaves the line
 * idle, too much keeps pieces from sources that would be quicker. Pure.
 */
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'

/** Before anything is known: one request. */
const WINDOW_PIECES_START = 4
/** Over lanes: a blob of a few megabytes is not to take two round trips. */
const WIDE_WINDOW_PIECES_START = 16
/** Of the slowest source: one that is read while the next one is sent. */
const WINDOW_PIECES_MIN = 2
/** 8 MiB, which fills a line of 600 Mbit/s over 100 ms. */
const WINDOW_PIECES_MAX = 32
/** 32 MiB, over lanes: what is under way there takes no memory of ours, and a gigabit is not the end. */
const WIDE_WINDOW_PIECES_MAX = 128
/** On top of the round trip: what a busy machine may take to come back to a stream. */
const SLACK_MS = 100
/** Over lanes threads on both sides wait for their turn on a busy machine, each for as long: a source must not seem slow for that. */
const WIDE_SLACK_MS = 400
/** A rate measured over less says little. */
const SAMPLE_MS_MIN = 50
/** Weight of a new sample: a source that becomes slow is known as such after a few. */
const SAMPLE_WEIGHT = 0.4

export class Pace {
  readonly #now: () => number
  /** When what is under way was asked for, oldest first. */
  readonly #asked: { atMs: number; pieces: number }[] = []
  #pieces = 0
  #delayMs = Number.POSITIVE_INFINITY
  #bytesPerMs = 0
  #piecesMax = WINDOW_PIECES_MAX
  #slackMs = SLACK_MS
  #piecesStart = WINDOW_PIECES_START
  #sampleBytes = 0
  #sampleMs = 0
  /** Since when the source has had something to give, or gave last. */
  #busyMs = 0

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** How many pieces more may be asked for now. */
  get room(): number {
    return Math.max(0, this.#window - this.#pieces)
  }

  /** 0 until something came. */
  get bytesPerSecond(): number {
    return this.#bytesPerMs * 1_000
  }

  /** Whether the source gives over lanes now. */
  widen(isWide: boolean): void {
    this.#piecesMax = isWide ? WIDE_WINDOW_PIECES_MAX : WINDOW_PIECES_MAX
    this.#slackMs = isWide ? WIDE_SLACK_MS : SLACK_MS
    this.#piecesStart = isWide ? WIDE_WINDOW_PIECES_START : WINDOW_PIECES_START
  }

  asked(pieces: number): void {
    if (this.#pieces === 0) this.#busyMs = this.#now()
    this.#asked.push({ atMs: this.#now(), pieces })
    this.#pieces += pieces
  }

  /** The answer to the oldest request begins. */
  answered(): void {
    const [oldest] = this.#asked
    if (oldest) this.#delayMs = Math.min(this.#delayMs, this.#now() - oldest.atMs)
  }

  /** A piece of the oldest request is here. `idleMs`: for so long the source waited for us. */
  arrived(bytes: number, idleMs = 0): void {
    const now = this.#now()
    this.#sampleBytes += bytes
    this.#sampleMs += Math.max(0, now - this.#busyMs - idleMs)
    this.#busyMs = now
    if (this.#sampleMs >= SAMPLE_MS_MIN || this.#bytesPerMs === 0) {
      const rate = this.#sampleBytes / Math.max(this.#sampleMs, 1)
      this.#bytesPerMs += (rate - this.#bytesPerMs) * (this.#bytesPerMs === 0 ? 1 : SAMPLE_WEIGHT)
      this.#sampleBytes = 0
      this.#sampleMs = 0
    }
    this.#done(1)
  }

  /** The source will not give what is left of the oldest request. */
  refused(): void {
    this.#done(this.#asked[0]?.pieces ?? 0)
  }

  /** So many pieces of what is under way will not come. */
  lost(pieces: number): void {
    for (let piece = 0; piece < pieces; piece++) this.#done(1)
  }

  get #window(): number {
    if (this.#bytesPerMs === 0) return this.#piecesStart
    const delayMs = Number.isFinite(this.#delayMs) ? this.#delayMs : 0
    const pieces = Math.ceil((this.#bytesPerMs * (delayMs + this.#slackMs)) / PIECE_BYTES)
    return Math.min(this.#piecesMax, Math.max(WINDOW_PIECES_MIN, pieces))
  }

  #done(pieces: number): void {
    this.#pieces -= pieces
    const [oldest] = this.#asked
    if (!oldest) return
    oldest.pieces -= pieces
    if (oldest.pieces <= 0) this.#asked.shift()
  }
}
