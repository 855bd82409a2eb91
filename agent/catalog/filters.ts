/**
 * Whose Nix store may have a path, in one network: a view of the filter records, in memory as compact as they came (14 bits a path), so that
 * a path that nobody has costs some memory accesses and no message. Format: protocols/records/spec.md, "Kind `filter`".
 *
 * A filter that cannot be read is as if it were not there. Those of nodes that are not here, or not welcome, are kept and not asked about.
 */

import { WireError } from '../../protocols/error.ts'
import {
  CHANGES_NAME,
  FILTER_KIND,
  type FilterPart,
  filterKey,
  PARTS_MAX,
  type Prefixes,
  partName,
  prefixOfKey,
  readChanges,
  readPart,
} from '../../protocols/records/filter.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Welcomes } from './artifact-index.ts'
import type { Nodes } from './nodes.ts'
import type { Change, Records } from './records.ts'

/** Of all filters of a network together: 100 stores of 300,000 paths. What comes beyond is left out. */
const MEMORY_BYTES_MAX = 64 * 1024 * 1024

/** Somebody who may have a path. */
export type Holder = {
  peerId: string
  /** Its cache key, as it says; may be none. */
  signer: string
  /** The id, in hexadecimal, of the network in which it gives it out. */
  network: string
}

type StoreOf = {
  publisher: Uint8Array
  peerId: string
  parts: Map<string, FilterPart>
  /** Parts that may have a key, by its first six bits. */
  slots: (readonly FilterPart[])[]
  changes: { signer: string; added: Prefixes; gone: Prefixes } | undefined
}

export type FiltersOptions = {
  records: Pick<Records, 'network' | 'publisher' | 'list' | 'onChange'>
  nodes: Pick<Nodes, 'get'>
  /** Whether what a publisher gives out is to be found here; asked with each question, since policies change. */
  welcomes?: Welcomes
  memoryBytesMax?: number
}

export class Filters implements Disposable {
  /** Its id in hexadecimal. */
  readonly network: string
  readonly #options: FiltersOptions
  /** By peer id; this node's own is not among them. */
  readonly #stores = new Map<string, StoreOf>()
  readonly #unlisten: () => void
  #memoryBytes = 0

  constructor(options: FiltersOptions) {
    const { records } = options
    this.network = Buffer.from(records.network).toString('hex')
    this.#options = options
    for (const record of records.list(FILTER_KIND)) this.#apply({ ...record, record })
    this.#unlisten = records.onChange((changes) => {
      for (const change of changes) if (change.kind === FILTER_KIND) this.#apply(change)
    })
  }

  [Symbol.dispose](): void {
    this.#unlisten()
  }

  get memoryBytes(): number {
    return this.#memoryBytes
  }

  /** How many paths a node gives out, about; undefined for one that says nothing of it. */
  pathCountOf(peerId: string): number | undefined {
    const parts = this.#stores.get(peerId)?.parts.values()
    return parts?.reduce((sum, { paths }) => sum + paths, 0)
  }

  /** Who may have the path with this hash part, and is there. */
  holders(hashPart: string): Holder[] {
    const { nodes, welcomes } = this.#options
    const key = filterKey(hashPart)
    const found: Holder[] = []
    for (const store of this.#stores.values()) {
      if (!mayHave(store, key) || nodes.get(store.peerId) === undefined || welcomes?.(store.publisher) === false)
        continue
      found.push({ peerId: store.peerId, signer: store.changes?.signer ?? '', network: this.network })
    }
    return found
  }

  /** The keys that publishers sign with, as they say. */
  signers(): { publisher: Uint8Array; signers: string[] }[] {
    return [...this.#stores.values()].flatMap(({ publisher, changes }) =>
      changes === undefined ? [] : [{ publisher, signers: [changes.signer] }],
    )
  }

  #apply({ publisher, name, record }: Pick<Change, 'publisher' | 'name' | 'record'>): void {
    if (Buffer.compare(publisher, this.#options.records.publisher) === 0) return
    const peerId = peerIdOf(publisher)
    const store = this.#stores.get(peerId) ?? {
      publisher: Uint8Array.from(publisher),
      peerId,
      parts: new Map(),
      slots: [],
      changes: undefined,
    }
    this.#memoryBytes -= memoryOf(store)
    const body = record?.deleted === false ? record.body : undefined
    if (name === CHANGES_NAME) store.changes = body === undefined ? undefined : readOrNone(() => readChanges(body))
    else {
      const part = body === undefined ? undefined : readOrNone(() => readPart(body))
      store.parts.delete(name)
      // By its number only: so there are at most 64 of them.
      const isFull = this.#memoryBytes + memoryOf(store) + (part?.memoryBytes ?? 0) > this.#memoryBytesMax
      if (part && name === partName(part.part) && !isFull) store.parts.set(name, part)
      store.slots = slotsOf(store.parts)
    }
    this.#memoryBytes += memoryOf(store)
    if (store.parts.size === 0 && store.changes === undefined) this.#stores.delete(peerId)
    else this.#stores.set(peerId, store)
  }

  get #memoryBytesMax(): number {
    return this.#options.memoryBytesMax ?? MEMORY_BYTES_MAX
  }
}

function mayHave({ slots, changes }: StoreOf, key: number): boolean {
  const prefix = prefixOfKey(key)
  if (changes?.added.has(prefix)) return true
  const parts = slots[Math.floor(key / SLOT)]
  return parts?.some((part) => part.has(key)) === true && changes?.gone.has(prefix) !== true
}

/** Keys are 52 bits. */
const SLOT = 2 ** 52 / PARTS_MAX

function slotsOf(parts: ReadonlyMap<string, FilterPart>): (readonly FilterPart[])[] {
  const all = [...parts.values()]
  return Array.from({ length: PARTS_MAX }, (_, slot) =>
    all.filter(({ part, parts: of }) => Math.floor(slot / (PARTS_MAX / of)) === part),
  )
}

function memoryOf({ parts, changes }: StoreOf): number {
  const ofParts = parts.values().reduce((sum, { memoryBytes }) => sum + memoryBytes, 0)
  return ofParts + (changes?.added.memoryBytes ?? 0) + (changes?.gone.memoryBytes ?? 0)
}

/** What a stranger says may be anything. */
function readOrNone<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    if (error instanceof WireError) return undefined
    throw error
  }
}
