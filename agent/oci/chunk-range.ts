/**
 * The Content-Range of a chunk, which the distribution specification writes without a unit: `0-1023`, both ends included. Some clients
 * write `bytes=0-1023` or `bytes 0-1023/*`, as RFC 9110 would have it; those are read, too.
 */

/** Below 2^53, so that sums stay exact. */
const CHUNK_RANGE_PATTERN = /^(?:bytes[ =])?(\d{1,15})-(\d{1,15})(?:\/(?:\*|\d{1,15}))?$/

export type ChunkRange = { readonly offset: number; readonly length: number }

/** Undefined when it is none, or ends before it begins. */
export function parseChunkRange(text: string): ChunkRange | undefined {
  const match = CHUNK_RANGE_PATTERN.exec(text)
  if (!match) return undefined
  const offset = Number(match[1])
  const length = Number(match[2]) - offset + 1
  return length > 0 ? { offset, length } : undefined
}

/** Of an upload that has so many bytes. That of an empty one looks as if it had one, as in every registry. */
export function formatUploadRange(sizeBytes: number): string {
  return `0-${Math.max(0, sizeBytes - 1)}`
}
