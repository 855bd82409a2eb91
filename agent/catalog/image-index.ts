/**
 * The tables by which images are found: by repository and tag, by digest, by what they belong to, and by words (SQLite's FTS5); and what was said of
 * each tag before. They change in the transaction of the record that they speak of.
 *
 * What counts of several statements about one tag is not decided here: that depends on a policy, and on the clock.
 */
import type { StatementSync } from 'node:sqlite'
import type { OciTagBody } from '../../protocols/oci-tag/oci-tag.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { queryOf } from './artifact-index.ts'

/** Statements about one tag, or of one digest, that are looked at. */
const ROWS_MAX = 1_000
/** Of one repository. */
const REPOSITORY_ROWS_MAX = 100_000
/** Moves of all tags that are remembered, the newest: a publisher can make as many as it likes. */
const HISTORY_MAX = 20_000
/** How much a word found in the repository, tag, labels, platforms or publisher counts. */
const WEIGHTS = '10, 6, 3, 1, 2'

const STEPS = [
  `CREATE TABLE image_tags (
     image INTEGER PRIMARY KEY,
     publisher BLOB NOT NULL,
     name TEXT NOT NULL,
     repository TEXT NOT NULL,
     tag TEXT,
     digest TEXT,
     blob TEXT,
     subject TEXT,
     moved INTEGER NOT NULL,
     expires INTEGER NOT NULL,
     UNIQUE (publisher, name)
   ) STRICT;
   CREATE INDEX image_tags_by_repository ON image_tags (repository, tag);
   CREATE INDEX image_tags_by_digest ON image_tags (digest);
   CREATE INDEX image_tags_by_blob ON image_tags (blob);
   CREATE INDEX image_tags_by_subject ON image_tags (subject);
   CREATE VIRTUAL TABLE image_words USING fts5 (
     repository, tag, labels, platforms, publisher, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
   );
   CREATE TABLE image_history (
     nth INTEGER PRIMARY KEY AUTOINCREMENT,
     repository TEXT NOT NULL,
     tag TEXT NOT NULL,
     publisher BLOB NOT NULL,
     moved INTEGER NOT NULL,
     digest TEXT,
     UNIQUE (repository, tag, publisher, moved)
   ) STRICT;`,
]

/** Where an image's record is. */
export type ImageKey = { publisher: Uint8Array; name: string }
/** `digest` and `blob` are null for a tag that is gone, `tag` for a manifest without one. */
export type ImageRow = ImageKey & {
  repository: string
  tag: string | null
  digest: string | null
  blob: string | null
  subject: string | null
  moved: number
  expires: number
}
/** A move of a tag that was heard of; `digest` is null when it was deleted. */
export type HistoryRow = { publisher: Uint8Array; moved: number; digest: string | null }

export class ImageIndex {
  readonly #db: Database
  readonly #prepared = new Map<string, StatementSync>()

  constructor(db: Database) {
    this.#db = db
    migrate(db, 'images', STEPS)
    // Records with a short lease are not kept over a restart.
    transaction(db, () => {
      const gone = db
        .prepare(
          `SELECT publisher, name FROM image_tags a WHERE NOT EXISTS
             (SELECT 1 FROM main.records r WHERE r.publisher = a.publisher AND r.kind = 'oci-tag' AND r.name = a.name)`,
        )
        .all() as ImageKey[]
      for (const key of gone) this.delete(key)
    })
  }

  /** Puts a statement in place of what its publisher had under this name; `repository` is what it is called in this network. */
  set(key: ImageKey & { expires: number; repository: string }, body: OciTagBody, publisherWords: string): void {
    const { publisher, name, repository, expires } = key
    this.delete({ publisher, name })
    const { tag = null, moved } = body
    const isGone = body.gone === true
    const digest = isGone ? null : body.digest
    const blob = isGone ? null : Buffer.from(body.blob).toString('hex')
    const subject = isGone ? null : (body.subject ?? null)
    const { lastInsertRowid } = this.#statement(
      'INSERT INTO image_tags (publisher, name, repository, tag, digest, blob, subject, moved, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)',
    ).run(publisher, name, repository, tag, digest, blob, subject, moved, expires)
    if (tag !== null) this.#remember({ repository, tag, publisher, moved, digest })
    if (isGone) return
    const labels = Object.entries(body.labels).flat().join(' ')
    this.#statement(
      'INSERT INTO image_words (rowid, repository, tag, labels, platforms, publisher) VALUES (?, ?, ?, ?, ?, ?)',
    ).run(lastInsertRowid, repository, tag ?? '', labels, body.platforms.join(' '), publisherWords)
  }

  delete({ publisher, name }: ImageKey): void {
    const row = this.#statement('DELETE FROM image_tags WHERE publisher = ? AND name = ? RETURNING image').get(
      publisher,
      name,
    ) as { image: number } | undefined
    if (row) this.#statement('DELETE FROM image_words WHERE rowid = ?').run(row.image)
  }

  tagged(repository: string, tag: string, now: number): ImageRow[] {
    return this.#rows('repository = $repository AND tag = $tag', { repository, tag, now }, ROWS_MAX)
  }

  ofRepository(repository: string, now: number): ImageRow[] {
    return this.#rows('repository = $repository', { repository, now }, REPOSITORY_ROWS_MAX)
  }

  withDigest(digest: string, now: number): ImageRow[] {
    return this.#rows('digest = $digest', { digest, now }, ROWS_MAX)
  }

  withSubject(repository: string, subject: string, now: number): ImageRow[] {
    return this.#rows('subject = $subject AND repository = $repository', { repository, subject, now }, ROWS_MAX)
  }

  ofPublisher(publisher: Uint8Array, now: number): ImageRow[] {
    return this.#rows('publisher = $publisher', { publisher, now }, REPOSITORY_ROWS_MAX)
  }

  /** What is found by words, best first; all, the last moved first, when nothing was typed. `after` goes on from there. */
  search(typed: string, { limit, after, now }: { limit: number; after: number; now: number }): ImageRow[] {
    const isEmpty = typed.trim() === ''
    const query = queryOf(typed)
    if (!isEmpty && query === '') return []
    const columns = 'publisher, name, repository, tag, digest, blob, subject, moved, expires'
    const from = isEmpty
      ? `SELECT ${columns}, 0 AS rank FROM image_tags WHERE $query = '' AND digest IS NOT NULL`
      : `SELECT t.publisher, t.name, t.repository, t.tag, t.digest, t.blob, t.subject, t.moved, t.expires, bm25(image_words, ${WEIGHTS}) AS rank
           FROM image_words JOIN image_tags t ON t.image = image_words.rowid WHERE image_words MATCH $query`
    const sql = `SELECT ${columns} FROM (${from}) WHERE expires > $now AND tag IS NOT NULL
      ORDER BY rank, moved DESC, repository, tag LIMIT $limit OFFSET $after`
    return this.#statement(sql).all({ query, now, limit, after }) as ImageRow[]
  }

  /** The newest first. */
  history(repository: string, tag: string, limit: number): HistoryRow[] {
    return this.#statement(
      'SELECT publisher, moved, digest FROM image_history WHERE repository = ? AND tag = ? ORDER BY moved DESC, publisher DESC LIMIT ?',
    ).all(repository, tag, limit) as HistoryRow[]
  }

  #remember({ repository, tag, publisher, moved, digest }: HistoryRow & { repository: string; tag: string }): void {
    const { changes, lastInsertRowid } = this.#statement(
      'INSERT OR IGNORE INTO image_history (repository, tag, publisher, moved, digest) VALUES (?, ?, ?, ?, ?)',
    ).run(repository, tag, publisher, moved, digest)
    if (changes === 0) return
    this.#statement('DELETE FROM image_history WHERE nth <= ?').run(Number(lastInsertRowid) - HISTORY_MAX)
  }

  #rows(where: string, values: Record<string, string | number | Uint8Array>, limit: number): ImageRow[] {
    const sql = `SELECT publisher, name, repository, tag, digest, blob, subject, moved, expires FROM image_tags
      WHERE ${where} AND expires > $now ORDER BY moved DESC LIMIT ${limit}`
    return this.#statement(sql).all(values) as ImageRow[]
  }

  #statement(sql: string): StatementSync {
    const statement = this.#prepared.get(sql) ?? this.#db.prepare(sql)
    this.#prepared.set(sql, statement)
    return statement
  }
}
