/**
 * Two members behind routers of every kind, and a third with a public address: which path they find, how soon, and how soon the first byte of a
 * service comes. Real agents in network namespaces. Needs root, iproute2 and nftables.
 *
 * A cell begins with all agents stopped. `first` is from the start of the second agent until curl, through the proxy of the first one, has the
 * first byte of a web server behind the second; `then` is a request on the path that they have settled on.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { PeerView } from '../agent/api/contract.ts'
import { table } from '../agent/cli/table.ts'
import { type RealAgent, run, until } from '../test/agents.ts'
import { invite, joinWith, Lab, says } from '../test/cluster/members.ts'
import { NatLab, ROUTER_KINDS, type RouterKind } from '../test/lab/nat-lab.ts'
import { type Bench, isQuick, median } from './harness.ts'

/** Members that have not met by then will not. */
const MEET_MS_MAX = 60_000
/** Better paths are looked for at once, and then ever more seldom. */
const SETTLE_MS = 12_000
const REQUESTS = 9
const PORT = 8_080
const PROXY = '127.0.0.1:7479'
const FLAGS = ['--no-open', '--no-mdns']
const LISTEN = ['/ip4/0.0.0.0/tcp/7477', '/ip4/0.0.0.0/udp/7477/quic-v1']
const POLICY = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["relay:use", "service:offer *", "service:connect *"]\n'
/** With `--quick`: where it is decided whether there is a hole. */
const QUICK: readonly RouterKind[] = ['no inbound', 'masquerade', 'symmetric']

type Trio = { relay: RealAgent; one: RealAgent; two: RealAgent }
type Cell = { path: string; metMs: number; firstMs: number; thenMs: number }

export const bench: Bench = {
  name: 'nat-matrix',
  question: 'Which path do two members find, whatever routers are before them, and how soon does a service answer?',
  minutesMax: 30,
  async run(report, signal) {
    const kinds = isQuick ? QUICK : ROUTER_KINDS
    await using lab = await Lab.open()
    let trio = await founded(lab)
    const rows: string[][] = []
    for (const mine of kinds) {
      const row: string[] = [mine]
      for (const theirs of kinds) {
        signal.throwIfAborted()
        const { cell, agents } = await measured(lab, trio, { 1: mine, 2: theirs })
        trio = agents
        row.push(cell === undefined ? 'impossible' : textOf(cell))
        process.stderr.write(`${mine} to ${theirs}: ${row.at(-1)}\n`)
      }
      rows.push(row)
    }
    const columns = [{ title: 'from \\ to' }, ...kinds.map((title) => ({ title }))]
    report.note(
      `path settled on; ms until met / until the first byte / of a request then\n${table(columns, rows).join('\n')}`,
    )
  },
}

function textOf({ path, metMs, firstMs, thenMs }: Cell): string {
  return `${path} ${Math.round(metMs)}/${Math.round(firstMs)}/${thenMs.toFixed(1)}`
}

/** Members of one network, the second of which offers a service. */
async function founded(lab: Lab): Promise<Trio> {
  using nat = NatLab.make({ 1: 'open', 2: 'open' })
  const start = (name: string, namespace: string) =>
    lab.start({ name, namespace, listen: LISTEN, flags: FLAGS, loopback: { proxy: PROXY } })
  const relay = await start('relay', nat.relay)
  await says(relay, 'network', 'create', 'home', '--as', 'relay')
  await says(relay, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
  const join = async (name: string, namespace: string) => {
    const agent = await start(name, namespace)
    await joinWith(agent, await invite(relay), '--as', name)
    return agent
  }
  const [one, two] = [await join('one', nat.host(1)), await join('two', nat.host(2))]
  await until(async () => (await two.run('service', 'add', 'web', String(PORT), '--check', 'none')).code === 0, {
    what: 'the second offers a service',
    ms: MEET_MS_MAX,
  })
  for (const agent of [relay, one, two]) await lab.end(agent)
  return { relay, one, two }
}

async function measured(lab: Lab, { relay, one, two }: Trio, kinds: Record<1 | 2, RouterKind>) {
  using nat = NatLab.make(kinds)
  await using stack = new AsyncDisposableStack()
  await webServer(nat.host(2), stack)
  const again = await lab.restart(relay, { namespace: nat.relay })
  const first = await lab.restart(one, { namespace: nat.host(1) })
  await until(async () => (await peerOf(first, 'relay')) !== undefined, {
    what: 'the first knows the relay',
    ms: MEET_MS_MAX,
  })
  const startMs = performance.now()
  const second = await lab.restart(two, { namespace: nat.host(2) })
  const agents = { relay: again, one: first, two: second }
  const cell = await measuredPath(first, nat, startMs).catch((error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
    return undefined
  })
  for (const agent of Object.values(agents)) await lab.end(agent)
  return { cell, agents }
}

async function measuredPath(one: RealAgent, nat: NatLab, startMs: number): Promise<Cell> {
  const met = until(async () => (await peerOf(one, 'two')) !== undefined, { what: 'they meet', ms: MEET_MS_MAX })
  const metMs = met.then(() => performance.now() - startMs)
  const get = () => request(nat.host(1))
  await until(async () => (await get()) !== undefined, { what: 'the service answers', ms: MEET_MS_MAX })
  const firstMs = performance.now() - startMs
  const settledMs = performance.now() + SETTLE_MS
  await until(async () => performance.now() > settledMs || (await peerOf(one, 'two'))?.path === 'direct', {
    what: 'they settle',
    ms: MEET_MS_MAX,
    everyMs: 250,
  })
  const times: number[] = []
  for (let nth = 0; nth < REQUESTS; nth++) {
    const ms = await get()
    if (ms !== undefined) times.push(ms)
  }
  const peer = await peerOf(one, 'two')
  const by = peer?.address.includes('/quic') ? 'QUIC' : 'TCP'
  const path = peer?.path === 'direct' ? `direct ${by}` : (peer?.path ?? 'gone')
  return { path, metMs: await metMs, firstMs, thenMs: median(times) }
}

/** Milliseconds until the first byte; undefined when there is none. */
async function request(namespace: string): Promise<number | undefined> {
  const url = `http://web.home.internal:${PORT}/`
  const curl = [
    'curl',
    '-sf',
    '--max-time',
    '10',
    '-o',
    '/dev/null',
    '-w',
    '%{time_starttransfer}',
    '-x',
    `http://${PROXY}`,
    url,
  ]
  const { code, stdout } = await run('ip', ['netns', 'exec', namespace, ...curl])
  return code === 0 ? Number(stdout) * 1_000 : undefined
}

async function peerOf(agent: RealAgent, name: string): Promise<PeerView | undefined> {
  return (await agent.client.get<{ peers: PeerView[] }>('peers')).peers.find((one) => one.name === name)
}

async function webServer(namespace: string, stack: AsyncDisposableStack): Promise<void> {
  const program = `require('node:http').createServer((q, r) => r.end('here')).listen(${PORT}, '127.0.0.1', () => console.log('up'))`
  const server = spawn('ip', ['netns', 'exec', namespace, process.execPath, '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  stack.defer(() => void server.kill('SIGKILL'))
  await once(server.stdout, 'data')
}
