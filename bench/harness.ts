/**
 * What the benchmarks share. A question is asked of several contenders in the same run, by turns (A B C, A B C, ...), so that whatever
 * else the machine does falls on all of them; what counts is the median of the ratios within a turn, not a figure by itself. Every
 * measurement is bounded in count and in time.
 */
import { loadavg } from 'node:os'
import { stripVTControlCharacters, styleText } from 'node:util'

/** One question: a file of this directory. */
export type Bench = {
  name: string
  question: string
  /** Far more than it takes: what does not end by then hangs. */
  minutesMax: number
  run(report: Report, signal: AbortSignal): Promise<void>
}

/** Turns that are counted; one more comes first, to warm up caches. */
export type Turns = { countMax: number; msMax: number; warmUp?: boolean }
/** Fewer say nothing of the spread. */
const TURNS_MIN = 3
/** With `--quick`: to see that a benchmark works. */
const QUICK_FACTOR = 0.2

export const isQuick = process.argv.includes('--quick')

/** As much of it as `--quick` leaves. */
export function scaled(amount: number, least = 1): number {
  return isQuick ? Math.max(least, Math.round(amount * QUICK_FACTOR)) : amount
}

/**
 * Lets each contender have its turn, in order, again and again, until `countMax` turns or `msMax` are over. A contender measures itself:
 * what it returns is the sample, so that what it prepares and cleans does not count.
 */
export async function byTurns<Name extends string>(
  contenders: Record<Name, (turn: number) => Promise<number>>,
  { countMax, msMax, warmUp = true }: Turns,
): Promise<Record<Name, number[]>> {
  const names = Object.keys(contenders) as Name[]
  const samples = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>
  const startedMs = performance.now()
  const turns = scaled(countMax, TURNS_MIN)
  for (let turn = warmUp ? -1 : 0; turn < turns; turn++) {
    if (turn >= TURNS_MIN && performance.now() - startedMs > msMax) break
    for (const name of names) {
      const sample = await contenders[name](turn)
      if (turn >= 0) samples[name].push(sample)
    }
  }
  return samples
}

export async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now()
  await work()
  return performance.now() - startedMs
}

export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * share
  const low = sorted[Math.floor(at)] ?? Number.NaN
  const high = sorted[Math.ceil(at)] ?? Number.NaN
  return low + (high - low) * (at - Math.floor(at))
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

/** Median of the ratios within each turn: what changes from turn to turn falls out. */
export function ratio(ours: readonly number[], theirs: readonly number[]): number {
  if (ours.length !== theirs.length) return median(ours) / median(theirs)
  return median(ours.map((value, turn) => value / (theirs[turn] ?? Number.NaN)))
}

export type Unit = 'copies' | 'x' | 'ms' | 'MB/s' | '/s' | 'MB' | 'KB' | '%' | 'KB/h' | 'us' | 's'

export type Result = {
  what: string
  samples: readonly number[]
  unit: Unit
  /** What it is compared with, measured in the same turns. */
  against?: { what: string; samples: readonly number[] }
  /** What is wanted of the median, or of the ratio. */
  goal?: { atMost: number } | { atLeast: number } | { timesAtMost: number } | { timesAtLeast: number }
}

type Row = readonly string[]
const HEADINGS: Row = ['', 'median', 'lowest … highest', 'against', 'median', 'ratio', 'goal']

/** Collects results, and prints each as soon as it is known. */
export class Report {
  readonly #rows: Row[] = []
  readonly #notes: string[] = []

  begin({ name, question }: Bench): void {
    const load = loadavg()[0] ?? 0
    print(`\n${styleText('bold', name)}: ${question} (load ${load.toFixed(2)})`)
    this.#rows.push([styleText('bold', name), '', '', '', '', '', ''])
  }

  result({ what, samples, unit, against, goal }: Result): void {
    const value = median(samples)
    const range = samples.length > 1 ? `${round(Math.min(...samples))} … ${round(Math.max(...samples))}` : ''
    const times = against ? ratio(samples, against.samples) : Number.NaN
    const shown = [`  ${what}`, `${round(value)} ${unit}`, range]
    const other = against
      ? [against.what, `${round(median(against.samples))} ${unit}`, `${round(times)} x`]
      : ['', '', '']
    const row = [...shown, ...other, goalText(value, times, unit, goal)]
    this.#rows.push(row)
    print(row.filter((cell) => cell !== '').join('  '))
  }

  /** What a reader has to know to understand the figures. */
  note(text: string): void {
    this.#notes.push(text)
    print(`  ${text}`)
  }

  progress(text: string): void {
    print(styleText('dim', `  ${text}`))
  }

  table(): string {
    const rows = [HEADINGS, ...this.#rows]
    const widths = HEADINGS.map((_, column) => Math.max(...rows.map((row) => lengthOf(row[column] ?? ''))))
    const lines = rows.map((row) => row.map((cell, column) => pad(cell, widths[column] ?? 0, column)).join('  '))
    return [...lines.map((line) => line.trimEnd()), '', ...this.#notes.map((note) => `- ${note}`)].join('\n')
  }
}

function goalText(value: number, times: number, unit: Unit, goal: Result['goal']): string {
  if (goal === undefined) return ''
  const shown = (isMet: boolean, wanted: string) =>
    `${wanted} ${isMet ? styleText('green', 'met') : styleText('red', 'missed')}`
  if ('timesAtMost' in goal) return shown(times <= goal.timesAtMost, `≤ ${goal.timesAtMost} x`)
  if ('timesAtLeast' in goal) return shown(times >= goal.timesAtLeast, `≥ ${goal.timesAtLeast} x`)
  if ('atMost' in goal) return shown(value <= goal.atMost, `≤ ${goal.atMost} ${unit}`)
  return shown(value >= goal.atLeast, `≥ ${goal.atLeast} ${unit}`)
}

/** Three significant digits: more would be noise. */
function round(value: number): string {
  if (!Number.isFinite(value)) return '?'
  return value >= 1_000 ? Math.round(value).toLocaleString('en') : Number(value.toPrecision(3)).toString()
}

function lengthOf(text: string): number {
  return stripVTControlCharacters(text).length
}

/** Numbers stand to the right, words to the left. */
function pad(cell: string, width: number, column: number): string {
  const room = ' '.repeat(width - lengthOf(cell))
  return column === 1 || column === 4 || column === 5 ? room + cell : cell + room
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}
