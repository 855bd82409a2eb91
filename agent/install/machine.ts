/**
 * The machine that is installed on: what it can do, why it cannot, and the commands that are run on it.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import { promisify } from 'node:util'
import { AgentError } from '../error.ts'
import { UNIT, UNIT_FILE } from './layout.ts'
import { AS_ROOT, type Root } from './root.ts'

/** A start may have to change the database, and systemd gives it five minutes. */
const COMMAND_MS_MAX = 6 * 60_000
const OUTPUT_BYTES_MAX = 1024 * 1024
/** Where packages have it. */
const UNITS_OF_PACKAGES = ['/usr/lib/systemd/system/undernet.service', '/lib/systemd/system/undernet.service']

export type Command = readonly [string, ...string[]]
type Outcome = { status: number; output: string }
export type Run = (command: Command) => Promise<Outcome>

/** Runs a command to its end; one that cannot be run has the status 127, as in a shell. */
export const runCommand: Run = async ([program, ...words]) => {
  const options = { timeout: COMMAND_MS_MAX, maxBuffer: OUTPUT_BYTES_MAX, env: { ...process.env, LC_ALL: 'C' } }
  try {
    const { stdout, stderr } = await promisify(execFile)(program, words, options)
    return { status: 0, output: `${stdout}${stderr}` }
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as { code?: number | string; stdout?: string; stderr?: string }
    if (code === 'ENOENT') return { status: 127, output: `${program}: there is no such command` }
    return { status: typeof code === 'number' ? code : 1, output: `${stdout}${stderr}`.trim() }
  }
}

/** Runs it, and takes anything but success for a failure. @throws {AgentError} `failed` with what it said */
export async function must(run: Run, command: Command, next?: string): Promise<string> {
  const { status, output } = await run(command)
  if (status === 0) return output
  throw new AgentError('failed', `${command.join(' ')} failed:\n${output || `status ${status}`}`, next ? { next } : {})
}

/** systemd's, as a number: 252. @throws {AgentError} `failed` when there is none */
export async function systemdVersion(run: Run): Promise<number> {
  const { status, output } = await run(['systemctl', '--version'])
  const [, version] = /^systemd (\d+)/.exec(output) ?? []
  if (status === 0 && version !== undefined) return Number(version)
  throw new AgentError('failed', 'this machine has no systemd', {
    next: 'Run `agent start` from the init system that it has.',
  })
}

/** Whether somebody else looks after the agent here, who is then not to be disturbed. @throws {AgentError} `failed`, `taken` */
export function checkOwner(root: Root): void {
  if (root.stat('/etc/NIXOS') !== undefined)
    throw new AgentError('failed', 'this is NixOS, which is changed by its configuration', {
      next: 'Use the module of the flake: services.undernet.enable = true;',
    })
  if (root.linkTarget(UNIT_FILE) === '/dev/null')
    throw new AgentError('taken', `${UNIT} is masked: somebody wants it not to run`, {
      next: `If that is no longer so: sudo systemctl unmask ${UNIT}`,
    })
  const packaged = UNITS_OF_PACKAGES.find((path) => root.stat(path) !== undefined)
  if (packaged !== undefined)
    throw new AgentError('taken', `the agent is here already, by a package (${packaged})`, {
      next: 'Leave it to the package manager (apt install, remove, purge undernet). `agent nix-conf`, oci-conf and dns-conf show the lines for other programs.',
    })
}

/** Whether this is a machine, and this user one, that may be changed. @throws {AgentError} `failed`, `not-allowed` */
export function checkMachine(root: Root, isDryRun: boolean): void {
  if (root.isMachine && !existsSync('/run/systemd/system'))
    throw new AgentError('failed', 'this machine was not started by systemd', {
      next: 'To put the agent into an image, name its directory with --root; otherwise run `agent start` yourself.',
    })
  if (!isDryRun && root.isMachine && process.geteuid?.() !== 0)
    throw new AgentError('not-allowed', 'only root may change what runs on this machine', {
      next: `${AS_ROOT} --dry-run shows what would be done.`,
    })
}

/** Whether all that is to be changed can be. @throws {AgentError} `not-allowed` */
export function checkWritable(root: Root, paths: readonly string[]): void {
  const faults = new Set(paths.map((path) => root.fault(path)).filter((fault) => fault !== undefined))
  if (faults.size > 0)
    throw new AgentError('not-allowed', [...faults].join('\n'), {
      next: 'Nothing was changed. For an image that is mounted read-only, install into its directory with --root.',
    })
}

/**
 * Holds off a second installation into the same place until disposed, or this process ends, in whichever way.
 *
 * @throws {AgentError} `taken`
 */
export async function lockInstallation(root: Root): Promise<Disposable> {
  const place = createHash('sha256').update(root.directory).digest('hex').slice(0, 16)
  const lock = createServer()
  try {
    await new Promise<void>((resolve, reject) => {
      lock.once('error', reject)
      // A name in the abstract namespace: it goes with its process.
      lock.listen(`\0undernet-install-${place}`, resolve)
    })
  } catch (cause) {
    throw new AgentError('taken', 'another installation is at work', { cause, next: 'Wait until it has ended.' })
  }
  lock.unref()
  return { [Symbol.dispose]: () => void lock.close() }
}
