/**
 * Other programs of this machine that are to use the agent: Nix, container engines, systemd-resolved. What is written for them is what the
 * agent itself says (`agent nix-conf`, `oci-conf`, `dns-conf`), so it has to run.
 */
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { parse } from 'smol-toml'
import type { NixConfView } from '../api/contract.ts'
import type { OciConf } from '../api/image-contract.ts'
import type { DnsConfView } from '../api/names-contract.ts'
import { withBlock, withoutBlock } from './block.ts'
import type { Wanted } from './change.ts'
import type { Command } from './machine.ts'
import type { Part } from './manifest.ts'
import type { Root } from './root.ts'

const NIX_CONF = '/etc/nix/nix.conf'
const CONTAINERD_CONF = '/etc/containerd/config.toml'
const RESOLVED_CONF = '/etc/systemd/resolved.conf.d/undernet.conf'
/** Tables of the registry in containerd 1 and 2. */
const CRI_PLUGINS = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images']

export type OtherPart = Exclude<Part, 'agent'>
export const OTHER_PARTS: readonly OtherPart[] = ['nix', 'containers', 'dns']

/** What a program reads again only when it is told: by the file that was changed. */
const TELL: ReadonlyMap<string, Command> = new Map<string, Command>([
  [NIX_CONF, ['systemctl', 'try-restart', 'nix-daemon.service']],
  [CONTAINERD_CONF, ['systemctl', 'try-restart', 'containerd.service']],
  [RESOLVED_CONF, ['systemctl', 'try-restart', 'systemd-resolved.service']],
])

export type Asking = { get<Reply>(path: string): Promise<Reply> }
/** `notes`: what has to be done by hand. */
export type OtherFiles = { wanted: Wanted[]; notes: string[] }

/** Commands that make programs read what was changed. */
export function commandsFor(paths: readonly string[]): Command[] {
  return [...TELL].filter(([path]) => paths.includes(path)).map(([, command]) => command)
}

/** Whether a machine has what the part is for. */
export function isHere(part: OtherPart, root: Root): boolean {
  const has = (path: string) => root.stat(path) !== undefined
  if (part === 'nix') return has('/etc/nix') || has('/nix/var/nix/db') || hasCommand('nix')
  if (part === 'dns') return has('/run/systemd/resolve')
  return hasPodman(root) || hasContainerd(root)
}

/** What a part needs. @throws {AgentError} of the agent, when it cannot say */
export async function filesOf(part: OtherPart, agent: Asking, root: Root): Promise<OtherFiles> {
  if (part === 'nix') {
    const { lines } = await agent.get<NixConfView>('nix-conf')
    return { wanted: [{ kind: 'block', part, path: NIX_CONF, lines }], notes: [] }
  }
  if (part === 'dns') {
    const { resolvers } = await agent.get<DnsConfView>('dns-conf')
    const lines = resolvers.find(({ resolver }) => resolver === 'systemd-resolved')?.lines ?? []
    return { wanted: [{ kind: 'file', part, path: RESOLVED_CONF, text: textOf(lines), mode: 0o644 }], notes: [] }
  }
  const all: OtherFiles = { wanted: [], notes: [] }
  if (hasPodman(root)) {
    const { files } = await agent.get<OciConf>('oci-conf/podman')
    all.wanted.push(...files.map(({ path, lines }) => wholeFile(path, lines)))
  }
  if (hasContainerd(root)) {
    const { files } = await agent.get<OciConf>('oci-conf/containerd')
    all.wanted.push(
      ...files.filter(({ path }) => path !== CONTAINERD_CONF).map(({ path, lines }) => wholeFile(path, lines)),
    )
    const cri = files.find(({ path }) => path === CONTAINERD_CONF)
    const planned = containerdConf(cri?.lines ?? [], root.read(CONTAINERD_CONF)?.toString('utf8'))
    if (typeof planned === 'string') all.notes.push(planned)
    else if (planned !== undefined) all.wanted.push(planned)
  }
  return all
}

/**
 * containerd's own file: the lines at its end, where that is sound TOML and nobody has said otherwise; nothing where it says the same already.
 * A text is a note for the one who has to decide.
 */
export function containerdConf(lines: readonly string[], there: string | undefined): Wanted | string | undefined {
  const wanted: Wanted = { kind: 'block', part: 'containers', path: CONTAINERD_CONF, lines }
  if (there === undefined) return { ...wanted, lines: ['version = 2', ...lines] }
  const byHand = `${CONTAINERD_CONF} is for you to change: it should have\n${lines.join('\n')}`
  try {
    const rest = withoutBlock(there) ?? there
    const configured = configPath(parse(rest))
    if (configured !== undefined)
      return lines.some((line) => line.includes(JSON.stringify(configured))) ? undefined : byHand
    // What is left of a file that we made has no version.
    if (rest === '') return { ...wanted, lines: ['version = 2', ...lines] }
    parse(withBlock(rest, lines))
    return wanted
  } catch {
    return byHand
  }
}

function configPath(conf: Record<string, unknown>): unknown {
  const inner = (value: unknown, key: string) =>
    typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined
  for (const plugin of CRI_PLUGINS) {
    const found = inner(inner(inner(conf.plugins, plugin), 'registry'), 'config_path')
    if (found !== undefined && found !== '') return found
  }
  return undefined
}

function wholeFile(path: string, lines: readonly string[]): Wanted {
  return { kind: 'file', part: 'containers', path, text: textOf(lines), mode: 0o644 }
}

function textOf(lines: readonly string[]): string {
  return lines.map((line) => `${line}\n`).join('')
}

function hasPodman(root: Root): boolean {
  return root.stat('/etc/containers') !== undefined || hasCommand('podman')
}

function hasContainerd(root: Root): boolean {
  return root.stat('/etc/containerd') !== undefined || hasCommand('containerd')
}

function hasCommand(name: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((directory) => existsSync(join(directory, name)))
}
