/**
 * What `agent netcheck` finds: how this node is reached, and reaches others. Members are asked where its datagrams come from, the router
 * whether it would let ports in, the resolver whether it answers; all at once, each within some seconds. Nothing outside is asked: who is in
 * no network learns what the machine itself and its router say.
 */
import { Resolver } from 'node:dns/promises'
import { networkInterfaces } from 'node:os'
import { multiaddr } from '@multiformats/multiaddr'
import type { NetcheckApi } from '../api/netcheck-api.ts'
import type { AddressView, NetcheckResult, PortMappingView, RelayView } from '../api/netcheck-contract.ts'
import { reasonOf } from '../error.ts'
import { hostIn, isNear, isPublicHost } from '../mesh/addresses.ts'
import type { Link } from '../mesh/connections.ts'
import { defaultGateway } from '../mesh/gateway.ts'
import type { Host } from '../mesh/host.ts'
import { hasDefaultRoute6 } from '../mesh/network-change.ts'
import { connectRouter, type MappingView } from '../mesh/port-mapping.ts'
import type { NatKind, Reflection, Reflections } from '../mesh/reflections.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { OpenNetwork } from './open-network.ts'
import type { Reach } from './reach.ts'

const ASK_MS_MAX = 6_000
const DNS_MS_MAX = 2_000
/** A record that every resolver knows, and that tells nobody anything. */
const DNS_QUESTION = '.'
/** Answers of a resolver that is there, and has no Internet or no wish. */
const DNS_ANSWERS = new Set(['ENODATA', 'ENOTFOUND', 'EREFUSED', 'ESERVFAIL', 'ENOTIMP', 'EFORMERR'])
const RELAYS_MAX = 16
const DIALLERS_MAX = 8
/** As `agent status` warns: leases are lost by more. */
const CLOCK_MS_MAX = 30_000

export type NetcheckDeps = {
  links: () => Link[]
  reflect: (signal: AbortSignal) => Promise<Reflection>
  mapping: () => MappingView
  /** Direct neighbours that carry, of all networks. */
  relays: () => Omit<RelayView, 'rttMs' | 'name'>[]
  nameOf: (peerId: string) => string | null
  clockOffsetMs: () => number | undefined
  /** For tests. */
  gateway?: typeof defaultGateway
  connect?: typeof connectRouter
  resolve?: (signal: AbortSignal) => Promise<NetcheckResult['dns']>
}

export class NodeNetcheck implements NetcheckApi {
  readonly #deps: NetcheckDeps

  constructor(deps: NetcheckDeps) {
    this.#deps = deps
  }

  async check(signal: AbortSignal): Promise<NetcheckResult> {
    const { reflect, clockOffsetMs, gateway = defaultGateway, resolve = askResolver } = this.#deps
    const limited = AbortSignal.any([signal, AbortSignal.timeout(ASK_MS_MAX)])
    const [reflection, portMapping, route, dns] = await Promise.all([
      reflect(limited).catch(() => undefined),
      this.#portMapping(limited),
      gateway(),
      resolve(limited),
    ])
    signal.throwIfAborted()
    const found: Omit<NetcheckResult, 'advice'> = {
      ipv4: { addresses: addressesOf('IPv4'), gateway: route?.address ?? null },
      ipv6: { addresses: addressesOf('IPv6'), hasRoute: hasDefaultRoute6() },
      nat: this.#nat(reflection),
      udp: udpOf(reflection),
      portMapping,
      reachable: this.#reachable(),
      relays: this.#relays(),
      clockOffsetMs: clockOffsetMs() ?? null,
      dns,
    }
    return { ...found, advice: adviceFor(found) }
  }

  #nat(reflection: Reflection | undefined): NetcheckResult['nat'] {
    const { kind = 'unknown' as NatKind, seen, mappings = [] } = reflection ?? {}
    const reflections = mappings.map((one) => ({
      peerId: one.reflector,
      name: this.#deps.nameOf(one.reflector),
      seen: placeText(one.seen),
      rttMs: one.rttMs,
    }))
    return { kind, seen: seen === undefined ? null : placeText(seen), reflections }
  }

  /** As it is; where it is off, whether the router would. */
  async #portMapping(signal: AbortSignal): Promise<PortMappingView> {
    const { mapping, gateway = defaultGateway, connect = connectRouter } = this.#deps
    const { state, ports, ...view } = mapping()
    const said = {
      state,
      gateway: view.gateway ?? null,
      protocol: view.protocol ?? null,
      externalAddress: view.externalAddress ?? null,
      isPublic: view.isPublic ?? null,
      ports: ports.map(({ transport, port, externalPort }) => ({ transport, port, externalPort })),
      reason: view.reason ?? null,
    }
    if (state !== 'off') return said
    const route = await gateway()
    if (route === undefined) return { ...said, reason: 'there is no default gateway (IPv4)' }
    try {
      using router = await connect(route, signal)
      const externalAddress = await router.externalAddress(signal)
      const { protocol } = router
      return { ...said, gateway: route.address, protocol, externalAddress, isPublic: isPublicHost(externalAddress) }
    } catch (error) {
      return { ...said, gateway: route.address, reason: reasonOf(error) }
    }
  }

  /** Who came from beyond the networks that this machine is in itself has proven the way. */
  #reachable(): NetcheckResult['reachable'] {
    const by = this.#deps.links().flatMap(({ peerId, address, direction, path }) => {
      const host = hostIn(multiaddr(address))
      if (direction !== 'inbound' || path !== 'direct' || host === undefined || isNear(host)) return []
      return [{ peerId, name: this.#deps.nameOf(peerId), address: host }]
    })
    return { state: by.length > 0 ? 'yes' : 'unknown', by: by.slice(0, DIALLERS_MAX) }
  }

  #relays(): RelayView[] {
    const rtts = new Map(this.#deps.links().map(({ peerId, rttMs }) => [peerId, rttMs ?? null]))
    const all = this.#deps.relays().map((one) => ({
      ...one,
      name: this.#deps.nameOf(one.peerId),
      rttMs: rtts.get(one.peerId) ?? null,
    }))
    return all.toSorted((a, b) => (a.rttMs ?? Infinity) - (b.rttMs ?? Infinity)).slice(0, RELAYS_MAX)
  }
}

function udpOf(reflection: Reflection | undefined): NetcheckResult['udp'] {
  if (reflection?.kind === 'no-udp') return 'blocked'
  return reflection !== undefined && reflection.mappings.length > 0 ? 'works' : 'unknown'
}

function placeText({ address, port }: { address: string; port: number }): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

/** Loopback and link-local ones are no way to anybody else. */
function addressesOf(family: 'IPv4' | 'IPv6'): AddressView[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  return all
    .filter((one) => one.family === family && !one.internal && !one.address.startsWith('fe80:'))
    .map(({ address }) => ({ address, scope: isPublicHost(address) ? 'public' : 'private' }))
}

async function askResolver(signal: AbortSignal): Promise<NetcheckResult['dns']> {
  const resolver = new Resolver({ timeout: DNS_MS_MAX, tries: 1 })
  const servers = resolver.getServers()
  const startMs = performance.now()
  const end = () => resolver.cancel()
  signal.addEventListener('abort', end, { once: true })
  try {
    await resolver.resolveNs(DNS_QUESTION)
    return { state: 'ok', servers, ms: performance.now() - startMs, reason: null }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? ''
    const ms = performance.now() - startMs
    if (DNS_ANSWERS.has(code)) return { state: 'ok', servers, ms, reason: `it answers ${code}` }
    return { state: 'failed', servers, ms: null, reason: `no answer (${code})` }
  } finally {
    signal.removeEventListener('abort', end)
  }
}

/** Exported for tests. */
export function adviceFor(found: Omit<NetcheckResult, 'advice'>): string[] {
  const { ipv4, ipv6, nat, udp, portMapping, relays, reachable, clockOffsetMs, dns } = found
  const advice: string[] = []
  if (ipv4.addresses.length + ipv6.addresses.length === 0)
    return ['This machine has no network: agents on it reach each other, and nobody else.']
  if (relays.length === 0)
    advice.push(
      'No member of a closed network is connected: they tell what router is between, and carry. Make a network with `agent network create`, or join one with `agent join`.',
    )
  else if (!relays.some(({ allowed }) => allowed))
    advice.push('No member lets this node use it as relay: that needs the grant relay:use (`agent policy show`).')
  if (udp === 'blocked')
    advice.push(
      'UDP does not come through: what cannot be dialled by TCP goes through a relay. A firewall may allow it.',
    )
  if (nat.kind === 'symmetric')
    advice.push('This router gives every destination another port: between two such routers, all goes through a relay.')
  const { state, protocol, isPublic } = portMapping
  if (isPublic === false)
    advice.push(
      'The router has no address on the Internet itself: there is another one before it, and mapped ports do not help.',
    )
  else if (state === 'off' && protocol !== null && reachable.state !== 'yes')
    advice.push(
      'The router would let this node’s ports in: set port_mapping = true in the configuration, and start again.',
    )
  if (clockOffsetMs !== null && Math.abs(clockOffsetMs) >= CLOCK_MS_MAX)
    advice.push('Set the clock, best by NTP (`timedatectl set-ntp true`): it is too far from that of the others.')
  if (dns.state === 'failed')
    advice.push('No resolver answers: addresses with names (/dns4/...) cannot be dialled. See /etc/resolv.conf.')
  return advice
}

type Parts = {
  host: Pick<Host, 'links' | 'isDirect'>
  reflections: Pick<Reflections, 'ask'>
  reach: Pick<Reach, 'mapping'>
  closed: Pick<ClosedNetworks, 'list' | 'clockOffsetMs'>
  openNetwork: Pick<OpenNetwork, 'nodes' | 'replicator'> | undefined
}

/** Of a running node. */
export function netcheckOf({ host, reflections, reach, closed, openNetwork }: Parts): NodeNetcheck {
  const networks = () => closed.list()
  const nameOf = (peerId: string) =>
    networks()
      .map(({ members }) => members.get(peerId)?.name)
      .find((name) => name !== undefined) ??
    openNetwork?.nodes.get(peerId)?.name ??
    null
  return new NodeNetcheck({
    links: () => host.links(),
    reflect: (signal) => reflections.ask(signal),
    mapping: () => reach.mapping(),
    relays: () =>
      networks().flatMap((network) =>
        network
          .connected()
          .filter((peerId) => host.isDirect(peerId))
          .flatMap((peerId) => {
            const { membership, members } = network
            const member = members.get(peerId)
            if (member === undefined) return []
            const { allowed } = membership.decide(membership.self, member, 'relay:use')
            return [{ peerId, network: membership.name, allowed }]
          }),
      ),
    nameOf,
    clockOffsetMs: () => openNetwork?.replicator.clockOffsetMs() ?? closed.clockOffsetMs(),
  })
}
