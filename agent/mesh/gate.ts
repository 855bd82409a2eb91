/**
 * The gate: no connection, in either direction, comes to be before the hello (protocols/hello/spec.md) was said on it. It is said on the
 * secure channel, before there is a muxer: until then no part of libp2p knows of the peer, and nothing is identified, told, asked or
 * answered. And no connection outlives what let it in: it is cut when a certificate ends, a key is revoked, or this node leaves the
 * network.
 *
 * Two places of libp2p's configuration, both needed: `connectionEncrypters: [gate.secure(noise())]` says the hello, and
 * `connectionGater: gate.gater()` lets through only connections on which it was said. A transport with a secure channel and streams in one
 * (QUIC) comes by the second only: it names the connection's first stream (`streamed`), and the hello is said there; else it is refused.
 */
import {
  type Connection,
  type ConnectionEncrypter,
  type ConnectionGater,
  type MessageStream,
  type MultiaddrConnection,
  type PeerId,
  type SecureConnectionOptions,
  type Stream,
  type StreamHandler,
  type StreamHandlerOptions,
  serviceCapabilities,
} from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  type Admission,
  answer,
  type Door,
  type Greeting,
  greet,
  HELLO_PROTOCOL,
  type HelloOptions,
  type Joined,
  type Party,
  type TokenDesk,
} from '../../protocols/hello/hello.ts'
import type { Refused } from '../../protocols/hello/messages.ts'
import type { Member } from '../../protocols/membership/certificate.ts'
import type { Pass } from '../../protocols/membership/pass.ts'
import { hexOf, sameBytes } from '../../protocols/membership/statement.ts'
import type { Token } from '../../protocols/membership/token.ts'
import { NAME_PATTERN } from '../../protocols/membership/words.ts'
import { AgentError, reasonOf } from '../error.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { firstWords, HELLO_MS_MAX, onFirstStream } from './first-words.ts'
import { lossOf } from './losses.ts'
import { type Refusal, refusal, refusalIn, toError, without } from './refusals.ts'
import { Showing } from './showing.ts'

/** How often certificates are held against the clock. What is known at once, a revocation, cuts at once (`recheck`). */
const CHECK_MS = 1_000
/** Of a token. The keeper, which also dials its issuer, rests longer each time that it is refused. */
const SHOW_TRIES_MAX = 3

type Direction = Connection['direction']

export type GateOptions = {
  party: Party
  desk?: TokenDesk
  /** Stores what a token brought; `party.networks()` has it from then on. */
  joined?(joined: Joined): Promise<void> | void
  /** Told of each connection that is let in, and again when what it proves has changed. */
  onAdmitted?(peerId: string, admission: Admission, direction: Direction): void
  /** Told of each connection that is not let in, and of each that is cut. */
  onRefused?(refusal: Refusal): void
  log: Log
}

/** What libp2p gives to its services, as far as the gate needs it. */
export type GateComponents = {
  connectionManager: { getConnections(peer: PeerId): Connection[] }
  registrar: {
    handle(protocol: string, handler: StreamHandler, options: StreamHandlerOptions): Promise<void>
    unhandle(protocol: string): Promise<void>
  }
}

/** How the hello on a connection went. */
type Outcome = { peerId: string } & ({ greeting: Greeting | Admission } | { error: AgentError; why: string })

/** A connection that is in. */
type Live = {
  readonly peerId: string
  readonly direction: Direction
  readonly raw: MultiaddrConnection
  readonly sinceMs: number
  admission: Admission
}

type OpenFirst = (signal: AbortSignal) => Promise<Stream>

export class Gate implements Disposable {
  readonly #options: GateOptions
  readonly #log: Log
  /** By the raw connection, for as long as that exists. */
  readonly #outcomes = new WeakMap<MessageStream, Outcome>()
  /** Connections with streams on which nothing was said yet. */
  readonly #unsaid = new WeakMap<MessageStream, OpenFirst>()
  readonly #live = new Map<string, Live[]>()
  /** Tokens to show to their issuers, by key. */
  readonly #joining = new Map<string, Showing>()
  readonly #listeners = new Set<(peerId: string) => void>()
  /** Passes to show to members that carry, by their peer ids. */
  readonly passes = new Map<string, Pass>()
  #door: Door | undefined
  #connections: GateComponents['connectionManager'] | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(options: GateOptions) {
    this.#options = options
    this.#log = options.log
  }

  /** For libp2p's `connectionEncrypters`: the encrypter, and the hello on what it secured. */
  secure<Components>(
    make: (components: Components) => ConnectionEncrypter,
  ): (components: Components) => ConnectionEncrypter {
    return (components) => {
      const inner = make(components)
      const secured = async (direction: Direction, raw: MessageStream, options?: SecureConnectionOptions) => {
        const secured = await (direction === 'inbound'
          ? inner.secureInbound(raw, options)
          : inner.secureOutbound(raw, options))
        this.#outcomes.set(raw, await this.#hello(direction, secured.remotePeer, secured.connection, options?.signal))
        return secured
      }
      return Object.assign(
        {
          protocol: inner.protocol,
          secureInbound: (raw: MessageStream, options?: SecureConnectionOptions) => secured('inbound', raw, options),
          secureOutbound: (raw: MessageStream, options?: SecureConnectionOptions) => secured('outbound', raw, options),
        },
        { [serviceCapabilities]: ['@libp2p/connection-encryption'] },
      )
    }
  }

  /** For a transport with streams from the start: how to get a connection's first one, which is the hello's. */
  streamed(raw: MultiaddrConnection, first: OpenFirst): void {
    this.#unsaid.set(raw, first)
  }

  /** For libp2p's `connectionGater`: lets through connections whose hello went well, and no others. */
  gater(): Required<Pick<ConnectionGater, 'denyInboundEncryptedConnection' | 'denyOutboundEncryptedConnection'>> {
    return {
      denyInboundEncryptedConnection: async (peer, raw) => {
        await this.#helloOnFirst('inbound', peer, raw)
        return this.#refusalOf('inbound', peer, raw) !== undefined
      },
      denyOutboundEncryptedConnection: async (peer, raw) => {
        await this.#helloOnFirst('outbound', peer, raw)
        const error = this.#refusalOf('outbound', peer, raw)
        // Thrown, it reaches whoever dialled.
        if (error !== undefined) throw error
        return false
      },
    }
  }

  /** For libp2p's `services`: lets hello be said again on connections that are in. */
  readonly service = ({
    connectionManager,
    registrar,
  }: GateComponents): { start(): Promise<void>; stop(): Promise<void> } => {
    this.#connections = connectionManager
    return {
      start: () =>
        registrar.handle(HELLO_PROTOCOL, (stream, connection) => this.#answerAgain(stream, connection), {
          maxInboundStreams: 1,
          maxOutboundStreams: 1,
          runOnLimitedConnection: true,
        }),
      stop: () => registrar.unhandle(HELLO_PROTOCOL),
    }
  }

  /** Says which strangers are let in to be carried to a member. */
  useDoor(door: Door): void {
    this.#door = door
  }

  /** How many are in for nothing but to be carried to this member. */
  guestsOf(issuer: Uint8Array): number {
    const isGuest = ({ admission: { guest, members } }: Live) =>
      guest !== undefined && members.length === 0 && sameBytes(guest.issuer, issuer)
    return [...this.#live.values()].flat().filter(isGuest).length
  }

  /** What a connected peer proved; undefined for whoever is not in. */
  admitted(peerId: string): Admission | undefined {
    return this.#live.get(peerId)?.at(-1)?.admission
  }

  /** A connected peer as a member of the network; undefined when it is none, or not connected. */
  memberOf(network: Uint8Array, peerId: string): Member | undefined {
    return this.admitted(peerId)?.members.find((member) => sameBytes(member.network, network))
  }

  /**
   * Calls the listener when what a peer proves is known or has changed, which may be before the connection can be used. Returns how to
   * stop that.
   */
  onProven(listener: (peerId: string) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Connected members of the network. */
  membersOf(network: Uint8Array): { peerId: string; member: Member }[] {
    return [...this.#live.keys()].flatMap((peerId) => {
      const member = this.memberOf(network, peerId)
      return member === undefined ? [] : [{ peerId, member }]
    })
  }

  /**
   * Holds every connection against what is known now, and cuts those that have lost a membership, with all that runs on them; who has
   * another reason to be in connects again by that. To be called when a revocation was learned or a network was left: when it returns,
   * they are cut. Answers how many.
   */
  recheck(): number {
    let count = 0
    for (const live of [...this.#live.values()].flat()) {
      const why = lossOf(live, this.#options.party)
      if (why === undefined) continue
      this.#cut(live, why)
      count++
    }
    return count
  }

  /** Cuts the connections of a peer. */
  cut(peerId: string, why: string): void {
    for (const live of this.#live.get(peerId) ?? []) this.#cut(live, why)
  }

  /**
   * Says hello again to a connected peer, after this node joined a network or its certificate was renewed: what runs on the connection
   * goes on.
   *
   * @throws {AgentError} `not-allowed` with the peer's reason; whatever the stream fails with
   */
  async refresh(peerId: string, signal: AbortSignal): Promise<Admission> {
    const [connection] = this.#connections?.getConnections(peerIdFromString(peerId)) ?? []
    if (connection === undefined) throw new AgentError('not-found', `${peerId} is not connected`)
    const limited = AbortSignal.any([signal, AbortSignal.timeout(HELLO_MS_MAX)])
    const stream = await connection.newStream(HELLO_PROTOCOL, { signal: limited, runOnLimitedConnection: true })
    try {
      const greeting = await this.#greet(this.#helloOptions(connection.remotePeer, new Frames(stream), limited))
      const refused = await greeting.afterwards
      const admission = without(greeting, refused)
      this.#replace(peerId, admission, refused)
      await stream.close({ signal: limited })
      return admission
    } catch (cause) {
      stream.abort(toError(cause))
      throw refusal(peerId, cause)
    }
  }

  /**
   * Joins a network: `dial` connects to the token's issuer, or the hello is said again if that is connected. Resolves when what the
   * token brought is stored. `wished` is what this node would like to be called there.
   *
   * @throws {AgentError} `not-allowed` with the issuer's reason; `usage` for a wish that cannot be a name; what `dial` throws
   */
  async join(
    token: Token,
    issuer: string,
    dial: () => Promise<unknown>,
    signal: AbortSignal,
    wished?: string,
  ): Promise<Joined> {
    if (wished !== undefined && !NAME_PATTERN.test(wished))
      throw new AgentError('usage', `"${wished.slice(0, 80)}" cannot be the name of a member`)
    const key = hexOf(token.issuer)
    if (this.#joining.has(key)) throw new AgentError('taken', 'another token of the same node is being used')
    const showing = new Showing({ token, wished, store: (joined) => this.#options.joined?.(joined) })
    this.#joining.set(key, showing)
    try {
      await this.#show(showing, issuer, dial, signal)
      const joined = await showing.outcome().catch((cause: unknown) => Promise.reject(refusal(issuer, cause)))
      if (joined === undefined) throw new AgentError('failed', 'the node that the token names was not asked')
      return joined
    } finally {
      this.#joining.delete(key)
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  /** Says hello on a new secure channel. Never rejects: what came of it is asked for by the connection gater. */
  async #hello(
    direction: Direction,
    peer: PeerId,
    channel: MessageStream,
    outer: AbortSignal | undefined,
  ): Promise<Outcome> {
    const peerId = peer.toString()
    const said = await firstWords({
      channel,
      direction,
      outer,
      greet: async (frames, signal) => this.#greet(this.#helloOptions(peer, frames, signal)),
      answer: async (frames, signal) => this.#answer(this.#helloOptions(peer, frames, signal)),
    })
    if ('greeting' in said) return { peerId, greeting: said.greeting }
    return failed(peer, said.cause)
  }

  /** Where nothing was said yet. */
  async #helloOnFirst(direction: Direction, peer: PeerId, raw: MultiaddrConnection): Promise<void> {
    const first = this.#unsaid.get(raw)
    if (first === undefined || !this.#unsaid.delete(raw)) return
    const say = (stream: Stream) => this.#hello(direction, peer, stream, undefined)
    this.#outcomes.set(raw, await onFirstStream(raw, first, say).catch((cause: unknown) => failed(peer, cause)))
  }

  /** The gater's question. Undefined when the connection is in. */
  #refusalOf(direction: Direction, peer: PeerId, raw: MultiaddrConnection): AgentError | undefined {
    const peerId = peer.toString()
    const outcome = this.#outcomes.get(raw)
    if (outcome !== undefined && 'greeting' in outcome && outcome.peerId === peerId && raw.status === 'open') {
      this.#admit(direction, raw, outcome.peerId, outcome.greeting)
      return undefined
    }
    const isSaid = outcome !== undefined && 'error' in outcome
    const why = isSaid ? outcome.why : 'the connection ended during the hello, or came without one'
    this.#tellRefused({ peerId, address: raw.remoteAddr.toString(), direction, wasIn: false, why })
    return isSaid ? outcome.error : refusal(peerId, new Error(why))
  }

  #admit(direction: Direction, raw: MultiaddrConnection, peerId: string, greeting: Greeting | Admission): void {
    const { open, members, faults, guest } = greeting
    const sinceMs = this.#options.party.now()
    const live: Live = { peerId, direction, raw, sinceMs, admission: { open, members, faults, guest } }
    this.#live.set(peerId, [...(this.#live.get(peerId) ?? []), live])
    raw.addEventListener('close', () => this.#forget(live), { once: true })
    this.#timer ??= setInterval(() => this.recheck(), CHECK_MS).unref()
    this.#tellAdmitted(live)
    if (!('afterwards' in greeting)) return
    greeting.afterwards.then(
      (refused) => {
        if (refused.length > 0) this.#replace(peerId, without(greeting, refused), refused)
      },
      (error: unknown) => {
        // That it was closed meanwhile, by either side, is no refusal.
        if (!(error instanceof WireError && error.code === 'closed')) this.#cut(live, reasonOf(error))
      },
    )
  }

  #forget(live: Live): void {
    const rest = (this.#live.get(live.peerId) ?? []).filter((one) => one !== live)
    if (rest.length > 0) this.#live.set(live.peerId, rest)
    else this.#live.delete(live.peerId)
    if (this.#live.size === 0) this[Symbol.dispose]()
  }

  #helloOptions(peer: PeerId, frames: HelloOptions['frames'], signal: AbortSignal): HelloOptions {
    return { party: this.#options.party, peer: keyOf(peer), frames, signal }
  }

  /** Says hello with the token; once more where the dial turned out to be one that was under way, without it. */
  async #show(showing: Showing, issuer: string, dial: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
    for (let tries = 1; !showing.isShown && tries <= SHOW_TRIES_MAX; tries++) {
      try {
        if (this.admitted(issuer) === undefined) await dial()
        else await this.refresh(issuer, signal)
      } catch (error) {
        if (signal.aborted) throw error
        if (!showing.isShown && (refusalIn(error) === undefined || tries === SHOW_TRIES_MAX)) throw error
      }
    }
  }

  #answer(options: HelloOptions): Promise<Admission> {
    const { desk } = this.#options
    return answer({ ...options, desk, door: this.#door })
  }

  /** The dialler's hello, with a token if one is to be shown to this peer. */
  async #greet(options: HelloOptions): Promise<Greeting> {
    const showing = this.#joining.get(hexOf(options.peer))
    if (showing !== undefined) return await showing.greet(options)
    return await greet({ ...options, pass: this.passes.get(peerIdOf(options.peer)) })
  }

  async #answerAgain(stream: Stream, connection: Connection): Promise<void> {
    const peer = connection.remotePeer
    const signal = AbortSignal.timeout(HELLO_MS_MAX)
    try {
      this.#replace(peer.toString(), await this.#answer(this.#helloOptions(peer, new Frames(stream), signal)), [])
      await stream.close({ signal })
    } catch (error) {
      this.#log.debug({ peerId: peer.toString(), reason: reasonOf(error) }, 'hello.failed')
      stream.abort(toError(error))
    }
  }

  /** What a peer proves is now this; `refused` is what it refused of ours. */
  #replace(peerId: string, { open, members, faults, guest }: Admission, refused: Refused): void {
    for (const live of this.#live.get(peerId) ?? []) {
      live.admission = { open, members, faults, guest }
      if (members.length > 0 || open || guest !== undefined) this.#tellAdmitted(live)
      else this.#cut(live, `the peer refused our certificate: ${refused.map(({ fault }) => fault).join(', ')}`)
    }
  }

  #cut(live: Live, why: string): void {
    const error = new AgentError('not-allowed', why)
    live.raw.abort(error)
    const { peerId, direction } = live
    this.#tellRefused({ peerId, address: live.raw.remoteAddr.toString(), direction, wasIn: true, why })
  }

  #tellAdmitted({ peerId, direction, admission }: Live): void {
    const networks = admission.members.length
    this.#log.debug({ peerId, direction, networks, open: admission.open }, 'hello.admitted')
    this.#options.onAdmitted?.(peerId, admission, direction)
    for (const listener of this.#listeners) listener(peerId)
  }

  #tellRefused(refusal: Refusal): void {
    this.#log.debug(refusal, refusal.wasIn ? 'connection.cut' : 'hello.refused')
    this.#options.onRefused?.(refusal)
  }
}

/** The raw key of a peer id. Nodes have Ed25519 keys, since they sign records and certificates with them. */
function keyOf(peer: PeerId): Uint8Array {
  if (peer.type !== 'Ed25519') throw new WireError('refused', `a peer with a key of type ${peer.type}`)
  return peer.publicKey.raw
}

function failed(peer: PeerId, cause: unknown): Outcome {
  const peerId = peer.toString()
  return { peerId, error: refusal(peerId, cause), why: reasonOf(cause) }
}
