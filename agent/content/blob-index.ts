/**
 * What the state database knows of blobs: which are on disk, who wants them kept, in which networks they may be given out, which are half
 * fetched. Rows only; files are the business of `Blobs`. A blob's row is written after its file is in place and deleted before the file
 * is, so files without a row are rubbish; and a row promises no file that a crash could have lost, unless another row says so.
 *
 * A blob may be given out in the networks that it was published in here (its pins say so), and in those from whose peers it was fetched.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { BlobNotes } from './blob-notes.ts'
import { BlobProgress } from './blob-progress.ts'
import { TEMPORARY_PIN } from './content.ts'
import { networkOfPin, OPEN_NETWORK_ID } from './publication-key.ts'

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
  // What was kept for no reason, or half fetched, before there were closed networks was fetched in the open one.
  `
  CREATE TABLE content_fetched (
    digest TEXT NOT NULL REFERENCES content_blobs (digest) ON DELETE CASCADE, network TEXT NOT NULL,
    PRIMARY KEY (digest, network)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX content_fetched_network ON content_fetched (network);
  INSERT INTO content_fetched
    SELECT digest, '${OPEN_NETWORK_ID}' FROM content_blobs WHERE digest NOT IN (SELECT digest FROM content_pins);
  ALTER TABLE content_partials ADD COLUMN network TEXT NOT NULL DEFAULT '${OPEN_NETWORK_ID}';
  `,
  // Blobs whose bytes may not be on the disk yet, and the boot of the machine that they came under.
  `
  CREATE TABLE content_unsynced (
    digest TEXT PRIMARY KEY REFERENCES content_blobs (digest) ON DELETE CASCADE, boot TEXT NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
]

export type BlobRow = { digest: Digest; sizeBytes: number; usedMs: number }
/** A half-fetched blob, and the network that it is fetched for. */
type PartialRow = { digest: Digest; sizeBytes: number; network: string }
/** `partialOf` is the network of a half-fetched blob; undefined when it is whole. */
export type Evictable = BlobRow & { partialOf: string | undefined }
/** What a list of all is sorted by, the most first. */
export type BlobOrder = 'size' | 'used' | 'served'

export class BlobIndex {
  readonly notes: BlobNotes
  readonly progress: BlobProgress
  readonly #db: Database
  readonly #sql

  constructor(db: Database) {
    migrate(db, 'content', SCHEMA)
    this.notes = new BlobNotes(db)
    this.progress = new BlobProgress(db)
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
      pinned: db.prepare('SELECT digest FROM content_pins WHERE reason = ?'),
      absent: db.prepare(
        'SELECT digest FROM content_pins WHERE reason = ? AND digest NOT IN (SELECT digest FROM content_blobs)',
      ),
      // Along the index: a full store is asked for its oldest blobs whenever one comes.
      evictable: db.prepare(`
        SELECT digest, size_bytes AS sizeBytes, used_ms AS usedMs FROM content_blobs AS b
          WHERE NOT EXISTS (SELECT 1 FROM content_pins AS p WHERE p.digest = b.digest) ORDER BY used_ms`),
      evictablePartials: db.prepare(
        'SELECT digest, size_bytes AS sizeBytes, used_ms AS usedMs, network AS partialOf FROM content_partials ORDER BY used_ms',
      ),
      rows: db.prepare(`
        SELECT digest, size_bytes AS sizeBytes, used_ms AS usedMs, network AS partialOf FROM (
          SELECT digest, size_bytes, used_ms, NULL AS network FROM content_blobs
          UNION ALL SELECT digest, size_bytes, used_ms, network FROM content_partials
        ) LEFT JOIN content_notes USING (digest)
        ORDER BY CASE :order WHEN 'size' THEN size_bytes WHEN 'served' THEN coalesce(bytes, 0) ELSE used_ms END DESC, digest
        LIMIT :limit`),
      fetchedIn: db.prepare('SELECT network FROM content_fetched WHERE digest = ?'),
      addFetched: db.prepare('INSERT OR IGNORE INTO content_fetched VALUES (?, ?)'),
      dropFetched: db.prepare('DELETE FROM content_fetched WHERE digest = ? AND network = ?'),
      dropFetchedIn: db.prepare('DELETE FROM content_fetched WHERE network = ? RETURNING digest'),
      networks: db.prepare('SELECT DISTINCT network FROM content_fetched UNION SELECT network FROM content_partials'),
      partial: db.prepare('SELECT digest, size_bytes AS sizeBytes, network FROM content_partials WHERE digest = ?'),
      putPartial: db.prepare(`INSERT INTO content_partials (digest, size_bytes, used_ms, network) VALUES (?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET
          size_bytes = excluded.size_bytes, used_ms = excluded.used_ms, network = excluded.network`),
      unsynced: db.prepare('INSERT OR REPLACE INTO content_unsynced VALUES (?, ?)'),
      synced: db.prepare('DELETE FROM content_unsynced WHERE digest = ?'),
      allUnsynced: db.prepare('SELECT digest, boot FROM content_unsynced'),
      dropPartial: db.prepare('DELETE FROM content_partials WHERE digest = ?'),
      allPartials: db.prepare('SELECT digest, size_bytes AS sizeBytes, network FROM content_partials'),
      partialBytes: db.prepare('SELECT coalesce(sum(size_bytes), 0) AS bytes FROM content_partials'),
    }
  }

  get(digest: Digest): BlobRow | undefined {
    return this.#sql.get.get(digest) as BlobRow | undefined
  }

  /**
   * The blob is in its place, fetched for `network` if that is given; what was half fetched of it is no longer needed. `unsyncedBoot` is the boot of
   * the machine under which it came, if it may not be on the disk yet.
   */
  put(
    row: BlobRow,
    {
      pin,
      network,
      unsyncedBoot,
    }: { pin?: string | undefined; network?: string; unsyncedBoot?: string | undefined } = {},
  ): void {
    transaction(this.#db, () => {
      this.#sql.put.run(row.digest, row.sizeBytes, row.usedMs)
      if (unsyncedBoot === undefined) this.#sql.synced.run(row.digest)
      else this.#sql.unsynced.run(row.digest, unsyncedBoot)
      this.#sql.dropPartial.run(row.digest)
      if (network !== undefined) this.#sql.addFetched.run(row.digest, network)
      if (pin !== undefined) this.#sql.pin.run(row.digest, pin)
    })
  }

  /** They are on the disk. */
  synced(digests: readonly Digest[]): void {
    transaction(this.#db, () => {
      for (const digest of digests) this.#sql.synced.run(digest)
    })
  }

  /** Those that may not be on the disk, and the boot of the machine under which they came. */
  unsynced(): { digest: Digest; boot: string }[] {
    return this.#sql.allUnsynced.all() as { digest: Digest; boot: string }[]
  }

  /** The networks in which it was published here, and those from whose peers it came. */
  networksOf(digest: Digest): Set<string> {
    const published = this.pins(digest).flatMap((reason) => networkOfPin(reason) ?? [])
    return new Set([...published, ...this.fetchedIn(digest)])
  }

  /** Those from whose peers it came. */
  fetchedIn(digest: Digest): string[] {
    return networksIn(this.#sql.fetchedIn.all(digest))
  }

  /** Every network that something here is of. */
  networks(): Set<string> {
    const published = this.pinReasons('').flatMap((reason) => networkOfPin(reason) ?? [])
    return new Set([...published, ...networksIn(this.#sql.networks.all())])
  }

  /** Takes away a network's reasons to keep blobs and to give them out; gives back the rows that it drops: nothing needs those now. */
  forgetNetwork(network: string): BlobRow[] {
    return transaction(this.#db, () => {
      const reasons = this.pinReasons('').filter((reason) => networkOfPin(reason) === network)
      const published = reasons.flatMap((reason) => this.#sql.unpinAll.all(reason))
      return this.#dropUnneeded(digestsOf([...published, ...this.#sql.dropFetchedIn.all(network)]))
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

  /**
   * Keeps these blobs for a reason, and no others for the same reason; gives back the rows that it drops: nothing needs those now. What is
   * no longer published in a network is not given out there for having been fetched there once, either.
   */
  setPins(reason: string, digests: readonly Digest[]): BlobRow[] {
    const network = networkOfPin(reason)
    return transaction(this.#db, () => {
      const before = digestsOf(this.#sql.unpinAll.all(reason))
      for (const digest of digests) this.#sql.pin.run(digest, reason)
      for (const digest of digests) before.delete(digest)
      if (network !== undefined) for (const digest of before) this.#sql.dropFetched.run(digest, network)
      return this.#dropUnneeded(before)
    })
  }

  /** In a transaction. */
  #dropUnneeded(digests: ReadonlySet<Digest>): BlobRow[] {
    const isNeeded = (digest: Digest) => this.pins(digest).length > 0 || this.#sql.fetchedIn.get(digest) !== undefined
    const rows = [...digests].filter((digest) => !isNeeded(digest)).flatMap((digest) => this.get(digest) ?? [])
    for (const { digest } of rows) this.drop(digest)
    return rows
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
    const partials = this.#sql.evictablePartials.all() as Evictable[]
    let next = partials.shift()
    for (const row of this.#sql.evictable.iterate()) {
      const blob = row as BlobRow
      for (; next && next.usedMs <= blob.usedMs; next = partials.shift()) yield next
      yield { ...blob, partialOf: undefined }
    }
    for (; next; next = partials.shift()) yield next
  }

  /** All that is here, half-fetched blobs included, the most first. */
  rows(order: BlobOrder, limit: number): Evictable[] {
    const rows = this.#sql.rows.all({ order, limit }) as (BlobRow & { partialOf: string | null })[]
    return rows.map(({ partialOf, ...row }) => ({ ...row, partialOf: partialOf ?? undefined }))
  }

  /** Blobs that are kept for a reason, whether they are here or not. */
  pinned(reason: string): Digest[] {
    return [...digestsOf(this.#sql.pinned.all(reason))]
  }

  /** Those of them that are not here. */
  absent(reason: string): Digest[] {
    return [...digestsOf(this.#sql.absent.all(reason))]
  }

  /** In a transaction, if there is one: takes a reason away from all blobs, and leaves them here. */
  unpinAll(reason: string): void {
    this.#sql.unpinAll.all(reason)
  }

  /** A half-fetched blob; its size is that of the whole, for which there is room. */
  partial(digest: Digest): PartialRow | undefined {
    return this.#sql.partial.get(digest) as PartialRow | undefined
  }

  putPartial({ digest, sizeBytes, network }: PartialRow, usedMs: number): void {
    this.#sql.putPartial.run(digest, sizeBytes, usedMs, network)
  }

  dropPartial(digest: Digest): void {
    this.#sql.dropPartial.run(digest)
  }

  partials(): PartialRow[] {
    return this.#sql.allPartials.all() as PartialRow[]
  }

  partialBytes(): number {
    return (this.#sql.partialBytes.get() as { bytes: number }).bytes
  }
}

function networksIn(rows: unknown[]): string[] {
  return (rows as { network: string }[]).map(({ network }) => network)
}

function digestsOf(rows: unknown[]): Set<Digest> {
  return new Set((rows as { digest: string }[]).map(({ digest }) => digest))
}
