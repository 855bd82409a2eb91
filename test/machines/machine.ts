/**
 * A machine that boots a real systemd (systemd-nspawn), in a network namespace that somebody made for it, with a disk of its own that outlives it:
 * an overlay on the root that all share. Commands are run in it as root, as if somebody had logged in; packages, tokens and the like go through a
 * directory of this machine that all see as /mnt.
 *
 * It ends with the process that made it, however that ends. What is left behind by one that was killed (mounts, control groups) the next clears.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Outcome, until } from '../agents.ts'

/** On a busy machine. */
const BOOT_MS_MAX = 60_000
const END_MS_MAX = 30_000
const COMMAND_MS_MAX = 120_000
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024
const POLL_MS = 100
/** Kept of the console, for the message of a failure. */
const CONSOLE_LENGTH_MAX = 20_000
/** What somebody has who logs in as root. */
const LOGIN = ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/root', 'LANG=C.UTF-8']
/** Where overlays are; the number of the process that has one is in its name. */
export const DISKS = '/var/cache/undernet-machines/disks'
/** Of control groups: one, or on older machines several, of which systemd writes to these. */
const LEGACY_TREES = ['/sys/fs/cgroup/systemd', '/sys/fs/cgroup/unified'].filter((one) => existsSync(one))
const TREES = LEGACY_TREES.length > 0 ? LEGACY_TREES : ['/sys/fs/cgroup']

export type MachineOptions = {
  name: string
  /** As machineRoot() has it. */
  root: string
  namespace: string
  /** Seen by the machine as /mnt. */
  shared: string
}

export class Machine implements AsyncDisposable {
  readonly name: string
  /** What was written since the machine was made: files of its disk that are new or changed. */
  readonly written: string
  readonly #options: MachineOptions
  readonly #disk: string
  readonly #place: string
  /** Of its control groups. */
  readonly #group: string
  #process: ChildProcess | undefined
  #leader = 0
  #console = ''

  private constructor(options: MachineOptions) {
    this.name = options.name
    this.#options = options
    this.#disk = join(DISKS, `${process.pid}-${options.name}`)
    this.#group = `undernet-${process.pid}-${options.name}`
    this.#place = join(this.#disk, 'root')
    this.written = join(this.#disk, 'upper')
  }

  /** Makes a machine and boots it. */
  static async start(options: MachineOptions): Promise<Machine> {
    const machine = new Machine(options)
    try {
      await clearAbandoned()
      machine.#mount()
      await machine.boot()
      return machine
    } catch (error) {
      await machine[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Resolves when everything has started that starts by itself. */
  async boot(): Promise<void> {
    const { namespace, shared } = this.#options
    const groups = TREES.map((tree) => join(tree, this.#group))
    for (const group of groups) mkdirSync(group, { recursive: true })
    const nspawn = [
      'systemd-nspawn',
      '-q',
      '--register=no',
      '--keep-unit',
      '--console=pipe',
      '--resolv-conf=off',
      '--timezone=off',
    ]
    nspawn.push(
      `--network-namespace-path=/run/netns/${namespace}`,
      '--capability=CAP_NET_ADMIN',
      `--bind=${shared}:/mnt`,
    )
    nspawn.push('-D', this.#place, `--machine=${this.name}`, '-b')
    const enter = groups.map((group) => `echo $$ >${group}/cgroup.procs`).join('; ')
    // Asked to end it turns the machine off. Killed it would leave it running.
    const child = spawn('setpriv', ['--pdeathsig', 'TERM', 'sh', '-c', `${enter}; exec "$@"`, 'sh', ...nspawn], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#process = child
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => {
        this.#console = (this.#console + chunk.toString()).slice(-CONSOLE_LENGTH_MAX)
      })
    await until(() => this.#isUp(), {
      what: () => `${this.name} boots:\n${this.#console}`,
      ms: BOOT_MS_MAX,
      everyMs: POLL_MS,
      unless: () => this.#isOff && `${this.name} went off while it booted:\n${this.#console}`,
    })
  }

  /** Runs a command to its end; never throws for its exit code. */
  run(...command: string[]): Promise<Outcome> {
    const args = ['-t', String(this.#leader), '-a', 'env', '-i', ...LOGIN, ...command]
    return new Promise((resolve) => {
      const options = { maxBuffer: OUTPUT_BYTES_MAX, timeout: COMMAND_MS_MAX, cwd: '/' }
      execFile('nsenter', args, options, (error, stdout, stderr) => {
        resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr })
      })
    })
  }

  /** Runs a command that has to succeed; what it printed, without the last line break. */
  async does(...command: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(...command)
    if (code !== 0) throw new Error(`${this.name}: ${command.join(' ')} ended with ${code}: ${stderr}${stdout}`)
    return stdout.trimEnd()
  }

  /** A command of the agent that has to succeed, with --json. */
  async asks<T>(...words: string[]): Promise<T> {
    return JSON.parse(await this.does('agent', ...words, '--json')) as T
  }

  /** As its power button does. */
  async powerOff(): Promise<void> {
    await this.run('systemctl', 'poweroff', '--no-block')
    await this.#ends()
  }

  /** As when the plug is pulled; what was written stays. */
  async cutPower(): Promise<void> {
    for (const tree of TREES) killGroup(join(tree, this.#group))
    await this.#ends()
  }

  /** The paths of what is on its disk and was not, or is not as it was, when it was made. */
  writtenPaths(): string[] {
    const entries = readdirSync(this.written, { recursive: true, withFileTypes: true })
    return entries.map((entry) => join(entry.parentPath, entry.name).slice(this.written.length)).sort()
  }

  /** Whether it is a directory that Debian itself has there: one is written to when something in it comes and goes. */
  isDirectoryOfRoot(path: string): boolean {
    const stats = lstatSync(join(this.#options.root, path), { throwIfNoEntry: false })
    return stats?.isDirectory() === true && lstatSync(join(this.written, path)).isDirectory()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isOff) await this.cutPower()
    await discard(this.#disk, this.#group)
  }

  get #isOff(): boolean {
    return this.#process === undefined || this.#process.exitCode !== null || this.#process.signalCode !== null
  }

  #mount(): void {
    const work = join(this.#disk, 'work')
    for (const directory of [this.written, work, this.#place]) mkdirSync(directory, { recursive: true })
    const layers = `lowerdir=${this.#options.root},upperdir=${this.written},workdir=${work}`
    execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', layers, this.#place])
    // Without a number of its own systemd would take this for a first boot, and set the machine up.
    writeFileSync(join(this.#place, 'etc', 'machine-id'), `${randomBytes(16).toString('hex')}\n`)
    writeFileSync(join(this.#place, 'etc', 'hostname'), `${this.name}\n`)
    writeFileSync(join(this.#place, 'etc', 'hosts'), `127.0.0.1 localhost\n127.0.1.1 ${this.name}\n`)
  }

  async #isUp(): Promise<boolean> {
    this.#leader ||= firstProcessBelow(this.#process?.pid ?? 0)
    if (this.#leader === 0) return false
    const { stdout } = await this.run('systemctl', 'is-system-running')
    return ['running', 'degraded'].includes(stdout.trim())
  }

  async #ends(): Promise<void> {
    const leader = this.#leader
    this.#leader = 0
    await until(() => this.#isOff && !existsSync(`/proc/${leader}`), {
      what: () => `${this.name} goes off:\n${this.#console}`,
      ms: END_MS_MAX,
      everyMs: POLL_MS,
    })
  }
}

/** What is process 1 of a namespace, among the descendants of a process; 0 when there is none yet. */
function firstProcessBelow(pid: number): number {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
    for (const child of children) {
      const [, ids = ''] = /^NSpid:(.*)$/m.exec(readFileSync(`/proc/${child}/status`, 'utf8')) ?? []
      if (/\s1$/.test(ids)) return child
      const below = firstProcessBelow(child)
      if (below > 0) return below
    }
  } catch {
    // Gone meanwhile.
  }
  return 0
}

/** What processes that are no more have left behind. */
async function clearAbandoned(): Promise<void> {
  if (!existsSync(DISKS)) return
  for (const name of readdirSync(DISKS)) {
    const [pid = ''] = name.split('-')
    if (!existsSync(`/proc/${pid}`)) await discard(join(DISKS, name), `undernet-${name}`)
  }
}

async function discard(disk: string, group: string): Promise<void> {
  const groups = TREES.map((tree) => join(tree, group))
  await until(() => !groups.some((one) => killGroup(one)), { what: `${group} ends`, ms: END_MS_MAX, everyMs: POLL_MS })
  const place = join(disk, 'root')
  if (readFileSync('/proc/mounts', 'utf8').includes(` ${place} `)) execFileSync('umount', [place])
  rmSync(disk, { recursive: true, force: true })
  for (const one of groups) removeGroup(one)
}

/** Whether there was something to kill, in a control group that only a machine of ours is in. */
function killGroup(group: string): boolean {
  if (!existsSync(group)) return false
  const pids = readFileSync(join(group, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number)
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // Gone meanwhile.
    }
  }
  const below = readdirSync(group, { withFileTypes: true }).filter((entry) => entry.isDirectory())
  return below.map((entry) => killGroup(join(group, entry.name))).includes(true) || pids.length > 0
}

/** From the leaves on; the files in it go with it. */
function removeGroup(group: string): void {
  if (!existsSync(group)) return
  for (const entry of readdirSync(group, { withFileTypes: true })) {
    if (entry.isDirectory()) removeGroup(join(group, entry.name))
  }
  rmdirSync(group)
}
