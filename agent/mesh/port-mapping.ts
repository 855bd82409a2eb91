/**
 * Has the router of a home or office let this node's ports in, from start() until disposed: by NAT-PMP (nat-pmp.ts), else by UPnP (upnp.ts).
 *
 * Only if the user wants it (`port_mapping`): it opens a door in somebody's firewall. The default gateway is asked and nobody else; leases are short
 * and renewed long before they end, so that what a crash leaves behind closes by itself, and a router that was started anew has them again
 * soon. At a stop they are given back.
 *
 * What comes of it is told in closed networks only, and only when it can be true: an address that is nobody's but the Internet's. A router
 * whose own address is private has another one in front of it, which was not asked.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { isPublicHost } from './addresses.ts'
import { defaultGateway, type Gateway } from './gateway.ts'
import { NatPmp, type Transport } from './nat-pmp.ts'
import { findUpnp, PortTaken, type Upnp } from './upnp.ts'

const LEASE_SECONDS = 20 * 60
/** A router that was started anew has forgotten everything: this is how long that goes unnoticed. */
const RENEW_MS = 5 * 60_000
/** Between looks at the route: a laptop that came elsewhere. */
const LOOK_MS = 5_000
/** Where nobody answered, once more: the router may have been starting, or its owner just allowed it. */
const RETRY_MS = 60_000
const RETRY_MAX_MS = 30 * 60_000
/** All of it: two protocols, each with its own limits, and some ports. */
const ROUND_MS_MAX = 20_000
const GIVE_BACK_MS_MAX = 1_000
/** A port that is another's: the next ones are tried. Beyond, the owner had better look. */
const PORTS_TRIED_MAX = 8

/** `isDialled`: a connection of the mesh begins there. */
export type Port = { readonly transport: Transport; readonly port: number; readonly isDialled: boolean }
type Mapping = Port & { readonly externalPort: number }

type MappingState =
  /** The user does not want it. */
  | 'off'
  | 'asking'
  | 'mapped'
  /** There is no router to ask, or it does not answer. */
  | 'none'
  /** It answers, and does not do it. */
  | 'refused'

export type MappingView = {
  readonly state: MappingState
  readonly gateway?: string
  readonly protocol?: 'nat-pmp' | 'upnp'
  /** The router's, as it says. */
  readonly externalAddress?: string
  /** Whether that can be an address on the Internet. */
  readonly isPublic?: boolean
  readonly ports: readonly Mapping[]
  /** Why it is not mapped. */
  readonly reason?: string
}

/** One of the two protocols, once it has answered. */
type Router = {
  readonly protocol: 'nat-pmp' | 'upnp'
  externalAddress(signal: AbortSignal): Promise<string>
  map(wish: Mapping & { leaseSeconds: number }, signal: AbortSignal): Promise<{ externalPort: number }>
  unmap(mapping: Mapping, signal: AbortSignal): Promise<unknown>
  [Symbol.dispose](): void
}

export type PortMappingOptions = {
  /** What is to be let in. */
  ports: () => readonly Port[]
  log: Log
  /** Of the machine. */
  gateway?: () => Promise<Gateway | undefined>
  connect?: (gateway: Gateway, signal: AbortSignal) => Promise<Router>
}

export class PortMapping implements AsyncDisposable {
  readonly #options: PortMappingOptions
  readonly #stopping = new AbortController()
  readonly #listeners = new Set<() => void>()
  #work: Promise<void> = Promise.resolve()
  #view: MappingView = { state: 'asking', ports: [] }

  private constructor(options: PortMappingOptions) {
    this.#options = options
  }

  /** Begins, and does not wait for the router. */
  static start(options: PortMappingOptions): PortMapping {
    const mapping = new PortMapping(options)
    mapping.#work = mapping.#run()
    return mapping
  }

  get view(): MappingView {
    return this.#view
  }

  /** Where members can dial a port of this node from outside, as multiaddrs without a peer id. */
  addresses(): Multiaddr[] {
    const { externalAddress, isPublic: isUsable, ports } = this.#view
    if (isUsable !== true) return []
    return ports
      .filter(({ isDialled }) => isDialled)
      .map(({ transport, externalPort: port }) =>
        multiaddr(`/ip4/${externalAddress}/${transport}/${port}${transport === 'udp' ? '/quic-v1' : ''}`),
      )
  }

  /** Calls the listener when the addresses are other ones than before. Returns how to stop that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Gives the ports back, as far as the router answers at once. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort()
    await this.#work
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping
    const { gateway: find = defaultGateway } = this.#options
    let retryMs = RETRY_MS
    while (!signal.aborted) {
      const gateway = await find()
      const restMs = await this.#hold(gateway)
      if (signal.aborted) return
      retryMs = restMs === undefined ? Math.min(retryMs * 2, RETRY_MAX_MS) : RETRY_MS
      await this.#rest(restMs ?? retryMs, gateway)
    }
  }

  /** Has the ports mapped for as long as the route and the router stay as they are. Resolves with how long to rest; undefined after a failure. */
  async #hold(gateway: Gateway | undefined): Promise<number | undefined> {
    const { connect = connectRouter, log } = this.#options
    if (gateway === undefined) {
      this.#tell({ state: 'none', ports: [], reason: 'there is no default gateway (IPv4)' })
      return LOOK_MS
    }
    let router: Router | undefined
    try {
      router = await connect(gateway, this.#limited())
      for (;;) {
        await this.#map(router, gateway)
        await this.#rest(RENEW_MS, gateway)
        if (this.#stopping.signal.aborted || !(await this.#isStill(gateway))) return 0
      }
    } catch (error) {
      if (!this.#stopping.signal.aborted) {
        log.info({ gateway: gateway.address, reason: reasonOf(error) }, 'ports.unmapped')
        const state = router === undefined ? 'none' : 'refused'
        this.#tell({ state, gateway: gateway.address, ports: [], reason: reasonOf(error) })
      }
      return undefined
    } finally {
      if (router !== undefined) await this.#giveBack(router)
    }
  }

  async #map(router: Router, gateway: Gateway): Promise<void> {
    const signal = this.#limited()
    const externalAddress = await router.externalAddress(signal)
    const ports: Mapping[] = []
    for (const port of this.#options.ports()) ports.push(await this.#mapOne(router, port, ports, signal))
    const view: MappingView = {
      state: 'mapped',
      gateway: gateway.address,
      protocol: router.protocol,
      externalAddress,
      isPublic: isPublicHost(externalAddress),
      ports,
    }
    const isNews = JSON.stringify(view) !== JSON.stringify(this.#view)
    if (isNews) this.#options.log.info({ externalAddress, protocol: router.protocol, ports }, 'ports.mapped')
    this.#tell(view)
  }

  /** The port that it had, its own one, or one of the next. */
  async #mapOne(router: Router, port: Port, taken: readonly Mapping[], signal: AbortSignal): Promise<Mapping> {
    const before = this.#view.ports.find((one) => one.port === port.port && one.transport === port.transport)
    let externalPort = before?.externalPort ?? port.port
    for (let tries = 1; ; tries++) {
      try {
        const isOurs = taken.some((one) => one.transport === port.transport && one.externalPort === externalPort)
        if (isOurs) throw new PortTaken('mapped to another port of ours')
        const granted = await router.map({ ...port, externalPort, leaseSeconds: LEASE_SECONDS }, signal)
        return { ...port, externalPort: granted.externalPort }
      } catch (error) {
        if (!(error instanceof PortTaken) || tries === PORTS_TRIED_MAX) throw error
        externalPort = externalPort < 65_535 ? externalPort + 1 : 1_024
      }
    }
  }

  async #giveBack(router: Router): Promise<void> {
    const signal = AbortSignal.timeout(GIVE_BACK_MS_MAX)
    const { ports } = this.#view
    // What was not given back ends with its lease.
    for (const one of ports) await router.unmap(one, signal).catch(() => undefined)
    router[Symbol.dispose]()
    if (ports.length > 0) this.#tell({ ...this.#view, state: 'asking', ports: [] })
  }

  /** Waits, and stops early when the route changes or the agent stops. */
  async #rest(ms: number, gateway: Gateway | undefined): Promise<void> {
    const { signal } = this.#stopping
    for (const endMs = performance.now() + ms; performance.now() < endMs && !signal.aborted; ) {
      await delay(Math.min(LOOK_MS, ms), undefined, { signal, ref: false }).catch(() => undefined)
      if (signal.aborted || !(await this.#isStill(gateway))) return
    }
  }

  async #isStill(gateway: Gateway | undefined): Promise<boolean> {
    const { gateway: find = defaultGateway } = this.#options
    const now = await find()
    return now?.address === gateway?.address && now?.localAddress === gateway?.localAddress
  }

  #limited(): AbortSignal {
    return AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ROUND_MS_MAX)])
  }

  #tell(view: MappingView): void {
    const before = String(this.addresses())
    this.#view = view
    if (String(this.addresses()) !== before) for (const listener of this.#listeners) listener()
  }
}

/** By whatever it answers to first. Maps nothing yet. @throws {WireError} what UPnP failed with */
export async function connectRouter(gateway: Gateway, signal: AbortSignal): Promise<Router> {
  const pmp = await NatPmp.to(gateway.address)
  try {
    await pmp.externalAddress(signal)
    return byNatPmp(pmp)
  } catch {
    pmp[Symbol.dispose]()
    signal.throwIfAborted()
  }
  return byUpnp(await findUpnp(gateway, signal))
}

function byNatPmp(pmp: NatPmp): Router {
  return {
    protocol: 'nat-pmp',
    externalAddress: (signal) => pmp.externalAddress(signal),
    map: (wish, signal) => pmp.map(wish, signal),
    unmap: ({ transport, port }, signal) => pmp.map({ transport, port, externalPort: 0, leaseSeconds: 0 }, signal),
    [Symbol.dispose]: () => pmp[Symbol.dispose](),
  }
}

function byUpnp(upnp: Upnp): Router {
  return {
    protocol: 'upnp',
    externalAddress: (signal) => upnp.externalAddress(signal),
    map: (wish, signal) => upnp.map(wish, signal),
    unmap: (mapping, signal) => upnp.unmap(mapping, signal),
    [Symbol.dispose]: () => undefined,
  }
}
