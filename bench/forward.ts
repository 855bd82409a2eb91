/**
 * What a way to a service of another node costs: `agent forward` and the SOCKS 5 proxy, against nothing between them, `ssh -L`, nebula and
 * wireguard-go, by turns in one run. Two hosts on one LAN, which are network namespaces of this machine where it may make some, and else its
 * loopback (then without the overlays). All processes share this machine.
 */
import { startForwarding } from './forward-agents.ts'
import { startForwardServer } from './forward-server.ts'
import { startForwardUser, type Way } from './forward-user.ts'
import { type Bench, byTurns, median, type Report, scaled } from './harness.ts'
import { canMakeLan, Lan, type LanHost } from './lan.ts'
import { startNebula, startWireguard } from './overlays.ts'
import { cpuSecondsOf, rssBytesOf } from './process-cost.ts'
import { SshForward } from './ssh.ts'

const STREAM_BYTES = scaled(96, 32) * 1024 * 1024
const ROUND_TRIPS = scaled(300, 100)
const FIRST_BYTES = scaled(50, 20)
const STREAMS = [1, 4] as const
const MB = 1e6
const TURNS = { countMax: 5, msMax: 120_000 }
/** Third byte of the LAN's addresses. */
const NET = 233
const LOOPBACK = '127.0.0.1'

export const bench: Bench = {
  name: 'forward',
  question: 'What does a way to a service of another node cost, against ssh -L, overlay networks and none?',
  minutesMax: 15,
  run,
}

/** How both ports of the application are reached, and by which processes of this machine. */
type Contender = { bulk: Way; echo: Way; pids: readonly number[] }
type Contenders = Record<string, Contender>

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const hosts = canMakeLan() ? stack.use(new Lan(NET, 2)).hosts : []
  const user = stack.use(startForwardUser(hosts[0]?.namespace))
  const contenders = await start(report, hosts, signal, stack)
  const names = Object.keys(contenders)
  const each = (measure: (contender: Contender, name: string) => Promise<number>) =>
    byTurns(
      Object.fromEntries(Object.entries(contenders).map(([name, one]) => [name, () => measure(one, name)])),
      TURNS,
    )

  // Node compiles what is used much: the first half gigabyte costs an agent twice what the next one does.
  for (const { bulk } of Object.values(contenders))
    await user.ask('download', { way: bulk, streams: 4, bytes: STREAM_BYTES })
  for (const streams of STREAMS) {
    const cpu: Record<string, number[]> = {}
    const rates = await each(async ({ bulk, pids }, name) => {
      const before = cpuSecondsOf(pids)
      const seconds = await user.ask('download', { way: bulk, streams, bytes: STREAM_BYTES })
      const bytes = STREAM_BYTES * streams
      cpu[name] = [...(cpu[name] ?? []), (cpuSecondsOf(pids) - before) / (bytes / 1e9)]
      return bytes / MB / seconds
    })
    const what = (name: string) => `${name}, ${streams} stream${streams > 1 ? 's' : ''}`
    for (const name of names.filter((one) => one !== 'none')) {
      const against = { what: 'none', samples: rates.none ?? [] }
      report.result({ what: what(name), samples: rates[name] ?? [], unit: 'MB/s', against })
    }
    for (const [other, timesAtLeast] of [
      ['ssh -L', 1],
      ['nebula', 3],
    ] as const) {
      if (rates[other] === undefined) continue
      const against = { what: other, samples: rates[other] }
      report.result({
        what: what('forward'),
        samples: rates.forward ?? [],
        unit: 'MB/s',
        against,
        goal: { timesAtLeast },
      })
    }
    for (const name of names.filter((one) => one !== 'none'))
      report.note(`${what(name)}: ${median(cpu[name] ?? []).toFixed(1)} CPU seconds per GB, both sides`)
  }

  const p99: Record<string, number[]> = {}
  const p50 = await each(async ({ echo }, name) => {
    const trips = await user.ask('roundTrips', { way: echo, count: ROUND_TRIPS })
    p99[name] = [...(p99[name] ?? []), trips.p99]
    return trips.p50
  })
  const firsts = await each(({ echo }) => user.ask('firstBytes', { way: echo, count: FIRST_BYTES }))
  const added = (all: Record<string, number[]>, name: string) =>
    (all[name] ?? []).map((ms, turn) => ms - (all.none?.[turn] ?? 0))
  for (const name of names.filter((one) => one !== 'none')) {
    const isOurs = name === 'forward'
    report.result({
      what: `${name}: round trip added, p50`,
      samples: added(p50, name),
      unit: 'ms',
      ...(isOurs && { goal: { atMost: 0.5 } }),
    })
    report.result({ what: `${name}: round trip added, p99`, samples: added(p99, name), unit: 'ms' })
    report.result({
      what: `${name}: first byte of a new connection`,
      samples: firsts[name] ?? [],
      unit: 'ms',
      ...(isOurs && { goal: { atMost: 5 } }),
    })
  }
  for (const [name, { pids }] of Object.entries(contenders))
    if (pids.length > 0) report.note(`${name}: ${Math.round(rssBytesOf(pids) / MB)} MB resident at the end, both sides`)
}

async function start(
  report: Report,
  hosts: readonly LanHost[],
  signal: AbortSignal,
  stack: AsyncDisposableStack,
): Promise<Contenders> {
  const [near, far] = hosts
  const server = stack.use(startForwardServer(far?.namespace))
  const ports = await server.ask('listen', { bytes: STREAM_BYTES, host: far === undefined ? LOOPBACK : '0.0.0.0' })
  const at = (host: string): Pick<Contender, 'bulk' | 'echo'> => ({
    bulk: { host, port: ports.bulk },
    echo: { host, port: ports.echo },
  })
  const place = near && far && { near, far }
  const { offering, using, ports: forwarded, proxy } = await startForwarding(ports, signal, stack, place)
  const agents = [offering.pid, using.pid]
  const named = (name: 'bulk' | 'echo'): Way => ({ host: `${name}.home.internal`, port: ports[name], proxy })
  const local = (bulk: number, echo: number) => ({
    bulk: { host: LOOPBACK, port: bulk },
    echo: { host: LOOPBACK, port: echo },
  })
  const contenders: Contenders = {
    none: { ...at(far?.address ?? LOOPBACK), pids: [] },
    forward: { ...local(forwarded.bulk, forwarded.echo), pids: agents },
    'SOCKS 5': { bulk: named('bulk'), echo: named('echo'), pids: agents },
  }
  const ssh = await SshForward.start([ports.bulk, ports.echo], place)
  if (ssh === undefined) report.note('OpenSSH’s server is not installed: ssh -L is not there.')
  else contenders['ssh -L'] = { ...local(ssh.ports[0] ?? 0, ssh.ports[1] ?? 0), pids: stack.use(ssh).pids }
  if (near === undefined || far === undefined) {
    report.note('Without root and network namespaces, nebula and wireguard-go are not there.')
    return contenders
  }
  for (const [name, startOverlay] of [
    ['nebula', startNebula],
    ['wireguard-go', startWireguard],
  ] as const) {
    const overlay = await startOverlay([near, far], ports.echo)
    if (overlay === undefined) report.note(`${name} is not installed, and not there.`)
    else contenders[name] = { ...at(overlay.address), pids: stack.use(overlay).pids }
  }
  return contenders
}
