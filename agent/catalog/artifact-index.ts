/**
 * The tables by which artifacts are found: by name, by CID, and by words (SQLite's FTS5). They change in the transaction of the record
 * that they speak of, and hold only where it is.
 *
 * What a person types is never FTS syntax: each word is quoted, all must occur, and the last may be the beginning of one.
 */
import type { StatementSync } from 'node:sqlite'
import type { ArtifactBody } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'

/** Of what is typed. */
const WORDS_MAX = 16
const QUERY_LENGTH_MAX = 500
/** Publishers of one name or CID that are looked at. */
const ROWS_MAX = 1_000
/** How much a word found in the name, description, type or publisher counts. */
const WEIGHTS = '10, 3, 1, 2'

const STEPS = [
  `CREATE TABLE artifacts (
     artifact INTEGER PRIMARY KEY,
     publisher BLOB NOT NULL,
     name TEXT NOT NULL,
     cid TEXT NOT NULL,
     type TEXT NOT NULL,
     issued INTEGER NOT NULL,
     expires INTEGER NOT NULL,
     UNIQUE (publisher, name)
   ) STRICT;
   CREATE INDEX artifacts_by_name ON artifacts (name);
   CREATE INDEX artifacts_by_cid ON artifacts (cid);
   CREATE VIRTUAL TABLE artifact_words USING fts5 (
     name, description, type, publisher, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
   );`,
]

/** Where an artifact's record is. */
export type ArtifactKey = { publisher: Uint8Array; name: string }
export type ArtifactRow = ArtifactKey & { cid: string; issued: number; expires: number }

export type SearchOptions = { limit: number; now: number; preferred: Uint8Array }

/** Whether what a publisher shares is to be found. */
export type Welcomes = (publisher: Uint8Array) => boolean

export class ArtifactIndex {
  readonly #db: Database
  readonly #prepared = new Map<string, StatementSync>()
  readonly #welcomes: Welcomes | undefined
  /** What `welcomes` said during the query that runs. */
  readonly #said = new Map<string, boolean>()
  /** Of rows that are found: live, and of somebody welcome. */
  readonly #isFound: string

  constructor(db: Database, welcomes?: Welcomes) {
    this.#db = db
    this.#welcomes = welcomes
    migrate(db, 'artifacts', STEPS)
    this.#isFound = welcomes ? 'expires > $now AND welcomes(publisher)' : 'expires > $now'
    // Asked by SQLite for each row, so that limits and duplicates are counted among what is found.
    if (welcomes) db.function('welcomes', (publisher) => Number(this.#isWelcome(publisher as Uint8Array)))
    // Records with a short lease are not kept over a restart.
    transaction(db, () => {
      const gone = db
        .prepare(
          `SELECT publisher, name FROM artifacts a WHERE NOT EXISTS
             (SELECT 1 FROM main.records r WHERE r.publisher = a.publisher AND r.kind = 'artifact' AND r.name = a.name)`,
        )
        .all() as ArtifactKey[]
      for (const key of gone) this.delete(key)
    })
  }

  /** Puts an artifact in place of what its publisher had under this name. */
  set({ publisher, name, issued, expires }: ArtifactRow, body: ArtifactBody, publisherWords: string): void {
    this.delete({ publisher, name })
    const { lastInsertRowid } = this.#statement(
      'INSERT INTO artifacts (publisher, name, cid, type, issued, expires) VALUES (?, ?, ?, ?, ?, ?)',
    ).run(publisher, name, body.cid.toString(), body.type, issued, expires)
    this.#statement(
      'INSERT INTO artifact_words (rowid, name, description, type, publisher) VALUES (?, ?, ?, ?, ?)',
    ).run(lastInsertRowid, name, body.description, body.type, publisherWords)
  }

  delete({ publisher, name }: ArtifactKey): void {
    const row = this.#statement('DELETE FROM artifacts WHERE publisher = ? AND name = ? RETURNING artifact').get(
      publisher,
      name,
    ) as { artifact: number } | undefined
    if (row) this.#statement('DELETE FROM artifact_words WHERE rowid = ?').run(row.artifact)
  }

  /** The publisher is found by other words from now on. */
  rename(publisher: Uint8Array, publisherWords: string): void {
    this.#statement(
      'UPDATE artifact_words SET publisher = ? WHERE rowid IN (SELECT artifact FROM artifacts WHERE publisher = ?)',
    ).run(publisherWords, publisher)
  }

  ofPublisher(publisher: Uint8Array): ArtifactRow[] {
    return this.#rows('publisher = $publisher ORDER BY name', { publisher })
  }

  ofType(type: ArtifactBody['type']): ArtifactRow[] {
    return this.#rows('type = $type', { type })
  }

  named(name: string, now: number): ArtifactRow[] {
    return this.#found('name = $name', { name, now })
  }

  withCid(cid: string, now: number): ArtifactRow[] {
    return this.#found('cid = $cid', { cid, now })
  }

  /** How many are live: of one publisher, and of all. */
  counts(publisher: Uint8Array, now: number): { own: number; known: number } {
    this.#said.clear()
    const sql = `SELECT coalesce(sum(publisher = $publisher), 0) AS own, count(*) AS known FROM artifacts WHERE ${this.#isFound}`
    return this.#statement(sql).get({ publisher, now }) as { own: number; known: number }
  }

  /**
   * Best first; all, newest first, when nothing was typed. What is the same content under the same name comes once, by `preferred` if
   * it is one of its publishers.
   */
  search(typed: string, { limit, now, preferred }: SearchOptions): ArtifactRow[] {
    this.#said.clear()
    const isEmpty = typed.trim() === ''
    const query = queryOf(typed)
    if (!isEmpty && query === '') return []
    const columns = 'publisher, name, cid, issued, expires'
    const found = isEmpty
      ? `SELECT ${columns}, 0 AS rank FROM artifacts WHERE $query = ''`
      : `SELECT a.publisher, a.name, a.cid, a.issued, a.expires, bm25(artifact_words, ${WEIGHTS}) AS rank
           FROM artifact_words JOIN artifacts a ON a.artifact = artifact_words.rowid WHERE artifact_words MATCH $query`
    const sql = `
      SELECT ${columns} FROM (
        SELECT *, row_number() OVER (PARTITION BY name, cid ORDER BY publisher = $preferred DESC, rank, issued DESC) AS nth
          FROM (${found}) WHERE ${this.#isFound}
      ) WHERE nth = 1 ORDER BY name = $typed DESC, rank, issued DESC, name LIMIT $limit`
    return this.#statement(sql).all({ query, limit, now, preferred, typed: typed.trim() }) as ArtifactRow[]
  }

  #statement(sql: string): StatementSync {
    const statement = this.#prepared.get(sql) ?? this.#db.prepare(sql)
    this.#prepared.set(sql, statement)
    return statement
  }

  #found(where: string, values: Record<string, string | number>): ArtifactRow[] {
    this.#said.clear()
    return this.#rows(`${where} AND ${this.#isFound} ORDER BY issued DESC, publisher LIMIT ${ROWS_MAX}`, values)
  }

  #rows(where: string, values: Record<string, string | number | Uint8Array>): ArtifactRow[] {
    const sql = `SELECT publisher, name, cid, issued, expires FROM artifacts WHERE ${where}`
    return this.#statement(sql).all(values) as ArtifactRow[]
  }

  #isWelcome(publisher: Uint8Array): boolean {
    const name = Buffer.from(publisher).toString('latin1')
    const said = this.#said.get(name) ?? this.#welcomes?.(publisher) ?? true
    this.#said.set(name, said)
    return said
  }
}

/** What was typed as an FTS query; empty when it has no word. */
export function queryOf(typed: string): string {
  const words = typed
    .slice(0, QUERY_LENGTH_MAX)
    .split(/[\s\0]+/u)
    .filter((word) => /[\p{L}\p{N}]/u.test(word))
    .slice(0, WORDS_MAX)
  return words.map((word, nth) => `"${word.replaceAll('"', '""')}"${nth === words.length - 1 ? '*' : ''}`).join(' ')
}
