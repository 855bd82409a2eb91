/**
 * The small world keeps working: LANs with no Internet behind them, a laptop that goes from one to the other, a machine that stands in two, and one
 * that knows IPv6 only. Agents as they are shipped; all in one closed network, with the open one off.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PeerView, Status } from '../../agent/api/contract.ts'
import { type RealAgent, run, until } from '../agents.ts'
import { invite, joinWith, Lab, SOON_MS_MAX, says } from '../cluster/members.ts'
import { hasNamespaces } from '../lan.ts'
import { Wires } from './wires.ts'

const FLAGS = ['--no-open', '--log-level', 'debug']
const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["relay:use", "service:offer *", "service:connect *"]
`
const PROXY = '127.0.0.1:7479'
const LISTEN = ['/ip4/0.0.0.0/tcp/7477', '/ip6/::/tcp/7477']

describe.skipIf(!hasNamespaces)('LANs without the Internet', () => {
  const stack = new AsyncDisposableStack()
  let wires: Wires
  let lab: Lab
  let desk: RealAgent
  let laptop: RealAgent
  const spaces: Record<string, string> = {}

  beforeAll(async () => {
    wires = stack.use(new Wires())
    for (const name of ['office', 'kitchen', 'cellar']) wires.lan(name)
    for (const name of ['desk', 'laptop', 'router', 'cellar', 'six']) spaces[name] = wires.host(name)
    const { router = '', six = '' } = spaces
    wires.plug(router, 'office', 'eth0', '10.81.0.1/24')
    wires.plug(router, 'kitchen', 'eth1', '10.82.0.1/24')
    wires.forwards(router)
    wires.plug(spaces.desk ?? '', 'office', 'eth0', '10.81.0.2/24', 'fd81::2/64')
    wires.plug(spaces.laptop ?? '', 'office', 'eth0', '10.81.0.3/24')
    wires.plug(six, 'office', 'eth0', 'fd81::6/64')
    // The desk is also in a LAN that leads nowhere.
    wires.plug(spaces.desk ?? '', 'cellar', 'eth1', '10.83.0.2/24')
    wires.plug(spaces.cellar ?? '', 'cellar', 'eth0', '10.83.0.3/24')
    for (const name of ['desk', 'laptop']) wires.route(spaces[name] ?? '', 'default', '10.81.0.1')
    lab = stack.use(await Lab.open())
    ;[desk, laptop] = await Promise.all([start('desk'), start('laptop')])
    await says(desk, 'network', 'create', 'home', '--as', 'desk')
    await says(desk, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await joinWith(laptop, await invite(desk), '--as', 'laptop')
  }, 120_000)
  afterAll(() => stack.disposeAsync())

  const start = (name: string) =>
    lab.start({
      name,
      namespace: spaces[name] ?? '',
      listen: LISTEN,
      mdns: true,
      flags: FLAGS,
      loopback: { proxy: PROXY },
    })
  const peerOf = async (agent: RealAgent, name: string): Promise<PeerView | undefined> =>
    (await agent.client.get<{ peers: PeerView[] }>('peers')).peers.find((one) => one.name === name)
  const connected = (a: RealAgent, b: RealAgent, path: PeerView['path'], ms = SOON_MS_MAX) =>
    until(async () => (await peerOf(a, b.name))?.path === path && (await peerOf(b, a.name))?.path === path, {
      what: () => `${a.name} and ${b.name} are connected, path ${path}\n${a.log.slice(-15).join('\n')}`,
      ms,
    })

  it('a laptop that goes to another network is connected again within seconds, and says where it is', async () => {
    await connected(desk, laptop, 'direct')
    const startMs = performance.now()
    wires.move(spaces.laptop ?? '', 'eth0', 'kitchen', '10.82.0.3/24')
    wires.route(spaces.laptop ?? '', 'default', '10.82.0.1')
    await until(async () => (await peerOf(desk, 'laptop'))?.address.includes('/10.82.0.3/'), {
      what: () => `the desk has the laptop in the kitchen\n${laptop.log.slice(-15).join('\n')}`,
      ms: SOON_MS_MAX,
    })
    console.log(`connected again ${Math.round(performance.now() - startMs)} ms after the move`)
    expect((await laptop.status()).listen.join()).toMatch(/^\/ip4\/10\.82\.0\.3\//)
  })

  it('a machine that knows IPv6 only is found by mDNS, joins by a token, and reaches a service', async () => {
    const six = await start('six')
    // It is nobody's member yet: that it was heard of shows in that it is dialled, or dials, and is refused.
    const refusals = () => [...desk.logged('hello.refused'), ...six.logged('hello.refused')]
    await until(() => refusals().some(({ address }) => String(address).startsWith('/ip6/fd81::')), {
      what: 'the two have heard of each other by mDNS',
      ms: SOON_MS_MAX,
    })
    await joinWith(six, await invite(desk), '--as', 'six')
    await connected(desk, six, 'direct')
    expect((await peerOf(six, 'desk'))?.address).toMatch(/^\/ip6\/fd81::2\//)
    await lab.end(six)
    const again = await lab.restart(six)
    expect(again.logged('lan.failed')).toEqual([])
    await connected(desk, again, 'direct')
    await wires.serve(spaces.desk ?? '', 8080, 'from the desk')
    await says(desk, 'service', 'add', 'web', '8080')
    const get = ['curl', '-sS', '-x', `http://${PROXY}`, 'http://web.home.internal:8080/']
    await until(async () => (await run('ip', ['netns', 'exec', spaces.six ?? '', ...get])).stdout === 'from the desk', {
      what: 'it reaches a service of the desk',
      ms: SOON_MS_MAX,
      everyMs: 200,
    })
  })

  it('members that see each other only through a machine in both networks reach each other', async () => {
    const cellar = await start('cellar')
    await joinWith(cellar, await invite(desk), '--as', 'cellar')
    await connected(cellar, laptop, 'relay')
    expect((await peerOf(laptop, 'cellar'))?.relay?.name).toBe('desk')
    expect(await says(laptop, 'netcheck')).toMatch(/^desk +[\d.]+ ms +home +yes /m)
    expect(await says(laptop, 'ping', 'cellar', '-c', '1')).toMatch(/relay/)
  })

  it('an agent with no bootstrap that answers starts at once, says so, and joins when it appears', async () => {
    await lab.end(desk)
    const startMs = performance.now()
    const bootstrap = ['/ip4/10.81.0.2/tcp/7477']
    laptop = await lab.restart(laptop, { mdns: false, bootstrap })
    console.log(`answers ${Math.round(performance.now() - startMs)} ms after the restart began`)
    const warned = async () =>
      (await laptop.status()).warnings.some(({ code }: Status['warnings'][number]) => code === 'bootstrap.unreachable')
    await until(warned, { what: 'it says that nobody answers', ms: SOON_MS_MAX })
    desk = await lab.restart(desk)
    await connected(desk, laptop, 'direct')
  })
})
