/**
 * Ways between members: two agents behind NAT routers that know nothing of each other, and one with a public address. They meet through
 * it at once; when a direct way appears they take it, and when that dies they are back on the relay, and what runs goes on.
 */
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PeerView, PublishResult } from '../../agent/api/contract.ts'
import { type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, membersOf, SOON_MS_MAX, says } from '../cluster/members.ts'
import { hasNamespaces } from '../lan.ts'
import { NatLab } from './nat-lab.ts'

const MIB = 1024 * 1024
const FLAGS = ['--no-open', '--no-mdns', '--no-punch', '--log-level', 'debug']

describe.skipIf(!hasNamespaces)('members behind two NAT routers, and one in public', () => {
  let nat: NatLab
  let lab: Lab
  let relay: RealAgent
  let a: RealAgent
  let b: RealAgent

  beforeAll(async () => {
    nat = NatLab.make()
    lab = await Lab.open()
    relay = await lab.start({
      name: 'relay',
      flags: FLAGS,
      namespace: nat.relay,
      listen: `/ip4/${nat.relayAddress}/tcp/7477`,
    })
    await says(relay, 'network', 'create', 'home')
    const behind = async (name: string, lan: 1 | 2, by: RealAgent) => {
      const agent = await lab.start({
        name,
        flags: FLAGS,
        namespace: nat.host(lan),
        listen: `/ip4/${nat.hostAddress(lan)}/tcp/7477`,
      })
      await joinWith(agent, await invite(by))
      return agent
    }
    a = await behind('a', 1, relay)
    await says(relay, 'network', 'delegate', 'home', 'a', '--may', 'issue')
    await mayInvite(a)
    // By a token of somebody whom nobody can dial.
    b = await behind('b', 2, a)
  }, 120_000)
  afterAll(async () => {
    await lab?.[Symbol.asyncDispose]()
    nat?.[Symbol.dispose]()
  })

  const mayInvite = (agent: RealAgent) =>
    until(async () => (await membersOf(relay)).find(({ name }) => name === agent.name)?.issues, {
      what: `${agent.name} may invite, and the relay knows`,
      ms: SOON_MS_MAX,
    })

  const peerOf = async (agent: RealAgent, name: string): Promise<PeerView | undefined> =>
    (await agent.client.get<{ peers: PeerView[] }>('peers')).peers.find((one) => one.name === name)
  const onPath = (path: PeerView['path']) =>
    until(async () => (await peerOf(a, 'b'))?.path === path && (await peerOf(b, 'a'))?.path === path, {
      what: () => `a and b are connected, path ${path}\n${a.log.slice(-15).join('\n')}`,
      ms: SOON_MS_MAX,
    })

  async function publish(agent: RealAgent, name: string, sizeBytes: number): Promise<{ cid: string; sha256: string }> {
    const bytes = randomBytes(sizeBytes)
    const file = lab.path(name)
    writeFileSync(file, bytes)
    const { artifact } = await agent.json<PublishResult>('publish', file, '--network', 'home')
    return { cid: artifact.cid, sha256: createHash('sha256').update(bytes).digest('hex') }
  }

  async function gets(agent: RealAgent, cid: string): Promise<string> {
    const directory = lab.path(`${agent.name}-${cid}`)
    mkdirSync(directory)
    await says(agent, 'get', cid, '--to', directory)
    const hash = createHash('sha256')
    const [file = ''] = readdirSync(directory)
    for await (const chunk of createReadStream(join(directory, file))) hash.update(chunk as Buffer)
    return hash.digest('hex')
  }

  it('are connected through it at once, and say so', async () => {
    await onPath('relay')
    expect((await peerOf(a, 'b'))?.relay?.name).toBe('relay')
    expect(await says(a, 'peers')).toMatch(/^b .* by relay, /m)
  })

  it('fetch from each other through it', async () => {
    const { cid, sha256 } = await publish(b, 'song', 3 * MIB)
    expect(await gets(a, cid)).toBe(sha256)
  })

  it('take a direct way when there is one, go on when it dies, and lose nothing that runs meanwhile', async () => {
    const film = await publish(b, 'film', 64 * MIB)
    const slow = gets(a, film.cid)
    nat.joinLans()
    await onPath('direct')
    expect(await slow).toBe(film.sha256)
    const { cid, sha256 } = await publish(a, 'answer', 2 * MIB)
    expect(await gets(b, cid)).toBe(sha256)
    nat.partLans()
    await onPath('relay')
    const again = await publish(b, 'encore', MIB)
    expect(await gets(a, again.cid)).toBe(again.sha256)
  }, 180_000)

  it('are dialled where a router lets them in, which it is told to take back at a stop', async () => {
    await nat.letPortsIn(2, 'upnp')
    b = await lab.restart(b, { flags: [...FLAGS, '--port-mapping'] })
    await onPath('direct')
    expect((await peerOf(a, 'b'))?.address ?? (await peerOf(b, 'a'))?.address).toMatch(/^\/ip4\/45\.10\.0\./)
    expect(nat.portsIn(2)).toContain(7477)
    b = await lab.restart(b, { flags: FLAGS })
    expect(nat.portsIn(2)).toEqual([])
    await onPath('relay')
  }, 120_000)

  it('are not carried without the grant', async () => {
    const policy = lab.file(
      'policy.toml',
      '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["content:fetch", "content:publish"]\n',
    )
    await says(relay, 'policy', 'set', policy)
    await until(async () => (await peerOf(a, 'b')) === undefined && (await peerOf(b, 'a')) === undefined, {
      what: 'what was carried is cut when the grant is taken back',
      ms: SOON_MS_MAX,
    })
    const { code, stderr } = await a.run('ping', 'b', '--count', '1')
    expect([code, stderr]).toEqual([1, expect.stringMatching(/cannot be reached/)])
    expect(await peerOf(a, 'b')).toBeUndefined()
  }, 120_000)
})
