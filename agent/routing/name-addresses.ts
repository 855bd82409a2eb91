/**
 * Which loopback address each name has: chosen by a hash of the name, so that it mostly is the same on every node, and written down before
 * anybody hears of it, so that it is the same after a restart, and no two names ever share one.
 *
 * Names are forgotten only when there is no room, those first that were used longest ago.
 */
import { createHash } from 'node:crypto'
import type { AddressRange } from '../config/values.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { addressAt, placeOf, sizeOf } from './address-range.ts'

/** A network of a thousand nodes has some thousand names, and a program of this machine uses a few of them. */
const NAMES_MAX = 16_384
/** Of the range: so that a free address is found at once. */
const FULL_PARTS = 3 / 4

const STEPS = [
  `CREATE TABLE name_addresses (name TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, used_ms INTEGER NOT NULL) STRICT;
   CREATE INDEX name_addresses_used ON name_addresses (used_ms)`,
]

export type NamedAddress = { name: string; address: string; usedMs: number }

export class NameAddresses {
  readonly range: AddressRange
  readonly #db: Database
  readonly #max: number

  constructor(db: Database, range: AddressRange) {
    migrate(db, 'name-addresses', STEPS)
    this.#db = db
    this.range = range
    this.#max = Math.min(NAMES_MAX, Math.floor(sizeOf(range) * FULL_PARTS))
    // Of a larger range, from before.
    db.prepare('DELETE FROM name_addresses WHERE place >= ?').run(sizeOf(range))
  }

  /** The address of a name, from now on; it counts as used. */
  use(name: string, nowMs: number): string {
    const known = this.#db
      .prepare('UPDATE name_addresses SET used_ms = ? WHERE name = ? RETURNING place')
      .get(nowMs, name) as { place: number } | undefined
    return addressAt(this.range, known?.place ?? this.#add(name, nowMs))
  }

  /** The address of a name that has one. */
  get(name: string): string | undefined {
    const row = this.#db.prepare('SELECT place FROM name_addresses WHERE name = ?').get(name) as
      | { place: number }
      | undefined
    return row && addressAt(this.range, row.place)
  }

  /** Whose address it is. */
  nameAt(address: string): string | undefined {
    const place = placeOf(this.range, address)
    if (place === undefined) return undefined
    const row = this.#db.prepare('SELECT name FROM name_addresses WHERE place = ?').get(place)
    return row?.name as string | undefined
  }

  /** Those that were used since then, the newest first. */
  usedSince(ms: number): NamedAddress[] {
    const rows = this.#db
      .prepare('SELECT name, place, used_ms AS usedMs FROM name_addresses WHERE used_ms >= ? ORDER BY used_ms DESC')
      .all(ms) as { name: string; place: number; usedMs: number }[]
    return rows.map(({ name, place, usedMs }) => ({ name, address: addressAt(this.range, place), usedMs }))
  }

  #add(name: string, nowMs: number): number {
    return transaction(this.#db, () => {
      const { count } = this.#db.prepare('SELECT count(*) AS count FROM name_addresses').get() as { count: number }
      if (count >= this.#max) {
        const oldest = 'SELECT name FROM name_addresses ORDER BY used_ms LIMIT ?'
        this.#db.prepare(`DELETE FROM name_addresses WHERE name IN (${oldest})`).run(count - this.#max + 1)
      }
      const isTaken = this.#db.prepare('SELECT 1 FROM name_addresses WHERE place = ?')
      let place = createHash('sha256').update(name).digest().readUInt32BE(0) % sizeOf(this.range)
      while (isTaken.get(place) !== undefined) place = (place + 1) % sizeOf(this.range)
      this.#db.prepare('INSERT INTO name_addresses (name, place, used_ms) VALUES (?, ?, ?)').run(name, place, nowMs)
      return place
    })
  }
}
