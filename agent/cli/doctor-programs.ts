/**
 * What `agent doctor` looks at beside the agent: whether Nix, container engines and the resolver of this machine ask it, and whether the clock is
 * kept. Lines that an agent wants in their configuration are asked of the agent, so these need one that runs.
 */
import type { Client } from '../api/client.ts'
import type { NixConfView } from '../api/contract.ts'
import type { OciConf } from '../api/image-contract.ts'
import type { DnsConfView } from '../api/names-contract.ts'
import type { Check } from '../api/upkeep-contract.ts'
import type { Machine } from './machine.ts'

type Asked = Pick<Client, 'get'>

const NIX_DATABASE = '/nix/var/nix/db/db.sqlite'
const NIX_NEXT = 'Add the lines that `agent nix-conf` prints to /etc/nix/nix.conf, and restart nix-daemon.'

/** `seen` is what the agent said of itself; undefined when it does not run. */
export async function checkNix(client: Asked, machine: Machine, seen?: readonly Check[]): Promise<Check[]> {
  const name = 'nix'
  const ok = (message: string): Check[] => [{ id: name, name, state: 'ok', message }]
  const warning = (id: string, message: string, next = NIX_NEXT): Check[] => [
    { id, name, state: 'warning', message, next },
  ]
  const settings = await nixSettings(machine)
  if (settings === undefined) return ok('Nix is not installed here; files and folders are shared all the same')
  if (seen?.some(({ id }) => id === 'nix.none') && machine.exists(NIX_DATABASE))
    return warning(
      'nix.unreadable',
      `Nix is installed here, and the agent cannot read its database (${NIX_DATABASE})`,
      'Let the user of the agent read /nix: `ls -l /nix/var/nix/db`. `agent install` sets its unit up so.',
    )
  const wanted = await client.get<NixConfView>('nix-conf').catch(() => undefined)
  if (wanted === undefined) return ok('Nix is installed; whether it uses the agent is checked while that runs')
  const url = wanted.url.replace(/\/$/, '')
  if (!wordsOf(settings, 'substituters').includes(url))
    return warning('nix.not-asked', `Nix does not ask this agent (${wanted.url} is not in substituters)`)
  if (!wordsOf(settings, 'trusted-public-keys').includes(wanted.publicKey))
    return warning('nix.key-untrusted', `Nix does not trust this agent's key (${wanted.publicKey.split(':')[0]})`)
  const system = await nixSettings(machine, {
    NIX_USER_CONF_FILES: '/dev/null',
    XDG_CONFIG_HOME: '/dev/null',
    HOME: '/dev/null',
  })
  const isOwn = system !== undefined && system.size > 0 && !wordsOf(system, 'substituters').includes(url)
  if (isOwn && !isTrusted(machine.user(), wordsOf(system, 'trusted-users')))
    return warning(
      'nix.user-untrusted',
      'the lines for this agent are in your own nix.conf, and nix-daemon takes none from you (trusted-users)',
    )
  return ok('Nix asks this agent and trusts its key')
}

/** Nix's effective settings; undefined when there is no Nix. Newer ones renamed the command. */
async function nixSettings(machine: Machine, env?: Record<string, string>): Promise<Map<string, string> | undefined> {
  for (const command of [['config', 'show'], ['show-config']]) {
    const out = await machine.run('nix', ['--extra-experimental-features', 'nix-command', ...command], env)
    if (out === undefined) return undefined
    if (out !== null) return new Map(out.split('\n').map((line) => line.split(' = ', 2) as [string, string]))
  }
  return new Map()
}

function wordsOf(settings: ReadonlyMap<string, string>, key: string): string[] {
  return (settings.get(key) ?? '').split(/\s+/).map((word) => word.replace(/\/$/, ''))
}

/** Groups (@wheel) are left to Nix: that they have the user is not known here. */
function isTrusted(user: string, trusted: readonly string[]): boolean {
  return user === 'root' || trusted.some((word) => word === user || word === '*' || word.startsWith('@'))
}

const ENGINES = [
  { engine: 'podman', next: 'agent oci-conf podman | sudo tee /etc/containers/registries.conf.d/undernet.conf' },
  {
    engine: 'containerd',
    next: 'Put the files into place that `agent oci-conf containerd` prints, and restart containerd.',
  },
  { engine: 'docker', next: 'Add to /etc/docker/daemon.json what `agent oci-conf docker` prints, and restart docker.' },
] as const

/** Of engines that are installed: whether they pull through the agent. An address of the agent in the file is what tells. */
export async function checkEngines(client: Asked, machine: Machine): Promise<Check[]> {
  const checks: Check[] = []
  for (const { engine, next } of ENGINES) {
    if ((await machine.run(engine, ['--version'])) === undefined) continue
    const conf = await client.get<OciConf>(`oci-conf/${engine}`).catch(() => undefined)
    if (conf === undefined) continue
    const missing = conf.files.filter(({ path, lines }) => !hasLines(machine.read(path), lines))
    const what = { id: 'engines', name: engine }
    if (missing.length === 0) checks.push({ ...what, state: 'ok', message: `${engine} pulls through this agent` })
    else {
      const files = missing.map(({ path }) => path).join(', ')
      const message = `${engine} does not pull through this agent: its lines are not in ${files}`
      checks.push({ id: `${engine}.mirror-missing`, name: engine, state: 'warning', message, next })
    }
  }
  return checks
}

/** Whatever else is in the file, and however it is laid out. */
function hasLines(text: string | undefined, lines: readonly string[]): boolean {
  const bare = (line: string) => line.replace(/[\s,{}]/g, '')
  const there = new Set((text ?? '').split('\n').map(bare))
  return lines.every((line) => there.has(bare(line)) || bare(line) === '')
}

/** Whether programs find names of services: the resolver has to ask the agent for them. */
export async function checkDns(client: Asked, machine: Machine): Promise<Check[]> {
  const conf = await client.get<DnsConfView>('dns-conf').catch(() => undefined)
  if (conf === undefined) return []
  const found = await Promise.all(conf.domains.map((domain) => machine.hasZone(domain)))
  const lost = conf.domains.filter((_, at) => found[at] !== true)
  const name = 'dns'
  if (lost.length === 0)
    return [
      { id: name, name, state: 'ok', message: `names below ${conf.domains.join(', ')} are found on this machine` },
    ]
  const resolved = conf.resolvers.find(({ resolver }) => resolver === 'systemd-resolved')
  const [resolver, restart] = machine.exists('/run/systemd/resolve')
    ? ['systemd-resolved', resolved?.restart]
    : ['dnsmasq', conf.resolvers.find((one) => one.resolver === 'dnsmasq')?.restart]
  const file = conf.resolvers.find((one) => one.resolver === resolver)?.file
  return [
    {
      id: 'dns.not-routed',
      name,
      state: 'warning',
      message: `names below ${lost.join(', ')} are not found on this machine: its resolver does not ask the agent (${conf.address})`,
      next: `agent dns-conf ${resolver} | sudo tee ${file}, then sudo ${restart}. The proxy works without.`,
    },
  ]
}

/** By systemd's word. That it is off is seen by peers, and told by the agent. */
export async function checkClock(machine: Machine): Promise<Check[]> {
  const said = await machine.run('timedatectl', ['show', '--property=NTPSynchronized', '--value'])
  if (said?.trim() !== 'no') return []
  const message = 'the clock of this machine is not kept by NTP, as far as systemd knows'
  const next = 'sudo timedatectl set-ntp true; where something else keeps the clock, all is well.'
  return [{ id: 'clock.unsynchronised', name: 'clock', state: 'warning', message, next }]
}
