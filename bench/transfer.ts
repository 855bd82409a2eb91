/**
 * How fast 1 GiB goes from one agent to another, verified and on disk there: over bulk lanes and without them, against a libp2p stream of the
 * same modules as they come, and against nginx with curl and a checksum, with TLS and without; what memory that takes, and how late the
 * main threads' event loops are meanwhile. Two processes on loopback; the file is in the file cache of the sender; every contender
 * ends with an fsync of what it wrote, since the agent does. `agent get` writes a second copy, to the user's directory. Each receiving agent is new, so
 * that it has nothing of the file, and fetches a small one first: the stock node and nginx run since the first turn, too.
 */
import { createReadStream, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import type { PublishResult } from '../agent/api/contract.ts'
import { type AgentOptions, Bundle, RealAgent, run as runProgram, until } from '../test/agents.ts'
import { calm } from './calm.ts'
import { type Bench, byTurns, type Report, scaled, timed } from './harness.ts'
import { Nginx } from './nginx.ts'
import { Random, writeRandomFile } from './random.ts'
import { stockEntry } from './stock-bundle.ts'
import { StockNode } from './stock-node.ts'

const FILE_BYTES = scaled(1_024) * 1024 * 1024
const MB = 1e6
/** A contender writes the file, `agent get` twice; and there are its processes. */
const FILLED_BYTES = 3 * FILE_BYTES
const TURNS = { countMax: 5, msMax: 420_000 }
const SEED = 4
/** Too little for lanes: those are opened in the time that is measured. */
const WARM_BYTES = 8 * 1024 * 1024
const WARM_MS_MAX = 30_000
/** For what an agent does when it has met another one. */
const CALM_MS = 500
const SAMPLE_MS = 50
const LOOP_DELAY = 'loop-delay.json'
const LOOP_DELAY_MODULE = new URL('./loop-delay.ts', import.meta.url).href
/** As an agent sets it for itself, which it does by starting anew: then whatever is loaded before would be loaded twice. */
const HEAP = '--max-semi-space-size=2'

type StartAgent = (options: Pick<AgentOptions, 'name' | 'bootstrap' | 'flags'>) => Promise<RealAgent>

export const bench: Bench = {
  name: 'transfer',
  question: `How fast do ${FILE_BYTES / 2 ** 20} MiB go from one agent to another, verified and on disk?`,
  minutesMax: 20,
  run,
}

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const directory = mkdtempSync(join(tmpdir(), 'undernet-transfer-'))
  stack.defer(() => rmSync(directory, { recursive: true, force: true }))
  const file = join(directory, 'file')
  const digest = await writeRandomFile(file, FILE_BYTES, SEED)

  const bundle = stack.use(await Bundle.build())
  const agents = await AgentPair.start(bundle, file, signal, stack)
  const stock = await StockPair.start(file, digest, stack)
  const [plain, tls] = [await Nginx.serve(directory), await Nginx.serve(directory, { tls: true })]
  for (const nginx of [plain, tls]) if (nginx) stack.use(nginx)
  if (!plain) report.note('nginx is not installed: there are two alternatives less.')

  const copy = join(directory, 'copy')
  const rate = async (work: () => Promise<unknown>) => {
    await calm(FILLED_BYTES)
    const mbPerSecond = FILE_BYTES / MB / ((await timed(work)) / 1_000)
    rmSync(copy, { recursive: true, force: true })
    return mbPerSecond
  }
  const curl = (nginx: Nginx | undefined, trust = '') =>
    nginx
      ? () => {
          const fetched = `curl -sf ${trust} -o ${copy} ${nginx.url}/file`
          return rate(() => shell(`${fetched} && openssl dgst -sha256 ${copy} | grep -q ${digest} && sync ${copy}`))
        }
      : async () => Number.NaN
  const costs = new Costs()
  const samples = await byTurns(
    {
      lanes: () => agents.onFreshReceiver([], (receiver) => rate(() => fetchOn(receiver, 'file', signal))),
      stock: () => rate(() => stock.fetch(copy)),
      tls: curl(tls, `--cacert ${tls?.certificate}`),
      stream: () =>
        agents.onFreshReceiver(['--lanes', 'off'], (receiver) => rate(() => fetchOn(receiver, 'file', signal))),
      plain: curl(plain),
      get: () => agents.onFreshReceiver([], (receiver) => rate(() => getOn(receiver, copy))),
      // Looking at it slows it down.
      watched: (turn) =>
        agents.onFreshReceiver([], (receiver) =>
          costs.during(turn, [agents.sender, receiver, agents.bystander], () =>
            rate(() => fetchOn(receiver, 'file', signal)),
          ),
        ),
    },
    TURNS,
  )
  tell(report, samples, costs)
}

type Samples = Record<'lanes' | 'stream' | 'get' | 'stock' | 'tls' | 'plain', number[]>

function tell(report: Report, samples: Samples, costs: Costs): void {
  const unit = 'MB/s'
  const [stock, tls, plain] = [
    { what: 'stock libp2p stream + SHA-256', samples: samples.stock },
    { what: 'nginx with TLS, curl, openssl dgst', samples: samples.tls },
    { what: 'nginx, curl, openssl dgst', samples: samples.plain },
  ]
  const over = { what: 'agent to agent, over lanes', samples: samples.lanes, unit } as const
  report.result({ ...over, against: stock, goal: { timesAtLeast: 3 } })
  report.result({ ...over, against: tls, goal: { timesAtLeast: 1.2 } })
  report.result({ ...over, against: plain })
  report.result({ what: 'agent to agent, over a stream', samples: samples.stream, unit, against: stock })
  report.result({ what: '`agent get`, whole command', samples: samples.get, unit, against: tls })
  for (const [at, who] of ['sender', 'receiver'].entries()) {
    const [delayMs, rssMb, cpu] = (['delayMs', 'rssMb', 'cpuPerGb'] as const).map((one) => costs.of(at, one))
    const idle = { what: 'of an idle agent meanwhile', samples: costs.of(2, 'delayMs') }
    const delay = { what: `event loop of the ${who}, p99`, samples: delayMs ?? [], unit: 'ms' } as const
    report.result({ ...delay, against: idle, goal: { atMost: 10 } })
    report.result({
      what: `resident memory of the ${who}, at most`,
      samples: rssMb ?? [],
      unit: 'MB',
      goal: { atMost: 250 },
    })
    report.result({ what: `CPU of the ${who}, per GB`, samples: cpu ?? [], unit: 's' })
  }
}

type Cost = { delayMs: number; rssMb: number; cpuPerGb: number }

/** What transfers cost the agents, of which there are always the same. */
class Costs {
  readonly #all: Cost[][] = []

  of(agent: number, what: keyof Cost): number[] {
    return this.#all.map((costs) => costs[agent]?.[what] ?? Number.NaN)
  }

  async during(turn: number, agents: readonly RealAgent[], work: () => Promise<number>): Promise<number> {
    const before = agents.map(({ cpuSeconds }) => cpuSeconds)
    const rssMb = agents.map(() => 0)
    const timer = setInterval(() => {
      for (const [at, agent] of agents.entries())
        if (!agent.isGone) rssMb[at] = Math.max(rssMb[at] ?? 0, agent.rssBytes / MB)
    }, SAMPLE_MS)
    const watch = () => agents.map(({ pid }) => process.kill(pid, 'SIGUSR2'))
    for (const agent of agents) rmSync(join(agent.state, LOOP_DELAY), { force: true })
    watch()
    try {
      return await work()
    } finally {
      clearInterval(timer)
      watch()
      const costs: Cost[] = []
      for (const [at, agent] of agents.entries())
        costs.push({
          delayMs: await delayOf(agent),
          rssMb: rssMb[at] ?? 0,
          cpuPerGb: (agent.cpuSeconds - (before[at] ?? 0)) / (FILE_BYTES / MB / 1_000),
        })
      if (turn >= 0) this.#all.push(costs)
    }
  }
}

/** As bench/loop-delay.ts writes it. */
async function delayOf(agent: RealAgent): Promise<number> {
  const file = join(agent.state, LOOP_DELAY)
  await until(async () => existsSync(file), { what: `${agent.name} says how late its event loop was` })
  return (JSON.parse(readFileSync(file, 'utf8')) as { p99Ms: number }).p99Ms
}

class AgentPair {
  readonly sender: RealAgent
  /** Does nothing: what its event loop waits, it waits for the machine. */
  readonly bystander: RealAgent
  readonly #address: string
  readonly #start: StartAgent

  private constructor(sender: RealAgent, bystander: RealAgent, address: string, start: StartAgent) {
    this.sender = sender
    this.bystander = bystander
    this.#address = address
    this.#start = start
  }

  /** The sender publishes the file. */
  static async start(
    { entry, env }: Bundle,
    file: string,
    signal: AbortSignal,
    stack: AsyncDisposableStack,
  ): Promise<AgentPair> {
    const start: StartAgent = (options) => {
      const state = mkdtempSync(join(tmpdir(), `undernet-${options.name}-`))
      stack.defer(() => rmSync(state, { recursive: true, force: true }))
      const file = { LOOP_DELAY_FILE: join(state, LOOP_DELAY), NODE_OPTIONS: `--import ${LOOP_DELAY_MODULE} ${HEAP}` }
      return RealAgent.start({ ...options, state, entry, env: { ...env, ...file } })
    }
    const sender = stack.use(await start({ name: 'sender' }))
    const query = { type: 'file', name: 'file' }
    await sender.client.upload<PublishResult>(
      'upload',
      query,
      createReadStream(file, { highWaterMark: 262_144 }),
      signal,
    )
    const warm = Readable.from([new Random(SEED).bytes(WARM_BYTES)])
    await sender.client.upload<PublishResult>('upload', { type: 'file', name: 'warm' }, warm, signal)
    return new AgentPair(sender, stack.use(await start({ name: 'bystander' })), await sender.address(), start)
  }

  /** A new agent that knows of the file and has nothing of it. */
  async onFreshReceiver(flags: string[], work: (receiver: RealAgent) => Promise<number>): Promise<number> {
    const receiver = await this.#start({ name: 'receiver', bootstrap: [this.#address], flags })
    try {
      await until(async () => (await receiver.status()).artifacts.known > 1, {
        what: 'the receiver knows of the files',
      })
      await fetchOn(receiver, 'warm', AbortSignal.timeout(WARM_MS_MAX))
      await delay(CALM_MS)
      return await work(receiver)
    } finally {
      await receiver[Symbol.asyncDispose]()
      rmSync(receiver.state, { recursive: true, force: true })
    }
  }
}

/** What the agent does before `agent get` writes the user's own copy. */
async function fetchOn(receiver: RealAgent, ref: string, signal: AbortSignal): Promise<void> {
  for await (const event of receiver.client.events('fetch', { ref }, signal)) if (event.type === 'done') return
}

async function getOn(receiver: RealAgent, directory: string): Promise<void> {
  const { code, stderr } = await receiver.run('get', 'file', '--to', directory)
  if (code !== 0) throw new Error(stderr)
}

class StockPair {
  readonly #receiver: StockNode
  readonly #address: string
  readonly #digest: string

  private constructor(receiver: StockNode, address: string, digest: string) {
    this.#receiver = receiver
    this.#address = address
    this.#digest = digest
  }

  static async start(file: string, digest: string, stack: AsyncDisposableStack): Promise<StockPair> {
    const entry = stack.use(await stockEntry())
    const sender = await StockNode.start(entry.path)
    stack.use(sender.node)
    const receiver = await StockNode.start(entry.path)
    stack.use(receiver.node)
    await sender.node.ask('serve', { file })
    return new StockPair(receiver.node, sender.address, digest)
  }

  async fetch(to: string): Promise<void> {
    const { digest } = await this.#receiver.ask('fetch', { address: this.#address, to })
    if (digest !== this.#digest) throw new Error('a stock stream lost bytes')
  }
}

async function shell(command: string): Promise<void> {
  const { code, stderr } = await runProgram('sh', ['-c', command])
  if (code !== 0) throw new Error(`${command}: ${stderr}`)
}
