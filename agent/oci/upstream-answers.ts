/** What registries upstream answered about tags, the last of each: asked again when it is no longer fresh, and served when they don't answer. */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate } from '../state/database.ts'
import type { OciDigest, RepositoryPath, Tag } from './names.ts'

/** Tags that somebody of this machine pulled; the longest unasked is forgotten. */
const ANSWERS_MAX = 10_000

const SCHEMA = [
  `
  CREATE TABLE oci_answers (
    prefix TEXT NOT NULL, path TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, blob TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, media_type TEXT NOT NULL, checked_ms INTEGER NOT NULL, private INTEGER NOT NULL,
    PRIMARY KEY (prefix, path, tag)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX oci_answers_checked ON oci_answers (checked_ms);
  `,
]

/** `isPrivate`: the registry gave it for credentials only. */
export type Answer = {
  digest: OciDigest
  blob: Digest
  sizeBytes: number
  mediaType: string
  checkedMs: number
  isPrivate: boolean
}

export class UpstreamAnswers {
  readonly #sql

  constructor(db: Database) {
    migrate(db, 'oci-answers', SCHEMA)
    this.#sql = {
      get: db.prepare(`SELECT digest, blob, size_bytes AS sizeBytes, media_type AS mediaType, checked_ms AS checkedMs, private
        FROM oci_answers WHERE prefix = ? AND path = ? AND tag = ?`),
      put: db.prepare(`INSERT INTO oci_answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        digest = excluded.digest, blob = excluded.blob, size_bytes = excluded.size_bytes, media_type = excluded.media_type,
        checked_ms = excluded.checked_ms, private = excluded.private`),
      trim: db.prepare(
        'DELETE FROM oci_answers WHERE checked_ms < (SELECT checked_ms FROM oci_answers ORDER BY checked_ms DESC LIMIT 1 OFFSET ?)',
      ),
      drop: db.prepare('DELETE FROM oci_answers WHERE prefix = ? AND path = ? AND tag = ?'),
      tags: db.prepare('SELECT tag FROM oci_answers WHERE prefix = ? AND path = ? ORDER BY tag'),
      all: db.prepare('SELECT path, tag FROM oci_answers WHERE prefix = ? ORDER BY path, tag'),
    }
  }

  get(prefix: string, path: RepositoryPath, tag: Tag): Answer | undefined {
    const row = this.#sql.get.get(prefix, path, tag) as (Omit<Answer, 'isPrivate'> & { private: number }) | undefined
    if (row === undefined) return undefined
    const { private: flag, ...answer } = row
    return { ...answer, isPrivate: flag === 1 }
  }

  put(prefix: string, path: RepositoryPath, tag: Tag, answer: Answer): void {
    const { digest, blob, sizeBytes, mediaType, checkedMs, isPrivate } = answer
    this.#sql.put.run(prefix, path, tag, digest, blob, sizeBytes, mediaType, checkedMs, Number(isPrivate))
    this.#sql.trim.run(ANSWERS_MAX)
  }

  drop(prefix: string, path: RepositoryPath, tag: Tag): void {
    this.#sql.drop.run(prefix, path, tag)
  }

  tags(prefix: string, path: RepositoryPath): Tag[] {
    return (this.#sql.tags.all(prefix, path) as { tag: Tag }[]).map(({ tag }) => tag)
  }

  /** Everything that was asked of a registry. */
  of(prefix: string): { path: RepositoryPath; tag: Tag }[] {
    return this.#sql.all.all(prefix) as { path: RepositoryPath; tag: Tag }[]
  }
}
