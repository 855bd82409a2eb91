/**
 * How this node is reached from outside, put together: the ports that its router lets in, what is told of them in closed networks, and what
 * follows when the machine is suddenly somewhere else.
 */
import { multiaddr } from '@multiformats/multiaddr'
import type { Config } from '../config/keys.ts'
import type { Log } from '../log.ts'
import { portIn } from '../mesh/addresses.ts'
import type { Host } from '../mesh/host.ts'
import { NetworkChange } from '../mesh/network-change.ts'
import { type MappingView, type Port, PortMapping } from '../mesh/port-mapping.ts'

/** A node listens on one port of each kind, or its owner knows why not. */
const PORTS_MAX = 8

export type ReachDeps = {
  host: Pick<Host, 'peerId' | 'addresses' | 'dropDead'>
  config: Pick<Config, 'portMapping'>
  /** Of bulk lanes; undefined when there are none. */
  lanePort: () => number | undefined
  log: Log
}

/** Who has to begin anew where the machine is now. */
type Attendant = { networkChanged(): void }

export class Reach implements AsyncDisposable {
  readonly #deps: ReachDeps
  readonly #mapping: PortMapping | undefined
  readonly #change: NetworkChange
  readonly #attendants = new Set<Attendant>()
  readonly #listeners = new Set<() => void>()

  constructor(deps: ReachDeps) {
    const { config, log } = deps
    this.#deps = deps
    this.#mapping = config.portMapping ? PortMapping.start({ ports: () => this.#ports(), log }) : undefined
    this.#mapping?.onChange(() => this.#tellAddresses())
    this.#change = NetworkChange.start({ onChange: () => this.#begin(), log })
  }

  /** Where members of closed networks can dial this node, with its peer id: from outside first, since there are few of these. */
  addresses(): string[] {
    const { host } = this.#deps
    const outside = this.#mapping?.addresses() ?? []
    return [...outside.map((address) => `${address.toString()}/p2p/${host.peerId}`), ...host.addresses()]
  }

  mapping(): MappingView {
    return this.#mapping?.view ?? { state: 'off', ports: [] }
  }

  /** Calls the listener when the addresses may be other ones than before. Returns how to stop that. */
  onAddresses(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Has it begin anew whenever this machine is somewhere else, or slept. */
  attend(attendant: Attendant): void {
    this.#attendants.add(attendant)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#change[Symbol.asyncDispose]()
    await this.#mapping?.[Symbol.asyncDispose]()
  }

  #begin(): void {
    this.#deps.host.dropDead()
    for (const attendant of this.#attendants) attendant.networkChanged()
    this.#tellAddresses()
  }

  #tellAddresses(): void {
    for (const listener of this.#listeners) listener()
  }

  /** What listens on IPv4, each once. */
  #ports(): Port[] {
    const own = this.#deps.host.addresses().flatMap((address) => portIn(multiaddr(address)) ?? [])
    const lanePort = this.#deps.lanePort()
    const lanes = lanePort ? [{ transport: 'tcp', port: lanePort, isDialled: false } as const] : []
    const all: Port[] = [...own.map((one) => ({ ...one, isDialled: true })), ...lanes]
    return [...new Map(all.map((one) => [`${one.transport} ${one.port}`, one])).values()].slice(0, PORTS_MAX)
  }
}
