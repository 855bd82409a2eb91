/**
 * How the binary cache answers Nix: narinfos of paths that nobody has, which is most of what Nix asks for, and a whole closure, realised
 * by the real Nix from another agent's store. Against nginx with a static cache of the same paths on this machine, which has no other
 * node to ask and nothing to verify. Of the closure every turn brings a new receiving agent and a new store.
 */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { NixConfView } from '../agent/api/contract.ts'
import { encodeNix32 } from '../agent/nix/nix32.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { trust } from '../test/network.ts'
import { hasNix, NixClosure, SecondStore } from '../test/nix-paths.ts'
import { type Bench, byTurns, median, quantile, type Report, scaled, timed } from './harness.ts'
import { Nginx } from './nginx.ts'

const PATHS = 200
const BYTES_EACH = 50_000
const ASK_TURNS = { countMax: 7, msMax: 60_000 }
const CLOSURE_TURNS = { countMax: 5, msMax: 180_000 }
/** Asked for in a turn: one after the other, and by so many connections at once (Nix opens up to 25). */
const ASKED = scaled(2_000)
const CONNECTIONS = 16
const ANSWER_MS_MAX = 5_000

export const bench: Bench = {
  name: 'narinfo',
  question: `How fast are absent narinfos answered, and a closure of ${PATHS} paths realised from a peer?`,
  minutesMax: 15,
  run,
}

async function run(report: Report): Promise<void> {
  if (!hasNix) return report.note('Nix is not installed: nobody asks for narinfos.')
  await using stack = new AsyncDisposableStack()
  const closure = stack.use(await NixClosure.make({ paths: PATHS, bytesEach: BYTES_EACH, name: 'undernet-bench' }))
  const cache = await StaticCache.make(closure.root)
  if (cache === undefined) return report.note('nginx is not installed: there is nothing to compare with.')
  stack.use(cache)
  const bundle = stack.use(await Bundle.build())
  const builder = stack.use(await RealAgent.start({ name: 'builder', entry: bundle.entry, env: bundle.env }))
  await builder.json('publish', closure.root, '--name', 'closure')

  await askForAbsent(report, builder, cache)
  await realise(report, { builder, bundle, cache, root: closure.root })
}

async function askForAbsent(report: Report, builder: RealAgent, cache: StaticCache): Promise<void> {
  const agentUrl = (await builder.client.get<NixConfView>('nix-conf')).url
  const tails = { agent: [] as number[], nginx: [] as number[] }
  const ask = (who: 'agent' | 'nginx', url: string) => async (turn: number) => {
    const [us = []] = await askAll(url, 1, ASKED)
    if (turn >= 0) tails[who].push(quantile(us, 0.99))
    return median(us)
  }
  const rate = (url: string) => async () => {
    const ms = await timed(() => askAll(url, CONNECTIONS, ASKED / CONNECTIONS))
    return ASKED / (ms / 1_000)
  }
  const samples = await byTurns(
    {
      agent: ask('agent', agentUrl),
      nginx: ask('nginx', cache.url),
      agentRate: rate(agentUrl),
      nginxRate: rate(cache.url),
    },
    ASK_TURNS,
  )
  const against = (list: readonly number[]) => ({ what: 'nginx, static', samples: list })
  report.result({ what: 'absent narinfo, p50', samples: samples.agent, unit: 'us', against: against(samples.nginx) })
  report.result({ what: 'absent narinfo, p99', samples: tails.agent, unit: 'us', against: against(tails.nginx) })
  report.result({
    what: `absent narinfos, ${CONNECTIONS} connections`,
    samples: samples.agentRate,
    unit: '/s',
    against: against(samples.nginxRate),
  })
}

type Realising = { builder: RealAgent; bundle: Bundle; cache: StaticCache; root: string }

async function realise(report: Report, { builder, bundle, cache, root }: Realising): Promise<void> {
  const address = await builder.address()
  const into = async (from: { substituters: string[]; keys: string[] }) => {
    await using store = await SecondStore.make()
    const { ok, ms, stderr } = await store.realise(root, from)
    if (!ok) throw new Error(`nix-store --realise from ${from.substituters.join()}: ${stderr}`)
    return ms
  }
  const samples = await byTurns(
    {
      agent: async () => {
        const options = { entry: bundle.entry, env: bundle.env, bootstrap: [address] }
        await using receiver = await RealAgent.start({ name: 'receiver', ...options })
        const isKnown = async () => (await receiver.status()).artifacts.known > 0
        await until(isKnown, { what: 'the receiver knows of the closure' })
        return await into(await trust(receiver, builder))
      },
      nginx: () => into({ substituters: [cache.url], keys: [cache.publicKey] }),
    },
    CLOSURE_TURNS,
  )
  report.result({
    what: `closure of ${PATHS} paths, ${Math.round((PATHS * BYTES_EACH) / 1e6)} MB, from a peer`,
    samples: samples.agent,
    unit: 'ms',
    against: { what: 'nginx, static', samples: samples.nginx },
  })
}

/** As anybody would make one: `nix copy` to a directory that a web server serves. */
class StaticCache implements AsyncDisposable {
  readonly url: string
  readonly publicKey: string
  readonly #nginx: Nginx
  readonly #directory: string

  private constructor(nginx: Nginx, directory: string, publicKey: string) {
    this.url = nginx.url
    this.publicKey = publicKey
    this.#nginx = nginx
    this.#directory = directory
  }

  static async make(root: string): Promise<StaticCache | undefined> {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-cache-'))
    const run = promisify(execFile)
    const [secret, open] = [join(directory, 'secret'), join(directory, 'public')]
    await run('nix-store', ['--generate-binary-cache-key', 'bench-1', secret, open])
    const to = `file://${join(directory, 'cache')}?compression=none&secret-key=${secret}`
    await run('nix', ['--extra-experimental-features', 'nix-command', 'copy', '--to', to, root])
    const nginx = await Nginx.serve(join(directory, 'cache'))
    if (nginx !== undefined) return new StaticCache(nginx, directory, readFileSync(open, 'utf8').trim())
    rmSync(directory, { recursive: true, force: true })
    return undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#nginx[Symbol.asyncDispose]()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

/** What each of `connections` waited, in microseconds, for each of `count` narinfos that nobody has. */
async function askAll(url: string, connections: number, count: number): Promise<number[][]> {
  const { hostname, port, pathname } = new URL(url)
  const base = pathname === '/' ? '' : pathname
  return await Promise.all(
    Array.from({ length: connections }, async () => {
      using asker = await Asker.connect(hostname, Number(port))
      const waits: number[] = []
      for (let asked = 0; asked < count; asked++) {
        const startedMs = performance.now()
        await asker.ask(`${base}/${encodeNix32(randomBytes(20))}.narinfo`)
        waits.push((performance.now() - startedMs) * 1_000)
      }
      return waits
    }),
  )
}

/** An HTTP client of a few lines: a full one would take longer than the answer. */
class Asker implements Disposable {
  readonly #socket: Socket
  readonly #host: string

  private constructor(socket: Socket, host: string) {
    this.#socket = socket
    this.#host = host
  }

  static async connect(host: string, port: number): Promise<Asker> {
    const socket = connect({ host, port, noDelay: true, timeout: ANSWER_MS_MAX })
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    return new Asker(socket, `${host}:${port}`)
  }

  /** Resolves with the answer's 404. */
  ask(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      let text = ''
      const settle = (act: () => void) => {
        for (const event of ['data', 'close', 'timeout']) this.#socket.removeAllListeners(event)
        act()
      }
      this.#socket.on('data', (bytes) => {
        text += bytes.toString('latin1')
        const end = text.indexOf('\r\n\r\n')
        if (end < 0) return
        const bodyBytes = Number(/content-length: (\d+)/i.exec(text)?.[1] ?? 0)
        if (text.length < end + 4 + bodyBytes) return
        settle(text.startsWith('HTTP/1.1 404') ? resolve : () => reject(new Error(text.slice(0, 200))))
      })
      const fail = () => settle(() => reject(new Error(`no answer from ${this.#host}`)))
      this.#socket.once('close', fail)
      this.#socket.once('timeout', fail)
      this.#socket.write(`GET ${path} HTTP/1.1\r\nhost: ${this.#host}\r\n\r\n`)
    })
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}
