/** Nodes that find each other by one bootstrap, or by memory, and say what stands in the way. */
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { LOOPBACK, memoryDatabase, type Node, startNode, until } from './nodes.ts'

const connectedTo = (node: Node, other: Node) => node.host.connected().includes(other.host.peerId)
const addressesOf = (node: Node) => node.host.addresses().map((address) => multiaddr(address))
const portOf = (node: Node) => Number(node.host.addresses()[0]?.split('/')[4])

describe('Keeper', () => {
  test('alone, it keeps calm, and says so', async () => {
    const node = await startNode()
    expect(node.keeper.peers()).toEqual([])
    expect(node.keeper.bootstraps()).toEqual([])
  })

  test('one bootstrap is enough to meet everybody, with or without its peer id in the address', async () => {
    const hub = await startNode()
    const [address = ''] = hub.host.addresses()
    const nodes = await Promise.all([
      startNode({ bootstrap: [address] }),
      startNode({ bootstrap: [address.split('/p2p/')[0] ?? ''] }),
      startNode({ bootstrap: [address] }),
    ])
    const all = [hub, ...nodes]
    await until('a full mesh of four', () => all.every((node) => node.keeper.peers().length === 3))
    expect(nodes.map((node) => node.keeper.bootstraps()[0])).toEqual(
      nodes.map(() => expect.objectContaining({ state: 'connected', peerId: hub.host.peerId, failures: 0 })),
    )
    const peer = nodes[0]?.keeper.peers()[0]
    expect(peer).toMatchObject({ path: 'direct', connectedMs: expect.any(Number) })
  })

  test('says which bootstrap cannot be reached, is somebody else, or is this node', async () => {
    const hub = await startNode()
    const [address = ''] = hub.host.addresses()
    const other = address.replace(/\/p2p\/.*/, `/p2p/${ephemeralNodeKey().peerId}`)
    const node = await startNode({ bootstrap: ['/ip4/127.0.0.1/tcp/1', other] })
    const self = node.host.addresses()[0] ?? ''
    node.keeper.setBootstrap(['/ip4/127.0.0.1/tcp/1', other, self, self.split('/p2p/')[0] ?? ''])
    await until('all are judged', () => node.keeper.bootstraps().every(({ state }) => state !== 'connecting'))
    expect(node.keeper.bootstraps().map(({ state }) => state)).toEqual(['unreachable', 'wrong-peer', 'self', 'self'])
    expect(node.keeper.bootstraps()[0]).toMatchObject({ reason: expect.stringContaining('ECONNREFUSED') })
    expect(() => node.keeper.setBootstrap(['localhost:7477'])).toThrow(expect.objectContaining({ code: 'usage' }))
  })

  test('fellow members are dialled however many others are connected; those others would not be', async () => {
    const [bootstrap, member, other] = await Promise.all([startNode(), startNode(), startNode()])
    const wants = (peerId: string) => peerId === member.host.peerId
    // Of one peer at most, one is dialled.
    const node = await startNode({ maxPeers: 1, bootstrap: bootstrap.host.addresses(), wants })
    await until('it has all the peers that it may have', () => connectedTo(node, bootstrap))
    node.keeper.hear(other.host.peerId, addressesOf(other))
    node.keeper.hear(member.host.peerId, addressesOf(member))
    await until('the member is connected', () => connectedTo(node, member))
    expect(connectedTo(node, other)).toBe(false)
  })

  test('a member of whom only the id is known is looked for where it was seen; that this fails is no harm', async () => {
    const member = await startNode()
    const node = await startNode({ wants: () => true })
    const { peerId } = member.host
    const asked: string[] = []
    const answers = [() => Promise.reject(new Error('the store is gone')), async () => addressesOf(member)]
    node.host.addressesOf = async (one) => {
      asked.push(one)
      return (await answers[asked.length - 1]?.()) ?? []
    }
    node.keeper.hear(peerId, [])
    node.keeper.hear(peerId, [])
    await until('the member is connected', () => connectedTo(node, member))
    expect(asked.slice(0, 2)).toEqual([peerId, peerId])
  })

  test('a bootstrap that comes later, and one that restarts, is connected', async () => {
    const key = ephemeralNodeKey()
    const first = await startNode({ key })
    const port = portOf(first)
    const bootstrap = first.host.addresses()
    await first.stop()
    const node = await startNode({ bootstrap })
    const second = await startNode({ key, listen: [`/ip4/127.0.0.1/tcp/${port}`] })
    await until('connected once it is there', () => connectedTo(node, second))
    await second.stop()
    await until('its going is noticed', () => node.keeper.peers().length === 0)
    const third = await startNode({ key, listen: [`/ip4/127.0.0.1/tcp/${port}`] })
    await until('connected again', () => connectedTo(node, third))
  })

  test('without bootstrap and LAN, a restarted node finds the peers that it knew', async () => {
    const db = memoryDatabase()
    const key = ephemeralNodeKey()
    const other = await startNode()
    const before = await startNode({ db, key, bootstrap: other.host.addresses() })
    await until('remembered', () => before.book.size === 1)
    await before.stop()
    const after = await startNode({ db, key })
    await until('connected again', () => connectedTo(after, other))
  })

  test('a peer that was only ever dialled by others knows them after a restart', async () => {
    const db = memoryDatabase()
    const key = ephemeralNodeKey()
    const hub = await startNode({ db, key })
    const node = await startNode({ bootstrap: hub.host.addresses() })
    await until('remembered', () => hub.book.size === 1)
    // The node must not be the one that dials: it does not know where the hub went.
    node.keeper.setBootstrap([])
    await hub.stop()
    const moved = await startNode({ db, key, listen: [LOOPBACK] })
    await until('connected again', () => connectedTo(moved, node))
  })
})
