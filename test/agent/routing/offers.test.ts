/** What a node offers, and what others know of it: records, leases, members, policy, restarts. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import { Instances } from '../../../agent/routing/instances.ts'
import { type Offering, Offers } from '../../../agent/routing/offers.ts'
import { decide, type Grant } from '../../../protocols/membership/policy.ts'
import { makeServiceBody, OFFERS_PER_NODE_MAX, SERVICE_KIND } from '../../../protocols/service/service.ts'
import { makeStore, recordBy } from '../catalog/catalog.ts'

const LEASE_MS = 15_000
const alice = ephemeralNodeKey()
const ALL: Grant[] = [{ from: '*', to: '*', allow: ['service:offer *'] }]

afterEach(() => void vi.useRealTimers())

function offering(more: Partial<Offering> = {}): Offering {
  const fields = { host: '127.0.0.1', port: 8_080, proto: 'tcp' as const, labels: {}, weight: 1, proxyProtocol: false }
  return { name: 'web', check: { kind: 'none' }, ...fields, ...more }
}

/** A node's store with the view of it, in a network whose members and policy are what they are said to be. */
function makeNode() {
  const store = makeStore()
  const state = { grants: ALL, gone: new Set<string>(), steadyMs: 0, told: 0 }
  const listeners = { members: new Set<() => void>(), policy: new Set<() => void>() }
  const nameOf = (publisher: Uint8Array) => (Buffer.compare(publisher, alice.publicKey) === 0 ? 'alice' : 'me')
  const on = (all: Set<() => void>) => (listener: () => void) => {
    all.add(listener)
    return () => void all.delete(listener)
  }
  const instances = new Instances({
    records: store.records,
    members: {
      of: (publisher) =>
        state.gone.has(peerIdOf(publisher)) ? undefined : ({ name: nameOf(publisher), labels: { zone: 'a' } } as never),
      onChange: on(listeners.members) as never,
    },
    membership: {
      name: 'home',
      self: { name: 'me', labels: {} },
      decide: (...asked) => decide({ grants: state.grants }, ...asked),
      onChange: on(listeners.policy),
    },
    rttMs: () => undefined,
    steadyMs: () => state.steadyMs,
  })
  instances.onChange(() => void state.told++)
  const start = () =>
    new Offers({ db: store.db, records: store.records, instanceCount: () => instances.count, log: store.log })
  const change = (which: keyof typeof listeners) => {
    for (const listener of listeners[which]) listener()
  }
  const hear = (more: object = {}, seq = 1, leaseMs = LEASE_MS) => {
    const offer = {
      node: alice.publicKey,
      service: 'web',
      proto: 'tcp' as const,
      port: 80,
      weight: 1,
      labels: {},
      since: 1,
    }
    const body = makeServiceBody({ ...offer, ...more }, 'healthy')
    const fields = { kind: SERVICE_KIND, name: 'web', seq, body, issued: store.clock.at, leaseMs }
    return store.records.accept(recordBy(alice, fields).bytes)
  }
  const nodes = () => instances.of('web').map(({ node, state: health }) => `${node} ${health}`)
  return { ...store, state, instances, start, change, hear, nodes }
}

describe('an offer', () => {
  it('is said at once and again, with each change of its state, and taken back at the end', () => {
    vi.useFakeTimers()
    const node = makeNode()
    const offers = node.start()
    offers.add(offering())
    expect(node.nodes()).toEqual(['me healthy'])
    const [{ id } = { id: '' }] = node.instances.of('web')
    for (let nth = 0; nth < 10; nth++) {
      node.clock.at += LEASE_MS / 3
      node.state.steadyMs += LEASE_MS / 3
      vi.advanceTimersByTime(LEASE_MS / 3)
      expect(node.nodes()).toEqual(['me healthy'])
    }
    offers.drain('web', true)
    expect(node.nodes()).toEqual(['me draining'])
    expect(node.instances.of('web')[0]?.id).toBe(id)
    offers.drain('web', false)
    offers[Symbol.dispose]()
    expect(node.nodes()).toEqual([])
  })

  it('outlives the process, drained or not, and is gone when it was removed', () => {
    const node = makeNode()
    const before = node.start()
    const full = { check: { kind: 'http' as const, path: '/x' }, labels: { a: 'b' }, weight: 0, proxyProtocol: true }
    before.add(offering({ ...full, name: 'full' }))
    before.add(offering())
    before.drain('full', true)
    const { why: _why, ...kept } = before.get('full') ?? { why: '' }
    before[Symbol.dispose]()
    const after = node.start()
    expect(after.get('full')).toMatchObject(kept)
    after.remove('full')
    expect(() => after.remove('full')).toThrow(expect.objectContaining({ code: 'not-found' }))
    after[Symbol.dispose]()
    using last = node.start()
    expect(last.list().map(({ name }) => name)).toEqual(['web'])
  })

  it('of the configuration is there while that says so, and never in place of one that was added', () => {
    const node = makeNode()
    using offers = node.start()
    offers.add(offering({ port: 1 }))
    offers.declare([offering({ port: 2 }), offering({ name: 'db' })])
    expect(offers.list().map(({ name, port, isDeclared }) => [name, port, isDeclared])).toEqual([
      ['web', 1, false],
      ['db', 8_080, true],
    ])
    expect(() => offers.remove('db')).toThrow(expect.objectContaining({ code: 'usage' }))
    offers.declare([])
    expect(offers.list().map(({ name }) => name)).toEqual(['web'])
  })

  it('is one of so many', () => {
    using offers = makeNode().start()
    for (let nth = 0; nth < OFFERS_PER_NODE_MAX; nth++) offers.add(offering({ name: `s${nth}` }))
    expect(() => offers.add(offering())).toThrow(expect.objectContaining({ code: 'limit' }))
    offers.add(offering({ name: 's0', port: 9 }))
  })
})

describe('an instance', () => {
  it('of another member is there until its lease ends, by its clock or by ours', () => {
    const node = makeNode()
    expect(node.hear()).toBe('new')
    expect(node.instances.of('web')).toMatchObject([{ network: 'home', node: 'alice', zone: 'a', port: 80 }])
    node.clock.at += LEASE_MS
    expect(node.nodes()).toEqual([])
    node.hear({}, 2, 10 * LEASE_MS)
    node.state.steadyMs += 10 * LEASE_MS + 1
    expect(node.nodes()).toEqual([])
  })

  it('is none of a stranger, of a member who may not offer it, or of another name', () => {
    const node = makeNode()
    node.hear()
    node.state.gone.add(alice.peerId)
    node.change('members')
    expect(node.nodes()).toEqual([])
    node.state.gone.clear()
    node.change('members')
    expect(node.nodes()).toEqual(['alice healthy'])
    node.state.grants = [{ from: '*', to: '*', allow: ['service:offer db'] }]
    node.change('policy')
    expect(node.nodes()).toEqual([])
    node.state.grants = ALL
    node.change('policy')
    node.hear({ service: 'db' }, 2)
    expect([node.nodes(), node.instances.count]).toEqual([[], 0])
  })

  it('is told of when it comes, changes and goes, and not when it is renewed', async () => {
    const node = makeNode()
    const told = async () => {
      await Promise.resolve()
      const { told: count } = node.state
      node.state.told = 0
      return count
    }
    node.hear()
    expect(await told()).toBe(1)
    node.hear({}, 2)
    expect(await told()).toBe(0)
    node.hear({ port: 81 }, 3)
    expect(await told()).toBe(1)
  })
})
