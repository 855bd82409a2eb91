/**
 * Thirty nodes in one process, which is how many fit on a small machine with room to spare, all told of one bootstrap only.
 */
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { expect, onTestFinished, test } from 'vitest'
import type { Host } from '../../agent/mesh/host.ts'
import { Providers } from '../../agent/mesh/providers.ts'
import { type Node, quiet, startNode, until } from '../agent/mesh/nodes.ts'

const NODES = 30
const MAX_PEERS = 12

test('thirty nodes around one bootstrap become one mesh, with a bounded number of connections each', async () => {
  const hub = await startNode({ maxPeers: MAX_PEERS })
  const nodes = [hub]
  while (nodes.length < NODES) {
    nodes.push(await startNode({ maxPeers: MAX_PEERS, bootstrap: hub.host.addresses() }))
  }
  const counts = () => nodes.map(({ keeper }) => keeper.peers().length)
  await until('everybody has peers besides the hub', () => Math.min(...counts()) >= 3, 20_000)
  expect(reach(nodes)).toBe(NODES)
  await until('nobody is over the limit, the hub included', () => Math.max(...counts()) <= MAX_PEERS, 60_000)
  expect(reach(nodes)).toBe(NODES)
  console.log(
    `connections per node: ${counts()
      .toSorted((a, b) => a - b)
      .join(' ')}`,
  )
  const cid = CID.createV1(raw.code, await sha256.digest(Uint8Array.of(1, 2, 3))).toString()
  const [first, last] = [nodes[1], nodes[NODES - 1]].map((node) => providersOf(node?.host))
  first?.provide(cid)
  const startedMs = performance.now()
  await until('the last node finds what the second provides', () => finds(last, cid, nodes[1]), 30_000)
  console.log(`provided and found in ${Math.round(performance.now() - startedMs)} ms`)
  // Two who dial each other at once, and who is told to go, have one too many or too few for a moment.
  const isSingle = ({ host }: Node) => host.links().length === new Set(host.connected()).size
  await until('every peer has one connection', () => nodes.every(isSingle), 30_000)
})

async function finds(providers: Providers | undefined, cid: string, holder: Node | undefined): Promise<boolean> {
  try {
    for await (const peerId of providers?.find(cid, AbortSignal.timeout(5_000)) ?? []) {
      if (peerId === holder?.host.peerId) return true
    }
  } catch {
    // Out of time: it was not announced yet, or the machine is busy.
  }
  return false
}

function providersOf(host: Host | undefined): Providers {
  if (host === undefined) throw new Error('no such node')
  const providers = Providers.start({ dht: host.dht, host, log: quiet })
  onTestFinished(() => providers[Symbol.asyncDispose]())
  return providers
}

/** How many nodes can be reached from the first one over connections. */
function reach(nodes: readonly Node[]): number {
  const byId = new Map(nodes.map((node) => [node.host.peerId, node]))
  const seen = new Set<string>()
  const ahead = [nodes[0]?.host.peerId ?? '']
  for (let peerId = ahead.pop(); peerId !== undefined; peerId = ahead.pop()) {
    if (seen.has(peerId)) continue
    seen.add(peerId)
    ahead.push(...(byId.get(peerId)?.host.connected() ?? []))
  }
  return seen.size
}
