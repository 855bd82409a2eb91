/**
 * How fast 1 GiB goes from one agent to another, verified and on disk there: against a libp2p stream of the same modules as they come,
 * and against nginx with curl and a checksum. Two processes on loopback; the file is in the file cache of the sender; every contender
 * ends with an fsync of what it wrote, since the agent does. `agent get` writes a second copy, to the user's directory.
 */
import { execFile } from 'node:child_process'
import { createReadStream, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { PublishResult } from '../agent/api/contract.ts'
import { Bundle, RealAgent, run as runProgram, until } from '../test/agents.ts'
import { type Bench, byTurns, type Report, scaled, timed } from './harness.ts'
import { Nginx } from './nginx.ts'
import { writeRandomFile } from './random.ts'
import { stockEntry } from './stock-bundle.ts'
import { StockNode } from './stock-node.ts'

const FILE_BYTES = scaled(1_024) * 1024 * 1024
const MB = 1e6
const TURNS = { countMax: 5, msMax: 420_000 }
const SEED = 4

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
  const nginx = await Nginx.serve(directory)
  if (nginx) stack.use(nginx)
  else report.note('nginx is not installed: there is one alternative less.')

  const copy = join(directory, 'copy')
  const rate = async (work: () => Promise<unknown>) => {
    // What an earlier contender wrote is not to be written out in this one's time.
    await promisify(execFile)('sync')
    const mbPerSecond = FILE_BYTES / MB / ((await timed(work)) / 1_000)
    rmSync(copy, { recursive: true, force: true })
    return mbPerSecond
  }
  const curl = (checksum: string) => async () => {
    if (!nginx) return Number.NaN
    return rate(() =>
      shell(`curl -sf -o ${copy} ${nginx.url}/file && ${checksum} ${copy} | grep -q ${digest} && sync ${copy}`),
    )
  }
  const samples = await byTurns(
    {
      fetch: () => agents.onFreshReceiver((receiver) => rate(() => fetchOn(receiver, signal))),
      get: () => agents.onFreshReceiver((receiver) => rate(() => getOn(receiver, copy))),
      stock: () => rate(() => stock.fetch(copy)),
      sha256sum: curl('sha256sum'),
      openssl: curl('openssl dgst -sha256'),
    },
    TURNS,
  )
  const unit = 'MB/s'
  const others = [
    { what: 'stock libp2p stream + SHA-256', samples: samples.stock },
    ...(nginx ? [{ what: 'nginx, curl, sha256sum', samples: samples.sha256sum }] : []),
    ...(nginx ? [{ what: 'nginx, curl, openssl dgst', samples: samples.openssl }] : []),
  ]
  for (const against of others) report.result({ what: 'agent to agent', samples: samples.fetch, unit, against })
  for (const against of others)
    report.result({ what: '`agent get`, whole command', samples: samples.get, unit, against })
}

class AgentPair {
  readonly #sender: string
  readonly #bundle: Bundle

  private constructor(sender: string, bundle: Bundle) {
    this.#sender = sender
    this.#bundle = bundle
  }

  /** The sender publishes the file. */
  static async start(
    bundle: Bundle,
    file: string,
    signal: AbortSignal,
    stack: AsyncDisposableStack,
  ): Promise<AgentPair> {
    const sender = stack.use(await RealAgent.start({ name: 'sender', entry: bundle.entry, env: bundle.env }))
    const query = { type: 'file', name: 'file' }
    await sender.client.upload<PublishResult>(
      'upload',
      query,
      createReadStream(file, { highWaterMark: 262_144 }),
      signal,
    )
    return new AgentPair(await sender.address(), bundle)
  }

  /** A new agent that knows of the file and has nothing of it. */
  async onFreshReceiver(work: (receiver: RealAgent) => Promise<number>): Promise<number> {
    const { entry, env } = this.#bundle
    await using receiver = await RealAgent.start({ name: 'receiver', entry, env, bootstrap: [this.#sender] })
    await until(async () => (await receiver.status()).artifacts.known > 0, { what: 'the receiver knows of the file' })
    return await work(receiver)
  }
}

/** What the agent does before `agent get` writes the user's own copy. */
async function fetchOn(receiver: RealAgent, signal: AbortSignal): Promise<void> {
  for await (const event of receiver.client.events('fetch', { ref: 'file' }, signal)) if (event.type === 'done') return
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
