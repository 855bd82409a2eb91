/**
 * The services of this node's networks as discovery tells others of them: each instance that can be used now, with the loopback address by
 * which this machine reaches it. Ill and drained ones are not in here, so nobody can be told of them.
 */
import type { Held, Instance, Resolved } from './services.ts'

/** Endpoints in all that are listened for on behalf of clients that want everything. */
const ENDPOINTS_MAX = 512

export type Endpoint = { instance: Instance; address: string }
export type Service = {
  /** `web.home.internal`. */
  name: string
  network: string
  service: string
  /** Of its instances. */
  isHttp: boolean
  endpoints: Endpoint[]
}

type Init = {
  services: {
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

  /** What cannot carry streams is left out: Envoy and the like speak TCP to what they find. */
  async list(): Promise<Service[]> {
    const found: Service[] = []
    let room = ENDPOINTS_MAX
    for (const resolved of this.#init.services.list()) {
      if (room <= 0) break
      const service = await this.#serviceOf(resolved)
      if (service === undefined) continue
      found.push(service)
      room -= service.endpoints.length
    }
    return found.sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  /** By any name that leads to it; undefined when no member offers it. */
  async find(name: string): Promise<Service | undefined> {
    const resolved = this.#init.services.resolve(name)
    return resolved && (await this.#serviceOf(resolved))
  }

  zoneIn(network: string): string | undefined {
    return this.#init.zoneIn(network)
  }

  onChange(listener: () => void): () => void {
    return this.#init.services.onChange(listener)
  }

  async #serviceOf({ network, service, node, instances }: Resolved): Promise<Service | undefined> {
    const streams = instances.filter(({ proto }) => proto !== 'udp')
    if (streams.length === 0) return undefined
    const usable = streams.filter(({ state }) => state === 'healthy' || state === 'unknown')
    const endpoints: Endpoint[] = []
    for (const instance of usable.slice(0, ENDPOINTS_MAX)) {
      const held = await this.#init.hold(this.#init.nameOf(instance))
      if (held !== undefined && 'address' in held) endpoints.push({ instance, address: held.address })
    }
    endpoints.sort((a, b) => (a.instance.peerId < b.instance.peerId ? -1 : 1))
    const name = this.#init.nameOf({ service, network, ...(node !== undefined && { node }) })
    return { name, network, service, isHttp: streams.every(({ proto }) => proto === 'http'), endpoints }
  }
}
