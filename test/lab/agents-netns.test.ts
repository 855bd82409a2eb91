/**
 * Agents as they are shipped, on two hosts of a LAN: they find each other by mDNS, `agent status` tells of a link that died, and of a
 * clock that is wrong. Needs root, iproute2 and nftables.
 */
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import { type AgentOptions, Bundle, RealAgent, until } from '../agents.ts'
import { hasNamespaces, makeLan } from '../lan.ts'

const FOUND_MS_MAX = 3_000
const NOTICED_MS_MAX = 15_000

describe.skipIf(!hasNamespaces)('agents on two hosts of a LAN', () => {
  let bundle: Bundle
  beforeAll(async () => {
    bundle = await Bundle.build()
  })
  afterAll(() => bundle?.[Symbol.dispose]())

  async function start(options: AgentOptions): Promise<RealAgent> {
    const agent = await RealAgent.start({
      listen: '/ip4/0.0.0.0/tcp/7477',
      mdns: true,
      entry: bundle.entry,
      env: bundle.env,
      ...options,
    })
    onTestFinished(() => agent[Symbol.asyncDispose]())
    return agent
  }
  const peersOf = async (agent: RealAgent) => (await agent.status()).peers.map(({ name }) => name)

  test('find each other within 3 s of the second start, by the addresses of the LAN, and share', async () => {
    const lan = makeLan()
    const a = await start({ name: 'a', namespace: lan.hosts[0] })
    const startMs = performance.now()
    const b = await start({ name: 'b', namespace: lan.hosts[1] })
    await until(async () => (await peersOf(a)).includes('b') && (await peersOf(b)).includes('a'), {
      what: 'both name each other',
      ms: FOUND_MS_MAX,
    })
    console.log(`found each other ${Math.round(performance.now() - startMs)} ms after the second was spawned`)
    expect((await b.status()).listen[0]).toMatch(/^\/ip4\/10\.77\.0\.2\/tcp\/7477\/p2p\//)
    expect((await a.status()).warnings).toEqual([])
    await a.json('publish', import.meta.filename, '--name', 'shared')
    await until(async () => (await b.client.get<SearchResult>('search', { q: 'shared' })).artifacts[0], {
      what: 'b knows what a has published',
    })
  })

  test('tell of a dead link within 15 s, and meet again when it is back', { timeout: 120_000 }, async () => {
    const lan = makeLan()
    const [a, b] = await Promise.all([
      start({ name: 'a', namespace: lan.hosts[0] }),
      start({ name: 'b', namespace: lan.hosts[1] }),
    ])
    const meet = { what: 'both are connected', ms: 60_000 }
    const both = async () => (await peersOf(a)).length === 1 && (await peersOf(b)).length === 1
    await until(both, meet)
    const mend = lan.drop()
    const cutMs = performance.now()
    await until(async () => (await peersOf(a)).length === 0 && (await peersOf(b)).length === 0, {
      what: 'both have noticed',
      ms: NOTICED_MS_MAX,
    })
    console.log(`noticed after ${Math.round(performance.now() - cutMs)} ms`)
    await until(async () => (await a.status()).warnings.some(({ code }) => code === 'peers.none'), {
      what: 'a says that it sees nobody',
      ms: 60_000,
    })
    mend()
    await until(both, meet)
  })

  test('say that a clock is off, and by how much', async () => {
    const lan = makeLan()
    // Ten minutes is within what records may be ahead, so both still hear each other.
    const shift = new URL('../shift-clock.ts', import.meta.url).href
    const a = await start({ name: 'a', namespace: lan.hosts[0] })
    const b = await start({
      name: 'b',
      namespace: lan.hosts[1],
      env: { ...bundle.env, NODE_OPTIONS: `--import=${shift}` },
    })
    const warning = await until(async () => (await b.status()).warnings.find(({ code }) => code === 'clock.off'), {
      what: 'b knows that its clock is off',
      ms: 60_000,
    })
    expect(warning.message).toMatch(/this clock is (29\d|30\d) s ahead of/)
    expect((await a.status()).peers.length).toBe(1)
  })
})
