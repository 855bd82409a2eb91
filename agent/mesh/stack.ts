/**
 * What the host is made of: libp2p's modules, each with the settings that a small private mesh on ordinary machines needs, and the
 * reason beside each. The goals behind them: works on private addresses, with 1 node and with thousands; costs next to nothing when
 * idle; every bound holds against strangers.
 *
 * Three things that libp2p would do by itself are taken from it, since the keeper does them: dialling again whoever the DHT likes,
 * dialling whoever the DHT hears of, and pinging by streams (liveness.ts).
 */
import { randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { GossipSub } from '@libp2p/gossipsub'
import { type Identify, type IdentifyPush, identify, identifyPush } from '@libp2p/identify'
import {
  type Connection,
  type ConnectionGater,
  type Ed25519PrivateKey,
  type Libp2p,
  NotFoundError,
  type PeerId,
  type PeerStore,
} from '@libp2p/interface'
import { type KadDHT, kadDHT, MessageType, passthroughMapper, type QueryEvent } from '@libp2p/kad-dht'
import { type Ping, ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import type { Multiaddr } from '@multiformats/multiaddr'
import { createLibp2p, type Libp2pOptions } from 'libp2p'
import { announced, byReach, isLoopback } from './addresses.ts'
import { BoundedDatastore } from './datastore.ts'
import { eager } from './eager-noise.ts'
import type { Gate } from './gate.ts'
import { makeGossip } from './gossip.ts'
import { noiseCrypto } from './noise-cipher.ts'
import type { Quic } from './quic.ts'
import type { RelayTransport } from './relay-transport.ts'
import { roomed, STREAMS_MAX } from './stream-room.ts'

const KAD_PROTOCOL = '/undernet/kad/1'

/**
 * The hard limit, above which connections are refused at the door; the keeper trims to max_peers well below it. A bootstrap needs the
 * room: everybody who arrives comes to it first, and leaves when it knows others.
 */
const CONNECTIONS_MAX_FACTOR = 4
const CONNECTIONS_MAX_LEAST = 100
/** Sockets that have not yet proven who they are: a fleet that starts at once, and no more. */
const PENDING_MAX = 64
/** New connections a second from one address: a whole lab, or a site behind one NAT, starting at once. */
const INBOUND_PER_SECOND_MAX = 50
/** Noise, the hello and yamux take three round trips. Whoever sends garbage or nothing is gone after this. */
const UPGRADE_MS_MAX = 5_000
/** A dead address must not use up the dial; TCP alone would wait two minutes. */
const DIAL_ADDRESS_MS_MAX = 4_000
const DIAL_MS_MAX = 10_000
/** A handshake costs 10 ms of CPU: sixteen at once leave the event loop usable. */
const DIALS_MAX = 16
const DIALS_WAITING_MAX = 200
/** A peer on several networks has a handful of addresses; one that claims hundreds is not worth the time. */
const ADDRESSES_PER_PEER_MAX = 16
/** At 100 ms that is 80 MB/s; yamux's own 16 MiB is also what a peer can make us hold per stream. */
const STREAM_WINDOW_BYTES_MAX = 8 * 1024 * 1024
/** Nothing heard on the socket for this long: liveness is off or broken, and the connection dead. */
const SOCKET_IDLE_MS = 120_000

/**
 * Self-queries are the keeper's (findNeighbours): the library's first one, a second after the start, would connect everybody who starts
 * with a bootstrap to the twenty others that it knows.
 */
const KAD_SELF_QUERY_MS = 24 * 3_600_000
/** Each answers with up to 20 peers, some 3 KB. */
const ASKED_MAX = 3
/**
 * The library refreshes every 5 min what the self-query does not reach, at a few KB a peer, and has no option for it. The table also
 * learns from every connection and query.
 */
const KAD_REFRESH_MS = 60 * 60_000

export type Services = {
  identify: Identify
  identifyPush: IdentifyPush
  ping: Ping
  /** Of the open network; not there when that is off. */
  dht?: KadDHT
  /** Likewise. */
  pubsub?: GossipSub
}

export type StackOptions = {
  privateKey: Ed25519PrivateKey
  listen: readonly string[]
  maxPeers: number
  userAgent: string
  gater: ConnectionGater
  gate: Pick<Gate, 'secure' | 'service'>
  relays: Pick<RelayTransport, 'factory'>
  /** Undefined on a platform without. */
  quic: Pick<Quic, 'factory'> | undefined
  /** Whether to take part in the open network: its DHT and its gossip. */
  open: boolean
  /** What libp2p counts of itself is told there. */
  metrics?: Libp2pOptions['metrics'] | undefined
}

/** Builds the host, not started yet. */
export async function makeStack(options: StackOptions): Promise<Libp2p<Services>> {
  const connectionsMax = Math.max(CONNECTIONS_MAX_LEAST, options.maxPeers * CONNECTIONS_MAX_FACTOR)
  const listen = options.listen.filter((address) => options.quic !== undefined || !address.includes('/quic-v1'))
  const { connectionEncrypter, connectionProtector } = eager(noise({ crypto: noiseCrypto }))
  const node: Libp2p<Services> = (await createLibp2p({
    start: false,
    privateKey: options.privateKey,
    // Tells neither the Node version nor the platform.
    nodeInfo: { name: 'undernet', userAgent: options.userAgent },
    ...(options.metrics !== undefined && { metrics: options.metrics }),
    datastore: new BoundedDatastore(() => keysInUse(node)),
    // After an hour the default forgets the addresses of a peer that never left. The datastore is bounded by itself.
    peerStore: { maxAddressAge: Number.POSITIVE_INFINITY },
    addresses: { listen, announceFilter: announced },
    transports: [
      tcp({
        maxConnections: connectionsMax + PENDING_MAX,
        inboundSocketInactivityTimeout: SOCKET_IDLE_MS,
        outboundSocketInactivityTimeout: SOCKET_IDLE_MS,
      }),
      ...(options.quic === undefined ? [] : [options.quic.factory]),
      options.relays.factory,
    ],
    connectionProtector,
    connectionEncrypters: [options.gate.secure(connectionEncrypter)],
    streamMuxers: [
      roomed(
        yamux({
          enableKeepAlive: false,
          maxInboundStreams: STREAMS_MAX,
          maxOutboundStreams: STREAMS_MAX,
          streamOptions: { maxStreamWindowSize: STREAM_WINDOW_BYTES_MAX },
        }),
      ),
    ],
    connectionGater: {
      ...options.gater,
      denyDialMultiaddr: () => false,
      filterMultiaddrForPeer: (peer, address) => keepsAddress(node, peer, address),
    },
    connectionManager: {
      maxConnections: connectionsMax,
      maxIncomingPendingConnections: PENDING_MAX,
      inboundConnectionThreshold: INBOUND_PER_SECOND_MAX,
      inboundUpgradeTimeout: UPGRADE_MS_MAX,
      inboundStreamProtocolNegotiationTimeout: UPGRADE_MS_MAX,
      outboundStreamProtocolNegotiationTimeout: UPGRADE_MS_MAX,
      dialTimeout: DIAL_MS_MAX,
      addressDialTimeout: DIAL_ADDRESS_MS_MAX,
      maxParallelDials: DIALS_MAX,
      maxDialQueueLength: DIALS_WAITING_MAX,
      maxPeerAddrsToDial: ADDRESSES_PER_PEER_MAX,
      addressSorter: byReach(),
    },
    connectionMonitor: { enabled: false },
    services: {
      hello: options.gate.service,
      identify: identify(),
      // Protocols and addresses change while connected (a network is joined, a laptop moves).
      identifyPush: identifyPush(),
      // Each open for one round trip: the DHT, `agent ping` and its impatient user at once.
      ping: ping({ maxInboundStreams: 8, maxOutboundStreams: 8 }),
      ...(options.open && { dht: makeDht, pubsub: makeGossip }),
    },
  })) as unknown as Libp2p<Services>
  return node
}

/** Starts the host. Rejects with libp2p's error when it cannot listen. */
export async function startStack(node: Libp2p<Services>): Promise<void> {
  await node.start()
  const { connectionManager } = componentsOf(node)
  // It dials again whoever the DHT tagged as close, at once and whatever the keeper decided.
  connectionManager.reconnectQueue.stop()
  await refreshAddresses(node)
}

/**
 * Has peers told of the addresses that we have now. libp2p looks at them when a listener starts only, and leaves out public ones until
 * a stranger confirmed them (AutoNAT): an address on our own interface needs nobody's confirmation.
 */
export async function refreshAddresses(node: Libp2p<Services>): Promise<void> {
  const { addressManager, transportManager } = componentsOf(node)
  for (const address of transportManager.getAddrs()) {
    if (address.getComponents()[0] !== undefined) addressManager.confirmObservedAddr(address, { type: 'transport' })
  }
  await node.peerStore.patch(node.peerId, {
    multiaddrs: node.getMultiaddrs().map((address) => address.decapsulate(`/p2p/${node.peerId.toString()}`)),
  })
}

/**
 * Connects by an address that is nobody's but ours, beside whatever else is dialled: libp2p's own dial joins one that is under way to the
 * same peer.
 */
export async function dialBeside(node: Libp2p<Services>, address: Multiaddr, signal: AbortSignal): Promise<Connection> {
  return await componentsOf(node).transportManager.dial(address, { signal })
}

/**
 * Asks up to ASKED_MAX connected peers whom they know: who is near this node, and who is near some random place. Connects to nobody; what
 * the answers name is told as `peer:discovery`. Without a DHT this does nothing.
 */
export async function askPeers(node: Libp2p<Services>, signal: AbortSignal): Promise<void> {
  const { dht } = node.services
  if (dht === undefined) return
  const asked = node
    .getPeers()
    .map((peer) => ({ peer, rank: Math.random() }))
    .sort((a, b) => a.rank - b.rank)
    .slice(0, ASKED_MAX)
  const { network } = dht as unknown as { network: KadNetwork }
  const path = { index: 0, queued: 0, running: 0, total: 0 }
  await Promise.all(
    asked.map(async ({ peer }, index) => {
      const key = index === 0 ? node.peerId.toMultihash().bytes : randomBytes(32)
      for await (const _ of network.sendRequest(peer, { type: MessageType.FIND_NODE, key }, { signal, path })) {
        // An error is an event, too, and a peer that does not answer tells us nothing.
      }
    }),
  )
}

/**
 * Takes this node's place in the DHT: connects to the peers closest to it, wherever they are, so that they know each other. Needed for
 * what is provided to be found in large networks. Without a DHT this does nothing.
 */
export async function findNeighbours(node: Libp2p<Services>, signal: AbortSignal): Promise<void> {
  const { dht } = node.services
  if (dht === undefined) return
  for await (const _ of dht.getClosestPeers(node.peerId.toMultihash().bytes, { signal })) {
    // They are in the routing table now.
  }
}

type DhtComponents = Parameters<ReturnType<typeof kadDHT>>[0]

function makeDht(components: DhtComponents): KadDHT {
  const dht = kadDHT({
    protocol: KAD_PROTOCOL,
    // The default waits for a public address, and drops private ones.
    clientMode: false,
    peerInfoMapper: passthroughMapper,
    // The default makes a lone node's query hang for 180 s.
    allowQueryWithZeroPeers: true,
    querySelfInterval: KAD_SELF_QUERY_MS,
    initialQuerySelfInterval: KAD_SELF_QUERY_MS,
    // Alpha 10 asks half of a small network at once; 3 is what Kademlia was designed with.
    alpha: 3,
  })(connectedOnly(components))
  ;(dht as unknown as { routingTableRefresh: { refreshInterval: number } }).routingTableRefresh.refreshInterval =
    KAD_REFRESH_MS
  return dht
}

/**
 * The DHT checks each peer that it hears of by a ping before it takes it into its table, which would connect every node to every
 * other. Here only connected peers pass; queries connect to others as they need them, and those are in the table then.
 */
function connectedOnly(components: DhtComponents): DhtComponents {
  const quietPing: Pick<Ping, 'ping'> = {
    ping: async (peer, options) => {
      if (components.connectionManager.getConnections(peer as PeerId).length === 0) throw new Error('not connected')
      return components.ping.ping(peer, options)
    },
  }
  const views: Record<string, unknown> = { ping: quietPing, peerStore: participantsOf(components.peerStore) }
  return new Proxy(components, {
    get: (target, name) => views[String(name)] ?? Reflect.get(target, name),
  })
}

/**
 * The peers that the DHT knows, and so tells anybody of who asks for them by their id: those that take part in it. Others are in the peer
 * store for the sake of a closed network, and nobody else is to hear where they are, or that they are known here.
 */
function participantsOf(peerStore: PeerStore): PeerStore {
  const get: PeerStore['get'] = async (id, options) => {
    const peer = await peerStore.get(id, options)
    if (peer.protocols.includes(KAD_PROTOCOL)) return peer
    throw new NotFoundError('not in the DHT')
  }
  const getInfo: PeerStore['getInfo'] = async (id, options) => {
    await get(id, options)
    return await peerStore.getInfo(id, options)
  }
  const views: Record<string, unknown> = { get, getInfo }
  return new Proxy(peerStore, {
    get: (target, name) => {
      const own: unknown = views[String(name)] ?? Reflect.get(target, name)
      return typeof own === 'function' ? own.bind(target) : own
    },
  })
}

/** A stranger must not point us at services on our own machine, unless loopback is all that we have ourselves. */
function keepsAddress(node: Libp2p<Services>, peer: PeerId, address: Multiaddr): boolean {
  return !isLoopback(address) || peer.equals(node.peerId) || node.getMultiaddrs().every(isLoopback)
}

/** The peer store's own entry, and those of connected peers. */
function keysInUse(node: Libp2p<Services>): ReadonlySet<string> {
  return new Set([node.peerId, ...node.getPeers()].map((peer) => `/peers/${peer.toCID().toString()}`))
}

/** kad-dht's messages, public in its class (16.x). */
type KadNetwork = {
  sendRequest(
    to: PeerId,
    message: { type: MessageType; key: Uint8Array },
    options: { signal: AbortSignal; path: { index: number; queued: number; running: number; total: number } },
  ): AsyncIterable<QueryEvent>
}

/** libp2p's parts, which its interface does not show (public in the class, 3.x). */
type Components = {
  connectionManager: { reconnectQueue: { stop(): void } }
  addressManager: { confirmObservedAddr(address: Multiaddr, options: { type: 'transport' }): void }
  transportManager: {
    getAddrs(): Multiaddr[]
    dial(address: Multiaddr, options: { signal: AbortSignal }): Promise<Connection>
  }
}

function componentsOf(node: Libp2p<Services>): Components {
  return (node as unknown as { components: Components }).components
}
