/**
 * The contract about services: what is offered where, forwards, tunnels that are open, traces. As contract.ts, which it is a part of.
 */
type Proto = 'tcp' | 'udp' | 'http'
type InstanceState = 'healthy' | 'ill' | 'draining' | 'unknown'

/** One node's offer, as it stands now. */
export type InstanceView = {
  /** Content address of the offer. */
  id: string
  /** Name of the network. */
  network: string
  service: string
  peerId: string
  /** Name of the member. */
  node: string
  proto: Proto
  /** Where the application listens on its node. */
  port: number
  labels: Record<string, string>
  weight: number
  state: InstanceState
  zone: string | null
  /** null while it is not connected, or not measured. */
  rttMs: number | null
  /** Of this node. */
  own: boolean
}

/** What this node offers itself. */
export type OfferView = {
  host: string
  port: number
  /** `tcp`, `http:/path` or `none`. */
  check: string
  proxyProtocol: boolean
  /** By the configuration. */
  declared: boolean
  state: InstanceState
  /** Why it is ill. */
  why?: string
  /** Why nobody else sees it. */
  unseen?: string
}

export type ServiceView = {
  network: string
  name: string
  /** `web.home.internal`. */
  address: string
  proto: Proto
  instanceCount: number
  healthyCount: number
  offer: OfferView | null
}
export type ServiceList = { services: ServiceView[] }
export type ServiceDetail = ServiceView & { instances: InstanceView[] }

export type AddServiceRequest = {
  name: string
  host?: string
  port: number
  proto?: Proto
  check?: string
  labels?: Record<string, string>
  weight?: number
  proxyProtocol?: boolean
  network?: string
}
export type DrainRequest = { name: string; undo?: boolean; network?: string }

export type ConnectionView = {
  /** `out`: this node's users at another's service; `in`: the other way round. */
  direction: 'in' | 'out'
  network: string
  service: string
  peerId: string
  node: string
  carrier: 'tcp' | 'udp'
  /** `direct`, `relay`, `hops`, `local`. */
  path: string
  /** The grant that allowed it; null where the other side decided. */
  rule: string | null
  seconds: number
  idleSeconds: number
  sentBytes: number
  receivedBytes: number
}
export type ConnectionList = { connections: ConnectionView[] }

/** What was done for one question, and how long it took. */
export type TraceStep = {
  step: 'resolve' | 'rule' | 'choose' | 'reach' | 'open'
  ms: number
  ok: boolean
  text: string
}
export type TraceResult = { name: string; ok: boolean; steps: TraceStep[] }

/** `host` is loopback and `port` the service's, or any, when not said. */
export type ForwardRequest = { name: string; host?: string; port?: number; sticky?: boolean }
/** Lines of the answer, which goes on until the asker hangs up: so does the forward. An `error` ends it, too. */
export type ForwardEvent =
  | { type: 'listening'; name: string; host: string; port: number; proto: 'tcp' | 'udp' }
  | { type: 'refused'; message: string }
