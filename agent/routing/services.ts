/**
 * The services of all closed networks of this node: who offers what, under which name it is asked for.
 *
 * Names: `web.home.internal` is the service `web` of the network that this node calls `home`; `web.nas.home.internal` that of the member
 * `nas` only; `web` alone is good where one network has it.
 */

/** One node's offer of a service, as it stands now. */
export type Instance = {
  /** Content address of the offer: its CID. */
  readonly id: string
  /** Name of the network, as this node calls it. */
  readonly network: string
  readonly service: string
  readonly peerId: string
  /** Name of the member. */
  readonly node: string
  readonly proto: Proto
  /** Where the application listens on its node. */
  readonly port: number
  readonly labels: Readonly<Record<string, string>>
  /** Share of new streams among equals; 0 for none while others are there. */
  readonly weight: number
  readonly state: InstanceState
  /** Label `zone` of the member's certificate. */
  readonly zone?: string
  /** Measured; unknown while it is not connected. */
  readonly rttMs?: number
}
export type Proto = 'tcp' | 'udp' | 'http'
export type InstanceState = 'healthy' | 'ill' | 'draining' | 'unknown'

export type Resolved = {
  readonly network: string
  readonly service: string
  /** Asked for by the name of one node. */
  readonly node?: string
  /** In no order; also those that are ill or draining. */
  readonly instances: readonly Instance[]
}

export interface ServiceNames {
  /** Undefined when no member offers it. */
  resolve(name: string): Resolved | undefined
  /** One entry a service of a network. */
  list(): Resolved[]
  /** Called when any instance came, went or changed, many at once. Returns how to stop that. */
  onChange(listener: () => void): () => void
}
