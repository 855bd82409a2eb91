/**
 * Peers made of libp2p's own modules and nothing of the agent's: a stranger with everything that libp2p brings, and bare secure channels, on
 * which whoever has them says what he likes, also both ends of one at once.
 */
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import {
  type ConnectionEncrypter,
  type Libp2p,
  type MessageStream,
  type SecureConnectionOptions,
  type Stream,
  serviceCapabilities,
} from '@libp2p/interface'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { ephemeralNodeKey, type NodeKey } from '../../agent/identity/node-key.ts'

const LOOPBACK = '/ip4/127.0.0.1/tcp/0'
const TRY_MS_MAX = 10_000

/** Knows the names of all protocols, and not the hello. */
export class StockPeer implements AsyncDisposable {
  readonly peerId: string
  readonly #node: Libp2p

  private constructor(node: Libp2p) {
    this.peerId = node.peerId.toString()
    this.#node = node
  }

  static async start(): Promise<StockPeer> {
    const node = await createLibp2p({
      privateKey: ephemeralNodeKey().libp2pKey,
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      connectionGater: { denyDialMultiaddr: () => false },
      services: {
        identify: identify(),
        identifyPush: identifyPush(),
        ping: ping(),
        dht: kadDHT({ protocol: '/undernet/kad/1', clientMode: false, peerInfoMapper: passthroughMapper }),
        pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }),
      },
    })
    return new StockPeer(node as unknown as Libp2p)
  }

  /** Resolves only when the other end speaks it. */
  async open(address: string, protocol: string): Promise<Stream> {
    const signal = AbortSignal.timeout(TRY_MS_MAX)
    const connection = await this.#node.dial(multiaddr(address), { signal })
    return await connection.newStream(protocol, { signal })
  }

  /** What agents told it by identify. */
  async known(): Promise<string[]> {
    return (await this.#node.peerStore.all()).flatMap(({ protocols }) => protocols)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#node.stop()
  }
}

type Waiting = (channel: MessageStream) => void

/** Secure channels, each given to whoever asked for it or waits for those that come in: libp2p gets none of them. */
export class BareChannels implements AsyncDisposable {
  readonly key: NodeKey
  readonly #node: Libp2p
  readonly #waiting: Waiting[]

  private constructor(key: NodeKey, node: Libp2p, waiting: Waiting[]) {
    this.key = key
    this.#node = node
    this.#waiting = waiting
  }

  /** `taken` is given the channels that others open. */
  static async start(
    key = ephemeralNodeKey(),
    taken: (channel: MessageStream) => void = (channel) => channel.abort(new Error('nobody takes it')),
  ): Promise<BareChannels> {
    const waiting: Waiting[] = []
    const node = await createLibp2p({
      privateKey: key.libp2pKey,
      addresses: { listen: [LOOPBACK] },
      transports: [tcp()],
      connectionEncrypters: [keeping(taken, (channel) => waiting.shift()?.(channel))],
      streamMuxers: [yamux()],
      connectionGater: { denyDialMultiaddr: () => false },
    })
    return new BareChannels(key, node as unknown as Libp2p, waiting)
  }

  get address(): string {
    return this.#node.getMultiaddrs()[0]?.toString() ?? ''
  }

  async open(address: string): Promise<MessageStream> {
    const { promise, resolve, reject } = Promise.withResolvers<MessageStream>()
    this.#waiting.push(resolve)
    // The dial never succeeds: it ends with the channel.
    this.#node.dial(multiaddr(address), { signal: AbortSignal.timeout(TRY_MS_MAX), force: true }).catch(reject)
    return await promise
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#node.stop()
  }
}

/** Noise, whose channels go to whoever wants them and never to the muxer. */
function keeping(taken: (channel: MessageStream) => void, opened: (channel: MessageStream) => void) {
  return (components: Parameters<ReturnType<typeof noise>>[0]): ConnectionEncrypter => {
    const inner = noise()(components)
    const keep = async (give: (channel: MessageStream) => void, channel: MessageStream): Promise<never> => {
      const closed = new Promise((resolve) => channel.addEventListener('close', resolve, { once: true }))
      give(channel)
      await closed
      throw new Error('the channel was taken')
    }
    return Object.assign(
      {
        protocol: inner.protocol,
        secureInbound: async (raw: MessageStream, options?: SecureConnectionOptions) =>
          keep(taken, (await inner.secureInbound(raw, options)).connection),
        secureOutbound: async (raw: MessageStream, options?: SecureConnectionOptions) =>
          keep(opened, (await inner.secureOutbound(raw, options)).connection),
      },
      { [serviceCapabilities]: ['@libp2p/connection-encryption'] },
    )
  }
}
