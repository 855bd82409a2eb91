/** What discovery needs of routing, in its own words: folders of one level don't import each other, and the composition root joins them. */

export type Instance = {
  readonly network: string
  readonly service: string
  readonly peerId: string
  readonly node: string
  readonly proto: 'tcp' | 'udp' | 'http'
  readonly port: number
  readonly labels: Readonly<Record<string, string>>
  readonly weight: number
  readonly state: 'healthy' | 'ill' | 'draining' | 'unknown'
  readonly zone?: string
}

export type Resolved = {
  readonly network: string
  readonly service: string
  readonly node?: string
  readonly instances: readonly Instance[]
}

/** The address by which this machine reaches a name, or why it has none. */
export type Held = { address: string } | { fault: string }
