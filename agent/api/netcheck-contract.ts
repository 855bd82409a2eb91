/** The contract about how this node is reached, and reaches others. As contract.ts, which it is a part of. */

/** See agent/mesh/reflections.ts. */
type NatKind = 'none' | 'endpoint-independent' | 'symmetric' | 'no-udp' | 'unknown'

export type AddressView = {
  address: string
  /** `public`: one of the Internet's; whether a firewall is before it, it does not say. */
  scope: 'public' | 'private'
}

/** What a member told of a datagram of this node. */
type ReflectionView = { peerId: string; name: string | null; seen: string; rttMs: number }

export type PortMappingView = {
  /** `off`: not asked for (`port_mapping`); `none`: no router that answers; `refused`: it does not do it. */
  state: 'off' | 'asking' | 'mapped' | 'none' | 'refused'
  gateway: string | null
  /** What the router answers to, also when nothing was asked for. */
  protocol: 'nat-pmp' | 'upnp' | null
  /** The router's own, as it says; when that is not public, there is another router before it. */
  externalAddress: string | null
  isPublic: boolean | null
  ports: { transport: 'tcp' | 'udp'; port: number; externalPort: number }[]
  /** Why there are none. */
  reason: string | null
}

export type RelayView = {
  peerId: string
  name: string | null
  network: string
  rttMs: number | null
  /** Whether a grant lets this node use it. */
  allowed: boolean
}

export type NetcheckResult = {
  /** Of this machine. */
  ipv4: { addresses: AddressView[]; gateway: string | null }
  ipv6: { addresses: AddressView[]; hasRoute: boolean }
  nat: { kind: NatKind; seen: string | null; reflections: ReflectionView[] }
  /** Between this node and members. */
  udp: 'works' | 'blocked' | 'unknown'
  portMapping: PortMappingView
  /** Who dialled this node from beyond its own networks, of those that are connected. `unknown`: nobody did, which proves nothing. */
  reachable: { state: 'yes' | 'unknown'; by: { peerId: string; name: string | null; address: string }[] }
  /** Members to which this node is connected directly, nearest first. */
  relays: RelayView[]
  /** The clocks of others minus ours; null when nobody is known. */
  clockOffsetMs: number | null
  dns: { state: 'ok' | 'failed'; servers: string[]; ms: number | null; reason: string | null }
  /** What to do about it: sentences for people. */
  advice: string[]
}
