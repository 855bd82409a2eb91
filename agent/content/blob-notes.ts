/**
 * What people want to know of a blob, and no program needs: since when it is here, what it is, how often it was served to peers. Rows only;
 * those of blobs come and go with the blobs, by triggers. A NAR that is served straight from the Nix store has a row, too.
 *
 * Servings are counted in memory and written down now and then, so a kill loses a minute of them, and a piece costs no write.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError } from '../error.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { diskError } from '../state/disk.ts'

/** How much of what was counted a kill may lose. */
const FLUSH_MS = 60_000
/** Counted and not written down; more than are served in a minute. */
const COUNTED_MAX = 1_000
/** A store path, or the name of an artifact: neither is longer. */
const WHAT_LENGTH_MAX = 512

const SCHEMA = [
  `
  CREATE TABLE content_notes (
    digest TEXT PRIMARY KEY, since_ms INTEGER, what TEXT,
    times INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, served_ms INTEGER
  ) STRICT, WITHOUT ROWID;
  INSERT INTO content_notes (digest, since_ms) SELECT digest, used_ms FROM content_blobs;
  CREATE TRIGGER content_notes_new AFTER INSERT ON content_blobs BEGIN
    INSERT INTO content_notes (digest, since_ms) VALUES (NEW.digest, NEW.used_ms)
      ON CONFLICT DO UPDATE SET since_ms = excluded.since_ms;
  END;
  CREATE TRIGGER content_notes_gone AFTER DELETE ON content_blobs BEGIN
    DELETE FROM content_notes WHERE digest = OLD.digest;
  END;
  `,
]

export type BlobNote = {
  /** undefined for what is not in the blob directory. */
  sinceMs: number | undefined
  /** A store path or an artifact's name; undefined when nobody said. */
  what: string | undefined
  /** Times that a peer was given it from its beginning, and bytes in all. */
  served: { times: number; bytes: number; lastMs: number | undefined }
}
type Row = {
  digest: Digest
  sinceMs: number | null
  what: string | null
  times: number
  bytes: number
  servedMs: number | null
}
type Count = { times: number; bytes: number; lastMs: number }

export class BlobNotes implements Disposable {
  readonly #db: Database
  readonly #now: () => number
  readonly #sql
  readonly #counted = new Map<Digest, Count>()
  #flushedMs: number

  /** The table of blobs must be there. */
  constructor(db: Database, now: () => number = Date.now) {
    migrate(db, 'content-notes', SCHEMA)
    this.#db = db
    this.#now = now
    this.#flushedMs = now()
    const columns = 'digest, since_ms AS sinceMs, what, times, bytes, served_ms AS servedMs'
    this.#sql = {
      get: db.prepare(`SELECT ${columns} FROM content_notes WHERE digest = ?`),
      others: db.prepare('SELECT digest FROM content_notes WHERE since_ms IS NULL'),
      named: db.prepare('SELECT digest FROM content_notes WHERE what = ?'),
      name: db.prepare(`INSERT INTO content_notes (digest, what) VALUES (?, ?)
        ON CONFLICT DO UPDATE SET what = excluded.what WHERE what IS NOT excluded.what`),
      count: db.prepare(`INSERT INTO content_notes (digest, times, bytes, served_ms) VALUES (?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET
          times = times + excluded.times, bytes = bytes + excluded.bytes, served_ms = excluded.served_ms`),
      drop: db.prepare('DELETE FROM content_notes WHERE digest = ?'),
    }
  }

  get(digest: Digest): BlobNote {
    const row = this.#sql.get.get(digest) as Row | undefined
    const counted = this.#counted.get(digest)
    return {
      sinceMs: row?.sinceMs ?? undefined,
      what: row?.what ?? undefined,
      served: {
        times: (row?.times ?? 0) + (counted?.times ?? 0),
        bytes: (row?.bytes ?? 0) + (counted?.bytes ?? 0),
        lastMs: counted?.lastMs ?? row?.servedMs ?? undefined,
      },
    }
  }

  /** Blobs of which somebody said that they are this. */
  named(what: string): Digest[] {
    return (this.#sql.named.all(what) as { digest: Digest }[]).map(({ digest }) => digest)
  }

  /** Says what a blob is that is here, or about to come. */
  name(digest: Digest, what: string): void {
    if (what.length > WHAT_LENGTH_MAX) return
    try {
      this.#sql.name.run(digest, what)
    } catch (error) {
      unlessFull(error)
    }
  }

  /** A peer was given so many bytes; `isBegin` when they were the first of the blob. */
  served(digest: Digest, bytes: number, isBegin: boolean): void {
    const now = this.#now()
    const count = this.#counted.get(digest) ?? { times: 0, bytes: 0, lastMs: now }
    count.times += Number(isBegin)
    count.bytes += bytes
    count.lastMs = now
    this.#counted.set(digest, count)
    if (this.#counted.size > COUNTED_MAX || now - this.#flushedMs >= FLUSH_MS) this.flush()
  }

  /** Writes down what was counted. */
  flush(): void {
    this.#flushedMs = this.#now()
    if (this.#counted.size === 0) return
    try {
      transaction(this.#db, () => {
        for (const [digest, { times, bytes, lastMs }] of this.#counted)
          this.#sql.count.run(digest, times, bytes, lastMs)
      })
      this.#counted.clear()
    } catch (error) {
      unlessFull(error)
      // It is tried again, and what is counted meanwhile stays bounded.
      if (this.#counted.size > 2 * COUNTED_MAX) this.#counted.clear()
    }
  }

  /** Drops notes on what is not here: those of the blob directory go by themselves. */
  sweep(isHere: (digest: Digest) => boolean): void {
    for (const digest of this.#counted.keys()) if (!isHere(digest)) this.#counted.delete(digest)
    const others = this.#sql.others.all() as { digest: Digest }[]
    const gone = others.filter(({ digest }) => !isHere(digest))
    if (gone.length === 0) return
    transaction(this.#db, () => {
      for (const { digest } of gone) this.#sql.drop.run(digest)
    })
  }

  [Symbol.dispose](): void {
    this.flush()
  }
}

/** A note is not worth failing for: a full disk must not keep anybody from reading. */
function unlessFull(error: unknown): void {
  if (!(diskError(error, '.') instanceof AgentError)) throw error
}
