/**
 * Store paths whose NARs are blobs of this node, and what is known of them: those that were pushed here, and those that came from an
 * upstream cache. A row says what was accepted once; whether the NAR is still here is asked of who holds it. Signatures are judged again
 * whenever a path is handed on, since keys come and go.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import type { PathInfo } from './nix-store.ts'

/** Rows; each is about a kilobyte. The oldest go first: their NARs most likely went before them. */
const ROWS_MAX = 200_000
/** They are counted once in so many. */
const COUNTED_EVERY = 1_000

const SCHEMA = [
  `CREATE TABLE nix_held (
     path TEXT PRIMARY KEY, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL, refs TEXT NOT NULL, sigs TEXT NOT NULL,
     ca TEXT, deriver TEXT, since_ms INTEGER NOT NULL
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX nix_held_since ON nix_held (since_ms);
   CREATE TABLE nix_pushed (
     network TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (network, path)
   ) STRICT, WITHOUT ROWID;`,
]

type Row = {
  path: string
  digest: Digest
  size_bytes: number
  refs: string
  sigs: string
  ca: string | null
  deriver: string | null
}

export class HeldPaths {
  readonly #db: Database
  readonly #directory: string
  #puts = 0

  /** `directory` is the store's. */
  constructor(db: Database, directory: string) {
    migrate(db, 'nix-held', SCHEMA)
    this.#db = db
    this.#directory = directory
  }

  info(path: string): PathInfo | undefined {
    return infoOf(this.#db.prepare('SELECT * FROM nix_held WHERE path = ?').get(path) as Row | undefined)
  }

  byHashPart(hashPart: string): PathInfo | undefined {
    const least = `${this.#directory}/${hashPart}-`
    const statement = 'SELECT * FROM nix_held WHERE path >= ? ORDER BY path LIMIT 1'
    const row = this.#db.prepare(statement).get(least) as Row | undefined
    return row?.path.startsWith(least) ? infoOf(row) : undefined
  }

  /** Remembers a path, in place of what was known of it. With a network, it was pushed there and is to be published. */
  put(info: PathInfo, network?: string): void {
    transaction(this.#db, () => {
      this.#db
        .prepare('INSERT OR REPLACE INTO nix_held VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
        .run(
          info.path,
          info.narHash,
          info.narSize,
          info.references.join(' '),
          info.signatures.join(' '),
          info.ca ?? null,
          info.deriver ?? null,
          Date.now(),
        )
      if (network !== undefined)
        this.#db.prepare('INSERT OR IGNORE INTO nix_pushed VALUES (?, ?)').run(network, info.path)
      if (++this.#puts % COUNTED_EVERY !== 0) return
      const { rows } = this.#db.prepare('SELECT count(*) AS rows FROM nix_held').get() as { rows: number }
      if (rows <= ROWS_MAX) return
      this.#db
        .prepare('DELETE FROM nix_held WHERE path IN (SELECT path FROM nix_held ORDER BY since_ms LIMIT ?)')
        .run(rows - ROWS_MAX)
    })
  }

  forget(path: string): void {
    this.#db.prepare('DELETE FROM nix_held WHERE path = ?').run(path)
  }

  /** Paths that were pushed for a network and are not published there yet. */
  waiting(network: string): string[] {
    const rows = this.#db.prepare('SELECT path FROM nix_pushed WHERE network = ?').all(network)
    return (rows as { path: string }[]).map(({ path }) => path)
  }

  isWaiting(network: string, path: string): boolean {
    return this.#db.prepare('SELECT 1 FROM nix_pushed WHERE network = ? AND path = ?').get(network, path) !== undefined
  }

  /** Networks for which something waits. */
  networks(): string[] {
    const rows = this.#db.prepare('SELECT DISTINCT network FROM nix_pushed').all() as { network: string }[]
    return rows.map(({ network }) => network)
  }

  /** This node left the network. */
  forgetNetwork(network: string): void {
    this.#db.prepare('DELETE FROM nix_pushed WHERE network = ?').run(network)
  }

  /** They are published, or will not be. */
  settle(network: string, paths: Iterable<string>): void {
    const settle = this.#db.prepare('DELETE FROM nix_pushed WHERE network = ? AND path = ?')
    transaction(this.#db, () => {
      for (const path of paths) settle.run(network, path)
    })
  }
}

function infoOf(row: Row | undefined): PathInfo | undefined {
  return (
    row && {
      path: row.path,
      narHash: row.digest,
      narSize: row.size_bytes,
      references: words(row.refs),
      signatures: words(row.sigs),
      ca: row.ca ?? undefined,
      deriver: row.deriver ?? undefined,
      ultimate: false,
    }
  )
}

function words(text: string): string[] {
  return text === '' ? [] : text.split(' ')
}
