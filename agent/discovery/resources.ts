/**
 * Services as resources of xDS v3: a cluster and its endpoints for each, a listener and routes for programs that are their own proxy (gRPC), and
 * one listener with all http services for Envoy, told apart by the Host that is asked for.
 *
 * By name any service can be had, by whatever name leads to it (`web` where that is clear). Without names: all of them.
 */
import { createHash } from 'node:crypto'
import type { Directory, Endpoint, Service } from './directory.ts'
import type { Json } from './protobuf.ts'
import { CONNECTION_MANAGER, type ResourceKind, ROUTER, TYPE_URLS } from './xds-schema.ts'

/** Where Envoy listens for all http services when it takes its listeners from here. */
const ENVOY_LISTENER = { name: 'undernet', address: '127.0.0.1', port: 7480 } as const
/** How Envoy's own configuration calls this agent when it asks by REST: it says that as the Host, which the server takes from loopback only. */
const REST_CLUSTER = 'localhost'
/** A tunnel over several instances takes longer than a connection. */
const CONNECT_TIMEOUT = '15s'
/** As often as Envoy asks by REST; a change is to be known within a second. */
const REFRESH_DELAY = '0.5s'

/** `ads` for those who asked over a stream. */
export type Way = 'ads' | 'rest'
type Resource = Json & { '@type': string }
export type Snapshot = { version: string; resources: Resource[] }

/** Resources of one kind: those that are named, or all; the version changes when, and only when, they do. */
export async function snapshotOf(
  kind: ResourceKind,
  names: readonly string[] | 'all',
  way: Way,
  directory: Directory,
): Promise<Snapshot> {
  const resources = names === 'all' ? await allOf(kind, way, directory) : await namedOf(kind, names, way, directory)
  const version = createHash('sha256').update(JSON.stringify(resources)).digest('hex').slice(0, 16)
  return { version, resources }
}

async function allOf(kind: ResourceKind, way: Way, directory: Directory): Promise<Resource[]> {
  const services = directory.list()
  if (kind === 'listeners') return [envoyListener(way)]
  if (kind === 'routes') return [envoyRoutes(services)]
  return await Promise.all(services.map((service) => resourceOf(kind, service.name, service, way, directory)))
}

async function namedOf(
  kind: ResourceKind,
  names: readonly string[],
  way: Way,
  directory: Directory,
): Promise<Resource[]> {
  const found: Resource[] = []
  for (const name of names) {
    if (name === ENVOY_LISTENER.name && kind === 'listeners') found.push(envoyListener(way))
    else if (name === ENVOY_LISTENER.name && kind === 'routes') found.push(envoyRoutes(directory.list()))
    else {
      const service = directory.find(name)
      if (service !== undefined) found.push(await resourceOf(kind, name, service, way, directory))
      // What is gone has no endpoints: a client goes on with those that it has when it is told nothing.
      else if (kind === 'endpoints') found.push({ '@type': TYPE_URLS.endpoints, cluster_name: name, endpoints: [] })
    }
  }
  return found
}

/** Under the name by which it was asked for. */
async function resourceOf(
  kind: ResourceKind,
  name: string,
  service: Service,
  way: Way,
  directory: Directory,
): Promise<Resource> {
  const type = { '@type': TYPE_URLS[kind] }
  if (kind === 'endpoints') {
    const endpoints = await directory.endpointsOf(service)
    return { ...type, cluster_name: name, endpoints: localitiesOf(endpoints, directory.zoneIn(service.network)) }
  }
  if (kind === 'clusters') {
    return {
      ...type,
      name,
      type: 'EDS',
      eds_cluster_config: { eds_config: configSource(way) },
      connect_timeout: CONNECT_TIMEOUT,
      lb_policy: 'ROUND_ROBIN',
    }
  }
  if (kind === 'listeners') return { ...type, name, api_listener: { api_listener: connectionManager(name, way) } }
  return { ...type, name, virtual_hosts: [virtualHost(name, ['*'])] }
}

/** Those of this node's zone first; the others when none of them is left. */
function localitiesOf(endpoints: readonly Endpoint[], zone: string | undefined): Json[] {
  // Those without weight are for when there are no others.
  const weighted = endpoints.filter(({ instance }) => instance.weight > 0)
  const byZone = Map.groupBy(weighted.length > 0 ? weighted : endpoints, ({ instance }) => instance.zone ?? '')
  const isSplit = zone !== undefined && byZone.has(zone) && byZone.size > 1
  const groups = [...byZone].sort(([a], [b]) => (a < b ? -1 : 1))
  return groups.map(([name, members]) => ({
    locality: { zone: name },
    lb_endpoints: members.map(lbEndpoint),
    load_balancing_weight: members.reduce((sum, { instance }) => sum + Math.max(1, instance.weight), 0),
    priority: isSplit && name !== zone ? 1 : 0,
  }))
}

function lbEndpoint({ instance, address }: Endpoint): Json {
  return {
    endpoint: { address: socketAddress(address, instance.port) },
    health_status: instance.state === 'healthy' ? 'HEALTHY' : 'UNKNOWN',
    load_balancing_weight: Math.max(1, instance.weight),
  }
}

function envoyListener(way: Way): Resource {
  const filter = {
    name: 'envoy.filters.network.http_connection_manager',
    typed_config: connectionManager(ENVOY_LISTENER.name, way),
  }
  return {
    '@type': TYPE_URLS.listeners,
    name: ENVOY_LISTENER.name,
    address: socketAddress(ENVOY_LISTENER.address, ENVOY_LISTENER.port),
    filter_chains: [{ filters: [filter] }],
  }
}

function envoyRoutes(services: readonly Service[]): Resource {
  const hosts = services.filter(({ isHttp }) => isHttp).map(({ name }) => virtualHost(name, [name, `${name}:*`]))
  return { '@type': TYPE_URLS.routes, name: ENVOY_LISTENER.name, virtual_hosts: hosts }
}

function virtualHost(cluster: string, domains: string[]): Json {
  // No time limit of Envoy's own (15 s): an answer may be a stream.
  return { name: cluster, domains, routes: [{ match: { prefix: '/' }, route: { cluster, timeout: '0s' } }] }
}

function connectionManager(routes: string, way: Way): Resource {
  return {
    '@type': CONNECTION_MANAGER,
    stat_prefix: routes,
    rds: { config_source: configSource(way), route_config_name: routes },
    http_filters: [{ name: 'envoy.filters.http.router', typed_config: { '@type': ROUTER } }],
    upgrade_configs: [{ upgrade_type: 'websocket' }],
  }
}

function configSource(way: Way): Json {
  if (way === 'ads') return { ads: {}, resource_api_version: 'V3' }
  const source = { api_type: 'REST', cluster_names: [REST_CLUSTER], refresh_delay: REFRESH_DELAY }
  return { api_config_source: { ...source, transport_api_version: 'V3' }, resource_api_version: 'V3' }
}

function socketAddress(address: string, port: number): Json {
  return { socket_address: { address, port_value: port } }
}
