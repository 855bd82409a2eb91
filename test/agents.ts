/**
 * Real agents for tests, the demo and the benchmarks: each a process of its own, with state, ports and socket of its own, ended by pid.
 * What an agent logs is kept, and shown when something about it fails.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { createServer } from 'node:net'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Client } from '../agent/api/client.ts'
import type { Status } from '../agent/api/contract.ts'
import { YOUNG_HEAP_FLAG } from '../agent/young-heap.ts'

/** The agent as it runs in development. */
export const SOURCES = fileURLToPath(new URL('../agent/main.ts', import.meta.url))
/** A start takes 0.3 to 1.5 s of CPU; thirty at once share two cores. */
const START_MS_MAX = 60_000
/** An interrupted test leaves no agent running: the kernel ends it with its parent. */
const SETPRIV = '/usr/bin/setpriv'
const DIES_WITH_US = existsSync(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL'] : []
/** Names the directory of a bundle for all tests of a run. */
export const SHARED_BUNDLE = 'TEST_BUNDLE'
/** Kept of each agent's log, for the message of a failure. */
const LOG_LINES_MAX = 200
const POLL_MS = 25
/** Ports of its own; ways in to services only for tests of them. */
const LOOPBACK = { http: '127.0.0.1:0', proxy: 'off', dns: 'off' }

export type AgentOptions = {
  name: string
  /** agent/main.ts, or a bundle's main.js. */
  entry?: string
  /** Reused when given (a restart); otherwise made, and removed at the end. */
  state?: string
  bootstrap?: string[]
  mdns?: boolean
  /** Network namespace that it runs in. */
  namespace?: string
  listen?: string | string[]
  /** In place of LOOPBACK. */
  loopback?: Partial<typeof LOOPBACK>
  flags?: string[]
  env?: Record<string, string>
  /** Kept of its log, the newest; LOG_LINES_MAX if not said. */
  logLinesMax?: number
}

export type Outcome = { code: number; stdout: string; stderr: string }
/** How a process ended: by itself with a code, or by a signal. */
export type Ending = { code: number | null; signal: NodeJS.Signals | null }
/** A line of the agent's log. */
export type LogEntry = { level: string; time: string; msg: string } & Record<string, unknown>

export class RealAgent implements AsyncDisposable {
  readonly name: string
  readonly state: string
  readonly socket: string
  readonly log: string[] = []
  /** The local API, without the cost of a command. */
  readonly client: Client
  /** Resolves when the process is gone and all that it said has been read. */
  readonly ended: Promise<Ending>
  readonly #entry: string
  readonly #process: ChildProcess
  readonly #namespace: string | undefined
  readonly #ownsState: boolean

  private constructor(options: AgentOptions) {
    this.name = options.name
    this.#entry = options.entry ?? Bundle.shared?.entry ?? SOURCES
    this.#namespace = options.namespace
    this.#ownsState = options.state === undefined
    this.state = options.state ?? mkdtempSync(join(tmpdir(), `undernet-${options.name}-`))
    this.socket = join(this.state, 'agent.sock')
    this.client = new Client(async () => [this.socket])
    this.#process = this.#spawn(options)
    this.ended = new Promise((resolve) => {
      this.#process.once('close', (code, signal) => resolve({ code, signal }))
    })
  }

  /** Starts an agent and does not wait: it may have to fail, or be killed at any moment. */
  static launch(options: AgentOptions): RealAgent {
    return new RealAgent(options)
  }

  /** Starts an agent, and resolves when it answers on its socket. */
  static async start(options: AgentOptions): Promise<RealAgent> {
    const agent = new RealAgent(options)
    try {
      await agent.answers()
      return agent
    } catch (error) {
      await agent[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Resolves when it answers on its socket. */
  async answers(): Promise<void> {
    const ready = until(() => this.status().catch(() => undefined), {
      what: () => `agent ${this.name} answers:\n${this.log.join('\n')}`,
      ms: START_MS_MAX,
      unless: () => this.isGone && `agent ${this.name} ended while starting:\n${this.log.join('\n')}`,
    })
    await ready
  }

  get isGone(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  status(): Promise<Status> {
    return this.client.get<Status>('status')
  }

  /** What it logged under an event name, as far as that is kept. */
  logged(event: string): LogEntry[] {
    const entries = this.log.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line) as LogEntry)
    return entries.filter(({ msg }) => msg === event)
  }

  /** User and system time of the process so far; 0 when it is gone. */
  get cpuSeconds(): number {
    if (this.isGone) return 0
    const [user = 0, system = 0] = cpuTimesOf(this.pid)
    return user + system
  }

  /** Resident memory of the process. */
  get rssBytes(): number {
    const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, 'utf8')) ?? []
    return Number(kib) * 1_024
  }

  /** Runs a command against this agent, as a user would. */
  run(...args: string[]): Promise<Outcome> {
    const env = { XDG_CONFIG_HOME: this.state, UNDERNET_SOCKET: this.socket, UNDERNET_STATE: this.state }
    return run(process.execPath, [this.#entry, ...args], env)
  }

  /** Runs a command that has to succeed, with --json. */
  async json<T>(...args: string[]): Promise<T> {
    const { code, stdout, stderr } = await this.run(...args, '--json')
    if (code !== 0) throw new Error(`agent ${args.join(' ')} on ${this.name} ended with ${code}: ${stderr}${stdout}`)
    return JSON.parse(stdout) as T
  }

  /** Where another agent of this machine can dial it. */
  async address(): Promise<string> {
    const { listen, peerId } = await this.status()
    const address = listen[0]
    if (address === undefined) throw new Error(`agent ${this.name} listens nowhere`)
    return address.includes('/p2p/') ? address : `${address}/p2p/${peerId}`
  }

  /** Sends the signal, and resolves with the exit code (null after a signal) once the process is gone. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    this.signal(signal)
    return (await this.ended).code
  }

  signal(signal: NodeJS.Signals): void {
    if (!this.isGone) this.#process.kill(signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end('SIGKILL')
    if (this.#ownsState) rmSync(this.state, { recursive: true, force: true })
  }

  #spawn(options: AgentOptions): ChildProcess {
    const args = [
      this.#entry,
      'start',
      ...Object.entries({
        name: options.name,
        state: this.state,
        socket: this.socket,
        ...LOOPBACK,
        ...options.loopback,
      }).flatMap(([flag, value]) => [`--${flag}`, value]),
      ...[options.listen ?? '/ip4/127.0.0.1/tcp/0'].flat().flatMap((address) => ['--listen', address]),
      ...(options.mdns === true ? [] : ['--no-mdns']),
      ...(options.bootstrap ?? []).flatMap((address) => ['--bootstrap', address]),
      ...(options.flags ?? []),
    ]
    const within = this.#namespace === undefined ? [] : ['ip', 'netns', 'exec', this.#namespace]
    // As the service's unit starts it.
    const command = [...DIES_WITH_US, ...within, process.execPath, YOUNG_HEAP_FLAG]
    const child = spawn(command[0] ?? '', [...command.slice(1), ...args], {
      // Nobody's own configuration.
      env: { ...process.env, XDG_CONFIG_HOME: this.state, ...Bundle.shared?.env, ...options.env },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    createInterface({ input: child.stderr as NonNullable<typeof child.stderr> }).on('line', (line) => {
      this.log.push(line)
      if (this.log.length > (options.logLinesMax ?? LOG_LINES_MAX)) this.log.shift()
    })
    return child
  }
}

/** Runs a program to its end; never throws for its exit code. */
export function run(file: string, args: string[], env: Record<string, string> = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env }, maxBuffer: 64 * 1024 * 1024, timeout: 120_000 }
    execFile(file, args, options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
      resolve({ code, stdout, stderr })
    })
  })
}

type Waiting = {
  /** Said when it was in vain. */
  what: string | (() => string)
  ms?: number
  /** Between two looks, where one is not for free. */
  everyMs?: number
  /** Milliseconds since whenever: see fairClock. */
  clock?: () => number
  /** Says why waiting is of no use any more. */
  unless?: () => string | false
}

/** Polls until `condition` gives something other than undefined, false or null, and returns it; throws what it waited for otherwise. */
export async function until<T>(
  condition: () => T | Promise<T>,
  { ms = 10_000, everyMs = POLL_MS, clock = () => performance.now(), what, unless }: Waiting,
): Promise<NonNullable<Exclude<T, false>>> {
  const deadline = clock() + ms
  for (;;) {
    const value = await condition()
    if (value !== undefined && value !== false && value !== null) return value as NonNullable<Exclude<T, false>>
    const useless = unless?.()
    if (useless) throw new Error(useless)
    if (clock() > deadline) {
      throw new Error(`waited ${ms} ms in vain: ${typeof what === 'string' ? what : what()}`)
    }
    await delay(everyMs)
  }
}

/**
 * Milliseconds of a clock that runs slower while programs other than ours use the machine: a promise in seconds is about a machine that
 * one has for oneself. On such a machine it is the clock on the wall. `oursSeconds` is the CPU time of our own programs so far.
 */
export function fairClock(oursSeconds: () => number): () => number {
  const others = () => busySeconds() - oursSeconds() - process.cpuUsage().user / 1e6 - process.cpuUsage().system / 1e6
  const startMs = performance.now()
  const startSeconds = others()
  return () => {
    const takenMs = ((others() - startSeconds) * 1_000) / availableParallelism()
    return performance.now() - startMs - Math.max(0, takenMs)
  }
}

/** User and system time of a process so far, with that of its children that it has waited for; 0 when it is gone. */
export function cpuSecondsOf(pid: number): number {
  return cpuTimesOf(pid).reduce((sum, seconds) => sum + seconds, 0)
}

/** Of this process's children that have ended: commands, and what they ran. */
export function endedChildrenSeconds(): number {
  const [, , user = 0, system = 0] = cpuTimesOf(process.pid)
  return user + system
}

/** User and system time of a process, and the same of its children that it has waited for; nothing when it is gone. */
function cpuTimesOf(pid: number): number[] {
  let line: string
  try {
    line = readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    return []
  }
  // Field 2 is the program's name in parentheses; 14 to 17 are clock ticks, 100 a second on Linux.
  const fields = line.split(') ').at(-1)?.split(' ') ?? []
  return fields.slice(11, 15).map((ticks) => Number(ticks) / 100)
}

/** CPU time of everybody since the machine started, over all cores. */
function busySeconds(): number {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = readFileSync('/proc/stat', 'utf8')
    .slice(0, 200)
    .split(/\s+/, 9)
    .slice(1)
    .map(Number)
  return (user + nice + system + irq + softirq + steal) / 100
}

/** Below those that the system gives to whoever connects: it would give away one that is to be listened on in a moment, or again after a restart. */
const PORTS = { first: 10_000, eachProcess: 64, processes: 340 } as const
let portsTried = 0

/** A TCP port of loopback that nobody uses now. Two test processes seldom look in the same range, and then see each other's as long as it is listened on. */
export async function freePort(): Promise<number> {
  const first = PORTS.first + (process.pid % PORTS.processes) * PORTS.eachProcess
  for (let tries = 0; tries < PORTS.eachProcess; tries++) {
    const port = first + (portsTried++ % PORTS.eachProcess)
    const server = createServer()
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false))
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
    })
    if (isFree) return port
  }
  throw new Error(`no free TCP port from ${first} on`)
}

/** The agent as shipped, bundled into a directory of its own for as long as it is in use: a start takes half as long as from sources. */
export class Bundle implements Disposable {
  readonly directory: string
  /** For AgentOptions. */
  readonly entry: string
  /** Keeps compiled code with the bundle. */
  readonly env: { readonly CACHE_DIRECTORY: string }
  readonly #isShared: boolean

  private constructor(shared: string | undefined) {
    this.directory = shared ?? mkdtempSync(join(tmpdir(), 'undernet-bundle-'))
    this.entry = join(this.directory, 'dist', 'main.js')
    this.env = { CACHE_DIRECTORY: this.directory }
    this.#isShared = shared !== undefined
  }

  /** The one that all tests of a run share, where there is one: see shared-bundle.ts. */
  static get shared(): Bundle | undefined {
    const directory = process.env[SHARED_BUNDLE]
    return directory === undefined ? undefined : new Bundle(directory)
  }

  static async build(): Promise<Bundle> {
    const { shared } = Bundle
    if (shared) return shared
    const bundle = new Bundle(undefined)
    const script = fileURLToPath(new URL('../nix/build.ts', import.meta.url))
    const { code, stderr } = await run(process.execPath, [script, join(bundle.directory, 'dist')])
    if (code !== 0) throw new Error(`the bundle cannot be built: ${stderr}`)
    // Native code that cannot be bundled is installed beside it.
    mkdirSync(join(bundle.directory, 'node_modules'))
    const koffi = fileURLToPath(new URL('../node_modules/koffi', import.meta.url))
    symlinkSync(koffi, join(bundle.directory, 'node_modules', 'koffi'))
    return bundle
  }

  [Symbol.dispose](): void {
    if (!this.#isShared) rmSync(this.directory, { recursive: true, force: true })
  }
}
