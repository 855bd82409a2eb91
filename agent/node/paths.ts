/**
 * Ways between members that are not a plain dial, put together: what a member carries for others (relays), from where the others' datagrams
 * are seen (reflectors), and holes in the routers between them.
 */
import type { Log } from '../log.ts'
import type { Gate } from '../mesh/gate.ts'
import { Guests } from '../mesh/guests.ts'
import type { Host } from '../mesh/host.ts'
import { Puncher } from '../mesh/puncher.ts'
import { Reflections } from '../mesh/reflections.ts'
import { Reflector } from '../mesh/reflector.ts'
import { type RelayNetwork, Relays } from '../mesh/relays.ts'

export type PathsOptions = {
  host: Host
  gate: Gate
  /** Multiaddrs that libp2p listens on. */
  listen: readonly string[]
  /** Whether to carry for others. */
  relay: boolean
  /** First UDP port of the reflector; undefined when off. */
  reflectPort: number | undefined
  /** Whether to come through routers where a relay connects. */
  punch: boolean
  log: Log
}

type PathsNetwork = RelayNetwork & { scope: { connected(): string[] } }

export class NodePaths implements AsyncDisposable {
  /** Where this node's datagrams seem to come from. */
  readonly reflections: Reflections
  /** Those who are let in to be carried to a member, and this node where it is one. */
  readonly guests: Guests
  readonly #relays: Relays
  readonly #reflector: Reflector
  readonly #puncher: Puncher
  readonly #scopes = new Map<string, RelayNetwork['scope']>()

  private constructor(
    { host, punch, log }: PathsOptions,
    parts: { relays: Relays; guests: Guests; reflector: Reflector },
  ) {
    this.#relays = parts.relays
    this.guests = parts.guests
    this.#reflector = parts.reflector
    const hostOf = (peerId: string) => host.hostOf(peerId)
    const touchQuic: Host['touchQuic'] = (peerId, at, signal) => host.touchQuic(peerId, at, signal)
    this.reflections = new Reflections({ scopes: () => [...this.#scopes.values()], hostOf, touchQuic, log })
    this.#puncher = new Puncher({ host, reflections: this.reflections, isOn: punch, log })
  }

  static async start(options: PathsOptions): Promise<NodePaths> {
    const { host, listen, reflectPort, log } = options
    const quicFrom = (peerId: string) => host.quic?.cameFrom(peerId)
    const all = new Set(listen.flatMap((address) => /^\/ip[46]\/([^/]+)\//.exec(address)?.[1] ?? []))
    const hosts = reflectPort === undefined ? [] : [...all]
    const { gate, relay } = options
    const relays = new Relays({ host, carries: relay, log })
    const guests = await Guests.start({ host, gate, relays, log })
    const reflector = await Reflector.start({ hosts, port: reflectPort ?? 0, quicFrom, log })
    return new NodePaths(options, { relays, guests, reflector })
  }

  /** Carries, is carried, reflects, makes holes and asks for reflections in a network until disposed. */
  async serve(id: string, network: PathsNetwork): Promise<AsyncDisposable> {
    await using stack = new AsyncDisposableStack()
    const { scope } = network
    stack.use(await this.#relays.serve(id, network))
    stack.use(await this.#reflector.serve(scope, (peerId) => scope.connected().includes(peerId)))
    stack.use(await this.#puncher.serve(scope))
    this.#scopes.set(id, scope)
    stack.defer(() => void this.#scopes.delete(id))
    return stack.move()
  }

  /** To be called when a network's policy has changed. */
  recheck(id: string): void {
    this.#relays.recheck(id)
  }

  /** Connections that this node carries for others. */
  get carriedCount(): number {
    return this.#relays.carriedCount
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.guests[Symbol.asyncDispose]()
    await this.#puncher[Symbol.asyncDispose]()
    await this.#relays[Symbol.asyncDispose]()
    await this.#reflector[Symbol.asyncDispose]()
  }
}
