/**
 * The catalog's store: every record of one network that this node knows, its own and everybody's; in a closed network, its members'.
 *
 * What it holds is decided by the records and the clock, not by the order in which they came: of two records with one key the one of
 * higher rank wins, what expired is gone, and of a publisher who says too much the newest stay. Stores that are shown the same records agree.
 * (Only where strangers fill the whole store does it matter who came first: see bounds.ts.)
 *
 * Everything is committed when a call returns. What this node says itself is then on the disk, too.
 */
import { WireError } from '../../protocols/error.ts'
import type { Position, PublisherDigest } from '../../protocols/records/exchange.ts'
import {
  compareRank,
  encodeRecord,
  ISSUED_AHEAD_MS_MAX,
  keyTag,
  LEASE_MS_MAX,
  PUBLISHER_RECORDS_MAX,
  PUBLISHER_SIZE_BYTES_MAX,
  parseRecord,
  type RecordSigner,
  type SignedRecord,
  timeFault,
  verifyRecord,
} from '../../protocols/records/record.ts'
import { AgentError, reasonOf } from '../error.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { Bounds } from './bounds.ts'
import { Positions } from './positions.ts'
import { PROOFS_STEP, type Proof, Proofs } from './proofs.ts'
import type { Key, Row } from './shelf.ts'
import { isLiveLease, SHELVES_STEP, Shelves } from './shelves.ts'

/** A deletion outlives what it deletes by this, so that a node whose clock is late does not bring it back. */
const DELETION_MARGIN_MS = ISSUED_AHEAD_MS_MAX
/** Looked at least this often, since the clock may jump or the machine sleep; a look costs nothing when nothing expired. */
const SWEEP_MS_MAX = 4_000
/** Expiries that come close together are swept together. */
const SWEEP_MS_MIN = 250
/** Rows of one transaction, of each shelf. */
const SWEEP_ROWS_MAX = 1_000

const STEPS = [
  `${SHELVES_STEP} ${PROOFS_STEP}
   CREATE TABLE record_counters (publisher BLOB PRIMARY KEY, seq INTEGER NOT NULL) STRICT;`,
]

type Refusal = 'malformed' | 'too-large' | 'bad-signature' | 'network' | 'stranger' | 'future' | 'bounds' | 'full'
/** What became of a record from outside; all but 'new' leave the store as it was. */
export type Acceptance = 'new' | 'known' | 'older' | 'expired' | `refused:${Refusal}`

/** A key's new state. Without a record there is nothing of it any more; a deletion is a record. */
export type Change = Key & {
  record: SignedRecord | undefined
  cause: 'put' | 'accepted' | 'expired' | 'evicted' | 'expelled'
}

export type Put = { kind: string; name: string; body: unknown; leaseMs: number }

export type RecordsOptions = {
  network: Uint8Array
  signer: RecordSigner
  /**
   * In a closed network: whether a record's publisher is a member, or the record makes it one. Asked before the signature is checked. Own
   * records always pass; without this, everybody's do.
   */
  admits?: (record: SignedRecord) => boolean
  /** Milliseconds since 1970. */
  now?: () => number
  log: Log
}

export class Records implements Disposable {
  readonly network: Uint8Array
  /** Whose records `put` makes. */
  readonly publisher: Uint8Array
  readonly now: () => number
  readonly #signer: RecordSigner
  readonly #admits: (record: SignedRecord) => boolean
  readonly #log: Log
  readonly #db: Database
  readonly #shelves: Shelves
  readonly #bounds: Bounds
  readonly #proofs: Proofs
  readonly #positions: Positions
  readonly #indexes: ((change: Change) => void)[] = []
  readonly #undone: (() => void)[] = []
  readonly #listeners = new Set<(changes: readonly Change[]) => void>()
  readonly #received = new Map<Acceptance, number>()
  /** The highest seq that this publisher is known to have used. */
  #lastSeq: number
  /** Nothing expires before. */
  #nextExpiry = 0
  #timer: NodeJS.Timeout | undefined

  constructor(db: Database, options: RecordsOptions) {
    this.network = options.network
    this.publisher = options.signer.publicKey
    this.now = options.now ?? Date.now
    this.#signer = options.signer
    this.#admits = options.admits ?? (() => true)
    this.#log = options.log
    this.#db = db
    migrate(db, 'catalog', STEPS)
    this.#shelves = new Shelves(db)
    this.#bounds = new Bounds(this.#shelves, this.publisher, options.admits !== undefined)
    this.#proofs = new Proofs(db)
    this.#positions = new Positions((publisher) => this.#shelves.liveIds(publisher, this.now()))
    for (const publisher of this.#shelves.recount()) this.#positions.changed(publisher)
    const counter = db.prepare('SELECT seq FROM record_counters WHERE publisher = ?').get(this.publisher)
    this.#lastSeq = (counter as { seq: number } | undefined)?.seq ?? 0
    this.sweep()
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#listeners.clear()
    this.#shelves[Symbol.dispose]()
  }

  /** Keeps a record from outside, if it is valid and new. */
  accept(bytes: Uint8Array): Acceptance {
    const [acceptance = 'known'] = this.acceptAll([bytes])
    return acceptance
  }

  /** The same for many, in one transaction. About 0.2 ms each: the caller keeps lists short for the event loop's sake. */
  acceptAll(list: readonly Uint8Array[]): Acceptance[] {
    const outcomes = this.#commit((changes) => list.map((bytes) => this.#accept(bytes, changes)))
    for (const outcome of outcomes) this.#received.set(outcome, (this.#received.get(outcome) ?? 0) + 1)
    return outcomes
  }

  /**
   * Signs a record and stores it in place of what had its key before.
   *
   * @throws {AgentError} `limit` when this node has said as much as other nodes would keep.
   */
  put({ kind, name, body, leaseMs }: Put): SignedRecord {
    return this.#say({ kind, name, body }, leaseMs)
  }

  /** Says that there is nothing of this key any more. Undefined when there was nothing. */
  remove(kind: string, name: string): SignedRecord | undefined {
    const held = this.#shelves.at({ publisher: this.publisher, kind, name })
    if (!held || held.deleted) return undefined
    const leaseMs = Math.max(0, held.expires - this.now()) + DELETION_MARGIN_MS
    return this.#say({ kind, name, deleted: true }, Math.min(leaseMs, LEASE_MS_MAX))
  }

  /** The live record of a key, if it is not a deletion. */
  get(publisher: Uint8Array, kind: string, name: string): SignedRecord | undefined {
    const held = this.#shelves.at({ publisher, kind, name })
    const bytes = held && !held.deleted && held.expires > this.now() ? this.fetch(held.id) : undefined
    return bytes && parseRecord(bytes)
  }

  /** All live records of a kind, without deletions, in no order. */
  list(kind: string): SignedRecord[] {
    return this.#shelves.list(kind, this.now())
  }

  /** What this node said and did not take back, even if it expired meanwhile. */
  own(kind: string): SignedRecord[] {
    return this.#shelves.mine(kind)
  }

  /** Who said two things with one seq. */
  proofs(): Proof[] {
    return this.#proofs.list()
  }

  /** Drops all that these publishers said. Never what this node said. */
  expel(isOut: (publisher: Uint8Array) => boolean): void {
    for (const publisher of this.#shelves.publishers()) {
      if (isSame(publisher, this.publisher) || !isOut(publisher)) continue
      this.#commit((changes) => {
        for (const row of this.#shelves.ofPublisher(publisher)) this.#drop(row, 'expelled', changes)
      })
    }
  }

  /**
   * Runs inside each change's transaction: for what must agree with the records. It never throws for what a record says. `undone` is
   * called when a transaction failed: tables are then as before, and what is in memory is to be read again.
   */
  addIndex(apply: (change: Change) => void, undone?: () => void): void {
    this.#indexes.push(apply)
    if (undone) this.#undone.push(undone)
  }

  /** Told after the commit. Gives back how to stop. */
  onChange(listener: (changes: readonly Change[]) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  counts(): { records: number; publishers: number; bytes: number } {
    return this.#shelves.counts()
  }

  /** What became of the records that peers sent, since the start. */
  received(): ReadonlyMap<Acceptance, number> {
    return this.#received
  }

  bucketDigests(): Uint8Array {
    this.#refresh()
    return this.#positions.bucketDigests()
  }

  publishers(buckets: Uint8Array): PublisherDigest[] {
    this.#refresh()
    return this.#positions.publishers(buckets)
  }

  /** Newest first. */
  positions(publisher: Uint8Array): Position[] {
    const now = this.now()
    return this.#shelves
      .ofPublisher(publisher)
      .filter((row) => row.expires > now)
      .sort((a, b) => compareRank(b, a))
      .map(({ kind, name, seq, id }) => ({ tag: keyTag(kind, name), seq, id }))
  }

  /** The bytes of a record, by its id. */
  fetch(id: Uint8Array): Uint8Array | undefined {
    return this.#shelves.bytes(id)
  }

  /** Drops what expired. Runs by itself in time. */
  sweep(): void {
    const now = this.now()
    while (this.#nextExpiry <= now) {
      this.#commit((changes) => {
        for (const row of this.#shelves.expired(now, SWEEP_ROWS_MAX)) this.#drop(row, 'expired', changes)
      })
      this.#nextExpiry = this.#shelves.nextExpiry()
    }
    clearTimeout(this.#timer)
    const waitMs = Math.min(Math.max(this.#nextExpiry - now, SWEEP_MS_MIN), SWEEP_MS_MAX)
    this.#timer = setTimeout(() => this.#sweepLater(), waitMs).unref()
  }

  #sweepLater(): void {
    try {
      this.sweep()
    } catch (error) {
      // A full disk, most likely. Reads leave out what expired, so waiting harms nobody.
      this.#log.warn({ reason: reasonOf(error) }, 'records.unswept')
      this.#timer = setTimeout(() => this.#sweepLater(), SWEEP_MS_MAX).unref()
    }
  }

  #accept(bytes: Uint8Array, changes: Change[]): Acceptance {
    try {
      const record = parseRecord(bytes)
      if (!isSame(record.network, this.network)) return 'refused:network'
      if (this.#shelves.has(record.id)) return 'known'
      const late = timeFault(record, this.now())
      if (late) return late === 'expired' ? 'expired' : 'refused:future'
      // The signature comes last: it costs most, and matters only of what would be kept, or would prove a lie.
      const held = this.#shelves.at(record)
      if (held && compareRank(record, held) < 0) {
        if (held.seq === record.seq) this.#noteRival(record)
        return 'older'
      }
      if (!isSame(record.publisher, this.publisher) && !this.#admits(record)) return 'refused:stranger'
      const refusal = this.#bounds.refusalOf(record, held)
      if (refusal) return `refused:${refusal}`
      verifyRecord(record)
      this.#noteRival(record)
      if (isSame(record.publisher, this.publisher)) this.#saveCounter(Math.max(record.seq, this.#lastSeq))
      this.#keep(record, held, { mine: false, cause: 'accepted' }, changes)
      return 'new'
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      return error.code === 'too-large' || error.code === 'bad-signature'
        ? `refused:${error.code}`
        : 'refused:malformed'
    }
  }

  #say(said: { kind: string; name: string } & ({ body: unknown } | { deleted: true }), leaseMs: number): SignedRecord {
    const held = this.#shelves.at({ publisher: this.publisher, kind: said.kind, name: said.name })
    const heldBytes = held && this.fetch(held.id)
    const now = this.now()
    const times = leaseAfter(heldBytes && parseRecord(heldBytes), now, leaseMs)
    const seq = Math.max(now, this.#lastSeq + 1)
    const record = encodeRecord({ network: this.network, seq, ...times, ...said }, this.#signer)
    const excess = this.#bounds.excessOf(record, held)
    if (excess) {
      throw new AgentError(
        'limit',
        `this node has published ${excess.count} records of ${excess.bytes} bytes together`,
        {
          next: `Other nodes keep ${PUBLISHER_RECORDS_MAX} records and ${PUBLISHER_SIZE_BYTES_MAX} bytes of one node: unpublish something.`,
        },
      )
    }
    const isLive = isLiveLease(record)
    // Outside a transaction only: within one SQLite ignores it.
    if (!isLive) this.#db.exec('PRAGMA main.synchronous = FULL')
    try {
      this.#commit((changes) => {
        this.#saveCounter(seq, isLive)
        this.#keep(record, held, { mine: true, cause: 'put' }, changes)
      })
    } finally {
      if (!isLive) this.#db.exec('PRAGMA main.synchronous = NORMAL')
    }
    return record
  }

  #keep(
    record: SignedRecord,
    held: Row | undefined,
    how: { mine: boolean; cause: Change['cause'] },
    changes: Change[],
  ) {
    const { publisher, kind, name } = record
    if (held) this.#shelves.remove(held)
    this.#shelves.insert(record, how.mine)
    this.#nextExpiry = Math.min(this.#nextExpiry, record.expires)
    this.#tell({ publisher, kind, name, record, cause: how.cause }, changes)
    for (;;) {
      const surplus = this.#bounds.surplusOf(publisher)
      if (!surplus) return
      this.#drop(surplus, 'evicted', changes)
    }
  }

  #drop(row: Row, cause: Change['cause'], changes: Change[]): void {
    const { publisher, kind, name } = row
    this.#shelves.remove(row)
    this.#tell({ publisher, kind, name, record: undefined, cause }, changes)
  }

  #tell(change: Change, changes: Change[]): void {
    for (const apply of this.#indexes) apply(change)
    changes.push(change)
  }

  /** Keeps a proof when the publisher has said something else with this seq. */
  #noteRival(record: SignedRecord): void {
    const rival = this.#shelves.rival(record.publisher, record)
    const other = rival && this.fetch(rival.id)
    if (!other) return
    verifyRecord(record)
    if (this.#proofs.add(record, other))
      this.#log.warn({ peerId: peerIdOf(record.publisher), seq: record.seq }, 'publisher.equivocated')
  }

  /** In memory only for what is in memory only: the clock keeps the next seq above it. */
  #saveCounter(seq: number, isLive = false): void {
    this.#lastSeq = seq
    if (isLive) return
    this.#db
      .prepare(
        'INSERT INTO record_counters (publisher, seq) VALUES (?, ?) ON CONFLICT (publisher) DO UPDATE SET seq = excluded.seq',
      )
      .run(this.publisher, seq)
  }

  #commit<T>(work: (changes: Change[]) => T): T {
    const changes: Change[] = []
    let result: T
    try {
      result = transaction(this.#db, () => work(changes))
    } catch (error) {
      for (const publisher of this.#shelves.recount()) this.#positions.changed(publisher)
      for (const undone of this.#undone) undone()
      throw error
    }
    for (const { publisher } of changes) this.#positions.changed(publisher)
    if (changes.length > 0) for (const listener of this.#listeners) listener(changes)
    return result
  }

  /** Before digests are read: they are of what is live now. */
  #refresh(): void {
    this.sweep()
    // Own records stay when they expire, so no change tells of it.
    this.#positions.changed(this.publisher)
  }
}

/**
 * When to issue a record and when it expires. It must not expire before what it replaces, or a node that was away would bring that back.
 */
function leaseAfter(
  before: SignedRecord | undefined,
  now: number,
  leaseMs: number,
): { issued: number; expires: number } {
  // Nobody with a right clock took what was issued that far ahead: this node's clock was wrong then.
  if (!before || before.issued > now + ISSUED_AHEAD_MS_MAX) return { issued: now, expires: now + leaseMs }
  const issued = Math.max(now, before.issued)
  return { issued, expires: Math.max(issued + leaseMs, before.expires) }
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0
}
