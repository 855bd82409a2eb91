/**
 * How much memory an agent takes while many clients pull NARs through it over loopback HTTP: what it has, and what it fetches from a peer
 * meanwhile; clients that read as fast as they can, and some that do not. And what is left of that a minute later.
 */
import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import type { NixConfView } from '../agent/api/contract.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { trust } from '../test/network.ts'
import { hasNix, NixClosure } from '../test/nix-paths.ts'
import { type Bench, isQuick, type Report, scaled } from './harness.ts'

const CLIENTS = 20
const NARS = 16
const NAR_BYTES = 32 * 2 ** 20
/** In all: 5 GiB, so that each NAR is pulled by ten. */
const PULLED_BYTES = scaled(160) * NAR_BYTES
const NARS_EACH = Math.ceil(PULLED_BYTES / NAR_BYTES / CLIENTS)
/** One client in five reads so slowly. */
const SLOW_MS_PER_CHUNK = 2
const SAMPLE_MS = 100
/** Until what is left is looked at. */
const REST_MS = isQuick ? 20_000 : 60_000
const MB = 1e6

export const bench: Bench = {
  name: 'memory',
  question: `How much memory does an agent take while ${CLIENTS} clients pull ${PULLED_BYTES / 2 ** 20} MiB through it?`,
  minutesMax: 15,
  run,
}

async function run(report: Report): Promise<void> {
  if (!hasNix) return report.note('Nix is not installed: there are no NARs.')
  await using stack = new AsyncDisposableStack()
  const options = { paths: NARS, bytesEach: NAR_BYTES, name: 'undernet-bench' }
  const closure = stack.use(await NixClosure.make(options))
  const { entry, env } = stack.use(await Bundle.build())
  const source = stack.use(await RealAgent.start({ name: 'source', entry, env }))
  await source.json('publish', closure.root, '--name', 'closure')
  const through = stack.use(await RealAgent.start({ name: 'through', entry, env, bootstrap: [await source.address()] }))
  await until(async () => (await through.status()).artifacts.known > 0, { what: 'the agent knows of the closure' })
  await trust(through, source)

  // Compiles what is used, and fills what is kept: before and after are to be the same agent.
  await pullAll(await narUrls(source, closure), 1)
  for (const [what, agent] of [
    ['what a peer has', through],
    ['what was fetched before', through],
    ['its own store paths', source],
  ] as const) {
    const beforeMb = agent.rssBytes / MB
    const { peakMb, seconds } = await watched(agent, async () => pullAll(await narUrls(agent, closure), CLIENTS))
    await delay(REST_MS)
    const afterMb = agent.rssBytes / MB
    report.progress(`${what}: ${seconds.toFixed(1)} s, ${beforeMb.toFixed(0)} MB before, ${afterMb.toFixed(0)} after`)
    report.result({ what: `${what}: most`, samples: [peakMb], unit: 'MB', goal: { atMost: 250 } })
    report.result({
      what: `${what}: ${REST_MS / 1_000} s later`,
      samples: [afterMb],
      unit: 'MB',
      against: { what: 'before', samples: [beforeMb] },
      goal: { timesAtMost: 1.1 },
    })
  }
}

async function narUrls(agent: RealAgent, { paths }: NixClosure): Promise<string[]> {
  const { url } = await agent.client.get<NixConfView>('nix-conf')
  return await Promise.all(
    paths.map(async (path) => {
      const answer = await fetch(`${url}/${path.slice('/nix/store/'.length).slice(0, 32)}.narinfo`)
      const [, nar] = /^URL: (\S+)$/m.exec(await answer.text()) ?? []
      if (nar === undefined) throw new Error(`${url} does not have ${path}: ${answer.status}`)
      return `${url}/${nar}`
    }),
  )
}

/** Each client takes some of the NARs, one after the other, and begins with another one. */
async function pullAll(urls: readonly string[], clients: number): Promise<void> {
  await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      for (let nth = 0; nth < NARS_EACH; nth++)
        await pull(urls[(client + nth) % urls.length] ?? '', client % 5 === 4 ? SLOW_MS_PER_CHUNK : 0)
    }),
  )
}

async function pull(url: string, msPerChunk: number): Promise<void> {
  const request = get(url, { agent: false })
  const [answer] = (await once(request, 'response')) as [IncomingMessage]
  let bytes = 0
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    bytes += chunk.byteLength
    if (msPerChunk > 0) await delay(msPerChunk)
  }
  if (answer.statusCode !== 200 || bytes < NAR_BYTES) throw new Error(`${url}: ${answer.statusCode}, ${bytes} bytes`)
}

/** The most that the agent takes while the work is done. */
async function watched(agent: RealAgent, work: () => Promise<void>): Promise<{ peakMb: number; seconds: number }> {
  let peakMb = 0
  const startedMs = performance.now()
  const timer = setInterval(() => {
    peakMb = Math.max(peakMb, agent.rssBytes / MB)
  }, SAMPLE_MS)
  try {
    await work()
  } finally {
    clearInterval(timer)
  }
  return { peakMb, seconds: (performance.now() - startedMs) / 1_000 }
}
