/**
 * The life of three machines with the package, in steps that follow each other: from nothing to a network, what people do in it, what goes wrong, and
 * back to nothing. Each step throws when something is not as it should be, and may return what is worth telling.
 */
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { PublishResult, SearchResult, Status } from '../../agent/api/contract.ts'
import type { MemberList } from '../../agent/api/membership-contract.ts'
import type { ServiceDetail } from '../../agent/api/service-contract.ts'
import { until } from '../agents.ts'
import { writeImage } from '../images.ts'
import type { Machine } from './machine.ts'
import type { ThreeMachines } from './three-machines.ts'

/** For what takes seconds on a machine that one has for oneself. */
const SOON_MS_MAX = 60_000
const POLL_MS = 200
const UNIT = 'undernet.service'
const IMAGE_BYTES = 4 * 1024 * 1024
const PATH_BYTES = 4 * 1024 * 1024
/** What is fetched while its only source is upgraded takes eight seconds; the upgrade two or three. */
const LARGE_BYTES = 64 * 1024 * 1024
const RATE = '8MiB'
const BEGUN_BYTES = 4 * 1024 * 1024
/** Of what nobody asked for: a program that answers each request with its own name. */
const APPLICATION = `require('node:http').createServer((_, answer) => answer.end('web')).listen(8080, '127.0.0.1')`
const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish", "image:push *", "image:pull *", "service:offer *", "service:connect *"]
`
/** What dpkg, systemd and those who log in keep anyway, whatever is installed; nothing in it is the package's. */
const OF_THE_SYSTEM =
  /^\/(var\/(log|tmp|cache\/(ldconfig|debconf)|lib\/(dpkg|systemd|apt|pam))|run|tmp|root\/\.cache)(\/|$)|^\/(etc|etc\/(passwd|group|shadow|gshadow|subuid|subgid)-?|etc\/ld\.so\.cache)$/
/** Of what is left behind. */
const SHOWN_MAX = 10
const ACCOUNTS = ['/etc/passwd', '/etc/group', '/etc/shadow', '/etc/gshadow']

/** What a step hands on to a later one. */
type Known = { clean: Snapshot; peerIds: string[] }
type Snapshot = { paths: string[]; accounts: string }
type Step = { what: string; does: (machines: ThreeMachines, known: Known) => Promise<string | undefined> }

/** Told of each step when it is over. */
export type Tell = (step: { what: string; ms: number; remark?: string | undefined; error?: unknown }) => void

/** Lives it; throws what went wrong, after it was told. */
export async function liveThrough(machines: ThreeMachines, tell: Tell): Promise<void> {
  const known: Known = { clean: { paths: [], accounts: '' }, peerIds: [] }
  for (const { what, does } of STEPS) {
    const startedMs = performance.now()
    const ms = () => performance.now() - startedMs
    try {
      const remark = await does(machines, known)
      tell({ what, ms: ms(), remark })
    } catch (error) {
      tell({ what, ms: ms(), error })
      throw error
    }
  }
}

const STEPS: readonly Step[] = [
  { what: 'the package is installed, and the service runs', does: install },
  { what: 'they find each other, by mDNS only', does: findEachOther },
  { what: 'a network is made on the first, the others join by token', does: join3 },
  { what: 'a store path of the first is realised by Nix on the second', does: shareStorePath },
  { what: 'an image is pushed on the first and pulled on the third', does: shareImage },
  { what: 'a service of the first is reached by its name from the second', does: reachByName },
  { what: 'an agent is killed, and systemd starts it again', does: kill },
  { what: 'the power of a machine is cut, and it comes back', does: cutPower },
  { what: 'the first is upgraded while the second fetches from it', does: upgrade },
  { what: 'removed, the state stays; installed again, it is the same node', does: removeAndReinstall },
  { what: 'purged, nothing is left', does: purge },
]

async function install({ all, packages }: ThreeMachines, known: Known): Promise<string> {
  known.clean = await snapshot(all[2])
  await Promise.all(all.map((machine) => machine.does('dpkg', '-i', packages.file)))
  await Promise.all(all.map((machine) => machine.does('systemctl', 'is-active', UNIT)))
  const statuses = await Promise.all(all.map(statusOf))
  known.peerIds = statuses.map(({ peerId }) => peerId)
  same(
    statuses.map(({ version }) => version),
    all.map(() => packages.version),
  )
  return `version ${packages.version}`
}

async function findEachOther({ all }: ThreeMachines): Promise<string> {
  for (const machine of all)
    same(await machine.does('sh', '-c', 'grep -c "^[^#]" /etc/undernet/agent.toml || true'), '0')
  await Promise.all(all.map((machine) => peers(machine, all.length - 1)))
  return 'no address was said to anybody'
}

async function join3({ all, shared }: ThreeMachines): Promise<undefined> {
  const [first, ...others] = all
  await first.asks('network', 'create', 'home', '--as', first.name)
  writeFileSync(join(shared, 'policy.toml'), POLICY)
  await first.does('agent', 'policy', 'set', '/mnt/policy.toml', '--yes')
  for (const machine of others) {
    writeFileSync(join(shared, 'token'), await first.does('agent', 'invite'), { mode: 0o600 })
    await machine.does('agent', 'join', '--file', '/mnt/token', '--as', machine.name)
  }
  await Promise.all(all.map((machine) => members(machine, all.length)))
}

async function shareStorePath({ all: [first, second] }: ThreeMachines): Promise<string> {
  await first.does('sh', '-c', `head -c ${PATH_BYTES} /dev/urandom >/root/tool`)
  const path = await first.does('nix-store', '--add', '/root/tool')
  await first.asks<PublishResult>('publish', path, '--name', 'tool', '--network', 'home')
  await found(second, 'tool')
  // Of the public cache, which cannot be reached from here, Nix asks five times.
  const conf = 'mkdir -p /etc/nix && { agent nix-conf; echo download-attempts = 1; } >>/etc/nix/nix.conf'
  await second.does('sh', '-c', conf)
  await second.does('nix-store', '--realise', path)
  same(await second.does('sha256sum', path), await first.does('sha256sum', path))
  return path
}

async function shareImage({ all: [first, , third], shared }: ThreeMachines): Promise<string> {
  const { digest } = writeImage(join(shared, 'image'), { layers: [randomBytes(IMAGE_BYTES)] })
  const copy = (machine: Machine, from: string, to: string) =>
    machine.does('skopeo', '--insecure-policy', 'copy', '--src-tls-verify=false', '--dest-tls-verify=false', from, to)
  const image = 'docker://127.0.0.1:7478/home/team/app:1'
  await copy(first, 'oci:/mnt/image', image)
  const here = await until(() => copy(third, image, 'oci:/root/image').catch(() => undefined), {
    what: 'the third has heard of the image',
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
  const index = await third.does('cat', '/root/image/index.json')
  if (!index.includes(digest)) throw new Error(`another image came: ${index} and not ${digest}: ${here}`)
  return digest
}

async function reachByName({ all: [first, second] }: ThreeMachines): Promise<string> {
  await first.does('systemd-run', '--unit=application', '/usr/lib/undernet/node', '-e', APPLICATION)
  await first.does('agent', 'service', 'add', 'web', '8080')
  const healthy = async () => {
    const { code, stdout } = await second.run('agent', 'service', 'show', 'web', '--json')
    return code === 0 && (JSON.parse(stdout) as ServiceDetail).instances.some(({ state }) => state === 'healthy')
  }
  await until(healthy, { what: 'the second knows of the service', ms: SOON_MS_MAX, everyMs: POLL_MS })
  await second.does(
    'sh',
    '-c',
    'mkdir -p /etc/systemd/resolved.conf.d && agent dns-conf systemd-resolved >/etc/systemd/resolved.conf.d/undernet.conf',
  )
  await second.does('systemctl', 'restart', 'systemd-resolved')
  const url = 'http://web.home.internal:8080/'
  same(await second.does('curl', '-sS', '--max-time', '10', url), 'web')
  return url
}

async function kill({ all }: ThreeMachines, { peerIds }: Known): Promise<string> {
  const [, second] = all
  const pid = await second.does('systemctl', 'show', '-P', 'MainPID', UNIT)
  const startedMs = performance.now()
  await second.does('kill', '-9', pid)
  await until(async () => (await second.run('agent', 'status', '--json')).code === 0, {
    what: 'the second answers again',
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
  const backMs = performance.now() - startedMs
  await peers(second, all.length - 1)
  same((await statusOf(second)).peerId, peerIds[1])
  same(await second.does('systemctl', 'show', '-P', 'NRestarts', UNIT), '1')
  return `it answered after ${(backMs / 1_000).toFixed(1)} s`
}

async function cutPower({ all }: ThreeMachines, { peerIds }: Known): Promise<string> {
  const [first, , third] = all
  await third.cutPower()
  await delay(POLL_MS)
  const startedMs = performance.now()
  await third.boot()
  await peers(third, all.length - 1)
  same((await statusOf(third)).peerId, peerIds[2])
  const backMs = performance.now() - startedMs
  await members(first, all.length)
  // An orderly one, too.
  await third.powerOff()
  await third.boot()
  await peers(third, all.length - 1)
  return `connected again ${(backMs / 1_000).toFixed(1)} s after the power came`
}

async function upgrade({ all, packages }: ThreeMachines, { peerIds }: Known): Promise<string> {
  const [first, second] = all
  await first.does('sh', '-c', `echo 'upload_rate = "${RATE}"' >>/etc/undernet/agent.toml`)
  await first.does('systemctl', 'reload', UNIT)
  await first.does('sh', '-c', `head -c ${LARGE_BYTES} /dev/urandom >/root/large`)
  await first.asks<PublishResult>('publish', '/root/large', '--network', 'home')
  await found(second, 'large')
  const before = await statusOf(second)
  const fetching = second.run('agent', 'get', 'large', '--to', '/root/got')
  const fetched = async () => (await statusOf(second)).content.fetchedBytes - before.content.fetchedBytes
  await until(async () => (await fetched()) > BEGUN_BYTES, { what: 'it arrives', ms: SOON_MS_MAX, everyMs: POLL_MS })
  await first.does('dpkg', '-i', packages.newerFile)
  const atOnce = await fetched()
  const { code, stderr } = await fetching
  if (code !== 0) throw new Error(`the transfer did not survive: ${stderr}`)
  if (atOnce >= LARGE_BYTES) throw new Error('the transfer was over before the upgrade was')
  same(
    (await second.does('sha256sum', '/root/got/large')).split(' ')[0],
    (await first.does('sha256sum', '/root/large')).split(' ')[0],
  )
  const { version, peerId } = await statusOf(first)
  same([version, peerId], [packages.newer, peerIds[0]])
  // What somebody changed in the configuration is still there.
  await first.does('grep', '-q', '^upload_rate', '/etc/undernet/agent.toml')
  await members(first, all.length)
  const at = async (what: string) =>
    Number(await first.does('systemctl', 'show', '-P', `${what}TimestampMonotonic`, UNIT))
  const downMs = ((await at('ActiveEnter')) - (await at('ActiveExit'))) / 1_000
  return `${atOnce >> 20} of ${LARGE_BYTES >> 20} MiB were there when ${version} ran; it was down for ${(downMs / 1_000).toFixed(1)} s`
}

async function removeAndReinstall({ all, packages }: ThreeMachines, { peerIds }: Known): Promise<undefined> {
  const third = all[2]
  await third.does('dpkg', '--remove', 'undernet')
  same((await third.run('systemctl', 'is-active', UNIT)).stdout.trim(), 'inactive')
  await third.does('test', '-e', '/var/lib/undernet/node.key')
  await third.does('test', '-e', '/etc/undernet/agent.toml')
  await third.does('dpkg', '-i', packages.file)
  await peers(third, all.length - 1)
  same((await statusOf(third)).peerId, peerIds[2])
}

async function purge({ all }: ThreeMachines, { clean }: Known): Promise<string> {
  const third = all[2]
  // What skopeo made is not the package's.
  await third.does('rm', '-r', '/root/image', '/var/lib/containers')
  await third.does('dpkg', '--purge', 'undernet')
  const left = await snapshot(third)
  same(left.accounts, clean.accounts)
  const more = left.paths.filter((path) => !(clean.paths.includes(path) || OF_THE_SYSTEM.test(path)))
  const behind = more.filter((path) => !third.isDirectoryOfRoot(path))
  if (behind.length > 0) throw new Error(`left behind: ${behind.slice(0, SHOWN_MAX).join(' ')}`)
  same((await third.run('test', '-e', '/run/undernet')).code, 1)
  same((await third.run('systemctl', 'status', UNIT)).code, 4)
  return `${left.paths.length} paths looked at`
}

/** What is on a machine's disk beyond Debian, and who has an account. */
async function snapshot(machine: Machine): Promise<Snapshot> {
  return { paths: machine.writtenPaths(), accounts: await machine.does('cat', ...ACCOUNTS) }
}

async function statusOf(machine: Machine): Promise<Status> {
  return await machine.asks<Status>('status')
}

async function peers(machine: Machine, count: number): Promise<void> {
  await until(async () => (await statusOf(machine).catch(() => undefined))?.peers.length === count, {
    what: `${machine.name} is connected with ${count}`,
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
}

async function members(machine: Machine, count: number): Promise<void> {
  const here = async () => {
    const { members } = await machine.asks<MemberList>('member', 'list')
    return members.filter(({ state }) => state === 'here').length
  }
  await until(async () => (await here()) === count, {
    what: `${machine.name} sees ${count} members`,
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
}

async function found(machine: Machine, name: string): Promise<void> {
  await until(async () => (await machine.asks<SearchResult>('search', name)).artifacts.length > 0, {
    what: `${machine.name} finds ${name}`,
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
}

function same(seen: unknown, expected: unknown): void {
  const [a, b] = [JSON.stringify(seen), JSON.stringify(expected)]
  if (a !== b) throw new Error(`${a} where ${b} was expected`)
}
