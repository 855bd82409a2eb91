/**
 * This node's place in the mesh: a libp2p host over TCP, Noise and Yamux, and over QUIC, that others dial and that dials others, until disposed.
 * What it is made of, and why each setting is as it is, is in stack.ts; who it keeps connected is the keeper's business.
 *
 * Peers are known by peer id strings here, and nothing of libp2p but its streams goes out to other folders. A peer that `onPeer`
 * reports has proven its id (Noise or TLS), said hello (the gate) and told its protocols (identify).
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Connection, IdentifyResult, Libp2p, PeerId, Stream } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Multiaddr } from '@multiformats/multiaddr'
import { AgentError, reasonOf } from '../error.ts'
import type { NodeKey } from '../identity/node-key.ts'
import type { Log } from '../log.ts'
import { hostIn, parseAddress } from './addresses.ts'
import { Admission } from './admission.ts'
import { Connections, isBusy, isGone, type Link } from './connections.ts'
import { Dialler } from './dialler.ts'
import type { Gate } from './gate.ts'
import type { PubSub } from './gossip.ts'
import { Identifying } from './identifying.ts'
import { Lan } from './lan.ts'
import { listenError } from './listen-error.ts'
import { Liveness, saidGoodbye } from './liveness.ts'
import { PING_PROTOCOL, pingOn } from './ping.ts'
import { Quic } from './quic.ts'
import { RelayTransport, relayedAddress } from './relay-transport.ts'
import type { Relays } from './relays.ts'
import {
  askPeers,
  dialBeside,
  findNeighbours,
  makeStack,
  refreshAddresses,
  type Services,
  type StackOptions,
  startStack,
} from './stack.ts'

/** Config `max_peers` when the user says nothing: enough for gossip and lookups in a network of thousands, at 0.2 MB each. */
const PEERS_MAX_DEFAULT = 24
/** For a dial whose caller set no narrower limit: several addresses, at DIAL_ADDRESS_MS each. */
const DIAL_MS_MAX = 10_000
/** A connection is replaced at most once when both sides dialled; the third is for a peer that restarted just then. */
const STREAM_TRIES_MAX = 3
/** A direct dial that has not come through by then is not waited for: a relay is tried beside it. */
const RELAY_AFTER_MS = 300
/** libp2p closes what is open within half a second; the process must not hang on a peer that does not answer. */
const STOP_MS_MAX = 3_000

export type HostOptions = {
  key: Pick<NodeKey, 'libp2pKey' | 'peerId'>
  /** Multiaddrs to listen on; none makes a node that only dials. */
  listen: readonly string[]
  mdns: boolean
  /** Lets peers in; whose it is disposes it. */
  gate: Pick<Gate, 'secure' | 'streamed' | 'gater' | 'service'>
  /** Whether to take part in the open network. Otherwise there is neither a DHT nor gossip here. */
  open: boolean
  log: Log
  maxPeers?: number
  /** Shown to peers, as `undernet/<version>`. */
  version?: string
  metrics?: StackOptions['metrics']
}

export type Direction = 'inbound' | 'outbound'
export type StreamHandler = (stream: Stream, peerId: string) => Promise<void> | void

/** A peer that somebody told us of, and where it is said to be. */
export type Found = { peerId: string; addresses: Multiaddr[]; by: 'lan' | 'dht' }

export class Host implements AsyncDisposable {
  readonly peerId: string
  readonly #node: Libp2p<Services>
  readonly #log: Log
  readonly #liveness: Liveness
  readonly #connections: Connections
  readonly #dialler: Dialler
  /** For Relays. */
  readonly relayTransport: RelayTransport
  /** For holes in routers; undefined where there is no QUIC. */
  readonly quic: Quic | undefined
  /** Connections that can be used: the peer has told its protocols. */
  readonly #identifying: Identifying
  /** The connection of each peer that `onPeer` was told of. */
  readonly #told = new Map<string, Connection>()
  readonly #onPeer = new Set<(peerId: string, direction: Direction) => void>()
  readonly #onGone = new Set<(peerId: string, letGo: boolean) => void>()
  readonly #onFound = new Set<(found: Found) => void>()
  /** Who connected last, and how: the event of a peer's going does not say. */
  readonly #latest = new Map<string, Connection>()
  #lan: Lan | undefined
  #relays: Pick<Relays, 'knows' | 'reach'> | undefined

  private constructor(
    node: Libp2p<Services>,
    relayTransport: RelayTransport,
    quic: Quic | undefined,
    liveness: Liveness,
    log: Log,
  ) {
    this.peerId = node.peerId.toString()
    this.#node = node
    this.relayTransport = relayTransport
    this.#liveness = liveness
    const { identify } = node.services
    this.#identifying = new Identifying({ ask: (connection, how) => identify.identify(connection, how), log })
    this.quic = quic
    this.#connections = new Connections(node, liveness, (connection) => quic?.isPunched(connection) === true)
    const isDirect = (peer: PeerId) => this.#connections.isDirect(peer)
    this.#dialler = new Dialler({ node, hasQuic: quic !== undefined, isDirect, log })
    this.#log = log
  }

  /**
   * Resolves when the node listens.
   *
   * @throws {AgentError} `taken` when another process has a port, `usage` for an address that cannot be listened on, `not-allowed`
   *   for a port that needs privileges.
   */
  static async start(options: HostOptions): Promise<Host> {
    const { key, log } = options
    for (const address of options.listen) parseAddress(address)
    const admission = new Admission(key.peerId, log)
    const liveness = new Liveness(log, isBusy)
    const relays = new RelayTransport()
    const quic = await Quic.load(options.gate, log)
    const node = await makeStack({
      privateKey: key.libp2pKey,
      listen: options.listen,
      maxPeers: options.maxPeers ?? PEERS_MAX_DEFAULT,
      userAgent: `undernet/${options.version ?? '0'}`,
      gater: { ...admission.gater(), ...options.gate.gater() },
      gate: options.gate,
      relays,
      quic,
      open: options.open,
      metrics: options.metrics,
    })
    admission.guard({
      connections: (peer) => node.getConnections(peer),
      isAlive: (connection, waitMs) => liveness.isAlive(connection, waitMs),
    })
    const host = new Host(node, relays, quic, liveness, log)
    host.#listenTo(node)
    try {
      await startStack(node)
    } catch (error) {
      await host[Symbol.asyncDispose]()
      throw listenError(error)
    }
    if (options.mdns) {
      host.#lan = Lan.start({
        peerId: host.peerId,
        addresses: () => host.addresses(),
        heard: (sighting) => host.#tellFound({ ...sighting, by: 'lan' }),
        log,
      })
    }
    log.info({ peerId: host.peerId, addresses: host.addresses() }, 'host.started')
    return host
  }

  /** For Topic.join: gossip of the open network; undefined when this node takes no part in that. */
  get pubsub(): PubSub | undefined {
    return this.#node.services.pubsub
  }

  /** For Providers; undefined when this node takes no part in the open network. */
  get dht(): Services['dht'] {
    return this.#node.services.dht
  }

  /** What this node tells others to dial, with its peer id. */
  addresses(): string[] {
    return this.#node.getMultiaddrs().map(String)
  }

  /** Connected peers. */
  connected(): string[] {
    return this.#node.getPeers().map(String)
  }

  isConnected(peerId: string): boolean {
    return this.#open(peerIdFromString(peerId)) !== undefined
  }

  /** Whether there is a connection with the peer that no relay carries. */
  isDirect(peerId: string): boolean {
    return this.#connections.isDirect(peerIdFromString(peerId))
  }

  /** One for each peer. */
  links(): Link[] {
    return this.#connections.links()
  }

  /** Ends connections that give no sign of life: this machine is somewhere else now. */
  dropDead(): void {
    this.#connections.dropDead()
  }

  /** Closes relayed connections that nothing uses, of peers to which a direct one has proven itself. */
  dropSpare(): void {
    this.#connections.dropSpare()
  }

  /** Connects by QUIC with a peer at an address, beside what there is, so that it sees where this node dials from. */
  touchQuic(peerId: string, host: string, signal: AbortSignal): Promise<void> {
    return this.#dialler.touch(peerIdFromString(peerId), host, signal)
  }

  /** Who carries from now on to peers that cannot be dialled. */
  useRelays(relays: Pick<Relays, 'knows' | 'reach'>): void {
    this.#relays = relays
  }

  /** For Relays: a connection that no relay carries. */
  async connectDirect(peerId: string, signal: AbortSignal): Promise<void> {
    if (!this.isDirect(peerId)) await this.#dialler.dialKnown(peerIdFromString(peerId), signal)
  }

  /** For Relays: connects to a peer through another one. */
  async dialRelayed(relay: string, peer: string, signal: AbortSignal): Promise<void> {
    await dialBeside(this.#node, relayedAddress(relay, peer), signal)
  }

  /** The IP address at the other end of the direct connection with a peer; undefined when there is none, and for a hole, through which nothing else goes. */
  hostOf(peerId: string): string | undefined {
    const connection = this.#open(peerIdFromString(peerId))
    if (connection === undefined || !connection.direct || this.quic?.isPunched(connection)) return undefined
    return hostIn(connection.remoteAddr)
  }

  /** Calls the listener for each peer that connects from now on, once it can be talked to. Returns how to stop that. */
  onPeer(listener: (peerId: string, direction: Direction) => void): () => void {
    this.#onPeer.add(listener)
    return () => void this.#onPeer.delete(listener)
  }

  /** Calls the listener for each peer that is not connected any more; `letGo` when the peer itself closed it in order. */
  onPeerGone(listener: (peerId: string, letGo: boolean) => void): () => void {
    this.#onGone.add(listener)
    return () => void this.#onGone.delete(listener)
  }

  /** Calls the listener for each peer that the LAN or the DHT tells of; the same peer may be told of again. */
  onFound(listener: (found: Found) => void): () => void {
    this.#onFound.add(listener)
    return () => void this.#onFound.delete(listener)
  }

  /**
   * A stream to the peer, on its connection if there is one; else the addresses it was last seen with are dialled, then those that
   * the DHT knows. The caller closes or aborts it.
   */
  async openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> {
    const peer = peerIdFromString(peerId)
    for (let tries = 1; ; tries++) {
      const connection = await this.#connect(peer, signal)
      try {
        return await connection.newStream(protocol, { signal, runOnLimitedConnection: true })
      } catch (cause) {
        signal.throwIfAborted()
        // Replaced by another connection of the peer that was made at the same moment, closed in order, or the peer restarted.
        if (tries < STREAM_TRIES_MAX && (await isGone(connection, cause, signal))) continue
        // libp2p also rejects with the event of the closing.
        throw cause instanceof Error ? cause : new Error('the connection was closed meanwhile', { cause })
      }
    }
  }

  /**
   * Answers a protocol. A handler that throws resets its stream; it is the handler's stream to close. `maxInboundStreams` is per
   * connection: the next one is reset.
   */
  async handle(protocol: string, handler: StreamHandler, options: { maxInboundStreams: number }): Promise<void> {
    await this.#node.handle(
      protocol,
      async (stream, connection) => {
        const peerId = connection.remotePeer.toString()
        try {
          await handler(stream, peerId)
        } catch (error) {
          this.#log.debug({ peerId, protocol, reason: reasonOf(error) }, 'stream.failed')
          stream.abort(error instanceof Error ? error : new Error(String(error)))
        }
      },
      { ...options, runOnLimitedConnection: true },
    )
  }

  async unhandle(protocol: string): Promise<void> {
    await this.#node.unhandle(protocol)
  }

  /** The round trip to a peer id or multiaddr, which is dialled where it is not connected. */
  async ping(target: string, signal: AbortSignal): Promise<{ peerId: string; address: string; rttMs: number }> {
    const peerId = target.startsWith('/') ? await this.dial([parseAddress(target)], signal) : target
    const stream = await this.openStream(peerId, PING_PROTOCOL, signal)
    const rttMs = await pingOn(stream, signal)
    const address = this.links().find((link) => link.peerId === peerId)?.address ?? ''
    return { peerId, address, rttMs }
  }

  /** Dials one peer by its addresses, and resolves with its peer id, also when it was connected before. */
  dial(addresses: readonly Multiaddr[], signal: AbortSignal): Promise<string> {
    return this.#dialler.dial(addresses, signal)
  }

  /** The same; and where that takes long or fails, through a relay, if the peer is somebody to whom one carries. */
  async reach(peerId: string, addresses: Multiaddr[], signal: AbortSignal): Promise<void> {
    await this.#reach(peerId, (limited) => this.dial(addresses, limited), signal)
  }

  /** Where a peer can be dialled, as far as it told. */
  async addressesOf(peerId: string): Promise<Multiaddr[]> {
    const peer = peerIdFromString(peerId)
    if (!(await this.#node.peerStore.has(peer))) return []
    return (await this.#node.peerStore.get(peer)).addresses.map(({ multiaddr }) => multiaddr)
  }

  /** Closes the connection to a peer, in order. */
  async hangUp(peerId: string): Promise<void> {
    await this.#node.hangUp(peerIdFromString(peerId), { signal: AbortSignal.timeout(STOP_MS_MAX) })
  }

  /** Asks a few connected peers whom they know; `onFound` is told of those who are new to us. Connects to nobody. Only in the open network. */
  async askPeers(signal: AbortSignal): Promise<void> {
    await askPeers(this.#node, signal)
  }

  /** Connects to the peers that are closest to this node in the DHT. Only in the open network. */
  async findNeighbours(signal: AbortSignal): Promise<void> {
    await findNeighbours(this.#node, signal)
  }

  /** Asks the LAN who is there, and has peers told of our new addresses if they changed. */
  async refreshAddresses(): Promise<void> {
    this.#lan?.ask()
    await refreshAddresses(this.#node)
  }

  /** Closes all connections and stops listening. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lan?.[Symbol.asyncDispose]()
    this.#liveness[Symbol.dispose]()
    this.#identifying[Symbol.dispose]()
    const stopped = Promise.withResolvers<void>()
    const patience = setTimeout(stopped.resolve, STOP_MS_MAX)
    Promise.resolve(this.#node.stop()).then(stopped.resolve, stopped.reject)
    try {
      await stopped.promise
    } finally {
      clearTimeout(patience)
    }
  }

  #listenTo(node: Libp2p<Services>): void {
    node.addEventListener('connection:open', ({ detail }) => {
      this.#liveness.watch(detail)
      this.#identifying.watch(detail)
      this.#latest.set(detail.remotePeer.toString(), detail)
    })
    node.addEventListener('peer:identify', ({ detail }) => this.#tellPeer(detail))
    node.addEventListener('peer:disconnect', ({ detail }) => {
      const peerId = detail.toString()
      const connection = this.#latest.get(peerId)
      this.#latest.delete(peerId)
      this.#told.delete(peerId)
      for (const listener of this.#onGone) listener(peerId, connection !== undefined && saidGoodbye(connection))
    })
    node.addEventListener('connection:close', ({ detail }) => this.#moveOn(detail))
    node.addEventListener('peer:discovery', ({ detail }) => {
      this.#tellFound({ peerId: detail.id.toString(), addresses: detail.multiaddrs, by: 'dht' })
    })
  }

  /** Identify also reports what a peer pushes later. */
  #tellPeer({ connection }: Pick<IdentifyResult, 'connection'>): void {
    const peerId = connection.remotePeer.toString()
    if (connection.status !== 'open') return
    this.#identifying.add(connection)
    if (this.#told.get(peerId)?.status === 'open') return
    this.#told.set(peerId, connection)
    for (const listener of this.#onPeer) listener(peerId, connection.direction)
  }

  /** A connection ended: what ran on it is told to begin anew on the one beside it, where there is one. */
  #moveOn(connection: Connection): void {
    if (this.#told.get(connection.remotePeer.toString()) !== connection) return
    const other = this.#open(connection.remotePeer)
    if (other !== undefined && this.#identifying.has(other)) this.#tellPeer({ connection: other })
  }

  #tellFound(found: Found): void {
    if (found.peerId === this.peerId || found.addresses.length === 0) return
    for (const listener of this.#onFound) listener(found)
  }

  async #connect(peer: PeerId, signal: AbortSignal): Promise<Connection> {
    const open = this.#open(peer)
    if (open !== undefined) return open
    try {
      await this.#reach(peer.toString(), (limited) => this.#dialler.dialKnown(peer, limited), signal)
      const connection = this.#open(peer)
      if (connection !== undefined) return connection
      throw new Error('the connection ended at once')
    } catch (cause) {
      signal.throwIfAborted()
      throw new AgentError('failed', `${peer.toString()} cannot be reached: ${reasonOf(cause)}`, {
        cause,
        next: 'See `agent peers` for who is connected, and `agent ping` to try again.',
      })
    }
  }

  /** Dials directly, and through a relay when that takes long or fails. Resolves when there is a connection. */
  async #reach(peerId: string, dial: (signal: AbortSignal) => Promise<unknown>, signal: AbortSignal): Promise<void> {
    const limited = within(DIAL_MS_MAX, signal)
    const relays = this.#relays
    const direct = dial(limited)
    if (relays === undefined || !relays.knows(peerId)) return void (await direct)
    const isDirect = direct.then(
      () => true,
      () => false,
    )
    const carry = async () => {
      const isThere = await Promise.race([isDirect, delay(RELAY_AFTER_MS, false, { ref: false })])
      if (!isThere && !this.isConnected(peerId)) await relays.reach(peerId, limited)
    }
    await Promise.any([direct, carry()]).catch(({ errors }: AggregateError) => {
      throw errors[0]
    })
  }

  #open(peer: PeerId): Connection | undefined {
    return this.#connections.open(peer)
  }
}

function within(ms: number, signal: AbortSignal): AbortSignal {
  return AbortSignal.any([signal, AbortSignal.timeout(ms)])
}
