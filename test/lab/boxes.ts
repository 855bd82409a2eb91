/**
 * Machines in boxes, for what people type on machines of their own: each with a name, an address on one switch, the standard ports, root's
 * home, and an /etc, /run, /tmp, /usr/local, /var/lib and (if it is said) Nix store that are nobody else's. Programs are those of this machine.
 *
 * In place of systemd is a script that starts and stops one service, as its unit says; the unit under a real one is tested elsewhere. Needs
 * root and Linux; everything ends with the box.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, relative } from 'node:path'
import { promisify, stripVTControlCharacters } from 'node:util'
import { type Bundle, type Outcome, until } from '../agents.ts'
import { type Hosts, makeHosts } from './three-hosts.ts'

const START_MS_MAX = 30_000
/** A line that somebody types ends within this, on a busy machine. */
const LINE_MS_MAX = 60_000

/** systemd, for the one unit that `agent install` writes. */
const SYSTEMCTL = `#!/bin/bash
unit=/etc/systemd/system/undernet.service
pid=/run/undernet.pid
running() { [ -e $pid ] && kill -0 "$(cat $pid)" 2>/dev/null; }
start() {
  export STATE_DIRECTORY=/var/lib/undernet RUNTIME_DIRECTORY=/run/undernet CACHE_DIRECTORY=/var/cache/undernet
  mkdir -p $STATE_DIRECTORY $RUNTIME_DIRECTORY $CACHE_DIRECTORY
  setsid $(sed -n 's/^ExecStart=//p' $unit) >>/var/log/undernet.log 2>&1 </dev/null &
  echo $! >$pid
  while running && [ ! -S $RUNTIME_DIRECTORY/agent.sock ]; do sleep 0.05; done
  running
}
stop() { if running; then kill "$(cat $pid)"; while running; do sleep 0.05; done; fi; }
case "$*" in
  --version) echo 'systemd 252 (a box)' ;;
  show*) echo "ActiveState=$(running && echo active || echo inactive)"; echo NeedDaemonReload=no ;;
  'start undernet'*) running || start ;;
  'restart undernet'*) stop; start ;;
  'reload undernet'*) kill -HUP "$(cat $pid)" ;;
  'stop undernet'*) stop ;;
  'is-active undernet'*) running ;;
esac
`

const CONTAINERS = `
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
`
const STORAGE = `
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`

/** Boxes on one switch, by name. */
export class Boxes implements AsyncDisposable {
  readonly #hosts: Hosts
  readonly #boxes = new Map<string, Box>()

  private constructor(hosts: Hosts) {
    this.#hosts = hosts
  }

  /** `ownNix`: the names of those whose Nix store is not this machine's. */
  static async start(names: readonly string[], { ownNix = [] }: { ownNix?: readonly string[] } = {}): Promise<Boxes> {
    const boxes = new Boxes(makeHosts(names.length))
    try {
      await Promise.all(
        names.map(async (name, nth) => {
          const box = new Box(name, boxes.#hosts.address(nth))
          boxes.#boxes.set(name, box)
          await box.begin(boxes.#hosts.namespace(nth), ownNix.includes(name))
        }),
      )
      return boxes
    } catch (error) {
      await boxes[Symbol.asyncDispose]()
      throw error
    }
  }

  get(name: string): Box {
    const box = this.#boxes.get(name)
    if (box === undefined) throw new Error(`there is no machine ${name}`)
    return box
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#boxes.values()].map((box) => box[Symbol.asyncDispose]()))
    this.#hosts[Symbol.dispose]()
  }
}

/** The entry of the machine's /tmp that a file is in: where somebody's clone is there. */
function entryInTmp(file: string): string | undefined {
  const [first] = relative(tmpdir(), file).split('/')
  return first === '..' ? undefined : first
}

export class Box implements AsyncDisposable {
  readonly name: string
  readonly address: string
  /** Root's home: where lines are typed. */
  readonly home: string
  readonly #directory: string
  readonly #running: ChildProcess[] = []
  #holder: ChildProcess | undefined
  #inside = 0

  constructor(name: string, address: string) {
    this.name = name
    this.address = address
    this.#directory = mkdtempSync(join(tmpdir(), `undernet-box-${name}-`))
    this.home = join(this.#directory, 'root')
  }

  async begin(namespace: string, hasOwnNix: boolean): Promise<void> {
    for (const one of ['root', 'bin', 'local/bin', 'nix']) mkdirSync(join(this.#directory, one), { recursive: true })
    await promisify(execFile)('cp', ['-a', '/etc', this.#directory])
    this.#program('bin/sudo', '#!/bin/sh\nexec "$@"\n')
    this.#program('bin/systemctl', SYSTEMCTL)
    // Another machine: here.
    this.#program('bin/ssh', '#!/bin/sh\nshift\nexec sh -c "$*"\n')
    this.file('/etc/containers/containers.conf', CONTAINERS)
    this.file('/etc/containers/storage.conf', STORAGE)
    const binds = ['/etc etc', '/root root', '/usr/local local', ...(hasOwnNix ? ['/nix nix'] : [])]
    const inTmp = entryInTmp(process.execPath)
    const script = [
      'set -e',
      `hostname ${this.name}`,
      'mount --make-rprivate /',
      ...['/run', '/var/lib', '/var/log', '/var/cache'].map((place) => `mount -t tmpfs tmpfs ${place}`),
      ...binds.map((bind) => bind.split(' ')).map(([at, from]) => `mount --bind ${this.#directory}/${from} ${at}`),
      'mkdir -p /run/systemd/system',
      // A /tmp of its own, in which the bundle and this directory are where they were.
      `mkdir /run/tmp && mount --bind ${tmpdir()} /run/tmp && mount -t tmpfs tmpfs ${tmpdir()}`,
      `ln -s /run/tmp/undernet-bundle-* /run/tmp/${basename(this.#directory)} ${tmpdir()}`,
      ...(inTmp === undefined ? [] : [`ln -s /run/tmp/${inTmp} ${tmpdir()}`]),
      `touch ${this.#directory}/ready`,
      // Whoever is left by its parent comes to this shell, and is buried by it.
      'sleep infinity & wait',
    ].join('\n')
    // Not `ip netns exec`, which takes the control groups away that containers need.
    const within = [`--net=/run/netns/${namespace}`, 'setpriv', '--pdeathsig', 'KILL']
    const unshare = ['unshare', '--mount', '--uts', '--pid', '--fork', '--kill-child', '--mount-proc']
    this.#holder = spawn('nsenter', [...within, ...unshare, 'bash', '-c', script], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    const holder = this.#holder.pid
    await until(() => isThere(join(this.#directory, 'ready')), { what: `${this.name} is there`, ms: START_MS_MAX })
    this.#inside = Number(readFileSync(`/proc/${holder}/task/${holder}/children`, 'utf8').trim().split(' ')[0])
  }

  /** Where a file of the box is on this machine: below /etc or /root. */
  path(path: string): string {
    return join(this.#directory, path)
  }

  file(path: string, text: string): void {
    const file = this.path(path)
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, text)
  }

  /** What is printed by `agent` before it is installed. */
  useBundle(bundle: Bundle): void {
    this.#program('bin/agent', `#!/bin/sh\nexec ${process.execPath} ${bundle.entry} "$@"\n`)
  }

  /** Runs a line in bash, to its end. */
  async type(line: string, input = ''): Promise<Outcome> {
    const [program = '', ...args] = this.#words(line)
    return await new Promise((resolve) => {
      const child = spawn(program, args, { stdio: 'pipe', timeout: LINE_MS_MAX })
      const said = { stdout: '', stderr: '' }
      child.stdout.on('data', (bytes: Buffer) => (said.stdout += bytes))
      child.stderr.on('data', (bytes: Buffer) => (said.stderr += bytes))
      child.stdin.on('error', () => {})
      child.stdin.end(input)
      child.on('close', (code) => resolve({ code: code ?? -1, ...said }))
    })
  }

  /** Runs a line on a terminal, whose questions are answered one by one. */
  async answer(line: string, answers: readonly string[]): Promise<Outcome> {
    const [program = '', ...args] = this.#words(`exec script -qec ${quoted(line)} /dev/null`)
    return await new Promise((resolve) => {
      const child = spawn(program, args, { stdio: 'pipe', timeout: LINE_MS_MAX })
      const left = [...answers]
      let stdout = ''
      child.stdout.on('data', (bytes: Buffer) => {
        stdout += bytes
        const next = /[:\]?] ?$/.test(stripVTControlCharacters(stdout)) ? left.shift() : undefined
        if (next !== undefined) child.stdin.write(`${next}\r`)
      })
      child.stdin.on('error', () => {})
      child.on('close', (code) => resolve({ code: code ?? -1, stdout, stderr: '' }))
    })
  }

  /** Runs a line that goes on, and waits until it has said something that `pattern` matches. It ends with the box, or when the result is called. */
  async goOn(line: string, pattern = /./): Promise<() => Promise<void>> {
    const [program = '', ...args] = this.#words(line, ['setpriv', '--pdeathsig', 'TERM'])
    const child = spawn(program, args, { stdio: 'pipe' })
    this.#running.push(child)
    let said = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => (said += bytes))
    await until(() => pattern.test(said), {
      what: () => `${line} on ${this.name} goes on: ${said}`,
      ms: START_MS_MAX,
      unless: () => child.exitCode !== null && `${line} on ${this.name} ended with ${child.exitCode}: ${said}`,
    })
    return async () => {
      const ended = new Promise((resolve) => child.once('close', resolve))
      // What runs inside is told so, and ends.
      child.kill('SIGKILL')
      await ended
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const holder = this.#holder
    if (holder !== undefined && holder.exitCode === null && holder.signalCode === null) {
      const ended = new Promise((resolve) => holder.once('close', resolve))
      holder.kill('SIGKILL')
      await ended
    }
    for (const child of this.#running) child.kill('SIGKILL')
    rmSync(this.#directory, { recursive: true, force: true })
  }

  #program(path: string, text: string): void {
    writeFileSync(join(this.#directory, path), text, { mode: 0o755 })
  }

  #words(line: string, before: readonly string[] = []): string[] {
    const env = {
      PATH: `${this.#directory}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin`,
      HOME: '/root',
      USER: 'root',
      LANG: 'C.UTF-8',
    }
    const inside = ['nsenter', `--target=${this.#inside}`, '--mount', '--uts', '--pid', '--net']
    const set = Object.entries(env).map(([name, value]) => `${name}=${value}`)
    return [...inside, ...before, 'env', '--chdir=/root', '-i', ...set, 'bash', '-eo', 'pipefail', '-c', line]
  }
}

function isThere(path: string): boolean {
  try {
    readFileSync(path)
    return true
  } catch {
    return false
  }
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
