/** `agent peers` and `agent ping`: the nodes around this one. */
import type { PeerView, PingResult } from '../api/contract.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { count, readCount, showDuration, showMs } from './measures.ts'
import { table } from './table.ts'

const PINGS_DEFAULT = 3
/** A command somebody forgets must end. */
const PINGS_MAX = 1_000

export function addPeers(line: CommandLine): void {
  const command = line.command({
    usage: 'peers',
    summary: 'the nodes that this one is connected to',
    examples: [
      ['peers', 'nearest first'],
      ["peers --json | jq -r '.peers[].name'", 'their names'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const reply = await client.get<{ peers: PeerView[] }>('peers')
    if (isJson) return terminal.json(reply)
    if (reply.peers.length === 0) {
      return terminal.print(
        'No peers yet.',
        'Start an agent on another machine of this network; elsewhere, name one:',
        '  agent start --bootstrap /ip4/ADDRESS/tcp/7477',
      )
    }
    const peers = reply.peers.toSorted((a, b) => (a.rttMs ?? Infinity) - (b.rttMs ?? Infinity))
    const columns = [
      { title: 'NAME', style: (text: string) => terminal.style('bold', text) },
      { title: 'RTT', align: 'right' as const },
      { title: 'PATH' },
      { title: 'UP' },
      { title: 'NETWORKS', cut: 'end' as const },
      { title: 'ADDRESS', cut: 'middle' as const },
      { title: 'PEER ID', cut: 'middle' as const },
    ]
    const rows = peers.map(({ name, rttMs, path, relay, direction, connectedSeconds, networks, address, peerId }) => [
      name ?? '-',
      rttMs === null ? '-' : showMs(rttMs),
      `${relay === null ? showPath(path, address) : `by ${relay.name ?? relay.peerId}`}, ${direction}`,
      showDuration(connectedSeconds),
      networks.join(', '),
      shortAddress(address),
      peerId,
    ])
    terminal.print(...table(columns, rows, terminal.columns))
  })
}

export function addPing(line: CommandLine): void {
  const command = line
    .command({
      usage: 'ping <target>',
      summary: 'measure the round trip to a node, or to the nearest instance of a service',
      details:
        'The target is a name, a peer id, a multiaddr or the name of a service; its node is dialled when it is not connected.',
      examples: [
        ['ping apple', 'a node by its name'],
        ['ping web.home -c 100', 'the node of a service, with percentiles'],
        ['ping -c 1 /ip4/192.0.2.7/tcp/7477', 'one that is not connected yet'],
      ],
    })
    .option('-c, --count <number>', 'how often', String(PINGS_DEFAULT))
  line.asks<[string], { count: string }>(command, async ({ client, terminal, isJson }, options, peer) => {
    const pings = readCount(options.count, '--count', { min: 1, max: PINGS_MAX })
    const results: PingResult[] = []
    for (let nth = 0; nth < pings; nth++) {
      const result = await client.post<PingResult>('ping', { peer })
      results.push(result)
      if (!isJson)
        terminal.print(
          `${printable(result.name ?? result.peerId)} at ${shortAddress(result.address)}, ${showPath(result.path, result.address)}: ${showMs(result.rttMs)}`,
        )
    }
    const times = results.map(({ rttMs }) => rttMs).sort((a, b) => a - b)
    const at = (share: number) => times[Math.min(times.length - 1, Math.floor(times.length * share))] as number
    if (isJson) return terminal.json({ pings: results, p50Ms: at(0.5), p90Ms: at(0.9), p99Ms: at(0.99), maxMs: at(1) })
    if (times.length > 1) {
      terminal.print(
        `${count(times.length, 'ping')}: fastest ${showMs(at(0))}, median ${showMs(at(0.5))}, p90 ${showMs(at(0.9))}, p99 ${showMs(at(0.99))}, slowest ${showMs(at(1))}`,
      )
    }
  })
}

/** QUIC is told, since TCP is what is expected. */
function showPath(path: string, address: string): string {
  return path === 'direct' && address.includes('/quic-v1') ? 'direct quic' : path
}

/** Without the peer id at its end, which is shown elsewhere and can be left out when dialling. */
export function shortAddress(address: string): string {
  return printable(address).replace(/\/p2p\/[^/]+$/, '')
}
