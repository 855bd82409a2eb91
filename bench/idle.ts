/**
 * What an agent costs while nothing happens: six agents as shipped, found by mDNS on a LAN of their own, so that each has five peers;
 * beside them six stock libp2p nodes with as many peers, and a Node that does nothing. Every other agent finds no compiled code, as after an
 * installation, and then holds what compiling took for as long as it runs. After a minute to settle all are watched for some
 * minutes, and an hour is reckoned from that. Bytes are whole Ethernet frames at the host's interface, both directions.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { type Bench, isQuick, median, type Report } from './harness.ts'
import { canMakeLan, Lan, type LanHost } from './lan.ts'
import { stockEntry } from './stock-bundle.ts'
import { StockNode } from './stock-node.ts'

const NODES = 6
const SETTLE_MS = isQuick ? 20_000 : 60_000
const WATCH_MS = isQuick ? 40_000 : 300_000
const LOOK_MS = 5_000
const MEET_MS_MAX = 60_000
const HOUR_MS = 3_600_000
/** Of /proc/PID/stat: USER_HZ, 100 on Linux whatever the kernel's own clock. */
const TICK_MS = 10
/** Of an agent's number, modulo 2: it finds its code compiled. */
const WARM = 0
const AGENT_PORT = 7477

export const bench: Bench = {
  name: 'idle',
  question: `What do ${NODES - 1} peers cost an agent while nothing happens?`,
  minutesMax: 15,
  run,
}

type Watched = { pid: number; bytes: () => number }
type Cost = { cpuPercent: number[]; rssMb: number[]; kbPerHour: number[] }

async function run(report: Report, signal: AbortSignal): Promise<void> {
  if (!canMakeLan()) {
    return report.note('idle: needs root and iproute2, to count bytes on a LAN of its own.')
  }
  await using stack = new AsyncDisposableStack()
  const [agentLan, stockLan] = [stack.use(new Lan(1, NODES)), stack.use(new Lan(2, NODES))]
  const agents = await startAgents(agentLan, stack)
  const stock = await startStock(stockLan, stack)
  const bare = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1e6)'], { stdio: 'ignore' })
  stack.defer(() => void bare.kill('SIGKILL'))

  report.progress(`all have met; ${SETTLE_MS / 1_000} s to settle, ${WATCH_MS / 1_000} s to watch`)
  await delay(SETTLE_MS, undefined, { signal })
  const [ours, theirs, none] = await Promise.all([
    watch(agents, signal),
    watch(stock, signal),
    watch([{ pid: bare.pid ?? 0, bytes: () => 0 }], signal),
  ])
  const every = (samples: readonly number[], rest: number) => samples.filter((_, nth) => nth % 2 === rest)
  const result = (what: string, cost: keyof Cost, rest: Pick<Parameters<Report['result']>[0], 'unit' | 'goal'>) =>
    report.result({ what, samples: ours[cost], against: { what: 'stock libp2p', samples: theirs[cost] }, ...rest })
  result('CPU', 'cpuPercent', { unit: '%', goal: { atMost: 1 } })
  for (const [what, rssMb] of [
    ['resident memory', every(ours.rssMb, WARM)],
    ['resident memory, started for the first time', every(ours.rssMb, 1 - WARM)],
  ] as const) {
    const shown = { what, samples: rssMb, unit: 'MB', goal: { atMost: 125 } } as const
    report.result({ ...shown, against: { what: 'stock libp2p', samples: every(theirs.rssMb, 0) } })
    report.result({ ...shown, against: { what: 'node -e 0', samples: none.rssMb } })
  }
  result('on the wire', 'kbPerHour', { unit: 'KB/h' })
  report.note(`idle: watched for ${WATCH_MS / 1_000} s, and reckoned to an hour; lowest and highest of ${NODES} nodes.`)
}

async function startAgents(lan: Lan, stack: AsyncDisposableStack): Promise<Watched[]> {
  const { entry, env } = stack.use(await Bundle.build())
  // Its code is compiled and kept when it ends.
  const first = await RealAgent.start({ name: 'first', entry, env })
  await first.end()
  await first[Symbol.asyncDispose]()
  const agents: RealAgent[] = []
  for (const [nth, { namespace }] of lan.hosts.entries()) {
    const cache = nth % 2 === WARM ? env : { CACHE_DIRECTORY: stack.use(new TemporaryDirectory()).path }
    const options = { namespace, entry, env: cache, mdns: true, listen: `/ip4/0.0.0.0/tcp/${AGENT_PORT}` }
    agents.push(stack.use(await RealAgent.start({ name: namespace, ...options })))
  }
  const hasAll = async (agent: RealAgent) => (await agent.status()).peers.length === NODES - 1
  for (const agent of agents) {
    await until(() => hasAll(agent), { what: `${agent.name} has ${NODES - 1} peers`, ms: MEET_MS_MAX })
  }
  return agents.map(({ pid }, nth) => ({ pid, bytes: () => lan.bytes(lan.hosts[nth] as LanHost) }))
}

async function startStock(lan: Lan, stack: AsyncDisposableStack): Promise<Watched[]> {
  const entry = stack.use(await stockEntry())
  const nodes: StockNode[] = []
  const addresses: string[] = []
  for (const { namespace, address } of lan.hosts) {
    const started = await StockNode.start(entry.path, { namespace, address: `/ip4/${address}/tcp/0` })
    nodes.push(stack.use(started.node))
    await started.node.ask('dial', { addresses })
    addresses.push(started.address)
  }
  for (const node of nodes) {
    const hasAll = async () => (await node.ask('peers', null)) === NODES - 1
    await until(hasAll, { what: `a stock node has ${NODES - 1} peers`, ms: MEET_MS_MAX })
  }
  return nodes.map(({ pid }, nth) => ({ pid, bytes: () => lan.bytes(lan.hosts[nth] as LanHost) }))
}

class TemporaryDirectory implements Disposable {
  readonly path: string

  constructor() {
    this.path = mkdtempSync(join(tmpdir(), 'undernet-idle-'))
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

/** One figure for each process. */
async function watch(processes: readonly Watched[], signal: AbortSignal): Promise<Cost> {
  const startedMs = performance.now()
  const before = processes.map(({ pid, bytes }) => ({ cpuMs: cpuMsOf(pid), bytes: bytes() }))
  const rss = processes.map(() => [] as number[])
  while (performance.now() - startedMs < WATCH_MS) {
    await delay(LOOK_MS, undefined, { signal })
    for (const [nth, { pid }] of processes.entries()) rss[nth]?.push(rssMbOf(pid))
  }
  const tookMs = performance.now() - startedMs
  const since = (nth: number, now: number, what: 'cpuMs' | 'bytes') => now - (before[nth]?.[what] ?? Number.NaN)
  return {
    cpuPercent: processes.map(({ pid }, nth) => (100 * since(nth, cpuMsOf(pid), 'cpuMs')) / tookMs),
    rssMb: rss.map(median),
    kbPerHour: processes.map(({ bytes }, nth) => ((since(nth, bytes(), 'bytes') / 1_000) * HOUR_MS) / tookMs),
  }
}

function cpuMsOf(pid: number): number {
  // The name, in parentheses, may hold anything.
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ')
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS
}

function rssMbOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return (Number(kib) * 1_024) / 1e6
}
