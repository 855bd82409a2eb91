/**
 * What a connection costs with the hello: the agent's libp2p stack as it is, among nodes of the open network and among members of a closed
 * one, against the same stack with plain Noise as libp2p does it: without a hello, and waiting to be told that the listener speaks Noise
 * (mesh/eager-noise.ts). Each contender is two processes of its own. Once without distance, where work shows, and once 20 ms apart, where
 * round trips do. A member's certificate, given by a delegate, is a new one in every hello, as if nobody had been here before.
 */
import { randomBytes } from 'node:crypto'
import { ephemeralNodeKey } from '../agent/identity/node-key.ts'
import { issueCertificate, issueDelegation } from '../protocols/membership/certificate.ts'
import { networkOf } from '../protocols/membership/network.ts'
import { Distance } from './distance.ts'
import { type Bench, byTurns, median, type Report, scaled } from './harness.ts'
import { HelloNode, type Kind, type Membership, type Times } from './hello-node.ts'

const KINDS = ['plain', 'open', 'member'] as const
const NAMES = { plain: 'plain Noise', open: 'open network', member: 'members' } as const
const RTT_MS = 20
/** Of a turn: the sample is their median. */
const NEAR = { connections: 10, turns: { countMax: 40, msMax: 90_000 } }
const FAR = { connections: 5, turns: { countMax: 20, msMax: 90_000 } }
const RUSH = { connections: 120, turns: { countMax: 8, msMax: 90_000 } }
const HELD = scaled(300, 60)
const HOLD_TURNS = { countMax: 3, msMax: 120_000, warmUp: false }
/** Nodes that dial at once; all are in one process. */
const DIALLERS = 4
/** Each is shown once before the first comes again: more than the 1,024 that a reader keeps. */
const CHAINS = 1_500
const RATIO_MAX = 1.3
const DAY_MS = 24 * 3_600_000

export const bench: Bench = {
  name: 'hello',
  question: 'What does the hello cost a connection?',
  minutesMax: 10,
  run,
}

type Samples = Record<Kind, number[]>

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const closed = new ClosedNetwork()
  const start = async (kind: Kind) => stack.use(await Pair.start(kind, closed))
  const pairs = { plain: await start('plain'), open: await start('open'), member: await start('member') }
  for (const [where, address, { connections, turns }] of [
    ['here', 'near', NEAR],
    [`${RTT_MS} ms apart`, 'far', FAR],
  ] as const) {
    const times = { dialledMs: none(), identifiedMs: none(), answeredMs: none() }
    await byTurns(
      each(async (kind, turn) => {
        signal.throwIfAborted()
        const all = await pairs[kind].dialler.ask('connect', { address: pairs[kind][address], count: connections })
        for (const what of ['dialledMs', 'identifiedMs', 'answeredMs'] as const)
          if (turn >= 0) times[what][kind].push(median(all.map((one: Times) => one[what])))
        return 0
      }),
      turns,
    )
    const goal = { timesAtMost: RATIO_MAX }
    compare(report, `${where}: until the dial returns`, times.dialledMs, 'ms')
    compare(report, `${where}: until the peer is identified`, times.identifiedMs, 'ms', goal)
    compare(report, `${where}: until it has answered`, times.answeredMs, 'ms', goal)
  }
  await rush(report, pairs)
  await hold(report, pairs, signal)
}

/** As many connections as go, from several nodes; and what they cost both ends together. */
async function rush(report: Report, pairs: Record<Kind, Pair>): Promise<void> {
  const cpu = none()
  const perSecond = await byTurns(
    each(async (kind, turn) => {
      const pair = pairs[kind]
      const before = await pair.cpuMs()
      const ms = await pair.dialler.ask('rush', { address: pair.near, count: RUSH.connections })
      if (turn >= 0) cpu[kind].push(((await pair.cpuMs()) - before) / RUSH.connections)
      return (1_000 * RUSH.connections) / ms
    }),
    RUSH.turns,
  )
  compare(report, `connections from ${DIALLERS} nodes`, perSecond, '/s')
  compare(report, 'CPU of a connection, both ends', cpu, 'ms')
}

/** Each turn with new processes: what a process has grown to, it keeps. */
async function hold(report: Report, pairs: Record<Kind, Pair>, signal: AbortSignal): Promise<void> {
  const resident = none()
  const held = await byTurns(
    each(async (kind) => {
      signal.throwIfAborted()
      const { closed } = pairs[kind]
      await using pair = await Pair.start(kind, closed)
      await pair.dialler.ask('connect', { address: pair.near, count: HELD })
      const before = await pair.listener.ask('memory', null)
      await pair.dialler.ask('hold', { address: pair.near, count: HELD })
      const after = await pair.listener.ask('memory', null)
      resident[kind].push((after.residentBytes - before.residentBytes) / HELD / 1_000)
      return (after.liveBytes - before.liveBytes) / HELD / 1_000
    }),
    HOLD_TURNS,
  )
  compare(report, `memory of each of ${HELD} connections held, listener: live`, held, 'KB')
  compare(report, `memory of each of ${HELD} connections held, listener: resident`, resident, 'KB')
}

function compare(
  report: Report,
  what: string,
  samples: Samples,
  unit: 'ms' | '/s' | 'KB',
  goal?: { timesAtMost: number },
): void {
  const against = { what: NAMES.plain, samples: samples.plain }
  for (const kind of ['open', 'member'] as const)
    report.result({ what: `${what}, ${NAMES[kind]}`, samples: samples[kind], unit, against, ...(goal && { goal }) })
}

function none(): Samples {
  return { plain: [], open: [], member: [] }
}

function each(sample: (kind: Kind, turn: number) => Promise<number>): Record<Kind, (turn: number) => Promise<number>> {
  const entries = KINDS.map((kind) => [kind, (turn: number) => sample(kind, turn)] as const)
  return Object.fromEntries(entries) as Record<Kind, (turn: number) => Promise<number>>
}

/** A network whose root key gave a delegate the right to issue. */
class ClosedNetwork {
  readonly #root = ephemeralNodeKey()
  readonly #delegate = ephemeralNodeKey()
  readonly #network = Uint8Array.from(networkOf(this.#root.publicKey))
  readonly #secret = Uint8Array.from(randomBytes(32))
  readonly #now = Date.now() - DAY_MS
  readonly #delegation = issueDelegation(
    {
      network: this.#network,
      subject: this.#delegate.publicKey,
      may: ['issue'],
      ...this.#lifetime(0, 30 * DAY_MS),
      lifetimeMsMax: 20 * DAY_MS,
    },
    this.#root,
  )

  membership(subject: Uint8Array, name: string): Membership {
    const common = { network: this.#network, subject, name, labels: { role: 'bench' } }
    const chains = Array.from({ length: CHAINS }, (_, nth) => {
      const fields = { ...common, ...this.#lifetime(nth, 10 * DAY_MS) }
      return issueCertificate(fields, this.#delegate, this.#delegation).bytes
    })
    return { network: this.#network, secret: this.#secret, chains }
  }

  #lifetime(sinceMs: number, ms: number): { issued: number; notBefore: number; notAfter: number } {
    const issued = this.#now + sinceMs
    return { issued, notBefore: issued, notAfter: issued + ms }
  }
}

/** Two processes; the one dials, the other listens, also some way off. */
class Pair implements AsyncDisposable {
  readonly dialler: HelloNode
  readonly listener: HelloNode
  readonly near: string
  readonly far: string
  readonly closed: ClosedNetwork
  readonly #stack: AsyncDisposableStack

  private constructor(
    ends: Pick<Pair, 'dialler' | 'listener' | 'near' | 'far' | 'closed'>,
    stack: AsyncDisposableStack,
  ) {
    this.dialler = ends.dialler
    this.listener = ends.listener
    this.near = ends.near
    this.far = ends.far
    this.closed = ends.closed
    this.#stack = stack
  }

  static async start(kind: Kind, closed: ClosedNetwork): Promise<Pair> {
    await using stack = new AsyncDisposableStack()
    const [dialler, listener] = [stack.use(new HelloNode()), stack.use(new HelloNode())]
    const begin = async (node: HelloNode, count: number, listens: boolean) => {
      const keys = await node.ask('keys', { count })
      const memberships = kind === 'member' ? keys.map((key, nth) => closed.membership(key, `host-${nth}`)) : []
      return node.ask('start', { kind, memberships, listens })
    }
    await begin(dialler, DIALLERS, false)
    const near = (await begin(listener, 1, true)) ?? ''
    const port = Number(/\/tcp\/(\d+)/.exec(near)?.[1])
    const distance = stack.use(await Distance.to(port, RTT_MS))
    const far = near.replace(`/tcp/${port}`, `/tcp/${distance.port}`)
    return new Pair({ dialler, listener, near, far, closed }, stack.move())
  }

  /** Of both, so far. */
  async cpuMs(): Promise<number> {
    const [one, other] = await Promise.all([this.dialler.ask('cpuMs', null), this.listener.ask('cpuMs', null)])
    return one + other
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}
