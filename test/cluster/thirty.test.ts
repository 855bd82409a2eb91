/**
 * Thirty agents on one machine, each a process of its own as it is shipped: what all of them say is everywhere within 10 s of the last
 * start; of ten that are killed, everybody knows within the lease and 5 s; restarted ones are back in everybody's view.
 *
 * They know one bootstrap and no mDNS. Starting thirty takes two cores some 20 s, so they start a few at a time; memory is measured, and
 * the test is skipped, loudly, where there is not enough.
 */
import { freemem, loadavg } from 'node:os'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import { type AgentOptions, Bundle, fairClock, freePort, RealAgent, until } from '../agents.ts'

const AGENTS = 30
const KILLED = 10
/** Two cores share what starts at once. */
const STARTS_AT_ONCE = 3
/** Of the presence of a node in a network of this size, as agent/catalog/presence.ts has it. */
const LEASE_MS = 60_000
/** Of one that has started, until it has a first peer; the next ones start then. */
const JOINED_MS_MAX = 60_000
/** What the issue promises. */
const CONVERGED_MS_MAX = 10_000
const GONE_MS_MAX = LEASE_MS + 5_000
/** A look is a request to each agent. */
const POLL_MS = 200
/** An agent takes about 100 MB; with room for the tests themselves. */
const MEMORY_BYTES_MIN = 6 * 1024 ** 3

const able = freemem() > MEMORY_BYTES_MIN
if (!able) console.warn(`skipped: thirty agents, which need ${mib(MEMORY_BYTES_MIN)} of memory`)

describe.skipIf(!able)('thirty agents', { timeout: 600_000 }, () => {
  const agents: RealAgent[] = []
  let bundle: Bundle
  /** Of the bootstrap, which has to be found again after a restart. */
  let listen: string
  beforeAll(async () => {
    bundle = await Bundle.build()
    listen = `/ip4/127.0.0.1/tcp/${await freePort()}`
  })
  afterAll(async () => {
    await Promise.all(agents.map((agent) => agent[Symbol.asyncDispose]()))
    bundle[Symbol.dispose]()
  })

  test('agree on everything within 10 s of the last start', async () => {
    const startedMs = performance.now()
    const [first] = await startAll(1, { listen })
    const bootstrap = [(await first?.address()) ?? '']
    await startAll(AGENTS - 1, { bootstrap })
    const lastMs = performance.now()
    const agreed = await allSee(agents, AGENTS, CONVERGED_MS_MAX)
    console.log(`${AGENTS} agents started in ${seconds(lastMs - startedMs)}, and agreed ${agreed} after the last`)
    const rss = agents.map(({ rssBytes }) => rssBytes)
    const cpu = agents.map(({ cpuSeconds }) => cpuSeconds)
    console.log(
      `memory: ${mib(Math.max(...rss))} at most, ${mib(sum(rss))} together; CPU: ${sum(cpu).toFixed(0)} s together`,
    )
    const peers = (await Promise.all(agents.map((agent) => agent.status()))).map((status) => status.peers.length)
    console.log(`peers each: ${Math.min(...peers)} to ${Math.max(...peers)}`)
    await agreeOnArtifacts(agents)
  })

  test('know within the lease and 5 s that ten of them were killed', async () => {
    const [dead, alive] = [agents.slice(0, KILLED), agents.slice(KILLED)]
    const killedMs = performance.now()
    await Promise.all(dead.map((agent) => agent.end('SIGKILL')))
    await allSee(alive, AGENTS - KILLED, GONE_MS_MAX)
    console.log(`${KILLED} killed agents were gone everywhere after ${seconds(performance.now() - killedMs)}`)
    // What they published has a longer lease: they may come back.
    await agreeOnArtifacts(alive)
  })

  test('agree again within 10 s of the last restart, also when those were the bootstrap', async () => {
    const startedMs = performance.now()
    for (let at = 0; at < KILLED; at += STARTS_AT_ONCE) {
      const batch = agents.slice(at, Math.min(at + STARTS_AT_ONCE, KILLED))
      const restarted = await Promise.all(
        batch.map(({ name, state }) =>
          RealAgent.start({ name, state, entry: bundle.entry, env: bundle.env, ...(name === 'node0' && { listen }) }),
        ),
      )
      agents.push(...restarted)
      await haveJoined(restarted)
    }
    const lastMs = performance.now()
    const running = agents.slice(KILLED)
    const agreed = await allSee(running, AGENTS, CONVERGED_MS_MAX)
    console.log(`${KILLED} agents restarted in ${seconds(lastMs - startedMs)}, and all agreed ${agreed} after the last`)
    await agreeOnArtifacts(running)
  })

  /** Starts that many more, and publishes an artifact on each as soon as it answers. */
  async function startAll(count: number, options: Partial<AgentOptions>): Promise<RealAgent[]> {
    const started: RealAgent[] = []
    while (started.length < count) {
      const names = Array.from({ length: Math.min(STARTS_AT_ONCE, count - started.length) }, (_, nth) => {
        return `node${agents.length + nth}`
      })
      const { entry, env } = bundle
      const batch = await Promise.all(names.map((name) => RealAgent.start({ name, entry, env, ...options })))
      agents.push(...batch)
      started.push(...batch)
      await Promise.all(batch.map((agent) => publish(agent)))
      if (agents.length > 1) await haveJoined(batch)
    }
    return started
  }

  async function haveJoined(batch: RealAgent[]): Promise<void> {
    const isIn = async (agent: RealAgent) => (await agent.status()).peers.length > 0
    await until(async () => (await Promise.all(batch.map(isIn))).every(Boolean), {
      what: () => `${batch.map(({ name }) => name).join(', ')} have peers\n${report(agents)}`,
      ms: JOINED_MS_MAX,
    })
  }
})

async function publish(agent: RealAgent): Promise<void> {
  const bytes = Buffer.from(`of ${agent.name}`)
  async function* chunks() {
    yield bytes
  }
  await agent.client.upload('upload', { type: 'file', name: agent.name }, chunks(), AbortSignal.timeout(60_000))
}

/** Waits until each of them knows that many present nodes, and everybody's artifact; says how long that took. */
async function allSee(agents: RealAgent[], nodes: number, ms: number): Promise<string> {
  const startMs = performance.now()
  const clock = fairClock(() => sum(agents.map(({ cpuSeconds }) => cpuSeconds)))
  const sees = async (agent: RealAgent) => {
    const status = await agent.status()
    return status.networks[0]?.nodes === nodes && status.artifacts.known === AGENTS
  }
  const all = async () => {
    // The last to start are the last to know.
    for (const agent of agents.toReversed()) if (!(await sees(agent))) return false
    return true
  }
  await until(all, { what: () => report(agents), ms, everyMs: POLL_MS, clock })
  const [tookMs, fairMs] = [performance.now() - startMs, clock()]
  // The last look may have begun in time and ended late.
  expect(fairMs).toBeLessThanOrEqual(ms)
  return tookMs - fairMs < 0.1 * tookMs
    ? seconds(tookMs)
    : `${seconds(tookMs)} (${seconds(fairMs)} without other programs)`
}

/** Not only as many: the same. */
async function agreeOnArtifacts(agents: RealAgent[]): Promise<void> {
  const views = new Set<string>()
  for (const agent of agents) {
    const { artifacts } = await agent.client.get<SearchResult>('search', { limit: 500 })
    const lines = artifacts.map(({ cid, publisher, name, issued }) => `${publisher.peerId} ${name} ${cid} ${issued}`)
    views.add(lines.toSorted().join('\n'))
  }
  expect(views.size).toBe(1)
  expect([...views][0]?.split('\n')).toHaveLength(AGENTS)
}

/** What each knows, for a failure. */
function report(agents: RealAgent[]): string {
  const last = agents.map(({ name, log }) => `${name}: ${log.at(-1)}`)
  return `agreement; load ${loadavg()[0]?.toFixed(1)}; at the end of the logs:\n${last.join('\n')}`
}

function sum(numbers: number[]): number {
  return numbers.reduce((total, one) => total + one, 0)
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 1024 ** 2)} MiB`
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
