/**
 * The services of all closed networks of this node: who offers what, under which name it is asked for.
 *
 * Names: `web.home.internal` is the service `web` of the network that this node calls `home`; `web.nas.home.internal` that of the member
 * `nas` only; `web` alone is good where one network has it.
 */
import { NAME_PATTERN } from '../../protocols/membership/words.ts'
import { AgentError } from '../error.ts'

/** Of all names here; a domain that no registry gives away. */
const DOMAIN = '.internal'

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

/** What a network has to say of services. */
export type ServiceSource = {
  /** As this node calls it. */
  readonly name: string
  readonly instances: {
    services(): string[]
    of(service: string): Instance[]
    onChange(listener: () => void): () => void
  }
}

export class Services implements ServiceNames {
  readonly #sources = new Map<string, { source: ServiceSource; unlisten: () => void }>()
  readonly #listeners = new Set<() => void>()

  /** A network runs from now on, until the returned function is called. */
  add(source: ServiceSource): () => void {
    this.#sources.get(source.name)?.unlisten()
    this.#sources.set(source.name, { source, unlisten: source.instances.onChange(() => this.#tell()) })
    this.#tell()
    return () => {
      const known = this.#sources.get(source.name)
      if (known?.source !== source) return
      known.unlisten()
      this.#sources.delete(source.name)
      this.#tell()
    }
  }

  /** @throws {AgentError} `usage` for a name without a network that several have */
  resolve(name: string): Resolved | undefined {
    const labels = labelsOf(name)
    const [service = '', middle, last] = labels
    if (labels.length > 3 || labels.some((label) => !NAME_PATTERN.test(label))) return undefined
    if (last !== undefined) return this.#resolved(last, service, middle)
    if (middle !== undefined) return this.#resolved(middle, service)
    const found = [...this.#sources.keys()].flatMap((network) => this.#resolved(network, service) ?? [])
    if (found.length <= 1) return found[0]
    throw new AgentError('usage', `${found.length} networks have a service ${service}`, {
      next: `Say which: ${found.map(({ network }) => `${service}.${network}${DOMAIN}`).join(' or ')}.`,
    })
  }

  list(): Resolved[] {
    return [...this.#sources].flatMap(([network, { source }]) =>
      source.instances.services().flatMap((service) => this.#resolved(network, service) ?? []),
    )
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  #resolved(network: string, service: string, node?: string): Resolved | undefined {
    const all = this.#sources.get(network)?.source.instances.of(service) ?? []
    const instances = node === undefined ? all : all.filter((one) => one.node === node)
    if (instances.length === 0) return undefined
    return { network, service, ...(node !== undefined && { node }), instances }
  }

  #tell(): void {
    for (const listener of this.#listeners) listener()
  }
}

/** `web.home.internal.` as `web`, `home`. */
function labelsOf(name: string): string[] {
  const plain = name.toLowerCase().replace(/\.$/, '')
  return (plain.endsWith(DOMAIN) ? plain.slice(0, -DOMAIN.length) : plain).split('.')
}
