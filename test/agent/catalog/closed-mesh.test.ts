/** The records of closed networks over real hosts on loopback: members, their scopes and their gossip, as they run in the agent. */
import { describe, expect, it, onTestFinished } from 'vitest'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { Presence } from '../../../agent/catalog/presence.ts'
import { Replicator } from '../../../agent/catalog/replicator.ts'
import { Topic } from '../../../agent/mesh/gossip.ts'
import { NetworkGossip } from '../../../agent/mesh/network-gossip.ts'
import type { TestNetwork } from '../../protocols/membership/people.ts'
import { type MemberHost, makeNetwork, startMember } from '../mesh/member-hosts.ts'
import { join, quiet } from '../mesh/nodes.ts'
import { clockAt, DAY_MS, stateOf, until } from './catalog.ts'
import { type ClosedStore, makeClosedStore, revocationOf } from './closed.ts'

type Node = ClosedStore & { nodes: Nodes; peerId: string }

const body = { name: 'a node', version: '1', capabilities: { system: 'x', cpus: 1, memoryBytes: 1 } }

/** What a node runs of one network. */
async function run({ key, peerId, host, streams }: MemberHost, network: TestNetwork): Promise<Node> {
  const store = makeClosedStore(network, { key, clock: clockAt(Date.now()) })
  const { records, members } = store
  const nodes = new Nodes(records)
  const scope = streams.of(network.id)
  const gossip = await NetworkGossip.start(key, scope)
  const topic = Topic.join(gossip.pubsub, 'records', quiet)
  const replicator = await Replicator.start({ records, members, gossip: topic, peers: scope, log: quiet })
  const addresses = () => host.addresses()
  const presence = Presence.start({ records, body, addresses, nodeCount: () => nodes.count, log: quiet })
  onTestFinished(async () => {
    presence[Symbol.dispose]()
    await replicator[Symbol.asyncDispose]()
    await gossip[Symbol.asyncDispose]()
    store[Symbol.dispose]()
  })
  return { ...store, nodes, peerId }
}

const agree = (nodes: readonly Node[]) => new Set(nodes.map(stateOf)).size === 1
const say = ({ records }: Node, name: string) => records.put({ kind: 'note', name, body: name, leaseMs: DAY_MS })
const names = ({ records }: Node) =>
  records
    .list('note')
    .map(({ name }) => name)
    .sort()

describe('records of a closed network over libp2p', () => {
  it('are those of its members, who know of each other and where they are, also of one who comes late', async () => {
    const home = makeNetwork()
    const hosts = await Promise.all(['a', 'b', 'c'].map((name) => startMember(name, [home])))
    const [a, b, c] = hosts as [MemberHost, MemberHost, MemberHost]
    const nodes = await Promise.all(hosts.map((one) => run(one, home)))
    await join(a.host, b.host)
    await join(c.host, b.host)
    await until(() => nodes.every((node) => node.nodes.list().length === 3) && agree(nodes))
    const [first] = nodes as [Node]
    expect(
      first.members
        .list()
        .map(({ peerId }) => peerId)
        .sort(),
    ).toEqual([a, b, c].map(({ peerId }) => peerId).sort())
    expect(first.nodes.get(c.peerId)?.addresses).toEqual(c.host.addresses())
    say(first, 'x')
    await until(() => nodes.every((node) => names(node).includes('x')), 2_000)
    const late = await startMember('late', [home])
    await join(late.host, c.host)
    const node = await run(late, home)
    await until(() => agree([...nodes, node]), 5_000)
    expect(first.nodes.get(late.peerId)?.addresses).toEqual(late.host.addresses())
  })

  it('are apart from those of another network on the same nodes, and no stranger hears or says any', async () => {
    const [home, work] = [makeNetwork(), makeNetwork()]
    const a = await startMember('a', [home, work])
    const b = await startMember('b', [home, work])
    const other = await startMember('other', [work])
    const [aHome, bHome, aWork, bWork, otherWork, otherHome] = await Promise.all([
      run(a, home),
      run(b, home),
      run(a, work),
      run(b, work),
      run(other, work),
      // Who says that it is a member, and has no certificate to show.
      run(other, home),
    ])
    await join(a.host, b.host)
    await join(other.host, a.host)
    await join(b.host, other.host)
    say(aHome, 'of-home')
    say(otherWork, 'of-work')
    say(otherHome, 'forged')
    await until(() => agree([aHome, bHome]) && agree([aWork, bWork, otherWork]) && names(bWork).length === 1)
    await until(() => names(bHome).length === 1)
    expect([aHome, bHome].map(names)).toEqual([['of-home'], ['of-home']])
    expect([aWork, bWork, otherWork].map(names)).toEqual([['of-work'], ['of-work'], ['of-work']])
    expect(names(otherHome)).toEqual(['forged'])
    expect(aHome.nodes.get(other.peerId)).toBeUndefined()
  })

  it('of somebody revoked go at once where that is known, and do not come back from where it is not', async () => {
    const home = makeNetwork()
    const hosts = await Promise.all(['a', 'b', 'c'].map((name) => startMember(name, [home])))
    const nodes = await Promise.all(hosts.map((one) => run(one, home)))
    const [a, b, c] = nodes as [Node, Node, Node]
    for (const node of nodes) say(node, `of-${hosts[nodes.indexOf(node)]?.peerId.slice(-4)}`)
    await join(hosts[0]?.host as MemberHost['host'], hosts[1]?.host as MemberHost['host'])
    await join(hosts[2]?.host as MemberHost['host'], hosts[1]?.host as MemberHost['host'])
    await until(() => agree(nodes) && names(a).length === 3)
    a.membership.learn(revocationOf(home, c.key.publicKey))
    expect(names(a)).toHaveLength(2)
    say(c, 'still-talking')
    await until(() => names(b).includes('still-talking'), 5_000)
    say(b, 'of-b-again')
    await until(() => names(a).includes('of-b-again'), 5_000)
    expect(names(a)).not.toContain('still-talking')
    b.membership.learn(revocationOf(home, c.key.publicKey))
    expect(agree([a, b])).toBe(true)
  })
})
