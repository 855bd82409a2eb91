/**
 * Ways by UDP, through real routers in network namespaces: two agents behind NAT routers come through them, also where one is symmetric, and are
 * on the relay again when the way dies; and QUIC where TCP is blocked.
 */
import { createHash, randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PeerView, PublishResult } from '../../agent/api/contract.ts'
import { type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, SOON_MS_MAX, says } from '../cluster/members.ts'
import { hasNamespaces } from '../lan.ts'
import { NatLab } from './nat-lab.ts'

const MIB = 1024 * 1024
const FLAGS = ['--no-open', '--no-mdns', '--log-level', 'debug']
/** QUIC notices after five seconds, and it takes two more to be looked at. */
const NOTICED_MS_MAX = 20_000

const listenAt = (host: string) => [`/ip4/${host}/tcp/7477`, `/ip4/${host}/udp/7477/quic-v1`]

describe.skipIf(!hasNamespaces)('two members behind routers, and one in public', () => {
  let nat: NatLab
  let lab: Lab
  let relay: RealAgent
  let a: RealAgent
  let b: RealAgent

  beforeAll(async () => {
    nat = NatLab.make()
    lab = await Lab.open()
    relay = await lab.start({ name: 'relay', flags: FLAGS, namespace: nat.relay, listen: listenAt(nat.relayAddress) })
    await says(relay, 'network', 'create', 'home')
    const behind = async (name: string, lan: 1 | 2) => {
      const agent = await lab.start({
        name,
        flags: FLAGS,
        namespace: nat.host(lan),
        listen: listenAt(nat.hostAddress(lan)),
        logLinesMax: 2_000,
      })
      await joinWith(agent, await invite(relay))
      return agent
    }
    a = await behind('a', 1)
    b = await behind('b', 2)
  }, 120_000)
  afterAll(async () => {
    await lab?.[Symbol.asyncDispose]()
    nat?.[Symbol.dispose]()
  })

  const peerOf = async (agent: RealAgent, name: string): Promise<PeerView | undefined> =>
    (await agent.client.get<{ peers: PeerView[] }>('peers')).peers.find((one) => one.name === name)
  const onPath = (path: PeerView['path']) =>
    until(async () => (await peerOf(a, 'b'))?.path === path && (await peerOf(b, 'a'))?.path === path, {
      what: () => `a and b are connected, path ${path}\n${[...holes(a), ...holes(b), ...a.log.slice(-15)].join('\n')}`,
      ms: SOON_MS_MAX,
    })
  const holes = ({ log }: RealAgent) => log.filter((line) => line.includes('"hole.') || line.includes('"reflector.'))
  const restartBoth = async () => {
    ;[a, b] = await Promise.all([lab.restart(a), lab.restart(b)])
  }

  /** One publishes, the other gets it. */
  async function exchange(from: RealAgent, to: RealAgent, sizeBytes: number): Promise<void> {
    const bytes = randomBytes(sizeBytes)
    const name = bytes.toString('hex', 0, 8)
    writeFileSync(lab.path(name), bytes)
    const { artifact } = await from.json<PublishResult>('publish', lab.path(name), '--network', 'home')
    const directory = lab.path(`${to.name}-${name}`)
    await says(to, 'get', artifact.cid, '--to', directory)
    const [file = ''] = readdirSync(directory)
    const hash = (data: Buffer) => createHash('sha256').update(data).digest('hex')
    expect(hash(readFileSync(join(directory, file)))).toBe(hash(bytes))
  }

  it('come through ordinary ones, say so, exchange content there, and tell nobody of the place', async () => {
    await onPath('punched')
    expect(await says(a, 'peers')).toMatch(/^b .* punched, /m)
    expect(await says(a, 'ping', 'b', '--count', '1')).toMatch(/, punched: /)
    await exchange(b, a, 8 * MIB)
    // From QUIC's own socket, since the relay told where that is seen.
    for (const [one, name] of [
      [a, 'b'],
      [b, 'a'],
    ] as const)
      expect((await peerOf(one, name))?.address).toMatch(/^\/ip4\/45\.10\.0\.[12]\/udp\//)
    for (const agent of [a, b]) {
      const { listen } = await agent.status()
      expect(listen.filter((address) => !address.includes('/7477'))).toEqual([])
    }
  })

  it('are on the relay again when the way dies', async () => {
    const undo = nat.drop(1, 'udp')
    await onPath('relay')
    await exchange(a, b, MIB)
    undo()
  })

  it('come through where one is symmetric', async () => {
    nat.makeSymmetric(2)
    await restartBoth()
    await onPath('punched')
    await exchange(a, b, 4 * MIB)
  })

  it('stay on the relay where both are symmetric', async () => {
    nat.makeSymmetric(1)
    await restartBoth()
    await until(() => [a, b].some((agent) => agent.logged('hole.none').some(({ how }) => how === 'relay')), {
      what: () => `it is tried once\n${[...holes(a), ...holes(b)].join('\n')}`,
      ms: SOON_MS_MAX,
    })
    await onPath('relay')
  })

  it('reach the public one by QUIC where TCP is blocked, are missed soon when they die, and are cut when they are revoked', async () => {
    nat.drop(1, 'tcp dport 7477')
    a = await lab.restart(a)
    const isByQuic = async () => {
      const peer = await peerOf(relay, 'a')
      return peer?.path === 'direct' && peer.address.includes('/quic-v1')
    }
    await until(isByQuic, { what: () => `the relay has a by QUIC\n${a.log.slice(-15).join('\n')}`, ms: SOON_MS_MAX })
    expect(await says(relay, 'peers')).toMatch(/^a .* direct quic, /m)
    await exchange(relay, a, MIB)
    await a.end('SIGKILL')
    await until(async () => (await peerOf(relay, 'a')) === undefined, {
      what: 'the relay notices that a is gone',
      ms: NOTICED_MS_MAX,
    })
    a = await lab.restart(a)
    await until(isByQuic, { what: 'the relay has a by QUIC again', ms: SOON_MS_MAX })
    await says(relay, 'member', 'revoke', 'a', '--yes')
    await until(async () => (await peerOf(relay, 'a')) === undefined, { what: 'a is cut', ms: SOON_MS_MAX })
  })
})
