/**
 * `npm run soak -- install`: `agent install` on machines that boot a real systemd, and what the unit is there for: that it goes on under its hardening,
 * who may use it, what happens when it is killed, hangs or cannot start, what Nix, container engines and the resolver are told, and that nothing is
 * left in the end. Needs root, debootstrap and systemd-nspawn (apt-get install debootstrap systemd-container); builds dist/ if it is not there.
 */
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { styleText } from 'node:util'
import type { PublishResult, Status } from '../agent/api/contract.ts'
import { copyProgram, runningProgram } from '../agent/install/program.ts'
import { Root } from '../agent/install/root.ts'
import { bundle } from '../nix/build.ts'
import { until } from '../test/agents.ts'
import { makeHosts } from '../test/lab/three-hosts.ts'
import { Machine } from '../test/machines/machine.ts'
import { machineRoot } from '../test/machines/root.ts'

/** Far more than it takes: what is not over by then hangs. */
const MS_MAX = 15 * 60_000
const SOON_MS_MAX = 60_000
const POLL_MS = 200
const UNIT = 'undernet.service'
const BUNDLE = fileURLToPath(new URL('../dist/main.js', import.meta.url))
/** What is run before anything is installed: as a stick that somebody brings. */
const BROUGHT = ['/mnt/program/bin/node', '/mnt/program/dist/main.js']
/** The promise of the unit. */
const EXPOSURE_MAX = 2
/** An installation takes a second or two. */
const CUT_OFF_MS = [150, 300, 450, 600, 800, 1_000]
const LARGE_BYTES = 200 * 2 ** 20
const APPLICATION = "require('node:http').createServer((q, s) => s.end('web')).listen(8080, '127.0.0.1')"
const POLICY = `[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish", "service:offer *", "service:connect *"]
`
/** What systemd and those who log in keep anyway, whatever is installed, and what a sysusers leaves that is killed. */
const OF_THE_SYSTEM =
  /^\/(var\/(log|tmp|lib\/(systemd|private))|run|tmp|root(\/\.cache)?|etc\/\.pwd\.lock|etc\/\.#(passwd|group|shadow|gshadow)\w+|etc\/(passwd|group|shadow|gshadow|subuid|subgid)-?)(\/|$)/
const ACCOUNTS = ['/etc/passwd', '/etc/group', '/etc/shadow', '/etc/gshadow']

type Machines = { first: Machine; second: Machine }
type Known = { paths: string[]; accounts: string; peerId: string }
type Step = [what: string, does: (machines: Machines, known: Known) => Promise<string | undefined>]

const STEPS: readonly Step[] = [
  ['it stays away where it may not, or cannot', refusals],
  ['--dry-run shows everything and changes nothing', dryRun],
  ['killed at any moment, it is run again, or taken away', cutOff],
  ['installed, it runs and answers; a second time changes nothing', install],
  ['the unit is closed, and the agent knows what it needs all the same', closed],
  ['the group may use it, others may not', group],
  ['secrets come as credentials, and none has to', credentials],
  ['the journal has its log, with priorities and fields', journal],
  ['it reloads; a mistake in the configuration ends it for good, and says why', configuration],
  ['killed, hanging, without its socket: systemd starts it again', failures],
  ['Nix and the resolver are told; a path of a shared store, a large file and a name come through', programs],
  ['somebody at a terminal is shown what engines would be told, and asked', containers],
  ['a newer program takes the place of the older, which goes', upgrade],
  ['what was changed since stays; the state does, and is the same node again', uninstall],
  ['purged, nothing is left', purge],
]

async function refusals({ first }: Machines, known: Known): Promise<string> {
  known.paths = first.writtenPaths()
  known.accounts = await first.does('cat', ...ACCOUNTS)
  const nobody = await first.run('runuser', '-u', 'nobody', '--', ...BROUGHT, 'install')
  same([nobody.code, nobody.stderr.includes('only root may')], [4, true])
  const hidden = `mount -t tmpfs none /run/systemd && exec ${BROUGHT.join(' ')} install`
  const without = await first.run('unshare', '-m', 'sh', '-c', hidden)
  same([without.code, without.stderr.includes('not started by systemd')], [1, true])
  await first.does('mount', '--bind', '/etc', '/etc')
  await first.does('mount', '-o', 'remount,ro,bind', '/etc')
  const readOnly = await first.run(...BROUGHT, 'install')
  await first.does('umount', '/etc')
  same([readOnly.code, /read-only/.test(readOnly.stderr)], [4, true])
  await nothingLeft(first, known)
  return readOnly.stderr.split('\n')[0] ?? ''
}

async function dryRun({ first }: Machines, known: Known): Promise<string> {
  const plan = await first.does(...BROUGHT, 'install', '--dry-run')
  for (const line of ['/etc/systemd/system/undernet.service', '+ Type=notify', `run      systemctl start ${UNIT}`])
    if (!plan.includes(line)) throw new Error(`the plan has no ${line}:\n${plan}`)
  await nothingLeft(first, known)
  return `${plan.split('\n').length} lines`
}

async function cutOff({ first }: Machines, known: Known): Promise<string> {
  for (const ms of CUT_OFF_MS) {
    await first.run('timeout', '-s', 'KILL', `${ms / 1_000}s`, ...BROUGHT, 'install')
    if (ms === CUT_OFF_MS[2]) {
      await first.does(...BROUGHT, 'uninstall', '--purge')
      await nothingLeft(first, known)
    }
  }
  return `after ${CUT_OFF_MS.join(', ')} ms`
}

async function install({ first, second }: Machines, known: Known): Promise<string> {
  const [said] = await Promise.all([first.does(...BROUGHT, 'install'), second.does(...BROUGHT, 'install')])
  const { peerId } = await statusOf(first)
  known.peerId = peerId
  const again = await first.does('agent', 'install')
  if (!again.includes('Nothing to change')) throw new Error(`a second run:\n${again}`)
  const { changes, commands } = await first.asks<{ changes: unknown[]; commands: unknown[] }>('install')
  same([changes, commands], [[], []])
  same(await first.does('systemctl', 'is-enabled', UNIT), 'enabled')
  return said.split('\n').at(-1) ?? ''
}

async function closed({ first }: Machines): Promise<string> {
  const judged = await first.does('systemd-analyze', 'security', '--no-pager', UNIT)
  const [, exposure = ''] = /Overall exposure level for \S+: ([\d.]+)/.exec(judged) ?? []
  if (!(Number(exposure) <= EXPOSURE_MAX)) throw new Error(`exposure ${exposure}`)
  const pid = await property(first, 'MainPID')
  const status = await first.does('cat', `/proc/${pid}/status`)
  for (const line of [/^Seccomp:\t2$/m, /^NoNewPrivs:\t1$/m, /^CapEff:\t0+$/m, /^CapBnd:\t0+$/m])
    if (!line.test(status)) throw new Error(`${line} is not so:\n${status}`)
  const { warnings } = await statusOf(first)
  const said = await first.does('systemctl', 'status', '--no-pager', UNIT)
  const [, line = ''] = /Status: "(.*)"/.exec(said) ?? []
  if (!/^\d+ peers? in \d+ networks?/.test(line)) throw new Error(`no line of status:\n${said}`)
  return `exposure ${exposure}; "${line}"; ${warnings.length} warnings`
}

async function group({ first }: Machines): Promise<string> {
  await first.does('useradd', '-m', 'stranger')
  await first.does('useradd', '-m', '-G', 'undernet', 'friend')
  await first.does('runuser', '-u', 'friend', '--', 'agent', 'status')
  const { code, stderr } = await first.run('runuser', '-u', 'stranger', '--', 'agent', 'status')
  same(code, 4)
  // The same of what they push to the cache, by the table of sockets.
  const put = (user: string) => {
    const url = `http://127.0.0.1:7478/nix/nar/${'0'.repeat(52)}.nar`
    const curl = `curl -s -o /dev/null -w '%{http_code}' -T /etc/hostname ${url}`
    return first.does('runuser', '-u', user, '--', 'sh', '-c', curl)
  }
  const [friend, stranger] = [await put('friend'), await put('stranger')]
  if (stranger !== '403' || friend === '403') throw new Error(`friend ${friend}, stranger ${stranger}`)
  await first.does('userdel', '-r', 'stranger')
  await first.does('userdel', '-r', 'friend')
  return stderr.trim().replace(/\s+/g, ' ')
}

async function credentials({ first }: Machines): Promise<string> {
  const credential = async (key: string) => {
    const pid = await property(first, 'MainPID')
    const environment = await first.does('sh', '-c', `tr '\\0' '\\n' </proc/${pid}/environ`)
    const [, directory = ''] = /^CREDENTIALS_DIRECTORY=(.*)$/m.exec(environment) ?? []
    return await first.run('cat', join(directory || '/none', key))
  }
  const without = await credential('undernet.registry-auth')
  if (without.code === 0) throw new Error('there is a credential that nobody gave')
  const auth = JSON.stringify({ auths: { 'registry.example': { auth: Buffer.from('a:b').toString('base64') } } })
  writeShared('auth.json', auth)
  await first.does('install', '-D', '-m', '600', '/mnt/auth.json', '/etc/credstore/undernet.registry-auth')
  await first.does('systemctl', 'restart', UNIT)
  same((await credential('undernet.registry-auth')).stdout, auth)
  const { code } = await first.run(
    'runuser',
    '-u',
    'nobody',
    '--',
    'sh',
    '-c',
    'cat /run/credentials/undernet.service/*',
  )
  if (code === 0) throw new Error('everybody can read it')
  return 'in /etc/credstore, for root only'
}

async function journal({ first }: Machines): Promise<string> {
  const lines = async (...match: string[]) =>
    (await first.does('journalctl', '-u', UNIT, '-o', 'json', '--no-pager', ...match))
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, string>)
  const started = (await lines('UNDERNET_EVENT=agent.started')).at(-1) ?? {}
  same([started.PRIORITY, started.SYSLOG_IDENTIFIER, started._SYSTEMD_UNIT], ['6', 'undernet', UNIT])
  if (!/^agent\.started ms=\d+$/.test(started.MESSAGE ?? '')) throw new Error(JSON.stringify(started))
  const bad = (await lines()).filter(({ MESSAGE }) => MESSAGE?.startsWith('{') || /^<\d>/.test(MESSAGE ?? ''))
  same(bad, [])
  return started.MESSAGE ?? ''
}

async function configuration({ first }: Machines): Promise<string> {
  const restarts = await property(first, 'NRestarts')
  await first.does('sh', '-c', 'echo \'log_level = "debug"\' >>/etc/undernet/agent.toml')
  await first.does('systemctl', 'reload', UNIT)
  same(await property(first, 'ActiveState'), 'active')
  await until(async () => (await first.does('journalctl', '-u', UNIT, '-o', 'cat')).includes('config.reloaded'), {
    what: 'it has reloaded',
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
  await first.does('sh', '-c', "echo 'max_peer = 3' >>/etc/undernet/agent.toml")
  await first.run('systemctl', 'restart', UNIT)
  await delay(3_000)
  same([await property(first, 'ActiveState'), await property(first, 'ExecMainStatus')], ['failed', '2'])
  same(await property(first, 'NRestarts'), restarts)
  const said = await first.does('journalctl', '-u', UNIT, '-p', 'err', '-o', 'cat', '-n', '20')
  if (!said.includes('unknown key max_peer; did you mean max_peers?')) throw new Error(said)
  await first.does('sed', '-i', '/^max_peer =/d', '/etc/undernet/agent.toml')
  await first.does('systemctl', 'start', UNIT)
  return said.split('\n').find((line) => line.includes('max_peer')) ?? ''
}

async function failures({ first }: Machines): Promise<string> {
  await first.does('mkdir', '-p', `/run/systemd/system/${UNIT}.d`)
  writeShared('quick.conf', '[Service]\nWatchdogSec=4s\n')
  await first.does('cp', '/mnt/quick.conf', `/run/systemd/system/${UNIT}.d/quick.conf`)
  await first.does('systemctl', 'daemon-reload')
  await first.does('systemctl', 'restart', UNIT)
  const took: string[] = []
  for (const [what, ...command] of [
    ['killed', 'systemctl', 'kill', '-s', 'KILL', UNIT],
    ['hanging', 'systemctl', 'kill', '-s', 'STOP', UNIT],
    ['without its socket', 'rm', '/run/undernet/agent.sock'],
  ] as const) {
    const before = await property(first, 'MainPID')
    const startedMs = performance.now()
    await first.does(...command)
    await until(
      async () =>
        (await property(first, 'MainPID')) !== before && (await first.run('agent', 'status', '--json')).code === 0,
      { what: `${what}, it answers again`, ms: SOON_MS_MAX, everyMs: POLL_MS },
    )
    took.push(`${what} ${((performance.now() - startedMs) / 1_000).toFixed(1)} s`)
  }
  await first.does('rm', '-r', `/run/systemd/system/${UNIT}.d`)
  await first.does('systemctl', 'daemon-reload')
  await first.does('systemctl', 'restart', UNIT)
  return took.join(', ')
}

async function programs({ first, second }: Machines): Promise<string> {
  await first.asks('network', 'create', 'home', '--as', 'first')
  writeShared('policy.toml', POLICY)
  await first.does('agent', 'policy', 'set', '/mnt/policy.toml', '--yes')
  writeShared('token', await first.does('agent', 'invite'))
  await second.does('agent', 'join', '--file', '/mnt/token', '--as', 'second')
  await second.does('sh', '-c', 'mkdir -p /etc/nix; printf "max-jobs = 2" >/etc/nix/nix.conf')
  const said = await second.does('agent', 'install', '--nix', '--dns')
  if (!said.includes('+ extra-substituters = ')) throw new Error(said)
  await first.does('sh', '-c', 'head -c 3000000 /dev/urandom >/root/tool')
  const path = await first.does('nix-store', '--add', '/root/tool')
  await first.does('agent', 'network', 'share', 'home', 'store')
  await until(async () => (await second.run('nix-store', '--realise', path)).code === 0, {
    what: 'the path comes from the store of the other',
    ms: SOON_MS_MAX,
    everyMs: 1_000,
  })
  same(await second.does('sha256sum', path), await first.does('sha256sum', path))
  await first.does('systemd-run', '--unit=application', ...BROUGHT.slice(0, 1), '-e', APPLICATION)
  await first.does('agent', 'service', 'add', 'web', '8080')
  await until(async () => (await second.run('curl', '-sS', 'http://web.home.internal:8080/')).stdout === 'web', {
    what: 'the name leads to the service',
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
  // Threads of lanes, and memory that is given back.
  await first.does('sh', '-c', `head -c ${LARGE_BYTES} /dev/urandom >/root/large`)
  await first.asks<PublishResult>('publish', '/root/large', '--network', 'home')
  await until(async () => (await second.run('agent', 'get', 'large', '--to', '/root/got')).code === 0, {
    what: 'the large file comes',
    ms: SOON_MS_MAX,
    everyMs: POLL_MS,
  })
  const threads = await second.does('sh', '-c', `ps -L -o comm=,ni= -p "$(systemctl show -P MainPID ${UNIT})"`)
  if (!/^lanes +5$/m.test(threads)) throw new Error(`threads of lanes do not give way:\n${threads}`)
  for (const event of ['lane.given', 'memory.returned'])
    await until(async () => (await first.run('journalctl', '-q', '-n', '1', `UNDERNET_EVENT=${event}`)).stdout !== '', {
      what: `the first says ${event}`,
      ms: SOON_MS_MAX,
      everyMs: POLL_MS,
    })
  return path
}

async function containers({ second }: Machines): Promise<string> {
  const atTerminal = async (answer: string) =>
    await second.does('sh', '-c', `(sleep 2; echo ${answer}) | script -qec 'agent install' /dev/null`)
  await atTerminal('n')
  await second.does('test', '!', '-e', '/etc/containers/registries.conf.d/undernet.conf')
  const said = await atTerminal('y')
  if (!/\+ location = "127.0.0.1:7478"[\s\S]*Do this\?/.test(said)) throw new Error(said)
  const conf = await second.does('cat', '/etc/containers/registries.conf.d/undernet.conf')
  if (!conf.includes('location = "127.0.0.1:7478"')) throw new Error(conf)
  const again = await second.does('agent', 'install')
  if (!again.includes('Nothing to change')) throw new Error(again)
  await second.does('agent', 'uninstall', '--containers')
  await second.does('test', '!', '-e', '/etc/containers/registries.conf.d/undernet.conf')
  return /Images.*\?/.exec(said)?.[0] ?? ''
}

async function upgrade({ first }: Machines, known: Known): Promise<string> {
  const before = await property(first, 'MainPID')
  await first.does('sh', '-c', 'cp -r /mnt/program /root/newer && echo "// newer" >>/root/newer/dist/main.js')
  const said = await first.does('/root/newer/bin/node', '/root/newer/dist/main.js', 'install')
  if (before === (await property(first, 'MainPID'))) throw new Error(`it is not started anew:\n${said}`)
  same((await first.does('ls', '/usr/local/lib/undernet')).split('\n').length, 2)
  same((await statusOf(first)).peerId, known.peerId)
  await first.does('rm', '-r', '/root/newer')
  return said.split('\n')[1] ?? ''
}

async function uninstall({ first, second }: Machines, known: Known): Promise<string> {
  await second.does('sh', '-c', 'echo "cores = 1" >>/etc/nix/nix.conf')
  await second.does('agent', 'uninstall')
  same(await second.does('cat', '/etc/nix/nix.conf'), 'max-jobs = 2cores = 1')
  const said = await first.does('agent', 'uninstall')
  // It has a line more since.
  if (!said.includes('left     /etc/undernet/agent.toml (it was changed since)')) throw new Error(said)
  await first.does('test', '-e', '/var/lib/undernet/node.key')
  same((await first.run('systemctl', 'status', UNIT)).code, 4)
  await first.does(...BROUGHT, 'install')
  same((await statusOf(first)).peerId, known.peerId)
  return said.split('\n').at(-2) ?? ''
}

async function purge({ first }: Machines, known: Known): Promise<string> {
  await first.does('agent', 'uninstall', '--purge')
  await first.does('rm', '-r', '/root/large', '/root/tool', '/etc/credstore')
  // Nix makes its own.
  await first.does('sh', '-c', 'rm -rf /nix/store/*-tool /nix/var /root/.nix* /etc/nix')
  return await nothingLeft(first, known)
}

async function nothingLeft(machine: Machine, known: Known): Promise<string> {
  same(await machine.does('cat', ...ACCOUNTS), known.accounts)
  const paths = machine.writtenPaths().filter((path) => !(known.paths.includes(path) || OF_THE_SYSTEM.test(path)))
  const left = paths.filter((path) => !machine.isDirectoryOfRoot(path) && !/^\/(nix|home)(\/|$)/.test(path))
  if (left.length > 0) throw new Error(`left behind: ${left.join(' ')}`)
  return `${paths.length} paths looked at`
}

async function property(machine: Machine, name: string): Promise<string> {
  return await machine.does('systemctl', 'show', '-P', name, UNIT)
}

async function statusOf(machine: Machine): Promise<Status> {
  return await machine.asks<Status>('status')
}

function same(seen: unknown, expected: unknown): void {
  const [a, b] = [JSON.stringify(seen), JSON.stringify(expected)]
  if (a !== b) throw new Error(`${a} where ${b} was expected`)
}

const shared = mkdtempSync(join(tmpdir(), 'undernet-install-'))
function writeShared(name: string, text: string): void {
  writeFileSync(join(shared, name), text, { mode: 0o600 })
}

const startedMs = performance.now()
const seconds = (ms: number) => `${(ms / 1_000).toFixed(1).padStart(6)} s`
const print = (line: string) => process.stdout.write(`${line}\n`)
const tooLong = setTimeout(() => {
  print(styleText('red', `not over after ${MS_MAX / 60_000} minutes`))
  process.exit(1)
}, MS_MAX)

try {
  await using stack = new AsyncDisposableStack()
  stack.defer(() => rmSync(shared, { recursive: true, force: true }))
  if (!existsSync(BUNDLE)) await bundle(dirname(BUNDLE))
  const program = runningProgram(BUNDLE)
  copyProgram(program, new Root(shared), '/program')
  // For users who are nobody, too.
  chmodSync(shared, 0o755)
  const root = await machineRoot(print)
  const hosts = stack.use(makeHosts(2))
  const start = (name: string, nth: number) => Machine.start({ name, root, namespace: hosts.namespace(nth), shared })
  const first = stack.use(await start('first', 0))
  const second = stack.use(await start('second', 1))
  const known: Known = { paths: [], accounts: '', peerId: '' }
  for (const [what, does] of STEPS) {
    const stepMs = performance.now()
    const remark = await does({ first, second }, known).catch((error: unknown) => {
      print(`${seconds(performance.now() - stepMs)}  ${styleText('red', 'failed')}  ${what}`)
      throw error
    })
    print(
      `${seconds(performance.now() - stepMs)}  ${styleText('green', 'ok    ')}  ${what}${remark ? ` (${remark})` : ''}`,
    )
  }
} catch (error) {
  print(error instanceof Error ? error.message : String(error))
  process.exitCode = 1
}
print(`${seconds(performance.now() - startedMs)}  in all`)
clearTimeout(tooLong)
process.exit()
