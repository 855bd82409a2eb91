/**
 * Real agents for tests, the demo and the benchmarks: each a process of its own, with state, ports and socket of its own, ended by pid.
 * What an agent logs is kept, and shown when something about it fails.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Status } from '../agent/api/contract.ts'

/** The agent as it runs in development. */
export const SOURCES = fileURLToPath(new URL('../agent/main.ts', import.meta.url))
/** A start takes 0.3 to 1.5 s of CPU; thirty at once share two cores. */
const START_MS_MAX = 60_000
/** Kept of each agent's log, for the message of a failure. */
const LOG_LINES_MAX = 200
const POLL_MS = 25

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
  listen?: string
  flags?: string[]
  env?: Record<string, string>
}

export type Outcome = { code: number; stdout: string; stderr: string }

export class RealAgent implements AsyncDisposable {
  readonly name: string
  readonly state: string
  readonly socket: string
  readonly log: string[] = []
  readonly #entry: string
  readonly #process: ChildProcess
  readonly #namespace: string | undefined
  readonly #ownsState: boolean

  private constructor(options: AgentOptions) {
    this.name = options.name
    this.#entry = options.entry ?? SOURCES
    this.#namespace = options.namespace
    this.#ownsState = options.state === undefined
    this.state = options.state ?? mkdtempSync(join(tmpdir(), `undernet-${options.name}-`))
    this.socket = join(this.state, 'agent.sock')
    this.#process = this.#spawn(options)
  }

  /** Starts an agent, and resolves when it answers on its socket. */
  static async start(options: AgentOptions): Promise<RealAgent> {
    const agent = new RealAgent(options)
    const ended = once(agent.#process, 'exit').then(([code]) => {
      throw new Error(`agent ${agent.name} ended with ${code} while starting:\n${agent.log.join('\n')}`)
    })
    const ready = until(() => agent.status().catch(() => undefined), {
      what: `agent ${agent.name} answers`,
      ms: START_MS_MAX,
    })
    ended.catch(() => undefined)
    await Promise.race([ready, ended])
    return agent
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  status(): Promise<Status> {
    return this.get<Status>('/v1/status')
  }

  /** GET on the local API, without the cost of a command. */
  get<T>(path: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const asked = request({ socketPath: this.socket, path }, async (answer) => {
        try {
          const body = Buffer.concat(await Array.fromAsync(answer)).toString()
          if (answer.statusCode === 200) resolve(JSON.parse(body) as T)
          else reject(new Error(`${path}: ${answer.statusCode} ${body}`))
        } catch (error) {
          reject(error as Error)
        }
      })
      asked.on('error', reject).end()
    })
  }

  /** Runs a command against this agent, as a user would. */
  run(...args: string[]): Promise<Outcome> {
    return run(process.execPath, [this.#entry, ...args], { UNDERNET_SOCKET: this.socket, UNDERNET_STATE: this.state })
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
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      const gone = once(this.#process, 'exit')
      this.#process.kill(signal)
      await gone
    }
    return this.#process.exitCode
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end('SIGKILL')
    if (this.#ownsState) rmSync(this.state, { recursive: true, force: true })
  }

  #spawn(options: AgentOptions): ChildProcess {
    const args = [
      this.#entry,
      'start',
      ...['--name', options.name, '--state', this.state, '--socket', this.socket, '--http', '127.0.0.1:0'],
      ...['--listen', options.listen ?? '/ip4/127.0.0.1/tcp/0'],
      ...(options.mdns === true ? [] : ['--no-mdns']),
      ...(options.bootstrap ?? []).flatMap((address) => ['--bootstrap', address]),
      ...(options.flags ?? []),
    ]
    const command = this.#namespace ? ['ip', 'netns', 'exec', this.#namespace, process.execPath] : [process.execPath]
    const child = spawn(command[0] ?? '', [...command.slice(1), ...args], {
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    createInterface({ input: child.stderr as NonNullable<typeof child.stderr> }).on('line', (line) => {
      this.log.push(line)
      if (this.log.length > LOG_LINES_MAX) this.log.shift()
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

/** Polls until `condition` gives something other than undefined, false or null, and returns it; throws what it waited for otherwise. */
export async function until<T>(
  condition: () => T | Promise<T>,
  { ms = 10_000, what }: { ms?: number; what: string },
): Promise<NonNullable<Exclude<T, false>>> {
  const deadline = performance.now() + ms
  for (;;) {
    const value = await condition()
    if (value !== undefined && value !== false && value !== null) return value as NonNullable<Exclude<T, false>>
    if (performance.now() > deadline) throw new Error(`waited ${ms} ms in vain: ${what}`)
    await delay(POLL_MS)
  }
}
