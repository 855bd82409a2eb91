/**
 * What libp2p remembers while it runs, in memory and bounded: its peer store and the DHT's provider records. Strangers can write
 * here, so every bound holds whatever they send: the least recently used entry goes first, and what must stay is pinned.
 *
 * Entries are kept per parent path, so that the DHT's question "who provides this?" (a query by prefix) reads the entries of one
 * content id, where datastore-core's MemoryDatastore reads every entry there is. Nothing survives a restart: the peers worth keeping
 * are in the peer book, and what this node provides is provided again.
 */
import { NotFoundError } from '@libp2p/interface'
import { BaseDatastore } from 'datastore-core/base'
import { Key, type KeyQuery, type Pair, type Query } from 'interface-datastore'

/** A peer takes about 600 bytes, a provider record 80: some 20 MB at the very worst. */
const ENTRIES_MAX = 50_000
const BYTES_MAX = 16 * 1024 * 1024
/** An honest peer entry is 1 to 3 KB; libp2p takes up to 80 KB of addresses from a stranger. */
const ENTRY_BYTES_MAX = 16 * 1024
/** Providers of one content id. A finder asks for 20. */
const CHILDREN_MAX = 500
/** Evicted at once when full, so that the search for what is not pinned is paid once per so many writes. */
const EVICT_SHARE = 0.02
/** Queries below these paths name a parent path, as libp2p 3 makes them. */
const LISTED = ['/peers/', '/dht/provider/']

export type DatastoreBounds = { entries?: number; bytes?: number }

export class BoundedDatastore extends BaseDatastore {
  /** In order of last use: a key that is read or written moves to the end. */
  readonly #values = new Map<string, Uint8Array>()
  /** Parent path -> full keys below it. */
  readonly #children = new Map<string, Set<string>>()
  readonly #pinned: () => ReadonlySet<string>
  readonly #entriesMax: number
  readonly #bytesMax: number
  #bytes = 0

  /** `pinned` names the keys that are never evicted; it is asked only when something has to go. */
  constructor(pinned: () => ReadonlySet<string> = () => new Set(), bounds: DatastoreBounds = {}) {
    super()
    this.#pinned = pinned
    this.#entriesMax = bounds.entries ?? ENTRIES_MAX
    this.#bytesMax = bounds.bytes ?? BYTES_MAX
  }

  get size(): number {
    return this.#values.size
  }

  override put(key: Key, value: Uint8Array): Key {
    if (value.byteLength > ENTRY_BYTES_MAX) {
      throw new RangeError(`an entry of ${value.byteLength} bytes; the limit is ${ENTRY_BYTES_MAX}`)
    }
    const name = key.toString()
    const parent = parentOf(name)
    this.#remove(name)
    const siblings = this.#children.get(parent)
    if (siblings === undefined) this.#children.set(parent, new Set([name]))
    else {
      if (isProvider(name) && siblings.size >= CHILDREN_MAX) this.#remove(first(siblings))
      siblings.add(name)
      this.#children.set(parent, siblings)
    }
    this.#values.set(name, value)
    this.#bytes += name.length + value.byteLength
    if (this.#values.size > this.#entriesMax || this.#bytes > this.#bytesMax) this.#evict()
    return key
  }

  override get(key: Key): Uint8Array {
    const name = key.toString()
    const value = this.#values.get(name)
    if (value === undefined) throw new NotFoundError()
    this.#values.delete(name)
    this.#values.set(name, value)
    return value
  }

  override has(key: Key): boolean {
    return this.#values.has(key.toString())
  }

  override delete(key: Key): void {
    this.#remove(key.toString())
  }

  override *_all(query: Query): Generator<Pair> {
    for (const name of this.#namesUnder(query.prefix)) {
      const value = this.#values.get(name)
      if (value !== undefined) yield { key: new Key(name, false), value }
    }
  }

  override *_allKeys(query: KeyQuery): Generator<Key> {
    for (const name of this.#namesUnder(query.prefix)) yield new Key(name, false)
  }

  /** A snapshot, so that a reader may write while it reads. The base class filters by prefix once more. */
  #namesUnder(prefix: string | undefined): string[] {
    if (prefix === undefined || !LISTED.some((path) => prefix.startsWith(path))) return [...this.#values.keys()]
    return [...(this.#children.get(prefix.replace(/\/$/, '')) ?? [])]
  }

  #remove(name: string): void {
    const value = this.#values.get(name)
    if (value === undefined) return
    this.#values.delete(name)
    this.#bytes -= name.length + value.byteLength
    const parent = parentOf(name)
    const siblings = this.#children.get(parent)
    siblings?.delete(name)
    if (siblings?.size === 0) this.#children.delete(parent)
  }

  #evict(): void {
    const pinned = this.#pinned()
    const entries = this.#entriesMax * (1 - EVICT_SHARE)
    const bytes = this.#bytesMax * (1 - EVICT_SHARE)
    for (const name of this.#values.keys()) {
      if (this.#values.size <= entries && this.#bytes <= bytes) return
      if (!pinned.has(name)) this.#remove(name)
    }
  }
}

function parentOf(name: string): string {
  return name.slice(0, Math.max(name.lastIndexOf('/'), 0))
}

function isProvider(name: string): boolean {
  return name.startsWith('/dht/provider/')
}

function first(names: Set<string>): string {
  for (const name of names) return name
  return ''
}
