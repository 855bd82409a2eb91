/** Who is in a closed network, whose records are kept, and what becomes of those of somebody who is out. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import type { Chain } from '../../../protocols/membership/certificate.ts'
import { MEMBER_KIND, MEMBER_NAME } from '../../../protocols/records/member.ts'
import { PUBLISHER_RECORDS_MAX, type SignedRecord } from '../../../protocols/records/record.ts'
import { makeKey, TestNetwork } from '../../protocols/membership/people.ts'
import { clockAt, DAY_MS, MINUTE_MS, recordBy, type Said, START_MS } from './catalog.ts'
import { type ClosedStore, lasting, makeClosedStore, memberRecord, revocationOf } from './closed.ts'

const network = new TestNetwork(START_MS)
const [alice, bob] = [ephemeralNodeKey(), ephemeralNodeKey()]
const note = (key: NodeKey, said: Said = {}) => recordBy(key, { network: network.id, ...said })
const take = ({ records }: ClosedStore, ...list: SignedRecord[]) => records.acceptAll(list.map(({ bytes }) => bytes))
const notesOf = ({ records }: ClosedStore) => records.list('note').map(({ name }) => name)

afterEach(() => void vi.useRealTimers())

describe('records in a closed network', () => {
  it('are kept of members only, from their member record on', () => {
    using store = makeClosedStore(network)
    expect(take(store, note(alice))).toEqual(['refused:stranger'])
    expect(take(store, note(alice), memberRecord(network, alice), note(alice))).toEqual([
      'refused:stranger',
      'new',
      'new',
    ])
    expect(store.members.isMember(alice.publicKey)).toBe(true)
    expect(store.members.get(alice.peerId)).toMatchObject({ name: 'web1', peerId: alice.peerId, issues: false })
    expect(take(store, note(bob), note(bob, { kind: 'member', name: 'other' }))).toEqual([
      'refused:stranger',
      'refused:stranger',
    ])
    expect(store.records.counts().publishers).toBe(2)
  })

  it('are kept of nobody whose certificate is not good', () => {
    using store = makeClosedStore(network)
    const other = new TestNetwork(START_MS)
    const wrong: Chain[] = [
      lasting(network, bob),
      other.certify(alice.publicKey),
      lasting(network, alice, { notAfter: START_MS + 1, issued: START_MS - DAY_MS, notBefore: START_MS - DAY_MS }),
    ]
    store.clock.at += 2
    for (const chain of wrong)
      expect(take(store, memberRecord(network, alice, chain), note(alice))).toEqual([
        'refused:stranger',
        'refused:stranger',
      ])
    expect(take(store, memberRecord(network, alice, undefined, { deleted: true }))).toEqual(['refused:stranger'])
    expect(take(store, memberRecord(network, alice, undefined, { body: { v: 1, chain: 7 } }))).toEqual([
      'refused:stranger',
    ])
    expect(store.records.counts().publishers).toBe(1)
  })

  it('are always kept of this node, also from the network and without a good certificate', () => {
    const key = ephemeralNodeKey()
    using store = makeClosedStore(network, { key, chain: network.certify(key.publicKey, { notAfter: START_MS + 1 }) })
    store.clock.at += 2
    store.members.sweep()
    expect(store.members.list()).toEqual([])
    expect(take(store, note(key))).toEqual(['new'])
    expect(store.records.put({ kind: 'note', name: 'b', body: 1, leaseMs: DAY_MS }).name).toBe('b')
    store.members.sweep()
    expect(notesOf(store).sort()).toEqual(['a', 'b'])
  })

  it('cannot be brought to go by a deletion of the member record', () => {
    using store = makeClosedStore(network)
    take(store, memberRecord(network, alice), note(alice))
    expect(take(store, memberRecord(network, alice, undefined, { seq: START_MS + 5, deleted: true }))).toEqual([
      'refused:stranger',
    ])
    expect(notesOf(store)).toEqual(['a'])
  })

  it('of somebody who says too much push out none but their own, and never the member record', () => {
    const all = Array.from({ length: PUBLISHER_RECORDS_MAX + 50 }, (_, nth) =>
      note(alice, { name: `n${nth}`, seq: START_MS + 1 + nth }),
    )
    const states = [all, all.toReversed()].map((list) => {
      using store = makeClosedStore(network, { key: bob })
      take(store, memberRecord(network, alice, undefined, { seq: 1 }))
      for (const record of list) take(store, record)
      expect(store.members.isMember(alice.publicKey)).toBe(true)
      expect(notesOf(store)).toHaveLength(PUBLISHER_RECORDS_MAX - 1)
      expect(notesOf(store)).toContain(`n${PUBLISHER_RECORDS_MAX + 49}`)
      expect(take(store, note(alice, { name: 'n50', seq: START_MS + 51 }))).toEqual(['refused:bounds'])
      const newer = memberRecord(network, alice, undefined, { seq: START_MS + 9_999 })
      expect(take(store, newer)).toEqual(['new'])
      return Buffer.concat(store.records.positions(alice.publicKey).map(({ id }) => id)).toString('hex')
    })
    expect(new Set(states).size).toBe(1)
  })

  it('leave room for this node’s own member record', () => {
    const key = ephemeralNodeKey()
    const ended = network.certify(key.publicKey, { notAfter: START_MS + 1 })
    using store = makeClosedStore(network, { key, chain: ended, clock: clockAt(START_MS + 2) })
    const say = (nth: number) => store.records.put({ kind: 'note', name: `n${nth}`, body: 1, leaseMs: DAY_MS })
    for (let nth = 0; nth < PUBLISHER_RECORDS_MAX - 1; nth++) say(nth)
    expect(() => say(PUBLISHER_RECORDS_MAX)).toThrow(expect.objectContaining({ code: 'limit' }))
    store.membership.renew(lasting(network, key))
    expect(store.members.get(key.peerId)).toBeDefined()
  })
})

describe('somebody who is out', () => {
  it('loses everything at once when revoked, and nobody else anything', () => {
    using store = makeClosedStore(network)
    take(store, memberRecord(network, alice), note(alice), memberRecord(network, bob), note(bob, { name: 'b' }))
    const told: (readonly string[])[] = []
    store.members.onChange((peerIds) => {
      told.push(peerIds)
      expect(notesOf(store)).toEqual(['b'])
    })
    store.membership.learn(revocationOf(network, alice.publicKey))
    expect(told).toEqual([[alice.peerId]])
    expect(store.members.get(alice.peerId)).toBeUndefined()
    expect(store.records.positions(alice.publicKey)).toEqual([])
    expect(take(store, memberRecord(network, alice), note(alice))).toEqual(['refused:stranger', 'refused:stranger'])
    expect(store.members.isMember(bob.publicKey)).toBe(true)
  })

  it('is everybody whom a revoked issuer let in', () => {
    using store = makeClosedStore(network)
    const delegate = makeKey()
    const chain = network.certify(alice.publicKey, {}, delegate, network.delegate(delegate.publicKey))
    take(store, memberRecord(network, alice, chain), note(alice), memberRecord(network, bob))
    store.membership.learn(revocationOf(network, delegate.publicKey, 'issuer'))
    expect(store.members.list().map(({ peerId }) => peerId)).toEqual([store.key.peerId, bob.peerId])
    expect(notesOf(store)).toEqual([])
    expect(take(store, memberRecord(network, alice, lasting(network, alice)))).toEqual(['new'])
  })

  it('is whose certificate ended, by itself within seconds, also when the clock jumped', () => {
    vi.useFakeTimers()
    using store = makeClosedStore(network)
    const until = (notAfter: number) => lasting(network, alice, { notAfter })
    take(store, memberRecord(network, alice, until(START_MS + MINUTE_MS)), note(alice))
    const told: string[] = []
    store.members.onChange((peerIds) => void told.push(...peerIds))
    store.clock.at += MINUTE_MS
    expect(store.members.isMember(alice.publicKey)).toBe(false)
    expect(take(store, note(alice, { name: 'b' }))).toEqual(['refused:stranger'])
    vi.advanceTimersByTime(4_000)
    expect(notesOf(store)).toEqual([])
    expect(told).toEqual([alice.peerId])
    expect(take(store, memberRecord(network, alice, until(START_MS + DAY_MS), { seq: START_MS + 1 }))).toEqual(['new'])
    expect(store.members.isMember(alice.publicKey)).toBe(true)
  })

  it('is who did not say the member record again', () => {
    using store = makeClosedStore(network)
    take(store, memberRecord(network, alice, undefined, { leaseMs: DAY_MS }), note(alice, { leaseMs: 2 * DAY_MS }))
    store.clock.at += DAY_MS
    store.records.sweep()
    expect(store.records.positions(alice.publicKey)).toEqual([])
    expect(notesOf(store)).toEqual([])
  })

  it('is found out at the next start, if that is when it is learned', () => {
    const directory = mkdtempSync(join(tmpdir(), 'members-'))
    onTestFinished(() => rmSync(directory, { recursive: true }))
    const path = join(directory, 'network.db')
    const key = ephemeralNodeKey()
    {
      using store = makeClosedStore(network, { path, key })
      take(store, memberRecord(network, alice), note(alice), memberRecord(network, bob), note(bob, { name: 'b' }))
    }
    using store = makeClosedStore(network, { path, key, revoked: [revocationOf(network, alice.publicKey)] })
    expect(notesOf(store)).toEqual(['b'])
    expect(
      store.members
        .byName('web1')
        .map(({ peerId }) => peerId)
        .sort(),
    ).toEqual([key.peerId, bob.peerId].sort())
  })

  it('is no member although the disk takes no change, and loses its records when it does', () => {
    vi.useFakeTimers()
    using store = makeClosedStore(network)
    take(store, memberRecord(network, alice), note(alice))
    store.db.exec('PRAGMA query_only = 1')
    store.membership.learn(revocationOf(network, alice.publicKey))
    expect(store.log.entries.map(({ event }) => event)).toContain('members.unexpelled')
    expect(store.members.isMember(alice.publicKey)).toBe(false)
    store.db.exec('PRAGMA query_only = 0')
    vi.advanceTimersByTime(4_000)
    expect(notesOf(store)).toEqual([])
  })

  it('is gone from the view of who is there', () => {
    using store = makeClosedStore(network)
    const nodes = new Nodes(store.records)
    const body = { name: 'attic', version: '1', capabilities: { system: 'x', cpus: 1, memoryBytes: 1 } }
    take(store, memberRecord(network, alice), note(alice, { kind: 'presence', name: 'node', body }))
    expect(nodes.get(alice.peerId)?.name).toBe('attic')
    store.membership.learn(revocationOf(network, alice.publicKey))
    expect(nodes.count).toBe(0)
  })
})

describe('a transaction that fails', () => {
  it('makes nobody a member', () => {
    using store = makeClosedStore(network)
    store.db.exec('PRAGMA query_only = 1')
    expect(() => take(store, memberRecord(network, alice))).toThrow()
    store.db.exec('PRAGMA query_only = 0')
    expect(store.members.isMember(alice.publicKey)).toBe(false)
    let isFailing = true
    store.records.addIndex(() => {
      if (isFailing) throw new Error('the disk is full')
    })
    expect(() => take(store, memberRecord(network, alice))).toThrow('full')
    expect(store.members.isMember(alice.publicKey)).toBe(false)
    isFailing = false
    expect(take(store, memberRecord(network, alice))).toEqual(['new'])
    expect(store.members.isMember(alice.publicKey)).toBe(true)
  })
})

describe('this node’s own member record', () => {
  const own = ({ records, key }: ClosedStore) => records.get(key.publicKey, MEMBER_KIND, MEMBER_NAME)

  it('is said at start, no longer than the certificate lasts, and makes it a member elsewhere', () => {
    const key = ephemeralNodeKey()
    const chain = network.certify(key.publicKey, { name: 'attic', notAfter: START_MS + DAY_MS })
    using store = makeClosedStore(network, { key, chain })
    const said = own(store)
    expect(said?.expires).toBe(START_MS + DAY_MS)
    expect(store.members.list()).toMatchObject([{ peerId: key.peerId, name: 'attic' }])
    using other = makeClosedStore(network)
    expect(other.records.accept(said?.bytes ?? new Uint8Array())).toBe('new')
    expect(other.members.byName('attic')).toMatchObject([{ peerId: key.peerId }])
  })

  it('is said again when the certificate is renewed, when it may issue, and before it expires; and not otherwise', () => {
    vi.useFakeTimers()
    using store = makeClosedStore(network)
    const seqs: (number | undefined)[] = [own(store)?.seq]
    const look = () => {
      vi.advanceTimersByTime(4_000)
      if (own(store)?.seq !== seqs.at(-1)) seqs.push(own(store)?.seq)
    }
    store.clock.at += 40 * DAY_MS
    look()
    expect(seqs).toHaveLength(1)
    store.clock.at += 6 * DAY_MS
    look()
    expect(seqs).toHaveLength(2)
    store.membership.renew(lasting(network, store.key, { name: 'cellar' }))
    expect(store.members.get(store.key.peerId)?.name).toBe('cellar')
    look()
    expect(seqs).toHaveLength(3)
    store.membership.mayIssue()
    expect(store.members.get(store.key.peerId)?.issues).toBe(true)
    look()
    expect(seqs).toHaveLength(4)
  })

  it('is not said again by a restart alone', () => {
    const directory = mkdtempSync(join(tmpdir(), 'members-'))
    onTestFinished(() => rmSync(directory, { recursive: true }))
    const options = { path: join(directory, 'network.db'), key: ephemeralNodeKey() }
    const chain = lasting(network, options.key)
    const seqs = [0, 1].map((days) => {
      using store = makeClosedStore(network, { ...options, chain })
      store.clock.at += days * DAY_MS
      store.members.sweep()
      return own(store)?.seq
    })
    expect(seqs[0]).toBe(seqs[1])
  })

  it('counts again after a clock that was years ahead came back', () => {
    using store = makeClosedStore(network)
    store.clock.at += 3_651 * DAY_MS
    store.members.sweep()
    expect(store.members.list()).toEqual([])
    store.clock.at -= 3_651 * DAY_MS
    store.members.sweep()
    expect(store.members.list()).toMatchObject([{ peerId: store.key.peerId }])
  })
})

describe('members of one name', () => {
  it('are listed with the newest certificate first', () => {
    using store = makeClosedStore(network)
    const chain = (key: NodeKey, ageMs: number) =>
      lasting(network, key, { name: 'db1', issued: START_MS - ageMs, notBefore: START_MS - ageMs })
    take(store, memberRecord(network, alice, chain(alice, 2)), memberRecord(network, bob, chain(bob, 1)))
    expect(store.members.byName('db1').map(({ peerId }) => peerId)).toEqual([bob.peerId, alice.peerId])
    expect(store.members.byName('db2')).toEqual([])
  })
})

describe('the state of a closed store', () => {
  const delegate = makeKey()
  const delegation = network.delegate(delegate.publicKey, { lifetimeMsMax: DAY_MS })
  const keys = Array.from({ length: 6 }, () => ephemeralNodeKey())
  const [byRoot = alice, byDelegate = alice, ending = alice, revoked = alice, stranger = alice, foreigner = alice] =
    keys
  const ends = (ms: number) => ({ notAfter: START_MS + ms })
  const foreign = new TestNetwork(START_MS)
  const bobsChain = lasting(network, bob)
  const revocation = revocationOf(network, revoked.publicKey)
  const certificates: [NodeKey, Chain, number][] = [
    [byRoot, lasting(network, byRoot), 1],
    [byRoot, lasting(network, byRoot, { name: 'renewed', issued: START_MS - 5, notBefore: START_MS - 5 }), 8],
    [byDelegate, network.certify(byDelegate.publicKey, {}, delegate, delegation), 1],
    // Said later, and ends sooner: then the earlier one counts again.
    [ending, lasting(network, ending, ends(10 * MINUTE_MS)), 9],
    [ending, lasting(network, ending, ends(2 * 60 * MINUTE_MS)), 2],
    [revoked, lasting(network, revoked), 1],
    [foreigner, foreign.certify(foreigner.publicKey), 1],
  ]
  const said = [
    ...certificates.map(([key, chain, seq]) => memberRecord(network, key, chain, { seq })),
    ...keys.flatMap((key) => [
      note(key, { seq: 3 }),
      note(key, { seq: 5, deleted: true }),
      note(key, { name: 'b', seq: 4, leaseMs: 5 * MINUTE_MS }),
      note(key, { name: 'c', seq: 6 }),
    ]),
    memberRecord(network, stranger, lasting(network, byRoot)),
  ]
  const moment = fc.oneof(
    { weight: 12, arbitrary: fc.nat(said.length - 1).map((nth) => ({ do: 'hear' as const, nth })) },
    {
      weight: 1,
      arbitrary: fc.constantFrom(1, 6, 11).map((minutes) => ({ do: 'wait' as const, ms: minutes * MINUTE_MS })),
    },
    { weight: 1, arbitrary: fc.constant({ do: 'learn' as const }) },
  )
  const order = fc.shuffledSubarray(said, { minLength: said.length, maxLength: said.length })

  it('is the same whatever came in whatever order, once all was shown', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.array(moment, { maxLength: 40 }), order, order), { minLength: 2, maxLength: 3 }),
        (lives) => {
          const states = lives.map(([moments, first, second]) => {
            using store = makeClosedStore(network, { key: bob, chain: bobsChain })
            for (const one of moments) {
              if (one.do === 'hear') take(store, said[one.nth] as SignedRecord)
              else if (one.do === 'wait') store.clock.at += one.ms
              else store.membership.learn(revocation)
            }
            store.clock.at = START_MS + 60 * MINUTE_MS
            store.membership.learn(revocation)
            store.members.sweep()
            // What is said again and again, as by comparisons: the second time everybody's member record is there.
            take(store, ...first)
            take(store, ...second)
            for (const out of [revoked, stranger, foreigner]) expect(store.records.positions(out.publicKey)).toEqual([])
            expect(store.members.get(byRoot.peerId)?.name).toBe('renewed')
            expect(store.members.get(ending.peerId)?.notAfter).toBe(START_MS + 120 * MINUTE_MS)
            return keys.map(({ publicKey }) =>
              store.records.positions(publicKey).map(({ id }) => Buffer.from(id).toString('hex')),
            )
          })
          for (const state of states) expect(state).toEqual(states[0])
        },
      ),
      { numRuns: 40 },
    )
  })
})
