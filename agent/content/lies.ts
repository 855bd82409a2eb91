/**
 * False piece lists, as peers signed them: each proves to anybody who has the blob that the peer lied. Kept over restarts, in the table
 * `content_lies` of the state database, since the peer will not say it again; bounded, since keys are for free.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import type { SignedList } from './statements.ts'

/** Of one peer: more would prove nothing new. */
const LIES_PER_PEER_MAX = 4
/** The oldest go first: at 300 bytes each this is nothing, and more peers than a person will look at. */
const LIES_MAX = 256

const SCHEMA = [
  `
  CREATE TABLE content_lies (
    id TEXT PRIMARY KEY, peer_id TEXT NOT NULL, network TEXT NOT NULL, digest TEXT NOT NULL, found_ms INTEGER NOT NULL,
    signed BLOB NOT NULL
  ) STRICT;
  CREATE INDEX content_lies_by_peer ON content_lies (peer_id);
  `,
]

/** A statement that is false, of a blob in a network (its id in hex). */
export type Lie = SignedList & { digest: Digest; network: string }
/** What is kept of one peer. */
export type Liar = { peerId: string; lies: number; digest: Digest; foundMs: number }

export class Lies {
  readonly #db: Database
  readonly #now: () => number
  readonly #sql

  constructor(db: Database, now: () => number = Date.now) {
    migrate(db, 'content-lies', SCHEMA)
    this.#db = db
    this.#now = now
    this.#sql = {
      put: db.prepare('INSERT OR IGNORE INTO content_lies VALUES (?, ?, ?, ?, ?, ?)'),
      trim: db.prepare(
        'DELETE FROM content_lies WHERE id NOT IN (SELECT id FROM content_lies ORDER BY found_ms DESC, rowid DESC LIMIT ?)',
      ),
      countOf: db.prepare('SELECT count(*) AS count FROM content_lies WHERE peer_id = ?'),
      all: db.prepare(
        'SELECT peer_id AS peerId, network, digest, signed AS bytes FROM content_lies ORDER BY found_ms, rowid',
      ),
      liars: db.prepare(`SELECT peer_id AS peerId, count(*) AS lies, digest, max(found_ms) AS foundMs
        FROM content_lies GROUP BY peer_id ORDER BY foundMs DESC LIMIT ?`),
      forgetNetwork: db.prepare('DELETE FROM content_lies WHERE network = ?'),
    }
  }

  /** @returns whether it is new. */
  keep({ peerId, network, digest, bytes }: Lie): boolean {
    return transaction(this.#db, () => {
      const { count } = this.#sql.countOf.get(peerId) as { count: number }
      if (count >= LIES_PER_PEER_MAX) return false
      const id = createHash('sha256').update(bytes).digest('hex')
      const { changes } = this.#sql.put.run(id, peerId, network, digest, this.#now(), bytes)
      this.#sql.trim.run(LIES_MAX)
      return changes > 0
    })
  }

  all(): Lie[] {
    return this.#sql.all.all() as Lie[]
  }

  /** Who lied, the latest first. */
  liars(countMax: number): Liar[] {
    return this.#sql.liars.all(countMax) as Liar[]
  }

  /** This node left the network. */
  forgetNetwork(network: string): void {
    this.#sql.forgetNetwork.run(network)
  }
}
