/**
 * The services of this node's networks as discovery tells others of them: each instance that can be used now, and the loopback address by
 * which this machine reaches it. Ill and drained ones are not in here, so nobody can be told of them.
 */
import { AgentError } from '../error.ts'
import type { Held, Instance, Resolved } from './services.ts'

/** Of one service; each is listened for. */
const ENDPOINTS_MAX = 256

export type Endpoint = { instance: Instance; address: string }
export type Service = {
  /** `web.home.internal`. */
  name: string
  network: string
  service: string
  /** All of its instances are of the proto `http`. */
  isHttp: boolean
  /** That can be used. */
  instances: readonly Instance[]
}

type Init = {
  services: {
    /** @throws {AgentError} when several networks have it. */
    resolve(name: string): Resolved | undefined
    list(): readonly Resolved[]
    onChange(listener: () => void): () => void
  }
  /** The address of a name, listened on from then on. */
  hold: (name: string) => Promise<Held | undefined>
  nameOf: (of: { service: string; node?: string; network: string }) => string
  /** Zone of this node in a network. */
  zoneIn: (network: string) => string | undefined
}

export class Directory {
  readonly #init: Init

  constructor(init: Init) {
    this.#init = init
  }

  /** By name. What cannot carry streams is left out: Envoy and the like speak TCP to what they find. */
  list(): Service[] {
    const found = this.#init.services.list().flatMap((resolved) => this.#serviceOf(resolved) ?? [])
    return found.sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  /** By any name that leads to it; undefined when no member offers it, and when it may mean several. */
  find(name: string): Service | undefined {
    try {
      const resolved = this.#init.services.resolve(name)
      return resolved && this.#serviceOf(resolved)
    } catch (error) {
      if (error instanceof AgentError) return undefined
      throw error
    }
  }

  /** Where its instances are reached from here, from now on. Those whose address would lead to somebody else are left out. */
  async endpointsOf({ instances }: Service): Promise<Endpoint[]> {
    const endpoints: Endpoint[] = []
    for (const instance of instances.slice(0, ENDPOINTS_MAX)) {
      const held = await this.#init.hold(this.#init.nameOf(instance))
      if (held !== undefined && 'address' in held) endpoints.push({ instance, address: held.address })
    }
    return endpoints
  }

  zoneIn(network: string): string | undefined {
    return this.#init.zoneIn(network)
  }

  onChange(listener: () => void): () => void {
    return this.#init.services.onChange(listener)
  }

  #serviceOf({ network, service, node, instances }: Resolved): Service | undefined {
    const streams = instances.filter(({ proto }) => proto !== 'udp')
    if (streams.length === 0) return undefined
    const usable = streams.filter(({ state }) => state === 'healthy' || state === 'unknown')
    const name = this.#init.nameOf({ service, network, ...(node !== undefined && { node }) })
    return {
      name,
      network,
      service,
      isHttp: streams.every(({ proto }) => proto === 'http'),
      instances: usable.toSorted((a, b) => (a.peerId < b.peerId ? -1 : 1)),
    }
  }
}
