/**
 * A whole closure, realised by the real Nix from another agent's store: 300 paths, 500 MiB in all. Against the same Nix and nginx with a
 * flat, uncompressed cache of the same paths on this machine, which has nothing to fetch from elsewhere and nothing to verify. Each turn
 * brings a new store, and a new receiving agent that brought a small closure before: agents run for weeks. What one takes that was just started is
 * told beside it. All of that stays until the end: for a minute after many files were deleted, ext4 without a journal is slow to make
 * others. And what Nix waits for each narinfo of the closure meanwhile.
 *
 * On loopback all of it shares this machine's cores, so the same is asked over a cable, too: the builder, or nginx, on a host that sends a gigabit a second.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { NixConfView } from '../agent/api/contract.ts'
import { type AgentOptions, Bundle, RealAgent, until } from '../test/agents.ts'
import { trust } from '../test/network.ts'
import { hasNix, NixClosure, SecondStore } from '../test/nix-paths.ts'
import { askAll } from './asker.ts'
import { holdMemory } from './calm.ts'
import { type Bench, byTurns, quantile, type Report, scaled } from './harness.ts'
import { canMakeLan, Lan, type LanHost } from './lan.ts'
import { StaticCache } from './static-cache.ts'

const PATHS = 300
const BYTES = scaled(500) * 2 ** 20
const TURNS = { countMax: 3, msMax: 240_000 }
/** What an agent brought before. */
const SMALL = { paths: 100, bytesEach: 300_000, name: 'undernet-bench-small' }
/** Until then what it brought is synced, and its lanes are closed. */
const QUIET_MS = 7_000
/** NARs that Nix takes at a time: what it does by itself, and what people set. */
const MAX_JOBS = [1, 8] as const

export const bench: Bench = {
  name: 'realise',
  question: `How long does Nix need for ${PATHS} paths, ${BYTES / 2 ** 20} MiB, that another agent has?`,
  minutesMax: 15,
  run,
}

/** Where paths come from, and where to: on a host of a LAN each, or both on loopback. */
type Route = { what: string; builder: RealAgent; cache: StaticCache; receiverAt: LanHost | undefined }
/** What all of them share. What is used on the stack stays until the end. */
type Setting = { closure: NixClosure; small: NixClosure; bundle: Bundle; stack: AsyncDisposableStack }

async function run(report: Report): Promise<void> {
  if (!hasNix) return report.note('Nix is not installed: nobody realises anything.')
  await using stack = new AsyncDisposableStack()
  stack.use(await holdMemory())
  const bytesEach = Math.floor(BYTES / PATHS)
  const closure = stack.use(await NixClosure.make({ paths: PATHS, bytesEach, name: 'undernet-bench' }))
  const small = stack.use(await NixClosure.make(SMALL))
  const bundle = stack.use(await Bundle.build())
  const route = async (what: string, builderAt?: LanHost, receiverAt?: LanHost): Promise<Route | undefined> => {
    const cache = await StaticCache.make(closure.root, builderAt)
    if (cache === undefined) return undefined
    stack.use(cache)
    const builder = stack.use(await startAt(builderAt, { name: 'builder', entry: bundle.entry, env: bundle.env }))
    for (const [name, { root }] of Object.entries({ closure, small }))
      await builder.json('publish', root, '--name', name)
    return { what, builder, cache, receiverAt }
  }
  const setting = { closure, small, bundle, stack }
  const loopback = await route('loopback')
  if (loopback === undefined) return report.note('nginx is not installed: there is nothing to compare with.')
  for (const maxJobs of MAX_JOBS) await realise(report, setting, loopback, maxJobs)
  await askForEach(report, setting, loopback)
  if (!canMakeLan()) return report.note('No network namespaces here: nothing is asked over a cable.')
  const lan = stack.use(new Lan(1, 2))
  const [builderAt, receiverAt] = lan.hosts as [LanHost, LanHost]
  lan.limit(builderAt, '1gbit')
  const cable = await route('gigabit', builderAt, receiverAt)
  for (const maxJobs of MAX_JOBS) if (cable) await realise(report, setting, cable, maxJobs)
}

async function realise(report: Report, setting: Setting, route: Route, maxJobs: number): Promise<void> {
  const { closure, small, stack } = setting
  const { what, builder, cache, receiverAt } = route
  const into = async (from: { substituters: string[]; keys: string[] }, { root } = closure) => {
    const store = stack.use(await SecondStore.make())
    const { ok, ms, stderr } = await store.realise(root, { ...from, maxJobs, namespace: receiverAt?.namespace })
    if (!ok) throw new Error(`nix-store --realise from ${from.substituters.join()}: ${stderr}`)
    return ms
  }
  const fromPeer = async (hasWorked: boolean) => {
    await using receiver = await newReceiver(setting, route)
    const from = await trust(receiver, builder)
    if (hasWorked) {
      await into(from, small)
      await delay(QUIET_MS)
    }
    return await into(from)
  }
  const samples = await byTurns(
    {
      agent: () => fromPeer(true),
      nginx: () => into({ substituters: [cache.url], keys: [cache.publicKey] }),
      fresh: () => fromPeer(false),
    },
    TURNS,
  )
  const nginx = { unit: 'ms', against: { what: 'nginx, static', samples: samples.nginx } } as const
  const asked = `${what}, max-jobs = ${maxJobs}`
  report.result({ what: asked, samples: samples.agent, ...nginx, goal: { timesAtMost: 1.5 } })
  report.result({ what: `${asked}, agent just started`, samples: samples.fresh, ...nginx })
}

/** As Nix does: the closure's narinfos, one waiting for the other on each of its connections, while their NARs are fetched ahead. */
async function askForEach(report: Report, setting: Setting, route: Route): Promise<void> {
  const p50: number[] = []
  const worst: number[] = []
  await byTurns(
    {
      agent: async () => {
        await using receiver = await newReceiver(setting, route)
        await trust(receiver, route.builder)
        const { url } = await receiver.client.get<NixConfView>('nix-conf')
        const hashParts = setting.closure.paths.map((path) => path.slice('/nix/store/'.length).slice(0, 32))
        const next = () => hashParts.pop() ?? ''
        const [us = []] = await askAll(url, { connections: 1, count: hashParts.length, next, status: 200 })
        p50.push(quantile(us, 0.5))
        worst.push(Math.max(...us))
        return 0
      },
    },
    { ...TURNS, warmUp: false },
  )
  report.result({ what: 'narinfo, p50', samples: p50, unit: 'us', goal: { atMost: 5_000 } })
  report.result({ what: 'narinfo, the slowest', samples: worst, unit: 'us' })
}

/** A new agent that knows of the closures and has nothing of them. */
async function newReceiver({ bundle, stack }: Setting, { builder, receiverAt }: Route): Promise<RealAgent> {
  const { entry, env } = bundle
  const state = mkdtempSync(join(tmpdir(), 'undernet-receiver-'))
  stack.defer(() => rmSync(state, { recursive: true, force: true }))
  const bootstrap = [await builder.address()]
  const receiver = await startAt(receiverAt, { name: 'receiver', state, entry, env, bootstrap })
  await until(async () => (await receiver.status()).artifacts.known > 1, { what: 'the receiver knows of the closures' })
  return receiver
}

/** On loopback, or on a host of a LAN. */
function startAt(host: LanHost | undefined, options: AgentOptions): Promise<RealAgent> {
  const place = host && { namespace: host.namespace, listen: `/ip4/${host.address}/tcp/0` }
  return RealAgent.start({ ...options, ...place })
}
