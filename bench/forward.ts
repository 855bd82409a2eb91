/**
 * What `agent forward` costs: throughput with one stream and with four, round trip added, first byte and CPU, against `ssh -L` and no forward at all,
 * in the same turns. All processes are on this machine, which they share with whoever measures.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { startForwarding } from './forward-agents.ts'
import { startForwardServer } from './forward-server.ts'
import { type Bench, byTurns, median, type Report, scaled } from './harness.ts'
import { SshForward } from './ssh.ts'

const STREAM_BYTES = scaled(192, 48) * 1024 * 1024
const ROUND_TRIPS = scaled(300, 100)
const FIRST_BYTES = scaled(50, 20)
const MB = 1e6
const TURNS = { countMax: 5, msMax: 120_000 }

export const bench: Bench = {
  name: 'forward',
  question: 'What does a forward to a service of another node cost, against ssh -L and none?',
  minutesMax: 8,
  run,
}

/** A way to the two ports of the application. */
type Way = { bulk: number; echo: number; cpuSeconds: () => number }

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const server = stack.use(startForwardServer())
  const { bulk, echo } = await server.ask('listen', { bytes: STREAM_BYTES })
  const { offering, using, ports } = await startForwarding({ bulk, echo }, signal, stack)
  const agents = { ...ports, cpuSeconds: () => offering.cpuSeconds + using.cpuSeconds }
  const ssh = await SshForward.start([bulk, echo])
  if (ssh) stack.use(ssh)
  else report.note('OpenSSH’s server is not installed: there is one alternative less.')
  const ways: Record<string, Way> = {
    plain: { bulk, echo, cpuSeconds: () => 0 },
    ...(ssh && { ssh: { bulk: ssh.ports[0] ?? 0, echo: ssh.ports[1] ?? 0, cpuSeconds: () => ssh.cpuSeconds } }),
    agent: agents,
  }
  const each = (measure: (way: Way) => Promise<number>) =>
    byTurns(Object.fromEntries(Object.entries(ways).map(([name, way]) => [name, () => measure(way)])), TURNS)
  const cpu: Record<string, number[]> = {}
  for (const streams of [1, 4]) {
    const rates = await each(async (way) => {
      const name = Object.keys(ways).find((one) => ways[one] === way) ?? ''
      const before = way.cpuSeconds()
      const startMs = performance.now()
      await Promise.all(Array.from({ length: streams }, () => download(way.bulk, STREAM_BYTES)))
      const seconds = (performance.now() - startMs) / 1_000
      cpu[name] = [...(cpu[name] ?? []), (way.cpuSeconds() - before) / ((STREAM_BYTES * streams) / 1e9)]
      return (STREAM_BYTES * streams) / MB / seconds
    })
    for (const other of ['ssh', 'plain'].filter((name) => rates[name] !== undefined)) {
      report.result({
        what: `agent forward, ${streams} stream${streams > 1 ? 's' : ''}`,
        samples: rates.agent ?? [],
        unit: 'MB/s',
        against: { what: other === 'ssh' ? 'ssh -L' : 'no forward', samples: rates[other] ?? [] },
      })
    }
  }
  for (const name of ['agent', 'ssh'].filter((one) => ways[one] !== undefined))
    report.note(`${name}: ${median(cpu[name] ?? []).toFixed(1)} CPU seconds per GB, both sides`)
  await latencies(report, each, ways)
}

async function latencies(
  report: Report,
  each: (measure: (way: Way) => Promise<number>) => Promise<Record<string, number[]>>,
  ways: Record<string, Way>,
): Promise<void> {
  const roundTrips = await each((way) => roundTripMs(way.echo))
  const firsts = await each((way) => firstByteMs(way.echo))
  const added = (all: Record<string, number[]>, name: string) =>
    (all[name] ?? []).map((value, turn) => value - (all.plain?.[turn] ?? 0))
  const against = (all: Record<string, number[]>) =>
    ways.ssh === undefined ? {} : { against: { what: 'ssh -L', samples: added(all, 'ssh') } }
  report.result({
    what: 'round trip added, p50',
    samples: added(roundTrips, 'agent'),
    unit: 'ms',
    goal: { atMost: 0.5 },
    ...against(roundTrips),
  })
  report.result({
    what: 'first byte of a new connection',
    samples: firsts.agent ?? [],
    unit: 'ms',
    goal: { atMost: 5 },
    ...(ways.ssh !== undefined && { against: { what: 'ssh -L', samples: firsts.ssh ?? [] } }),
  })
}

async function download(port: number, bytes: number): Promise<void> {
  const socket = connect(port, '127.0.0.1')
  let received = 0
  socket.on('data', (chunk) => {
    received += chunk.byteLength
  })
  await once(socket, 'close')
  if (received !== bytes) throw new Error(`${received} of ${bytes} bytes came`)
}

/** Median on one connection. */
async function roundTripMs(port: number): Promise<number> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  const samples: number[] = []
  for (let nth = 0; nth < ROUND_TRIPS; nth++) {
    const startMs = performance.now()
    socket.write('x')
    await once(socket, 'data')
    samples.push(performance.now() - startMs)
  }
  socket.destroy()
  return median(samples.slice(10))
}

/** From connecting to the first byte that comes back, each on a connection of its own. */
async function firstByteMs(port: number): Promise<number> {
  const samples: number[] = []
  for (let nth = 0; nth < FIRST_BYTES; nth++) {
    const startMs = performance.now()
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    socket.write('x')
    await once(socket, 'data')
    samples.push(performance.now() - startMs)
    socket.destroy()
  }
  return median(samples)
}
