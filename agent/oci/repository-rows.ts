/**
 * What the state database knows of repositories: which blobs and manifests are in each, what manifests refer to, which tags there are.
 * Rows only, without a word on whether the bytes are here: that is the blob directory's.
 *
 * Bytes go by their SHA-256 in hex, as everywhere in the agent; `digest` is what a client called them, which may be a SHA-512.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate } from '../state/database.ts'
import { hexOf, type OciDigest, ofSha256, type RepositoryPath, type Tag } from './names.ts'
import type { Descriptor } from './repositories.ts'

const SCHEMA = [
  `
  CREATE TABLE oci_repositories (
    id INTEGER PRIMARY KEY, space TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (space, path)
  ) STRICT;
  CREATE TABLE oci_digests (digest TEXT PRIMARY KEY, blob TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE oci_blobs (
    repository INTEGER NOT NULL REFERENCES oci_repositories (id) ON DELETE CASCADE, blob TEXT NOT NULL,
    fresh_ms INTEGER, PRIMARY KEY (repository, blob)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX oci_blobs_blob ON oci_blobs (blob);
  CREATE INDEX oci_blobs_fresh ON oci_blobs (fresh_ms) WHERE fresh_ms IS NOT NULL;
  CREATE TABLE oci_manifests (
    repository INTEGER NOT NULL REFERENCES oci_repositories (id) ON DELETE CASCADE, blob TEXT NOT NULL,
    digest TEXT NOT NULL, size_bytes INTEGER NOT NULL, media_type TEXT NOT NULL, artifact_type TEXT, annotations TEXT,
    subject TEXT, depth INTEGER NOT NULL, kept INTEGER NOT NULL DEFAULT 0, fresh_ms INTEGER, PRIMARY KEY (repository, blob)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX oci_manifests_subject ON oci_manifests (repository, subject) WHERE subject IS NOT NULL;
  CREATE INDEX oci_manifests_blob ON oci_manifests (blob);
  CREATE INDEX oci_manifests_fresh ON oci_manifests (fresh_ms) WHERE fresh_ms IS NOT NULL;
  CREATE TABLE oci_references (
    repository INTEGER NOT NULL, parent TEXT NOT NULL, child TEXT NOT NULL, is_manifest INTEGER NOT NULL,
    PRIMARY KEY (repository, parent, child),
    FOREIGN KEY (repository, parent) REFERENCES oci_manifests (repository, blob) ON DELETE CASCADE
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE oci_tags (
    repository INTEGER NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (repository, tag),
    FOREIGN KEY (repository, blob) REFERENCES oci_manifests (repository, blob) ON DELETE CASCADE
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX oci_tags_blob ON oci_tags (repository, blob);
  `,
]

export type ManifestRow = {
  blob: Digest
  digest: OciDigest
  sizeBytes: number
  mediaType: string
  artifactType: string | undefined
  annotations: Readonly<Record<string, string>> | undefined
  subject: OciDigest | undefined
  /** How many levels of indexes are in it: 0 for an image. */
  depth: number
  /** A tag leads to it. */
  isKept: boolean
}
export type NewManifest = Omit<ManifestRow, 'isKept'> & {
  references: readonly { blob: Digest; isManifest: boolean }[]
  /** Since when it is kept for being new. */
  freshMs: number | undefined
}
/** Something that is kept for being new. */
export type FreshRow = { space: string; path: RepositoryPath; repository: number; blob: Digest }

type RawManifest = Omit<ManifestRow, 'isKept' | 'artifactType' | 'annotations' | 'subject'> & {
  artifactType: string | null
  annotations: string | null
  subject: OciDigest | null
  kept: number
}

const MANIFEST = `m.blob, m.digest, m.size_bytes AS sizeBytes, m.media_type AS mediaType, m.artifact_type AS artifactType,
  m.annotations, m.subject, m.depth, m.kept`

/** What is reached from some manifests: what an index names, and who has one of them as his subject. */
const reached = (start: string) => `
  WITH RECURSIVE reached (blob) AS (
    ${start}
    UNION
    SELECT r.child FROM reached JOIN oci_references AS r ON r.repository = :repository AND r.parent = reached.blob
      WHERE r.is_manifest = 1
    UNION
    SELECT m.blob FROM reached
      JOIN oci_manifests AS s ON s.repository = :repository AND s.blob = reached.blob
      JOIN oci_manifests AS m ON m.repository = :repository AND m.subject IN ('sha256:' || s.blob, s.digest)
  ) SELECT m.blob, m.kept FROM reached JOIN oci_manifests AS m ON m.repository = :repository AND m.blob = reached.blob`

export class RepositoryRows {
  readonly #sql

  constructor(db: Database) {
    migrate(db, 'oci', SCHEMA)
    this.#sql = {
      find: db.prepare('SELECT id FROM oci_repositories WHERE space = ? AND path = ?'),
      make: db.prepare('INSERT INTO oci_repositories (space, path) VALUES (?, ?) ON CONFLICT DO NOTHING'),
      inSpace: db.prepare('SELECT id, path FROM oci_repositories WHERE space = ? ORDER BY path'),
      blobsIn: db.prepare(`SELECT b.blob FROM oci_blobs AS b JOIN oci_repositories AS r ON r.id = b.repository
          WHERE r.space = :space
        UNION SELECT m.blob FROM oci_manifests AS m JOIN oci_repositories AS r ON r.id = m.repository
          WHERE r.space = :space`),
      forget: db.prepare('DELETE FROM oci_repositories WHERE space = ?'),
      named: db.prepare('SELECT blob FROM oci_digests WHERE digest = ?'),
      name: db.prepare('INSERT INTO oci_digests VALUES (?, ?) ON CONFLICT DO UPDATE SET blob = excluded.blob'),
      otherName: db.prepare('SELECT digest FROM oci_digests WHERE blob = ?'),
      hasBlob: db.prepare('SELECT 1 FROM oci_blobs WHERE repository = ? AND blob = ?'),
      putBlob: db.prepare(`INSERT INTO oci_blobs VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET fresh_ms = excluded.fresh_ms`),
      dropBlob: db.prepare('DELETE FROM oci_blobs WHERE repository = ? AND blob = ?'),
      settleBlob: db.prepare('UPDATE oci_blobs SET fresh_ms = NULL WHERE repository = ? AND blob = ?'),
      blobInSpace: db.prepare(`SELECT 1 FROM oci_blobs AS b JOIN oci_repositories AS r ON r.id = b.repository
        WHERE b.blob = ? AND r.space = ?`),
      anywhere: db.prepare(`SELECT 1 FROM oci_blobs WHERE blob = :blob
        UNION ALL SELECT 1 FROM oci_manifests WHERE blob = :blob LIMIT 1`),
      freshBlobs: db.prepare(`SELECT r.space, r.path, r.id AS repository, f.blob FROM oci_blobs AS f
        JOIN oci_repositories AS r ON r.id = f.repository WHERE f.fresh_ms < ?`),
      freshManifests: db.prepare(`SELECT r.space, r.path, r.id AS repository, f.blob FROM oci_manifests AS f
        JOIN oci_repositories AS r ON r.id = f.repository WHERE f.fresh_ms < ?`),
      manifest: db.prepare(`SELECT ${MANIFEST} FROM oci_manifests AS m WHERE m.repository = ? AND m.blob = ?`),
      putManifest: db.prepare(`INSERT INTO oci_manifests
        (repository, blob, digest, size_bytes, media_type, artifact_type, annotations, subject, depth, fresh_ms)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET digest = excluded.digest, media_type = excluded.media_type,
          artifact_type = excluded.artifact_type, annotations = excluded.annotations, subject = excluded.subject,
          depth = excluded.depth, fresh_ms = excluded.fresh_ms`),
      dropManifest: db.prepare('DELETE FROM oci_manifests WHERE repository = ? AND blob = ?'),
      settleManifest: db.prepare('UPDATE oci_manifests SET fresh_ms = NULL WHERE repository = ? AND blob = ?'),
      setKept: db.prepare('UPDATE oci_manifests SET kept = ? WHERE repository = ? AND blob = ?'),
      putReference: db.prepare('INSERT OR IGNORE INTO oci_references VALUES (?, ?, ?, ?)'),
      references: db.prepare(
        'SELECT child AS blob, is_manifest AS isManifest FROM oci_references WHERE repository = ? AND parent = ?',
      ),
      reachedFrom: db.prepare(reached('SELECT :blob')),
      reachedFromTags: db.prepare(reached('SELECT blob FROM oci_tags WHERE repository = :repository')),
      kept: db.prepare('SELECT blob FROM oci_manifests WHERE repository = ? AND kept = 1'),
      tag: db.prepare('SELECT digest, blob FROM oci_tags WHERE repository = ? AND tag = ?'),
      putTag: db.prepare(`INSERT INTO oci_tags VALUES (?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET digest = excluded.digest, blob = excluded.blob`),
      dropTag: db.prepare('DELETE FROM oci_tags WHERE repository = ? AND tag = ?'),
      tags: db.prepare('SELECT tag FROM oci_tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?'),
      tagsOf: db.prepare('SELECT tag FROM oci_tags WHERE repository = ? AND blob = ? ORDER BY tag'),
      referrers: db.prepare(`SELECT ${MANIFEST} FROM oci_manifests AS m WHERE m.repository = :repository
        AND m.subject IN (:digest, :sha256, :sha512) AND m.digest > :last
        AND (:artifactType IS NULL OR coalesce(m.artifact_type, '') = :artifactType) ORDER BY m.digest`),
    }
  }

  find(space: string, path: RepositoryPath): number | undefined {
    return (this.#sql.find.get(space, path) as { id: number } | undefined)?.id
  }

  findOrMake(space: string, path: RepositoryPath): number {
    this.#sql.make.run(space, path)
    return this.find(space, path) as number
  }

  inSpace(space: string): { id: number; path: RepositoryPath }[] {
    return this.#sql.inSpace.all(space) as { id: number; path: RepositoryPath }[]
  }

  /** All that its repositories have, manifests included. */
  blobsIn(space: string): Digest[] {
    return (this.#sql.blobsIn.all({ space }) as { blob: Digest }[]).map(({ blob }) => blob)
  }

  forgetSpace(space: string): void {
    this.#sql.forget.run(space)
  }

  /** The bytes that a client means; undefined for a SHA-512 that nobody has seen the bytes of. */
  blobNamed(digest: OciDigest): Digest | undefined {
    if (digest.startsWith('sha256:')) return hexOf(digest)
    return (this.#sql.named.get(digest) as { blob: Digest } | undefined)?.blob
  }

  /** The bytes have this SHA-512: it stays true whatever becomes of them here. */
  name(digest: OciDigest, blob: Digest): void {
    if (!digest.startsWith('sha256:')) this.#sql.name.run(digest, blob)
  }

  hasBlob(repository: number, blob: Digest): boolean {
    return this.#sql.hasBlob.get(repository, blob) !== undefined
  }

  isBlobInSpace(space: string, blob: Digest): boolean {
    return this.#sql.blobInSpace.get(blob, space) !== undefined
  }

  /** Whether any repository has it. */
  isAnywhere(blob: Digest): boolean {
    return this.#sql.anywhere.get({ blob }) !== undefined
  }

  putBlob(repository: number, blob: Digest, freshMs: number | undefined): void {
    this.#sql.putBlob.run(repository, blob, freshMs ?? null)
  }

  dropBlob(repository: number, blob: Digest): void {
    this.#sql.dropBlob.run(repository, blob)
  }

  /** It is no longer kept for being new. */
  settle(repository: number, blob: Digest): void {
    this.#sql.settleBlob.run(repository, blob)
    this.#sql.settleManifest.run(repository, blob)
  }

  /** What is kept for being new since before then. */
  freshBefore(ms: number): FreshRow[] {
    return [...this.#sql.freshBlobs.all(ms), ...this.#sql.freshManifests.all(ms)] as FreshRow[]
  }

  manifest(repository: number, blob: Digest): ManifestRow | undefined {
    const row = this.#sql.manifest.get(repository, blob) as RawManifest | undefined
    return row && manifestOf(row)
  }

  putManifest(repository: number, row: NewManifest): void {
    const { blob, digest, sizeBytes, mediaType, artifactType = null, annotations, subject = null, depth, freshMs } = row
    const noted = annotations === undefined ? null : JSON.stringify(annotations)
    const values = [blob, digest, sizeBytes, mediaType, artifactType, noted, subject, depth, freshMs ?? null] as const
    this.#sql.putManifest.run(repository, ...values)
    for (const one of row.references) this.#sql.putReference.run(repository, blob, one.blob, Number(one.isManifest))
  }

  /** Its tags go with it. */
  dropManifest(repository: number, blob: Digest): void {
    this.#sql.dropManifest.run(repository, blob)
  }

  setKept(repository: number, blob: Digest, isKept: boolean): void {
    this.#sql.setKept.run(Number(isKept), repository, blob)
  }

  /** What a manifest names. */
  references(repository: number, blob: Digest): { blob: Digest; isManifest: boolean }[] {
    const rows = this.#sql.references.all(repository, blob) as { blob: Digest; isManifest: number }[]
    return rows.map((row) => ({ blob: row.blob, isManifest: row.isManifest === 1 }))
  }

  /** Manifests that are kept when this one is, itself included; `isKept` of each as it is now. */
  reachedFrom(repository: number, blob: Digest): { blob: Digest; isKept: boolean }[] {
    return reachedOf(this.#sql.reachedFrom.all({ repository, blob }))
  }

  /** All that tags of the repository lead to. */
  reachedFromTags(repository: number): { blob: Digest; isKept: boolean }[] {
    return reachedOf(this.#sql.reachedFromTags.all({ repository }))
  }

  kept(repository: number): Digest[] {
    return (this.#sql.kept.all(repository) as { blob: Digest }[]).map(({ blob }) => blob)
  }

  tag(repository: number, tag: Tag): { digest: OciDigest; blob: Digest } | undefined {
    return this.#sql.tag.get(repository, tag) as { digest: OciDigest; blob: Digest } | undefined
  }

  putTag(repository: number, tag: Tag, digest: OciDigest, blob: Digest): void {
    this.#sql.putTag.run(repository, tag, digest, blob)
  }

  dropTag(repository: number, tag: Tag): boolean {
    return this.#sql.dropTag.run(repository, tag).changes > 0
  }

  /** In ASCII order, from after `last` on. */
  tags(repository: number, last: string, limit: number): Tag[] {
    return (this.#sql.tags.all(repository, last, limit) as { tag: Tag }[]).map(({ tag }) => tag)
  }

  tagsOf(repository: number, blob: Digest): Tag[] {
    return (this.#sql.tagsOf.all(repository, blob) as { tag: Tag }[]).map(({ tag }) => tag)
  }

  /** By digest, from after `last` on. */
  *referrers(
    repository: number,
    digest: OciDigest,
    artifactType: string | undefined,
    last: string,
  ): Iterable<Descriptor> {
    const blob = this.blobNamed(digest)
    const other = this.#sql.otherName.get(blob ?? '') as { digest: OciDigest } | undefined
    const names = { digest, sha256: blob ? ofSha256(blob) : null, sha512: other?.digest ?? null }
    const query = { repository, ...names, artifactType: artifactType ?? null, last }
    for (const row of this.#sql.referrers.iterate(query)) yield descriptorOf(manifestOf(row as RawManifest))
  }
}

/** As an index would name it. */
function descriptorOf({ mediaType, digest, sizeBytes, artifactType, annotations }: ManifestRow): Descriptor {
  return {
    mediaType,
    digest,
    size: sizeBytes,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  }
}

function manifestOf({ artifactType, annotations, subject, kept, ...row }: RawManifest): ManifestRow {
  return {
    ...row,
    artifactType: artifactType ?? undefined,
    annotations: annotations === null ? undefined : (JSON.parse(annotations) as Record<string, string>),
    subject: subject ?? undefined,
    isKept: kept === 1,
  }
}

function reachedOf(rows: unknown[]): { blob: Digest; isKept: boolean }[] {
  return (rows as { blob: Digest; kept: number }[]).map(({ blob, kept }) => ({ blob, isKept: kept === 1 }))
}
