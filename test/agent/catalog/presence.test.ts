/** Presence, the view of who is there, and the renewal of what was said for long. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { Presence } from '../../../agent/catalog/presence.ts'
import { Renewer } from '../../../agent/catalog/renewer.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import { ISSUED_AHEAD_MS_MAX } from '../../../protocols/records/record.ts'
import { DAY_MS, keptLog, MINUTE_MS, makeStore, recordBy } from './catalog.ts'

const body = {
  name: 'attic',
  version: '1.0.0',
  capabilities: { system: 'x86_64-linux', cpus: 4, memoryBytes: 2 ** 33 },
}
const alice = ephemeralNodeKey()
const presenceOf = (over: object, seq = 1) =>
  recordBy(alice, { kind: 'presence', name: 'node', seq, body: { ...body, ...over } })
const HOUR_MS = 60 * MINUTE_MS

afterEach(() => void vi.useRealTimers())

describe('presence', () => {
  it('is said at start, again before its lease ends, and taken back on leaving', () => {
    vi.useFakeTimers()
    using store = makeStore()
    const presence = Presence.start({ records: store.records, body, nodeCount: () => 3, log: store.log })
    const nodes = new Nodes(store.records)
    expect(nodes.list()).toMatchObject([{ ...body, peerId: store.key.peerId, expires: store.clock.at + MINUTE_MS }])
    for (let nth = 0; nth < 10; nth++) {
      store.clock.at += MINUTE_MS / 3
      vi.advanceTimersByTime(MINUTE_MS / 3)
      expect(nodes.get(store.key.peerId)?.expires).toBe(store.clock.at + MINUTE_MS)
    }
    presence[Symbol.dispose]()
    expect(nodes.list()).toEqual([])
    store.clock.at += HOUR_MS
    vi.advanceTimersByTime(HOUR_MS)
    expect(nodes.list()).toEqual([])
  })

  it('has a longer lease in a large network, so that all renewals together stay below five a second', () => {
    using store = makeStore()
    using _presence = Presence.start({ records: store.records, body, nodeCount: () => 1_000, log: store.log })
    const [node] = new Nodes(store.records).list()
    const leaseMs = (node?.expires ?? 0) - store.clock.at
    expect((1_000 * 3) / (leaseMs / 1_000)).toBeLessThanOrEqual(5)
  })

  it('never touches the disk', () => {
    using store = makeStore()
    const before = store.db.prepare('SELECT count(*) AS n FROM main.records').get()
    using _presence = Presence.start({ records: store.records, body, nodeCount: () => 1, log: store.log })
    expect(store.db.prepare('SELECT count(*) AS n FROM main.records').get()).toEqual(before)
  })

  it('refuses a name that others would not show', () => {
    using store = makeStore()
    for (const name of ['', 'a\nb', 'a\u202eb', 'x'.repeat(65)]) {
      const options = { records: store.records, body: { ...body, name }, nodeCount: () => 1, log: store.log }
      expect(() => Presence.start(options)).toThrow(expect.objectContaining({ code: 'usage' }))
    }
  })

  it('stays up when a renewal fails', () => {
    const log = keptLog()
    const records = {
      put: () => {
        throw new Error('the disk is full')
      },
      remove: () => undefined,
    }
    using _presence = Presence.start({ records, body, nodeCount: () => 1, log })
    expect(log.entries).toEqual([{ fields: { reason: 'the disk is full' }, event: 'presence.unrenewed' }])
  })
})

describe('nodes', () => {
  it('are those whose presence is live and valid', () => {
    using store = makeStore()
    const nodes = new Nodes(store.records)
    store.records.accept(presenceOf({}).bytes)
    expect(nodes.get(alice.peerId)?.name).toBe('attic')
    store.records.accept(presenceOf({ name: 'cellar', later: 'field' }, 2).bytes)
    expect(nodes.list().map(({ name }) => name)).toEqual(['cellar'])
    store.records.accept(presenceOf({ name: '\x1b[2J' }, 3).bytes)
    expect(nodes.list()).toEqual([])
    store.records.accept(presenceOf({}, 4).bytes)
    expect(nodes.count).toBe(1)
    store.clock.at += DAY_MS
    expect(nodes.list()).toEqual([])
    expect(nodes.get(alice.peerId)).toBeUndefined()
    store.records.sweep()
    expect(nodes.count).toBe(0)
  })

  it('ignore presences under another name, and are known from the start', () => {
    using store = makeStore()
    store.records.accept(recordBy(alice, { kind: 'presence', name: 'other', body }).bytes)
    store.records.accept(presenceOf({}).bytes)
    expect(new Nodes(store.records).list()).toHaveLength(1)
  })

  it('tell of new names', () => {
    using store = makeStore()
    const nodes = new Nodes(store.records)
    const renamed: string[] = []
    nodes.onRename((publisher) => void renamed.push(nodes.get(peerIdOf(publisher))?.name ?? 'gone'))
    for (const [nth, name] of ['attic', 'attic', 'cellar'].entries())
      store.records.accept(presenceOf({ name }, nth).bytes)
    store.clock.at += DAY_MS
    store.records.sweep()
    expect(renamed).toEqual(['attic', 'cellar', 'gone'])
  })
})

describe('relays', () => {
  const key = (byte: number) => new Uint8Array(32).fill(byte)
  const keys = () => [1, 2, 3, 4, 5].map(() => ephemeralNodeKey())

  it('are said, at most four; anew at once when none of them is left, and not more often than every two seconds', () => {
    vi.useFakeTimers()
    using store = makeStore()
    const nodes = new Nodes(store.records)
    const said = () => nodes.get(store.key.peerId)?.relays
    const [first, ...others] = [keys(), keys(), keys()]
    let relays = first
    using presence = Presence.start({
      records: store.records,
      body,
      relays: () => relays.map(({ publicKey }) => publicKey),
      nodeCount: () => 1,
      log: store.log,
    })
    const four = (all: typeof first) => all.slice(0, 4).map(({ peerId }) => peerId)
    expect(said()).toEqual(four(first))
    vi.advanceTimersByTime(3_000)
    relays = [...first.slice(3), ...(others[0] ?? [])]
    presence.relaysChanged()
    expect(said(), 'one of them is left').toEqual(four(first))
    relays = []
    presence.relaysChanged()
    expect(said(), 'there is nothing better to say').toEqual(four(first))
    relays = others[0] ?? []
    presence.relaysChanged()
    expect(said()).toEqual(four(relays))
    relays = others[1] ?? []
    presence.relaysChanged()
    expect(said(), 'too soon').toEqual(four(others[0] ?? []))
    vi.advanceTimersByTime(2_000)
    expect(said()).toEqual(four(relays))
  })

  it('of others are read, without what is none', () => {
    using store = makeStore()
    const nodes = new Nodes(store.records)
    const relay = ephemeralNodeKey()
    store.records.accept(presenceOf({ relays: [relay.publicKey, 'relay', key(1).subarray(1)] }).bytes)
    expect(nodes.list().map(({ relays }) => relays)).toEqual([[relay.peerId]])
  })
})

describe('addresses', () => {
  const [here, there] = ['/ip4/192.0.2.7/tcp/7477', '/dns4/attic.example/tcp/7477']

  it('are said anew with each renewal, at most eight, and not at all in the open network', () => {
    vi.useFakeTimers()
    using store = makeStore()
    let addresses = Array.from({ length: 9 }, (_, nth) => `/ip4/192.0.2.${nth}/tcp/1`)
    const nodes = new Nodes(store.records)
    const options = { records: store.records, body, nodeCount: () => 1, log: store.log }
    using _presence = Presence.start({ ...options, addresses: () => addresses })
    expect(nodes.get(store.key.peerId)?.addresses).toEqual(addresses.slice(0, 8))
    addresses = [here]
    vi.advanceTimersByTime(MINUTE_MS / 3)
    expect(nodes.get(store.key.peerId)?.addresses).toEqual([here])
    using open = makeStore()
    using _other = Presence.start({ ...options, records: open.records })
    expect(open.records.list('presence')[0]?.body).not.toHaveProperty('addresses')
  })

  it('are told when they change, and of those who are there already; what cannot be dialled is left out', () => {
    using store = makeStore()
    const nodes = new Nodes(store.records)
    const say = (addresses: unknown, seq: number, over = {}) =>
      store.records.accept(presenceOf({ addresses, ...over }, seq).bytes)
    const told: unknown[] = []
    const stop = nodes.onAddresses((peerId, addresses) => void told.push([peerId, addresses]))
    say(
      [here, 'nonsense', '/unknown/x', 7, `${there}/p2p/${ephemeralNodeKey().peerId}`, `${there}/p2p/${alice.peerId}`],
      1,
    )
    const usable = [here, `${there}/p2p/${alice.peerId}`]
    expect(told).toEqual([[alice.peerId, usable]])
    say(usable, 2, { name: 'cellar' })
    say('none', 3)
    expect(nodes.get(alice.peerId)).toMatchObject({ name: 'attic', addresses: [] })
    expect(told).toHaveLength(1)
    say([there], 4)
    expect(told.at(-1)).toEqual([alice.peerId, [there]])
    const late: unknown[] = []
    nodes.onAddresses((peerId) => void late.push(peerId))
    expect(late).toEqual([alice.peerId])
    stop()
    say([here], 5)
    expect(told).toHaveLength(2)
  })
})

describe('renewing', () => {
  const leases = { note: 30 * DAY_MS }

  it('happens when less than half of a lease is left, and at start for what expired', () => {
    vi.useFakeTimers()
    using store = makeStore()
    store.records.put({ kind: 'note', name: 'a', body: 1, leaseMs: leases.note })
    store.clock.at += 40 * DAY_MS
    expect(store.records.list('note')).toEqual([])
    using _renewer = Renewer.start({ records: store.records, leases, log: store.log })
    const expires = () => store.records.list('note')[0]?.expires
    expect(expires()).toBe(store.clock.at + leases.note)
    const first = expires()
    store.clock.at += 14 * DAY_MS
    vi.advanceTimersByTime(HOUR_MS)
    expect(expires()).toBe(first)
    store.clock.at += 2 * DAY_MS
    vi.advanceTimersByTime(HOUR_MS)
    expect(expires()).toBe(store.clock.at + leases.note)
  })

  it('says again what was said while the clock was ahead', () => {
    using store = makeStore()
    store.clock.at += 365 * DAY_MS
    store.records.put({ kind: 'note', name: 'a', body: 1, leaseMs: leases.note })
    store.clock.at -= 365 * DAY_MS
    using _renewer = Renewer.start({ records: store.records, leases, log: store.log })
    expect(store.records.own('note')[0]?.issued).toBeLessThanOrEqual(store.clock.at + ISSUED_AHEAD_MS_MAX)
  })

  it('leaves alone what was taken back, other kinds, and what only came back from the network', () => {
    using store = makeStore()
    store.records.put({ kind: 'other', name: 'a', body: 1, leaseMs: MINUTE_MS })
    store.records.put({ kind: 'note', name: 'gone', body: 1, leaseMs: MINUTE_MS })
    store.records.remove('note', 'gone')
    store.records.accept(recordBy(store.key, { name: 'lost', seq: 1, leaseMs: 2 * DAY_MS }).bytes)
    const before = store.records.counts()
    using _renewer = Renewer.start({ records: store.records, leases, log: store.log })
    expect(store.records.counts()).toEqual(before)
    expect(store.log.entries).toEqual([])
  })
})
