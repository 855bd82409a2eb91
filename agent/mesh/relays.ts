/**
 * Members that cannot reach each other do so through a third one, from start() until disposed: this node carries for members of its networks
 * (unless it was told not to), and has others carry for it. Wire format: protocols/relay/spec.md.
 *
 * No stranger is ever used or served: all of it is spoken on streams of a network. A relay dials nobody: it carries to whom it is
 * connected with, itself, and for whom a grant (`relay:use`) allows it.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import {
  decodeRelayAnswer,
  decodeRelayRequest,
  encodeRelayAnswer,
  encodeRelayRequest,
  RELAY_GUEST_PROTOCOL,
  RELAY_PROTOCOL,
  RELAY_WORD_BYTES_MAX,
  type RelayAnswer,
  type RelayRequest,
} from '../../protocols/relay/exchange.ts'
import { AgentError, reasonOf } from '../error.ts'
import { peerIdOf, publisherOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { Prelude } from './prelude.ts'
import type { RelayTransport } from './relay-transport.ts'
import { splice } from './splice.ts'

/** A relay asks the other end, and answers: two round trips. */
const WORDS_MS_MAX = 5_000
/** Noise, hello and yamux through the relay. */
const ACCEPT_MS_MAX = 10_000
/** Carried by this node at once: each may hold two windows of yamux, and costs what its bytes cost. */
const CARRIED_MAX = 128
/** Of those, from one member; and as many streams may one relay open to this node. */
const PER_MEMBER_MAX = 32
/** Relays that are tried for one peer: those that it names, and some that may know it. */
const TRIED_MAX = 6
/** A relay that has not connected by then is not waited for: the next is tried beside it. */
const NEXT_MS = 400

type Opener = { openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> }

/** A part of the mesh that is one network. */
type RelayScope = Opener & {
  connected(): string[]
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type RelayNetwork = {
  scope: RelayScope
  /** Whether a member may have this node carry for it. */
  mayUse: (peerId: string) => boolean
  isMember: (peerId: string) => boolean
  /** Whether a member may let others in. */
  issues: (peerId: string) => boolean
  /** Through whom a member says that it can be reached. */
  relaysOf: (peerId: string) => readonly string[]
}

/** Somebody who asked to be carried, and may be. */
type Joining = {
  network: RelayNetwork
  from: string
  /** Whose grant it is by: his own, or that of the member whose guest he is. */
  by: string
  request: RelayRequest
  say: (answer: RelayAnswer) => Promise<void>
  signal: AbortSignal
}

/** The host, as far as it is needed here. */
type RelayedHost = Opener & {
  readonly relayTransport: RelayTransport
  isConnected(peerId: string): boolean
  isDirect(peerId: string): boolean
  connectDirect(peerId: string, signal: AbortSignal): Promise<void>
  dialRelayed(relay: string, peer: string, signal: AbortSignal): Promise<void>
  useRelays(relays: Pick<Relays, 'knows' | 'reach'>): void
}

export type RelaysOptions = {
  host: RelayedHost
  /** Whether to carry for others. */
  carries: boolean
  log: Log
}

export class Relays implements AsyncDisposable {
  readonly #options: RelaysOptions
  readonly #networks = new Map<string, RelayNetwork>()
  /** Who asked for what is carried now, or is about to be, and in which network. */
  readonly #carried = new Map<Stream, { by: string; network: RelayNetwork }>()
  /** Relays at which this node is a guest, by whom they carry it to. */
  readonly #guestAt = new Map<string, string>()
  /** One way to a peer is looked for at a time. */
  readonly #reaching = new Map<string, Promise<void>>()
  readonly #stopping = new AbortController()

  constructor(options: RelaysOptions) {
    this.#options = options
    const { host } = options
    host.useRelays(this)
    host.relayTransport.use((relay, peer, signal) => this.#carry(relay, peer, signal))
  }

  /** Carries, and is carried, in a network until disposed. */
  async serve(id: string, network: RelayNetwork): Promise<AsyncDisposable> {
    this.#networks.set(id, network)
    await network.scope.handle(
      RELAY_PROTOCOL,
      (stream, peerId) => this.#answer(stream, peerId, () => ({ network, by: peerId })),
      {
        maxInboundStreams: PER_MEMBER_MAX,
      },
    )
    return {
      [Symbol.asyncDispose]: async () => {
        this.#networks.delete(id)
        await network.scope.unhandle(RELAY_PROTOCOL)
      },
    }
  }

  /** Carries no more for whom the network's policy does not allow it any more; to be called when that has changed. */
  recheck(id: string): void {
    const changed = this.#networks.get(id)
    for (const [stream, { by, network }] of this.#carried)
      if (network === changed && !network.mayUse(by)) stream.abort(new Error('the grant relay:use was taken back'))
  }

  /** Connections that this node carries for others. */
  get carriedCount(): number {
    return this.#carried.size
  }

  /** Whether somebody might carry to the peer. */
  knows(peerId: string): boolean {
    return this.#waysTo(peerId).length > 0
  }

  /**
   * Connects to a member through another, the first of those that can.
   *
   * @throws {AgentError} `not-found` when nobody carries to it
   */
  async reach(peerId: string, signal: AbortSignal): Promise<void> {
    const limited = AbortSignal.any([signal, this.#stopping.signal])
    const known = this.#reaching.get(peerId)
    if (known !== undefined) return await settledWithin(known, limited)
    const reaching = this.#reach(peerId, limited)
    this.#reaching.set(peerId, reaching)
    try {
      await reaching
    } finally {
      this.#reaching.delete(peerId)
    }
  }

  /** Whether to let somebody in who is to be carried to this member, for whom he has a pass of it. */
  admitsGuestOf(id: string, peerId: string): boolean {
    const network = this.#networks.get(id)
    return network?.issues(peerId) === true && this.#refusal(network, { by: peerId, to: peerId }) === undefined
  }

  /** As relay, of a guest of this member: carries him to it, and to nobody else. */
  async carryGuest(stream: Stream, guest: string, id: string, peerId: string): Promise<void> {
    const network = this.#networks.get(id)
    const isAdmitted = network !== undefined && this.admitsGuestOf(id, peerId)
    await this.#answer(stream, guest, (request) =>
      isAdmitted && request.ask === 'to' && peerIdOf(request.peer) === peerId ? { network, by: peerId } : 'refused',
    )
  }

  /** As guest: connects to a member through the relay that has let this node in. */
  async reachAsGuest(relay: string, peerId: string, signal: AbortSignal): Promise<void> {
    this.#guestAt.set(peerId, relay)
    try {
      await this.#options.host.dialRelayed(relay, peerId, signal)
    } finally {
      this.#guestAt.delete(peerId)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    for (const stream of this.#carried.keys()) stream.abort(new Error('this node carries no more'))
  }

  async #reach(peerId: string, signal: AbortSignal): Promise<void> {
    const tries: { over: AbortController; dialled: Promise<void> }[] = []
    const isThere = () => this.#options.host.isConnected(peerId)
    try {
      for (const relay of this.#waysTo(peerId)) {
        const over = new AbortController()
        const dialled = this.#options.host
          .dialRelayed(relay, peerId, AbortSignal.any([signal, over.signal]))
          // The end of a connection's dial may still be under way: it is not to be aborted.
          .then(() => void tries.splice(tries.indexOf(attempt), 1))
        const attempt = { over, dialled }
        tries.push(attempt)
        const failed = dialled.catch(() => undefined)
        await Promise.race([failed, delay(NEXT_MS, undefined, { signal, ref: false })])
        if (isThere()) return
      }
      await Promise.any(tries.map(({ dialled }) => dialled))
    } catch (cause) {
      signal.throwIfAborted()
      if (!isThere()) throw new AgentError('not-found', `nobody carries to ${peerId}`, { cause })
    } finally {
      for (const { over } of tries) over.abort()
    }
  }

  /** Those that the peer names, then members that are connected and may know it. */
  #waysTo(peerId: string): string[] {
    const ways = new Set<string>()
    const networks = [...this.#networks.values()].filter(({ isMember }) => isMember(peerId))
    for (const { relaysOf, isMember } of networks)
      for (const relay of relaysOf(peerId)) if (isMember(relay)) ways.add(relay)
    for (const { scope } of networks)
      for (const relay of scope.connected()) if (this.#options.host.isDirect(relay)) ways.add(relay)
    ways.delete(peerId)
    return [...ways].slice(0, TRIED_MAX)
  }

  /** A stream that ends at the peer, by a network in which both are members. */
  async #carry(relay: string, peer: string, signal: AbortSignal): Promise<Stream> {
    for (const { scope, isMember } of this.#networks.values()) {
      if (!isMember(relay) || !isMember(peer)) continue
      // One relay and no more: two that each look for the other by the other would look forever.
      await this.#options.host.connectDirect(relay, signal)
      return accepted(await ask(scope, relay, { ask: 'to', peer }, signal), relay, peer)
    }
    if (this.#guestAt.get(peer) === relay) {
      const asked = ask(this.#options.host, relay, { ask: 'to', peer }, signal, RELAY_GUEST_PROTOCOL)
      return accepted(await asked, relay, peer)
    }
    throw new AgentError('not-found', `${relay} and ${peer} are in no network of this node`)
  }

  /** `grounds`: by which network, and on whose account, a request is carried. */
  async #answer(
    stream: Stream,
    peerId: string,
    grounds: (request: RelayRequest) => Pick<Joining, 'network' | 'by'> | 'refused',
  ): Promise<void> {
    const prelude = new Prelude(stream)
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(WORDS_MS_MAX)])
    const request = decodeRelayRequest(await prelude.read(signal, RELAY_WORD_BYTES_MAX))
    const say = (answer: RelayAnswer) => prelude.write(encodeRelayAnswer(answer), signal)
    if (request === 'unknown') await say('unknown')
    else {
      const ground = grounds(request)
      const other = peerIdOf(request.peer)
      if (ground !== 'refused' && request.ask === 'from') return await this.#accept(stream, prelude, peerId, other, say)
      const refusal =
        ground === 'refused' ? ground : this.#refusal(ground.network, { by: ground.by, to: other, from: peerId })
      if (refusal === undefined && ground !== 'refused')
        return await this.#join(stream, prelude, { ...ground, from: peerId, request, say, signal })
      await say(refusal ?? 'refused')
    }
    prelude.release()
    await stream.close({ signal })
  }

  /** As relay: why nothing is carried; undefined when it is. */
  #refusal(
    { scope, mayUse }: RelayNetwork,
    { by, to, from }: { by: string; to: string; from?: string },
  ): RelayAnswer | undefined {
    if (!this.#options.carries || !mayUse(by)) return 'refused'
    if (to === from || !scope.connected().includes(to) || !this.#options.host.isDirect(to)) return 'absent'
    const own = [...this.#carried.values()].filter((one) => one.by === by).length
    return this.#carried.size >= CARRIED_MAX || own >= PER_MEMBER_MAX ? 'busy' : undefined
  }

  /** As relay: carries until both ends are closed. The place is taken before the other end is asked. */
  async #join(stream: Stream, prelude: Prelude, { network, from, by, request, say, signal }: Joining): Promise<void> {
    this.#carried.set(stream, { by, network })
    let other: Stream | undefined
    try {
      const to = await this.#open(network.scope, from, peerIdOf(request.peer), signal)
      if (typeof to === 'string') {
        await say(to)
        prelude.release()
        await stream.close({ signal })
        return
      }
      other = to
      await say('ok')
      const spliced = splice(stream, other)
      prelude.release()
      const bytes = await spliced
      this.#options.log.debug({ peerId: from, bytes }, 'relay.carried')
    } catch (error) {
      other?.abort(error as Error)
      throw error
    } finally {
      this.#carried.delete(stream)
    }
  }

  /** As relay: the stream to the one that is asked for, or why there is none. */
  async #open(scope: RelayScope, from: string, to: string, signal: AbortSignal): Promise<Stream | RelayAnswer> {
    try {
      const { stream, answer } = await ask(scope, to, { ask: 'from', peer: from }, signal)
      if (answer === 'ok') return stream
      stream.abort(new Error(answer))
      return answer === 'busy' ? 'busy' : 'refused'
    } catch (error) {
      signal.throwIfAborted()
      this.#options.log.debug({ peerId: to, reason: reasonOf(error) }, 'relay.unanswered')
      return 'absent'
    }
  }

  /** As the one that is reached: a connection begins on the stream. */
  async #accept(
    stream: Stream,
    prelude: Prelude,
    relay: string,
    peer: string,
    say: (answer: RelayAnswer) => Promise<void>,
  ): Promise<void> {
    await say('ok')
    prelude.release()
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ACCEPT_MS_MAX)])
    await this.#options.host.relayTransport.accept(stream, relay, peer, signal)
  }
}

/** @throws {AgentError} `not-found` when it was refused */
function accepted({ stream, answer }: { stream: Stream; answer: RelayAnswer }, relay: string, peer: string): Stream {
  if (answer === 'ok') return stream
  stream.abort(new Error(answer))
  throw new AgentError('not-found', `${relay} does not carry to ${peer}: ${answer}`)
}

/** What somebody else began, for as long as this one waits. */
async function settledWithin(work: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  const over = Promise.withResolvers<void>()
  const give = () => over.reject(signal.reason)
  signal.addEventListener('abort', give, { once: true })
  try {
    await Promise.race([work, over.promise])
  } finally {
    signal.removeEventListener('abort', give)
  }
}

/** One request and its answer, on a new stream; what follows on it is not read. */
async function ask(
  scope: Opener,
  to: string,
  request: { ask: 'to' | 'from'; peer: string },
  outer: AbortSignal,
  protocol = RELAY_PROTOCOL,
): Promise<{ stream: Stream; answer: RelayAnswer }> {
  const signal = AbortSignal.any([outer, AbortSignal.timeout(WORDS_MS_MAX)])
  const key = publisherOf(request.peer)
  if (key === undefined) throw new WireError('refused', 'a peer without an Ed25519 key')
  const stream = await scope.openStream(to, protocol, signal)
  try {
    const prelude = new Prelude(stream)
    await prelude.write(encodeRelayRequest({ ask: request.ask, peer: key }), signal)
    const answer = decodeRelayAnswer(await prelude.read(signal, RELAY_WORD_BYTES_MAX))
    prelude.release()
    return { stream, answer }
  } catch (error) {
    stream.abort(error as Error)
    throw error
  }
}
