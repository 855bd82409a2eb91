/**
 * What a user notices when something dies: an application, its node, a relay; killed, or off the network with no word. Six agents on one switch, each in
 * a network namespace; one uses services of the others, under 200 requests a second and a download. Printed: failures, and for how long nothing went on.
 *
 * Connections that are open to what dies are lost with it (a stream of bytes cannot move); what counts is how soon new ones go through again. Needs
 * root and iproute2.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { PeerView } from '../agent/api/contract.ts'
import type { ForwardEvent, ServiceDetail } from '../agent/api/service-contract.ts'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { type Hosts, makeHosts } from '../test/lab/three-hosts.ts'
import { hasNamespaces } from '../test/lan.ts'
import { startForwardServer } from './forward-server.ts'
import { type Bench, type Report, scaled } from './harness.ts'
import { type Loss, type RecoveryLoad, startLoad } from './recovery-load.ts'

const PER_SECOND = 200
const DOWNLOAD_BYTES = 24 * 1024 * 1024
const READY_MS_MAX = 60_000
/** With the load alone, and after the break: longer than any promise. */
const WARM_MS = 2_000
const WATCHED_MS = 9_000
const TURNS = 3
const GOALS_MS = { instance: 2_000, relay: 5_000 }
/** The switch is no bottleneck. */
const SPEED = '1gbit'
const NAMES = ['hub', 'other', 'client', 'one', 'two', 'far'] as const
type Name = (typeof NAMES)[number]
const POLICY = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["relay:use", "service:offer *", "service:connect *"]\n'

export const bench: Bench = {
  name: 'recovery',
  question: 'How soon do services go on when an instance, its node or a relay dies?',
  minutesMax: 12,
  run,
}

type Case = {
  what: string
  /** Who offers: the first as long as it is there, the second in its place. */
  offered: readonly Name[]
  goalMs: number
  /** Breaks something, and returns how to mend it. */
  break: (room: Room) => Promise<() => Promise<void>>
}

const CASES: readonly Case[] = [
  { what: 'instance drained', offered: ['one', 'two'], goalMs: GOALS_MS.instance, break: (room) => room.drain('one') },
  { what: 'application killed', offered: ['one', 'two'], goalMs: GOALS_MS.instance, break: (room) => room.killApp() },
  { what: 'node silent', offered: ['one', 'two'], goalMs: GOALS_MS.instance, break: (room) => room.pull('one') },
  { what: 'node killed', offered: ['one', 'two'], goalMs: GOALS_MS.instance, break: (room) => room.kill('one') },
  {
    what: 'relay silent',
    offered: ['far'],
    goalMs: GOALS_MS.relay,
    break: async (room) => room.pull(await room.relay()),
  },
  {
    what: 'relay killed',
    offered: ['far'],
    goalMs: GOALS_MS.relay,
    break: async (room) => room.kill(await room.relay()),
  },
]

async function run(report: Report, signal: AbortSignal): Promise<void> {
  if (!hasNamespaces) return report.note('This needs root and network namespaces.')
  await using room = await Room.make(signal)
  for (const one of CASES) {
    const gaps: { requests: number; downloads: number }[] = []
    let [failed, requests, broken, lastFailureMs] = [0, 0, 0, 0]
    for (let turn = 0; turn < scaled(TURNS, 1); turn++) {
      const loss = await room.lossOf(one)
      gaps.push({ requests: loss.requestGapMs, downloads: loss.downloadGapMs })
      failed += loss.failed
      requests += loss.requests
      broken += loss.brokenDownloads
      lastFailureMs = Math.max(lastFailureMs, loss.lastFailureMs)
    }
    const goal = { atMost: one.goalMs }
    report.result({ what: `${one.what}: no answer for`, samples: gaps.map((gap) => gap.requests), unit: 'ms', goal })
    report.result({
      what: `${one.what}: no byte of a download for`,
      samples: gaps.map((gap) => gap.downloads),
      unit: 'ms',
      goal,
    })
    report.note(
      `${one.what}: ${failed} of ${requests} requests and ${broken} downloads failed, the last ${Math.round(lastFailureMs)} ms after it`,
    )
  }
}

/** The agents, the applications behind them, and who uses them. */
class Room implements AsyncDisposable {
  readonly #hosts: Hosts
  readonly #agents = new Map<Name, RealAgent>()
  readonly #stack = new AsyncDisposableStack()
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-recovery-'))
  readonly #bundle: Bundle
  readonly #load: RecoveryLoad
  readonly #signal: AbortSignal
  #killApp: (() => Promise<void>) | undefined
  #cases = 0

  private constructor(hosts: Hosts, bundle: Bundle, signal: AbortSignal) {
    this.#stack.defer(() => rmSync(this.#directory, { recursive: true, force: true }))
    this.#hosts = this.#stack.use(hosts)
    this.#bundle = this.#stack.use(bundle)
    this.#signal = signal
    this.#load = this.#stack.use(startLoad(this.#namespace('client')))
  }

  static async make(signal: AbortSignal): Promise<Room> {
    const room = new Room(makeHosts(NAMES.length, SPEED), await Bundle.build(), signal)
    try {
      await room.#join()
      return room
    } catch (error) {
      await room[Symbol.asyncDispose]()
      throw error
    }
  }

  /** What is lost when this happens under load; mended at the end. */
  async lossOf({ offered, break: breakIt }: Case): Promise<Loss> {
    await using stack = new AsyncDisposableStack()
    const over = new AbortController()
    stack.defer(() => over.abort())
    const names = [`echo${++this.#cases}`, `bulk${this.#cases}`] as const
    for (const [nth, name] of offered.entries()) {
      const server = stack.use(startForwardServer(this.#namespace(name)))
      const ports = await server.ask('listen', { bytes: DOWNLOAD_BYTES })
      if (nth === 0) this.#killApp = () => server[Symbol.asyncDispose]()
      const weight = ['--weight', nth === 0 ? '1' : '0']
      await this.#agent(name).json('service', 'add', names[0], String(ports.echo), ...weight)
      await this.#agent(name).json('service', 'add', names[1], String(ports.bulk), ...weight)
    }
    const [echo, bulk] = await Promise.all(names.map((name) => this.#forward(name, offered.length, over.signal)))
    await this.#load.ask('begin', { echo: echo ?? 0, bulk: bulk ?? 0, perSecond: PER_SECOND })
    await delay(WARM_MS)
    await this.#load.ask('mark', undefined)
    const mend = await breakIt(this)
    await delay(WATCHED_MS)
    const loss = await this.#load.ask('end', undefined)
    await mend()
    await this.#settled()
    for (const name of offered) for (const one of names) await this.#agent(name).json('service', 'remove', one)
    return loss
  }

  async drain(name: Name): Promise<() => Promise<void>> {
    for (const kind of ['echo', 'bulk']) await this.#agent(name).json('service', 'drain', `${kind}${this.#cases}`)
    return async () => undefined
  }

  async killApp(): Promise<() => Promise<void>> {
    await this.#killApp?.()
    return async () => undefined
  }

  /** Takes a host off the switch. */
  async pull(name: Name): Promise<() => Promise<void>> {
    const mend = this.#hosts.pull(NAMES.indexOf(name))
    return async () => mend()
  }

  async kill(name: Name): Promise<() => Promise<void>> {
    await this.#agent(name).end('SIGKILL')
    return async () => void (await this.#start(name))
  }

  /** Who carries between the client and the far one now. */
  async relay(): Promise<Name> {
    const carries = async () => {
      const relay = (await this.#peers('client')).find(({ name }) => name === 'far')?.relay?.name
      return NAMES.find((name) => name === relay)
    }
    return await until(carries, { what: 'a relay carries', ms: READY_MS_MAX })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agent of this.#agents.values()) await agent[Symbol.asyncDispose]()
    await this.#stack.disposeAsync()
  }

  #namespace(name: Name): string {
    return this.#hosts.namespace(NAMES.indexOf(name))
  }

  #agent(name: Name): RealAgent {
    const agent = this.#agents.get(name)
    if (agent === undefined) throw new Error(`${name} was not started`)
    return agent
  }

  async #start(name: Name): Promise<RealAgent> {
    const bootstrap = name === 'hub' ? [] : [`/ip4/${this.#hosts.address(0)}/tcp/7477`]
    const agent = await RealAgent.start({
      name,
      entry: this.#bundle.entry,
      env: this.#bundle.env,
      state: join(this.#directory, name),
      namespace: this.#namespace(name),
      listen: `/ip4/${this.#hosts.address(NAMES.indexOf(name))}/tcp/7477`,
      bootstrap,
      flags: ['--no-open', '--log-level', 'info'],
    })
    this.#agents.set(name, agent)
    return agent
  }

  async #join(): Promise<void> {
    this.#cut('far', 'client')
    const hub = await this.#start('hub')
    await hub.json('network', 'create', 'home', '--as', 'hub')
    for (const name of NAMES.slice(1)) {
      const agent = await this.#start(name)
      const { stdout: token } = await hub.run('invite')
      const file = join(this.#directory, 'token')
      writeFileSync(file, token, { mode: 0o600 })
      await agent.json('join', '--file', file, '--as', name)
    }
    const policy = join(this.#directory, 'policy.toml')
    writeFileSync(policy, POLICY)
    await hub.json('policy', 'set', policy, '--yes')
    await this.#settled()
  }

  /** No packet passes between the two: only by a third do they meet. */
  #cut(name: Name, other: Name): void {
    const nft = (rule: string) =>
      execFileSync('ip', ['netns', 'exec', this.#namespace(name), 'nft', ...rule.split(' ')])
    const address = this.#hosts.address(NAMES.indexOf(other))
    nft('add table inet cut')
    for (const [hook, side] of [
      ['input', 'saddr'],
      ['output', 'daddr'],
    ] as const) {
      nft(`add chain inet cut ${hook} { type filter hook ${hook} priority 0 ; }`)
      nft(`add rule inet cut ${hook} ip ${side} ${address} drop`)
    }
  }

  async #peers(name: Name): Promise<PeerView[]> {
    return (await this.#agent(name).client.get<{ peers: PeerView[] }>('peers')).peers
  }

  /** Everybody is connected with everybody. */
  async #settled(): Promise<void> {
    for (const name of NAMES) {
      const isThere = async () => (await this.#peers(name)).length === NAMES.length - 1 || undefined
      await until(isThere, { what: `${name} is connected with all`, ms: READY_MS_MAX, everyMs: 100 })
    }
  }

  async #forward(name: string, count: number, signal: AbortSignal): Promise<number> {
    const { client } = this.#agent('client')
    const isThere = async () => {
      const detail = await client.get<ServiceDetail>(`services/${name}`).catch(() => undefined)
      return detail?.instances.filter(({ state }) => state === 'healthy').length === count || undefined
    }
    await until(isThere, { what: `${name} is offered`, ms: READY_MS_MAX, everyMs: 100 })
    const { promise, resolve, reject } = Promise.withResolvers<number>()
    const watch = async () => {
      const limited = AbortSignal.any([signal, this.#signal])
      for await (const event of client.events<ForwardEvent>('forward', { name, port: 0 }, limited))
        if (event.type === 'listening') resolve(event.port)
    }
    watch().catch(reject)
    return await promise
  }
}
