/** How long a certificate or an invitation lasts, as people read it. */
import { showShortDuration } from './measures.ts'
import type { Style } from './terminal.ts'

/** A certificate is renewed at half of its lifetime: when less than this part is left, nobody has been there to renew it. */
const LOW_PART = 1 / 4

/** `in 80 d`, `3 h ago`; with a colour where somebody should look. */
export type Ending = { text: string; isOver: boolean; style: Style | undefined }

export function endingOf({ issued, expires }: { issued: string; expires: string }, nowMs: number): Ending {
  const leftMs = Date.parse(expires) - nowMs
  if (Number.isNaN(leftMs)) return { text: '-', isOver: false, style: undefined }
  if (leftMs <= 0) return { text: `${showShortDuration(-leftMs / 1_000)} ago`, isOver: true, style: 'red' }
  const isLow = leftMs < LOW_PART * (Date.parse(expires) - Date.parse(issued))
  return { text: `in ${showShortDuration(leftMs / 1_000)}`, isOver: false, style: isLow ? 'yellow' : undefined }
}

/** `ends in 80 d`, `ended 3 h ago`. */
export function endingText({ text, isOver }: Ending): string {
  return `${isOver ? 'ended' : 'ends'} ${text}`
}

/** `2026-01-01 00:00Z`: in UTC, as logs of several machines have it. */
export function minuteText(time: string): string {
  return Number.isNaN(Date.parse(time)) ? '-' : `${new Date(time).toISOString().slice(0, 16).replace('T', ' ')}Z`
}
