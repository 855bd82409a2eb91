/** The store of records: what it accepts, which of two wins, what expires, what it says itself, and its bounds. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Change } from '../../../agent/catalog/records.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import {
  decodeRecord,
  ISSUED_AHEAD_MS_MAX,
  LEASE_MS_MAX,
  PUBLISHER_RECORDS_MAX,
  RECORD_BYTES_MAX,
  type SignedRecord,
} from '../../../protocols/records/record.ts'
import { DAY_MS, MINUTE_MS, makeStore, recordBy, START_MS, type Store, stateOf, until } from './catalog.ts'

const [alice, bob] = [ephemeralNodeKey(), ephemeralNodeKey()]

describe('accepting records', () => {
  it('keeps what is new, and knows it again', () => {
    using store = makeStore()
    const record = recordBy(alice, { body: { x: 1 } })
    expect(store.records.accept(record.bytes)).toBe('new')
    expect(store.records.accept(record.bytes)).toBe('known')
    expect(store.records.get(alice.publicKey, 'note', 'a')).toMatchObject({ body: { x: 1 }, seq: record.seq })
    expect(store.records.list('note')).toHaveLength(1)
    expect(store.records.list('other')).toEqual([])
  })

  it('lets the higher seq win, whichever comes first', () => {
    const [older, newer] = [recordBy(alice, { seq: 1, body: 1 }), recordBy(alice, { seq: 2, body: 2 })]
    using one = makeStore()
    expect([one.records.accept(older.bytes), one.records.accept(newer.bytes)]).toEqual(['new', 'new'])
    using two = makeStore()
    expect([two.records.accept(newer.bytes), two.records.accept(older.bytes)]).toEqual(['new', 'older'])
    expect(one.records.get(alice.publicKey, 'note', 'a')?.body).toBe(2)
    expect(stateOf(one)).toBe(stateOf(two))
  })

  it('keeps publishers, kinds and names apart', () => {
    using store = makeStore()
    for (const record of [
      recordBy(alice),
      recordBy(bob),
      recordBy(alice, { kind: 'other', seq: 2 }),
      recordBy(alice, { name: 'b', seq: 3 }),
    ])
      expect(store.records.accept(record.bytes)).toBe('new')
    expect(store.records.counts()).toMatchObject({ records: 4, publishers: 2 })
  })

  it('hides what a deletion names, and keeps the deletion', () => {
    using store = makeStore()
    store.records.accept(recordBy(alice, { seq: 1 }).bytes)
    const deletion = recordBy(alice, { seq: 2, deleted: true })
    expect(store.records.accept(deletion.bytes)).toBe('new')
    expect(store.records.get(alice.publicKey, 'note', 'a')).toBeUndefined()
    expect(store.records.list('note')).toEqual([])
    expect(Buffer.compare(store.records.fetch(deletion.id) ?? new Uint8Array(), deletion.bytes)).toBe(0)
  })

  it('refuses what is wrong, and says why', () => {
    using store = makeStore()
    const good = recordBy(alice)
    const forged = Buffer.from(good.bytes)
    forged[3] = (forged[3] ?? 0) ^ 1
    const { accept } = { accept: (bytes: Uint8Array) => store.records.accept(bytes) }
    expect(accept(forged)).toBe('refused:bad-signature')
    expect(accept(good.bytes.subarray(0, 100))).toBe('refused:malformed')
    expect(accept(new Uint8Array(RECORD_BYTES_MAX + 1))).toBe('refused:too-large')
    expect(accept(new Uint8Array(1024 ** 3))).toBe('refused:too-large')
    expect(accept(recordBy(alice, { network: new Uint8Array(32) }).bytes)).toBe('refused:network')
    expect(accept(recordBy(alice, { issued: START_MS - DAY_MS, leaseMs: DAY_MS }).bytes)).toBe('expired')
    expect(accept(recordBy(alice, { issued: START_MS + ISSUED_AHEAD_MS_MAX + 1 }).bytes)).toBe('refused:future')
    expect(store.records.counts().records).toBe(0)
    expect(accept(recordBy(alice, { issued: START_MS + ISSUED_AHEAD_MS_MAX }).bytes)).toBe('new')
  })

  it('keeps the good ones of a list with bad ones', () => {
    using store = makeStore()
    const good = recordBy(alice)
    expect(store.records.acceptAll([new Uint8Array(3), good.bytes, good.bytes])).toEqual([
      'refused:malformed',
      'new',
      'known',
    ])
  })

  it('keeps kinds that nobody knows, to pass them on', () => {
    using store = makeStore()
    const record = recordBy(alice, { kind: 'from-the-future', body: { any: ['thing', 1.5] } })
    store.records.accept(record.bytes)
    expect(Buffer.compare(store.records.fetch(record.id) ?? new Uint8Array(), record.bytes)).toBe(0)
  })

  it('tells of changes after they are stored', () => {
    using store = makeStore()
    const told: Change[] = []
    const stop = store.records.onChange((changes) => void told.push(...changes))
    store.records.accept(recordBy(alice, { seq: 1 }).bytes)
    store.records.put({ kind: 'note', name: 'mine', body: 1, leaseMs: DAY_MS })
    store.records.accept(recordBy(alice, { seq: 1 }).bytes)
    expect(told.map(({ cause, record }) => [cause, record?.name])).toEqual([
      ['accepted', 'a'],
      ['put', 'mine'],
    ])
    stop()
    store.records.accept(recordBy(alice, { seq: 2 }).bytes)
    expect(told).toHaveLength(2)
  })
})

describe('equivocation', () => {
  it('is settled the same way everywhere, and proven', () => {
    const [one, other] = [recordBy(alice, { seq: 5, body: 1 }), recordBy(alice, { seq: 5, body: 2 })]
    using first = makeStore()
    using second = makeStore()
    first.records.acceptAll([one.bytes, other.bytes])
    second.records.acceptAll([other.bytes, one.bytes])
    expect(stateOf(first)).toBe(stateOf(second))
    for (const { records, log } of [first, second]) {
      const [proof, ...more] = records.proofs()
      expect(more).toEqual([])
      const said = [proof?.one, proof?.other].map((bytes) => decodeRecord(bytes ?? new Uint8Array()))
      expect(said.map(({ seq }) => seq)).toEqual([5, 5])
      expect(new Set(said.map(({ body }) => body))).toEqual(new Set([1, 2]))
      expect(log.entries.map(({ event }) => event)).toEqual(['publisher.equivocated'])
    }
  })

  it('is noticed between two names too, where both stay', () => {
    using store = makeStore()
    store.records.acceptAll([recordBy(alice, { seq: 5 }).bytes, recordBy(alice, { seq: 5, name: 'b' }).bytes])
    expect(store.records.list('note')).toHaveLength(2)
    expect(store.records.proofs()).toHaveLength(1)
  })

  it('is not taken from a forgery', () => {
    using store = makeStore()
    const real = recordBy(alice, { seq: 5, body: 1 })
    store.records.accept(real.bytes)
    for (const body of [2, 3, 4, 5, 6, 7]) {
      const forged = Buffer.from(recordBy(alice, { seq: 5, body }).bytes)
      forged.fill(1, 0, 64)
      expect(store.records.accept(forged)).toBe('refused:bad-signature')
    }
    expect(store.records.proofs()).toEqual([])
    expect(store.records.get(alice.publicKey, 'note', 'a')?.body).toBe(1)
  })
})

describe('expiry', () => {
  it.each([
    ['a short lease, held in memory', MINUTE_MS],
    ['a long lease, held on disk', 30 * DAY_MS],
  ])('ends %s', (_what, leaseMs) => {
    using store = makeStore()
    const told: Change[] = []
    store.records.onChange((changes) => void told.push(...changes))
    const empty = stateOf(store)
    store.records.accept(recordBy(alice, { leaseMs }).bytes)
    store.clock.at += leaseMs - 1
    expect(store.records.list('note')).toHaveLength(1)
    store.clock.at += 1
    expect(store.records.list('note')).toEqual([])
    expect(store.records.get(alice.publicKey, 'note', 'a')).toBeUndefined()
    expect(stateOf(store)).toBe(empty)
    expect(store.records.counts()).toEqual({ records: 0, publishers: 0, bytes: 0 })
    expect(told.at(-1)).toMatchObject({ cause: 'expired', name: 'a', record: undefined })
  })

  it('is noticed within seconds by itself, also after the clock jumped', async () => {
    using store = makeStore()
    let isGone = false
    store.records.onChange((changes) => {
      isGone ||= changes.some(({ cause }) => cause === 'expired')
    })
    store.records.accept(recordBy(alice, { leaseMs: DAY_MS }).bytes)
    store.clock.at += DAY_MS
    await until(() => isGone, 5_000)
  })

  it('leaves in place what was said here, but nobody sees it', () => {
    using store = makeStore()
    const empty = stateOf(store)
    store.records.put({ kind: 'note', name: 'mine', body: 1, leaseMs: 2 * DAY_MS })
    store.clock.at += 3 * DAY_MS
    expect(store.records.list('note')).toEqual([])
    expect(stateOf(store)).toBe(empty)
    expect(store.records.own('note')).toHaveLength(1)
  })

  it('takes a thousand at once', () => {
    using store = makeStore()
    const all = Array.from({ length: 1_000 }, (_, nth) => recordBy(alice, { seq: nth, name: `n${nth}` }).bytes)
    store.records.acceptAll(all)
    store.clock.at += DAY_MS
    store.records.sweep()
    expect(store.records.counts().records).toBe(0)
  })
})

describe('saying things', () => {
  it('counts up for every record, and never back', () => {
    using store = makeStore()
    const seqs = ['a', 'b', 'a'].map((name) => put(store, name).seq)
    store.clock.at -= DAY_MS
    seqs.push(put(store, 'a').seq)
    store.clock.at += 5 * DAY_MS
    seqs.push(put(store, 'b').seq)
    expect(seqs).toEqual([...seqs].sort((x, y) => x - y))
    expect(new Set(seqs).size).toBe(seqs.length)
    expect(seqs.at(-1)).toBe(store.clock.at)
  })

  it('goes on above its own records that come back from the network', () => {
    using before = makeStore()
    const far = recordBy(before.key, { name: 'x', seq: START_MS + 100 * DAY_MS })
    using store = makeStore({ key: before.key })
    expect(store.records.accept(far.bytes)).toBe('new')
    expect(store.records.own('note')).toEqual([])
    expect(put(store, 'y').seq).toBe(far.seq + 1)
  })

  it('does not let a successor or a deletion expire before what it replaces', () => {
    using store = makeStore()
    const first = put(store, 'a', LEASE_MS_MAX)
    store.clock.at += MINUTE_MS
    const second = put(store, 'a', MINUTE_MS)
    expect(second.expires).toBe(first.expires)
    const deletion = store.records.remove('note', 'a')
    expect(deletion?.deleted).toBe(true)
    expect(deletion?.expires).toBeGreaterThanOrEqual(second.expires)
    expect(store.records.remove('note', 'a')).toBeUndefined()
    expect(store.records.remove('note', 'nothing')).toBeUndefined()
  })

  it('recovers when its clock was a year ahead: what nobody took binds nobody', () => {
    using store = makeStore()
    store.clock.at += 365 * DAY_MS
    put(store, 'a', MINUTE_MS)
    store.clock.at -= 365 * DAY_MS
    const record = put(store, 'a', MINUTE_MS)
    expect(record).toMatchObject({ issued: store.clock.at, expires: store.clock.at + MINUTE_MS })
    using other = makeStore()
    expect(other.records.accept(record.bytes)).toBe('new')
  })

  it('refuses more than others would keep, and says what to do', () => {
    using store = makeStore()
    for (let nth = 0; nth < PUBLISHER_RECORDS_MAX; nth++) put(store, `n${nth}`, MINUTE_MS)
    expect(() => put(store, 'one more')).toThrow()
    expect(() => put(store, 'one-more')).toThrow(expect.objectContaining({ code: 'limit' }))
    expect(put(store, 'n0', MINUTE_MS).name).toBe('n0')
    expect(store.records.counts().records).toBe(PUBLISHER_RECORDS_MAX)
  })
})

describe('bounds of one publisher', () => {
  it('keeps the newest of 10,000 records, in any order, and the store stays small', () => {
    const all = Array.from({ length: 10_000 }, (_, nth) => recordBy(alice, { seq: nth, name: `n${nth}` }))
    const states = [all, all.toReversed(), shuffled(all)].map((order) => {
      using store = makeStore()
      for (const { bytes } of order) store.records.accept(bytes)
      expect(store.records.counts()).toMatchObject({ records: PUBLISHER_RECORDS_MAX, publishers: 1 })
      expect(store.records.get(alice.publicKey, 'note', 'n9999')).toBeDefined()
      expect(store.records.get(alice.publicKey, 'note', `n${9_999 - PUBLISHER_RECORDS_MAX}`)).toBeUndefined()
      expect(store.records.accept(all[0]?.bytes ?? new Uint8Array())).toBe('refused:bounds')
      return stateOf(store)
    })
    expect(new Set(states).size).toBe(1)
  }, 60_000)

  it('keeps the newest 4 MiB of large records, in any order', () => {
    const body = new Uint8Array(60_000)
    const all = Array.from({ length: 120 }, (_, nth) => recordBy(alice, { seq: nth, name: `n${nth}`, body }))
    const states = [all, all.toReversed(), shuffled(all)].map((order) => {
      using store = makeStore()
      for (const { bytes } of order) store.records.accept(bytes)
      expect(store.records.counts().bytes).toBeLessThanOrEqual(4 * 1024 * 1024)
      expect(store.records.counts().bytes).toBeGreaterThan(4 * 1024 * 1024 - 61_000)
      return stateOf(store)
    })
    expect(new Set(states).size).toBe(1)
  })

  it('does not let one publisher crowd out another', () => {
    using store = makeStore()
    store.records.accept(recordBy(bob).bytes)
    for (let nth = 0; nth < 1_100; nth++) store.records.accept(recordBy(alice, { seq: nth, name: `n${nth}` }).bytes)
    expect(store.records.get(bob.publicKey, 'note', 'a')).toBeDefined()
  })
})

describe('bounds of the whole store', () => {
  it('refuse strangers once it is full of strangers, and nobody who was there before', () => {
    using store = makeStore()
    const first = put(store, 'mine', MINUTE_MS)
    store.records.accept(recordBy(alice).bytes)
    const sign = () => new Uint8Array(64)
    const strangers = Array.from({ length: 10_000 }, () => ({ ...ephemeralNodeKey() }))
    const taken = strangers.map((key) => store.records.accept(recordBy(key, { leaseMs: MINUTE_MS }).bytes))
    expect(taken.filter((acceptance) => acceptance === 'new')).toHaveLength(10_000 - 2)
    expect(taken.at(-1)).toBe('refused:full')
    expect(store.records.accept(recordBy({ ...bob, sign }).bytes)).toBe('refused:full')
    expect(store.records.accept(recordBy(alice, { seq: START_MS + 1 }).bytes)).toBe('new')
    expect(put(store, 'mine', MINUTE_MS).seq).toBeGreaterThan(first.seq)
    store.clock.at += MINUTE_MS
    store.records.sweep()
    expect(store.records.accept(recordBy(bob).bytes)).toBe('new')
  }, 60_000)
})

describe('the state of a store', () => {
  it('is the same for any records, in any order, cut into any transactions', () => {
    const keys = [alice, bob]
    const said = fc.record({
      who: fc.constantFrom(0, 1),
      name: fc.constantFrom('a', 'b', 'c'),
      seq: fc.integer({ min: START_MS, max: START_MS + 3 }),
      leaseMs: fc.constantFrom(MINUTE_MS, 2 * DAY_MS),
      body: fc.constantFrom(0, 1, undefined),
    })
    const made = new Map<string, SignedRecord>()
    const recordOf = ({ who, body, ...rest }: { who: number; body: number | undefined; name: string }) => {
      const name = JSON.stringify([who, body, rest])
      const known =
        made.get(name) ??
        recordBy(keys[who] ?? alice, body === undefined ? { ...rest, deleted: true } : { ...rest, body })
      made.set(name, known)
      return known
    }
    const order = fc
      .array(said, { maxLength: 30 })
      .chain((list) =>
        fc.tuple(
          fc.constant(list),
          fc.shuffledSubarray(list, { minLength: list.length, maxLength: list.length }),
          fc.integer({ min: 1, max: 7 }),
        ),
      )
    fc.assert(
      fc.property(order, ([list, other, cut]) => {
        using one = makeStore()
        using two = makeStore()
        for (const each of list) one.records.accept(recordOf(each).bytes)
        for (let at = 0; at < other.length; at += cut)
          two.records.acceptAll(other.slice(at, at + cut).map((each) => recordOf(each).bytes))
        expect(stateOf(one)).toBe(stateOf(two))
        one.clock.at += DAY_MS
        two.clock.at += DAY_MS
        expect(stateOf(one)).toBe(stateOf(two))
      }),
      { numRuns: 60 },
    )
  })
})

function put({ records }: Store, name: string, leaseMs = 2 * DAY_MS): SignedRecord {
  return records.put({ kind: 'note', name, body: 1, leaseMs })
}

function shuffled<T>(list: readonly T[]): T[] {
  return (
    fc.sample(fc.shuffledSubarray([...list], { minLength: list.length, maxLength: list.length }), {
      numRuns: 1,
      seed: 7,
    })[0] ?? []
  )
}
