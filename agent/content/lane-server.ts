/**
 * Gives lanes to peers (protocols/lane/spec.md), from start() until disposed: hands over keys on their streams, takes the TLS connections
 * that use them, and has the piece server answer what is asked there. A lane is closed when its stream is.
 *
 * Whoever connects without an offer, or with one that was used or is too old, is dropped in the handshake; while nothing is on offer, before
 * it. All that is logged at debug, for anybody can knock.
 */
import { constants, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import type { TLSSocket, Server as TlsServer } from 'node:tls'
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  answerLanes,
  identityOf,
  LANE_BYTES_MAX,
  LANE_GROUP,
  LANE_PROTOCOL,
  LANE_SUITES,
  type LaneOffers,
  type LaneRefusal,
  type LaneRequest,
  OFFER_MS_MAX,
} from '../../protocols/lane/lane.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { Deadline } from './deadline.ts'
import { LaneFrames } from './lane-frames.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'
import type { PieceServer, PieceServerInit } from './server.ts'

/** Offers and lanes of one peer: two that all it fetches shares, and as many that are being opened while others close. */
const LANES_PER_PEER_MAX = 4
/** Offers and lanes: each of the latter has a few pieces in memory. */
const LANES_MAX = 64
/** Connections whose handshake is not done; more are dropped, and their openers go on over streams. */
const HANDSHAKES_MAX = 32
const HANDSHAKE_MS_MAX = 5_000
/** A leash with neither lane nor offer. */
const QUIET_MS_MAX = 60_000
/** A second one is for a peer that opens one while the other is being closed. */
const LEASHES_PER_PEER_MAX = 2
/** Ports that are free on one address and not on the next. */
const PORT_TRIES_MAX = 5

export type LaneServerInit = {
  streams: PieceServerInit['streams']
  pieces: Pick<PieceServer, 'mayGive' | 'serveLane'>
  /** Of addresses to listen on. */
  hosts: readonly string[]
  port: number
  log: Log
  /** For tests. */
  offerMs?: number
}

/** The stream that lanes were handed over on. */
type Leash = { peerId: string; deadline: Deadline; sockets: Set<TLSSocket>; isOver: boolean }
type Offer = { key: Buffer; leash: Leash; untilMs: number }

export class LaneServer implements AsyncDisposable {
  readonly #init: LaneServerInit
  readonly #servers: Server[] = []
  readonly #offers = new Map<string, Offer>()
  /** Whose offer a handshake uses. */
  readonly #used = new WeakMap<TLSSocket, Leash>()
  readonly #leashes = new Set<Leash>()
  readonly #handshakes = new Set<Socket>()
  readonly #stopping = new AbortController()
  readonly #serving = new Set<Promise<void>>()
  #tls: TlsServer | undefined
  #port = 0
  #sentBytes = 0

  /** Resolves when it listens; undefined when there is no address to do so on. */
  static async start(init: LaneServerInit): Promise<LaneServer | undefined> {
    const server = new LaneServer(init)
    if (!(await server.#listen())) return undefined
    await init.streams.handle(LANE_PROTOCOL, (stream, peerId) => server.#accept(stream, peerId), {
      maxInboundStreams: LEASHES_PER_PEER_MAX,
    })
    return server
  }

  private constructor(init: LaneServerInit) {
    this.#init = init
  }

  get port(): number {
    return this.#port
  }

  /** Lanes that are open. */
  get size(): number {
    return this.#serving.size
  }

  /** Offers that were not taken yet, and lanes. */
  get pendingCount(): number {
    return this.#countOf()
  }

  /** Over lanes, since the start. */
  get sentBytes(): number {
    return this.#sentBytes
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#init.streams.unhandle(LANE_PROTOCOL)
    this.#stopping.abort(new WireError('closed', 'this node is stopping'))
    for (const leash of this.#leashes) this.#cut(leash)
    for (const socket of this.#handshakes) socket.destroy()
    for (const server of this.#servers) server.close()
    await Promise.all(this.#serving)
  }

  /** One port for all addresses: the one wanted, or when somebody has that, one that the system chooses. */
  async #listen(): Promise<boolean> {
    const { hosts, port, log } = this.#init
    for (let tries = 0; tries < PORT_TRIES_MAX; tries++) {
      const taken = await this.#listenOn(hosts, tries === 0 ? port : 0)
      if (!taken) break
      if (tries === 0 && port !== 0) log.warn({ port }, 'lane.port-taken')
      this.#port = 0
    }
    if (this.#servers.length > 0) log.info({ port: this.#port }, 'lane.listening')
    else if (hosts.length > 0) log.warn({ port }, 'lane.no-port')
    return this.#servers.length > 0
  }

  /** @returns whether the port is taken; then it listens nowhere. */
  async #listenOn(hosts: readonly string[], port: number): Promise<boolean> {
    for (const host of hosts) {
      const server = createServer((socket) => this.#knock(socket))
      server.listen({ host, port: this.#port || port, ipv6Only: host.includes(':'), exclusive: true })
      try {
        await once(server, 'listening')
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        if (code === 'EADDRINUSE' || code === 'EACCES') {
          for (const other of this.#servers.splice(0)) other.close()
          return true
        }
        this.#init.log.debug({ host, reason: reasonOf(error) }, 'lane.address-unusable')
        continue
      }
      this.#servers.push(server)
      const address = server.address()
      if (address !== null && typeof address === 'object') this.#port = address.port
    }
    return false
  }

  async #accept(stream: Stream, peerId: string): Promise<void> {
    const frames = new Frames(stream)
    using deadline = new Deadline(QUIET_MS_MAX, this.#stopping.signal)
    const leash: Leash = { peerId, deadline, sockets: new Set(), isOver: false }
    this.#leashes.add(leash)
    // At once, and not when somebody reads from it the next time.
    stream.addEventListener('close', () => this.#cut(leash))
    try {
      await answerLanes(frames, (request) => this.#offer(leash, request), deadline.signal)
      await frames.close(deadline.signal)
    } catch (error) {
      frames.abort(error instanceof Error ? error : new Error(reasonOf(error)))
      this.#init.log.debug({ peerId, reason: reasonOf(error) }, 'lane.answer.failed')
    } finally {
      this.#cut(leash)
    }
  }

  async #offer(leash: Leash, { digest, network, count }: LaneRequest): Promise<LaneOffers | LaneRefusal> {
    const { pieces, offerMs = OFFER_MS_MAX } = this.#init
    const inNetwork = network === undefined ? OPEN_NETWORK_ID : Buffer.from(network).toString('hex')
    if (!pieces.mayGive(leash.peerId, Buffer.from(digest).toString('hex'), inNetwork)) return { error: 'absent' }
    this.#tls ??= await this.#makeTls()
    if (leash.isOver) throw new WireError('closed', 'the stream was closed')
    const room = Math.min(LANES_PER_PEER_MAX - this.#countOf(leash.peerId), LANES_MAX - this.#countOf())
    if (room <= 0) return { error: 'busy' }
    const lanes = Array.from({ length: Math.min(count, room) }, () => {
      const [id, key] = [randomBytes(16), randomBytes(32)]
      const identity = identityOf(id)
      this.#offers.set(identity, { key, leash, untilMs: performance.now() + offerMs })
      setTimeout(() => this.#offers.delete(identity), offerMs).unref()
      return { id, key }
    })
    return { port: this.#port, expiresMs: offerMs, lanes }
  }

  /** Offers and lanes of one peer, or of all. */
  #countOf(peerId?: string): number {
    const isOf = (leash: Leash) => peerId === undefined || leash.peerId === peerId
    let count = 0
    for (const { leash } of this.#offers.values()) if (isOf(leash)) count++
    for (const leash of this.#leashes) if (isOf(leash)) count += leash.sockets.size
    return count
  }

  #cut(leash: Leash): void {
    leash.isOver = true
    this.#leashes.delete(leash)
    for (const [identity, offer] of this.#offers) if (offer.leash === leash) this.#offers.delete(identity)
    for (const socket of leash.sockets) socket.destroy()
  }

  /** Somebody connected. */
  #knock(socket: Socket): void {
    socket.on('error', () => undefined)
    if (this.#offers.size === 0 || this.#handshakes.size >= HANDSHAKES_MAX || this.#tls === undefined) {
      socket.destroy()
      return
    }
    this.#handshakes.add(socket)
    socket.once('close', () => this.#handshakes.delete(socket))
    this.#tls.emit('connection', socket)
  }

  /** Loaded with the first offer: an agent that gives no lanes needs none of it. */
  async #makeTls(): Promise<TlsServer> {
    const { createServer: createTlsServer } = await import('node:tls')
    const server = createTlsServer({
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
      ciphers: LANE_SUITES,
      ecdhCurve: LANE_GROUP,
      // A ticket would be a key that nobody handed over.
      secureOptions: constants.SSL_OP_NO_TICKET,
      handshakeTimeout: HANDSHAKE_MS_MAX,
      noDelay: true,
      pskCallback: (socket, identity) => this.#take(socket, identity),
    })
    server.on('secureConnection', (socket) => this.#secured(socket))
    server.on('tlsClientError', (error, socket) => {
      this.#init.log.debug({ from: socket.remoteAddress, reason: reasonOf(error) }, 'lane.handshake-failed')
      socket.destroy()
    })
    return server
  }

  /** The offer's key, once. */
  #take(socket: TLSSocket, identity: string): Buffer | null {
    const offer = this.#offers.get(identity)
    if (offer === undefined) return null
    this.#offers.delete(identity)
    if (offer.untilMs < performance.now() || offer.leash.isOver) return null
    this.#used.set(socket, offer.leash)
    return offer.key
  }

  #secured(socket: TLSSocket): void {
    const { remoteAddress, remotePort } = socket
    for (const raw of this.#handshakes)
      if (raw.remotePort === remotePort && raw.remoteAddress === remoteAddress) this.#handshakes.delete(raw)
    const leash = this.#used.get(socket)
    // Anything but an offer's key: there is no other way in, and there must not come to be one.
    if (leash === undefined || leash.isOver || !socket.isSessionReused()) {
      socket.destroy()
      return
    }
    leash.sockets.add(socket)
    const serving = this.#serve(socket, leash).finally(() => {
      this.#serving.delete(serving)
      leash.sockets.delete(socket)
    })
    this.#serving.add(serving)
  }

  async #serve(socket: TLSSocket, leash: Leash): Promise<void> {
    const { peerId, deadline } = leash
    const frames = new LaneFrames(socket)
    const onSent = (bytes: number) => {
      this.#sentBytes += bytes
      if (frames.sentBytes >= LANE_BYTES_MAX) socket.destroy()
    }
    this.#init.log.debug({ peerId }, 'lane.given')
    // The leash is in use for as long as one of its lanes is.
    await deadline.hold(this.#init.pieces.serveLane(frames, peerId, onSent))
    socket.destroy()
  }
}
