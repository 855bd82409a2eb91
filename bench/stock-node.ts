/**
 * What the agent is compared with: a plain libp2p node of the same modules, with the libraries' defaults wherever it works with them.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { type GossipSub, gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import type { Libp2p, Stream } from '@libp2p/interface'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { Child, type Handlers, serveParent } from './child.ts'

/** What a node is asked, and what it answers to that. */
type Calls = {
  listen: { ask: { address: string }; answer: { address: string } }
  dial: { ask: { addresses: string[] }; answer: null }
  peers: { ask: null; answer: number }
  /** Sends `sizeBytes` bytes to everybody; the answer is the time of it. */
  publish: { ask: { id: string; sizeBytes: number }; answer: { atMs: number } }
  /** When the message arrived, or null. */
  arrived: { ask: { id: string }; answer: number | null }
  serve: { ask: { file: string }; answer: null }
  /** Fetches the file that the peer serves: on disk and hashed at the end. */
  fetch: { ask: { address: string; to: string }; answer: { digest: string } }
}

const ROLE = 'stock'
const TOPIC = 'stock'
const PROTOCOL = '/stock/file/1'
const READ_BYTES = 256 * 1024
const DIALS_MAX = 4

export class StockNode extends Child<Calls> {
  /** `entry` is this file, or a bundle of it. Resolves with its address when it listens. */
  static async start(
    entry: string,
    { address = '/ip4/127.0.0.1/tcp/0', namespace }: { address?: string; namespace?: string } = {},
  ): Promise<{ node: StockNode; address: string }> {
    const node = new StockNode(entry, { role: ROLE, namespace })
    try {
      return { node, ...(await node.ask('listen', { address })) }
    } catch (error) {
      await node[Symbol.asyncDispose]()
      throw error
    }
  }
}

async function makeNode(address: string): Promise<Libp2p<{ pubsub: GossipSub }>> {
  return (await createLibp2p({
    addresses: { listen: [address] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // Thirty that start at once on one machine are more than the defaults let in.
    connectionManager: { inboundConnectionThreshold: 1_000, maxIncomingPendingConnections: 200 },
    connectionGater: { denyDialMultiaddr: () => false },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({ protocol: '/stock/kad/1', clientMode: false, peerInfoMapper: passthroughMapper }),
      // Without this, peers behind one address are taken for one attacker, and gossip ends.
      pubsub: gossipsub({ allowPublishToZeroTopicPeers: true, scoreParams: { IPColocationFactorWeight: 0 } }),
    },
  })) as unknown as Libp2p<{ pubsub: GossipSub }>
}

function handlers(): Handlers<Calls> {
  const arrivals = new Map<string, number>()
  let node: Libp2p<{ pubsub: GossipSub }> | undefined
  const started = () => {
    if (node === undefined) throw new Error('not started')
    return node
  }
  return {
    async listen({ address }) {
      node = await makeNode(address)
      const { pubsub } = node.services
      pubsub.addEventListener('message', ({ detail }) => {
        const now = Date.now()
        arrivals.set(Buffer.from(detail.data).toString('latin1').split('\0', 1)[0] ?? '', now)
      })
      pubsub.subscribe(TOPIC)
      return { address: String(node.getMultiaddrs()[0]) }
    },
    async dial({ addresses }) {
      await Promise.all(addresses.map((one) => dial(started(), one)))
      return null
    },
    async peers() {
      return started().getPeers().length
    },
    async publish({ id, sizeBytes }) {
      const data = Buffer.alloc(sizeBytes)
      data.write(`${id}\0`)
      const atMs = Date.now()
      await started().services.pubsub.publish(TOPIC, data)
      return { atMs }
    },
    async arrived({ id }) {
      return arrivals.get(id) ?? null
    },
    async serve({ file }) {
      await started().handle(PROTOCOL, async (stream) => send(stream, file))
      return null
    },
    async fetch({ address, to }) {
      const stream = await started().dialProtocol(multiaddr(address), PROTOCOL)
      return { digest: await receive(stream, to) }
    },
  }
}

/** On a machine that starts sixty nodes at once a handshake may time out. */
async function dial(node: Libp2p, address: string): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await node.dial(multiaddr(address))
      return
    } catch (error) {
      if (tries === DIALS_MAX) throw error
    }
  }
}

async function send(stream: Stream, file: string): Promise<void> {
  for await (const chunk of createReadStream(file, { highWaterMark: READ_BYTES })) {
    // The stream's own onDrain() resolves at once after its first use.
    if (!stream.send(chunk as Buffer)) await once(stream, 'drain')
  }
  await stream.close()
}

async function receive(stream: Stream, to: string): Promise<string> {
  const hash = createHash('sha256')
  await using file = await open(to, 'w')
  for await (const list of stream) {
    for (const chunk of list instanceof Uint8Array ? [list] : list) {
      hash.update(chunk)
      await file.write(chunk)
    }
  }
  await file.sync()
  return hash.digest('hex')
}

serveParent<Calls>(ROLE, handlers)
