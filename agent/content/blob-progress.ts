/**
 * Which pieces of half-fetched blobs are on the disk for sure, so that a fetch that goes on after a restart need not read them again. A
 * row is written after the pieces that it names were synced, and goes with the half-fetched blob. It is believed, not trusted: the hash
 * of the whole finds out.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate } from '../state/database.ts'

const SCHEMA = [
  `
  CREATE TABLE content_progress (
    digest TEXT PRIMARY KEY REFERENCES content_partials (digest) ON DELETE CASCADE,
    network TEXT NOT NULL, root BLOB NOT NULL, pieces BLOB NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
]

/** What is there of a blob, by the list with that root, fetched for that network. */
export type Progress = { network: string; root: Uint8Array; pieces: Uint8Array }

export class BlobProgress {
  readonly #sql

  /** After the tables of BlobIndex. */
  constructor(db: Database) {
    migrate(db, 'content-progress', SCHEMA)
    this.#sql = {
      get: db.prepare('SELECT network, root, pieces FROM content_progress WHERE digest = ?'),
      put: db.prepare(`INSERT INTO content_progress SELECT digest, network, ?, ? FROM content_partials
        WHERE digest = ? AND network = ? ON CONFLICT DO UPDATE SET
          network = excluded.network, root = excluded.root, pieces = excluded.pieces`),
      drop: db.prepare('DELETE FROM content_progress WHERE digest = ?'),
    }
  }

  get(digest: Digest): Progress | undefined {
    return this.#sql.get.get(digest) as Progress | undefined
  }

  /** Nothing, where the blob is not half fetched for that network any more. */
  put(digest: Digest, { network, root, pieces }: Progress): void {
    this.#sql.put.run(root, pieces, digest, network)
  }

  drop(digest: Digest): void {
    this.#sql.drop.run(digest)
  }
}
