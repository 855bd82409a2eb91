/** Nodes on loopback with networks of their own on disk: what the tests of statements and renewal are made of. */
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import type { Ed25519PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { onTestFinished } from 'vitest'
import type { Membership } from '../../../agent/identity/membership.ts'
import { Statements } from '../../../agent/membership/statements.ts'
import { Gate } from '../../../agent/mesh/gate.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { type NetworkScope, NetworkStreams } from '../../../agent/mesh/network-streams.ts'
import type { Refusal } from '../../../agent/mesh/refusals.ts'
import type { Key } from '../../protocols/membership/people.ts'
import { clockAt } from '../catalog/catalog.ts'
import { type Home, letIn, makeHome } from '../identity/homes.ts'
import { join, quiet, startHost, until } from '../mesh/nodes.ts'

type NetworkNode = {
  readonly home: Home
  readonly key: Key
  readonly peerId: string
  readonly host: Host
  readonly gate: Gate
  readonly streams: NetworkStreams
  readonly cuts: Refusal[]
}

export type MemberNode = NetworkNode & { readonly net: Membership; readonly scope: NetworkScope }

/** In no network yet. */
export async function startNode(isOpen = false): Promise<NetworkNode> {
  const home = makeHome({ clock: clockAt(Date.now()) })
  const libp2pKey = libp2pKeyOf(home.key)
  const peerId = peerIdFromPrivateKey(libp2pKey).toString()
  const cuts: Refusal[] = []
  const gate = new Gate({
    party: home.networks.party(() => isOpen),
    desk: home.invitations,
    joined: (joined) => void home.networks.join(joined),
    onRefused: (refusal) => void (refusal.wasIn && cuts.push(refusal)),
    log: quiet,
  })
  const host = await startHost({ key: { ...home.key, libp2pKey, peerId }, gate, open: isOpen })
  const streams = await NetworkStreams.start({ host, gate, log: quiet })
  onTestFinished(async () => {
    await streams[Symbol.asyncDispose]()
    gate[Symbol.dispose]()
  })
  return { home, key: home.key, peerId, host, gate, streams, cuts }
}

/** A node as it is in one of its networks. */
export function inNetwork(node: NetworkNode, net: Membership): MemberNode {
  return { ...node, net, scope: node.streams.of(net.network) }
}

/** A network with its founder and these members, none of them connected. */
export async function startNetwork(...names: string[]): Promise<[MemberNode, ...MemberNode[]]> {
  const [first, ...rest] = await Promise.all(['founder', ...names].map(() => startNode()))
  if (first === undefined) throw new Error('there is a founder')
  const founder = inNetwork(first, first.home.networks.create('lab', { memberName: 'founder' }))
  return [founder, ...rest.map((node, nth) => enter(founder, node, names[nth] ?? ''))]
}

/** Lets a node into the founder's network. */
function enter(founder: MemberNode, node: NetworkNode, name: string): MemberNode {
  return inNetwork(node, letIn({ ...founder.home, net: founder.net }, node.home, { name }))
}

export async function startStatements(node: MemberNode): Promise<{ statements: Statements; compared: string[] }> {
  const { net: membership, scope, gate } = node
  const statements = await Statements.start({ membership, scope, recheck: () => gate.recheck(), log: quiet })
  onTestFinished(() => statements[Symbol.asyncDispose]())
  const compared: string[] = []
  statements.onCompared((peerId) => compared.push(peerId))
  return { statements, compared }
}

/** Connects two members, until each knows the other as one. */
export async function meet(from: MemberNode, to: MemberNode): Promise<void> {
  await join(from.host, to.host)
  await until('they know each other', () => {
    return from.scope.connected().includes(to.peerId) && to.scope.connected().includes(from.peerId)
  })
}

function libp2pKeyOf({ privateKey }: Key): Ed25519PrivateKey {
  const { d, x } = privateKey.export({ format: 'jwk' })
  const raw = Buffer.concat([Buffer.from(d ?? '', 'base64url'), Buffer.from(x ?? '', 'base64url')])
  return privateKeyFromRaw(raw) as Ed25519PrivateKey
}
