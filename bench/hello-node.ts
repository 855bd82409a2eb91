/**
 * One end of the connections that bench/hello.ts makes: the agent's own libp2p stack, with the gate or, for comparison, without. Its
 * networks, if it is in any, are what it is told. Nothing but identify and an echo runs on it.
 */
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { Connection, IdentifyResult, Libp2p } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { pino } from 'pino'
import { ephemeralNodeKey, type NodeKey } from '../agent/identity/node-key.ts'
import { Gate } from '../agent/mesh/gate.ts'
import { RelayTransport } from '../agent/mesh/relay-transport.ts'
import { makeStack, type Services, type StackOptions, startStack } from '../agent/mesh/stack.ts'
import type { Party } from '../protocols/hello/hello.ts'
import { type Chain, decodeChain } from '../protocols/membership/certificate.ts'
import { Revocations } from '../protocols/membership/revocation.ts'
import { Child, type Handlers, serveParent } from './child.ts'

/** Without a hello; with one, of nodes that share the open network, or a closed one. */
export type Kind = 'plain' | 'open' | 'member'
/** `chains` are all of one key: each hello shows the next one, so that it is new to who reads it. */
export type Membership = { network: Uint8Array; secret: Uint8Array; chains: Uint8Array[] }
/** Since the dial began: it returned; the peer has told its protocols; it has answered on a stream of one. */
export type Times = { dialledMs: number; identifiedMs: number; answeredMs: number }
export type Memory = { residentBytes: number; liveBytes: number }

type Calls = {
  /** Makes the keys of as many nodes. */
  keys: { ask: { count: number }; answer: Uint8Array[] }
  /** Starts them, one key each; the answer is where the first one listens. */
  start: { ask: { kind: Kind; memberships: Membership[]; listens: boolean }; answer: string | null }
  /** Connects, one after the other, and closes each. */
  connect: { ask: { address: string; count: number }; answer: Times[] }
  /** Each node connects as fast as it can, until there were `count` together; the answer is how long it took. */
  rush: { ask: { address: string; count: number }; answer: number }
  /** Holds as many connections open. */
  hold: { ask: { address: string; count: number }; answer: null }
  /** Used so far. */
  cpuMs: { ask: null; answer: number }
  /** After a garbage collection. */
  memory: { ask: null; answer: Memory }
}

type Node = Libp2p<Services>

const ROLE = 'hello'
const ECHO = '/bench/echo/1'
const WORD = Buffer.from('hello')
const CONNECT_MS_MAX = 20_000
/** Room for all that are held. */
const PEERS_MAX = 200
const COLLECTIONS = 3
const COLLECTION_MS = 50

export class HelloNode extends Child<Calls> {
  constructor() {
    super(import.meta.filename, { role: ROLE, flags: ['--expose-gc'] })
  }
}

async function makeNode(key: NodeKey, kind: Kind, listens: boolean, membership: Membership | undefined): Promise<Node> {
  const gate = kind === 'plain' ? NO_GATE : gateOf(key, kind === 'open', membership)
  const node = await makeStack({
    privateKey: key.libp2pKey,
    listen: listens ? ['/ip4/127.0.0.1/tcp/0'] : [],
    maxPeers: PEERS_MAX,
    userAgent: 'undernet/bench',
    gater: gate.gater(),
    gate,
    relays: new RelayTransport(),
    quic: undefined,
    // What the open network runs is not what is measured.
    open: false,
  })
  const { components } = node as unknown as { components: Components }
  // As libp2p does it: it waits for the listener's answer before it begins with Noise.
  if (kind === 'plain') components.connectionProtector = undefined
  // All of this comes from one address, faster than an agent lets anybody.
  components.connectionManager.inboundConnectionRateLimiter.consume = async () => undefined
  await startStack(node)
  await node.handle(ECHO, async (stream) => {
    for await (const bytes of stream) stream.send(bytes)
    await stream.close()
  })
  return node
}

const NO_GATE: StackOptions['gate'] & Pick<Gate, 'gater'> = {
  secure: (make) => make,
  service: () => ({ start: async () => undefined, stop: async () => undefined }),
  gater: () => ({ denyInboundEncryptedConnection: () => false, denyOutboundEncryptedConnection: () => false }),
}

function gateOf(key: NodeKey, open: boolean, membership: Membership | undefined): Gate {
  const { network, secret, chains = [] } = membership ?? {}
  const revocations = new Revocations(network ?? new Uint8Array(32))
  const read = chains.map(decodeChain)
  let next = 0
  const networks = () => (network && secret ? [{ network, secret, chain: read[next++ % read.length] as Chain }] : [])
  const party: Party = { key, networks, isOpen: () => open, revocations: () => revocations, now: Date.now }
  return new Gate({ party, log: pino({ level: 'silent' }) })
}

/** Public in the class, 3.x. */
type Components = {
  connectionManager: { inboundConnectionRateLimiter: { consume(host: string): Promise<unknown> } }
  connectionProtector: unknown
}

async function connectOnce(node: Node, address: string): Promise<{ connection: Connection; times: Times }> {
  const signal = AbortSignal.timeout(CONNECT_MS_MAX)
  const startedMs = performance.now()
  const since = () => performance.now() - startedMs
  const identified = Promise.withResolvers<number>()
  const known = new Set<Connection>()
  let awaited: Connection | undefined
  const onIdentify = ({ detail }: CustomEvent<IdentifyResult>) => {
    known.add(detail.connection)
    if (detail.connection === awaited) identified.resolve(since())
  }
  node.addEventListener('peer:identify', onIdentify)
  try {
    // Forced: there may be a connection already.
    const connection = await node.dial(multiaddr(address), { signal, force: true })
    const dialledMs = since()
    awaited = connection
    if (known.has(connection)) identified.resolve(dialledMs)
    const stream = await connection.newStream(ECHO, { signal })
    const answered = once(stream, 'message', { signal })
    stream.send(WORD)
    await answered
    const answeredMs = since()
    await stream.close({ signal })
    return { connection, times: { dialledMs, answeredMs, identifiedMs: await identified.promise } }
  } finally {
    node.removeEventListener('peer:identify', onIdentify)
  }
}

function handlers(): Handlers<Calls> {
  let keys: NodeKey[] = []
  let nodes: Node[] = []
  const first = () => {
    if (nodes[0] === undefined) throw new Error('not started')
    return nodes[0]
  }
  return {
    async keys({ count }) {
      keys = Array.from({ length: count }, ephemeralNodeKey)
      return keys.map(({ publicKey }) => publicKey)
    },
    async start({ kind, memberships, listens }) {
      nodes = await Promise.all(keys.map((key, nth) => makeNode(key, kind, listens && nth === 0, memberships[nth])))
      return listens ? String(first().getMultiaddrs()[0]) : null
    },
    async connect({ address, count }) {
      const all: Times[] = []
      for (let nth = 0; nth < count; nth++) {
        const { connection, times } = await connectOnce(first(), address)
        all.push(times)
        await connection.close()
      }
      return all
    },
    async rush({ address, count }) {
      const startedMs = performance.now()
      let begun = 0
      const run = async (node: Node) => {
        while (begun++ < count) await (await connectOnce(node, address)).connection.close()
      }
      await Promise.all(nodes.map(run))
      return performance.now() - startedMs
    },
    async hold({ address, count }) {
      const run = async (node: Node) => {
        for (let nth = 0; nth < count / nodes.length; nth++) await connectOnce(node, address)
      }
      await Promise.all(nodes.map(run))
      return null
    },
    async cpuMs() {
      const { user, system } = process.cpuUsage()
      return (user + system) / 1_000
    },
    async memory() {
      for (let nth = 0; nth < COLLECTIONS; nth++) {
        global.gc?.()
        await delay(COLLECTION_MS)
      }
      const { rss, heapUsed, external } = process.memoryUsage()
      return { residentBytes: rss, liveBytes: heapUsed + external }
    },
  }
}

serveParent<Calls>(ROLE, handlers)
