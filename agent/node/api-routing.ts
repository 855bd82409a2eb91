/** Services as the local API has them (agent/api/service-contract.ts): offers, forwards, traces, open tunnels. */
import { once } from 'node:events'
import type { ServiceApi } from '../api/service-api.ts'
import type {
  AddServiceRequest,
  ConnectionList,
  DrainRequest,
  ForwardEvent,
  ForwardRequest,
  InstanceView,
  OfferView,
  ServiceDetail,
  ServiceList,
  ServiceView,
  TraceResult,
  TraceStep,
} from '../api/service-contract.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { checkText } from '../routing/health.ts'
import type { Offer } from '../routing/offers.ts'
import type { Instance, Resolved } from '../routing/services.ts'
import { type NodeRouting, offeringOf, type Routed } from './routing.ts'

/** For all steps together. */
const TRACE_MS_MAX = 20_000
/** Refused connections of a forward are told to whoever watches it, and no faster than somebody reads. */
const TELL_MS_MIN = 1_000

export type RoutingApiDeps = {
  routing: NodeRouting
  self: string
  /** The local name of a network that a person named. @throws {AgentError} `not-found` */
  nameOf: (network: string | undefined) => string | undefined
  /** Connects to a peer where it is not, and measures the round trip. */
  ping: (peerId: string, signal: AbortSignal) => Promise<{ rttMs: number; address: string }>
  log: Log
}

export class NodeServices implements ServiceApi {
  readonly #deps: RoutingApiDeps

  constructor(deps: RoutingApiDeps) {
    this.#deps = deps
  }

  services(network?: string): ServiceList {
    const only = this.#deps.nameOf(network)
    const shown = this.#deps.routing.networks().filter(({ name }) => only === undefined || name === only)
    const services = shown.flatMap((one) => {
      const names = new Set([...one.instances.services(), ...one.offers.list().map(({ name }) => name)])
      return [...names].flatMap((name) => this.#view(one, name) ?? [])
    })
    return { services: services.sort((a, b) => a.network.localeCompare(b.network) || a.name.localeCompare(b.name)) }
  }

  /** Of all networks. */
  instances(): InstanceView[] {
    return this.#deps.routing.services.list().flatMap(({ instances }) => instances.map((one) => this.#instance(one)))
  }

  service(name: string, network?: string): ServiceDetail {
    const only = this.#deps.nameOf(network)
    const found = this.#deps.routing.services.resolve(only === undefined ? name : `${name}.${only}`)
    const routed = found && this.#deps.routing.get(found.network)
    if (found !== undefined && routed !== undefined) return this.#detail(routed, found.service, found)
    const offering = this.#offering(name, only)
    if (offering !== undefined) return this.#detail(offering, name)
    throw notFound(name)
  }

  add(request: AddServiceRequest): ServiceDetail {
    const routed = this.#place(request.network)
    const { name, host = '127.0.0.1', port, proto = 'tcp', labels = {}, weight = 1, proxyProtocol = false } = request
    const check = request.check ?? (proto === 'udp' ? 'none' : 'tcp')
    if (proto === 'udp' && (check !== 'none' || proxyProtocol))
      throw new AgentError('usage', 'a service of udp can be neither checked nor told who calls')
    const unseen = unseenIn(routed, name)
    if (unseen !== undefined) {
      throw new AgentError('not-allowed', `nobody in "${routed.name}" would see it: ${unseen}`, {
        next: 'The policy decides: `agent policy show`.',
      })
    }
    routed.offers.add(offeringOf({ name, host, port, proto, check, labels, weight, proxyProtocol }))
    this.#deps.log.info({ service: name, network: routed.name }, 'service.added')
    return this.#detail(routed, name)
  }

  drain({ name, undo = false, network }: DrainRequest): ServiceDetail {
    const routed = this.#offeringOf(name, network)
    routed.offers.drain(name, !undo)
    this.#deps.log.info({ service: name, network: routed.name, draining: !undo }, 'service.drained')
    return this.#detail(routed, name)
  }

  remove(name: string, network?: string): ServiceDetail {
    const routed = this.#offeringOf(name, network)
    const before = this.#detail(routed, name)
    routed.offers.remove(name)
    this.#deps.log.info({ service: name, network: routed.name }, 'service.removed')
    return before
  }

  connections(): ConnectionList {
    const now = performance.now()
    const seconds = (sinceMs: number) => Math.max(0, Math.round((now - sinceMs) / 1_000))
    const connections = this.#deps.routing.flows.list().map((flow) => ({
      direction: flow.direction,
      network: flow.network,
      service: flow.service,
      peerId: flow.peerId,
      node: flow.node,
      carrier: flow.carrier,
      path: flow.path,
      rule: flow.rule ?? null,
      seconds: seconds(flow.openedMs),
      idleSeconds: seconds(flow.stream.activeMs),
      sentBytes: flow.stream.sentBytes,
      receivedBytes: flow.stream.receivedBytes,
    }))
    return { connections }
  }

  async trace(name: string, signal: AbortSignal): Promise<TraceResult> {
    const steps: TraceStep[] = []
    const limited = AbortSignal.any([signal, AbortSignal.timeout(TRACE_MS_MAX)])
    const step = async <T>(what: TraceStep['step'], work: () => Promise<[T, string]> | [T, string]): Promise<T> => {
      const startMs = performance.now()
      const done = (ok: boolean, text: string) => steps.push({ step: what, ms: performance.now() - startMs, ok, text })
      try {
        const [value, text] = await work()
        done(true, text)
        return value
      } catch (error) {
        done(false, reasonOf(error))
        throw error
      }
    }
    try {
      await this.#trace(name, step, limited)
      return { name, ok: true, steps }
    } catch (error) {
      signal.throwIfAborted()
      if (steps.at(-1)?.ok !== false) throw error
      return { name, ok: false, steps }
    }
  }

  async #trace(
    name: string,
    step: <T>(what: TraceStep['step'], work: () => Promise<[T, string]> | [T, string]) => Promise<T>,
    signal: AbortSignal,
  ): Promise<void> {
    const { routing, ping, self } = this.#deps
    const found = await step('resolve', () => {
      const resolved = routing.services.resolve(name)
      if (resolved === undefined) throw notFound(name)
      const states = resolved.instances.map(({ node, state }) => `${node} ${state}`).join(', ')
      return [resolved, `${resolved.service}.${resolved.network}.internal: ${states}`]
    })
    const { network, service, node } = found
    const target = { network, service, ...(node !== undefined && { node }) }
    const instance = await step('choose', () => {
      const [first] = routing.dialer.candidates(target)
      if (first === undefined) throw notFound(name)
      const rtt = first.rttMs === undefined ? 'not connected yet' : `${first.rttMs.toFixed(1)} ms away`
      return [first, `${first.node} (${first.id}), ${first.peerId === self ? 'this node' : rtt}`]
    })
    if (instance.peerId !== self) {
      await step('rule', () => [undefined, this.#ruleFor(instance)])
      await step('reach', async () => {
        const { rttMs, address } = await ping(instance.peerId, signal)
        return [undefined, `${routing.linkOf(instance.peerId).path}, ${address}, round trip ${rttMs.toFixed(2)} ms`]
      })
    }
    await step('open', async () => {
      const isDatagrams = instance.proto === 'udp'
      const tunnel = isDatagrams
        ? await routing.dialer.openDatagrams(target, signal)
        : await routing.dialer.open(target, signal)
      const { path, instance: taken } = tunnel
      if ('close' in tunnel) tunnel.close()
      else tunnel.destroy()
      return [undefined, `${taken.node} took it, ${path}`]
    })
  }

  /** As this node sees it; the other one decides by the same document. */
  #ruleFor({ network, peerId, service }: Instance): string {
    const membership = this.#deps.routing.get(network)?.membership
    const member = this.#deps.routing.memberIn(network, peerId)
    if (membership === undefined || member === undefined) throw new AgentError('failed', `${peerId} is no member`)
    const decision = membership.decide(membership.self, member, `service:connect ${service}`)
    if (!decision.allowed) throw new AgentError('not-allowed', decision.missing)
    return decision.rule.text
  }

  async forward(
    { name, host = '127.0.0.1', port, sticky = false }: ForwardRequest,
    emit: (event: ForwardEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const { routing } = this.#deps
    const wanted = port ?? routing.services.resolve(name)?.instances[0]?.port
    if (wanted === undefined) throw notFound(name)
    let toldMs = Number.NEGATIVE_INFINITY
    const onRefused = (error: Error) => {
      if (performance.now() - toldMs < TELL_MS_MIN) return
      toldMs = performance.now()
      emit({ type: 'refused', message: error.message })
    }
    const options = { name, host, isSticky: sticky, onRefused }
    await using forward = await routing.forward({ ...options, port: wanted }).catch((error: unknown) => {
      // Nobody asked for this very port: any other will do.
      if (port !== undefined || !(error instanceof AgentError)) throw error
      return routing.forward({ ...options, port: 0 })
    })
    emit({ type: 'listening', name, ...forward.address })
    if (!signal.aborted) await once(signal, 'abort')
  }

  #detail(routed: Routed, name: string, found?: Resolved): ServiceDetail {
    const instances = found?.instances ?? routed.instances.of(name)
    const view = this.#view(routed, name)
    if (view === undefined) throw notFound(name)
    return { ...view, instances: instances.map((one) => this.#instance(one)) }
  }

  #view(routed: Routed, name: string): ServiceView | undefined {
    const instances = routed.instances.of(name)
    const offer = routed.offers.get(name)
    const proto = offer?.proto ?? instances[0]?.proto
    if (proto === undefined) return undefined
    return {
      network: routed.name,
      name,
      address: `${name}.${routed.name}.internal`,
      proto,
      instanceCount: instances.length,
      healthyCount: instances.filter(({ state }) => state === 'healthy').length,
      offer: offer === undefined ? null : offerView(offer, unseenIn(routed, name)),
    }
  }

  #instance({ zone, rttMs, labels, ...rest }: Instance): InstanceView {
    return {
      ...rest,
      labels: { ...labels },
      zone: zone ?? null,
      rttMs: rttMs ?? null,
      own: rest.peerId === this.#deps.self,
    }
  }

  /** Where to offer. @throws {AgentError} `usage`, `not-found` */
  #place(network: string | undefined): Routed {
    const named = this.#deps.nameOf(network)
    const all = this.#deps.routing.networks().filter(({ name }) => named === undefined || name === named)
    const [only, ...others] = all
    if (only !== undefined && others.length === 0) return only
    if (only === undefined) {
      throw new AgentError('usage', 'this node is in no closed network, so there is nobody to offer a service to', {
        next: 'Make one with `agent network create NAME`, or join one with `agent join`.',
      })
    }
    throw new AgentError('usage', `this node is in ${all.length} networks: ${all.map(({ name }) => name).join(', ')}`, {
      next: 'Say with --network in which to offer it.',
    })
  }

  #offeringOf(name: string, network: string | undefined): Routed {
    const routed = this.#offering(name, this.#deps.nameOf(network))
    if (routed !== undefined) return routed
    throw new AgentError('not-found', `this node offers no service ${JSON.stringify(name)}`, {
      next: '`agent service list` shows what it offers.',
    })
  }

  /** The network that this node offers it in. @throws {AgentError} `usage` for several */
  #offering(name: string, network: string | undefined): Routed | undefined {
    const all = this.#deps.routing
      .networks()
      .filter((one) => (network === undefined || one.name === network) && one.offers.get(name) !== undefined)
    if (all.length <= 1) return all[0]
    throw new AgentError('usage', `this node offers ${name} in ${all.length} networks`, {
      next: `Say in which with --network: ${all.map((one) => one.name).join(' or ')}.`,
    })
  }
}

/** Why no member would see an offer of this node; undefined when this node itself, or a member that is known, would. */
function unseenIn({ membership, members }: Routed, service: string): string | undefined {
  const verb = `service:offer ${service}`
  const own = membership.decide(membership.self, membership.self, verb)
  const isSeen = members.list().some((member) => membership.decide(membership.self, member, verb).allowed)
  return own.allowed || isSeen ? undefined : own.missing
}

function offerView(offer: Offer, unseen: string | undefined): OfferView {
  const { host, port, check, proxyProtocol, isDeclared, state, why } = offer
  return {
    host,
    port,
    check: checkText(check),
    proxyProtocol,
    declared: isDeclared,
    state,
    ...(why !== undefined && { why }),
    ...(unseen !== undefined && { unseen }),
  }
}

function notFound(name: string): AgentError {
  return new AgentError('not-found', `nobody offers a service ${JSON.stringify(name)} here`, {
    next: '`agent service list` shows what there is.',
  })
}
