/**
 * How long until a started agent answers, and how long `agent status` takes: from sources and as shipped, against a Node that does
 * nothing. The file cache is warm; the state and the compile cache are those of an earlier start, except where it says "the first".
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Bundle, RealAgent, SOURCES } from '../test/agents.ts'
import { type Bench, byTurns, type Report, timed } from './harness.ts'

const TURNS = { countMax: 15, msMax: 180_000 }
const START_MS_MAX = 20_000
/** Between two tries to connect: what is measured comes in steps of this. */
const POLL_MS = 2

export const bench: Bench = {
  name: 'start',
  question: 'How long until an agent answers, and how long does `agent status` take?',
  minutesMax: 10,
  run,
}

async function run(report: Report): Promise<void> {
  using bundle = await Bundle.build()
  await using running = await RealAgent.start({ name: 'running', entry: bundle.entry, env: bundle.env })
  using shipped = new Place(bundle.entry)
  using sources = new Place(SOURCES)
  /** CPU time of all threads of the agent, up to its first answer. */
  const cpuMs: number[] = []
  const samples = await byTurns(
    {
      bare: () => timed(() => ended(spawn(process.execPath, ['-e', '0'], { stdio: 'ignore' }))),
      status: () => timed(() => ended(runStatus(bundle.entry, running.socket, shipped.env))),
      statusSources: () => timed(() => ended(runStatus(SOURCES, running.socket, sources.env))),
      start: async (turn) => {
        const started = await shipped.start()
        if (turn >= 0) cpuMs.push(started.cpuMs)
        return started.ms
      },
      startSources: async () => (await sources.start()).ms,
      first: async () => {
        using place = new Place(bundle.entry)
        return (await place.start()).ms
      },
    },
    TURNS,
  )
  const against = { what: 'node -e 0', samples: samples.bare }
  const shown = { unit: 'ms', against } as const
  report.result({ what: 'start as shipped', samples: samples.start, ...shown, goal: { atMost: 400 } })
  report.result({ what: 'the first start ever, as shipped', samples: samples.first, ...shown })
  report.result({ what: 'start as shipped: CPU time', samples: cpuMs, unit: 'ms' })
  report.result({ what: 'start from sources', samples: samples.startSources, ...shown })
  report.result({ what: 'status as shipped', samples: samples.status, ...shown, goal: { atMost: 100 } })
  report.result({ what: 'status from sources', samples: samples.statusSources, ...shown })
}

function runStatus(entry: string, socket: string, env: NodeJS.ProcessEnv): ChildProcess {
  return spawn(process.execPath, [entry, 'status', '--socket', socket], { stdio: 'ignore', env })
}

async function ended(child: ChildProcess): Promise<void> {
  const [code] = (await once(child, 'exit')) as [number | null]
  if (code !== 0) throw new Error(`${child.spawnargs.join(' ')} ended with ${code}`)
}

/** State and caches that one agent after the other is started on. */
class Place implements Disposable {
  readonly env: NodeJS.ProcessEnv
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-start-'))
  readonly #entry: string

  constructor(entry: string) {
    this.#entry = entry
    this.env = { ...process.env, CACHE_DIRECTORY: this.#directory, XDG_CONFIG_HOME: this.#directory }
  }

  /** From the start of the process until `GET /v1/status` is answered. */
  async start(): Promise<{ ms: number; cpuMs: number }> {
    const socket = join(this.#directory, 'agent.sock')
    const places = [
      '--state',
      this.#directory,
      '--socket',
      socket,
      '--http',
      '127.0.0.1:0',
      '--proxy',
      '127.0.0.1:0',
      '--dns',
      '127.0.0.1:0',
    ]
    const args = [this.#entry, 'start', ...places, '--listen', '/ip4/127.0.0.1/tcp/0', '--no-mdns']
    const startedMs = performance.now()
    const child = spawn(process.execPath, args, { stdio: 'ignore', env: this.env })
    try {
      while (!(await answers(socket))) {
        if (child.exitCode !== null) throw new Error(`an agent ended with ${child.exitCode} while starting`)
        if (performance.now() - startedMs > START_MS_MAX) throw new Error(`no answer after ${START_MS_MAX} ms`)
        await delay(POLL_MS)
      }
      return { ms: performance.now() - startedMs, cpuMs: cpuMsOf(child.pid ?? 0) }
    } finally {
      const gone = once(child, 'exit')
      if (child.exitCode === null && child.kill()) await gone
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.once('connect', () => socket.write('GET /v1/status HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n'))
    socket.once('data', (bytes) => {
      socket.destroy()
      resolve(bytes.toString('latin1').startsWith('HTTP/1.1 200 '))
    })
    socket.once('error', () => resolve(false))
  })
}

function cpuMsOf(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`)
  const times = threads.map((thread) => readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0])
  return times.reduce((sum, ns) => sum + Number(ns) / 1e6, 0)
}
