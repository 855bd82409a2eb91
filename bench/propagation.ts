/**
 * How long a record takes from the node that signs it to every other, with 3, 10 and 30 real agents: from the moment the publisher has
 * it on disk until another has checked and stored it. Against stock gossipsub carrying as many bytes among as many processes, with
 * nothing to check or store. All on one machine, so by one clock: each process notes the millisecond itself.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { PublishResult } from '../agent/api/contract.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { type Bench, quantile, type Report, scaled } from './harness.ts'
import { Random } from './random.ts'
import { type StockEntry, stockEntry } from './stock-bundle.ts'
import { StockNode } from './stock-node.ts'

const SIZES = [3, 10, 30]
const PUBLICATIONS = { 3: 60, 10: 40, 30: 30 } as Record<number, number>
/**
 * Between two: an agent announces what it published in the DHT, too, 3 s later, and all agents of a machine share its cores. The next
 * record is not to wait for that.
 */
const APART_MS = { 3: 1_000, 10: 3_000, 30: 6_000 } as Record<number, number>
/** As an artifact's record has. */
const RECORD_BYTES = 420
/** What a node is connected to at least; gossip then chooses among them. */
const STOCK_LINKS = 8
/** Started at once: more would only wait for each other. */
const STARTED_AT_ONCE = 5
const MEET_MS_MAX = 120_000
const ARRIVE_MS_MAX = 60_000
/** Gossip offers a message for some seconds; then it is lost, and a stock node has nothing that brings it later. */
const STOCK_ARRIVE_MS_MAX = 15_000
/** After all have met: gossip builds its meshes by a heartbeat of a second. */
const SETTLE_MS = 8_000
const POLL_MS = 25
const SEED = 7

export const bench: Bench = {
  name: 'propagation',
  question: 'How long does a record take to every other node?',
  minutesMax: 20,
  run,
}

async function run(report: Report, signal: AbortSignal): Promise<void> {
  using bundle = await Bundle.build()
  using entry = await stockEntry()
  for (const size of SIZES) {
    await using agents = await Agents.start(size, bundle)
    await using stock = await StockMesh.start(size, entry)
    report.progress(`${size} agents and ${size} stock nodes have met`)
    await delay(SETTLE_MS)
    const random = new Random(SEED)
    const ours: number[] = []
    const theirs: number[] = []
    let lost = 0
    for (let nth = 0; nth < scaled(PUBLICATIONS[size] ?? 0, 5); nth++) {
      await delay(APART_MS[size], undefined, { signal })
      const publisher = random.below(size)
      ours.push(...(await agents.publish(publisher, nth, signal)))
      const arrived = await stock.publish(publisher, nth)
      if (arrived === undefined) lost++
      else theirs.push(...arrived)
    }
    for (const [share, name] of [
      [0.5, 'p50'],
      [0.99, 'p99'],
    ] as const) {
      report.result({
        what: `${size} nodes, ${name} of ${ours.length}`,
        samples: [quantile(ours, share)],
        unit: 'ms',
        against: { what: 'stock gossipsub', samples: [quantile(theirs, share)] },
      })
    }
    if (lost > 0) report.note(`${size} nodes: stock gossipsub lost ${lost} messages, which are left out here.`)
  }
}

class Agents implements AsyncDisposable {
  readonly #agents: readonly RealAgent[]
  readonly #stack: AsyncDisposableStack

  private constructor(agents: readonly RealAgent[], stack: AsyncDisposableStack) {
    this.#agents = agents
    this.#stack = stack
  }

  /** Resolves when each knows all others. */
  static async start(size: number, { entry, env }: Bundle): Promise<Agents> {
    await using stack = new AsyncDisposableStack()
    const options = { entry, env, flags: ['--log-level', 'debug'] }
    const hub = stack.use(await RealAgent.start({ name: 'node-0', ...options }))
    const bootstrap = [await hub.address()]
    const others = await inBatches(size - 1, async (nth) =>
      stack.use(await RealAgent.start({ name: `node-${nth + 1}`, bootstrap, ...options })),
    )
    const agents = [hub, ...others]
    const knows = async (agent: RealAgent) => ((await agent.status()).networks[0]?.nodes ?? 0) >= size
    for (const agent of agents) {
      await until(() => knows(agent), { what: `${agent.name} knows ${size} nodes`, ms: MEET_MS_MAX })
    }
    return new Agents(agents, stack.move())
  }

  /** What each other node's record took, by the nodes' own logs. */
  async publish(publisher: number, nth: number, signal: AbortSignal): Promise<number[]> {
    const name = `record-${nth}-of-${publisher}`
    const from = this.#agents[publisher] as RealAgent
    const bytes = async function* () {
      yield Buffer.from(name)
    }
    await from.client.upload<PublishResult>('upload', { type: 'file', name }, bytes(), signal)
    const times = () => this.#agents.map((agent) => changedMs(agent, name))
    const all = await until(() => times().every((ms) => ms !== undefined) && (times() as number[]), {
      what: `${name} is everywhere`,
      ms: ARRIVE_MS_MAX,
    })
    return all.filter((_, at) => at !== publisher).map((ms) => ms - (all[publisher] ?? 0))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

function changedMs(agent: RealAgent, name: string): number | undefined {
  const line = agent.log.find((one) => one.includes('"record.changed"') && one.includes(`"${name}"`))
  return line === undefined ? undefined : Date.parse((JSON.parse(line) as { time: string }).time)
}

class StockMesh implements AsyncDisposable {
  readonly #nodes: readonly StockNode[]
  readonly #stack: AsyncDisposableStack

  private constructor(nodes: readonly StockNode[], stack: AsyncDisposableStack) {
    this.#nodes = nodes
    this.#stack = stack
  }

  static async start(size: number, entry: StockEntry): Promise<StockMesh> {
    await using stack = new AsyncDisposableStack()
    const started = await inBatches(size, async () => {
      const one = await StockNode.start(entry.path)
      stack.use(one.node)
      return one
    })
    const addresses = started.map(({ address }) => address)
    for (const [at, { node }] of started.entries()) {
      // The hub, as the agents have it, and the next ones on a ring.
      const ring = Array.from({ length: STOCK_LINKS }, (_, step) => addresses[(at + step + 1) % size])
      const others = [...new Set([addresses[0], ...ring])].filter((one) => one !== addresses[at])
      await node.ask('dial', { addresses: others as string[] })
    }
    const nodes = started.map(({ node }) => node)
    return new StockMesh(nodes, stack.move())
  }

  /** What each other node's message took; undefined when it was lost on the way to some. */
  async publish(publisher: number, nth: number): Promise<number[] | undefined> {
    const id = `${publisher} ${nth}`
    const { atMs } = await (this.#nodes[publisher] as StockNode).ask('publish', { id, sizeBytes: RECORD_BYTES })
    const others = this.#nodes.filter((_, at) => at !== publisher)
    for (const endMs = performance.now() + STOCK_ARRIVE_MS_MAX; performance.now() < endMs; await delay(POLL_MS)) {
      const times = await Promise.all(others.map((node) => node.ask('arrived', { id })))
      if (times.every((ms) => ms !== null)) return (times as number[]).map((ms) => ms - atMs)
    }
    return undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

async function inBatches<T>(count: number, start: (nth: number) => Promise<T>): Promise<T[]> {
  const all: T[] = []
  for (let at = 0; at < count; at += STARTED_AT_ONCE) {
    const length = Math.min(STARTED_AT_ONCE, count - at)
    all.push(...(await Promise.all(Array.from({ length }, (_, nth) => start(at + nth)))))
  }
  return all
}
