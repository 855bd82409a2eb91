/**
 * The one SQLite file of an agent's state. WAL, so that kill -9 at any moment loses nothing that was committed; each part of the
 * agent owns its tables and their schema versions, and a file written by a newer agent is refused, not guessed at. What is deleted is
 * overwritten, since there are secrets among it.
 */
import { dirname } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { AgentError, reasonOf } from '../error.ts'
import { diskError } from './disk.ts'
import { SCHEMA_VERSIONS } from './schema.ts'
import { dropCopy, keepCopy, refuseNewer } from './upgrade.ts'

/** Another process may hold the write lock for as long as a backup takes to copy a page. */
const BUSY_MS = 5_000

/** The database type that parts take; tests pass one opened on ':memory:'. */
export type Database = DatabaseSync

/**
 * Opens (or makes) the state database and checks it; keeps a copy of one that is about to be brought to newer versions.
 *
 * @throws {AgentError} `corrupt` when the file is not a sound SQLite database (it is left as it is); `limit` when the disk is full; `failed` when a
 *   newer agent wrote it.
 */
export function openDatabase(path: string): Database {
  let db: DatabaseSync | undefined
  try {
    db = new DatabaseSync(path)
    db.exec(`
      PRAGMA busy_timeout = ${BUSY_MS};
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = NORMAL;
      PRAGMA foreign_keys = ON;
      PRAGMA secure_delete = ON;
      CREATE TABLE IF NOT EXISTS schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
    `)
    const verdict = db.prepare('PRAGMA quick_check(1)').get() as { quick_check: string }
    if (verdict.quick_check !== 'ok') throw new Error(verdict.quick_check)
    refuseNewer(db, path)
    dropHistory(db)
    keepCopy(db, path)
    return db
  } catch (cause) {
    db?.close()
    if (cause instanceof AgentError) throw cause
    const told = diskError(cause, dirname(path))
    if (told instanceof AgentError && told.code === 'limit') throw told
    throw new AgentError('corrupt', `the state database ${path} cannot be used: ${reasonOf(cause)}`, {
      cause,
      next: `Restore it from a backup (\`agent restore FILE --replace\`), or move it away and start again: the node key is kept, records and the list of shared files are lost here, and peers send their records again.`,
    })
  }
}

/**
 * Drops the log of what was written: what was deleted is then nowhere in the files. It waits for readers, of which there are none but
 * other processes; when those stay the log goes later.
 */
export function dropHistory(db: Database): void {
  db.prepare('PRAGMA wal_checkpoint(TRUNCATE)').get()
}

/** What was deleted is in no copy of the database either. */
export function dropCopies(db: Database): void {
  const path = db.location()
  if (path !== null) dropCopy(path)
}

/**
 * Brings one part's tables to the newest version: `steps[i]` turns version i into i + 1, each in a transaction of its own. How many steps there
 * are is in schema.ts as well.
 *
 * @throws {AgentError} `failed` when a newer agent wrote the file.
 */
export function migrate(db: Database, part: string, steps: readonly string[]): void {
  if (steps.length !== (SCHEMA_VERSIONS[part] ?? steps.length))
    throw new Error(`schema.ts has another version of ${part}`)
  const row = db.prepare('SELECT version FROM schema_versions WHERE part = ?').get(part) as
    | { version: number }
    | undefined
  const version = row?.version ?? 0
  if (version > steps.length) {
    throw new AgentError(
      'failed',
      `the state was written by a newer agent (${part} version ${version}, known here: ${steps.length})`,
      {
        next: 'Install the newer agent again, or use another --state directory.',
      },
    )
  }
  for (const [at, step] of steps.entries()) {
    if (at < version) continue
    transaction(db, () => {
      db.exec(step)
      db.prepare(
        'INSERT INTO schema_versions (part, version) VALUES (?, ?) ON CONFLICT (part) DO UPDATE SET version = excluded.version',
      ).run(part, at + 1)
    })
  }
}

/** Runs `work` in one transaction: all of it is there afterwards, or none. Does not nest. */
export function transaction<T>(db: Database, work: () => T): T {
  db.exec('BEGIN IMMEDIATE')
  try {
    const result = work()
    db.exec('COMMIT')
    return result
  } catch (error) {
    if (db.isTransaction) db.exec('ROLLBACK')
    throw error
  }
}

/**
 * As `transaction`, and what it wrote outlives a power cut as well (a disk that tells the truth provided): for what cannot be had again
 * from anywhere. Takes part in a transaction that runs already.
 */
export function durably<T>(db: Database, work: () => T): T {
  if (db.isTransaction) return work()
  db.exec('PRAGMA synchronous = FULL')
  try {
    return transaction(db, work)
  } finally {
    db.exec('PRAGMA synchronous = NORMAL')
  }
}
