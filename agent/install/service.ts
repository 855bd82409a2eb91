/**
 * The agent as a service of this machine: its user, and the commands that make systemd do what the files say.
 */
import { existsSync } from 'node:fs'
import { AgentError } from '../error.ts'
import { SERVICE_NAME } from '../service/unit.ts'
import type { Step } from './change.ts'
import { LAUNCHER, PROGRAMS, STATE_DIRECTORIES, SYSUSERS, UNIT, UNIT_FILE } from './layout.ts'
import { type Command, must, type Run } from './machine.ts'
import type { Manifest } from './manifest.ts'
import type { Root } from './root.ts'

/** What an agent says that does not start is short. */
const LOG_LINES = '3'

/** What systemd says of the unit now. */
export type ServiceState = { isActive: boolean; needsReload: boolean }

export async function serviceState(root: Root, run: Run): Promise<ServiceState> {
  if (!root.isMachine) return { isActive: false, needsReload: false }
  const { output } = await run(['systemctl', 'show', '--property=ActiveState,NeedDaemonReload', UNIT])
  return {
    isActive: /^ActiveState=(active|reloading|activating)$/m.test(output),
    needsReload: /^NeedDaemonReload=yes$/m.test(output),
  }
}

/** What has to be run when the files are in their places. */
export function startCommands(
  steps: readonly Step[],
  { root, hasUser, isUnfinished, state }: { root: Root; hasUser: boolean; isUnfinished: boolean; state: ServiceState },
): Command[] {
  const isChanged = (path: string) =>
    steps.some(({ wanted, action }) => wanted.path === path && action !== 'same' && action !== 'keep')
  const isNew = steps.some(({ wanted, action }) => wanted.kind === 'tree' && action !== 'same')
  const user: Command[] = hasUser ? [] : [sysusersCommand(root)]
  if (!root.isMachine) return user
  // The kind of a file is that of its directory until somebody looks it up.
  const label: Command[] = isNew && hasSelinux() ? [['restorecon', '-R', PROGRAMS, LAUNCHER, UNIT_FILE]] : []
  const isOther = isChanged(UNIT_FILE) || isUnfinished
  const reload: Command[] = isOther || state.needsReload ? [['systemctl', 'daemon-reload']] : []
  if (!state.isActive) return [...user, ...label, ...reload, ['systemctl', 'start', UNIT]]
  return [...user, ...label, ...reload, ...(isOther || isNew ? [['systemctl', 'restart', UNIT] as const] : [])]
}

/** Runs one of these; when the agent does not start, what it said is the reason. @throws {AgentError} `failed` */
export async function runOnService(run: Run, command: Command): Promise<void> {
  const { status, output } = await run(command)
  if (status === 0) return
  const isStart = command[0] === 'systemctl' && /^(re)?start$/.test(command[1] ?? '')
  const log = isStart
    ? await run(['journalctl', '-u', UNIT, '-p', 'err', '-n', LOG_LINES, '-o', 'cat', '--no-pager'])
    : undefined
  const said = new Set(log?.output.split('\n').filter((line) => line !== '' && !line.startsWith('Failed to start')))
  throw new AgentError('failed', `${command.join(' ')} failed:\n${[...said].join('\n') || output}`, {
    next: isStart
      ? `Everything is in its place. Mend that, and run the command again; more is in journalctl -u ${UNIT}.`
      : 'Mend that, and run the command again.',
  })
}

function hasSelinux(): boolean {
  return existsSync('/sys/fs/selinux/enforce')
}

function sysusersCommand(root: Root): Command {
  return ['systemd-sysusers', ...(root.isMachine ? [] : [`--root=${root.directory}`]), SYSUSERS]
}

/** Whether the machine has the user, by its files. */
export function hasUser(root: Root): boolean {
  return hasLine(root, '/etc/passwd')
}

/** Directories of the agent that are there: its identity is in one of them. */
export function stateDirectories(root: Root): string[] {
  return STATE_DIRECTORIES.filter((path) => root.stat(path) !== undefined)
}

/** Ends the agent; one that does not run is no reason to fail. */
export async function stopService(root: Root, run: Run): Promise<void> {
  if (!root.isMachine) return
  const { status, output } = await run(['systemctl', 'stop', UNIT])
  // 5: there is no such unit.
  if (status !== 0 && status !== 5) await must(async () => ({ status, output }), ['systemctl', 'stop', UNIT])
}

/** After the unit is gone. */
export async function forgetService(root: Root, run: Run): Promise<void> {
  if (!root.isMachine) return
  await must(run, ['systemctl', 'daemon-reload'])
  // It fails where there is nothing to forget.
  await run(['systemctl', 'reset-failed', UNIT])
}

/** Takes the user and its group away, if it was made here. */
export async function removeUser(root: Root, run: Run, manifest: Manifest): Promise<void> {
  if (manifest.get(SERVICE_NAME)?.kind !== 'user') return
  const where = root.isMachine ? [] : ['--prefix', root.directory]
  if (hasUser(root)) await must(run, ['userdel', ...where, SERVICE_NAME])
  // It stays when people are in it.
  if (hasLine(root, '/etc/group')) await must(run, ['groupdel', ...where, SERVICE_NAME])
  manifest.forget(SERVICE_NAME)
}

/** Programs of earlier versions: nobody runs them any more. */
export function oldTrees(manifest: Manifest, steps: readonly Step[]): string[] {
  const used = new Set(steps.map(({ wanted }) => wanted.path))
  return manifest.entries.filter(({ kind, path }) => kind === 'tree' && !used.has(path)).map(({ path }) => path)
}

function hasLine(root: Root, file: string): boolean {
  return (
    root
      .read(file)
      ?.toString('latin1')
      .split('\n')
      .some((line) => line.startsWith(`${SERVICE_NAME}:`)) ?? false
  )
}
