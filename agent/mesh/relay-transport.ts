/**
 * A transport of libp2p for `/p2p/<relay>/p2p-circuit/p2p/<peer>`: a connection whose bytes go through a stream that a relay carries to the
 * peer. Everything else is as on any connection: Noise between the two ends, hello, yamux. It listens to nothing by itself: a relay's
 * streams are handed in by whom they came to (relays.ts).
 */
import {
  type AbortOptions,
  type ComponentLogger,
  type Connection,
  type DialTransportOptions,
  type Listener,
  type MessageStreamDirection,
  type Stream,
  serviceCapabilities,
  type Transport,
  transportSymbol,
  type Upgrader,
} from '@libp2p/interface'
import { AbstractMultiaddrConnection } from '@libp2p/utils'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { onDrained } from '../../protocols/drained.ts'
import { peerIdIn } from './addresses.ts'

/** Multiaddr protocol codes: https://github.com/multiformats/multiaddr/blob/master/protocols.csv */
const CODE_CIRCUIT = 290
const CODE_P2P = 421

/**
 * Has libp2p know the connection for one that is not for everything: the open network's DHT and gossip do not run on it, and a dial does
 * not take it for a direct one. Our own protocols do (host.ts).
 */
const CARRIED = {}

/** Has a relay carry a stream to the peer. */
export type Carry = (relay: string, peer: string, signal: AbortSignal) => Promise<Stream>

type Components = { upgrader: Upgrader; logger: ComponentLogger }

export class RelayTransport {
  #components: Components | undefined
  #carry: Carry | undefined

  /** For libp2p's `transports`. */
  readonly factory = (components: Components): Transport => {
    this.#components = components
    const dial = (address: Multiaddr, options: DialTransportOptions) => this.#dial(address, options)
    return Object.assign(
      {
        [transportSymbol]: true as const,
        [Symbol.toStringTag]: 'undernet-relay',
        dial,
        createListener: (): Listener => {
          throw new Error('relayed connections are not listened for')
        },
        listenFilter: () => [],
        dialFilter: (addresses: Multiaddr[]) => addresses.filter(isRelayed),
      },
      { [serviceCapabilities]: ['@libp2p/transport'] },
    )
  }

  /** Says how streams are carried; before, nothing can be dialled. */
  use(carry: Carry): void {
    this.#carry = carry
  }

  /** A stream on which the peer's connection begins, as the relay says. Rejects when it does not become one. */
  async accept(stream: Stream, relay: string, peer: string, signal: AbortSignal): Promise<void> {
    const { upgrader, logger } = this.#expectStarted()
    const connection = carried(stream, { address: relayedAddress(relay, peer), direction: 'inbound', logger })
    try {
      await upgrader.upgradeInbound(connection, { signal, limits: CARRIED })
    } catch (error) {
      connection.abort(error as Error)
      throw error
    }
  }

  async #dial(address: Multiaddr, options: DialTransportOptions): Promise<Connection> {
    const { upgrader, logger } = this.#expectStarted()
    const { relay, peer } = endsOf(address)
    const { signal } = options
    if (this.#carry === undefined) throw new Error('nothing is carried yet')
    const stream = await this.#carry(relay, peer, signal)
    const connection = carried(stream, { address, direction: 'outbound', logger })
    try {
      return await upgrader.upgradeOutbound(connection, { signal, limits: CARRIED })
    } catch (error) {
      connection.abort(error as Error)
      throw error
    }
  }

  #expectStarted(): Components {
    if (this.#components === undefined) throw new Error('libp2p was not made with this transport')
    return this.#components
  }
}

/** Where a peer is for whom a relay carries. */
export function relayedAddress(relay: string, peer: string): Multiaddr {
  return multiaddr(`/p2p/${relay}/p2p-circuit/p2p/${peer}`)
}

export function isRelayed(address: Multiaddr): boolean {
  return address.getComponents().some(({ code }) => code === CODE_CIRCUIT)
}

/** The relay of a relayed address. */
export function relayIn(address: Multiaddr): string | undefined {
  return isRelayed(address) ? address.getComponents().find(({ code }) => code === CODE_P2P)?.value : undefined
}

function endsOf(address: Multiaddr): { relay: string; peer: string } {
  const [relay, peer] = [relayIn(address), peerIdIn(address)]
  if (relay === undefined || peer === undefined || relay === peer)
    throw new Error(`${address.toString()} does not say who carries, and to whom`)
  return { relay, peer }
}

type CarriedInit = { address: Multiaddr; direction: MessageStreamDirection; logger: ComponentLogger }

/** @throws when the stream has ended already */
function carried(stream: Stream, { address, direction, logger }: CarriedInit): CarriedConnection {
  if (stream.status !== 'open') throw new Error('the relay broke off')
  return new CarriedConnection(stream, {
    remoteAddr: address,
    direction,
    log: logger.forComponent('undernet:relayed'),
  })
}

/** A connection, as far as libp2p is concerned, that is a stream of another one. */
class CarriedConnection extends AbstractMultiaddrConnection {
  readonly #stream: Stream

  constructor(stream: Stream, init: ConstructorParameters<typeof AbstractMultiaddrConnection>[0]) {
    super(init)
    this.#stream = stream
    stream.addEventListener('message', ({ data }) => this.onData(data))
    onDrained(stream, () => this.safeDispatchEvent('drain'))
    // A connection is of no use in one direction: when the other end has closed it, this one does.
    const end = () => {
      this.onTransportClosed()
      stream.close().catch((error: unknown) => stream.abort(error as Error))
    }
    stream.addEventListener('end', end, { once: true })
    stream.addEventListener('close', ({ error }) => this.onTransportClosed(error), { once: true })
  }

  override sendData(data: Parameters<AbstractMultiaddrConnection['sendData']>[0]): {
    sentBytes: number
    canSendMore: boolean
  } {
    const sentBytes = data.byteLength
    // The stream keeps what it cannot send now.
    return { sentBytes, canSendMore: this.#stream.send(data) }
  }

  override sendReset(error: Error): void {
    this.#stream.abort(error)
  }

  override async sendClose(options?: AbortOptions): Promise<void> {
    await this.#stream.close(options)
  }

  override sendPause(): void {
    if (this.#stream.readStatus === 'readable') this.#stream.pause()
  }

  override sendResume(): void {
    if (this.#stream.readStatus === 'paused') this.#stream.resume()
  }
}
