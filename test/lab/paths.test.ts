/**
 * Ways between members: two agents behind NAT routers that know nothing of each other, and one with a public address. They meet through
 * it at once; when a direct way appears they take it, and when that dies they are back on the relay, and what runs goes on.
 */
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PeerView, PublishResult } from '../../agent/api/contract.ts'
import { type RealAgent, run, until } from '../agents.ts'
import { invite, joinWith, Lab, membersOf, SOON_MS_MAX, says } from '../cluster/members.ts'
import { hasNamespaces } from '../lan.ts'
import { NatLab } from './nat-lab.ts'

const MIB = 1024 * 1024
const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["relay:use", "content:fetch", "content:publish", "service:offer *", "service:connect *"]
`
/** What a server is called, and where it listens. */
const SERVICES = { web: 8_080, h2: 8_081, box: 2_222, cache: 6_379, speed: 5_201 }
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
    await says(relay, 'policy', 'set', lab.file('services.toml', POLICY), '--yes')
    const behind = async (name: string, lan: 1 | 2, by: RealAgent) => {
      const agent = await lab.start({
        name,
        flags: FLAGS,
        namespace: nat.host(lan),
        loopback: { dns: '127.0.0.1:53', proxy: '127.0.0.1:7479' },
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

  it('offer services that unmodified programs reach by their names, through both routers', async () => {
    await using stack = new AsyncDisposableStack()
    await startServers(nat, lab, stack)
    for (const [name, port] of Object.entries(SERVICES)) await says(b, 'service', 'add', name, String(port))
    nat.useResolver(1, '127.0.0.1')
    const uses = async (...command: string[]): Promise<string> => {
      const { code, stdout, stderr } = await run('ip', ['netns', 'exec', nat.host(1), ...command])
      return code === 0 ? stdout : `${command[0]} failed: ${stdout}${stderr}`
    }
    for (const name of Object.keys(SERVICES))
      await until(async () => (await uses('dig', '+short', `${name}.home.internal`)).startsWith('127.'), {
        what: `${name} has an address`,
        ms: SOON_MS_MAX,
      })
    expect(await uses('curl', '-sS', 'http://web.home.internal:8080/x')).toBe('web /x')
    expect(await uses('curl', '-sS', '--http2-prior-knowledge', 'http://h2.home.internal:8081/x')).toBe('h2 /x')
    expect(await uses('curl', '-sS', '--socks5-hostname', '127.0.0.1:7479', 'http://web.home.internal/y')).toBe(
      'web /y',
    )
    const say = `const s = new WebSocket('ws://web.home.internal:8080/ws'); s.onopen = () => s.send('hello'); s.onmessage = ({ data }) => { console.log(data); process.exit() }`
    expect(await uses(process.execPath, '-e', say)).toBe('hello\n')
    expect(await uses('redis-cli', '-h', 'cache.home.internal', 'set', 'a', 'b')).toBe('OK\n')
    const files = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'LogLevel=ERROR', 'BatchMode=yes']
    const ssh = ['ssh', '-p', '2222', '-i', lab.path('ssh-user'), ...files.flatMap((one) => ['-o', one])]
    expect(await uses(...ssh, 'root@box.home.internal', 'echo', 'over', 'there')).toBe('over there\n')
    const measured = JSON.parse(await uses('iperf3', '-c', 'speed.home.internal', '-t', '1', '-P', '2', '-J')) as {
      end: { sum_received: { bytes: number } }
    }
    // What is still in buffers when it stops the clock, it does not count.
    expect(measured.end.sum_received.bytes).toBeGreaterThan(0)
    for (const name of Object.keys(SERVICES)) await says(b, 'service', 'remove', name)
  }, 120_000)

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

/** On the loopback of the host in the second LAN, each a program that people run. */
async function startServers(nat: NatLab, lab: Lab, stack: AsyncDisposableStack): Promise<void> {
  for (const name of ['ssh-host', 'ssh-user'])
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', lab.path(name)])
  mkdirSync('/run/sshd', { recursive: true })
  const settings = [
    `HostKey ${lab.path('ssh-host')}`,
    `AuthorizedKeysFile ${lab.path('ssh-user.pub')}`,
    'ListenAddress 127.0.0.1',
    'Port 2222',
    'PermitRootLogin yes',
    'StrictModes no',
    'PidFile none',
  ]
  const programs = [
    [process.execPath, new URL('applications.ts', import.meta.url).pathname],
    ['/usr/sbin/sshd', '-D', '-f', lab.file('sshd.conf', `${settings.join('\n')}\n`)],
    ['redis-server', '--bind', '127.0.0.1', '--port', '6379', '--save', '', '--dir', lab.path('.')],
    ['iperf3', '-s', '-B', '127.0.0.1'],
  ]
  for (const program of programs) {
    const child = spawn('ip', ['netns', 'exec', nat.host(2), ...program], { stdio: 'ignore' })
    stack.defer(() => void child.kill('SIGKILL'))
  }
}
