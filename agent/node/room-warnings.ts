/** What a person should know about the room that content has: warnings of `agent status`. */
import type { Warning } from '../api/contract.ts'
import type { PinView } from '../api/room-contract.ts'
import { sizeText } from '../state/disk.ts'

/** What happened longer ago no longer tells how the node is. */
const RECENT_MS_MAX = 60 * 60_000
/** When that much of the quota is not to be touched, little of what is fetched will be kept. */
const FULL_RATIO = 0.95
/** Named in one warning. */
const PINS_SHOWN_MAX = 3

export type RoomCondition = {
  /** Blobs that were handed to Nix and not kept. */
  unkept: { count: number; lastMs: number | undefined }
  quotaBytes: number
  /** Published or pinned. */
  keptBytes: number
  pins: readonly PinView[]
  now: number
}

export function roomWarnings(condition: RoomCondition): Warning[] {
  return [fullWarning(condition), pinsWarning(condition)].filter((one) => one !== undefined)
}

function fullWarning({ unkept, quotaBytes, keptBytes, now }: RoomCondition): Warning | undefined {
  const isUnkept = unkept.lastMs !== undefined && now - unkept.lastMs < RECENT_MS_MAX
  const isFull = keptBytes >= FULL_RATIO * quotaBytes
  if (!isUnkept && !isFull) return undefined
  const quota = `of the quota of ${sizeText(quotaBytes)}, ${sizeText(keptBytes)} is published or pinned`
  const [was, them] = unkept.count === 1 ? ['blob was', 'it'] : ['blobs were', 'them']
  return {
    code: 'content.full',
    message: isUnkept
      ? `there is no room for what Nix asks for: ${unkept.count} ${was} handed on without keeping ${them} (${quota})`
      : `there is hardly any room for what is fetched: ${quota}`,
    next: isFull
      ? 'Raise `quota` in the configuration, or let go of some: `agent pins`, `agent unpin`, `agent unpublish`.'
      : 'Make room on the disk of the state directory; `agent gc --all` frees what this agent has fetched.',
  }
}

function pinsWarning({ pins }: RoomCondition): Warning | undefined {
  const broken = pins.filter(({ missing }) => missing > 0)
  const [first] = broken
  if (first === undefined) return undefined
  const names = broken.slice(0, PINS_SHOWN_MAX).map(({ name, missing, parts }) => `${name} (${missing} of ${parts})`)
  return {
    code: 'pins.incomplete',
    message: `parts of what is pinned are not here any more: ${names.join(', ')}${broken.length > names.length ? ', …' : ''}`,
    next: `\`agent pin ${first.name}\` fetches them again.`,
  }
}
