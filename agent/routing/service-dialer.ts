/**
 * Opens tunnels to services: tries their instances in the order of balance.ts, and goes on to the next one at once when one fails. Where one
 * does not answer, the next is tried beside it, and the first that opens is taken: a node that died without a word costs a fraction of a second.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import {
  ANSWER_BYTES_MAX,
  type Carrier,
  decodeTunnelAnswer,
  encodeTunnelRequest,
  TUNNEL_PROTOCOL,
} from '../../protocols/tunnel/tunnel.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Acceptor } from './acceptor.ts'
import { order } from './balance.ts'
import { Datagrams, joinDatagrams } from './datagrams.ts'
import type { DatagramTunnel, Target, Tunnel, TunnelDialer } from './dialer.ts'
import type { Flows } from './flows.ts'
import { hereDatagrams, hereStream } from './here.ts'
import type { Instance, ServiceSource } from './services.ts'
import { Spares } from './spares.ts'
import { TunnelStream } from './tunnel-stream.ts'

/** An answer takes a round trip and what the application needs to accept; after this the next instance is tried as well. */
const PATIENCE_MS = 750
/** For one instance, dialling its node included. */
const OPEN_MS_MAX = 8_000
/** One that failed, or was silent for so long that another was sooner, comes last for so long, also for those who ask next. */
const FAILED_MS = 5_000
/** Remembered failures; of more, the oldest are forgotten. */
const FAILED_MAX = 1_000
/** Told of in the message when none opens. */
const REASONS_MAX = 3

/** A network of this node, as a place to open tunnels in. */
export type RoutedNetwork = ServiceSource & {
  /** Zone of this node in it. */
  zone(): string | undefined
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  readonly acceptor: Pick<Acceptor, 'connectHere' | 'datagramsHere'>
}

export type DialerOptions = {
  /** This node's peer id. */
  self: string
  network: (name: string) => RoutedNetwork | undefined
  /** How a connected peer is reached. */
  pathOf: (peerId: string) => string
  flows: Flows
  patienceMs?: number
}

/** A way to open one instance. */
type Open<T> = (network: RoutedNetwork, instance: Instance, signal: AbortSignal) => Promise<T>
/** What did not open, and why; `refused` is for a want of a grant. */
type Failure = { instance: Instance; reason: string; isRefused: boolean }

export class ServiceDialer implements TunnelDialer, Disposable {
  readonly #options: DialerOptions
  /** Who failed lately, until when by performance.now(). */
  readonly #failed = new Map<string, number>()
  readonly #spares = new Spares()

  constructor(options: DialerOptions) {
    this.#options = options
  }

  open(target: Target, signal: AbortSignal): Promise<Tunnel> {
    return this.#first(target, signal, (network, instance, limited) => this.#openStream(network, instance, limited))
  }

  openDatagrams(target: Target, signal: AbortSignal): Promise<DatagramTunnel> {
    return this.#first(target, signal, (network, instance, limited) => this.#openDatagrams(network, instance, limited))
  }

  [Symbol.dispose](): void {
    this.#spares[Symbol.dispose]()
  }

  /** Those that would be tried, in this order. @throws {AgentError} `not-found`, `failed` */
  candidates(target: Target): Instance[] {
    const { network: name, service, node, sticky } = target
    const network = this.#network(name)
    const all = network.instances.of(service).filter((one) => node === undefined || one.node === node)
    const shown = `${service}${node === undefined ? '' : `.${node}`}.${name}.internal`
    if (all.length === 0) {
      throw new AgentError('not-found', `nobody offers ${shown}`, { next: '`agent service list` shows what there is.' })
    }
    const failedLately = (instance: Instance) => (this.#failed.get(keyOf(instance)) ?? 0) > performance.now()
    const ordered = order(all, { self: this.#options.self, zone: network.zone(), sticky, failedLately })
    if (ordered.length > 0) return ordered
    const states = all.map(({ node: on, state }) => `${state} on ${on}`).slice(0, REASONS_MAX)
    throw new AgentError('failed', `${shown} takes no connections: ${states.join(', ')}`, {
      next: '`agent service show` on its node says why.',
    })
  }

  /** The first that opens; the others are given up. */
  async #first<T extends { destroy?: () => unknown; close?: () => void }>(
    target: Target,
    signal: AbortSignal,
    open: Open<T>,
  ): Promise<T> {
    const waiting = this.candidates(target)
    const network = this.#network(target.network)
    const failures: Failure[] = []
    const over = new AbortController()
    const tries = new Set<Promise<T | undefined>>()
    const outer = AbortSignal.any([signal, over.signal])
    let latest: Instance | undefined
    const start = () => {
      const instance = waiting.shift()
      if (instance === undefined) return
      latest = instance
      const limited = AbortSignal.any([outer, AbortSignal.timeout(OPEN_MS_MAX)])
      const trying: Promise<T | undefined> = open(network, instance, limited)
        .then(
          (opened) => this.#opened(instance, opened, over.signal),
          (error: unknown) => {
            if (!outer.aborted) failures.push(this.#noteFailure(instance, error))
            return undefined
          },
        )
        .finally(() => tries.delete(trying))
      tries.add(trying)
    }
    start()
    while (tries.size > 0 && !signal.aborted) {
      const opened = await soonest(
        tries,
        waiting.length > 0 ? (this.#options.patienceMs ?? PATIENCE_MS) : undefined,
        signal,
      )
      if (opened !== undefined && opened !== 'late') {
        over.abort(new AgentError('cancelled', 'another instance was sooner'))
        return opened
      }
      // Until it answers, whoever asks meanwhile does not wait for it, too.
      if (opened === 'late' && latest !== undefined) this.#avoid(latest)
      if (opened === 'late' || tries.size === 0) start()
    }
    over.abort(new AgentError('cancelled', 'given up'))
    signal.throwIfAborted()
    throw failureOf(target, failures)
  }

  /** Undefined, and undone, when another one was sooner. */
  #opened<T extends { destroy?: () => unknown; close?: () => void }>(
    instance: Instance,
    opened: T,
    over: AbortSignal,
  ): T | undefined {
    this.#failed.delete(keyOf(instance))
    if (!over.aborted) return opened
    if (opened.destroy !== undefined) opened.destroy()
    else opened.close?.()
    return undefined
  }

  #noteFailure(instance: Instance, error: unknown): Failure {
    const isRefused = error instanceof AgentError && error.code === 'not-allowed'
    if (!isRefused) this.#avoid(instance)
    return { instance, reason: reasonOf(error), isRefused }
  }

  #avoid(instance: Instance): void {
    const oldest = this.#failed.keys().next().value
    if (this.#failed.size >= FAILED_MAX && oldest !== undefined) this.#failed.delete(oldest)
    this.#failed.set(keyOf(instance), performance.now() + FAILED_MS)
  }

  async #openStream(network: RoutedNetwork, instance: Instance, signal: AbortSignal): Promise<Tunnel> {
    if (instance.peerId === this.#options.self) {
      const socket = await network.acceptor.connectHere(instance.service, signal)
      this.#count(instance, 'local', hereStream(socket))
      return Object.assign(socket, { instance, path: 'local' })
    }
    const { stream, path } = await this.#ask(network, instance, 'tcp', signal)
    this.#count(instance, path, stream)
    return Object.assign(stream, { instance, path })
  }

  async #openDatagrams(network: RoutedNetwork, instance: Instance, signal: AbortSignal): Promise<DatagramTunnel> {
    if (instance.peerId === this.#options.self) {
      const here = hereDatagrams(instance)
      joinDatagrams(await network.acceptor.datagramsHere(instance.service), here.far)
      return here.near
    }
    const { stream, path } = await this.#ask(network, instance, 'udp', signal)
    this.#count(instance, path, stream)
    return new Datagrams(stream, { instance, path })
  }

  /** An open stream to the application. @throws {AgentError} `not-allowed` with what is missing; whatever else it failed with */
  async #ask(
    network: RoutedNetwork,
    { peerId, service }: Instance,
    carrier: Carrier,
    signal: AbortSignal,
  ): Promise<{ stream: TunnelStream; path: string }> {
    if (this.#options.flows.isFull) throw new AgentError('limit', 'this node has too many tunnels open')
    const open = (limited: AbortSignal) => network.openStream(peerId, TUNNEL_PROTOCOL, limited)
    const request = encodeTunnelRequest({ service, carrier })
    const spare = this.#spares.take(`${network.name} ${peerId}`, open)
    const fresh = async () => await asked(new TunnelStream(await open(signal)), request, signal)
    const stream =
      (spare && (await asked(spare, request, signal).catch(noAnswer))) ??
      (await fresh().catch(noAnswer)) ??
      (await fresh())
    return { stream, path: this.#options.pathOf(peerId) }
  }

  #count(
    { network, service, peerId, node, proto }: Instance,
    path: string,
    stream: Parameters<Flows['add']>[0]['stream'],
  ): void {
    const carrier = proto === 'udp' ? 'udp' : 'tcp'
    this.#options.flows.add({ direction: 'out', network, service, peerId, node, carrier, path, stream })
  }

  #network(name: string): RoutedNetwork {
    const network = this.#options.network(name)
    if (network !== undefined) return network
    throw new AgentError('not-found', `this node is in no closed network called ${JSON.stringify(name)}`, {
      next: '`agent network list` shows its networks.',
    })
  }
}

/** The stream, once the other side has answered that it is open. */
async function asked(stream: TunnelStream, request: Uint8Array, signal: AbortSignal): Promise<TunnelStream> {
  try {
    stream.writeFrame(request)
    const answer = decodeTunnelAnswer(await stream.readFrame(ANSWER_BYTES_MAX, signal))
    if (answer.error === 'refused') throw new AgentError('not-allowed', answer.why)
    if (answer.error !== undefined) throw new AgentError('failed', answer.why || answer.error)
    stream.begin()
    return stream
  } catch (error) {
    stream.destroy(error as Error)
    throw error
  }
}

/** It may have gone with its connection, which was dead before anybody noticed: that says nothing of the instance. */
function noAnswer(error: unknown): undefined {
  if (error instanceof WireError && error.code === 'closed') return undefined
  throw error
}

function keyOf({ network, service, peerId }: Instance): string {
  return `${network} ${service} ${peerId}`
}

/** What the first of them comes to, or `late`. */
async function soonest<T>(
  tries: ReadonlySet<Promise<T | undefined>>,
  ms: number | undefined,
  signal: AbortSignal,
): Promise<T | undefined | 'late'> {
  const { promise, resolve } = Promise.withResolvers<T | undefined | 'late'>()
  const timer = ms === undefined ? undefined : setTimeout(() => resolve('late'), ms)
  const onAbort = () => resolve(undefined)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([promise, ...tries])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', onAbort)
  }
}

function failureOf({ network, service }: Target, failures: readonly Failure[]): AgentError {
  const reasons = failures.slice(0, REASONS_MAX).map(({ instance, reason }) => `${instance.node}: ${reason}`)
  const shown = `${service}.${network}.internal`
  if (failures.length > 0 && failures.every(({ isRefused }) => isRefused)) {
    return new AgentError('not-allowed', `${shown} may not be used from here: ${failures[0]?.reason}`, {
      next: `Whoever runs the network can allow it: agent policy set, with service:connect ${service}.`,
    })
  }
  return new AgentError('failed', `no instance of ${shown} can be reached: ${reasons.join('; ')}`, {
    next: '`agent service show` says how they are, `agent trace` where it fails.',
  })
}
