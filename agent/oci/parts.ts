/**
 * What this node read in manifests of others: which blobs are parts of a repository, and how large they are, before they are here; and what was fetched with
 * credentials. In which repositories a blob is, and so by which grants it may be given to whom, is in the rows of repository-rows.ts.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import type { OciDigest, RepositoryPath } from './names.ts'
import type { RepositoryName } from './repositories.ts'

/** Parts that are known, the newest; one that is forgotten is known again when its manifest is read. */
const PARTS_MAX = 200_000

const SCHEMA = [
  `
  CREATE TABLE oci_parts (
    nth INTEGER PRIMARY KEY AUTOINCREMENT, space TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL,
    blob TEXT, size_bytes INTEGER NOT NULL, UNIQUE (space, path, digest)
  ) STRICT;
  CREATE TABLE oci_private (
    space TEXT NOT NULL, path TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (space, path, blob)
  ) STRICT, WITHOUT ROWID;
  `,
]

/** `blob` is undefined for a SHA-512 of which nobody said what blob it is. */
export type Part = { digest: OciDigest; blob: Digest | undefined; sizeBytes: number }
type Place = Pick<RepositoryName, 'space' | 'path'>

export class Parts {
  readonly #db: Database
  readonly #sql

  /** After LocalRepositories, whose tables it reads. */
  constructor(db: Database) {
    migrate(db, 'oci-parts', SCHEMA)
    this.#db = db
    this.#sql = {
      put: db.prepare(`INSERT INTO oci_parts (space, path, digest, blob, size_bytes) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET blob = coalesce(excluded.blob, blob), size_bytes = excluded.size_bytes`),
      trim: db.prepare('DELETE FROM oci_parts WHERE nth <= (SELECT max(nth) FROM oci_parts) - ?'),
      find: db.prepare(
        'SELECT digest, blob, size_bytes AS sizeBytes FROM oci_parts WHERE space = ? AND path = ? AND digest = ?',
      ),
      hide: db.prepare('INSERT OR IGNORE INTO oci_private VALUES (?, ?, ?)'),
      show: db.prepare('DELETE FROM oci_private WHERE space = ? AND path = ? AND blob = ?'),
      isPrivate: db.prepare('SELECT 1 FROM oci_private WHERE space = ? AND path = ? LIMIT 1'),
      forget: db.prepare('DELETE FROM oci_parts WHERE space = ?'),
      places: db.prepare(`
        SELECT r.space, r.path, p.blob IS NOT NULL AS isPrivate FROM (
          SELECT repository FROM oci_blobs WHERE blob = :blob UNION SELECT repository FROM oci_manifests WHERE blob = :blob
        ) AS b JOIN oci_repositories AS r ON r.id = b.repository
        LEFT JOIN oci_private AS p ON p.space = r.space AND p.path = r.path AND p.blob = :blob`),
    }
  }

  note({ space, path }: Place, parts: readonly Part[]): void {
    transaction(this.#db, () => {
      for (const { digest, blob, sizeBytes } of parts) this.#sql.put.run(space, path, digest, blob ?? null, sizeBytes)
      this.#sql.trim.run(PARTS_MAX)
    })
  }

  find({ space, path }: Place, digest: OciDigest): Part | undefined {
    const row = this.#sql.find.get(space, path, digest) as (Omit<Part, 'blob'> & { blob: Digest | null }) | undefined
    return row && { ...row, blob: row.blob ?? undefined }
  }

  /** Whether what was fetched of a blob for a repository was given for credentials only. */
  setPrivate({ space, path }: Place, blob: Digest, isPrivate: boolean): void {
    const change = isPrivate ? this.#sql.hide : this.#sql.show
    change.run(space, path, blob)
  }

  /** Whether anything of a repository was given for credentials only. */
  hasPrivate({ space, path }: Place): boolean {
    return this.#sql.isPrivate.get(space, path) !== undefined
  }

  /** The repositories that a blob is in on this node. */
  placesOf(blob: Digest): { space: string; path: RepositoryPath; isPrivate: boolean }[] {
    const rows = this.#sql.places.all({ blob }) as { space: string; path: RepositoryPath; isPrivate: number }[]
    return rows.map((row) => ({ ...row, isPrivate: row.isPrivate === 1 }))
  }

  forgetSpace(space: string): void {
    this.#sql.forget.run(space)
  }
}
