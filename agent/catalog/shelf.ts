/**
 * One table of records, and the statements on it. Rows are what it knows; which of two records wins, what fits and what is too old is
 * decided in records.ts. See shelves.ts for why there are two of them.
 */
import type { SQLInputValue } from 'node:sqlite'
import { WireError } from '../../protocols/error.ts'
import { parseRecord, type Rank, type SignedRecord } from '../../protocols/records/record.ts'
import type { Database } from '../state/database.ts'

/** DDL of the table `records` in the schema `main` or an attached one. */
export function shelfTables(schema: string): string {
  return `
    CREATE TABLE ${schema}.records (
      publisher BLOB NOT NULL,
      kind TEXT NOT NULL,
      name TEXT NOT NULL,
      seq INTEGER NOT NULL,
      id BLOB NOT NULL UNIQUE,
      expires INTEGER NOT NULL,
      deleted INTEGER NOT NULL,
      -- made by this state directory, not merely signed with its key
      mine INTEGER NOT NULL,
      size INTEGER NOT NULL,
      bytes BLOB NOT NULL,
      UNIQUE (publisher, kind, name)
    ) STRICT;
    CREATE INDEX ${schema}.records_by_rank ON records (publisher, seq, id, size, expires);
    CREATE INDEX ${schema}.records_by_expiry ON records (expires);
    CREATE INDEX ${schema}.records_by_kind ON records (kind);
  `
}

/** What names a record's key. */
export type Key = { publisher: Uint8Array; kind: string; name: string }
/** A row without its bytes. */
export type Row = Key & Rank & { expires: number; deleted: boolean; mine: boolean; size: number }

const ROW = 'publisher, kind, name, seq, id, expires, deleted, mine, size'

export class Shelf {
  readonly #statement: (sql: string) => Statement

  constructor(db: Database, schema: string) {
    const kept = new Map<string, Statement>()
    this.#statement = (sql) => {
      let statement = kept.get(sql)
      if (!statement) {
        statement = db.prepare(sql.replace('RECORDS', `${schema}.records`))
        kept.set(sql, statement)
      }
      return statement
    }
  }

  insert(record: SignedRecord, mine: boolean): void {
    const { publisher, kind, name, seq, id, expires, deleted, bytes } = record
    this.#statement(`INSERT INTO RECORDS (${ROW}, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`).run(
      publisher,
      kind,
      name,
      seq,
      id,
      expires,
      Number(deleted),
      Number(mine),
      bytes.byteLength,
      bytes,
    )
  }

  remove(id: Uint8Array): void {
    this.#statement('DELETE FROM RECORDS WHERE id = ?').run(id)
  }

  has(id: Uint8Array): boolean {
    return this.#statement('SELECT 1 FROM RECORDS WHERE id = ?').get(id) !== undefined
  }

  bytes(id: Uint8Array): Uint8Array | undefined {
    return (this.#statement('SELECT bytes FROM RECORDS WHERE id = ?').get(id) as { bytes: Uint8Array } | undefined)
      ?.bytes
  }

  at({ publisher, kind, name }: Key): Row | undefined {
    return this.#row(`SELECT ${ROW} FROM RECORDS WHERE publisher = ? AND kind = ? AND name = ?`, publisher, kind, name)
  }

  /** The record of this publisher with the lowest rank, but for one of the spared kind and name. */
  lowest(publisher: Uint8Array, spared = { kind: '', name: '' }): Row | undefined {
    const sql = `SELECT ${ROW} FROM RECORDS WHERE publisher = ? AND NOT (kind = ? AND name = ?) ORDER BY seq, id LIMIT 1`
    return this.#row(sql, publisher, spared.kind, spared.name)
  }

  /** A record of this publisher with this seq that is not `id`. */
  rival(publisher: Uint8Array, { seq, id }: Rank): Row | undefined {
    return this.#row(
      `SELECT ${ROW} FROM RECORDS WHERE publisher = ? AND seq = ? AND id <> ? LIMIT 1`,
      publisher,
      seq,
      id,
    )
  }

  /** What a publisher has above a rank. */
  above(publisher: Uint8Array, { seq, id }: Rank): { count: number; bytes: number } {
    return this.#statement(
      `SELECT count(*) AS count, coalesce(sum(size), 0) AS bytes FROM RECORDS WHERE publisher = ? AND (seq, id) > (?, ?)`,
    ).get(publisher, seq, id) as { count: number; bytes: number }
  }

  /** Ids of what has not expired, unsorted. */
  liveIds(publisher: Uint8Array, now: number): Uint8Array[] {
    const rows = this.#statement('SELECT id FROM RECORDS WHERE publisher = ? AND expires > ?').all(publisher, now)
    return rows.map((row) => (row as { id: Uint8Array }).id)
  }

  ofPublisher(publisher: Uint8Array): Row[] {
    return this.#rows(`SELECT ${ROW} FROM RECORDS WHERE publisher = ?`, publisher)
  }

  /** What is of no use any more. What was made here stays, since only its maker knows whether to renew it. */
  expired(now: number, limit: number): Row[] {
    const sql = `SELECT ${ROW} FROM RECORDS WHERE expires <= ? AND (mine = 0 OR deleted = 1) LIMIT ?`
    return this.#rows(sql, now, limit)
  }

  nextExpiry(): number | undefined {
    const sql = 'SELECT expires FROM RECORDS WHERE mine = 0 OR deleted = 1 ORDER BY expires LIMIT 1'
    return (this.#statement(sql).get() as { expires: number } | undefined)?.expires
  }

  totals(): { publisher: Uint8Array; count: number; bytes: number }[] {
    const sql = 'SELECT publisher, count(*) AS count, sum(size) AS bytes FROM RECORDS GROUP BY publisher'
    return this.#statement(sql).all() as { publisher: Uint8Array; count: number; bytes: number }[]
  }

  /** Records of a kind that are neither expired nor deletions. */
  list(kind: string, now: number): SignedRecord[] {
    return this.#records('SELECT bytes FROM RECORDS WHERE kind = ? AND expires > ? AND deleted = 0', kind, now)
  }

  /** Records of a kind that were made here, expired or not. */
  mine(kind: string): SignedRecord[] {
    return this.#records('SELECT bytes FROM RECORDS WHERE kind = ? AND mine = 1 AND deleted = 0', kind)
  }

  #row(sql: string, ...values: SQLInputValue[]): Row | undefined {
    const row = this.#statement(sql).get(...values)
    return row && toRow(row as RawRow)
  }

  #rows(sql: string, ...values: SQLInputValue[]): Row[] {
    return this.#statement(sql)
      .all(...values)
      .map((row) => toRow(row as RawRow))
  }

  #records(sql: string, ...values: SQLInputValue[]): SignedRecord[] {
    return this.#statement(sql)
      .all(...values)
      .flatMap((row) => readable((row as { bytes: Uint8Array }).bytes))
  }
}

type Statement = ReturnType<Database['prepare']>
type RawRow = Omit<Row, 'deleted' | 'mine'> & { deleted: number; mine: number }

function toRow(row: RawRow): Row {
  return { ...row, deleted: row.deleted === 1, mine: row.mine === 1 }
}

/** What an older agent stored may break a rule that was added since: then it is as if it were not there, until it expires. */
function readable(bytes: Uint8Array): SignedRecord[] {
  try {
    return [parseRecord(bytes)]
  } catch (error) {
    if (error instanceof WireError) return []
    throw error
  }
}
