/**
 * Frees what nothing needs, when a person asks for it: the quota evicts by itself, and only when room is needed.
 *
 * What nobody may be given, what was begun and left, what was not used for long, and what is beyond the quota goes; with `all`, everything
 * that is kept for having been fetched once. What is pinned, published, being read or being fetched never goes, also if it came to be so
 * while this runs. A kill in the middle leaves a store that is whole: of each blob the row goes before the file (see blobs.ts).
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { Evictable } from './blob-index.ts'
import type { Blobs } from './blobs.ts'

/** Whoever fetched it would have come back by then. */
const UNUSED_MS_MAX = 30 * 24 * 60 * 60_000
/** A fetch that was broken off goes on within this, or not at all. */
const PARTIAL_MS_MAX = 24 * 60 * 60_000
/** Removed before others have their turn: about 5 ms of the file system. */
const REMOVED_AT_ONCE = 32

export type GcOptions = {
  all: boolean
  dryRun: boolean
  /** Told of each before it goes. */
  onFree?: (digest: Digest) => void
  now?: number
}
/** `isPartial`: it was half fetched; its size is that of the whole, for which room was kept. */
export type Freed = { digest: Digest; sizeBytes: number; isPartial: boolean }

type Store = Pick<Blobs, 'evictable' | 'evict' | 'networksOf' | 'excessBytes'>

/** Says what was freed, or would be. */
export async function collectGarbage(
  blobs: Store,
  { all, dryRun, onFree, now = Date.now() }: GcOptions,
  signal: AbortSignal,
): Promise<Freed[]> {
  let excessBytes = blobs.excessBytes
  const garbage: Evictable[] = []
  for (const one of blobs.evictable()) {
    if (!all && excessBytes <= 0 && isNeeded(one, blobs, now)) continue
    excessBytes -= one.sizeBytes
    garbage.push(one)
  }
  const freed: Freed[] = []
  for (const [at, one] of garbage.entries()) {
    if (at % REMOVED_AT_ONCE === REMOVED_AT_ONCE - 1) await nextTurn()
    signal.throwIfAborted()
    const { digest, sizeBytes, partialOf } = one
    onFree?.(digest)
    if (dryRun || blobs.evict(one)) freed.push({ digest, sizeBytes, isPartial: partialOf !== undefined })
  }
  return freed
}

function isNeeded({ digest, usedMs, partialOf }: Evictable, blobs: Store, now: number): boolean {
  if (partialOf !== undefined) return now - usedMs < PARTIAL_MS_MAX
  return now - usedMs < UNUSED_MS_MAX && [...blobs.networksOf(digest)].length > 0
}
