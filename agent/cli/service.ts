/** `agent service`: what this node offers to the members of a network, and what others do. */
import type {
  AddServiceRequest,
  InstanceView,
  ServiceDetail,
  ServiceList,
  ServiceView,
} from '../api/service-contract.ts'
import { endpointIn, labelsIn, PROTOS } from '../config/service-values.ts'
import { AgentError, reasonOf } from '../error.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { readCount, showMs } from './measures.ts'
import { fields, table } from './table.ts'
import type { Style, Terminal } from './terminal.ts'

const WEIGHT_MAX = 1_000
const STYLES: Readonly<Record<InstanceView['state'], Style>> = {
  healthy: 'green',
  ill: 'red',
  draining: 'yellow',
  unknown: 'dim',
}

type InNetwork = { network?: string }
type AddOptions = InNetwork & {
  proto?: string
  check?: string
  label: string[]
  weight?: string
  proxyProtocol?: boolean
}

export function addService(line: CommandLine): void {
  const parent = line.command({
    usage: 'service',
    summary: 'services of the networks that this node is in',
    details:
      'A service is a port of an application, offered by its name to the members of a closed network; a grant says who may use it. Several nodes may offer one name. Use one with `agent forward`, the proxy or DNS.',
    examples: [
      ['service add web 8080', 'offer what listens on port 8080 of this machine'],
      ['service list', 'what there is, here and elsewhere'],
    ],
  })
  addAdd(line, parent)
  addList(line, parent)
  addShow(line, parent)
  addDrain(line, parent)
  addRemove(line, parent)
}

type Parent = ReturnType<CommandLine['command']>

function addAdd(line: CommandLine, parent: Parent): void {
  const command = line
    .command({
      parent,
      usage: 'add <name> <endpoint>',
      summary: 'offer a port to the members of a network, in place of what had the name',
      details:
        'The endpoint is [HOST:]PORT, on this machine when no host is said. It is looked at every few seconds, and nobody is sent to one that does not answer.',
      examples: [
        ['service add web 8080', 'web.NETWORK.internal everywhere in the network'],
        ['service add web 8080 --proto http --check http:/health', 'well as long as /health says so'],
        ['service add db 192.0.2.5:5432 --weight 3', 'on another machine, three times as likely as others'],
      ],
    })
    .option('--proto <name>', `what it speaks: ${PROTOS.join(', ')}`)
    .option('--check <how>', 'how it is looked at: tcp, http:/path or none')
    .option('--label <key=value>', 'say something of it; repeatable', (one: string, all: string[]) => [...all, one], [])
    .option('--weight <number>', 'its share among instances that are alike, 1 if not said; 0 for a spare')
    .option('--proxy-protocol', 'tell the application who calls, by the PROXY protocol (version 2)')
    .option(...IN_NETWORK)
  line.asks<[string, string], AddOptions>(command, async ({ client, terminal, isJson }, options, name, endpoint) => {
    const added = await client.post<ServiceDetail>('services', requestOf(name, endpoint, options))
    if (isJson) return terminal.json(added)
    terminal.print(`Offered as ${terminal.style('bold', printable(added.address))}`)
    terminal.note(`Who may use it: members with a grant for service:connect ${printable(name)}. agent policy show`)
  })
}

function addList(line: CommandLine, parent: Parent): void {
  const command = line
    .command({
      parent,
      usage: 'list',
      summary: 'what is offered, here and elsewhere',
      examples: [['service list --network home', 'those of one network']],
    })
    .option(...IN_NETWORK)
  line.asks<[], InNetwork>(command, async ({ client, terminal, isJson }, { network }) => {
    const list = await client.get<ServiceList>('services', { network })
    if (isJson) return terminal.json(list)
    if (list.services.length === 0) return terminal.print('No services yet. Offer one: agent service add NAME PORT')
    const columns = [
      { title: 'NAME', style: (text: string) => terminal.style('bold', text) },
      { title: 'KIND' },
      { title: 'HEALTHY', align: 'right' as const },
      { title: 'HERE', cut: 'end' as const },
    ]
    const rows = list.services.map(({ address, proto, healthyCount, instanceCount, offer }) => [
      address,
      proto,
      `${healthyCount} of ${instanceCount}`,
      offer === null ? '-' : `${offer.host}:${offer.port}, ${offer.state}`,
    ])
    terminal.print(...table(columns, rows, terminal.columns))
  })
}

function addShow(line: CommandLine, parent: Parent): void {
  const command = line
    .command({
      parent,
      usage: 'show <name>',
      summary: 'one service with its instances',
      examples: [
        ['service show web', 'where one network has it'],
        ['service show web.home.internal', 'that of a network'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[string], InNetwork>(command, async ({ client, terminal, isJson }, { network }, name) => {
    const detail = await client.get<ServiceDetail>(`services/${encodeURIComponent(name)}`, { network })
    if (isJson) terminal.json(detail)
    else terminal.print(...serviceScreen(detail, terminal))
  })
}

function addDrain(line: CommandLine, parent: Parent): void {
  const command = line
    .command({
      parent,
      usage: 'drain <name>',
      summary: 'send nobody new to this node’s instance, and let those who are there finish',
      examples: [
        ['service drain web', 'before the application is stopped'],
        ['service drain web --undo', 'when it is back'],
      ],
    })
    .option('--undo', 'take new streams again')
    .option(...IN_NETWORK)
  type Options = InNetwork & { undo?: boolean }
  line.asks<[string], Options>(command, async ({ client, terminal, isJson }, { network, undo }, name) => {
    const drained = await client.post<ServiceDetail>('services/drain', { name, undo, network })
    if (isJson) return terminal.json(drained)
    terminal.print(
      undo === true
        ? `Takes streams again: ${printable(drained.address)}`
        : `Drained: ${printable(drained.address)} on this node. agent connections shows what is still open.`,
    )
  })
}

function addRemove(line: CommandLine, parent: Parent): void {
  const command = line
    .command({
      parent,
      usage: 'remove <name>',
      summary: 'offer it no longer; what is open is cut',
      examples: [['service remove web', 'after service drain, nobody notices']],
    })
    .option(...IN_NETWORK)
  line.asks<[string], InNetwork>(command, async ({ client, terminal, isJson }, { network }, name) => {
    const removed = await client.delete<ServiceView>(`services/${encodeURIComponent(name)}`, { network })
    if (isJson) terminal.json(removed)
    else terminal.print(`No longer offered here: ${printable(removed.address)}`)
  })
}

/** @throws {AgentError} `usage` */
function requestOf(name: string, endpoint: string, options: AddOptions): AddServiceRequest {
  const { proto: said, check, label, weight, proxyProtocol, network } = options
  const proto = PROTOS.find((one) => one === said)
  if (said !== undefined && proto === undefined)
    throw new AgentError('usage', `--proto ${said}: there are ${PROTOS.join(', ')}`)
  try {
    return {
      name,
      ...endpointIn(endpoint),
      labels: labelsIn(label),
      ...(proto !== undefined && { proto }),
      ...(check !== undefined && { check }),
      ...(weight !== undefined && { weight: readCount(weight, '--weight', { min: 0, max: WEIGHT_MAX }) }),
      ...(proxyProtocol === true && { proxyProtocol }),
      ...(network !== undefined && { network }),
    }
  } catch (cause) {
    if (cause instanceof AgentError) throw cause
    throw new AgentError('usage', `the service ${name} ${reasonOf(cause)}`, { cause })
  }
}

export function serviceScreen(
  { address, proto, offer, instances }: ServiceDetail,
  terminal: Pick<Terminal, 'style' | 'columns'>,
): string[] {
  const own: [string, string][] =
    offer === null
      ? []
      : [
          [
            'Here',
            `${offer.host}:${offer.port}, ${offer.state}${offer.why === undefined ? '' : `: ${printable(offer.why)}`}`,
          ],
          ['Looked at by', offer.check],
          ...(offer.unseen === undefined ? [] : ([['Nobody sees it', printable(offer.unseen)]] as [string, string][])),
        ]
  const columns = [
    { title: 'NODE', style: (text: string) => terminal.style('bold', text) },
    { title: 'STATE', style: (text: string) => terminal.style(STYLES[text as InstanceView['state']] ?? 'dim', text) },
    { title: 'RTT', align: 'right' as const },
    { title: 'ZONE' },
    { title: 'WEIGHT', align: 'right' as const },
    { title: 'LABELS', cut: 'end' as const },
    { title: 'ID', cut: 'middle' as const },
  ]
  const rows = instances.map(({ node, state, rttMs, zone, weight, labels, id, own: isOwn }) => [
    node,
    state,
    isOwn ? 'here' : rttMs === null ? '-' : showMs(rttMs),
    zone ?? '-',
    String(weight),
    Object.entries(labels)
      .map(([key, value]) => `${key}=${value}`)
      .join(', '),
    id,
  ])
  return [
    `${terminal.style('bold', printable(address))}  ${proto}`,
    ...(own.length === 0 ? [] : ['', ...fields(own)]),
    ...(rows.length === 0 ? [] : ['', ...table(columns, rows, terminal.columns)]),
  ]
}
