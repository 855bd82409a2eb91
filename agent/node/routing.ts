/**
 * Services and tunnels of a node, put together: what each closed network brings to them while it runs, what the configuration declares,
 * and what is open.
 */
import type { Member } from '../../protocols/membership/certificate.ts'
import type { Warning } from '../api/contract.ts'
import type { Members } from '../catalog/members.ts'
import type { Records } from '../catalog/records.ts'
import type { Config } from '../config/keys.ts'
import { parseForward, parseOffer } from '../config/service-values.ts'
import { reasonOf } from '../error.ts'
import type { Audit } from '../identity/audit.ts'
import type { Membership } from '../identity/membership.ts'
import type { Log } from '../log.ts'
import type { Link } from '../mesh/connections.ts'
import type { Gate } from '../mesh/gate.ts'
import type { Host } from '../mesh/host.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'
import { Acceptor } from '../routing/acceptor.ts'
import { Flows } from '../routing/flows.ts'
import { Forward } from '../routing/forwards.ts'
import { checkIn } from '../routing/health.ts'
import { Instances } from '../routing/instances.ts'
import { type Offering, Offers } from '../routing/offers.ts'
import { type RoutedNetwork, ServiceDialer } from '../routing/service-dialer.ts'
import { Services } from '../routing/services.ts'
import type { Database } from '../state/database.ts'
import { forwardWarnings, unplacedWarnings } from './part-warnings.ts'

/** Round trips are looked up for each instance of each answer; liveness measures them every few seconds. */
const LINKS_KEPT_MS = 500

export type RoutingDeps = {
  host: Pick<Host, 'peerId' | 'links'>
  gate: Pick<Gate, 'memberOf' | 'onProven'>
  audit: Pick<Audit, 'append'>
  config: Pick<Config, 'services' | 'forwards'>
  log: Log
}

/** What a closed network has, while it runs. */
export type NetworkParts = {
  membership: Membership
  scope: NetworkScope
  db: Database
  records: Records
  members: Members
  log: Log
}

export type Routed = RoutedNetwork & {
  membership: Membership
  members: Members
  instances: Instances
  offers: Offers
  acceptor: Acceptor
}

export class NodeRouting implements AsyncDisposable {
  readonly services = new Services()
  readonly dialer: ServiceDialer
  readonly flows: Flows
  readonly #deps: RoutingDeps
  readonly #networks = new Map<string, Routed>()
  /** Of the configuration, by how they are written there; those that could not be begun say why. */
  readonly #forwards = new Map<string, Forward | string>()
  #declared: readonly string[]
  #work: Promise<void> = Promise.resolve()
  #links = new Map<string, Link>()
  #linksMs = Number.NEGATIVE_INFINITY

  constructor(deps: RoutingDeps) {
    this.#deps = deps
    this.#declared = deps.config.services
    this.flows = new Flows(deps.audit)
    this.dialer = new ServiceDialer({
      self: deps.host.peerId,
      network: (name) => this.#networks.get(name),
      pathOf: (peerId) => this.linkOf(peerId).path,
      flows: this.flows,
    })
  }

  /** Serves a network until disposed. */
  async route({ membership, scope, db, records, members, log }: NetworkParts): Promise<AsyncDisposable> {
    await using stack = new AsyncDisposableStack()
    const { host, gate, audit } = this.#deps
    const { name, network } = membership
    const rttMs = (peerId: string) => this.#knownLinks().get(peerId)?.rttMs
    const instances = stack.use(new Instances({ records, members, membership, rttMs }))
    const offers = stack.use(new Offers({ db, records, instanceCount: () => instances.count, log }))
    const memberOf = (peerId: string): Member | undefined => gate.memberOf(network, peerId)
    const acceptor = stack.use(
      await Acceptor.start({
        self: host.peerId,
        scope,
        membership,
        memberOf,
        onProven: (listener) => gate.onProven(listener),
        linkOf: (peerId) => this.linkOf(peerId),
        offers,
        flows: this.flows,
        audit,
        log,
      }),
    )
    // Before the acceptor waits for tunnels to end, the others are told to go elsewhere.
    stack.defer(() => offers[Symbol.dispose]())
    const zone = () => membership.self.labels.zone
    const openStream: RoutedNetwork['openStream'] = (peerId, protocol, signal) =>
      scope.openStream(peerId, protocol, signal)
    const routed: Routed = { name, membership, members, instances, offers, acceptor, zone, openStream }
    this.#networks.set(name, routed)
    stack.defer(this.services.add(routed))
    stack.defer(() => {
      this.#networks.delete(name)
      this.#declare()
    })
    this.#declare()
    return stack.move()
  }

  networks(): Routed[] {
    return [...this.#networks.values()]
  }

  get(name: string): Routed | undefined {
    return this.#networks.get(name)
  }

  /** Who a peer is in a network. */
  memberIn(network: string, peerId: string): Member | undefined {
    return this.#networks.get(network)?.members.get(peerId)
  }

  /** Takes over what the configuration says now, one after the other. Never rejects: what cannot be is warned of. */
  configure(config: Pick<Config, 'services' | 'forwards'>): Promise<void> {
    this.#work = this.#work.then(() => this.#configure(config))
    return this.#work
  }

  async #configure({ services, forwards }: Pick<Config, 'services' | 'forwards'>): Promise<void> {
    this.#declared = services
    this.#declare()
    for (const [text, forward] of this.#forwards) {
      if (forwards.includes(text)) continue
      this.#forwards.delete(text)
      if (typeof forward !== 'string') await forward[Symbol.asyncDispose]()
    }
    for (const text of forwards) {
      if (typeof this.#forwards.get(text) === 'object') continue
      const { name, host, port, proto, isSticky } = parseForward(text)
      try {
        this.#forwards.set(text, await this.forward({ name, host, port, proto, isSticky, onRefused: () => undefined }))
      } catch (error) {
        this.#forwards.set(text, reasonOf(error))
        this.#deps.log.error({ forward: text, reason: reasonOf(error) }, 'forward.failed')
      }
    }
  }

  /** A port that leads to a service, until disposed. */
  forward(
    options: Omit<Parameters<typeof Forward.start>[0], 'self' | 'services' | 'dialer' | 'log'>,
  ): Promise<Forward> {
    const { host, log } = this.#deps
    return Forward.start({ ...options, self: host.peerId, services: this.services, dialer: this.dialer, log })
  }

  /** How a connected peer is reached; its address where it is reached directly. */
  linkOf(peerId: string): { path: string; address: { host: string; port: number } | undefined } {
    const link = this.#deps.host.links().find((one) => one.peerId === peerId)
    const [, host, port] = /^\/ip[46]\/([^/]+)\/(?:tcp|udp)\/(\d+)/.exec(link?.address ?? '') ?? []
    const path = link?.path ?? 'direct'
    const address = host === undefined || path !== 'direct' ? undefined : { host, port: Number(port) }
    return { path, address }
  }

  warnings(): Warning[] {
    const failed = [...this.#forwards].flatMap(([text, forward]) =>
      typeof forward === 'string' ? [{ text, reason: forward }] : [],
    )
    const unplaced = this.#declared.filter((text) => this.#placeOf(parseOffer(text).network) === undefined)
    return [...forwardWarnings(failed), ...unplacedWarnings(unplaced, this.#networks.size)]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#work
    for (const forward of this.#forwards.values()) if (typeof forward !== 'string') await forward[Symbol.asyncDispose]()
    this.#forwards.clear()
    this.dialer[Symbol.dispose]()
    this.flows[Symbol.dispose]()
  }

  #declare(): void {
    const offers = this.#declared.map(parseOffer)
    for (const { name, offers: own } of this.#networks.values()) {
      own.declare(offers.filter(({ network }) => this.#placeOf(network) === name).map(offeringOf))
    }
  }

  /** The network that is meant; without a name the only one. */
  #placeOf(network: string | undefined): string | undefined {
    if (network !== undefined) return this.#networks.has(network) ? network : undefined
    const [only, ...others] = this.#networks.keys()
    return others.length === 0 ? only : undefined
  }

  /** As they were a moment ago. */
  #knownLinks(): ReadonlyMap<string, Link> {
    const now = performance.now()
    if (now - this.#linksMs > LINKS_KEPT_MS) {
      this.#links = new Map(this.#deps.host.links().map((link) => [link.peerId, link]))
      this.#linksMs = now
    }
    return this.#links
  }
}

/** An offer as the agent holds it. */
export function offeringOf(written: Omit<Offering, 'check'> & { check: string }): Offering {
  const { name, host, port, proto, check, labels, weight, proxyProtocol } = written
  return { name, host, port, proto, check: checkIn(check) ?? { kind: 'none' }, labels, weight, proxyProtocol }
}
