/**
 * The rows of all records, on two shelves: one in the state database, and one in memory for records with short leases, so that the
 * renewals of a whole network never touch the disk. What is lost with the memory is said again by its publisher within its lease.
 *
 * Counts what is there by publisher. Takes part in the caller's transaction; after one that failed, `recount` puts the counts right.
 */
import { compareRank, type Rank, type SignedRecord } from '../../protocols/records/record.ts'
import type { Database } from '../state/database.ts'
import { type Key, type Row, Shelf, shelfTables } from './shelf.ts'

/** Records with a lease up to this live in memory only. */
const LIVE_LEASE_MS_MAX = 3_600_000

/** The database tables, for `migrate`. */
export const SHELVES_STEP = shelfTables('main')

export type Total = { count: number; bytes: number }

export class Shelves implements Disposable {
  readonly #db: Database
  readonly #durable: Shelf
  readonly #live: Shelf
  readonly #all: readonly Shelf[]
  readonly #totals = new Map<string, Total>()
  #totalBytes = 0

  constructor(db: Database) {
    this.#db = db
    db.exec(`ATTACH ':memory:' AS live; ${shelfTables('live')}`)
    this.#durable = new Shelf(db, 'main')
    this.#live = new Shelf(db, 'live')
    this.#all = [this.#durable, this.#live]
    this.recount()
  }

  [Symbol.dispose](): void {
    this.#db.exec('DETACH live')
  }

  insert(record: SignedRecord, mine: boolean): void {
    const shelf = isLiveLease(record) ? this.#live : this.#durable
    shelf.insert(record, mine)
    this.#add(record.publisher, 1, record.bytes.byteLength)
  }

  remove(row: Row): void {
    for (const shelf of this.#all) shelf.remove(row.id)
    this.#add(row.publisher, -1, -row.size)
  }

  has(id: Uint8Array): boolean {
    return this.#durable.has(id) || this.#live.has(id)
  }

  bytes(id: Uint8Array): Uint8Array | undefined {
    return this.#durable.bytes(id) ?? this.#live.bytes(id)
  }

  at(key: Key): Row | undefined {
    return this.#durable.at(key) ?? this.#live.at(key)
  }

  /** The record of this publisher with the lowest rank, but for the spared one. */
  lowest(publisher: Uint8Array, spared?: { kind: string; name: string }): Row | undefined {
    const rows = this.#all.map((shelf) => shelf.lowest(publisher, spared)).filter((row) => row !== undefined)
    return rows.sort(compareRank)[0]
  }

  /** Another record of this publisher with the same seq. */
  rival(publisher: Uint8Array, rank: Rank): Row | undefined {
    return this.#durable.rival(publisher, rank) ?? this.#live.rival(publisher, rank)
  }

  /** What a publisher has above a rank. */
  above(publisher: Uint8Array, rank: Rank): Total {
    const [durable, live] = [this.#durable.above(publisher, rank), this.#live.above(publisher, rank)]
    return { count: durable.count + live.count, bytes: durable.bytes + live.bytes }
  }

  ofPublisher(publisher: Uint8Array): Row[] {
    return this.#all.flatMap((shelf) => shelf.ofPublisher(publisher))
  }

  /** Ids of what has not expired, unsorted. */
  liveIds(publisher: Uint8Array, now: number): Uint8Array[] {
    return this.#all.flatMap((shelf) => shelf.liveIds(publisher, now))
  }

  expired(now: number, limit: number): Row[] {
    return this.#all.flatMap((shelf) => shelf.expired(now, limit))
  }

  nextExpiry(): number {
    return Math.min(...this.#all.map((shelf) => shelf.nextExpiry() ?? Number.POSITIVE_INFINITY))
  }

  list(kind: string, now: number): SignedRecord[] {
    return this.#all.flatMap((shelf) => shelf.list(kind, now))
  }

  mine(kind: string): SignedRecord[] {
    return this.#all.flatMap((shelf) => shelf.mine(kind))
  }

  total(publisher: Uint8Array): Total {
    return this.#totals.get(nameOf(publisher)) ?? { count: 0, bytes: 0 }
  }

  /** Of everything. */
  counts(): { records: number; publishers: number; bytes: number } {
    const records = this.#totals.values().reduce((sum, { count }) => sum + count, 0)
    return { records, publishers: this.#totals.size, bytes: this.#totalBytes }
  }

  publishers(): Uint8Array[] {
    return [...this.#totals.keys()].map((name) => Buffer.from(name, 'latin1'))
  }

  get publisherCount(): number {
    return this.#totals.size
  }

  get totalBytes(): number {
    return this.#totalBytes
  }

  /** Counts anew. Gives back the publishers. */
  recount(): Uint8Array[] {
    this.#totals.clear()
    this.#totalBytes = 0
    const rows = this.#all.flatMap((shelf) => shelf.totals())
    for (const { publisher, count, bytes } of rows) this.#add(publisher, count, bytes)
    return rows.map(({ publisher }) => publisher)
  }

  #add(publisher: Uint8Array, count: number, bytes: number): void {
    const name = nameOf(publisher)
    const total = this.#totals.get(name) ?? { count: 0, bytes: 0 }
    total.count += count
    total.bytes += bytes
    this.#totalBytes += bytes
    if (total.count > 0) this.#totals.set(name, total)
    else this.#totals.delete(name)
  }
}

/** Whether a record of this lease is held in memory only. */
export function isLiveLease({ issued, expires }: Pick<SignedRecord, 'issued' | 'expires'>): boolean {
  return expires - issued <= LIVE_LEASE_MS_MAX
}

function nameOf(publisher: Uint8Array): string {
  return Buffer.from(publisher).toString('latin1')
}
