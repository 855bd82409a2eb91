/**
 * QUIC as libp2p's second direct transport: UDP, TLS 1.3 with the same Ed25519 identities (libp2p's own profile of it), streams without a muxer of
 * ours. The handshakes and datagrams are native code of @chainsafe/libp2p-quic; the streams are ours (quic-stream.ts says why), and no
 * connection comes to be before the hello on its first stream (gate.ts).
 *
 * On a platform that the package has no native code for there is no QUIC: the agent says so once, and TCP does.
 */
import { networkInterfaces } from 'node:os'
import {
  type Connection,
  type CreateListenerOptions,
  type DialTransportOptions,
  type Listener,
  type MultiaddrConnection,
  type PeerId,
  serviceCapabilities,
  type Transport,
  transportSymbol,
  type Upgrader,
} from '@libp2p/interface'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import type { Place } from '../../protocols/reflect/reflect.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Gate } from './gate.ts'
import { type NativeConnection, QuicMuxer } from './quic-muxer.ts'
import { STREAMS_MAX } from './stream-room.ts'

/** Multiaddr protocol code: https://github.com/multiformats/multiaddr/blob/master/protocols.csv */
const CODE_QUIC_V1 = 461

/** A peer that is gone is noticed after this. */
const IDLE_MS = 5_000
/** An idle connection costs a datagram in each direction a second; routers forget a UDP mapping after half a minute. */
const KEEP_ALIVE_MS = 1_000
/** At 50 ms that is 80 MB/s for one stream. */
const STREAM_WINDOW_BYTES = 4 * 1024 * 1024
/** Over all streams of a connection: sixteen readers that stand still keep nobody else waiting. */
const CONNECTION_WINDOW_BYTES = 64 * 1024 * 1024
/** Of the sockets that dial; where the system allows less, that. */
const SOCKET_BYTES = 2 * 1024 * 1024
/** Handshakes of strangers that are waited for at once: each that never ends keeps a place for IDLE_MS. */
const HANDSHAKES_MAX = 64

/** Routers forget a UDP mapping sooner than that where nothing passes. */
const FROM_MS_MAX = 60_000
/** Peers, the newest. */
const FROM_MAX = 1_024

type QuicPackage = typeof import('@chainsafe/libp2p-quic')
type Components = Parameters<ReturnType<QuicPackage['quic']>>[0] & { upgrader: Upgrader }
/** What the package hands to the upgrader: the native connection is in its muxer's factory. */
type UpgradeOptions = Parameters<Upgrader['upgradeInbound']>[1]
/** The package's listener, public in its class (2.1). */
type PackageListener = Listener & {
  state: { listenAddr?: Multiaddr; listener?: { port(): number } }
  awaitInboundConnections(): Promise<void>
}

/** How a connection comes about that is not one of everybody's. */
type Punched = { peer: string; arrived?: (raw: MultiaddrConnection) => void }

export type PunchedListener = AsyncDisposable & {
  /** Resolves when the peer is in. */
  readonly arrived: Promise<Pick<MultiaddrConnection, 'addEventListener' | 'status'>>
}

export class Quic {
  readonly #package: QuicPackage
  readonly #gate: Pick<Gate, 'streamed'>
  readonly #log: Log
  /** Connections through holes: their addresses are good for nothing else. */
  readonly #punched = new WeakSet<MultiaddrConnection>()
  /** Where peers' QUIC connections came from, whether or not they were let in. */
  readonly #from = new Map<string, { place: Place; ms: number }>()
  #inner: Transport | undefined
  #upgrader: Upgrader | undefined

  private constructor(loaded: QuicPackage, gate: Pick<Gate, 'streamed'>, log: Log) {
    this.#package = loaded
    this.#gate = gate
    this.#log = log
  }

  /** Undefined where there is no native code for this platform. */
  static async load(gate: Pick<Gate, 'streamed'>, log: Log): Promise<Quic | undefined> {
    try {
      return new Quic(await import('@chainsafe/libp2p-quic'), gate, log)
    } catch (error) {
      log.warn({ reason: reasonOf(error) }, 'quic.unavailable')
      return undefined
    }
  }

  /** For libp2p's `transports`. */
  readonly factory = (components: Components): Transport => {
    const inner = this.#package.quic({
      maxIdleTimeout: IDLE_MS,
      handshakeTimeout: IDLE_MS,
      keepAliveInterval: KEEP_ALIVE_MS,
      maxConcurrentStreamLimit: STREAMS_MAX,
      maxStreamData: STREAM_WINDOW_BYTES,
      maxConnectionData: CONNECTION_WINDOW_BYTES,
      receiveBufferSize: SOCKET_BYTES,
      sendBufferSize: SOCKET_BYTES,
    })(components)
    this.#inner = inner
    this.#upgrader = components.upgrader
    const startable = inner as unknown as { start(): Promise<void>; stop(): Promise<void> }
    return Object.assign(
      {
        [transportSymbol]: true as const,
        [Symbol.toStringTag]: 'undernet-quic',
        start: () => startable.start(),
        stop: () => startable.stop(),
        dial: (address: Multiaddr, options: DialTransportOptions) => this.#dial(address, options),
        createListener: (options: CreateListenerOptions) => this.#listener(options.upgrader),
        listenFilter: (addresses: Multiaddr[]) => inner.listenFilter(addresses),
        dialFilter: (addresses: Multiaddr[]) => inner.dialFilter(addresses),
      },
      { [serviceCapabilities]: ['@libp2p/transport'] },
    )
  }

  /** Where a peer's last QUIC connection came from, as its TLS handshake proved: told to nobody but the peer. */
  cameFrom(peerId: string): Place | undefined {
    const last = this.#from.get(peerId)
    return last !== undefined && performance.now() - last.ms < FROM_MS_MAX ? last.place : undefined
  }

  /** Connects through a hole: nobody is told of the address. */
  dialPunched(address: Multiaddr, peer: string, signal: AbortSignal): Promise<Connection> {
    return this.#dial(address, { upgrader: this.#expectUpgrader(), signal }, { peer })
  }

  /**
   * Waits at a port for one peer to come through a hole, once. Nobody is told of the port, and nobody else is let in. Disposing it ends the
   * connection, too.
   */
  async listenPunched(port: number, peer: string): Promise<PunchedListener> {
    const arrived = Promise.withResolvers<MultiaddrConnection>()
    const upgrader = this.#wrapped(this.#expectUpgrader(), { peer, arrived: arrived.resolve })
    const listener = this.#expectInner().createListener({ upgrader })
    await listener.listen(multiaddr(`/ip4/0.0.0.0/udp/${port}/quic-v1`))
    return { arrived: arrived.promise, [Symbol.asyncDispose]: () => listener.close() }
  }

  /** Whether a connection goes through a hole in routers. */
  isPunched(connection: Connection): boolean {
    return this.#punched.has((connection as unknown as { maConn: MultiaddrConnection }).maConn)
  }

  async #dial(address: Multiaddr, options: DialTransportOptions, punched?: Punched): Promise<Connection> {
    const { signal } = options
    signal.throwIfAborted()
    const upgrader = this.#wrapped(options.upgrader, punched, signal)
    const dialling = this.#expectInner().dial(address, { ...options, upgrader })
    const gone = Promise.withResolvers<never>()
    const onAbort = () => gone.reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      // The package waits for its own time to run out; what comes of it later is refused by the wrapped upgrader.
      return await Promise.race([gone.promise, dialling])
    } finally {
      signal.removeEventListener('abort', onAbort)
      dialling.catch(() => undefined)
    }
  }

  #listener(upgrader: Upgrader): Listener {
    const listener = this.#expectInner().createListener({ upgrader: this.#wrapped(upgrader) }) as PackageListener
    const listen = listener.listen.bind(listener)
    return Object.assign(listener, {
      listen: async (address: Multiaddr) => {
        try {
          await listen(address)
        } catch (error) {
          // TCP is what the node cannot do without.
          this.#log.warn({ address: address.toString(), reason: reasonOf(error) }, 'quic.not-listening')
          return
        }
        // It waits for one handshake after another, and so for a stranger that never ends his.
        for (let nth = 1; nth < HANDSHAKES_MAX; nth++) void listener.awaitInboundConnections()
      },
      // It has the machine's addresses of when it was loaded.
      getAddrs: () => (listener.state.listenAddr === undefined ? [] : addressesNow(listener.state.listenAddr)),
    })
  }

  /** Upgrades with our streams, behind the gate. `punched` says for whom alone, and that it is through a hole. */
  #wrapped(inner: Upgrader, punched?: Punched, signal?: AbortSignal): Upgrader {
    let isTaken = false
    const prepared = (raw: MultiaddrConnection, options: UpgradeOptions) => {
      signal?.throwIfAborted()
      const isOthers =
        punched !== undefined && (options as { remotePeer?: PeerId }).remotePeer?.toString() !== punched.peer
      if (isOthers || (punched !== undefined && isTaken)) throw new Error('the hole is another peer’s')
      isTaken = true
      const { init } = options.muxerFactory as unknown as { init: { connection: NativeConnection } }
      const muxer = new QuicMuxer(init.connection, raw)
      this.#gate.streamed(raw, (within) => muxer.first(within))
      if (punched !== undefined) this.#punched.add(raw)
      return { ...options, muxerFactory: { protocol: muxer.protocol, createStreamMuxer: () => muxer } }
    }
    const upgrades = {
      upgradeInbound: async (raw: MultiaddrConnection, options: UpgradeOptions) => {
        this.#note((options as { remotePeer?: PeerId }).remotePeer, raw.remoteAddr)
        await inner.upgradeInbound(raw, prepared(raw, options))
        punched?.arrived?.(raw)
      },
      upgradeOutbound: async (raw: MultiaddrConnection, options: UpgradeOptions) =>
        inner.upgradeOutbound(raw, prepared(raw, options)),
    }
    return Object.assign(Object.create(inner) as Upgrader, upgrades)
  }

  #note(peer: PeerId | undefined, address: Multiaddr): void {
    const [, host, port] = /^\/ip[46]\/([^/]+)\/udp\/(\d+)\//.exec(address.toString()) ?? []
    if (peer === undefined || host === undefined) return
    this.#from.delete(peer.toString())
    if (this.#from.size >= FROM_MAX) this.#from.delete(this.#from.keys().next().value ?? '')
    this.#from.set(peer.toString(), { place: { address: host, port: Number(port) }, ms: performance.now() })
  }

  #expectInner(): Transport {
    if (this.#inner === undefined) throw new Error('libp2p was not made with this transport')
    return this.#inner
  }

  #expectUpgrader(): Upgrader {
    if (this.#upgrader === undefined) throw new Error('libp2p was not made with this transport')
    return this.#upgrader
  }
}

export function isQuic(address: Multiaddr): boolean {
  return address.getComponents().some(({ code }) => code === CODE_QUIC_V1)
}

/** Those of the machine's addresses that a listener on all of them has now. */
function addressesNow(listening: Multiaddr): Multiaddr[] {
  const [, family, host, rest] = /^\/ip([46])\/([^/]+)(\/.*)$/.exec(listening.toString()) ?? []
  if (host !== '0.0.0.0' && host !== '::') return [listening]
  const all = Object.values(networkInterfaces()).flatMap((one) => one ?? [])
  const own = all.filter((one) => one.family === `IPv${family}`)
  return own.map(({ address }) => multiaddr(`/ip${family}/${address}${rest}`))
}
