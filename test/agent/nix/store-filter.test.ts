/** How a node says what is in its store: parts, changes, less said the more there is, and all of it taken back. */
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Filters } from '../../../agent/catalog/filters.ts'
import { StoreFilter } from '../../../agent/nix/store-filter.ts'
import type { StoreChange } from '../../../agent/nix/store-index.ts'
import { StoreShares } from '../../../agent/nix/store-shares.ts'
import { CHANGES_NAME, FILTER_KIND, filterKey } from '../../../protocols/records/filter.ts'
import { until } from '../../agents.ts'
import { randomFrom } from '../../random.ts'
import { makeStore } from '../catalog/catalog.ts'
import { memoryLog } from './peers.ts'

const DIGITS = '0123456789abcdfghijklmnpqrsvwxyz'
const random = randomFrom(7)
const someHashPart = () => Array.from({ length: 32 }, () => DIGITS[Math.floor(random() * 32)]).join('')

/** An index that the test fills. */
class FakeIndex {
  readonly paths = new Map<number, string>()
  isReady = true
  #listener: ((change: StoreChange) => void) | undefined
  get pathCount(): number {
    return this.paths.size
  }
  keys(): Iterable<number> {
    return this.paths.keys()
  }
  onChange(listener: (change: StoreChange) => void): () => void {
    this.#listener = listener
    return () => {
      this.#listener = undefined
    }
  }
  change(added: readonly string[], gone: readonly string[] = []): void {
    for (const path of added) this.paths.set(filterKey(path), path)
    for (const path of gone) this.paths.delete(filterKey(path))
    this.#listener?.({ added: added.map(filterKey), gone: gone.map(filterKey) })
  }
}

let store: ReturnType<typeof makeStore>
let reader: ReturnType<typeof makeStore>
let network: string
let index: FakeIndex
let shares: StoreShares
let filter: StoreFilter
let seen: Filters
/** Names of the records that were said. */
let said: string[]
beforeEach(() => {
  store = makeStore()
  reader = makeStore()
  network = Buffer.from(store.records.network).toString('hex')
  said = []
  store.records.onChange((changes) => {
    for (const { name, record } of changes) {
      said.push(record?.deleted ? `-${name}` : name)
      if (record) reader.records.accept(record.bytes)
    }
  })
  index = new FakeIndex()
  shares = new StoreShares(store.db)
  filter = new StoreFilter({ index, shares, signer: 'k-1:AA', log: memoryLog() })
  filter.join(network, store.records)
  seen = new Filters({ records: reader.records, nodes: { get: () => ({}) as never } })
})
afterEach(async () => {
  await filter[Symbol.asyncDispose]()
  seen[Symbol.dispose]()
  store[Symbol.dispose]()
  reader[Symbol.dispose]()
})

const has = (path: string) => seen.holders(path).length === 1
const sees = (path: string) => until(() => has(path), { what: 'it is seen' })

it('says nothing before it is shared, then all of it, and takes all back', async () => {
  const [path, other] = [someHashPart(), someHashPart()]
  index.change([path])
  shares.set('cd'.repeat(32), 'store')
  shares.set(network, 'store')
  await sees(path)
  expect([has(other), seen.holders(path)[0]?.signer]).toEqual([false, 'k-1:AA'])
  expect(said).toEqual([CHANGES_NAME, 'part-0'])
  shares.set(network, 'published')
  await until(() => !has(path), { what: 'it is taken back' })
  expect(store.records.own(FILTER_KIND)).toEqual([])
})

it('says what comes and goes as changes, and the parts anew when they are many', async () => {
  const paths = Array.from({ length: 3_000 }, someHashPart)
  const [gone = '', ...rest] = paths
  index.change(paths)
  shares.set(network, 'store')
  await until(() => said.includes('part-0'), { what: 'it is said' })
  said.length = 0
  const later = someHashPart()
  index.change([later], [gone])
  await sees(later)
  expect([has(gone), rest.every(has)]).toEqual([false, true])
  expect(said).toEqual([CHANGES_NAME])
  // It comes back, and what came goes.
  index.change([gone], [later])
  await sees(gone)
  expect(has(later)).toBe(false)
  said.length = 0
  // More than changes can say: that does not wait.
  const many = Array.from({ length: 9_000 }, someHashPart)
  index.change(many)
  await until(() => many.every(has), { what: 'all are seen', ms: 30_000 })
  expect(said).toEqual(['part-0', 'part-1'])
})

it('says the same again to nobody, and takes back what it said before it was ended', async () => {
  const path = someHashPart()
  index.change([path])
  shares.set(network, 'store')
  await sees(path)
  await filter[Symbol.asyncDispose]()
  said.length = 0
  // As after a restart, with the store as it was.
  filter = new StoreFilter({ index, shares, signer: 'k-1:AA', log: memoryLog() })
  filter.join(network, store.records)
  const later = someHashPart()
  // It has been here for the length of a say.
  await new Promise((resolve) => setImmediate(resolve))
  index.change([later])
  await sees(later)
  expect(said.filter((name) => name !== CHANGES_NAME).length).toBeLessThanOrEqual(1)
  await filter[Symbol.asyncDispose]()
  new StoreShares(store.db).set(network, 'published')
  filter = new StoreFilter({ index, shares: new StoreShares(store.db), signer: 'k-1:AA', log: memoryLog() })
  filter.join(network, store.records)
  await until(() => !has(path), { what: 'it is taken back' })
})

it('waits until the store was read', async () => {
  const path = someHashPart()
  index.isReady = false
  shares.set(network, 'store')
  await new Promise((resolve) => setImmediate(resolve))
  expect(said).toEqual([])
  index.isReady = true
  index.change([path])
  await sees(path)
})

it('tells why when it cannot be said, and says it when it can', async () => {
  await filter[Symbol.asyncDispose]()
  let isFull = true
  const records = Object.assign(Object.create(store.records), {
    publisher: store.records.publisher,
    get: store.records.get.bind(store.records),
    own: store.records.own.bind(store.records),
    remove: store.records.remove.bind(store.records),
    put: (what: Parameters<typeof store.records.put>[0]) => {
      if (isFull) throw new Error('said too much')
      return store.records.put(what)
    },
  })
  filter = new StoreFilter({ index, shares, signer: 'k-1:AA', log: memoryLog() })
  const path = someHashPart()
  index.change([path])
  shares.set(network, 'store')
  const joined = filter.join(network, records)
  await until(() => filter.failure === 'said too much', { what: 'it is told' })
  isFull = false
  joined[Symbol.dispose]()
  filter.join(network, records)
  await sees(path)
  await until(() => filter.failure === undefined, { what: 'nothing is wrong any more' })
})
