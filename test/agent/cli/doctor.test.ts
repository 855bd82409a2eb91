/** Every finding of `agent doctor` is provoked once, and tells what to do; and where all is well none of them is there. */
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import type { Check } from '../../../agent/api/upkeep-contract.ts'
import { checkConfig, checkPorts, checkSilence, checkState } from '../../../agent/cli/doctor-checks.ts'
import { checkClock, checkDns, checkEngines, checkNix } from '../../../agent/cli/doctor-programs.ts'
import type { Machine } from '../../../agent/cli/machine.ts'
import type { Config } from '../../../agent/config/keys.ts'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { AgentError } from '../../../agent/error.ts'
import { doctorOf, type Examined } from '../../../agent/node/doctor.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { oldDatabase } from '../../first-days.ts'

/** Ids that tests here have seen. */
const provoked = new Set<string>()
/** Of what is well. */
const WELL = ['agent', 'configuration', 'database', 'dns', 'engines', 'nix', 'nix.none', 'peers', 'port', 'state']

function expectFinding(checks: readonly Check[], id: string, state: Check['state'], says: RegExp, next: RegExp): void {
  const found = checks.find((check) => check.id === id)
  expect(found, JSON.stringify(checks)).toMatchObject({
    state,
    message: expect.stringMatching(says),
    next: expect.stringMatching(next),
  })
  provoked.add(id)
}

const ids = (checks: readonly Check[]) => checks.map(({ id }) => id)

/** A machine on which nothing is installed but what a test says. */
function machine(over: Partial<Machine> = {}): Machine {
  return {
    run: async () => undefined,
    read: () => undefined,
    exists: () => false,
    hasZone: async () => true,
    user: () => 'ann',
    ...over,
  }
}

/** An agent that answers these; anything else it refuses. */
function agent(answers: Record<string, unknown>) {
  return {
    get: async <Reply>(path: string) => {
      if (path in answers) return answers[path] as Reply
      throw new AgentError('failed', 'it is off')
    },
  }
}

describe('the running agent', () => {
  const well: Examined = {
    warnings: [],
    uptimeSeconds: 600,
    peers: [{ path: 'direct', direction: 'in' }],
    hasNix: true,
    version: '0.3.1',
    versions: ['0.3.0', '0.3.9'],
    content: { bytes: 10, quotaBytes: 100 },
    freeBytes: 1_000,
    unheld: [],
  }

  it('finds nothing where all is well', () => {
    expect(doctorOf(well).map(({ state }) => state)).toEqual(['ok', 'ok'])
    expect(ids(doctorOf({ ...well, hasNix: false }))).toContain('nix.none')
  })

  it('says that it reaches everybody through relays only, once it had time to find other ways', () => {
    const peers = [{ path: 'relay', direction: 'out' } as const]
    expectFinding(doctorOf({ ...well, peers }), 'nat.relayed', 'warning', /through a third/, /agent netcheck.*7477/)
    expect(ids(doctorOf({ ...well, peers, uptimeSeconds: 30 }))).not.toContain('nat.relayed')
    expect(ids(doctorOf({ ...well, peers: [...peers, ...well.peers] }))).not.toContain('nat.relayed')
  })

  it('says that others run newer or older agents', () => {
    expectFinding(
      doctorOf({ ...well, versions: ['0.4.0'] }),
      'versions.behind',
      'warning',
      /1 nodes run a newer/,
      /Update/,
    )
    expectFinding(doctorOf({ ...well, versions: ['0.2.9'] }), 'versions.others-behind', 'warning', /older/, /Update/)
    expect(ids(doctorOf({ ...well, versions: ['rubbish', '', '1'] }))).toEqual(ids(doctorOf(well)))
  })

  it('says that the quota does not fit on the disk', () => {
    const content = { bytes: 10, quotaBytes: 5_000 }
    expectFinding(doctorOf({ ...well, content }), 'disk.quota', 'warning', /does not fit/, /quota/)
  })

  it('says that what it publishes is not here', () => {
    const unheld = ['letter', 'bundle', 'c', 'd']
    const checks = doctorOf({ ...well, unheld })
    expectFinding(
      checks,
      'content.unheld',
      'warning',
      /4 artifacts .*: letter, bundle, c, …/,
      /agent get letter.*agent unpublish letter/,
    )
  })

  it('passes on its warnings, and fails for those that keep a node from its work', () => {
    const warnings = ['clock.off', 'membership.ended'].map((code) => ({ code, message: 'said', next: 'do' }))
    const checks = doctorOf({ ...well, warnings })
    expect(checks.filter(({ id }) => id === 'clock.off' || id === 'membership.ended')).toEqual([
      { id: 'clock.off', name: 'clock', state: 'warning', message: 'said', next: 'do' },
      { id: 'membership.ended', name: 'membership', state: 'failed', message: 'said', next: 'do' },
    ])
  })
})

describe('without an agent', () => {
  const scratch: string[] = []
  let directory = ''
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'undernet-doctor-'))
    scratch.push(directory)
  })
  afterAll(() => {
    for (const path of scratch) rmSync(path, { recursive: true, force: true })
  })

  it('says why it does not answer', () => {
    const silent = (code: 'not-running' | 'not-allowed' | 'failed', next?: string) => [
      checkSilence(new AgentError(code, `it is ${code}`, next === undefined ? {} : { next })),
    ]
    expectFinding(
      silent('not-running', 'Start one with `agent start`.'),
      'agent.down',
      'warning',
      /not-running/,
      /agent start/,
    )
    expectFinding(
      silent('not-allowed', 'As a member of the group.'),
      'agent.not-allowed',
      'failed',
      /not-allowed/,
      /group/,
    )
    expectFinding(silent('failed'), 'agent.silent', 'failed', /failed/, /journalctl/)
  })

  it('finds a configuration that is wrong', () => {
    process.env.UNDERNET_QUOTA = 'much'
    try {
      expectFinding(checkConfig().checks, 'config.invalid', 'failed', /like 20GiB/, /agent start --help/)
    } finally {
      delete process.env.UNDERNET_QUOTA
    }
  })

  it('finds a state directory that is open to others, or of another user', async () => {
    chmodSync(directory, 0o755)
    expectFinding(await checkState(directory), 'state.open', 'warning', /open to other users/, /closes it/)
    chmodSync(directory, 0o700)
    expect(ids(await checkState(directory))).toEqual(['state'])
    const { getuid } = process
    process.getuid = () => 54_321
    try {
      expectFinding(await checkState(directory), 'state.other-user', 'failed', /another user/, /--state/)
    } finally {
      if (getuid !== undefined) process.getuid = getuid
    }
  })

  it('finds a disk that is nearly full', async () => {
    const disk = join(directory, 'disk')
    mkdirSync(disk)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m,mode=0700', 'tmpfs', disk])
    try {
      expectFinding(await checkState(disk), 'disk.low', 'warning', /only .* free/, /Make room/)
    } finally {
      execFileSync('umount', [disk])
    }
  })

  it('finds databases that are damaged, of a newer agent, or of one that was killed, and a restore that was not ended', async () => {
    const path = join(directory, 'state.db')
    oldDatabase(path)
    chmodSync(directory, 0o700)
    expect(ids(await checkState(directory))).toEqual(['state', 'database'])
    const db = openDatabase(path)
    new BlobIndex(db)
    const killed = mkdtempSync(join(tmpdir(), 'undernet-doctor-'))
    scratch.push(killed)
    for (const name of ['state.db', 'state.db-wal']) copyFileSync(join(directory, name), join(killed, name))
    expectFinding(await checkState(killed), 'database.unclean', 'warning', /did not end as it should/, /agent start/)
    db.exec("UPDATE schema_versions SET version = 9 WHERE part = 'catalog'")
    db.close()
    expectFinding(
      await checkState(directory),
      'state.newer',
      'failed',
      /newer agent \(catalog 9/,
      /restore --before-upgrade/,
    )
    writeFileSync(path, 'not a database, not at all')
    expectFinding(await checkState(directory), 'database.corrupt', 'failed', /damaged/, /agent restore FILE --replace/)
    mkdirSync(join(directory, 'restoring'))
    expectFinding(await checkState(directory), 'restore.unfinished', 'failed', /not ended/, /agent restore/)
  })

  it('finds ports that are taken, not allowed, or of an address that is not here', async () => {
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    const { port } = other.address() as { port: number }
    const free = { listen: [], http: undefined, proxy: undefined, dns: undefined }
    const config = (over: Partial<Config>) => ({ ...free, ...over }) as unknown as Config
    try {
      const http = { host: '127.0.0.1', port }
      expectFinding(await checkPorts(config({ http })), 'port.taken', 'failed', /another program/, /ss -ltnp.*--http/)
      const listen = ['/ip4/192.0.2.77/tcp/0']
      expectFinding(await checkPorts(config({ listen })), 'port.no-address', 'warning', /192.0.2.77/, /--listen/)
      expectFinding(
        await checkPorts(config({ proxy: { host: 'no.such.host.invalid', port: 1 } })),
        'port.unusable',
        'failed',
        /no.such.host/,
        /--proxy/,
      )
      expect(ids(await checkPorts(config({ dns: { host: '127.0.0.1', port: 0 } })))).toEqual(['port'])
    } finally {
      other.close()
    }
  })

  it('finds a port that a user may not have', async () => {
    const privileged = join(directory, 'privileged.ts')
    const checks = new URL('../../../agent/cli/doctor-checks.ts', import.meta.url).href
    writeFileSync(
      privileged,
      `import { checkPorts } from '${checks}'
       console.log(JSON.stringify(await checkPorts({ listen: ['/ip4/127.0.0.1/tcp/81'] })))`,
    )
    chmodSync(directory, 0o755)
    const as = ['--reuid', '65534', '--clear-groups', '--bounding-set', '-all', '--inh-caps', '-all']
    const command = `echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start && ip link set lo up && exec setpriv ${as.join(' ')} ${process.execPath} ${privileged}`
    const out = execFileSync('unshare', ['--net', 'sh', '-c', command], { encoding: 'utf8' })
    expectFinding(JSON.parse(out) as Check[], 'port.not-allowed', 'failed', /tcp\/81/, /--listen/)
  })
})

describe('beside the agent', () => {
  const url = 'http://127.0.0.1:7478/nix'
  const publicKey = 'node-1:a2V5'
  const nixConf = agent({ 'nix-conf': { url, publicKey, lines: [] } })
  const conf = (lines: Record<string, string>) =>
    Object.entries(lines)
      .map(([key, value]) => `${key} = ${value}`)
      .join('\n')
  const right = { substituters: `${url}/ https://cache.nixos.org`, 'trusted-public-keys': `other:x ${publicKey}` }
  const nix = (own: Record<string, string>, system = own) =>
    machine({ run: async (_command, _args, env) => conf(env === undefined ? own : system) })

  it('finds what is missing in nix.conf', async () => {
    expect(await checkNix(nixConf, machine())).toMatchObject([{ id: 'nix', state: 'ok', message: /not installed/ }])
    expect(ids(await checkNix(nixConf, nix(right)))).toEqual(['nix'])
    expectFinding(
      await checkNix(nixConf, nix({})),
      'nix.not-asked',
      'warning',
      /does not ask/,
      /agent nix-conf.*nix-daemon/,
    )
    const keyless = { ...right, 'trusted-public-keys': 'other:x' }
    expectFinding(await checkNix(nixConf, nix(keyless)), 'nix.key-untrusted', 'warning', /node-1/, /agent nix-conf/)
    expect(ids(await checkNix(agent({}), nix(right)))).toEqual(['nix'])
  })

  it('finds lines that nix-daemon does not take from this user', async () => {
    const system = { 'trusted-users': 'root bob' }
    expectFinding(
      await checkNix(nixConf, nix(right, system)),
      'nix.user-untrusted',
      'warning',
      /trusted-users/,
      /\/etc\/nix/,
    )
    for (const trusted of ['root ann', '*', '@wheel'])
      expect(ids(await checkNix(nixConf, nix(right, { 'trusted-users': trusted })))).toEqual(['nix'])
  })

  it('finds a Nix database that the agent cannot read', async () => {
    const seen: Check[] = [{ id: 'nix.none', name: 'nix', state: 'ok', message: '' }]
    const here = { ...nix(right), exists: () => true }
    expectFinding(await checkNix(nixConf, here, seen), 'nix.unreadable', 'warning', /cannot read its database/, /ls -l/)
    expect(ids(await checkNix(nixConf, nix(right), seen))).toEqual(['nix'])
  })

  it('finds engines that do not pull through the agent, of those that are installed', async () => {
    const files = {
      podman: {
        path: '/etc/containers/registries.conf.d/undernet.conf',
        lines: ['[[registry]]', 'location = "127.0.0.1:7478"'],
      },
      containerd: { path: '/etc/containerd/certs.d/docker.io/hosts.toml', lines: ['[host."http://127.0.0.1:7478"]'] },
      docker: {
        path: '/etc/docker/daemon.json',
        lines: ['{', '  "insecure-registries": [', '    "127.0.0.1:7478"', '  ]', '}'],
      },
    }
    const answers = Object.fromEntries(
      Object.entries(files).map(([name, file]) => [`oci-conf/${name}`, { files: [file], next: '' }]),
    )
    const installed = (engine: string, read: Machine['read'] = () => undefined) =>
      machine({ run: async (command) => (command === engine ? 'version 1' : undefined), read })
    expect(await checkEngines(agent(answers), machine())).toEqual([])
    const find = async (engine: string) => await checkEngines(agent(answers), installed(engine))
    expectFinding(
      await find('podman'),
      'podman.mirror-missing',
      'warning',
      /undernet\.conf/,
      /agent oci-conf podman \| sudo tee/,
    )
    expectFinding(
      await find('containerd'),
      'containerd.mirror-missing',
      'warning',
      /hosts\.toml/,
      /agent oci-conf containerd/,
    )
    expectFinding(await find('docker'), 'docker.mirror-missing', 'warning', /daemon\.json/, /agent oci-conf docker/)
    const laidOut = '{\n  "insecure-registries": [\n "127.0.0.1:7478", "10.0.0.1:5000"\n],\n "debug": true }\n'
    const own = { docker: laidOut.replace(', "10.0.0.1:5000"', ',\n"10.0.0.1:5000"') }
    expect(
      ids(
        await checkEngines(
          agent(answers),
          installed('docker', () => own.docker),
        ),
      ),
    ).toEqual(['engines'])
    expect(await checkEngines(agent({}), installed('podman'))).toEqual([])
  })

  it('finds a resolver that does not ask the agent', async () => {
    const resolvers = ['systemd-resolved', 'dnsmasq'].map((resolver) => ({
      resolver,
      file: `/etc/${resolver}.conf`,
      lines: [],
      restart: `systemctl restart ${resolver}`,
    }))
    const dns = agent({
      'dns-conf': { address: '127.0.0.1:7453', domains: ['home.internal', 'lab.internal'], resolvers },
    })
    const lost = machine({ hasZone: async (name) => name !== 'lab.internal', exists: () => true })
    expectFinding(
      await checkDns(dns, lost),
      'dns.not-routed',
      'warning',
      /below lab\.internal are/,
      /agent dns-conf systemd-resolved \| sudo tee \/etc\/systemd-resolved\.conf, then sudo systemctl restart systemd-resolved/,
    )
    expectFinding(
      await checkDns(dns, { ...lost, exists: () => false }),
      'dns.not-routed',
      'warning',
      /./,
      /agent dns-conf dnsmasq/,
    )
    expect(ids(await checkDns(dns, machine()))).toEqual(['dns'])
    expect(await checkDns(agent({}), lost)).toEqual([])
  })

  it('finds a clock that nothing keeps', async () => {
    const clock = (said: string | null | undefined) => checkClock(machine({ run: async () => said }))
    expectFinding(await clock('no\n'), 'clock.unsynchronised', 'warning', /NTP/, /timedatectl set-ntp true/)
    expect([...(await clock('yes\n')), ...(await clock(null)), ...(await clock(undefined))]).toEqual([])
  })
})

describe('every finding', () => {
  it('of doctor was provoked above, and every warning of the agent by a test of its own', () => {
    const sources = ['agent/cli/doctor*.ts', 'agent/node/doctor.ts', 'agent/state/examine.ts']
    const text = (file: string) => readFileSync(file, 'utf8')
    const idsIn = (file: string) => [...text(file).matchAll(/'([a-z]+\.[a-z-]+)'/g)].map(([, id]) => id ?? '')
    const engines = ['podman', 'containerd', 'docker'].map((engine) => `${engine}.mirror-missing`)
    const codes = globSync('agent/node/*.ts').flatMap((file) =>
      [...text(file).matchAll(/\bcode: (?:\w+ \? )?'([a-z]+\.[a-z-]+)'(?: : '([a-z]+\.[a-z-]+)')?/g)].flatMap(
        ([, one, other]) => [one ?? '', other ?? one ?? ''],
      ),
    )
    expect(codes.length).toBeGreaterThan(20)
    const declared = new Set([...sources.flatMap((pattern) => globSync(pattern).flatMap(idsIn)), ...engines])
    const own = [...declared].filter((id) => !codes.includes(id) && !WELL.includes(id) && !id.endsWith('.ts'))
    expect(own.filter((id) => !provoked.has(id))).toEqual([])
    expect(own.length).toBeGreaterThanOrEqual(provoked.size - 1)
    const tests = globSync(['test/**/*.test.ts', 'test/**/*.ts']).map(text).join('\n')
    expect([...new Set(codes)].filter((code) => !tests.includes(code))).toEqual([])
  })
})
