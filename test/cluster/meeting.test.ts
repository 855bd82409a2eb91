/**
 * Members of a closed network find each other without being told an address: through a third member, by mDNS, and by the DHT of the open
 * network when they know one node of that and nothing else. Whenever they start again here, it is on another port, so that what they
 * remember of each other is of no use.
 */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { freePort, type RealAgent, until } from '../agents.ts'
import { allSee, findsNamed, invite, joinWith, Lab, type MemberOptions, publish, SOON_MS_MAX, says } from './members.ts'

/** A lookup begins some seconds after the start, and again after that while nobody was found. */
const FOUND_MS_MAX = 60_000
/** As by default, on ports of their own. */
const EVERYWHERE = ['/ip4/0.0.0.0/tcp/0', '/ip6/::/tcp/0']

let lab: Lab
let founder: RealAgent
let a: RealAgent
let b: RealAgent

beforeAll(async () => {
  lab = await Lab.open()
  const start = (name: string) => lab.start({ name, flags: ['--no-open'] })
  ;[founder, a, b] = await Promise.all([start('founder'), start('a'), start('b')])
  await says(founder, 'network', 'create', 'home')
})
afterAll(() => lab?.[Symbol.asyncDispose]())

test('through a third member: each knows the address in its token, and nothing else', async () => {
  await joinWith(a, await invite(founder))
  await joinWith(b, await invite(founder))
  await allSee([founder, a, b], ['founder', 'a', 'b'])
  await connected(a, b)
  // The one who brought them together is not needed any more.
  await lab.end(founder)
  await expectShared('through')
})

test('by mDNS, with the open network off', async () => {
  await restartBoth({ mdns: true, listen: EVERYWHERE })
  await connected(a, b)
  await expectShared('near')
})

test('by the DHT, from one node of the open network that is no member, though they want no more peers', async () => {
  const first = await lab.start({ name: 'first' })
  const bootstrap = [await first.address()]
  await lab.start({ name: 'second', bootstrap })
  // Room for that one node, so that only a fellow member is dialled beside it.
  const flags = ['--open', '--max-peers', '1']
  const startMs = performance.now()
  await restartBoth({ mdns: false, bootstrap, flags })
  await connected(a, b, FOUND_MS_MAX)
  console.log(`members met ${((performance.now() - startMs) / 1_000).toFixed(1)} s after their start`)
  await expectShared('far')
  const { peers } = await first.status()
  expect(peers.every(({ networks }) => networks.join() === 'open')).toBe(true)
  expect(JSON.stringify([await first.client.get('networks'), first.log])).not.toContain('home')
})

/** On a free port unless told where. */
async function restartBoth(options: Partial<MemberOptions>): Promise<void> {
  const port = async () => `/ip4/127.0.0.1/tcp/${await freePort()}`
  await Promise.all([lab.end(a), lab.end(b)])
  a = await lab.restart(a, { listen: await port(), ...options })
  b = await lab.restart(b, { listen: await port(), ...options })
}

/** Resolves when each has the other as a peer in the network. */
async function connected(one: RealAgent, other: RealAgent, ms = SOON_MS_MAX): Promise<void> {
  const ids = await Promise.all([one, other].map(async (agent) => (await agent.status()).peerId))
  const sees = async (agent: RealAgent, peerId: string | undefined) =>
    (await agent.status()).peers.some((peer) => peer.peerId === peerId && peer.networks.includes('home'))
  await until(async () => (await sees(one, ids[1])) && (await sees(other, ids[0])), {
    what: () => `${one.name} and ${other.name} meet:\n${[...one.log.slice(-20), ...other.log.slice(-20)].join('\n')}`,
    ms,
  })
}

/** What one publishes the other gets. */
async function expectShared(name: string): Promise<void> {
  await publish(lab, a, name, `of ${name}`, '--network', 'home')
  await findsNamed(b, name, 'home')
  await says(b, 'get', name, '--network', 'home', '--to', lab.path(`${name}-got`))
}
