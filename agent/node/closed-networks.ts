/**
 * The closed networks of this node as they run, from start() until disposed: one is started when it is made or joined, and stopped and
 * forgotten when it is left. A network that cannot run (its database is corrupt) is told of, and keeps nobody else from running.
 */
import { readdirSync } from 'node:fs'
import type { Catalogs } from '../catalog/catalogs.ts'
import { reasonOf } from '../error.ts'
import type { Membership } from '../identity/membership.ts'
import type { Networks } from '../identity/networks.ts'
import type { Log } from '../log.ts'
import { ClosedNetwork, type ClosedNetworkDeps, removeNetwork } from './closed-network.ts'

const DATABASE = /^([0-9a-f]{64})\.db$/

export type ClosedNetworksOptions = {
  networks: Networks
  catalogs: Pick<Catalogs, 'add' | 'remove'>
  /** Forgets the content that is here for a network's sake only. */
  forget: (id: string) => Promise<void>
  /** Closed networks that content is here for. */
  contentOf: Iterable<string>
  deps: ClosedNetworkDeps
  log: Log
}

export class ClosedNetworks implements AsyncDisposable {
  readonly #options: ClosedNetworksOptions
  readonly #log: Log
  readonly #running = new Map<string, ClosedNetwork>()
  /** Why a network does not run, by its id. */
  readonly #failed = new Map<string, string>()
  readonly #unlisten: () => void
  /** Starts and stops follow one another. */
  #work: Promise<void> = Promise.resolve()

  private constructor(options: ClosedNetworksOptions) {
    this.#options = options
    this.#log = options.log
    this.#unlisten = options.networks.onChange(({ id, what }) => {
      if (what === 'joined') this.#enqueue(() => this.#run(id))
      if (what === 'left') this.#enqueue(() => this.#forget(id))
    })
  }

  /** Resolves when those that this node is in run. */
  static async start(options: ClosedNetworksOptions): Promise<ClosedNetworks> {
    const all = new ClosedNetworks(options)
    // A kill in the middle of leaving a network leaves some of it.
    for (const id of new Set([...databasesIn(options.deps.directory), ...options.contentOf])) {
      if (options.networks.get(id) === undefined) all.#enqueue(() => all.#forget(id))
    }
    for (const { id } of options.networks.list()) all.#enqueue(() => all.#run(id))
    await all.settled()
    return all
  }

  /** Resolves when what was joined or left by now runs, or does not any more. */
  settled(): Promise<void> {
    return this.#work
  }

  list(): ClosedNetwork[] {
    return [...this.#running.values()]
  }

  get(id: string): ClosedNetwork | undefined {
    return this.#running.get(id)
  }

  /** Networks that this node is in and that do not run, and why. */
  failed(): { membership: Membership; reason: string }[] {
    return [...this.#failed].flatMap(([id, reason]) => {
      const membership = this.#options.networks.get(id)
      return membership === undefined ? [] : [{ membership, reason }]
    })
  }

  /** The clocks of members minus ours, where some are known. */
  clockOffsetMs(): number | undefined {
    return this.list()
      .map((network) => network.clockOffsetMs())
      .find((offset) => offset !== undefined)
  }

  /** Whether a peer is one that some network wants to be connected to. */
  wants(peerId: string): boolean {
    return this.list().some((network) => network.wants(peerId))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#unlisten()
    await this.#work
    for (const network of this.#running.values()) await network[Symbol.asyncDispose]()
    this.#running.clear()
  }

  #enqueue(work: () => Promise<void>): void {
    this.#work = this.#work.then(work)
  }

  /** Never fails. */
  async #run(id: string): Promise<void> {
    const membership = this.#options.networks.get(id)
    if (membership === undefined || this.#running.has(id)) return
    try {
      const network = await ClosedNetwork.start(membership, this.#options.deps)
      this.#failed.delete(id)
      this.#running.set(id, network)
      this.#options.catalogs.add(membership.name, network.artifacts)
    } catch (error) {
      this.#failed.set(id, reasonOf(error))
      this.#log.error({ network: membership.name, reason: reasonOf(error) }, 'network.failed')
    }
  }

  /** Never fails: what is left over goes at the next start. */
  async #forget(id: string): Promise<void> {
    const { catalogs, forget, deps } = this.#options
    try {
      catalogs.remove(id)
      this.#failed.delete(id)
      const network = this.#running.get(id)
      this.#running.delete(id)
      await network?.farewell()
      await network?.[Symbol.asyncDispose]()
      await forget(id)
      removeNetwork(deps.directory, id)
      deps.gate.recheck()
    } catch (error) {
      this.#log.error({ network: id, reason: reasonOf(error) }, 'network.unforgotten')
    }
  }
}

function databasesIn(directory: string): string[] {
  return readdirSync(directory).flatMap((name) => DATABASE.exec(name)?.[1] ?? [])
}
