/**
 * Several real agents that know each other: the first is the bootstrap of the others. All are ended, and their state removed, on disposal.
 */
import type { ArtifactDetail, NixConfView, SearchResult } from '../agent/api/contract.ts'
import { type AgentOptions, RealAgent, until } from './agents.ts'

const MEET_MS_MAX = 30_000

export class Network implements AsyncDisposable {
  readonly agents: readonly RealAgent[]
  readonly #stack: AsyncDisposableStack

  private constructor(agents: readonly RealAgent[], stack: AsyncDisposableStack) {
    this.agents = agents
    this.#stack = stack
  }

  /** Resolves when each agent is connected to the first. */
  static async start(names: readonly string[], options: Omit<AgentOptions, 'name' | 'state'> = {}): Promise<Network> {
    await using stack = new AsyncDisposableStack()
    const [first = 'a', ...others] = names
    const hub = stack.use(await RealAgent.start({ ...options, name: first }))
    const bootstrap = [...(options.bootstrap ?? []), await hub.address()]
    const started = await Promise.allSettled(
      others.map((name) => RealAgent.start({ ...options, name, bootstrap }).then((agent) => stack.use(agent))),
    )
    for (const one of started) if (one.status === 'rejected') throw one.reason
    const agents = [hub, ...started.flatMap((one) => (one.status === 'fulfilled' ? one.value : []))]
    await until(async () => (await hub.status()).peers.length === others.length, {
      what: 'all agents are connected to the first',
      ms: MEET_MS_MAX,
    })
    return new Network(agents, stack.move())
  }

  /** CPU time of all agents that run, so far. */
  get cpuSeconds(): number {
    return this.agents.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

/** `who` believes store paths that `builder` signed. Gives back what Nix needs to take them from `who`. */
export async function trust(who: RealAgent, builder: RealAgent): Promise<{ substituters: string[]; keys: string[] }> {
  const { publicKey } = await builder.client.get<NixConfView>('nix-conf')
  await who.json('trust', 'add', publicKey)
  return await takeFrom(who)
}

/** What Nix needs to take store paths from an agent. */
export async function takeFrom(agent: RealAgent): Promise<{ substituters: string[]; keys: string[] }> {
  const { url, publicKey } = await agent.client.get<NixConfView>('nix-conf')
  return { substituters: [url], keys: [publicKey] }
}

/** Until so many are known to publish something of that name, whether it is the same content or not. */
export async function arePublishing(who: RealAgent, name: string, count: number): Promise<void> {
  await until(
    async () => {
      const { artifacts } = await who.json<SearchResult>('search', name)
      const details = artifacts.map((one) => who.json<ArtifactDetail>('show', `${one.publisher.peerId}/${one.name}`))
      const all = (await Promise.all(details)).flatMap((one) => one.holders.map(({ peerId }) => peerId))
      return new Set(all).size === count
    },
    { what: `${count} publish ${name}`, ms: MEET_MS_MAX },
  )
}
