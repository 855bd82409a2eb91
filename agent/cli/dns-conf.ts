/** `agent dns-conf`: what a resolver of this machine needs to find names of services; `agent names`: those that are used, with their addresses. */
import type { DnsConfView, NameList } from '../api/names-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { table } from './table.ts'

export function addDnsConf(line: CommandLine): void {
  const command = line.command({
    usage: 'dns-conf [resolver]',
    summary: 'the lines that systemd-resolved or dnsmasq needs to find names of services',
    details: 'Run it again when this node has joined or left a network.',
    examples: [
      ['dns-conf', 'read them, for both'],
      [
        'dns-conf systemd-resolved | sudo install -Dm644 /dev/stdin /etc/systemd/resolved.conf.d/undernet.conf',
        'put them into place',
      ],
      ['dns-conf dnsmasq | sudo tee /etc/dnsmasq.d/undernet.conf', 'the same for dnsmasq'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }, _options: object, resolver: string | undefined) => {
    const view = await client.get<DnsConfView>('dns-conf')
    const wanted = view.resolvers.filter((one) => resolver === undefined || one.resolver === resolver)
    if (wanted.length === 0) {
      const known = view.resolvers.map((one) => one.resolver).join(', ')
      throw new AgentError('usage', `no lines for ${resolver}`, { next: `There are some for ${known}.` })
    }
    if (isJson) return terminal.json({ ...view, resolvers: wanted })
    for (const { file, lines, restart } of wanted) {
      if (resolver === undefined) terminal.print(`# ${file}; then: ${restart}`)
      terminal.print(...lines.map(printable))
      if (resolver === undefined) terminal.print('')
      else if (terminal.isInteractive) terminal.note('', `Put these into ${file}, then: sudo ${restart}`)
    }
  })
}

export function addNames(line: CommandLine): void {
  const command = line.command({
    usage: 'names',
    summary: 'names of services that programs of this machine use, with their addresses',
    examples: [['names', 'which address each has, and who is connected']],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const { range, names } = await client.get<NameList>('names')
    if (isJson) return terminal.json({ range, names })
    if (names.length === 0) return terminal.print('No program of this machine has asked for the address of a service.')
    const columns = [
      { title: 'NAME' },
      { title: 'ADDRESS' },
      { title: 'PORTS' },
      { title: 'CONNECTIONS', align: 'right' as const },
    ]
    const rows = names.map(({ name, address, ports, connections }) => [
      name,
      address,
      ports.join(' '),
      String(connections),
    ])
    terminal.print(...table(columns, rows, terminal.columns))
  })
}
