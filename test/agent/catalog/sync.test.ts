/** One comparison between two stores over a stream, and what holds of any stores that compare with each other. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Records } from '../../../agent/catalog/records.ts'
import { acceptInTurns, RefusedIds, type SyncResult, syncWith } from '../../../agent/catalog/sync.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { Frames } from '../../../protocols/frame.ts'
import { answerRecords, type RecordHoldings, RecordsAsker } from '../../../protocols/records/exchange.ts'
import { ISSUED_AHEAD_MS_MAX, PUBLISHER_RECORDS_MAX, type SignedRecord } from '../../../protocols/records/record.ts'
import { TestNetwork } from '../../protocols/membership/people.ts'
import { streamPair } from '../../stream-pair.ts'
import { clockAt, DAY_MS, MINUTE_MS, makeStore, recordBy, START_MS, type Store, stateOf } from './catalog.ts'
import { type ClosedStore, lasting, makeClosedStore, memberRecord, revocationOf } from './closed.ts'

const keys = [ephemeralNodeKey(), ephemeralNodeKey(), ephemeralNodeKey()]
const [alice = ephemeralNodeKey(), bob = alice] = keys

/** Meetings of four stores, there and back along a line: then everybody has heard of everything. */
const LINE = [
  [0, 1],
  [2, 1],
  [3, 2],
  [1, 2],
  [0, 1],
  [2, 3],
] as const

/** `from` drives one comparison with `to`. */
async function sync(
  from: Pick<Store, 'records'>,
  to: Pick<Store, 'records'>,
  options: { refused?: RefusedIds; isOffering?: boolean; over?: Partial<RecordHoldings> } = {},
): Promise<SyncResult & { sentBytes: number }> {
  const [ours, theirs] = streamPair()
  let sentBytes = 0
  for (const end of [ours, theirs]) {
    const send = end.send.bind(end)
    end.send = (bytes) => {
      sentBytes += bytes.byteLength
      return send(bytes)
    }
  }
  const frames = new Frames(ours)
  const signal = AbortSignal.timeout(30_000)
  const answering = answerRecords(
    new Frames(theirs),
    { ...holdingsOf(to.records), ...options.over },
    {
      requestsMax: 1_000,
      signal: () => signal,
    },
  )
  answering.catch((error: Error) => ours.abort(error))
  const result = await syncWith(new RecordsAsker(frames), from.records, {
    refused: options.refused ?? new RefusedIds(),
    isOffering: options.isOffering ?? true,
    onReceived: () => {},
    signal,
  })
  await frames.close()
  await answering
  return { ...result, sentBytes }
}

function holdingsOf(records: Records): RecordHoldings {
  return {
    network: records.network,
    now: records.now,
    bucketDigests: () => records.bucketDigests(),
    publishers: (buckets) => records.publishers(buckets),
    positions: (publisher) => records.positions(publisher),
    fetch: (id) => records.fetch(id),
    offer: async (list) => {
      const acceptances = await acceptInTurns(records, list)
      const accepted = acceptances.filter((one) => one === 'new').length
      return { accepted, refused: acceptances.length - accepted }
    },
    onClock: () => {},
  }
}

function fill({ records }: Store, list: readonly SignedRecord[]): void {
  for (const { bytes } of list) records.accept(bytes)
}

describe('one comparison', () => {
  it('gives each what the other had', async () => {
    using one = makeStore()
    using two = makeStore()
    fill(one, [recordBy(alice, { name: 'a' }), recordBy(alice, { name: 'b', seq: 2 })])
    fill(two, [recordBy(bob), recordBy(alice, { name: 'c', seq: 3 })])
    expect(await sync(one, two)).toMatchObject({ received: 2, accepted: 2, refused: 0, clockOffsetMs: 0 })
    expect(stateOf(one)).toBe(stateOf(two))
    expect(one.records.list('note')).toHaveLength(4)
  })

  it('costs one small exchange when both agree', async () => {
    using one = makeStore()
    using two = makeStore()
    for (const store of [one, two]) fill(store, [recordBy(alice)])
    const { sentBytes, ...result } = await sync(one, two)
    expect(result).toMatchObject({ received: 0, accepted: 0 })
    expect(sentBytes).toBeLessThan(4_300)
  })

  it('moves a replaced record in one direction only', async () => {
    using one = makeStore()
    using two = makeStore()
    const large = new Uint8Array(60_000)
    fill(one, [recordBy(alice, { seq: 2, body: large })])
    fill(two, [recordBy(alice, { seq: 1, body: large })])
    const { sentBytes } = await sync(one, two)
    expect(stateOf(one)).toBe(stateOf(two))
    expect(two.records.list('note')[0]?.seq).toBe(2)
    expect(sentBytes).toBeLessThan(66_000)
    fill(one, [recordBy(alice, { seq: 3, body: large })])
    expect((await sync(two, one)).sentBytes).toBeLessThan(66_000)
    expect(stateOf(one)).toBe(stateOf(two))
  })

  it('carries deletions', async () => {
    using one = makeStore()
    using two = makeStore()
    fill(one, [recordBy(alice, { seq: 1 })])
    fill(two, [recordBy(alice, { seq: 1 }), recordBy(alice, { seq: 2, deleted: true })])
    await sync(one, two)
    expect(one.records.list('note')).toEqual([])
    expect(stateOf(one)).toBe(stateOf(two))
  })

  it('hands over thousands of records of many sizes', async () => {
    using one = makeStore()
    using two = makeStore()
    const some = Array.from({ length: 900 }, (_, nth) =>
      recordBy(alice, { name: `n${nth}`, seq: nth, body: new Uint8Array(nth % 50 === 0 ? 50_000 : 100) }),
    )
    fill(one, some)
    fill(
      one,
      Array.from({ length: 300 }, (_, nth) => recordBy(ephemeralNodeKey(), { name: `m${nth}` })),
    )
    fill(
      two,
      Array.from({ length: 900 }, (_, nth) => recordBy(bob, { name: `n${nth}`, seq: nth })),
    )
    expect(await sync(two, one)).toMatchObject({ received: 1_200, accepted: 900 })
    expect(stateOf(one)).toBe(stateOf(two))
  })

  it('agrees about a publisher who said too much', async () => {
    using one = makeStore()
    using two = makeStore()
    const all = Array.from({ length: 2_000 }, (_, nth) => recordBy(alice, { name: `n${nth}`, seq: nth }))
    fill(one, all.slice(0, 1_500))
    fill(two, all.slice(700))
    await sync(one, two)
    expect(stateOf(one)).toBe(stateOf(two))
    expect(one.records.counts().records).toBe(PUBLISHER_RECORDS_MAX)
  })

  it('tells the difference of the clocks, and leaves alone what only one of them believes', async () => {
    using one = makeStore()
    using two = makeStore({ clock: clockAt(START_MS + 3 * ISSUED_AHEAD_MS_MAX) })
    fill(two, [
      recordBy(alice, { issued: START_MS + 2 * ISSUED_AHEAD_MS_MAX, name: 'future' }),
      recordBy(alice, { seq: 1, name: 'fine' }),
    ])
    fill(one, [recordBy(bob, { leaseMs: MINUTE_MS })])
    const refused = new RefusedIds()
    const first = await sync(one, two, { refused })
    expect(first).toMatchObject({ received: 1, accepted: 0, refused: 1 })
    expect(first.clockOffsetMs).toBe(3 * ISSUED_AHEAD_MS_MAX)
    const again = await sync(one, two, { refused, isOffering: false })
    expect(again).toMatchObject({ received: 0, accepted: 0, refused: 0 })
    expect(again.sentBytes).toBeLessThan(5_000)
  })

  it('stops at a peer of another network', async () => {
    using one = makeStore()
    using two = makeStore({ network: new Uint8Array(32) })
    await expect(sync(one, two)).rejects.toThrow('refused')
  })

  it('stops at a peer that sends what is no record', async () => {
    using one = makeStore()
    using two = makeStore()
    const record = recordBy(alice)
    fill(two, [record, recordBy(bob)])
    const forged = Buffer.from(record.bytes)
    forged.fill(0, 0, 64)
    await expect(sync(one, two, { over: { fetch: () => forged } })).rejects.toMatchObject({ code: 'bad-signature' })
    await expect(sync(one, two, { over: { fetch: () => new Uint8Array(9) } })).rejects.toMatchObject({
      code: 'malformed',
    })
    expect(one.records.counts().records).toBe(0)
  })

  it('ends although a peer names records that it does not hand over', async () => {
    using one = makeStore()
    using two = makeStore()
    fill(two, [recordBy(alice)])
    expect(await sync(one, two, { over: { fetch: () => undefined } })).toMatchObject({ received: 0 })
  })
})

describe('any stores that compare with each other', () => {
  const said = fc.record({
    who: fc.nat(2),
    name: fc.constantFrom('a', 'b', 'c', 'd'),
    seq: fc.integer({ min: 1, max: 6 }),
    leaseMs: fc.constantFrom(MINUTE_MS, 2 * DAY_MS),
    body: fc.constantFrom(0, 1, undefined),
    where: fc.uniqueArray(fc.nat(3), { minLength: 1, maxLength: 4 }),
  })

  it('agree with one that saw everything, whoever saw what, in whatever order they meet', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(said, { maxLength: 25 }),
        fc.array(fc.tuple(fc.nat(3), fc.nat(3)), { maxLength: 6 }),
        async (list, meetings) => {
          const stores = [makeStore(), makeStore(), makeStore(), makeStore()]
          using all = makeStore()
          for (const { who, body, where, ...rest } of list) {
            const record = recordBy(
              keys[who] ?? alice,
              body === undefined ? { ...rest, deleted: true } : { ...rest, body },
            )
            all.records.accept(record.bytes)
            for (const at of where) stores[at]?.records.accept(record.bytes)
          }
          const meet = async (from: number, to: number) => {
            const [one, other] = [stores[from], stores[to]]
            if (one && other && one !== other) await sync(one, other)
          }
          for (const [from, to] of meetings) await meet(from, to)
          for (const [from, to] of LINE) await meet(from, to)
          for (const store of stores) {
            expect(stateOf(store)).toBe(stateOf(all))
            store[Symbol.dispose]()
          }
        },
      ),
      { numRuns: 40 },
    )
  })

  /**
   * A publisher says, replaces and takes back things while time goes by; two stores with clocks that are minutes off meet it and each
   * other now and then. What either of them once saw replaced never comes back.
   */
  it('never bring back what was replaced or taken back, even when it has expired', async () => {
    const put = fc.record({ do: fc.constant('put' as const), leaseMs: fc.constantFrom(MINUTE_MS, DAY_MS) })
    const remove = fc.constant({ do: 'remove' as const })
    const wait = fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(2 * MINUTE_MS, 20 * MINUTE_MS) })
    const pairs = [
      [0, 1],
      [0, 2],
      [1, 2],
      [2, 1],
    ] as const
    const meet = fc.record({ do: fc.constant('meet' as const), pair: fc.constantFrom(...pairs) })
    const action = fc.oneof(put, remove, wait, { arbitrary: meet, weight: 4 })
    await fc.assert(
      fc.asyncProperty(fc.array(action, { minLength: 30, maxLength: 60 }), async (actions) => {
        const stores = [0, 4, -4].map((minutes) => makeStore({ clock: clockAt(START_MS + minutes * MINUTE_MS) }))
        const [publisher] = stores
        if (!publisher) return
        const highest = stores.map(() => new Map<string, number>())
        for (const act of actions) {
          if (act.do === 'put') publisher.records.put({ kind: 'note', name: 'a', body: 0, leaseMs: act.leaseMs })
          else if (act.do === 'remove') publisher.records.remove('note', 'a')
          else if (act.do === 'wait') for (const { clock } of stores) clock.at += act.ms
          else {
            const [from, to] = act.pair.map((at) => stores[at])
            if (from && to) await sync(from, to)
          }
          for (const [nth, { records }] of stores.entries()) {
            for (const position of records.positions(publisher.key.publicKey)) {
              const tag = Buffer.from(position.tag).toString('hex')
              expect(position.seq).toBeGreaterThanOrEqual(highest[nth]?.get(tag) ?? 0)
              highest[nth]?.set(tag, position.seq)
            }
          }
        }
        for (const store of stores) store[Symbol.dispose]()
      }),
      { numRuns: 60 },
    )
  })
})

describe('stores of a closed network', () => {
  const network = new TestNetwork(START_MS)
  const note = (key: typeof alice, said = {}) => recordBy(key, { network: network.id, ...said })

  it('hand over a member record before the rest, which is nothing without it', async () => {
    using one = makeClosedStore(network)
    using two = makeClosedStore(network)
    const older = memberRecord(network, alice, undefined, { seq: 1 })
    fill(one, [older, note(alice, { seq: 2 }), note(alice, { name: 'b', seq: 3 })])
    using three = makeClosedStore(network)
    expect(await sync(two, one, { refused: two.refused })).toMatchObject({ received: 4, refused: 0 })
    expect(await sync(one, three, { refused: one.refused })).toMatchObject({ refused: 0 })
    expect([stateOf(two), stateOf(three)].map((state) => state.length)).toEqual([8_192, 8_192])
    expect(three.records.list('note')).toHaveLength(2)
  })

  it('do not fetch a stranger’s records again, until the members change', async () => {
    using one = makeClosedStore(network)
    using two = makeClosedStore(network)
    fill(two, [memberRecord(network, alice), note(alice, { body: new Uint8Array(50_000) })])
    one.membership.learn(revocationOf(network, alice.publicKey))
    // The first brings a new member, the other node: what was refused meanwhile is tried once more.
    for (const _ of [1, 2]) await sync(one, two, { refused: one.refused })
    expect(one.records.positions(alice.publicKey)).toEqual([])
    const again = await sync(one, two, { refused: one.refused, isOffering: false })
    expect(again.sentBytes).toBeLessThan(6_000)
    // What was refused may have been that of somebody who is a member now.
    fill(one, [memberRecord(network, bob)])
    const third = await sync(one, two, { refused: one.refused, isOffering: false })
    expect(third.sentBytes).toBeGreaterThan(50_000)
  })

  it('remember no refusal from before the members changed', async () => {
    using one = makeClosedStore(network)
    using two = makeClosedStore(network)
    const record = note(two.key)
    fill(two, [record])
    const { records, refused } = one
    const racing = {
      ...holdingsOf(records),
      acceptAll: (list: readonly Uint8Array[]) => {
        const acceptances = list.map(() => 'refused:stranger' as const)
        refused.forget()
        return acceptances
      },
    }
    await sync({ records: racing as unknown as Records }, two, { refused, isOffering: false })
    expect(refused.has(record.id, START_MS)).toBe(false)
  })

  /** What people there are, and what each said; the first of each list makes it a member, or not. */
  const [ending, revoked, stranger, voided] = Array.from({ length: 4 }, () => ephemeralNodeKey())
  const people = [alice, bob, ending, revoked, stranger, voided].filter((key) => key !== undefined)
  const delegate = ephemeralNodeKey()
  const chainOf = (key: typeof alice) => {
    if (key === stranger) return new TestNetwork(START_MS).certify(key.publicKey)
    if (key === ending) return lasting(network, key, { notAfter: START_MS + 10 * MINUTE_MS })
    if (key === voided) return network.certify(key.publicKey, {}, delegate, network.delegate(delegate.publicKey))
    return lasting(network, key)
  }
  const said = people.map((key) => [
    memberRecord(network, key, chainOf(key), { seq: 2 }),
    ...[1, 3, 4].map((seq) => note(key, { name: `n${seq % 2}`, seq })),
    note(key, { name: 'gone', seq: 5, deleted: true }),
  ])
  const revocations = [
    revocationOf(network, people[3]?.publicKey ?? new Uint8Array(32)),
    revocationOf(network, delegate.publicKey, 'issuer'),
  ]
  const nodes = [0, 1, 2, 3].map(() => ephemeralNodeKey())

  it('agree on the records of members, whoever heard of what first, and none keeps those of others', async () => {
    const heard = fc.record({ at: fc.nat(3), who: fc.nat(people.length - 1), nth: fc.nat(4) })
    const moment = fc.oneof(
      { weight: 8, arbitrary: heard.map((what) => ({ do: 'hear' as const, ...what })) },
      { weight: 2, arbitrary: fc.tuple(fc.nat(3), fc.nat(3)).map(([at, to]) => ({ do: 'meet' as const, at, to })) },
      { weight: 1, arbitrary: fc.tuple(fc.nat(3), fc.nat(1)).map(([at, nth]) => ({ do: 'learn' as const, at, nth })) },
      { weight: 1, arbitrary: fc.constantFrom(2, 6).map((minutes) => ({ do: 'wait' as const, at: 0, minutes })) },
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(moment, { maxLength: 40 }),
        fc.array(fc.nat(3), { minLength: people.length, maxLength: people.length }),
        async (moments, homes) => {
          const clock = clockAt()
          const stores = nodes.map((key) => makeClosedStore(network, { key, clock, chain: lasting(network, key) }))
          const at = (nth: number) => stores[nth] as ClosedStore
          for (const one of moments) {
            if (one.do === 'hear')
              fill(
                at(one.at),
                [said[one.who]?.[one.nth]].filter((record) => record !== undefined),
              )
            else if (one.do === 'learn') at(one.at).membership.learn(revocations[one.nth] as Uint8Array)
            else if (one.do === 'wait') clock.at += one.minutes * MINUTE_MS
            else if (one.at !== one.to) await sync(at(one.at), at(one.to), { refused: at(one.at).refused })
          }
          // Everybody has a friend who hears all of it, and the revocations reach all nodes.
          for (const [who, home] of homes.entries()) fill(at(home), said[who] ?? [])
          clock.at = START_MS + 20 * MINUTE_MS
          for (const { membership, members } of stores) {
            for (const bytes of revocations) membership.learn(bytes)
            members.sweep()
          }
          for (const [from, to] of LINE) await sync(at(from), at(to), { refused: at(from).refused })
          for (const store of stores) {
            expect(stateOf(store)).toBe(stateOf(at(0)))
            const has = people.map(({ publicKey }) => store.records.positions(publicKey).length)
            expect(has).toEqual([4, 4, 0, 0, 0, 0])
          }
          for (const store of stores) store[Symbol.dispose]()
        },
      ),
      { numRuns: 40 },
    )
  })
})
