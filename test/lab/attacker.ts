/**
 * A peer that speaks as an agent does and keeps to none of an agent's rules: it shows the certificates that it is given, also such as no
 * agent would show, tries any protocol on any connection, and notes what it was shown and told. Runs in the test's process.
 */
import type { Stream } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { ephemeralNodeKey, type NodeKey } from '../../agent/identity/node-key.ts'
import type { Log } from '../../agent/log.ts'
import { parseAddress, peerIdIn } from '../../agent/mesh/addresses.ts'
import { Gate } from '../../agent/mesh/gate.ts'
import { Host } from '../../agent/mesh/host.ts'
import type { Refusal } from '../../agent/mesh/refusals.ts'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame, Frames } from '../../protocols/frame.ts'
import type { Admission, Credentials, Joined, Party } from '../../protocols/hello/hello.ts'
import type { Member } from '../../protocols/membership/certificate.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'
import { decodeHeader, encodeHeader, HEADER_BYTES_MAX, NETWORK_PROTOCOL } from '../../protocols/membership/streams.ts'
import type { Token } from '../../protocols/membership/token.ts'
import { until } from '../agents.ts'

/** One dial, one stream, one answer. What takes longer is neither an answer nor a refusal. */
export const TRY_MS_MAX = 10_000
/** Of each protocol, opened to us. */
const STREAMS_MAX = 64
/** What the gate says of a peer that gave a reason. */
const TOLD = 'the peer refused our certificate'
const silent: Log = { debug() {}, info() {}, warn() {}, error() {} }

/** What an agent said to us of its own accord in a network. */
export type Heard = { readonly peerId: string; readonly network: Uint8Array; readonly protocol: string }

type Noted = Pick<Attacker, 'credentials' | 'shown' | 'heard'>

export class Attacker implements AsyncDisposable {
  readonly key: NodeKey
  readonly party: Party
  /** Shown in every hello; the networks are those that it knows the secret of. */
  readonly credentials: Credentials[] = []
  /** Certificates that it was shown in hellos, whether these went well or not. */
  readonly shown: Member[] = []
  readonly heard: Heard[] = []
  readonly #host: Host
  /** Why a connection with a peer was refused or cut last. */
  readonly #refusals: Map<string, string>
  readonly #gate: Gate
  /** Peers that have told their protocols, which they do when they have let us in and said all of their hello. */
  readonly #known = new Set<string>()

  private constructor(key: NodeKey, party: Party, host: Host, gate: Gate, noted: Noted, refusals: Map<string, string>) {
    this.key = key
    this.party = party
    this.#host = host
    this.#gate = gate
    host.onPeer((peerId) => this.#known.add(peerId))
    host.onPeerGone((peerId) => this.#known.delete(peerId))
    this.#refusals = refusals
    this.credentials = noted.credentials
    this.shown = noted.shown
    this.heard = noted.heard
  }

  /** In the open network, like everybody who wants as much as possible. */
  static async start(key = ephemeralNodeKey()): Promise<Attacker> {
    const refusals = new Map<string, string>()
    const noted: Noted = { credentials: [], shown: [], heard: [] }
    const party: Party = {
      key,
      networks: () => noted.credentials,
      isOpen: () => true,
      revocations: () => ({
        faultOf: (member) => {
          noted.shown.push(member as Member)
          return undefined
        },
        isRevoked: () => false,
      }),
      now: Date.now,
    }
    const joined = (brought: Joined) => void noted.credentials.push(brought)
    const onRefused = ({ peerId, why }: Refusal) => void refusals.set(peerId, why)
    const gate = new Gate({ party, joined, onRefused, log: silent })
    const host = await Host.start({ key, listen: [], mdns: false, gate, open: true, log: silent })
    await host.handle(
      NETWORK_PROTOCOL,
      async (stream, peerId) => {
        const frames = new Frames(stream)
        const header = await frames.read(AbortSignal.timeout(TRY_MS_MAX), HEADER_BYTES_MAX)
        if (header !== undefined) noted.heard.push({ peerId, ...decodeHeader(header) })
      },
      { maxInboundStreams: STREAMS_MAX },
    )
    return new Attacker(key, party, host, gate, noted, refusals)
  }

  get peerId(): string {
    return this.key.peerId
  }

  /** Lets an honest token do its work. @throws {AgentError} with the issuer's reason */
  async join(token: Token, address: string): Promise<void> {
    await this.#gate.join(token, peerOf(address), () => this.#dial(address), AbortSignal.timeout(TRY_MS_MAX))
  }

  /**
   * Connects where it is not connected, and waits until the agent has said all that it has to say about it.
   *
   * @throws {WireError} `refused` when it was told why it is not let in; whatever the dial throws
   */
  async enter(address: string): Promise<Admission> {
    const peerId = peerOf(address)
    if (!this.#host.isConnected(peerId)) {
      this.#refusals.delete(peerId)
      await this.#dial(address).catch((error: unknown) => {
        // The verdict may come while libp2p is still at work on the connection.
        throw this.#toldBy(peerId) ?? error
      })
    }
    await until(() => this.#known.has(peerId) || !this.#host.isConnected(peerId), { what: 'let in, or not' })
    const admission = this.#gate.admitted(peerId)
    if (admission !== undefined && this.#host.isConnected(peerId)) return admission
    throw this.#toldBy(peerId) ?? new Error('cut off without a word')
  }

  isIn(address: string): boolean {
    return this.#host.isConnected(peerOf(address))
  }

  /** Says hello again on the connection that there is. */
  async sayAgain(address: string): Promise<Admission> {
    await this.enter(address)
    return await this.#gate.refresh(peerOf(address), AbortSignal.timeout(TRY_MS_MAX))
  }

  async open(address: string, protocol: string): Promise<Stream> {
    await this.enter(address)
    return await this.#host.openStream(peerOf(address), protocol, AbortSignal.timeout(TRY_MS_MAX))
  }

  /** A stream of a network, whether this peer is a member of it or not. */
  async openIn(address: string, network: Uint8Array, protocol: string): Promise<Stream> {
    const stream = await this.open(address, NETWORK_PROTOCOL)
    stream.send(encodeFrame(encodeHeader({ network, protocol })))
    return stream
  }

  /** Whether the agent has opened a stream to us in the network. */
  hears(address: string, network: Uint8Array, protocol?: string): boolean {
    return this.heard.some(
      (one) =>
        one.peerId === peerOf(address) &&
        sameBytes(one.network, network) &&
        (protocol === undefined || one.protocol === protocol),
    )
  }

  /** Who gossips in the open network, as far as this peer was told. */
  gossipsWith(address: string, topic: string): boolean {
    const subscribers = this.#host.pubsub?.getSubscribers(topic) ?? []
    return subscribers.some((one) => one.toString() === peerOf(address))
  }

  async hangUp(address: string): Promise<void> {
    await this.#host.hangUp(peerOf(address))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host[Symbol.asyncDispose]()
    this.#gate[Symbol.dispose]()
  }

  #toldBy(peerId: string): WireError | undefined {
    const why = this.#refusals.get(peerId)
    return why?.startsWith(TOLD) ? new WireError('refused', why) : undefined
  }

  async #dial(address: string): Promise<void> {
    await this.#host.dial([parseAddress(address)], AbortSignal.timeout(TRY_MS_MAX))
  }
}

/** The raw key of an agent. */
export function keyOf(address: string): Uint8Array {
  const peer = peerIdFromString(peerOf(address))
  if (peer.type !== 'Ed25519') throw new TypeError('a peer with another kind of key')
  return peer.publicKey.raw
}

function peerOf(address: string): string {
  const peerId = peerIdIn(parseAddress(address))
  if (peerId === undefined) throw new Error(`${address} names no peer`)
  return peerId
}
