/**
 * Peers that this node was connected to, kept across restarts: how a node finds the mesh again when no bootstrap answers and the LAN
 * is empty. Who was connected last comes first.
 */
import { type Database, migrate } from '../state/database.ts'

/** Some 300 bytes each; after a few dozen that do not answer, older ones are no better. */
const PEERS_MAX = 1_000
const ADDRESSES_MAX = 16
/** A peer that comes and goes is not worth a write each time. */
const REWRITE_MS = 10 * 60_000

const SCHEMA = [
  `CREATE TABLE known_peers (
     peer_id TEXT PRIMARY KEY,
     addresses TEXT NOT NULL,
     connected_ms INTEGER NOT NULL
   ) STRICT;
   CREATE INDEX known_peers_by_time ON known_peers (connected_ms);`,
]

export type KnownPeer = { peerId: string; addresses: string[]; connectedMs: number }
type Row = { peer_id: string; addresses: string; connected_ms: number }

export class PeerBook {
  readonly #db: Database

  constructor(db: Database) {
    migrate(db, 'peers', SCHEMA)
    this.#db = db
  }

  /** Notes that the peer is connected now, and where it can be dialled. */
  remember(peerId: string, addresses: readonly string[], nowMs: number): void {
    if (addresses.length === 0) return
    const json = JSON.stringify(addresses.slice(0, ADDRESSES_MAX))
    const known = this.#db.prepare('SELECT * FROM known_peers WHERE peer_id = ?').get(peerId) as Row | undefined
    if (known !== undefined && known.addresses === json && nowMs - known.connected_ms < REWRITE_MS) return
    this.#db
      .prepare(
        `INSERT INTO known_peers (peer_id, addresses, connected_ms) VALUES (?, ?, ?)
         ON CONFLICT (peer_id) DO UPDATE SET addresses = excluded.addresses, connected_ms = excluded.connected_ms`,
      )
      .run(peerId, json, nowMs)
    if (known === undefined) this.#prune()
  }

  /** The peers that were connected last, newest first. */
  recent(limit: number): KnownPeer[] {
    const rows = this.#db.prepare('SELECT * FROM known_peers ORDER BY connected_ms DESC LIMIT ?').all(limit) as Row[]
    return rows.map((row) => ({
      peerId: row.peer_id,
      addresses: JSON.parse(row.addresses) as string[],
      connectedMs: row.connected_ms,
    }))
  }

  get size(): number {
    return (this.#db.prepare('SELECT count(*) AS size FROM known_peers').get() as { size: number }).size
  }

  #prune(): void {
    this.#db
      .prepare(
        `DELETE FROM known_peers WHERE peer_id IN
           (SELECT peer_id FROM known_peers ORDER BY connected_ms DESC LIMIT -1 OFFSET ?)`,
      )
      .run(PEERS_MAX)
  }
}
