/**
 * Streams between members of a network: each network has a scope, which looks like the host and in which only its members are, from
 * start() until disposed. What runs on a scope (records, gossip, statements) can meet nobody else.
 *
 * All scopes share one protocol of libp2p (protocols/membership/spec.md, "Streams of a network"), which this node answers also when it
 * is in no network: what strangers see of it by identify is always the same, and what they ask by it is always reset.
 *
 * Whether a peer is a member is asked of the gate when a stream is opened, on both ends. When it is one no more, its streams are reset:
 * by the gate with the connection, or here where the connection has another reason to stay.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame } from '../../protocols/frame.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import { decodeHeader, encodeHeader, HEADER_BYTES_MAX, NETWORK_PROTOCOL } from '../../protocols/membership/streams.ts'
import { TUNNEL_PROTOCOL } from '../../protocols/tunnel/tunnel.ts'
import { AgentError } from '../error.ts'
import type { Log } from '../log.ts'
import type { Gate } from './gate.ts'
import type { Direction, Host, StreamHandler } from './host.ts'
import { Openings } from './openings.ts'
import { Prelude } from './prelude.ts'

/** The header comes with the first bytes of the stream. */
const HEADER_MS_MAX = 5_000
/** Per connection, streams whose header has not come yet: three of each of sixteen networks, when two members meet, and some room. */
const HEADERS_MAX = 64

export type ScopedHost = Pick<
  Host,
  'onPeer' | 'onPeerGone' | 'links' | 'isConnected' | 'openStream' | 'handle' | 'unhandle'
>
export type Members = Pick<Gate, 'memberOf' | 'onProven'>

/** The part of the mesh that one network is. */
export type NetworkScope = Pick<
  Scope,
  'onPeer' | 'onPeerGone' | 'connected' | 'openStream' | 'handle' | 'unhandle' | typeof Symbol.asyncDispose
>

export class NetworkStreams implements AsyncDisposable {
  readonly #host: ScopedHost
  readonly #gate: Members
  readonly #log: Log
  readonly #scopes = new Map<string, Scope>()
  readonly #openings = new Openings()
  /** Connected peers that can be talked to. */
  readonly #ready = new Map<string, Direction>()
  readonly #unlisten: (() => void)[] = []

  private constructor(host: ScopedHost, gate: Members, log: Log) {
    this.#host = host
    this.#gate = gate
    this.#log = log
  }

  static async start({ host, gate, log }: { host: ScopedHost; gate: Members; log: Log }): Promise<NetworkStreams> {
    const streams = new NetworkStreams(host, gate, log)
    streams.#unlisten.push(
      host.onPeer((peerId, direction) => streams.#arrived(peerId, direction)),
      host.onPeerGone((peerId) => streams.#gone(peerId)),
      gate.onProven((peerId) => streams.#judge(peerId)),
    )
    for (const { peerId, direction } of host.links()) streams.#ready.set(peerId, direction)
    await host.handle(NETWORK_PROTOCOL, (stream, peerId) => streams.#accept(stream, peerId), {
      maxInboundStreams: HEADERS_MAX,
    })
    return streams
  }

  /** The network's scope: the same one until that is disposed. */
  of(network: Uint8Array): NetworkScope {
    const id = hexOf(network)
    const known = this.#scopes.get(id)
    if (known !== undefined) return known
    const isMember = (peerId: string) => this.#gate.memberOf(network, peerId) !== undefined
    const openings = this.#openings
    const scope = new Scope({ network, host: this.#host, openings, isMember, over: () => this.#scopes.delete(id) })
    this.#scopes.set(id, scope)
    for (const [peerId, direction] of this.#ready) scope.judge(peerId, direction)
    return scope
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const unlisten of this.#unlisten) unlisten()
    await this.#host.unhandle(NETWORK_PROTOCOL)
    for (const scope of this.#scopes.values()) await scope[Symbol.asyncDispose]()
  }

  /** A peer connected, or did so anew: then what it was is over. */
  #arrived(peerId: string, direction: Direction): void {
    // Its streams ended with it; those of another connection, which there may be beside it, go on.
    if (this.#ready.delete(peerId)) for (const scope of this.#scopes.values()) scope.forget(peerId)
    this.#ready.set(peerId, direction)
    this.#judge(peerId)
  }

  #gone(peerId: string): void {
    if (!this.#ready.delete(peerId)) return
    for (const scope of this.#scopes.values()) scope.left(peerId)
  }

  #judge(peerId: string): void {
    const direction = this.#ready.get(peerId)
    if (direction === undefined) return
    for (const scope of this.#scopes.values()) scope.judge(peerId, direction)
  }

  async #accept(stream: Stream, peerId: string): Promise<void> {
    const prelude = new Prelude(stream)
    const { network, protocol } = decodeHeader(await prelude.read(AbortSignal.timeout(HEADER_MS_MAX), HEADER_BYTES_MAX))
    const handler = this.#scopes.get(hexOf(network))?.take(stream, peerId, protocol)
    // For a stranger it is all the same: no such network here, not a member of it, no such protocol in it.
    if (handler === undefined) throw new WireError('refused', `no stream of ${protocol} for this peer`)
    prelude.release()
    this.#log.debug({ peerId, protocol }, 'network-stream.opened')
    await handler(stream, peerId)
  }
}

type ScopeOptions = {
  network: Uint8Array
  host: ScopedHost
  openings: Openings
  isMember(peerId: string): boolean
  over(): void
}

type Open = { readonly peerId: string; readonly protocol: string; readonly direction: Direction }

class Scope implements AsyncDisposable {
  readonly #options: ScopeOptions
  readonly #handlers = new Map<string, { handler: StreamHandler; streamsMax: number }>()
  /** Members that are connected. */
  readonly #members = new Map<string, Direction>()
  readonly #streams = new Map<Stream, Open>()
  readonly #onPeer = new Set<(peerId: string, direction: Direction) => void>()
  readonly #onGone = new Set<(peerId: string) => void>()

  constructor(options: ScopeOptions) {
    this.#options = options
  }

  /**
   * Calls the listener for each member, once it can be talked to: those that are connected now, soon after; those that connect; and
   * connected peers that become members. Returns how to stop that.
   */
  onPeer(listener: (peerId: string, direction: Direction) => void): () => void {
    this.#onPeer.add(listener)
    const present = [...this.#members]
    queueMicrotask(() => {
      for (const [peerId, direction] of present)
        if (this.#onPeer.has(listener) && this.#members.has(peerId)) listener(peerId, direction)
    })
    return () => void this.#onPeer.delete(listener)
  }

  /** Calls the listener for each peer that is not connected any more, or not a member. Returns how to stop that. */
  onPeerGone(listener: (peerId: string) => void): () => void {
    this.#onGone.add(listener)
    return () => void this.#onGone.delete(listener)
  }

  /** Members that are connected. */
  connected(): string[] {
    return [...this.#members.keys()].filter((peerId) => this.#options.isMember(peerId))
  }

  /**
   * A stream to a member, which is dialled where it is not connected. Whether the peer speaks the protocol shows when it answers. It
   * must not be ended on this side before that. The caller closes or aborts it.
   *
   * @throws {AgentError} `not-allowed` for a peer that is no member; whatever Host.openStream throws
   */
  async openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> {
    if (this.#options.host.isConnected(peerId)) this.#expectMember(peerId)
    // Of tunnels there may be any number; what the network itself says is little, and tunnels wait for it.
    if (protocol !== TUNNEL_PROTOCOL) return await this.#open(peerId, protocol, signal)
    return await this.#options.openings.inTurn(peerId, signal, () => this.#open(peerId, protocol, signal))
  }

  async #open(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> {
    const { host, network } = this.#options
    const stream = await host.openStream(peerId, NETWORK_PROTOCOL, signal)
    try {
      this.#expectMember(peerId)
      stream.send(encodeFrame(encodeHeader({ network, protocol })))
    } catch (error) {
      stream.abort(error as Error)
      throw error
    }
    this.#add(stream, { peerId, protocol, direction: 'outbound' })
    return stream
  }

  /** Answers a protocol, for members. `maxInboundStreams` is per member. The rest is as it is with the host. */
  async handle(protocol: string, handler: StreamHandler, options: { maxInboundStreams: number }): Promise<void> {
    if (this.#handlers.has(protocol)) throw new Error(`${protocol} has a handler in this network`)
    this.#handlers.set(protocol, { handler, streamsMax: options.maxInboundStreams })
  }

  async unhandle(protocol: string): Promise<void> {
    this.#handlers.delete(protocol)
  }

  /** Resets what is open in this network. Connections stay: they have reasons of their own. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#options.over()
    this.#handlers.clear()
    for (const peerId of this.#members.keys()) this.left(peerId)
    for (const stream of this.#streams.keys()) stream.abort(new Error('this node left the network'))
    this.#onPeer.clear()
    this.#onGone.clear()
  }

  /** The handler for a stream that a peer opened; undefined when it gets none. */
  take(stream: Stream, peerId: string, protocol: string): StreamHandler | undefined {
    const known = this.#handlers.get(protocol)
    if (known === undefined || !this.#options.isMember(peerId)) return undefined
    const isSame = (one: Open) => one.peerId === peerId && one.protocol === protocol && one.direction === 'inbound'
    if (this.#streams.values().filter(isSame).toArray().length >= known.streamsMax) return undefined
    this.#add(stream, { peerId, protocol, direction: 'inbound' })
    return known.handler
  }

  /** Looks whether a peer that is connected is a member, and tells if that has changed. */
  judge(peerId: string, direction: Direction): void {
    const isMember = this.#options.isMember(peerId)
    if (isMember === this.#members.has(peerId)) return
    if (!isMember) {
      this.left(peerId)
      return
    }
    this.#members.set(peerId, direction)
    for (const listener of this.#onPeer) listener(peerId, direction)
  }

  left(peerId: string): void {
    for (const [stream, open] of this.#streams)
      if (open.peerId === peerId) stream.abort(new Error('the peer is not a member of the network any more'))
    this.forget(peerId)
  }

  /** Tells that the peer is not there, and leaves its streams alone. */
  forget(peerId: string): void {
    if (!this.#members.delete(peerId)) return
    for (const listener of this.#onGone) listener(peerId)
  }

  /** From now on the stream counts as one of its own protocol: what libp2p counts as NETWORK_PROTOCOL has not said its header. */
  #add(stream: Stream, open: Open): void {
    stream.protocol = NETWORK_PROTOCOL + open.protocol
    if (stream.status !== 'open') return
    this.#streams.set(stream, open)
    stream.addEventListener('close', () => this.#streams.delete(stream), { once: true })
  }

  #expectMember(peerId: string): void {
    if (!this.#options.isMember(peerId)) throw new AgentError('not-allowed', `${peerId} is not a member of the network`)
  }
}
