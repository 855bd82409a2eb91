/**
 * What the state database knows of blobs: which are on disk, who wants them kept, which are half fetched. Rows only; files are the
 * business of `Blobs`. A blob's row is written after its file is in place and deleted before the file is, so a row never promises
 * a file that a crash could have lost, and files without a row are rubbish.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { TEMPORARY_PIN } from './content.ts'

const SCHEMA = [
  `
  CREATE TABLE content_blobs (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX content_blobs_used ON content_blobs (used_ms);
  CREATE TABLE content_pins (
    digest TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (digest, reason)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE content_partials (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
]

export type BlobRow = { digest: Digest; sizeBytes: number; usedMs: number }
export type Evictable = { digest: Digest; sizeBytes: number; partial: boolean }

export class BlobIndex {
  readonly #db: Database
  readonly #sql

  constructor(db: Database) {
    migrate(db, 'content', SCHEMA)
    this.#db = db
    this.#sql = {
      get: db.prepare('SELECT digest, size_bytes AS sizeBytes, used_ms AS usedMs FROM content_blobs WHERE digest = ?'),
      put: db.prepare(
        'INSERT INTO content_blobs VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET used_ms = excluded.used_ms',
      ),
      touch: db.prepare('UPDATE content_blobs SET used_ms = ? WHERE digest = ?'),
      drop: db.prepare('DELETE FROM content_blobs WHERE digest = ?'),
      all: db.prepare('SELECT digest FROM content_blobs'),
      totals: db.prepare('SELECT count(*) AS blobs, coalesce(sum(size_bytes), 0) AS bytes FROM content_blobs'),
      pin: db.prepare('INSERT OR IGNORE INTO content_pins VALUES (?, ?)'),
      unpin: db.prepare('DELETE FROM content_pins WHERE digest = ? AND reason = ?'),
      unpinTemporary: db.prepare('DELETE FROM content_pins WHERE substr(reason, 1, ?) = ?'),
      unpinAll: db.prepare('DELETE FROM content_pins WHERE reason = ? RETURNING digest'),
      reasons: db.prepare('SELECT DISTINCT reason FROM content_pins ORDER BY reason'),
      pins: db.prepare('SELECT reason FROM content_pins WHERE digest = ? ORDER BY reason'),
      pinnedBytes: db.prepare(
        'SELECT coalesce(sum(size_bytes), 0) AS bytes FROM content_blobs WHERE digest IN (SELECT digest FROM content_pins)',
      ),
      evictable: db.prepare(`
        SELECT digest, size_bytes AS sizeBytes, 0 AS partial, used_ms FROM content_blobs AS b
          WHERE NOT EXISTS (SELECT 1 FROM content_pins AS p WHERE p.digest = b.digest)
        UNION ALL SELECT digest, size_bytes, 1, used_ms FROM content_partials ORDER BY used_ms`),
      partial: db.prepare('SELECT size_bytes AS sizeBytes FROM content_partials WHERE digest = ?'),
      putPartial: db.prepare(`INSERT INTO content_partials VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET size_bytes = excluded.size_bytes, used_ms = excluded.used_ms`),
      dropPartial: db.prepare('DELETE FROM content_partials WHERE digest = ?'),
      allPartials: db.prepare('SELECT digest FROM content_partials'),
      partialBytes: db.prepare('SELECT coalesce(sum(size_bytes), 0) AS bytes FROM content_partials'),
    }
  }

  get(digest: Digest): BlobRow | undefined {
    return this.#sql.get.get(digest) as BlobRow | undefined
  }

  /** The blob is in its place; what was half fetched of it is no longer needed. */
  put(row: BlobRow, pin?: string): void {
    transaction(this.#db, () => {
      this.#sql.put.run(row.digest, row.sizeBytes, row.usedMs)
      this.#sql.dropPartial.run(row.digest)
      if (pin !== undefined) this.#sql.pin.run(row.digest, pin)
    })
  }

  touch(digest: Digest, usedMs: number): void {
    this.#sql.touch.run(usedMs, digest)
  }

  drop(digest: Digest): void {
    this.#sql.drop.run(digest)
  }

  digests(): Set<Digest> {
    return digestsOf(this.#sql.all.all())
  }

  totals(): { blobs: number; bytes: number } {
    return this.#sql.totals.get() as { blobs: number; bytes: number }
  }

  pin(digest: Digest, reason: string): void {
    this.#sql.pin.run(digest, reason)
  }

  unpin(digest: Digest, reason: string): void {
    this.#sql.unpin.run(digest, reason)
  }

  /** Nobody who set these is left. */
  unpinTemporary(): void {
    this.#sql.unpinTemporary.run(TEMPORARY_PIN.length, TEMPORARY_PIN)
  }

  /** Keeps these blobs for a reason, and no others for the same reason; gives back the rows that it drops, which nobody keeps now. */
  setPins(reason: string, digests: readonly Digest[]): BlobRow[] {
    return transaction(this.#db, () => {
      const before = digestsOf(this.#sql.unpinAll.all(reason))
      for (const digest of digests) this.#sql.pin.run(digest, reason)
      const left = [...before].filter((digest) => this.pins(digest).length === 0).flatMap((one) => this.get(one) ?? [])
      for (const { digest } of left) this.drop(digest)
      return left
    })
  }

  pinReasons(prefix: string): string[] {
    const rows = this.#sql.reasons.all() as { reason: string }[]
    return rows.map(({ reason }) => reason).filter((reason) => reason.startsWith(prefix))
  }

  pins(digest: Digest): string[] {
    return (this.#sql.pins.all(digest) as { reason: string }[]).map(({ reason }) => reason)
  }

  pinnedBytes(): number {
    return (this.#sql.pinnedBytes.get() as { bytes: number }).bytes
  }

  /** What may go to make room, the longest unused first. */
  *evictable(): Iterable<Evictable> {
    for (const row of this.#sql.evictable.iterate()) {
      const { digest, sizeBytes, partial } = row as { digest: string; sizeBytes: number; partial: number }
      yield { digest, sizeBytes, partial: partial === 1 }
    }
  }

  /** The size of a half-fetched blob when it is whole, for which there is room. */
  partialSize(digest: Digest): number | undefined {
    return (this.#sql.partial.get(digest) as { sizeBytes: number } | undefined)?.sizeBytes
  }

  putPartial(digest: Digest, sizeBytes: number, usedMs: number): void {
    this.#sql.putPartial.run(digest, sizeBytes, usedMs)
  }

  dropPartial(digest: Digest): void {
    this.#sql.dropPartial.run(digest)
  }

  partialDigests(): Set<Digest> {
    return digestsOf(this.#sql.allPartials.all())
  }

  partialBytes(): number {
    return (this.#sql.partialBytes.get() as { bytes: number }).bytes
  }
}

function digestsOf(rows: unknown[]): Set<Digest> {
  return new Set((rows as { digest: string }[]).map(({ digest }) => digest))
}
