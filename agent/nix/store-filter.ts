/**
 * Says which paths this node gives out of its Nix store, by a filter in records, in each network in which it does. Format: protocols/records/spec.md,
 * "Kind `filter`".
 *
 * The parts are made anew when the changes since have become many; between, the changes are said, soon when they are few and less often
 * when they are many, so that a store in which much happens costs a network a kilobyte a second. Where nothing is given out any more the
 * records are taken back.
 */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import {
  CHANGES_MAX,
  CHANGES_NAME,
  type ChangesBody,
  encodeChanges,
  encodePart,
  FILTER_KIND,
  FilterPart,
  PART_PATHS_MAX,
  type PartBody,
  partName,
  partOfKey,
  partsFor,
  prefixOfKey,
} from '../../protocols/records/filter.ts'
import type { Records } from '../catalog/records.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { StoreChange, StoreIndex } from './store-index.ts'
import type { StoreShares } from './store-shares.ts'

/** Renewed at half of it, so a node that is gone for good is forgotten within a week. */
export const FILTER_LEASE_MS = 7 * 24 * 3_600_000
/** Paths in a part: the more, the more is said anew when one changes; the fewer, the more records. */
const PART_PATHS = 8_192
/** Paths that the parts have room for, unevenly as they are spread. */
const PATHS_MAX = 1_000_000
/** Several paths of one build are said together. */
const SAY_MS_MIN = 1_000
/** Bytes of changes a millisecond: a kilobyte a second. */
const SAY_BYTES_PER_MS = 1
const CHANGE_BYTES = 6
/** From so many changes on the parts are made anew, but not more often than that, unless there are too many to be said. */
const REBASE_CHANGES = 1_024
const REBASE_MS_MIN = 60_000
/** After a failure to say something: the node has said too much already, or the disk is full. */
const RETRY_MS = 30_000
/** Keys that are sorted into parts before others have their turn: about 2 ms. */
const KEYS_AT_ONCE = 20_000
/** Between parts: each is gossiped to everybody. */
const PART_MS = 20

type OwnRecords = Pick<Records, 'publisher' | 'get' | 'own' | 'put' | 'remove'>
type Deps = {
  index: Pick<StoreIndex, 'isReady' | 'keys' | 'pathCount' | 'onChange'>
  shares: Pick<StoreShares, 'networks' | 'onChange'>
  /** The cache key, `name:base64`. */
  signer: string
  log: Log
}

export class StoreFilter implements AsyncDisposable {
  readonly #deps: Deps
  /** By the id of a network that runs. */
  readonly #records = new Map<string, OwnRecords>()
  readonly #unlisten: (() => void)[]
  readonly #stopping = new AbortController()
  /** What the index told and was not taken in. */
  #changes: StoreChange[] = []
  /** As they were made last, with what they say. */
  #parts: { body: PartBody; filter: FilterPart }[] | undefined
  /** Prefixes: in no part and given out; in one, and not given out. */
  readonly #added = new Set<number>()
  readonly #gone = new Set<number>()
  /** The parts that were said last in a network. */
  readonly #said = new WeakMap<OwnRecords, object>()
  #rebasedMs = 0
  #saidMs = Number.NEGATIVE_INFINITY
  #failure: string | undefined
  #isDue = false
  #wake: () => void = () => undefined
  readonly #running: Promise<void>

  constructor(deps: Deps) {
    this.#deps = deps
    this.#unlisten = [
      deps.index.onChange((change) => {
        this.#changes.push(change)
        this.#due()
      }),
      deps.shares.onChange(() => this.#due(true)),
    ]
    this.#running = this.#run()
  }

  /** A network runs, until the answer is disposed. */
  join(network: string, records: OwnRecords): Disposable {
    this.#records.set(network, records)
    this.#due(true)
    return { [Symbol.dispose]: () => void this.#records.delete(network) }
  }

  /** Why the filter cannot be said, if it cannot. */
  get failure(): string | undefined {
    return this.#failure
  }

  /** What was said stays until it is said otherwise: this node may be back soon. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const unlisten of this.#unlisten) unlisten()
    this.#stopping.abort()
    this.#wake()
    await this.#running
  }

  #due(isUrgent = false): void {
    this.#isDue = true
    if (isUrgent) this.#saidMs = Number.NEGATIVE_INFINITY
    this.#wake()
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      if (!this.#isDue)
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      const waitMs = this.#saidMs + this.#pauseMs() - performance.now()
      if (waitMs > 0 && !signal.aborted) await this.#pause(waitMs)
      if (signal.aborted) return
      if (this.#saidMs + this.#pauseMs() > performance.now()) continue
      this.#isDue = false
      try {
        await this.#say(signal)
        this.#failure = undefined
      } catch (error) {
        if (signal.aborted) return
        this.#failure = reasonOf(error)
        this.#deps.log.warn({ reason: this.#failure }, 'store.unsaid')
        this.#isDue = true
      }
      this.#saidMs = performance.now()
    }
  }

  /** From one time that something is said to the next. */
  #pauseMs(): number {
    if (this.#failure !== undefined) return RETRY_MS
    return SAY_MS_MIN + ((this.#added.size + this.#gone.size) * CHANGE_BYTES) / SAY_BYTES_PER_MS
  }

  /** Ends early when something urgent comes. */
  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, ms)
    this.#wake = resolve
    await promise
    clearTimeout(timer)
  }

  async #say(signal: AbortSignal): Promise<void> {
    const { index, shares } = this.#deps
    const sharing = [...this.#records].filter(([network]) => shares.networks().has(network))
    for (const [network, records] of this.#records) {
      if (shares.networks().has(network)) continue
      takeBack(records, new Set())
      this.#said.delete(records)
    }
    if (sharing.length === 0 || !index.isReady) {
      this.#changes = []
      this.#parts = undefined
      return
    }
    if (this.#parts !== undefined) this.#takeIn()
    if (this.#isRebaseDue()) await this.#rebase(signal)
    for (const [network, records] of sharing) {
      // It may have been taken back, or left, meanwhile.
      const isShared = () => this.#records.get(network) === records && shares.networks().has(network)
      await this.#sayIn(records, isShared, signal)
    }
  }

  #isRebaseDue(): boolean {
    const changes = this.#added.size + this.#gone.size
    const isRested = performance.now() - this.#rebasedMs > REBASE_MS_MIN
    return this.#parts === undefined || changes > CHANGES_MAX || (changes >= REBASE_CHANGES && isRested)
  }

  /** What came and went since the parts were made. */
  #takeIn(): void {
    const parts = this.#parts ?? []
    const isIn = (key: number) => parts[partOfKey(key, parts.length)]?.filter.has(key) ?? false
    for (const { added, gone } of this.#changes.splice(0)) {
      for (const key of gone) {
        const prefix = prefixOfKey(key)
        if (!this.#added.delete(prefix) && isIn(key)) this.#gone.add(prefix)
      }
      for (const key of added) {
        const prefix = prefixOfKey(key)
        if (!this.#gone.delete(prefix) && !isIn(key)) this.#added.add(prefix)
      }
    }
  }

  /** Makes the parts of what is given out now. */
  async #rebase(signal: AbortSignal): Promise<void> {
    const { index, log } = this.#deps
    // What is told from now on is since these parts.
    this.#changes = []
    const count = partsFor(Math.min(index.pathCount, PATHS_MAX), PART_PATHS)
    const keys: number[][] = Array.from({ length: count }, () => [])
    let nth = 0
    for (const key of index.keys()) {
      if (++nth % KEYS_AT_ONCE === 0) await nextTurn(undefined, { signal })
      const part = keys[partOfKey(key, count)]
      if (part !== undefined && part.length < PART_PATHS_MAX) part.push(key)
    }
    const parts = []
    for (const [part, some] of keys.entries()) {
      const body = encodePart(part, count, some)
      parts.push({ body, filter: new FilterPart(body) })
      await nextTurn(undefined, { signal })
    }
    this.#parts = parts
    this.#added.clear()
    this.#gone.clear()
    this.#rebasedMs = performance.now()
    log.debug({ paths: index.pathCount, parts: count }, 'store.filter-made')
    this.#takeIn()
  }

  async #sayIn(records: OwnRecords, isShared: () => boolean, signal: AbortSignal): Promise<void> {
    const parts = this.#parts ?? []
    const changes = encodeChanges(this.#deps.signer, this.#added, this.#gone)
    if (this.#said.get(records) !== parts) {
      // Whoever finds a path in a part wants to know whose signature it has.
      if (records.get(records.publisher, FILTER_KIND, CHANGES_NAME) === undefined) put(records, CHANGES_NAME, changes)
      for (const { body } of parts) {
        if (!isShared()) return
        if (put(records, partName(body.part), body)) await delay(PART_MS, undefined, { signal })
      }
    }
    if (!isShared()) return
    put(records, CHANGES_NAME, changes)
    if (this.#said.get(records) === parts) return
    takeBack(records, new Set([CHANGES_NAME, ...parts.map(({ body }) => partName(body.part))]))
    this.#said.set(records, parts)
  }
}

/** Says it, unless it is said. */
function put(records: OwnRecords, name: string, body: PartBody | ChangesBody): boolean {
  const said = records.get(records.publisher, FILTER_KIND, name)?.body as Record<string, unknown> | undefined
  const isSaid = said !== undefined && Object.entries(body).every(([key, value]) => isSame(said[key], value))
  if (!isSaid) records.put({ kind: FILTER_KIND, name, body, leaseMs: FILTER_LEASE_MS })
  return !isSaid
}

function takeBack(records: OwnRecords, except: ReadonlySet<string>): void {
  for (const { name } of records.own(FILTER_KIND)) if (!except.has(name)) records.remove(FILTER_KIND, name)
}

function isSame(one: unknown, other: unknown): boolean {
  if (one instanceof Uint8Array && other instanceof Uint8Array) return Buffer.compare(one, other) === 0
  return one === other
}
