/**
 * What this node keeps of its closed networks in the state database: for each its secret and own certificate, and the statements that were
 * learned in it, byte for byte as they came, so that they can be passed on and judged again by a later version.
 *
 * What cannot be had again without somebody's help outlives a power cut. What a member sent outlives kill -9: it can be had again from there,
 * and comes by the thousand.
 */
import { type Database, durably, migrate } from '../state/database.ts'

const SCHEMA = [
  `CREATE TABLE networks (
     id TEXT PRIMARY KEY,
     name TEXT NOT NULL UNIQUE,
     secret BLOB NOT NULL,
     chain BLOB NOT NULL,
     root_exported_ms INTEGER
   ) STRICT;
   CREATE TABLE network_statements (
     network TEXT NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
     kind TEXT NOT NULL,
     key TEXT NOT NULL,
     bytes BLOB NOT NULL,
     PRIMARY KEY (network, kind, key)
   ) STRICT;`,
]

/** One network; its id, as everywhere above the wire, in hexadecimal. */
export type NetworkRow = {
  readonly id: string
  readonly name: string
  readonly secret: Uint8Array
  readonly chain: Uint8Array
  /** When the root key that is here was exported. */
  readonly rootExportedMs: number | undefined
}

export type StatementKind = 'revocation' | 'policy' | 'delegation'
type StatementRow = { readonly kind: StatementKind; readonly key: string; readonly bytes: Uint8Array }

export class NetworkRows {
  readonly #db: Database

  constructor(db: Database) {
    migrate(db, 'networks', SCHEMA)
    this.#db = db
  }

  all(): NetworkRow[] {
    const rows = this.#db.prepare('SELECT * FROM networks ORDER BY name').all() as {
      id: string
      name: string
      secret: Uint8Array
      chain: Uint8Array
      root_exported_ms: number | null
    }[]
    return rows.map(({ root_exported_ms, ...row }) => ({ ...row, rootExportedMs: root_exported_ms ?? undefined }))
  }

  has(id: string): boolean {
    return this.#db.prepare('SELECT 1 FROM networks WHERE id = ?').get(id) !== undefined
  }

  /** Whether another network than this one has the name. */
  isTaken(name: string, id = ''): boolean {
    return this.#db.prepare('SELECT 1 FROM networks WHERE name = ? AND id != ?').get(name, id) !== undefined
  }

  /** A new network, and what is known in it from the start. Replaces a row that could not be read; the statements beside that stay. */
  add({ id, name, secret, chain }: Omit<NetworkRow, 'rootExportedMs'>, policy?: StatementRow): void {
    durably(this.#db, () => {
      this.#db
        .prepare(
          `INSERT INTO networks (id, name, secret, chain) VALUES (?, ?, ?, ?)
           ON CONFLICT (id) DO UPDATE SET name = excluded.name, secret = excluded.secret, chain = excluded.chain`,
        )
        .run(id, name, secret, chain)
      if (policy !== undefined) this.putStatement(id, policy, true)
    })
  }

  remove(id: string): void {
    durably(this.#db, () => this.#db.prepare('DELETE FROM networks WHERE id = ?').run(id))
  }

  setChain(id: string, chain: Uint8Array): void {
    durably(this.#db, () => this.#db.prepare('UPDATE networks SET chain = ? WHERE id = ?').run(chain, id))
  }

  setRootExported(id: string, atMs: number | undefined): void {
    durably(this.#db, () =>
      this.#db.prepare('UPDATE networks SET root_exported_ms = ? WHERE id = ?').run(atMs ?? null, id),
    )
  }

  statements(id: string, kind: StatementKind): Uint8Array[] {
    const rows = this.#db
      .prepare('SELECT bytes FROM network_statements WHERE network = ? AND kind = ? ORDER BY key')
      .all(id, kind) as { bytes: Uint8Array }[]
    return rows.map(({ bytes }) => bytes)
  }

  /** Replaces the one of the same key. */
  putStatement(id: string, { kind, key, bytes }: StatementRow, isOwn: boolean): void {
    const put = () =>
      this.#db
        .prepare(
          `INSERT INTO network_statements (network, kind, key, bytes) VALUES (?, ?, ?, ?)
           ON CONFLICT (network, kind, key) DO UPDATE SET bytes = excluded.bytes`,
        )
        .run(id, kind, key, bytes)
    if (isOwn) durably(this.#db, put)
    else put()
  }

  dropStatement(id: string, kind: StatementKind, key: string): void {
    durably(this.#db, () =>
      this.#db.prepare('DELETE FROM network_statements WHERE network = ? AND kind = ? AND key = ?').run(id, kind, key),
    )
  }
}
