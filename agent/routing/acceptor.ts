/**
 * Takes tunnels to the services of this node in one network, from start() until disposed: asks the grants, connects to the application,
 * and joins the two. Wire format: protocols/tunnel/spec.md.
 *
 * Nobody learns more than his grants let him: without one for a name, the answer is the same whether there is such a service. When
 * policy, certificates or offers change, tunnels that would not be opened now are reset.
 */
import { createSocket, type Socket as DatagramSocket } from 'node:dgram'
import { lookup } from 'node:dns/promises'
import { connect, isIPv6, type Socket } from 'node:net'
import type { Stream } from '@libp2p/interface'
import type { Member } from '../../protocols/membership/certificate.ts'
import type { Decision, Subject } from '../../protocols/membership/policy.ts'
import {
  decodeTunnelRequest,
  encodeTunnelAnswer,
  REQUEST_BYTES_MAX,
  TUNNEL_PROTOCOL,
  TUNNELS_PER_PEER_MAX,
  type TunnelError,
  type TunnelRequest,
} from '../../protocols/tunnel/tunnel.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { AuditFields } from '../identity/audit.ts'
import type { Log } from '../log.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'
import { Datagrams, joinDatagrams } from './datagrams.ts'
import type { Flows } from './flows.ts'
import type { Offer, Offers } from './offers.ts'
import { proxyHeader } from './proxy-protocol.ts'
import type { Instance } from './services.ts'
import { splice } from './splice.ts'
import { steadySocket } from './steady-socket.ts'
import { TunnelStream } from './tunnel-stream.ts'

/** A member may open streams before it needs them. */
const REQUEST_MS_MAX = 30_000
/** On this machine, or one beside it; whoever waits has other instances to try. */
const CONNECT_MS_MAX = 2_000
/** For the refused side to read why. */
const REFUSED_MS_MAX = 5_000
/** At the end, for tunnels that are about to end by themselves. */
const FAREWELL_MS_MAX = 500

export type AcceptorOptions = {
  /** This node's peer id. */
  self: string
  scope: Pick<NetworkScope, 'handle' | 'unhandle'>
  membership: {
    readonly name: string
    readonly self: Subject
    decide(from: Subject, to: Subject, verb: string): Decision
    onChange(listener: () => void): () => void
  }
  /** As it proved on its connection. */
  memberOf: (peerId: string) => Member | undefined
  /** Told when what a peer proves has changed. */
  onProven: (listener: (peerId: string) => void) => () => void
  /** Where a peer's connection comes from, and by which path. */
  linkOf: (peerId: string) => { path: string; address: { host: string; port: number } | undefined }
  offers: Pick<Offers, 'get' | 'suspect' | 'onChange'>
  flows: Flows
  audit: { append(fields: AuditFields): void }
  log: Log
}

const NOT_ALLOWED = 'not allowed any more'

type Refusal = { error: TunnelError; why: string }

export class Acceptor implements AsyncDisposable {
  readonly #options: AcceptorOptions
  readonly #stopping = new AbortController()
  readonly #stop: (() => void)[]

  private constructor(options: AcceptorOptions) {
    this.#options = options
    const { membership, onProven, offers } = options
    const recheck = () => this.#recheck()
    this.#stop = [membership.onChange(recheck), onProven((peerId) => this.#recheck(peerId)), offers.onChange(recheck)]
  }

  static async start(options: AcceptorOptions): Promise<Acceptor> {
    const acceptor = new Acceptor(options)
    const handler = (stream: Stream, peerId: string) => acceptor.#answer(stream, peerId)
    await options.scope.handle(TUNNEL_PROTOCOL, handler, { maxInboundStreams: TUNNELS_PER_PEER_MAX })
    return acceptor
  }

  /** Takes no more, lets what is about to end do so, and resets the rest. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { scope, flows } = this.#options
    await scope.unhandle(TUNNEL_PROTOCOL)
    for (const stop of this.#stop) stop()
    const ended = flows
      .list()
      .flatMap(({ direction, network, stream }) =>
        direction === 'in' && network === this.#options.membership.name
          ? [new Promise<void>((resolve) => void stream.once('close', resolve))]
          : [],
      )
    if (ended.length > 0) {
      const late = Promise.withResolvers<void>()
      const timer = setTimeout(late.resolve, FAREWELL_MS_MAX)
      await Promise.race([Promise.all(ended), late.promise])
      clearTimeout(timer)
    }
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    this.#cut(() => true, 'the agent is stopping')
  }

  /** A connection to the application, for a user of this node itself. @throws {AgentError} `not-found`, `failed` */
  async connectHere(service: string, signal: AbortSignal): Promise<Socket> {
    const offer = this.#takeable(service, 'tcp')
    if ('error' in offer) throw new AgentError('failed', offer.why)
    const caller = { ...this.#self(), address: { host: '127.0.0.1', port: 0 } }
    const { host, port } = offer
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
    await this.#connected(socket, offer, caller, signal)
    return socket
  }

  async datagramsHere(service: string): Promise<DatagramSocket> {
    const offer = this.#takeable(service, 'udp')
    if ('error' in offer) throw new AgentError('failed', offer.why)
    return await connectDatagrams(offer)
  }

  async #answer(stream: Stream, peerId: string): Promise<void> {
    const tunnel = new TunnelStream(stream)
    const { signal } = this.#stopping
    const limited = AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS_MAX)])
    const request = decodeTunnelRequest(await tunnel.readFrame(REQUEST_BYTES_MAX, limited))
    const decided = this.#decide(peerId, request)
    if ('error' in decided) return refuse(tunnel, decided)
    const { offer, member, rule } = decided
    const { membership, flows, linkOf } = this.#options
    const link = linkOf(peerId)
    const flow = {
      direction: 'in' as const,
      network: membership.name,
      service: request.service,
      peerId,
      node: member.name,
      carrier: request.carrier,
      path: link.path,
      rule,
      stream: tunnel,
    }
    try {
      if (request.carrier === 'udp') {
        const socket = await connectDatagrams(offer)
        this.#open(tunnel)
        joinDatagrams(socket, new Datagrams(tunnel, { instance: NO_INSTANCE, path: link.path }))
      } else {
        const gone = new AbortController()
        tunnel.once('close', () => gone.abort(new Error('the caller went away')))
        const caller = { name: member.name, peerId, network: membership.name, address: link.address }
        const { socket, readInto } = steadySocket(offer)
        await this.#connected(socket, offer, caller, AbortSignal.any([signal, gone.signal]))
        this.#open(tunnel)
        void splice(socket, tunnel, readInto)
      }
    } catch (error) {
      this.#options.offers.suspect(request.service)
      return refuse(tunnel, {
        error: 'unreachable',
        why: `${request.service} does not answer on its node: ${reasonOf(error)}`,
      })
    }
    flows.add(flow)
    // Something may have changed while the application took the connection.
    if (!this.#isAllowed(peerId, request.service)) tunnel.destroy(new Error(NOT_ALLOWED))
  }

  #open(tunnel: TunnelStream): void {
    tunnel.writeFrame(encodeTunnelAnswer({}))
    tunnel.begin()
  }

  #decide(
    peerId: string,
    { service, carrier }: TunnelRequest,
  ): Refusal | { offer: Offer; member: Member; rule: string } {
    const { membership, memberOf, flows, audit } = this.#options
    const member = memberOf(peerId)
    if (member === undefined) return { error: 'refused', why: 'not a member' }
    const decision = membership.decide(member, membership.self, `service:connect ${service}`)
    if (!decision.allowed) {
      const { name } = member
      audit.append({ event: 'access.refused', network: membership.name, peerId, name, why: decision.missing })
      return { error: 'refused', why: decision.missing }
    }
    if (flows.isFull) return { error: 'limit', why: 'this node has too many tunnels' }
    const offer = this.#takeable(service, carrier)
    return 'error' in offer ? offer : { offer, member, rule: decision.rule.text }
  }

  #takeable(service: string, carrier: TunnelRequest['carrier']): Offer | Refusal {
    const offer = this.#options.offers.get(service)
    if (offer === undefined || (offer.proto === 'udp') !== (carrier === 'udp'))
      return { error: 'absent', why: `this node offers no ${service} over ${carrier}` }
    return offer.isDraining ? { error: 'draining', why: `${service} is being drained on this node` } : offer
  }

  async #connected(
    socket: Socket,
    offer: Offer,
    caller: Parameters<typeof proxyHeader>[0],
    signal: AbortSignal,
  ): Promise<void> {
    await connected(socket, AbortSignal.any([signal, AbortSignal.timeout(CONNECT_MS_MAX)]))
    if (offer.proxyProtocol) socket.write(proxyHeader(caller, offer))
  }

  #self(): { name: string; peerId: string; network: string } {
    const { name, self } = this.#options.membership
    return { name: self.name, peerId: this.#options.self, network: name }
  }

  /** Resets what would not be opened now, of one peer or of all. Draining lets what is open end. */
  #recheck(only?: string): void {
    const isOut = ({ peerId, service }: { peerId: string; service: string }) =>
      (only === undefined || peerId === only) && !this.#isAllowed(peerId, service)
    this.#cut(isOut, NOT_ALLOWED)
  }

  #isAllowed(peerId: string, service: string): boolean {
    const { membership, memberOf, offers } = this.#options
    const member = memberOf(peerId)
    if (member === undefined || offers.get(service) === undefined) return false
    return membership.decide(member, membership.self, `service:connect ${service}`).allowed
  }

  #cut(isOut: (flow: { peerId: string; service: string }) => boolean, why: string): void {
    const { flows, membership, log } = this.#options
    const count = flows.cut((flow) => flow.direction === 'in' && flow.network === membership.name && isOut(flow), why)
    if (count > 0) log.info({ count, why }, 'tunnels.cut')
  }
}

/** Of datagrams that are served, nobody asks which instance it is. */
const NO_INSTANCE: Instance = {
  id: '',
  network: '',
  service: '',
  peerId: '',
  node: '',
  proto: 'udp',
  port: 0,
  labels: {},
  weight: 0,
  state: 'unknown',
}

/** Says why, and lets the caller read it. */
function refuse(tunnel: TunnelStream, refusal: Refusal): void {
  tunnel.writeFrame(encodeTunnelAnswer(refusal))
  tunnel.begin()
  tunnel.resume()
  tunnel.end()
  const timer = setTimeout(() => tunnel.destroy(), REFUSED_MS_MAX).unref()
  tunnel.once('close', () => clearTimeout(timer))
}

/** Resolves when the socket is connected. It is destroyed when that fails, or the signal comes first. */
function connected(socket: Socket, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = () => socket.destroy(signal.reason as Error)
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
    const settle = (act: () => void) => {
      signal.removeEventListener('abort', onAbort)
      socket.removeListener('error', onError)
      act()
    }
    const onError = (error: Error) => settle(() => reject(error))
    socket.once('error', onError)
    socket.once('connect', () => settle(resolve))
  })
}

async function connectDatagrams({ host, port }: Offer): Promise<DatagramSocket> {
  const { address } = await lookup(host)
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4')
  return await new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.connect(port, address, () => {
      socket.removeListener('error', reject)
      resolve(socket)
    })
  })
}
