/**
 * Proofs that a publisher said two different things with one seq, which no honest node does: both records as they were signed. A node
 * whose state was restored from a backup while its clock stood still, or whose key was copied to a second machine, looks the same.
 */
import type { SignedRecord } from '../../protocols/records/record.ts'
import type { Database } from '../state/database.ts'

/** Proofs kept, one of each publisher, of at most 128 KiB. The first are as good as the last. */
const PROOFS_MAX = 100

/** For `migrate`. */
export const PROOFS_STEP =
  'CREATE TABLE record_proofs (publisher BLOB PRIMARY KEY, one BLOB NOT NULL, other BLOB NOT NULL) STRICT;'

export type Proof = { publisher: Uint8Array; one: Uint8Array; other: Uint8Array }

export class Proofs {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Keeps the proof; false when there is one of this publisher already, or there are too many. */
  add({ publisher, bytes }: SignedRecord, other: Uint8Array): boolean {
    const { changes } = this.#db
      .prepare(
        `INSERT OR IGNORE INTO record_proofs (publisher, one, other)
         SELECT ?, ?, ? WHERE (SELECT count(*) FROM record_proofs) < ${PROOFS_MAX}`,
      )
      .run(publisher, bytes, other)
    return changes > 0
  }

  list(): Proof[] {
    return this.#db.prepare('SELECT publisher, one, other FROM record_proofs').all() as Proof[]
  }
}
