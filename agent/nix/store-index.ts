/**
 * Which paths of the local Nix store may be given out, from start() until disposed: all that are valid, but for those that are private by
 * rule and whatever refers to one, directly or not. So what is given out can be had whole, and says nothing of what is not.
 *
 * Nix's database is looked at every second, and read only when it was written to. New paths are found by their ids at once; what was
 * deleted is found by reading all ids, which is done at most so often that it takes a twentieth of a core. Work is done in slices, between
 * which others have their turn. About 130 bytes a path.
 */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { filterKey } from '../../protocols/records/filter.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { hashPartOf } from './closures.ts'
import type { NixStore, PathInfo } from './nix-store.ts'
import type { StoreRules } from './store-rules.ts'

const LOOK_MS = 1_000
/** A whole reading takes as long as it takes; the next one is so many times later, and not sooner than that. */
const REST_FACTOR = 20
const REST_MS_MIN = 2_000
/** About a millisecond. */
const ROWS_AT_ONCE = 500
const IDS_AT_ONCE = 100
/** Beyond, the later paths are not given out. A NixOS builder that nobody cleans has about 300,000. */
const PATHS_MAX = 1_000_000

/** What came and went, by filter keys. */
export type StoreChange = { added: readonly number[]; gone: readonly number[] }

/** Of many paths, side by side: ids, ascending, filter keys, and beginnings of digests; and the ids of those with private names. */
type Rows = { ids: number[]; keys: number[]; digests: number[]; ofPrivate: number[] }

type IndexedStore = Pick<NixStore, 'stamp' | 'rowsAfter' | 'neighbours' | 'byId'>
type Deps = { store: IndexedStore; rules: StoreRules; log: Log; lookMs?: number }

export class StoreIndex implements AsyncDisposable {
  readonly #store: IndexedStore
  readonly #log: Log
  readonly #lookMs: number
  #rules: StoreRules
  /** Ids of what may be given out, by filter key; and by the first 48 bits of the NAR's digest. */
  #byKey = new Map<number, number>()
  #byDigest = new Map<number, number>()
  /** Ids of what is private, and of what refers to it. */
  #withheld = new Set<number>()
  /** Files that turned out not to be what Nix registered. */
  readonly #bad = new Set<number>()
  #lastId = 0
  #inode: bigint | undefined
  #stamp: string | undefined
  /** The rules are others. */
  #isResetDue = false
  #isReadDue = false
  #readAgainMs = 0
  #isFaulty = false
  #isReady = false
  readonly #listeners = new Set<(change: StoreChange) => void>()
  #stopping = new AbortController()
  #running: Promise<void> | undefined

  constructor({ store, rules, log, lookMs = LOOK_MS }: Deps) {
    this.#store = store
    this.#rules = rules
    this.#log = log
    this.#lookMs = lookMs
  }

  /** Follows the store from now on; once more is no fault. */
  start(): void {
    if (this.#running !== undefined) return
    this.#stopping = new AbortController()
    this.#running = this.#follow(this.#stopping.signal)
  }

  /** Follows it no more, and knows of nothing. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    await this.#running
    this.#running = undefined
    this.#forget()
    this.#byKey = new Map()
    this.#byDigest = new Map()
    this.#isReady = false
  }

  /** Takes other rules, at once for the paths that they name. */
  setRules(rules: StoreRules): void {
    this.#rules = rules
    this.#isResetDue = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
    this.#listeners.clear()
  }

  /** Whether it was read whole, once. */
  get isReady(): boolean {
    return this.#isReady
  }

  get pathCount(): number {
    return this.#byKey.size
  }

  /** Filter keys of all that may be given out. */
  keys(): Iterable<number> {
    return this.#byKey.keys()
  }

  /** Told of what came and went. Gives back how to stop. */
  onChange(listener: (change: StoreChange) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Whether a NAR of this digest seems to be here, to be given out: from memory, for every request. */
  hasNar(digest: Digest): boolean {
    return this.#byDigest.has(digestKey(digest))
  }

  /** What Nix says of the path with this hash part, if it may be given out. Of one that may not it is not asked. */
  byHashPart(hashPart: string): PathInfo | undefined {
    const info = this.#info(this.#byKey.get(filterKey(hashPart)))
    return info && hashPartOf(info.path) === hashPart ? info : undefined
  }

  /** The same for a path with this NAR. */
  byNar(digest: Digest): PathInfo | undefined {
    const info = this.#info(this.#byDigest.get(digestKey(digest)))
    return info?.narHash === digest ? info : undefined
  }

  /** Its files are not what Nix registered: it is not given out any more. */
  reject(digest: Digest): void {
    const id = this.#byDigest.get(digestKey(digest))
    if (id === undefined) return
    this.#bad.add(id)
    this.#isReadDue = true
  }

  #info(id: number | undefined): PathInfo | undefined {
    if (id === undefined || this.#bad.has(id)) return undefined
    try {
      const info = this.#store.byId(id)
      // The rules may be newer than the index.
      return info && ![info.path, ...info.references].some((path) => this.#rules.isPrivatePath(path)) ? info : undefined
    } catch (error) {
      this.#tellFault(error)
      return undefined
    }
  }

  /** The next look reads everything. What is known stays until then. */
  #forget(): void {
    this.#withheld = new Set()
    this.#bad.clear()
    this.#lastId = 0
    this.#stamp = undefined
    this.#readAgainMs = 0
  }

  async #follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#look(signal)
        this.#isFaulty = false
      } catch (error) {
        if (!signal.aborted) this.#tellFault(error)
      }
      await delay(this.#lookMs, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  async #look(signal: AbortSignal): Promise<void> {
    const now = this.#store.stamp()
    if (this.#isResetDue || now?.inode !== this.#inode) {
      this.#forget()
      this.#isResetDue = false
      this.#inode = now?.inode
    }
    const isWritten = now?.text !== this.#stamp
    if (isWritten) {
      if (this.#lastId > 0) await this.#readNew(signal)
      this.#isReadDue = true
    }
    this.#stamp = now?.text
    if (!this.#isReadDue || performance.now() < this.#readAgainMs) return
    this.#isReadDue = false
    const startMs = performance.now()
    await this.#readAll(signal)
    const tookMs = performance.now() - startMs
    this.#readAgainMs = performance.now() + Math.max(REST_MS_MIN, REST_FACTOR * tookMs)
  }

  /** Paths with ids that are higher than any before. */
  async #readNew(signal: AbortSignal): Promise<void> {
    const rows = await this.#rowsAfter(this.#lastId, signal)
    if (rows.ids.length === 0) return
    await this.#withhold(rows, signal)
    const added: number[] = []
    for (const [at, id] of rows.ids.entries()) {
      if (this.#withheld.has(id) || this.#byKey.size >= PATHS_MAX) continue
      const key = rows.keys[at] ?? 0
      this.#byKey.set(key, id)
      this.#byDigest.set(rows.digests[at] ?? 0, id)
      added.push(key)
    }
    this.#tell({ added, gone: [] })
  }

  async #readAll(signal: AbortSignal): Promise<void> {
    const rows = await this.#rowsAfter(0, signal)
    await this.#withhold(rows, signal)
    const [byKey, byDigest, withheld] = [new Map<number, number>(), new Map<number, number>(), new Set<number>()]
    const change = { added: [] as number[], gone: [] as number[] }
    for (const [at, id] of rows.ids.entries()) {
      if (at % ROWS_AT_ONCE === 0) await nextTurn(undefined, { signal })
      if (this.#withheld.has(id)) withheld.add(id)
      else if (!this.#bad.has(id) && byKey.size < PATHS_MAX) {
        const key = rows.keys[at] ?? 0
        byKey.set(key, id)
        byDigest.set(rows.digests[at] ?? 0, id)
        if (!this.#byKey.has(key)) change.added.push(key)
      }
    }
    let nth = 0
    for (const key of this.#byKey.keys()) {
      if (++nth % ROWS_AT_ONCE === 0) await nextTurn(undefined, { signal })
      if (!byKey.has(key)) change.gone.push(key)
    }
    this.#byKey = byKey
    this.#byDigest = byDigest
    this.#withheld = withheld
    if (!this.#isReady) this.#log.info({ paths: byKey.size, withheld: withheld.size }, 'store.read')
    this.#isReady = true
    this.#tell(change)
  }

  async #rowsAfter(after: number, signal: AbortSignal): Promise<Rows> {
    const rows: Rows = { ids: [], keys: [], digests: [], ofPrivate: [] }
    for (;;) {
      const some = this.#store.rowsAfter(rows.ids.at(-1) ?? after, ROWS_AT_ONCE)
      for (const { id, path, narHash } of some) {
        rows.ids.push(id)
        rows.keys.push(filterKey(hashPartOf(path)))
        rows.digests.push(digestKey(narHash))
        if (this.#rules.isPrivatePath(path)) rows.ofPrivate.push(id)
      }
      if (some.length < ROWS_AT_ONCE) return rows
      await nextTurn(undefined, { signal })
    }
  }

  /** Finds which of these are private, or refer to what is; and what refers to those. */
  async #withhold({ ids: all, ofPrivate }: Rows, signal: AbortSignal): Promise<void> {
    const isFirst = this.#lastId === 0
    const before = this.#lastId
    const waiting = ofPrivate.filter((id) => id > before)
    // Of the first ones all that refer to a private one are found from that.
    if (!isFirst) {
      const fresh = all.filter((id) => id > before)
      for await (const { of, id } of this.#neighbours(fresh, false, signal)) {
        if (this.#withheld.has(id)) waiting.push(of)
      }
    }
    while (waiting.length > 0) {
      const ids = waiting.splice(0).filter((id) => !this.#withheld.has(id))
      for (const id of ids) this.#withheld.add(id)
      // What was given out refers to it: Nix registered that while it was read.
      if (!isFirst && ids.some((id) => id <= before)) this.#readAgainMs = 0
      for await (const { id } of this.#neighbours(ids, true, signal)) if (!this.#withheld.has(id)) waiting.push(id)
    }
    this.#lastId = Math.max(before, all.at(-1) ?? 0)
  }

  async *#neighbours(
    ids: readonly number[],
    isUp: boolean,
    signal: AbortSignal,
  ): AsyncIterable<{ of: number; id: number }> {
    for (let at = 0; at < ids.length; at += IDS_AT_ONCE) {
      if (at > 0) await nextTurn(undefined, { signal })
      yield* this.#store.neighbours(ids.slice(at, at + IDS_AT_ONCE), isUp)
    }
  }

  #tell(change: StoreChange): void {
    if (change.added.length + change.gone.length === 0) return
    for (const listener of this.#listeners) listener(change)
  }

  /** Once, until it can be read again. */
  #tellFault(error: unknown): void {
    if (this.#isFaulty) return
    this.#isFaulty = true
    this.#log.warn({ reason: reasonOf(error) }, 'store.unread')
  }
}

function digestKey(digest: Digest): number {
  return Number.parseInt(digest.slice(0, 12), 16)
}
