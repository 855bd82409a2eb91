/**
 * How fast the binary cache says what nobody has, which is most of what Nix asks for: on an agent by itself, and in a network of ten of which
 * each publishes something. Against nginx with a static cache on this machine, which has no other node to think of.
 */
import { randomBytes } from 'node:crypto'
import type { NixConfView } from '../agent/api/contract.ts'
import { encodeNix32 } from '../agent/nix/nix32.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { Network } from '../test/network.ts'
import { hasNix, NixClosure } from '../test/nix-paths.ts'
import { askAll } from './asker.ts'
import { type Bench, byTurns, median, quantile, type Report, scaled, timed } from './harness.ts'
import { StaticCache } from './static-cache.ts'

const NODES = 10
/** What each of them publishes: a network has some ten thousand paths in all. */
const PATHS_EACH = 40
const TURNS = { countMax: 7, msMax: 90_000 }
/** Asked for in a turn: one after the other, and by so many connections at once (Nix opens up to 25). */
const ASKED = scaled(2_000)
const CONNECTIONS = 16

export const bench: Bench = {
  name: 'narinfo',
  question: `How fast is it said that nobody has a path, alone and in a network of ${NODES}?`,
  minutesMax: 10,
  run,
}

async function run(report: Report): Promise<void> {
  if (!hasNix) return report.note('Nix is not installed: nobody asks for narinfos.')
  await using stack = new AsyncDisposableStack()
  const closures: NixClosure[] = []
  for (let nth = 0; nth < NODES; nth++) {
    closures.push(stack.use(await NixClosure.make({ paths: PATHS_EACH, name: `undernet-bench-${nth}` })))
  }
  const cache = await StaticCache.make(closures[0]?.root ?? '')
  if (cache === undefined) return report.note('nginx is not installed: there is nothing to compare with.')
  stack.use(cache)
  const { entry, env } = stack.use(await Bundle.build())
  const alone = stack.use(await RealAgent.start({ name: 'alone', entry, env }))
  const names = Array.from({ length: NODES }, (_, nth) => `node-${nth}`)
  const { agents } = stack.use(await Network.start(names, { entry, env }))
  await Promise.all(agents.map((agent, nth) => agent.json('publish', closures[nth]?.root ?? '', '--name', `n-${nth}`)))
  const member = agents.at(-1) as RealAgent
  const knowsAll = async () => (await member.status()).artifacts.known === NODES
  await until(knowsAll, { what: 'a node knows what all publish', ms: 60_000 })
  await ask(report, { alone: await urlOf(alone), network: await urlOf(member), nginx: cache.url })
}

async function ask(report: Report, urls: { alone: string; network: string; nginx: string }): Promise<void> {
  const next = () => encodeNix32(randomBytes(20))
  const tails = { alone: [] as number[], network: [] as number[], nginx: [] as number[] }
  const one = (who: keyof typeof urls) => async (turn: number) => {
    const [us = []] = await askAll(urls[who], { connections: 1, count: ASKED, next, status: 404 })
    if (turn >= 0) tails[who].push(quantile(us, 0.99))
    return median(us)
  }
  const rate = (who: keyof typeof urls) => async () => {
    const asked = { connections: CONNECTIONS, count: ASKED / CONNECTIONS, next, status: 404 } as const
    return ASKED / ((await timed(() => askAll(urls[who], asked))) / 1_000)
  }
  const samples = await byTurns(
    {
      alone: one('alone'),
      network: one('network'),
      nginx: one('nginx'),
      aloneRate: rate('alone'),
      networkRate: rate('network'),
      nginxRate: rate('nginx'),
    },
    TURNS,
  )
  const against = (list: readonly number[]) => ({ what: 'nginx, static', samples: list })
  for (const who of ['alone', 'network'] as const) {
    const where = who === 'alone' ? 'alone' : `network of ${NODES}`
    report.result({ what: `miss, ${where}, p50`, samples: samples[who], unit: 'us', against: against(samples.nginx) })
    report.result({
      what: `miss, ${where}, p99`,
      samples: tails[who],
      unit: 'us',
      against: against(tails.nginx),
      goal: { atMost: 10_000 },
    })
    report.result({
      what: `misses, ${where}, ${CONNECTIONS} connections`,
      samples: samples[`${who}Rate`],
      unit: '/s',
      against: against(samples.nginxRate),
    })
  }
}

async function urlOf(agent: RealAgent): Promise<string> {
  return (await agent.client.get<NixConfView>('nix-conf')).url
}
