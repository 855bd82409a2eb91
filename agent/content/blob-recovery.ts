/**
 * Puts right what a crash or a power cut left of the blob directory (see blobs.ts): files without a row, rows without a file, and what may not
 * have been on the disk yet.
 */
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { Log } from '../log.ts'
import type { BlobIndex } from './blob-index.ts'
import { INCOMING, PARTIAL, partialName } from './blob-places.ts'
import { BOOT } from './late-sync.ts'

const DIGEST_PATTERN = /^[0-9a-f]{64}$/

type Init = { directory: string; index: BlobIndex; log: Log; now: () => number }

/** To be called before anything else looks at the directory, which is made if need be. @returns those that have yet to be synced. */
export function recoverBlobs({ directory, index, log, now }: Init): Digest[] {
  for (const name of ['.', PARTIAL, INCOMING]) mkdirSync(join(directory, name), { recursive: true, mode: 0o700 })
  index.unpinTemporary()
  const rubbish = readdirSync(join(directory, INCOMING)).map((name) => join(INCOMING, name))
  const unsynced = index.unsynced()
  for (const { digest, boot } of unsynced) {
    if (boot === BOOT) continue
    log.warn({ digest, reason: 'the machine stopped before it was on the disk', pins: index.pins(digest) }, 'blob.lost')
    index.drop(digest)
  }
  const rows = index.digests()
  const missing = new Set(rows)
  for (const prefix of readdirSync(directory)) {
    if (!/^[0-9a-f]{2}$/.test(prefix)) continue
    for (const name of readdirSync(join(directory, prefix))) {
      missing.delete(name)
      if (rows.has(name) || !DIGEST_PATTERN.test(name)) continue
      // Only whole, verified files are moved here: one that was fetched needs just its row. One that was written was never acknowledged.
      // After a power cut the row of the partial may be older than this file, so it does not say for which network it was fetched: it
      // is given to nobody.
      const sizeBytes = index.partial(name)?.sizeBytes
      if (sizeBytes !== undefined) index.put({ digest: name, sizeBytes, usedMs: now() })
      else rubbish.push(join(prefix, name))
    }
  }
  const partials = new Map(index.partials().map((one) => [partialName(one), one.digest]))
  for (const name of readdirSync(join(directory, PARTIAL))) {
    if (!partials.delete(name)) rubbish.push(join(PARTIAL, name))
  }
  for (const name of rubbish) rmSync(join(directory, name), { force: true })
  for (const digest of partials.values()) index.dropPartial(digest)
  for (const digest of missing) {
    log.warn({ digest, reason: 'its file is gone', pins: index.pins(digest) }, 'blob.lost')
    index.drop(digest)
  }
  if (rubbish.length > 0) log.info({ files: rubbish.length }, 'blobs.recovered')
  return unsynced.map(({ digest }) => digest).filter((digest) => index.get(digest) !== undefined)
}
