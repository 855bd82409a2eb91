/** A line on standard error that shows how far something is, redrawn in place; nothing at all when that is no terminal. */
import { printable } from '../printable.ts'
import { showDuration, showSize } from './measures.ts'
import { shorten, textWidth } from './table.ts'
import type { Output } from './terminal.ts'

/** More often than people see. */
const DRAW_MS_MIN = 100
const BAR_WIDTH_MAX = 24
const BAR_WIDTH_MIN = 6
const GAP = '  '
const COLUMNS_DEFAULT = 80
/** Rates over less say nothing yet. */
const RATE_MS_MIN = 500

export class Progress implements Disposable {
  readonly #output: Output | undefined
  readonly #label: string
  /** Where it stood first: what a former run had done is no part of the rate. */
  #begun: { atMs: number; bytes: number } | undefined
  readonly #now: () => number
  #drawnAt = Number.NEGATIVE_INFINITY

  constructor(output: Output | undefined, label: string, now: () => number = () => performance.now()) {
    this.#output = output
    this.#label = printable(label)
    this.#now = now
  }

  /** `totalBytes` is undefined or 0 where nobody knows. */
  show(doneBytes: number, totalBytes: number | undefined): void {
    const now = this.#now()
    this.#begun ??= { atMs: now, bytes: doneBytes }
    if (!this.#output || now - this.#drawnAt < DRAW_MS_MIN) return
    this.#drawnAt = now
    const columns = this.#output.columns || COLUMNS_DEFAULT
    const figures = progressFigures(doneBytes, totalBytes, now - this.#begun.atMs, doneBytes - this.#begun.bytes)
    // One column stays free: some terminals go to the next line after the last.
    const room = columns - 1 - textWidth(this.#label) - textWidth(figures) - 2 * GAP.length
    const bar = progressBar(doneBytes, totalBytes, Math.min(BAR_WIDTH_MAX, room))
    const line = shorten([this.#label, ...bar, figures].join(GAP), columns - 1)
    this.#output.write(`\r\x1b[K${line}`)
  }

  /** Removes the line: what comes next is the result. */
  [Symbol.dispose](): void {
    if (Number.isFinite(this.#drawnAt)) this.#output?.write('\r\x1b[K')
  }
}

/** Nothing where the total is not known, or where there is no room for one. */
function progressBar(doneBytes: number, totalBytes: number | undefined, width: number): string[] {
  if (!totalBytes || width < BAR_WIDTH_MIN) return []
  const filled = Math.min(width, Math.round((doneBytes / totalBytes) * width))
  return [`${'█'.repeat(filled)}${'░'.repeat(width - filled)}`]
}

function progressFigures(
  doneBytes: number,
  totalBytes: number | undefined,
  elapsedMs: number,
  movedBytes: number,
): string {
  const size = totalBytes ? `${showSize(doneBytes)} of ${showSize(totalBytes)}` : showSize(doneBytes)
  if (elapsedMs < RATE_MS_MIN || movedBytes <= 0) return size
  const bytesPerSecond = movedBytes / (elapsedMs / 1_000)
  const left = totalBytes ? `, ${showDuration(Math.max(0, totalBytes - doneBytes) / bytesPerSecond)} left` : ''
  return `${size}, ${showSize(bytesPerSecond)}/s${left}`
}
