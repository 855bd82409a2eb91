/**
 * The messages of xDS v3 that are spoken here, field by field as in the .proto files of Envoy's data-plane API; a test compares them with
 * those files. Fields that are never sent are left out.
 */
import type { AnyTypes, Enum, Message } from './protobuf.ts'

const message = (fields: Message['fields']): Message => ({ fields })
const enumeration = (...names: string[]): Enum => ({
  values: Object.fromEntries(names.map((name, nth) => [name, nth])),
})

export const TYPE_URLS = {
  clusters: 'type.googleapis.com/envoy.config.cluster.v3.Cluster',
  endpoints: 'type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment',
  listeners: 'type.googleapis.com/envoy.config.listener.v3.Listener',
  routes: 'type.googleapis.com/envoy.config.route.v3.RouteConfiguration',
} as const
export type ResourceKind = keyof typeof TYPE_URLS
/** In the order in which they are to be sent, so that nothing points at what is not there yet. */
export const RESOURCE_KINDS = Object.keys(TYPE_URLS) as ResourceKind[]
export const CONNECTION_MANAGER =
  'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager'
export const ROUTER = 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router'

const locality = message({
  region: { number: 1, type: 'string' },
  zone: { number: 2, type: 'string' },
  sub_zone: { number: 3, type: 'string' },
})
const socketAddress = message({
  address: { number: 2, type: 'string' },
  port_value: { number: 3, type: 'uint32' },
})
const address = message({ socket_address: { number: 1, type: socketAddress } })
const apiVersion = enumeration('AUTO', 'V2', 'V3')
const configSource = message({
  api_config_source: {
    number: 2,
    type: message({
      api_type: { number: 1, type: { values: { REST: 1, GRPC: 2 } } },
      cluster_names: { number: 2, type: 'string', many: true },
      refresh_delay: { number: 3, type: 'duration' },
      transport_api_version: { number: 8, type: apiVersion },
    }),
  },
  ads: { number: 3, type: message({}) },
  resource_api_version: { number: 6, type: apiVersion },
})

const cluster = message({
  name: { number: 1, type: 'string' },
  type: { number: 2, type: enumeration('STATIC', 'STRICT_DNS', 'LOGICAL_DNS', 'EDS', 'ORIGINAL_DST') },
  eds_cluster_config: {
    number: 3,
    type: message({ eds_config: { number: 1, type: configSource }, service_name: { number: 2, type: 'string' } }),
  },
  connect_timeout: { number: 4, type: 'duration' },
  lb_policy: { number: 6, type: enumeration('ROUND_ROBIN', 'LEAST_REQUEST', 'RING_HASH', 'RANDOM') },
})

const lbEndpoint = message({
  endpoint: {
    number: 1,
    type: message({ address: { number: 1, type: address }, hostname: { number: 3, type: 'string' } }),
  },
  health_status: { number: 2, type: enumeration('UNKNOWN', 'HEALTHY', 'UNHEALTHY', 'DRAINING', 'TIMEOUT', 'DEGRADED') },
  load_balancing_weight: { number: 4, type: 'wrapped' },
})
const loadAssignment = message({
  cluster_name: { number: 1, type: 'string' },
  endpoints: {
    number: 2,
    many: true,
    type: message({
      locality: { number: 1, type: locality },
      lb_endpoints: { number: 2, type: lbEndpoint, many: true },
      load_balancing_weight: { number: 3, type: 'wrapped' },
      priority: { number: 5, type: 'uint32' },
    }),
  },
})

const route = message({
  match: { number: 1, type: message({ prefix: { number: 1, type: 'string' } }) },
  route: {
    number: 2,
    type: message({ cluster: { number: 1, type: 'string' }, timeout: { number: 8, type: 'duration' } }),
  },
})
const routeConfiguration = message({
  name: { number: 1, type: 'string' },
  virtual_hosts: {
    number: 2,
    many: true,
    type: message({
      name: { number: 1, type: 'string' },
      domains: { number: 2, type: 'string', many: true },
      routes: { number: 3, type: route, many: true },
    }),
  },
})

const typedConfig = (number: number) =>
  message({ name: { number: 1, type: 'string' }, typed_config: { number, type: 'any' } })
const connectionManager = message({
  stat_prefix: { number: 2, type: 'string' },
  rds: {
    number: 3,
    type: message({
      config_source: { number: 1, type: configSource },
      route_config_name: { number: 2, type: 'string' },
    }),
  },
  http_filters: { number: 5, type: typedConfig(4), many: true },
  upgrade_configs: { number: 23, type: message({ upgrade_type: { number: 1, type: 'string' } }), many: true },
})
const listener = message({
  name: { number: 1, type: 'string' },
  address: { number: 2, type: address },
  filter_chains: {
    number: 3,
    many: true,
    type: message({ filters: { number: 3, type: typedConfig(4), many: true } }),
  },
  api_listener: { number: 19, type: message({ api_listener: { number: 1, type: 'any' } }) },
})

export const ANY_TYPES: AnyTypes = {
  [TYPE_URLS.clusters]: cluster,
  [TYPE_URLS.endpoints]: loadAssignment,
  [TYPE_URLS.listeners]: listener,
  [TYPE_URLS.routes]: routeConfiguration,
  [CONNECTION_MANAGER]: connectionManager,
  [ROUTER]: message({}),
}

export const discoveryRequest = message({
  version_info: { number: 1, type: 'string' },
  node: {
    number: 2,
    type: message({ id: { number: 1, type: 'string' }, user_agent_name: { number: 6, type: 'string' } }),
  },
  resource_names: { number: 3, type: 'string', many: true },
  type_url: { number: 4, type: 'string' },
  response_nonce: { number: 5, type: 'string' },
  error_detail: {
    number: 6,
    type: message({ code: { number: 1, type: 'uint32' }, message: { number: 2, type: 'string' } }),
  },
})

export const discoveryResponse = message({
  version_info: { number: 1, type: 'string' },
  resources: { number: 2, type: 'any', many: true },
  type_url: { number: 4, type: 'string' },
  nonce: { number: 5, type: 'string' },
})
