/** `agent forward`, `agent connections` and `agent trace`: ways to services, what is open, and where it fails. */
import type { ConnectionList, ConnectionView, ForwardEvent, TraceResult } from '../api/service-contract.ts'
import { endpointIn } from '../config/service-values.ts'
import { AgentError, reasonOf } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { Interrupted } from './interruption.ts'
import { showMs, showShortDuration, showSize } from './measures.ts'
import { table } from './table.ts'
import type { Terminal } from './terminal.ts'

/** Of a command that could not do what it was asked for. */
const EXIT_FAILED = 1
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|::1)$/

export function addForward(line: CommandLine): void {
  const command = line
    .command({
      usage: 'forward <name> [local]',
      summary: 'a port of this machine that leads to a service, until Ctrl-C',
      details:
        'The name is web, web.NETWORK or web.NODE.NETWORK, with or without .internal. Local is [HOST:]PORT; if it is not said, the port of the service on 127.0.0.1, or any when that is taken. Whoever can connect to it uses the service as this node. For one that stays, see `forwards` in the configuration.',
      examples: [
        ['forward web 8000', 'then: curl http://127.0.0.1:8000'],
        ['forward db.home --sticky', 'all connections to the same instance, while it is there'],
      ],
    })
    .option('--sticky', 'all connections to the same instance, while it is there')
  line.asks<[string, string | undefined], { sticky?: boolean }>(command, async (session, { sticky }, name, local) => {
    const { client, terminal, isJson } = session
    const signal = session.interrupted()
    const request = { name, ...(local !== undefined && localIn(local)), ...(sticky === true && { sticky }) }
    try {
      for await (const event of client.events<ForwardEvent>('forward', request, signal)) {
        if (isJson) terminal.json(event)
        else tell(event, terminal)
      }
    } catch (error) {
      if (signal.aborted) throw new Interrupted()
      throw error
    }
  })
}

export function addConnections(line: CommandLine): void {
  const command = line.command({
    usage: 'connections',
    summary: 'tunnels that are open: to services of others, and to those of this node',
    examples: [["connections --json | jq '.connections | length'", 'how many']],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const list = await client.get<ConnectionList>('connections')
    if (isJson) return terminal.json(list)
    if (list.connections.length === 0) return terminal.print('No tunnels are open.')
    terminal.print(...connectionTable(list.connections, terminal))
  })
}

export function addTrace(line: CommandLine): void {
  const command = line.command({
    usage: 'trace <name>',
    summary: 'how a service is reached: each step with its time, and where it fails',
    details: 'Opens a connection to the application, and closes it at once.',
    examples: [['trace web.home', 'resolution, choice, grant, path, opening']],
  })
  line.asks<[string]>(command, async ({ client, terminal, isJson }, _options, name) => {
    const traced = await client.post<TraceResult>('trace', { name })
    if (!traced.ok) line.endWith(EXIT_FAILED)
    if (isJson) return terminal.json(traced)
    const rows = traced.steps.map(({ step, ms, ok, text }) => [ok ? 'ok' : 'no', step, showMs(ms), text])
    const columns = [
      { title: '', style: (text: string) => terminal.style(text === 'ok' ? 'green' : 'red', text) },
      { title: 'STEP' },
      { title: 'TOOK', align: 'right' as const },
      { title: 'WHAT' },
    ]
    terminal.print(...table(columns, rows))
  })
}

function tell(event: ForwardEvent, terminal: Pick<Terminal, 'print' | 'note' | 'style'>): void {
  if (event.type === 'refused') terminal.note(`${terminal.style('yellow', '!')} ${printable(event.message)}`)
  if (event.type !== 'listening') return
  const { host, port, name, proto } = event
  const shown = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
  terminal.print(`${printable(name)} is at ${terminal.style('bold', shown)} (${proto}) until Ctrl-C`)
  if (!LOOPBACK.test(host)) terminal.note('Everybody who can reach that address uses the service as this node.')
}

/** @throws {AgentError} `usage` */
function localIn(local: string): { host: string; port: number } {
  try {
    return endpointIn(local)
  } catch (cause) {
    throw new AgentError('usage', `the command ${reasonOf(cause)}`, { cause, next: 'Local is [HOST:]PORT.' })
  }
}

export function connectionTable(
  connections: readonly ConnectionView[],
  terminal: Pick<Terminal, 'style' | 'columns'>,
): string[] {
  const columns = [
    { title: '' },
    { title: 'SERVICE', cut: 'end' as const, style: (text: string) => terminal.style('bold', text) },
    { title: 'NODE', cut: 'end' as const },
    { title: 'PATH' },
    { title: 'UP', align: 'right' as const },
    { title: 'IDLE', align: 'right' as const },
    { title: 'SENT', align: 'right' as const },
    { title: 'RECEIVED', align: 'right' as const },
  ]
  const rows = connections.map((one) => [
    one.direction === 'in' ? 'from' : 'to',
    `${one.service}.${one.network}${one.carrier === 'udp' ? ' (udp)' : ''}`,
    one.node,
    one.path,
    showShortDuration(one.seconds),
    showShortDuration(one.idleSeconds),
    showSize(one.sentBytes),
    showSize(one.receivedBytes),
  ])
  return table(columns, rows, terminal.columns)
}
