/** How long a certificate or an invitation lasts, as people read it. */
import { showShortDuration } from './measures.ts'
import type { Style } from './terminal.ts'

/** A certificate is renewed at half of its lifetime: when less than this part is left, nobody has been there to renew it. */
const LOW_PART = 1 / 4
const MINUTE_SECONDS = 60
const HOUR_SECONDS = 60 * MINUTE_SECONDS
const DAY_SECONDS = 24 * HOUR_SECONDS

/** `in 80 d`, `3 h ago`; with a colour where somebody should look. */
export type Ending = { text: string; isOver: boolean; style: Style | undefined }

export function endingOf({ issued, expires }: { issued: string; expires: string }, nowMs: number): Ending {
  const leftMs = Date.parse(expires) - nowMs
  if (Number.isNaN(leftMs)) return { text: '-', isOver: false, style: undefined }
  if (leftMs <= 0) return { text: `${roundText(-leftMs / 1_000)} ago`, isOver: true, style: 'red' }
  const isLow = leftMs < LOW_PART * (Date.parse(expires) - Date.parse(issued))
  return { text: `in ${roundText(leftMs / 1_000)}`, isOver: false, style: isLow ? 'yellow' : undefined }
}

/** To the nearest of the unit that is shown: what was made for 90 days a moment ago ends in 90 days. */
function roundText(seconds: number): string {
  const unit = [DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS].find((one) => seconds > one * 1.5) ?? 1
  return showShortDuration(Math.round(seconds / unit) * unit)
}

/** `ends in 80 d`, `ended 3 h ago`. */
export function endingText({ text, isOver }: Ending): string {
  return `${isOver ? 'ended' : 'ends'} ${text}`
}

/** `2026-01-01 00:00Z`: in UTC, as logs of several machines have it. */
export function minuteText(time: string): string {
  return Number.isNaN(Date.parse(time)) ? '-' : `${new Date(time).toISOString().slice(0, 16).replace('T', ' ')}Z`
}
