/** Nodes that gossip and compare, on a network in memory. */
import { describe, expect, it } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { issueRevocation } from '../../../protocols/membership/revocation.ts'
import { TestNetwork } from '../../protocols/membership/people.ts'
import { DAY_MS, FakeMesh, type FakeNode, MINUTE_MS, recordBy, START_MS, stateOf, until } from './catalog.ts'
import { makeClosedStore, memberRecord, revocationOf } from './closed.ts'

const alice = ephemeralNodeKey()

const say = ({ records }: FakeNode, name: string) => records.put({ kind: 'note', name, body: name, leaseMs: DAY_MS })
const agree = (nodes: readonly FakeNode[]) => new Set(nodes.map(stateOf)).size === 1
const names = ({ records }: FakeNode) =>
  records
    .list('note')
    .map(({ name }) => name)
    .sort()

describe('replication', () => {
  it('gossips what a node says, at once', async () => {
    await using mesh = new FakeMesh()
    const [a, b, c] = [await mesh.node(), await mesh.node(), await mesh.node()]
    mesh.connect(a, b)
    mesh.connect(b, c)
    say(a, 'x')
    await until(() => names(c).includes('x'), 1_000)
  })

  it('brings two nodes to agreement when they connect, whatever gossip lost', async () => {
    await using mesh = new FakeMesh()
    mesh.isGossiping = false
    const [a, b] = [await mesh.node(), await mesh.node()]
    for (const name of ['1', '2', '3']) say(a, name)
    for (const name of ['4', '5']) say(b, name)
    b.records.remove('note', '5')
    mesh.connect(a, b)
    await until(() => agree([a, b]), 1_000)
    expect(names(a)).toEqual(['1', '2', '3', '4'])
  })

  it('takes up what was said in the moment of connecting, a little later', async () => {
    await using mesh = new FakeMesh()
    mesh.isGossiping = false
    const [a, b] = [await mesh.node(), await mesh.node()]
    mesh.connect(a, b)
    await until(() => mesh.opened.length > 0)
    say(b, 'late')
    await until(() => names(a).includes('late'), 4_000)
  })

  it('compares with somebody now and then', async () => {
    await using mesh = new FakeMesh()
    mesh.isGossiping = false
    const [a, b] = [await mesh.node({ intervalMs: 50 }), await mesh.node()]
    mesh.connect(b, a)
    await until(() => mesh.opened.length > 0)
    say(b, 'x')
    await until(() => agree([a, b]), 2_000)
  })

  it('passes on to others what a comparison brought: a little by gossip, much by comparing', async () => {
    for (const count of [3, 300]) {
      await using mesh = new FakeMesh()
      const [a, b, c, d] = [await mesh.node(), await mesh.node(), await mesh.node(), await mesh.node()]
      mesh.connect(b, c)
      mesh.connect(c, d)
      for (let nth = 0; nth < count; nth++) say(a, `n${nth}`)
      mesh.connect(a, b)
      await until(() => agree([a, b, c, d]), 6_000)
      expect(names(d)).toHaveLength(count)
    }
  })

  it('brings two halves of a network together over one new link', async () => {
    await using mesh = new FakeMesh()
    const nodes: FakeNode[] = []
    for (let nth = 0; nth < 8; nth++) nodes.push(await mesh.node())
    const [left, right] = [nodes.slice(0, 4), nodes.slice(4)]
    for (const half of [left, right])
      for (const [nth, node] of half.entries()) {
        const next = half[nth + 1]
        if (next) mesh.connect(node, next)
        for (let one = 0; one < 40; one++) say(node, `n${one}`)
      }
    await until(() => agree(left) && agree(right))
    expect(agree(nodes)).toBe(false)
    mesh.connect(left[3] as FakeNode, right[0] as FakeNode)
    await until(() => agree(nodes), 8_000)
  })

  it('is quiet when all agree', async () => {
    await using mesh = new FakeMesh()
    const [a, b] = [await mesh.node(), await mesh.node()]
    say(a, 'x')
    mesh.connect(a, b)
    await until(() => agree([a, b]))
    const before = mesh.streamedBytes
    await until(() => mesh.opened.length >= 2, 4_000)
    await until(() => mesh.streamedBytes > before)
    expect(mesh.streamedBytes - before).toBeLessThan(4_500)
  })

  it('forgets a node that died everywhere at the end of its lease', async () => {
    await using mesh = new FakeMesh()
    const [a, b, c] = [await mesh.node(), await mesh.node(), await mesh.node()]
    mesh.connect(a, b)
    mesh.connect(b, c)
    a.records.put({ kind: 'note', name: 'live', body: 1, leaseMs: MINUTE_MS })
    await until(() => names(c).includes('live'))
    for (const { clock } of [b, c]) clock.at += MINUTE_MS
    let expired = 0
    for (const { records } of [b, c]) records.onChange((changes) => (expired += changes.length))
    await until(() => expired === 2, 5_000)
    expect([names(b), names(c)]).toEqual([[], []])
  })
})

describe('judging gossip', () => {
  it('passes on what is new, ignores what is not, and holds a forgery against who passed it on', async () => {
    await using mesh = new FakeMesh()
    const node = await mesh.node()
    const record = recordBy(alice, { seq: 2 })
    expect(mesh.tell('x', node, record.bytes)).toBe('accept')
    expect(mesh.tell('x', node, record.bytes)).toBe('ignore')
    expect(mesh.tell('x', node, recordBy(alice, { seq: 1 }).bytes)).toBe('ignore')
    expect(mesh.tell('x', node, recordBy(alice, { issued: 0, leaseMs: 1 }).bytes)).toBe('ignore')
    const forged = Buffer.from(recordBy(alice, { seq: 3 }).bytes)
    forged.fill(0, 0, 64)
    expect(mesh.tell('x', node, forged)).toBe('reject')
    expect(mesh.tell('x', node, new Uint8Array(1024 ** 3))).toBe('reject')
    expect(mesh.tell('x', node, recordBy(alice, { network: new Uint8Array(32) }).bytes)).toBe('reject')
  })

  it('has enough of a peer that gossips without end, and of no other', async () => {
    await using mesh = new FakeMesh()
    const node = await mesh.node()
    const verdicts = Array.from({ length: 3_000 }, () => mesh.tell('loud', node, new Uint8Array(3)))
    expect(verdicts.filter((verdict) => verdict === 'reject')).toHaveLength(2_000)
    expect(mesh.tell('quiet', node, recordBy(alice).bytes)).toBe('accept')
    node.clock.at += MINUTE_MS
    expect(mesh.tell('loud', node, new Uint8Array(3))).toBe('reject')
  })

  it('stays up when the disk does not take a record, and says so', async () => {
    await using mesh = new FakeMesh()
    const node = await mesh.node()
    node.db.exec('PRAGMA query_only = 1')
    expect(mesh.tell('x', node, recordBy(alice).bytes)).toBe('ignore')
    expect(node.log.entries.map(({ event }) => event)).toEqual(['record.unstored'])
    node.db.exec('PRAGMA query_only = 0')
    expect(mesh.tell('x', node, recordBy(alice).bytes)).toBe('accept')
    expect(node.records.counts().records).toBe(1)
  })
})

describe('a closed network', () => {
  const network = new TestNetwork(START_MS)
  const note = (key: typeof alice, name = 'a') => recordBy(key, { network: network.id, name })

  it('neither passes on what a stranger says nor holds it against who does, and takes it once it is a member’s', async () => {
    await using mesh = new FakeMesh()
    const store = makeClosedStore(network)
    const node = await mesh.node({ store, members: store.members })
    const verdicts = Array.from({ length: 100 }, (_, nth) => mesh.tell('x', node, note(alice, `n${nth}`).bytes))
    expect(new Set(verdicts)).toEqual(new Set(['ignore']))
    expect(mesh.tell('x', node, memberRecord(network, alice).bytes)).toBe('accept')
    expect(mesh.tell('x', node, note(alice, 'n0').bytes)).toBe('accept')
    expect(names(node)).toEqual(['n0'])
  })

  it('fetches again what a stranger said when that is a member after all', async () => {
    await using mesh = new FakeMesh()
    mesh.isGossiping = false
    const [one, two] = [makeClosedStore(network), makeClosedStore(network)]
    const node = await mesh.node({ store: one, members: one.members })
    const other = await mesh.node({ store: two, members: two.members })
    const [delegate, revoker] = [ephemeralNodeKey(), ephemeralNodeKey()]
    const endorsed = (key: typeof alice) => network.delegate(key.publicKey)
    const chain = network.certify(alice.publicKey, {}, delegate, endorsed(delegate))
    two.records.acceptAll([memberRecord(network, alice, chain).bytes, note(alice).bytes])
    // A delegate takes alice out, and then is found to have had no business to.
    const fields = { network: network.id, key: alice.publicKey, scope: 'member' as const, issued: START_MS }
    one.membership.learn(issueRevocation(fields, revoker, endorsed(revoker)).bytes)
    mesh.connect(node, other)
    await until(() => mesh.opened.length >= 2 && one.members.list().length === 2, 6_000)
    expect(names(node)).toEqual([])
    one.membership.learn(revocationOf(network, revoker.publicKey, 'issuer'))
    await until(() => names(node).includes('a'), 6_000)
  })
})

describe('clocks', () => {
  it('tells by how much the clocks of the peers differ, by their median', async () => {
    await using mesh = new FakeMesh()
    const node = await mesh.node()
    expect(node.replicator.clockOffsetMs()).toBeUndefined()
    for (const minutes of [30, 31, -600]) {
      const peer = await mesh.node()
      peer.clock.at += minutes * MINUTE_MS
      mesh.connect(node, peer)
      await until(() => mesh.opened.some(({ to }) => to === peer.peerId))
    }
    await until(() => node.replicator.clockOffsetMs() === 30 * MINUTE_MS)
    node.clock.at += 30 * MINUTE_MS
    expect(node.replicator.clockOffsetMs()).toBeUndefined()
  })
})

describe('stopping', () => {
  it('ends comparisons in flight, and takes no more', async () => {
    const mesh = new FakeMesh()
    const [a, b] = [await mesh.node(), await mesh.node()]
    for (let nth = 0; nth < 500; nth++) say(a, `n${nth}`)
    mesh.connect(b, a)
    await b.replicator[Symbol.asyncDispose]()
    const had = b.records.counts().records
    say(a, 'more')
    mesh.connect(a, b)
    expect(mesh.tell(a.peerId, b, recordBy(alice).bytes)).toBe('ignore')
    expect(b.records.counts().records).toBe(had)
    await mesh[Symbol.asyncDispose]()
  })
})
