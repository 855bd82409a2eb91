/** Hosts on loopback that are in networks, or only in the open one: what the tests of what members say to each other are made of. */
import { onTestFinished } from 'vitest'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { Gate } from '../../../agent/mesh/gate.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { NetworkStreams } from '../../../agent/mesh/network-streams.ts'
import { type Key, TestNetwork, TestParty } from '../../protocols/membership/people.ts'
import { quiet, startHost } from './nodes.ts'

export type MemberHost = {
  readonly key: NodeKey
  readonly peerId: string
  readonly host: Host
  readonly gate: Gate
  readonly party: TestParty
  readonly streams: NetworkStreams
}

/** Of now, so that certificates are in their time. */
export function makeNetwork(): TestNetwork {
  return new TestNetwork(Date.now())
}

/** In these networks, and in the open one unless told otherwise. */
export async function startMember(name: string, networks: readonly TestNetwork[], open = true): Promise<MemberHost> {
  const key = ephemeralNodeKey()
  const party = new TestParty(key as unknown as Key, Date.now())
  party.open = open
  for (const network of networks) party.join(network, network.certify(key.publicKey, { name }))
  const gate = new Gate({ party, log: quiet })
  const host = await startHost({ key, gate, open })
  const streams = await NetworkStreams.start({ host, gate, log: quiet })
  onTestFinished(async () => {
    await streams[Symbol.asyncDispose]()
    gate[Symbol.dispose]()
  })
  return { key, peerId: host.peerId, host, gate, party, streams }
}
