/**
 * Two agents on one machine find each other, each a process of its own. Other agents of this machine may answer by mDNS as well, so
 * nothing here counts peers where mDNS is on.
 */
import { describe, expect, onTestFinished, test } from 'vitest'
import { type AgentOptions, freePort, RealAgent, until } from '../agents.ts'

/** As by default, on ports of their own. */
const EVERYWHERE = ['/ip4/0.0.0.0/tcp/0', '/ip6/::/tcp/0']

describe('by mDNS, listening on all addresses as by default', () => {
  test('within 3 s of the moment that the second answers', async () => {
    const a = await start({ name: 'a', mdns: true, listen: EVERYWHERE })
    const startedMs = performance.now()
    const b = await start({ name: 'b', mdns: true, listen: EVERYWHERE })
    const answeredMs = performance.now()
    await meet(a, b, 3_000)
    const now = performance.now()
    console.log(`met ${ms(now - answeredMs)} after the second answered, ${ms(now - startedMs)} after it was spawned`)
  })

  test('within 3 s of the moment that the later one answers, when both start at once', async () => {
    const options = { mdns: true, listen: EVERYWHERE }
    const [a, b] = await Promise.all([start({ name: 'a', ...options }), start({ name: 'b', ...options })])
    const answeredMs = performance.now()
    await meet(a, b, 3_000)
    console.log(`met ${ms(performance.now() - answeredMs)} after both answered`)
  })
})

describe('without mDNS', () => {
  test('by one bootstrap, which need not know the other', async () => {
    const a = await start({ name: 'a' })
    const b = await start({ name: 'b', bootstrap: [await a.address()] })
    const answeredMs = performance.now()
    await meet(a, b, 3_000)
    console.log(`met ${ms(performance.now() - answeredMs)} after the second answered`)
  })

  test('by a bootstrap whose address has no peer id', async () => {
    const a = await start({ name: 'a' })
    const [address = ''] = (await a.address()).split('/p2p/')
    const b = await start({ name: 'b', bootstrap: [address] })
    await meet(a, b, 3_000)
  })

  test('not at all when nobody names the other', async () => {
    const a = await start({ name: 'a' })
    const b = await start({ name: 'b' })
    const c = await start({ name: 'c', bootstrap: [await b.address()] })
    await meet(b, c, 3_000)
    expect((await a.status()).peers).toEqual([])
  })

  test('when the bootstrap comes up later, which the status says until then', async () => {
    const port = await freePort()
    const address = `/ip4/127.0.0.1/tcp/${port}`
    const b = await start({ name: 'b', bootstrap: [address] })
    const [warning] = await until(async () => notEmpty((await b.status()).warnings), { what: 'b misses its bootstrap' })
    expect(warning).toMatchObject({ code: 'bootstrap.unreachable', message: expect.stringContaining(address) })
    const a = await start({ name: 'a', listen: address })
    const upMs = performance.now()
    // The back-off of a bootstrap that just failed a few times.
    await meet(a, b, 15_000)
    console.log(`met ${ms(performance.now() - upMs)} after the bootstrap answered`)
    expect((await b.status()).warnings).toEqual([])
  })

  test('after a restart with no bootstrap, since peers are remembered', async () => {
    const port = await freePort()
    const a = await start({ name: 'a', listen: `/ip4/127.0.0.1/tcp/${port}` })
    const first = await start({ name: 'b', bootstrap: [await a.address()] })
    await meet(a, first, 3_000)
    const { peerId } = await first.status()
    await first.end('SIGTERM')
    const second = await start({ name: 'b', state: first.state })
    const answeredMs = performance.now()
    expect((await second.status()).peerId).toBe(peerId)
    await meet(a, second, 5_000)
    console.log(`met again ${ms(performance.now() - answeredMs)} after the restarted one answered`)
  })

  test('after both were killed and start again with no bootstrap', async () => {
    const port = await freePort()
    const listen = `/ip4/127.0.0.1/tcp/${port}`
    const a = await start({ name: 'a', listen })
    const b = await start({ name: 'b', bootstrap: [await a.address()] })
    await meet(a, b, 3_000)
    await Promise.all([a.end('SIGKILL'), b.end('SIGKILL')])
    const again = await start({ name: 'b', state: b.state })
    const other = await start({ name: 'a', state: a.state, listen })
    await meet(other, again, 15_000)
  })
})

async function start(options: AgentOptions): Promise<RealAgent> {
  const agent = await RealAgent.start(options)
  onTestFinished(() => agent[Symbol.asyncDispose]())
  return agent
}

/** Resolves when each has the other as a peer. */
async function meet(a: RealAgent, b: RealAgent, withinMs: number): Promise<void> {
  const [{ peerId: idOfA }, { peerId: idOfB }] = await Promise.all([a.status(), b.status()])
  const sees = async (one: RealAgent, peerId: string) =>
    (await one.status()).peers.some((peer) => peer.peerId === peerId)
  await until(async () => (await sees(a, idOfB)) && (await sees(b, idOfA)), {
    what: () => `${a.name} and ${b.name} meet:\n${[...a.log, ...b.log].join('\n')}`,
    ms: withinMs,
  })
}

function notEmpty<T>(list: T[]): T[] | undefined {
  return list.length > 0 ? list : undefined
}

function ms(duration: number): string {
  return `${Math.round(duration)} ms`
}
