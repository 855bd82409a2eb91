/** Gossip of a network over real hosts: it reaches members, over members, and a stranger neither hears nor says anything in it. */
import { describe, expect, it, onTestFinished } from 'vitest'
import { Topic } from '../../../agent/mesh/gossip.ts'
import { NetworkGossip } from '../../../agent/mesh/network-gossip.ts'
import type { NetworkScope } from '../../../agent/mesh/network-streams.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import { encodeHeader, NETWORK_PROTOCOL } from '../../../protocols/membership/streams.ts'
import type { TestNetwork } from '../../protocols/membership/people.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, pubsubOf, quiet, until } from './nodes.ts'

const soon = () => AbortSignal.timeout(5_000)

async function gossip(member: MemberHost, network: TestNetwork, scope: NetworkScope = member.streams.of(network.id)) {
  const gossip = await NetworkGossip.start(member.key, scope)
  onTestFinished(() => gossip[Symbol.asyncDispose]())
  const topic = Topic.join(gossip.pubsub, 'records', quiet)
  const got: string[] = []
  topic.subscribe((bytes) => {
    got.push(Buffer.from(bytes).toString())
    return 'accept'
  })
  return { gossip, topic, got, subscribers: () => topic.subscribers().length }
}

const say = (topic: Topic, text: string) => topic.publish(Buffer.from(text))

describe('gossip of a network', () => {
  it('passes over a member to another, and not to a stranger between them', async () => {
    const home = makeNetwork()
    const [a, b, c, s] = await Promise.all([
      startMember('a', [home]),
      startMember('b', [home]),
      startMember('c', [home]),
      startMember('s', []),
    ])
    const [ga, gb, gc, gs] = await Promise.all([a, b, c, s].map((one) => gossip(one, home)))
    const open = Topic.join(pubsubOf(a.host), 'records', quiet)
    const heardInOpen: string[] = []
    const ofStranger = Topic.join(pubsubOf(s.host), 'records', quiet)
    ofStranger.subscribe((bytes) => {
      heardInOpen.push(Buffer.from(bytes).toString())
      return 'accept'
    })
    await Promise.all([
      join(a.host, b.host),
      join(c.host, b.host),
      join(a.host, s.host),
      join(s.host, b.host),
      join(s.host, c.host),
    ])
    await until('members know of each other', () => ga?.subscribers() === 1 && gb?.subscribers() === 2)
    await until('the open network gossips', () => open.subscribers().length === 1)
    expect(await say(ga?.topic as Topic, 'secret')).toBe(1)
    await say(open, 'public')
    await say(gs?.topic as Topic, 'forged')
    await until('it arrives', () => gc?.got.length === 1 && heardInOpen.length === 1)
    expect([ga?.got, gb?.got, gc?.got, gs?.got, heardInOpen]).toEqual([[], ['secret'], ['secret'], [], ['public']])
    expect(gs?.subscribers()).toBe(0)
  })

  it('is not to be had by who knows its names', async () => {
    const home = makeNetwork()
    const [a, s] = await Promise.all([startMember('a', [home]), startMember('s', [])])
    const ga = await gossip(a, home)
    await join(s.host, a.host)
    const stream = await s.host.openStream(a.peerId, NETWORK_PROTOCOL, soon())
    stream.send(encodeFrame(encodeHeader({ network: home.id, protocol: '/meshsub/1.2.0' })))
    await until('it is reset', () => stream.status === 'reset')
    expect(ga.subscribers()).toBe(0)
  })

  it('begins when a connected peer joins, and ends when it shows its membership no more', async () => {
    const home = makeNetwork()
    const [a, b] = await Promise.all([startMember('a', []), startMember('b', [home])])
    const gb = await gossip(b, home)
    await join(a.host, b.host)
    a.party.join(home, home.certify(a.key.publicKey, { name: 'a' }))
    await a.gate.refresh(b.peerId, soon())
    const ga = await gossip(a, home)
    await until('they gossip', () => ga.subscribers() === 1 && gb.subscribers() === 1)
    await say(gb.topic, 'welcome')
    await until('it arrives', () => ga.got.length === 1)
    a.party.credentials.length = 0
    await a.gate.refresh(b.peerId, soon())
    await until('it is over', () => gb.subscribers() === 0)
    expect(await say(gb.topic, 'without a')).toBe(0)
    expect(a.host.isConnected(b.peerId)).toBe(true)
  })

  it('of two networks on the same hosts is apart, and one can end and begin again', async () => {
    const [home, work] = [makeNetwork(), makeNetwork()]
    const [a, b] = await Promise.all([startMember('a', [home, work], false), startMember('b', [home, work], false)])
    const [ha, hb, wa, wb] = [
      await gossip(a, home),
      await gossip(b, home),
      await gossip(a, work),
      await gossip(b, work),
    ]
    await join(a.host, b.host)
    await until('they gossip', () => [ha, hb, wa, wb].every((one) => one.subscribers() === 1))
    await say(ha.topic, 'home')
    await say(wb.topic, 'work')
    await until('it arrives', () => hb.got.length === 1 && wa.got.length === 1)
    expect([ha.got, hb.got, wa.got, wb.got]).toEqual([[], ['home'], ['work'], []])
    await hb.gossip[Symbol.asyncDispose]()
    const again = await gossip(b, home)
    await until('b knows of a again', () => again.subscribers() === 1)
    await say(ha.topic, 'once more')
    await until('it arrives again', () => again.got.includes('once more'))
    expect(a.host.links()[0]?.busy).toBe(false)
  })
})
