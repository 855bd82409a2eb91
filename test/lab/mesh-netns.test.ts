/**
 * Nodes in network namespaces on one bridge: found by mDNS, and dead links noticed. Needs root, iproute2 and nftables.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { describe, expect, onTestFinished, test } from 'vitest'
import { until } from '../agent/mesh/nodes.ts'
import { hasNamespaces, type Lan, makeLan } from '../lan.ts'

describe.skipIf(!hasNamespaces)('nodes in two network namespaces on a bridge', () => {
  test('find each other by mDNS within 3 s of the second start', async () => {
    const lan = makeLan()
    const a = startNode(['--mdns'], lan.hosts[0])
    await until('a has started', () => a.of('started') !== undefined)
    const b = startNode(['--mdns'], lan.hosts[1])
    await until('b has started', () => b.of('started') !== undefined)
    const startedMs = performance.now()
    await until('connected', () => a.of('peer') !== undefined && b.of('peer') !== undefined, 3_000)
    console.log(`found and connected ${Math.round(performance.now() - startedMs)} ms after listening`)
    expect(a.of('peer')?.peerId).toBe(b.of('started')?.peerId)
  })

  test('find each other by mDNS within 3 s when both start at once', async () => {
    const lan = makeLan()
    const [a, b] = [startNode(['--mdns'], lan.hosts[0]), startNode(['--mdns'], lan.hosts[1])]
    await until('both have started', () => a.of('started') !== undefined && b.of('started') !== undefined)
    await until('connected', () => a.of('peer') !== undefined && b.of('peer') !== undefined, 3_000)
    expect(a.all('gone').length + b.all('gone').length).toBeLessThanOrEqual(1)
  })

  test('find nobody without mDNS, and each other by one bootstrap', async () => {
    const lan = makeLan()
    const a = startNode([], lan.hosts[0])
    await until('a has started', () => a.of('started') !== undefined)
    const address = a.of('started')?.addresses?.[0] ?? ''
    expect(address).toMatch(/^\/ip4\/10\.77\.0\.1\/tcp\/7477\/p2p\//)
    const b = startNode(['--bootstrap', address.split('/p2p/')[0] ?? ''], lan.hosts[1])
    await until('connected', () => b.of('peer')?.peerId === a.of('started')?.peerId)
  })

  test.each([
    ['packets are dropped', (lan: Lan) => lan.drop(), [], 15_000],
    // 4.1 s, on a machine that one has for oneself.
    ['the cable is pulled while something passes', (lan: Lan) => lan.pull(), ['--chat'], 8_000],
  ])(
    'notice soon that the link is dead when %s, and meet again when it is back',
    { timeout: 90_000 },
    async (_, cut, args, noticedMs) => {
      const lan = makeLan()
      const a = startNode(args, lan.hosts[0])
      await until('a has started', () => a.of('started') !== undefined)
      const b = startNode(['--bootstrap', a.of('started')?.addresses?.[0] ?? ''], lan.hosts[1])
      await until('connected', () => a.of('peer') !== undefined && b.of('peer') !== undefined)
      const mend = cut(lan)
      const cutMs = performance.now()
      await until('both have noticed', () => a.of('gone') !== undefined && b.of('gone') !== undefined, noticedMs)
      console.log(`noticed after ${Math.round(performance.now() - cutMs)} ms`)
      mend()
      await until('connected again', () => b.all('peer').length === 2, 45_000)
    },
  )
})

test('two processes on one machine find each other by mDNS within 3 s', async () => {
  const nodes = [1, 2].map(() => startNode(['--mdns', '--listen', '/ip4/0.0.0.0/tcp/0']))
  await until('both have started', () => nodes.every((node) => node.of('started') !== undefined))
  const [a, b] = nodes as [Node, Node]
  const meets = (one: Node, other: Node) => one.all('peer').some(({ peerId }) => peerId === other.of('started')?.peerId)
  await until('connected', () => meets(a, b) && meets(b, a), 3_000)
})

type Event = { event: string; peerId: string; addresses?: string[] }
type Node = { of(event: string): Event | undefined; all(event: string): Event[] }

function startNode(args: string[], namespace?: string): Node {
  const program = [process.execPath, new URL('mesh-process.ts', import.meta.url).pathname, ...args]
  const [command = '', ...rest] = namespace === undefined ? program : ['ip', 'netns', 'exec', namespace, ...program]
  const child: ChildProcess = spawn(command, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  const events: Event[] = []
  if (child.stdout === null) throw new Error('no standard output')
  createInterface(child.stdout).on('line', (line) => events.push(JSON.parse(line) as Event))
  const all = (name: string) => events.filter(({ event }) => event === name)
  return { all, of: (name) => all(name)[0] }
}
