/** The contract about names of services as addresses of this machine, and how its resolver is told of them. As contract.ts, which it is a part of. */

/** A name that programs of this machine use now. */
type NameView = {
  name: string
  /** In 127.0.0.0/8. */
  address: string
  /** Those that are listened on. */
  ports: number[]
  connections: number
}
export type NameList = {
  /** Of addresses of this agent, `127.77.0.0/16`; null while none was needed. */
  range: string | null
  names: NameView[]
}

/** What makes a resolver of this machine ask the agent. */
export type DnsConfView = {
  /** `127.0.0.1:7453`. */
  address: string
  /** Of the networks that this node is in: `home.internal`. */
  domains: string[]
  resolvers: { resolver: 'systemd-resolved' | 'dnsmasq'; file: string; lines: string[]; restart: string }[]
}
