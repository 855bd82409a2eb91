/**
 * This node's place in the mesh: a libp2p host over TCP, Noise and Yamux that others dial and that dials others, until disposed.
 * What it is made of, and why each setting is as it is, is in stack.ts; who it keeps connected is the keeper's business.
 *
 * Peers are known by peer id strings here, and nothing of libp2p but its streams goes out to other folders. A peer that `onPeer`
 * reports has proven its id (Noise), said hello (the gate) and told its protocols (identify).
 */
import { once } from 'node:events'
import type { Connection, IdentifyResult, Libp2p, PeerId, Stream } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Multiaddr } from '@multiformats/multiaddr'
import { AgentError, reasonOf } from '../error.ts'
import type { NodeKey } from '../identity/node-key.ts'
import type { Log } from '../log.ts'
import { hostIn, parseAddress, peerIdIn } from './addresses.ts'
import { Admission, duplicateOf } from './admission.ts'
import type { Gate } from './gate.ts'
import type { PubSub } from './gossip.ts'
import { Lan } from './lan.ts'
import { Liveness, saidGoodbye } from './liveness.ts'
import { askPeers, findNeighbours, makeStack, refreshAddresses, type Services, startStack } from './stack.ts'

/** Config `max_peers` when the user says nothing: enough for gossip and lookups in a network of thousands, at 0.2 MB each. */
const PEERS_MAX_DEFAULT = 24
/** For a dial whose caller set no narrower limit: several addresses, at DIAL_ADDRESS_MS each. */
const DIAL_MS_MAX = 10_000
/** A connection is replaced at most once when both sides dialled; the third is for a peer that restarted just then. */
const STREAM_TRIES_MAX = 3
/** libp2p gives streams half a second when it closes a connection in order. */
const CLOSING_MS_MAX = 1_000
/** libp2p closes what is open within half a second; the process must not hang on a peer that does not answer. */
const STOP_MS_MAX = 3_000

export type HostOptions = {
  key: Pick<NodeKey, 'libp2pKey' | 'peerId'>
  /** Multiaddrs to listen on; none makes a node that only dials. */
  listen: readonly string[]
  mdns: boolean
  /** Lets peers in; whose it is disposes it. */
  gate: Pick<Gate, 'secure' | 'gater' | 'service'>
  /** Whether to take part in the open network. Otherwise there is neither a DHT nor gossip here. */
  open: boolean
  log: Log
  maxPeers?: number
  /** Shown to peers, as `undernet/<version>`. */
  version?: string
}

export type Direction = 'inbound' | 'outbound'
export type StreamHandler = (stream: Stream, peerId: string) => Promise<void> | void

/** One live connection; there is one per peer. */
export type Link = {
  readonly peerId: string
  /** The other end's address. */
  readonly address: string
  readonly direction: Direction
  /** Unix time. */
  readonly connectedMs: number
  /** Undefined until measured once. */
  readonly rttMs: number | undefined
  /** Whether a stream is open on it other than those that every connection has. */
  readonly busy: boolean
}

/** A peer that somebody told us of, and where it is said to be. */
export type Found = { peerId: string; addresses: Multiaddr[]; by: 'lan' | 'dht' }

export class Host implements AsyncDisposable {
  readonly peerId: string
  readonly #node: Libp2p<Services>
  readonly #log: Log
  readonly #liveness: Liveness
  readonly #reported = new WeakSet<Connection>()
  readonly #onPeer = new Set<(peerId: string, direction: Direction) => void>()
  readonly #onGone = new Set<(peerId: string, letGo: boolean) => void>()
  readonly #onFound = new Set<(found: Found) => void>()
  /** Who connected last, and how: the event of a peer's going does not say. */
  readonly #latest = new Map<string, Connection>()
  #lan: Lan | undefined

  private constructor(node: Libp2p<Services>, liveness: Liveness, log: Log) {
    this.peerId = node.peerId.toString()
    this.#node = node
    this.#liveness = liveness
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
    const liveness = new Liveness(log)
    const node = await makeStack({
      privateKey: key.libp2pKey,
      listen: options.listen,
      maxPeers: options.maxPeers ?? PEERS_MAX_DEFAULT,
      userAgent: `undernet/${options.version ?? '0'}`,
      gater: { ...admission.gater(), ...options.gate.gater() },
      gate: options.gate,
      open: options.open,
    })
    admission.guard({
      connections: (peer) => node.getConnections(peer),
      isAlive: (connection, waitMs) => liveness.isAlive(connection, waitMs),
    })
    const host = new Host(node, liveness, log)
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
    return this.#node.getConnections(peerIdFromString(peerId)).some(({ status }) => status === 'open')
  }

  links(): Link[] {
    return this.#node.getConnections().map((connection) => ({
      peerId: connection.remotePeer.toString(),
      address: connection.remoteAddr.toString(),
      direction: connection.direction,
      connectedMs: connection.timeline.open,
      rttMs: this.#liveness.rttMs(connection),
      busy: connection.streams.some(({ protocol }) => protocol !== '' && !isBackground(protocol)),
    }))
  }

  /** The IP address at the other end of the direct connection with a peer; undefined when there is none. */
  hostOf(peerId: string): string | undefined {
    const connection = this.#open(peerIdFromString(peerId))
    if (connection === undefined || !connection.direct) return undefined
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
        return await connection.newStream(protocol, { signal })
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
      options,
    )
  }

  async unhandle(protocol: string): Promise<void> {
    await this.#node.unhandle(protocol)
  }

  /** The round trip to a peer id or multiaddr, which is dialled where it is not connected. */
  async ping(target: string, signal: AbortSignal): Promise<{ peerId: string; address: string; rttMs: number }> {
    const peerId = target.startsWith('/') ? await this.dial([parseAddress(target)], signal) : target
    const { remotePeer, remoteAddr } = await this.#connect(peerIdFromString(peerId), signal)
    const startMs = performance.now()
    await this.#node.services.ping.ping(remotePeer, { signal })
    return { peerId, address: remoteAddr.toString(), rttMs: performance.now() - startMs }
  }

  /** Dials one peer by its addresses, and resolves with its peer id, also when it was connected before. */
  async dial(addresses: Multiaddr[], signal: AbortSignal): Promise<string> {
    try {
      const connection = await this.#node.dial(addresses, { signal: within(DIAL_MS_MAX, signal) })
      return connection.remotePeer.toString()
    } catch (error) {
      const peerId = duplicateOf(error)
      if (peerId !== undefined && this.isConnected(peerId)) return peerId
      throw error
    }
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
      this.#latest.set(detail.remotePeer.toString(), detail)
    })
    node.addEventListener('peer:identify', ({ detail }) => this.#tellPeer(detail))
    node.addEventListener('peer:disconnect', ({ detail }) => {
      const peerId = detail.toString()
      const connection = this.#latest.get(peerId)
      this.#latest.delete(peerId)
      for (const listener of this.#onGone) listener(peerId, connection !== undefined && saidGoodbye(connection))
    })
    node.addEventListener('peer:discovery', ({ detail }) => {
      this.#tellFound({ peerId: detail.id.toString(), addresses: detail.multiaddrs, by: 'dht' })
    })
  }

  /** Identify also reports what a peer pushes later. */
  #tellPeer({ connection }: IdentifyResult): void {
    if (this.#reported.has(connection) || connection.status !== 'open') return
    this.#reported.add(connection)
    for (const listener of this.#onPeer) listener(connection.remotePeer.toString(), connection.direction)
  }

  #tellFound(found: Found): void {
    if (found.peerId === this.peerId || found.addresses.length === 0) return
    for (const listener of this.#onFound) listener(found)
  }

  async #connect(peer: PeerId, signal: AbortSignal): Promise<Connection> {
    const open = this.#open(peer)
    if (open !== undefined) return open
    try {
      return await this.#node.dial(peer, { signal: within(DIAL_MS_MAX, signal) })
    } catch (cause) {
      signal.throwIfAborted()
      const other = this.#open(peer) ?? (await this.#dialByDht(peer, signal))
      if (other !== undefined) return other
      throw new AgentError('failed', `${peer.toString()} cannot be reached: ${reasonOf(cause)}`, {
        cause,
        next: 'See `agent peers` for who is connected, and `agent ping` to try again.',
      })
    }
  }

  /** The addresses that the DHT knows, for a peer that moved. */
  async #dialByDht(peer: PeerId, signal: AbortSignal): Promise<Connection | undefined> {
    if (this.dht === undefined) return undefined
    const limited = within(DIAL_MS_MAX, signal)
    try {
      const { multiaddrs } = await this.#node.peerRouting.findPeer(peer, { signal: limited, useCache: false })
      await this.dial(
        multiaddrs.map((address) => withPeer(address, peer)),
        limited,
      )
    } catch (error) {
      this.#log.debug({ peerId: peer.toString(), reason: reasonOf(error) }, 'peer.unreachable')
    }
    return this.#open(peer)
  }

  #open(peer: PeerId): Connection | undefined {
    return this.#node.getConnections(peer).find(({ status }) => status === 'open')
  }
}

/** Streams that every connection has, or that come and go by themselves; those of a network are named behind its own protocol. */
function isBackground(protocol: string): boolean {
  return /^(\/undernet\/network\/1)?\/(meshsub|ipfs)\//.test(protocol) || protocol.startsWith('/undernet/kad/')
}

/** Whether a stream could not be opened because the connection is going; if so, it is gone when this resolves. */
async function isGone(connection: Connection, cause: unknown, signal: AbortSignal): Promise<boolean> {
  if (connection.status !== 'open' && connection.status !== 'closing') return true
  // While its muxer closes in order, a connection still calls itself open.
  const isClosing =
    connection.status === 'closing' || (cause instanceof Error && cause.name === 'ConnectionClosedError')
  if (!isClosing) return false
  try {
    await once(connection, 'close', { signal: within(CLOSING_MS_MAX, signal) })
    return true
  } catch {
    return connection.status !== 'open' && !signal.aborted
  }
}

function withPeer(address: Multiaddr, peer: PeerId): Multiaddr {
  return peerIdIn(address) === undefined ? address.encapsulate(`/p2p/${peer.toString()}`) : address
}

function within(ms: number, signal: AbortSignal): AbortSignal {
  return AbortSignal.any([signal, AbortSignal.timeout(ms)])
}

/** Says which address could not be listened on, and what to do about it. */
function listenError(error: unknown): unknown {
  const text = reasonOf(error)
  const taken = /EADDRINUSE[^\n]*?:(\d+)\s*$/m.exec(text)
  if (taken !== null) {
    return new AgentError('taken', `port ${taken[1]} is in use by another process`, {
      cause: error,
      next: 'Stop the other process, or start the agent with another --listen address, such as /ip4/0.0.0.0/tcp/7577.',
    })
  }
  const [, code, where] = /listen (EACCES|EADDRNOTAVAIL)[^\n]*? ([^\s]+)\s*$/m.exec(text) ?? []
  if (code === 'EACCES') {
    return new AgentError('not-allowed', `listening on ${where} needs privileges`, {
      cause: error,
      next: 'Choose a port above 1023 with --listen.',
    })
  }
  if (code === 'EADDRNOTAVAIL') {
    return new AgentError('usage', `${where} is not an address of this machine`, {
      cause: error,
      next: 'Use /ip4/0.0.0.0/tcp/7477 with --listen for all addresses, or one of this machine.',
    })
  }
  return error
}
