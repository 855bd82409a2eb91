/** Numbers as people read and write them: sizes, times, counts. */
import { AgentError } from '../error.ts'

const SIZE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
const MINUTE = 60
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const DURATION_UNITS: Readonly<Record<string, number>> = { s: 1, m: MINUTE, h: HOUR, d: DAY, w: 7 * DAY }

/** `1.4 GiB` */
export function showSize(bytes: number): string {
  let value = bytes
  let unit = 0
  // From 1000 on the next unit reads better than four digits.
  while (value >= 1_000 && unit < SIZE_UNITS.length - 1) {
    value /= 1_024
    unit++
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${SIZE_UNITS[unit]}`
}

/** `3 h 12 min`: the two largest units. */
export function showDuration(seconds: number): string {
  const s = Math.floor(seconds)
  if (s < MINUTE) return `${s} s`
  if (s < HOUR) return pair(Math.floor(s / MINUTE), 'min', s % MINUTE, 's')
  if (s < DAY) return pair(Math.floor(s / HOUR), 'h', Math.floor((s % HOUR) / MINUTE), 'min')
  return pair(Math.floor(s / DAY), 'd', Math.floor((s % DAY) / HOUR), 'h')
}

/** `3 h`: the largest unit alone, where there is little room. */
export function showShortDuration(seconds: number): string {
  return showDuration(seconds).split(' ').slice(0, 2).join(' ')
}

/** Seconds in `90m`, `24h`, `7d`. `what` begins the sentence for people. @throws {AgentError} `usage` */
export function readDuration(text: string, what: string): number {
  const [, digits, unit] = /^\s*(\d{1,9})\s*([smhdw])\s*$/.exec(text) ?? []
  const seconds = Number(digits) * (DURATION_UNITS[unit ?? ''] ?? 0)
  if (seconds > 0) return seconds
  throw new AgentError('usage', `${what} must be like 90m, 24h or 7d, not ${JSON.stringify(text)}`)
}

/** A whole number. @throws {AgentError} `usage` */
export function readCount(text: string, what: string, { min, max }: { min: number; max: number }): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
  if (value >= min && value <= max) return value
  throw new AgentError('usage', `${what} must be a whole number from ${min} to ${max}, not ${JSON.stringify(text)}`)
}

/** `0.43 ms`, `12 ms`, `1.3 s` */
export function showMs(ms: number): string {
  if (ms < 1) return `${ms.toFixed(2)} ms`
  if (ms < 10) return `${ms.toFixed(1)} ms`
  if (ms < 1_000) return `${Math.round(ms)} ms`
  return `${(ms / 1_000).toFixed(1)} s`
}

/** `1 peer`, `2 peers`; the plural only where it is not made with an s. */
export function count(number: number, noun: string, plural = `${noun}s`): string {
  return `${number} ${number === 1 ? noun : plural}`
}

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`
}
