/**
 * Many nodes want the same blob at once, and one has it: how much does that one send, and how long does it take until all are done? Real
 * agents in processes of their own, on loopback, and the time against one node that has the source for itself. Twice: with a source that sends a gigabit a
 * second at most, as a machine in a network does, and with one that sends as fast as it can, where one node alone has all of this machine and several have
 * each a part of it.
 */
import { createReadStream, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PublishResult } from '../agent/api/contract.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { calm } from './calm.ts'
import { type Bench, isQuick, type Report, timed } from './harness.ts'
import { writeRandomFile } from './random.ts'

const FILE_BYTES = (isQuick ? 128 : 512) * 1024 * 1024
const SEED = 14
/** Each takes a file, several processes and up to a minute. */
const TURNS = isQuick ? 1 : 3

export const bench: Bench = {
  name: 'swarm',
  question: `Of ${FILE_BYTES / 2 ** 20} MiB that several nodes want at once, how much does the only source send?`,
  minutesMax: 20,
  run,
}

const LINKS = { 'gigabit source': ['--upload-rate', '125MB'], 'source without a limit': [] }
type Link = keyof typeof LINKS

type Taken = { seconds: number; copies: number }

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const directory = mkdtempSync(join(tmpdir(), 'undernet-swarm-'))
  stack.defer(() => rmSync(directory, { recursive: true, force: true }))
  const file = join(directory, 'file')
  await writeRandomFile(file, FILE_BYTES, SEED)
  const bundle = stack.use(await Bundle.build())
  for (const link of Object.keys(LINKS) as Link[]) await measure(report, file, bundle, link, signal)
}

async function measure(report: Report, file: string, bundle: Bundle, link: Link, signal: AbortSignal): Promise<void> {
  const { entry, env } = bundle
  await using source = await RealAgent.start({ name: 'source', entry, env, flags: LINKS[link] })
  const content = createReadStream(file, { highWaterMark: 262_144 })
  await source.client.upload<PublishResult>('upload', { type: 'file', name: 'file' }, content, signal)

  const alone: Taken[] = []
  const together: Record<4 | 8, Taken[]> = { 4: [], 8: [] }
  const take = async (count: number) => {
    const taken = await fetchOn(count, source, bundle, signal)
    report.progress(`${link}, ${count} at once: ${taken.seconds.toFixed(1)} s, ${taken.copies.toFixed(2)} copies`)
    return taken
  }
  for (let turn = 0; turn < TURNS; turn++) {
    alone.push(await take(1))
    for (const count of [4, 8] as const) together[count].push(await take(count))
  }
  for (const count of [4, 8] as const) {
    const samples = together[count]
    report.result({
      what: `${link}: sent by it to ${count} nodes`,
      samples: samples.map(({ copies }) => copies),
      unit: 'copies',
      goal: { atMost: 1.5 },
    })
    report.result({
      what: `${link}: until ${count} nodes are done, against one alone`,
      samples: samples.map(({ seconds }, turn) => seconds / (alone[turn]?.seconds ?? Number.NaN)),
      unit: 'x',
      ...(count === 4 && { goal: { atMost: 2.5 } }),
    })
  }
}

/** New agents, which know of the file and have nothing of it, fetch it at the same moment. */
async function fetchOn(count: number, source: RealAgent, { entry, env }: Bundle, signal: AbortSignal): Promise<Taken> {
  await using stack = new AsyncDisposableStack()
  const bootstrap = [await source.address()]
  const agents: RealAgent[] = []
  for (let at = 0; at < count; at++)
    agents.push(stack.use(await RealAgent.start({ name: `node-${at}`, entry, env, bootstrap })))
  for (const agent of agents)
    await until(async () => (await agent.status()).artifacts.known > 0, { what: 'a node knows of the file' })
  await calm((count + 1) * FILE_BYTES)
  const before = (await source.status()).content.servedBytes
  const ms = await timed(() => Promise.all(agents.map((agent) => fetchFile(agent, signal))))
  const sentBytes = (await source.status()).content.servedBytes - before
  return { seconds: ms / 1_000, copies: sentBytes / FILE_BYTES }
}

async function fetchFile(agent: RealAgent, signal: AbortSignal): Promise<void> {
  for await (const event of agent.client.events('fetch', { ref: 'file' }, signal)) if (event.type === 'done') return
}
