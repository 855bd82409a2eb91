/** Whose store may have a path, by records that come, change and go, and by what nobody should have said. */
import { createHash } from 'node:crypto'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Filters } from '../../../agent/catalog/filters.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import {
  CHANGES_NAME,
  encodeChanges,
  encodePart,
  FILTER_KIND,
  filterKey,
  partName,
  partOfKey,
  prefixOfKey,
} from '../../../protocols/records/filter.ts'
import { makeStore, recordBy, START_MS } from './catalog.ts'

const DIGITS = '0123456789abcdfghijklmnpqrsvwxyz'
/** One in each 32nd of all that there may be. */
const hashParts = Array.from(DIGITS, (first) => {
  const bytes = createHash('sha256').update(first).digest()
  return first + Array.from(bytes.subarray(1), (byte) => DIGITS[byte & 31]).join('')
})
const [one = '', two = '', three = ''] = hashParts
let store: ReturnType<typeof makeStore>
let filters: Filters
let seq = START_MS
const present = new Set<string>()
const barred = new Set<string>()
const options = () => ({
  records: store.records,
  nodes: { get: (peerId: string) => (present.has(peerId) ? ({} as never) : undefined) },
  welcomes: (publisher: Uint8Array) => !barred.has(peerIdOf(publisher)),
})
beforeEach(() => {
  store = makeStore()
  present.clear()
  barred.clear()
  filters = new Filters(options())
})
afterEach(() => {
  filters[Symbol.dispose]()
  store[Symbol.dispose]()
})

function node(): { key: NodeKey; peerId: string } {
  const key = ephemeralNodeKey()
  present.add(key.peerId)
  return { key, peerId: key.peerId }
}
function says(key: NodeKey, name: string, body: unknown): void {
  const what = body === undefined ? { deleted: true as const } : { body }
  store.records.accept(recordBy(key, { kind: FILTER_KIND, name, seq: ++seq, ...what }).bytes)
}
const part = (at: number, parts: number, some: readonly string[]) =>
  encodePart(
    at,
    parts,
    some.map(filterKey).filter((key) => partOfKey(key, parts) === at),
  )
const prefixes = (...some: string[]) => some.map((each) => prefixOfKey(filterKey(each)))
const holders = (hashPart: string, all = filters) => all.holders(hashPart).map(({ peerId }) => peerId)

it('knows who has a path by parts and changes, until they are taken back', () => {
  const [a, b] = [node(), node()]
  for (const at of [0, 1, 2, 3]) says(a.key, partName(at), part(at, 4, hashParts.slice(1)))
  says(b.key, partName(0), part(0, 1, [two]))
  says(b.key, CHANGES_NAME, encodeChanges('b-1:AA', prefixes(three), prefixes(two)))
  expect([one, two, three].map((each) => holders(each))).toEqual([[], [a.peerId], [a.peerId, b.peerId]])
  expect(filters.holders(three)[1]).toEqual({ peerId: b.peerId, signer: 'b-1:AA', network: filters.network })
  expect(filters.signers().map(({ signers }) => signers)).toEqual([['b-1:AA']])
  expect(filters.pathCountOf(a.peerId)).toBe(31)
  // As it is after a restart.
  using again = new Filters(options())
  expect([one, two, three].map((each) => holders(each, again).toSorted())).toEqual(
    [one, two, three].map((each) => holders(each).toSorted()),
  )
  for (const name of [partName(0), CHANGES_NAME]) says(b.key, name, undefined)
  expect(holders(three)).toEqual([a.peerId])
  expect(filters.pathCountOf(b.peerId)).toBeUndefined()
  for (const at of [0, 1, 2, 3]) says(a.key, partName(at), undefined)
  expect(filters.memoryBytes).toBe(0)
})

it('counts any part that is there while a publisher says them anew', () => {
  const { key, peerId } = node()
  says(key, partName(0), part(0, 1, [one]))
  says(key, partName(1), part(1, 2, hashParts))
  expect([holders(one), holders(hashParts.at(-1) ?? ''), holders(two)]).toEqual([[peerId], [peerId], []])
})

it('leaves out who is away, not welcome, or this node', () => {
  const [a, b] = [node(), node()]
  for (const { key } of [a, b]) says(key, partName(0), part(0, 1, [one]))
  store.records.put({ kind: FILTER_KIND, name: partName(0), body: part(0, 1, [one]), leaseMs: 60_000 })
  present.add(store.key.peerId)
  expect(holders(one)).toEqual([a.peerId, b.peerId])
  present.delete(a.peerId)
  barred.add(b.peerId)
  expect(holders(one)).toEqual([])
})

it('makes nothing of what it cannot read, and drops what that replaced', () => {
  const { key, peerId } = node()
  says(key, partName(0), part(0, 1, [one]))
  // Under another number than its own there could be any number of it.
  says(key, 'part-00', part(0, 1, [two]))
  says(key, partName(1), part(0, 1, [two]))
  says(key, 'something', { v: 1 })
  says(key, CHANGES_NAME, { v: 1, signer: 7 })
  expect([holders(one), holders(two)]).toEqual([[peerId], []])
  says(key, partName(0), { ...part(0, 1, [one]), paths: 2 })
  expect(holders(one)).toEqual([])
  expect(filters.memoryBytes).toBe(0)
})

it('takes so much memory and no more', () => {
  using small = new Filters({ ...options(), memoryBytesMax: 100 })
  const [a, b] = [node(), node()]
  says(a.key, partName(0), part(0, 1, hashParts))
  says(b.key, partName(0), part(0, 1, hashParts))
  expect(holders(one, small)).toEqual([a.peerId])
  expect(small.memoryBytes).toBeLessThanOrEqual(100)
  says(a.key, partName(0), undefined)
  says(b.key, partName(0), part(0, 1, hashParts))
  expect(holders(one, small)).toEqual([b.peerId])
})
