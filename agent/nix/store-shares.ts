/**
 * In which networks the whole Nix store is given out, as users have said by command; in all others it is what was published. Kept in the
 * state database.
 */
import { type Database, migrate } from '../state/database.ts'

export type ShareMode = 'published' | 'store'

const SCHEMA = [`CREATE TABLE store_shares (network TEXT PRIMARY KEY) STRICT, WITHOUT ROWID`]

export class StoreShares {
  readonly #db: Database
  readonly #networks: Set<string>
  readonly #listeners = new Set<() => void>()

  constructor(db: Database) {
    migrate(db, 'store-shares', SCHEMA)
    this.#db = db
    const rows = db.prepare('SELECT network FROM store_shares').all() as { network: string }[]
    this.#networks = new Set(rows.map(({ network }) => network))
  }

  /** Of a network, by its id in hex. */
  modeOf(network: string): ShareMode {
    return this.#networks.has(network) ? 'store' : 'published'
  }

  /** Those in which the store is given out. */
  networks(): ReadonlySet<string> {
    return this.#networks
  }

  /** In force when it returns. */
  set(network: string, mode: ShareMode): void {
    if (mode === this.modeOf(network)) return
    if (mode === 'store') {
      this.#db.prepare('INSERT OR IGNORE INTO store_shares VALUES (?)').run(network)
      this.#networks.add(network)
    } else {
      this.#networks.delete(network)
      this.#db.prepare('DELETE FROM store_shares WHERE network = ?').run(network)
    }
    for (const listener of this.#listeners) listener()
  }

  /** Gives back how to stop. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}
