/** `agent netcheck`: how this node is reached, and reaches others. */
import type { NetcheckResult } from '../api/netcheck-contract.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { count, showDuration, showMs } from './measures.ts'
import { fields, table } from './table.ts'
import type { Terminal } from './terminal.ts'

const NAT: Readonly<Record<NetcheckResult['nat']['kind'], string>> = {
  none: 'none: members see this machine’s own address',
  'endpoint-independent': 'ordinary: one address and port for all, so holes can be punched',
  symmetric: 'symmetric: another port for each destination',
  'no-udp': 'unknown: UDP does not come through',
  unknown: 'unknown: it takes a member outside to tell',
}
const UDP = { works: 'works', blocked: 'does not come through', unknown: 'unknown: nobody answered by it' } as const
/** Below this two clocks agree, as far as anything here minds. */
const CLOCK_MS_SHOWN = 1_000

export function addNetcheck(line: CommandLine): void {
  const command = line.command({
    usage: 'netcheck',
    summary: 'how this node is reached, and reaches others: NAT, UDP, mapped ports, relays, clock, DNS',
    details: 'Asks members where datagrams of this node come from, the router, and the resolver; nobody else.',
    examples: [
      ['netcheck', 'what lies between this node and the others, and what to do about it'],
      ['netcheck --json | jq -r .nat.kind', 'the kind of router'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const result = await client.get<NetcheckResult>('netcheck')
    if (isJson) return terminal.json(result)
    terminal.print(...netcheckScreen(result, terminal))
  })
}

function netcheckScreen(result: NetcheckResult, terminal: Pick<Terminal, 'style' | 'columns'>): string[] {
  const { nat, udp, reachable, dns, advice, relays } = result
  const by = reachable.by.map(({ name, peerId, address }) => `${name ?? peerId} (${address})`).join(', ')
  const lines = fields(
    (
      [
        ['IPv4', addressesText(result.ipv4.addresses, result.ipv4.gateway === null ? 'no default route' : '')],
        ['IPv6', addressesText(result.ipv6.addresses, result.ipv6.hasRoute ? '' : 'no default route')],
        ['NAT', `${NAT[nat.kind]}${nat.seen === null ? '' : `, seen at ${nat.seen}`}`],
        ['UDP', UDP[udp]],
        ['Mapped ports', mappingText(result.portMapping)],
        [
          'Reached from outside',
          reachable.state === 'yes' ? `yes, by ${by}` : 'not seen: nobody from outside has dialled',
        ],
        ['Clock', clockText(result.clockOffsetMs)],
        ['DNS', dnsText(dns)],
      ] as const
    ).map(([label, value]) => [label, printable(value)] as const),
  )
  const relayLines = relays.length === 0 ? ['Relays: none'] : relayTable(relays, terminal)
  const next = advice.map((one) => `${terminal.style('yellow', '!')} ${printable(one)}`)
  return [...lines, '', ...relayLines, '', ...(next.length > 0 ? next : ['Nothing to mend.'])]
}

function addressesText(addresses: NetcheckResult['ipv4']['addresses'], otherwise: string): string {
  if (addresses.length === 0) return 'none'
  const shown = addresses.map(({ address, scope }) => `${address}${scope === 'public' ? ' (public)' : ''}`).join(', ')
  return otherwise === '' ? shown : `${shown}; ${otherwise}`
}

function mappingText({
  state,
  gateway,
  protocol,
  externalAddress,
  ports,
  reason,
}: NetcheckResult['portMapping']): string {
  const router = `the router ${gateway ?? ''}`.trim()
  if (state === 'mapped') {
    const shown = ports.map(({ transport, port, externalPort }) =>
      port === externalPort ? `${transport} ${port}` : `${transport} ${externalPort} → ${port}`,
    )
    return `${shown.join(', ')} at ${externalAddress}, by ${protocol}`
  }
  if (state === 'asking') return `${router} is being asked`
  if (state === 'off')
    return protocol === null
      ? `off (port_mapping); ${reason ?? 'no router'}`
      : `off (port_mapping); ${router} would, by ${protocol}`
  return `none: ${reason ?? router}`
}

function clockText(offsetMs: number | null): string {
  if (offsetMs === null) return 'unknown: nobody to compare with'
  if (Math.abs(offsetMs) < CLOCK_MS_SHOWN) return 'as that of the others'
  return `${showDuration(Math.abs(offsetMs) / 1_000)} ${offsetMs > 0 ? 'behind' : 'ahead of'} the others`
}

function dnsText({ state, servers, ms, reason }: NetcheckResult['dns']): string {
  const who = servers.length === 0 ? 'no resolver' : servers.join(', ')
  if (state === 'failed') return `${who}: ${reason}`
  return `${who} answers${ms === null ? '' : ` in ${showMs(ms)}`}${reason === null ? '' : ` (${reason})`}`
}

function relayTable(relays: NetcheckResult['relays'], terminal: Pick<Terminal, 'style' | 'columns'>): string[] {
  const columns = [
    { title: 'RELAY', style: (text: string) => terminal.style('bold', text) },
    { title: 'RTT', align: 'right' as const },
    { title: 'NETWORK' },
    { title: 'MAY BE USED' },
    { title: 'PEER ID', cut: 'middle' as const },
  ]
  const rows = relays.map(({ name, rttMs, network, allowed, peerId }) => [
    name ?? '-',
    rttMs === null ? '-' : showMs(rttMs),
    network,
    allowed ? 'yes' : 'no: relay:use is missing',
    peerId,
  ])
  return [`${count(relays.length, 'relay')}:`, ...table(columns, rows, terminal.columns)]
}
