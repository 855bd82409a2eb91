/**
 * Gossip of one network: a gossipsub of its own over the network's scope, from start() until disposed. It sees members only, and knows
 * nothing of the host: it can dial nobody and look up nobody. Two networks' gossip have nothing in common, and neither has the open one's.
 *
 * It speaks one version, since who is in a network is not older than networks.
 */
import { type GossipSub, type GossipSubComponents, multicodec } from '@libp2p/gossipsub'
import type { ComponentLogger, Connection, Logger, PeerId, Stream, StreamHandler, Topology } from '@libp2p/interface'
import { peerIdFromPrivateKey, peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import type { NodeKey } from '../identity/node-key.ts'
import { makeGossip, type PubSub } from './gossip.ts'
import type { Direction } from './host.ts'
import type { NetworkScope } from './network-streams.ts'

/** Over a connection that there is: one round trip. */
const OPEN_MS_MAX = 10_000

type Scope = Pick<NetworkScope, 'onPeer' | 'onPeerGone' | 'openStream' | 'handle' | 'unhandle'>

export class NetworkGossip implements AsyncDisposable {
  readonly #gossip: GossipSub
  readonly #registrar: ScopeRegistrar

  private constructor(gossip: GossipSub, registrar: ScopeRegistrar) {
    this.#gossip = gossip
    this.#registrar = registrar
  }

  static async start(key: Pick<NodeKey, 'libp2pKey'>, scope: Scope): Promise<NetworkGossip> {
    const privateKey = key.libp2pKey
    const registrar = new ScopeRegistrar(scope)
    const parts: Pick<GossipSubComponents, 'privateKey' | 'peerId' | 'logger'> & { registrar: unknown } = {
      privateKey,
      peerId: peerIdFromPrivateKey(privateKey),
      registrar,
      logger: SILENT,
    }
    // The peer store and the connection manager are for peers that other peers recommend: see `doPX`, which is off.
    const gossip = makeGossip(parts as GossipSubComponents)
    // Not an option, but public in the class, 17.x; read when it starts.
    ;(gossip as unknown as { protocols: string[] }).protocols = [multicodec]
    await (gossip as unknown as Startable).start()
    registrar.begin()
    return new NetworkGossip(gossip, registrar)
  }

  /** For Topic.join. */
  get pubsub(): PubSub {
    return this.#gossip
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await (this.#gossip as unknown as Startable).stop()
    this.#registrar[Symbol.dispose]()
  }
}

type Startable = { start(): Promise<void>; stop(): Promise<void> }

/** What gossipsub takes for libp2p's registrar: protocols are those of the scope, and peers its members. */
class ScopeRegistrar implements Disposable {
  readonly #scope: Scope
  readonly #topologies = new Map<string, Topology>()
  readonly #unlisten: (() => void)[] = []
  readonly #directions = new Map<string, Direction>()
  readonly #streams = new Set<Stream>()
  #count = 0

  constructor(scope: Scope) {
    this.#scope = scope
  }

  handle(
    protocol: string,
    handler: StreamHandler,
    { maxInboundStreams }: { maxInboundStreams: number },
  ): Promise<void> {
    const answer = (stream: Stream, peerId: string) => {
      this.#add(stream)
      return handler(stream, this.#connection(peerId) as Connection)
    }
    return this.#scope.handle(protocol, answer, { maxInboundStreams })
  }

  unhandle(protocol: string): Promise<void> {
    return this.#scope.unhandle(protocol)
  }

  async register(_protocol: string, topology: Topology): Promise<string> {
    const id = String(this.#count++)
    this.#topologies.set(id, topology)
    return id
  }

  unregister(id: string): void {
    this.#topologies.delete(id)
  }

  /** Tells of members from now on, also of those that are connected: while it starts, gossipsub would not listen. */
  begin(): void {
    this.#unlisten.push(
      this.#scope.onPeer((peerId, direction) => {
        this.#directions.set(peerId, direction)
        const connection = this.#connection(peerId)
        for (const topology of this.#topologies.values())
          void topology.onConnect?.(connection.remotePeer, connection as Connection)
      }),
      this.#scope.onPeerGone((peerId) => {
        this.#directions.delete(peerId)
        for (const topology of this.#topologies.values()) void topology.onDisconnect?.(peerIdFromString(peerId))
      }),
    )
  }

  /** Gossipsub closes its own side of its streams only: peers would go on sending to nobody, and not begin anew with who comes next. */
  [Symbol.dispose](): void {
    for (const unlisten of this.#unlisten) unlisten()
    for (const stream of this.#streams) stream.abort(new Error('gossip of this network ended'))
  }

  #add(stream: Stream): void {
    this.#streams.add(stream)
    stream.addEventListener('close', () => this.#streams.delete(stream), { once: true })
  }

  /** As much of a connection as gossipsub looks at. */
  #connection(peerId: string): MemberConnection {
    return {
      remotePeer: peerIdFromString(peerId),
      // Only told to the score, which counts no addresses here.
      remoteAddr: multiaddr(`/p2p/${peerId}`),
      direction: this.#directions.get(peerId) ?? 'inbound',
      status: 'open',
      newStream: async ([protocol = '']) => {
        const stream = await this.#scope.openStream(peerId, protocol, AbortSignal.timeout(OPEN_MS_MAX))
        this.#add(stream)
        return named(stream, protocol)
      },
    }
  }
}

type MemberConnection = Pick<Connection, 'remotePeer' | 'remoteAddr' | 'direction' | 'status'> & {
  readonly remotePeer: PeerId
  newStream(protocols: string[]): Promise<Stream>
}

/** The stream under its protocol's own name, by which gossipsub knows what the peer can. */
function named(stream: Stream, protocol: string): Stream {
  return new Proxy(stream, {
    get(target, name) {
      if (name === 'protocol') return protocol
      const value: unknown = Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

const nothing = () => undefined
const silent: Logger = Object.assign(nothing, {
  enabled: false,
  error: nothing,
  trace: nothing,
  newScope: () => silent,
})
/** What it says is for its own developers. */
const SILENT: ComponentLogger = { forComponent: () => silent }
