/** `agent network`: the closed networks that this machine is in. What is about a network's root key is in root-key.ts. */
import type { Command } from 'commander'
import type { NetworkDetail, NetworkList, NetworkView } from '../api/membership-contract.ts'
import { printable } from '../printable.ts'
import { agreed } from './agreement.ts'
import type { CommandLine } from './command-line.ts'
import { invitationTable } from './invite.ts'
import { labelsText, readName } from './labels.ts'
import { endingOf, endingText } from './lifetime.ts'
import { count } from './measures.ts'
import { networkNamed, networkPath } from './network-named.ts'
import { addRootKey } from './root-key.ts'
import { addShare } from './share.ts'
import { fields, table } from './table.ts'
import type { Terminal } from './terminal.ts'

/** Of a network's id, in tables: enough to name it by. */
const ID_LENGTH = 12

export function addNetwork(line: CommandLine): void {
  const parent = line.command({
    usage: 'network',
    summary: 'closed networks: only members get in, see or reach anything',
    details:
      'A network is made on one machine; each other one joins by an invitation. A machine can be in several, which know nothing of each other.',
    examples: [
      ['network create home', 'a network, with this machine as its first member'],
      ['network list', 'those that this machine is in'],
    ],
  })
  addCreate(line, parent)
  addList(line, parent)
  addShowNetwork(line, parent)
  addShare(line, parent)
  addLeave(line, parent)
  addRootKey(line, parent)
}

function addCreate(line: CommandLine, parent: Command): void {
  const create = line
    .command({
      parent,
      usage: 'create <name>',
      summary: 'make a network',
      details:
        'Its root key is made on this machine: who has that decides who is in. Export it, and remove it from here, once the network matters.',
      examples: [
        ['network create home', 'this machine is its first member'],
        ['network create home --as gate', 'and is called gate in it'],
      ],
    })
    .option('--as <host>', 'what this machine is called there; otherwise its own name')
  line.asks<[string], { as?: string }>(create, async ({ client, terminal, isJson }, { as }, name) => {
    const request = { name: readName(name, 'a network'), ...(as !== undefined && { as: readName(as, '--as') }) }
    const network = await client.post<NetworkDetail>('networks', request)
    if (isJson) return terminal.json(network)
    const shown = printable(network.name)
    terminal.print(`This machine is ${printable(network.member.name)} in the new network ${shown}.`)
    if (!terminal.isInteractive) return
    terminal.note(
      '',
      ...fields([
        ['Let others in:', `agent invite --network ${shown}`],
        ['Copy the root key elsewhere:', `agent network export-root ${shown} --to ${shown}-root.age`],
      ]),
    )
  })
}

function addList(line: CommandLine, parent: Command): void {
  const list = line.command({
    parent,
    usage: 'list',
    summary: 'the networks that this machine is in',
    examples: [
      ['network list', 'with its name there, who is here, and when its certificate ends'],
      ["network list --json | jq -r '.networks[].name'", 'their names'],
    ],
  })
  line.asks(list, async ({ client, terminal, isJson }) => {
    const reply = await client.get<NetworkList>('networks')
    if (isJson) return terminal.json(reply)
    terminal.print(...networksScreen(reply, terminal, Date.now()))
  })
}

function addShowNetwork(line: CommandLine, parent: Command): void {
  const show = line.command({
    parent,
    usage: 'show [network]',
    summary: 'all about one network: rights, root key, invitations',
    examples: [
      ['network show', 'the only one'],
      ['network show home', 'one of several'],
    ],
  })
  line.asks<[string | undefined]>(show, async ({ client, terminal, isJson }, _options, named) => {
    const network = await networkNamed(client, named)
    if (isJson) return terminal.json(network)
    terminal.print(...networkScreen(network, terminal, Date.now()))
  })
}

type LeaveOptions = { force?: boolean; yes?: boolean }

function addLeave(line: CommandLine, parent: Command): void {
  const leave = line
    .command({
      parent,
      usage: 'leave <network>',
      summary: 'be in a network no more',
      details:
        'All of it goes from this machine: certificate, records, root key. It can come back by a new invitation. The others know its name until its certificate ends: revoke it there if that matters.',
      examples: [
        ['network leave home', 'asks first, on a terminal'],
        ['network leave test --force', 'even if the only copy of its root key goes with it'],
      ],
    })
    .option('--force', 'also when the only copy of the root key is lost by it')
    .option('-y, --yes', 'do not ask')
  line.asks<[string], LeaveOptions>(leave, async (session, { force = false, yes = false }, name) => {
    const { client, terminal, isJson } = session
    const before = await networkNamed(client, name)
    await agreed(
      session,
      yes || force,
      `${printable(before.member.name)} leaves the network ${printable(before.name)}?`,
    )
    const left = await client.delete<NetworkDetail>(networkPath(before.id), { force: String(force) })
    if (isJson) terminal.json(left)
    else terminal.print(`This machine is no longer in ${printable(left.name)}.`)
  })
}

/** `2 of 3`: members that are here, of those that are known. */
function presentText({ nodes, members = 0 }: Pick<NetworkView, 'nodes' | 'members'>): string {
  return `${nodes} of ${Math.max(nodes, members)}`
}

export function networksScreen(
  { networks, open }: NetworkList,
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  const openLine =
    open === null ? 'The open network is off.' : `The open network is on: ${count(open.nodes, 'node')} known.`
  if (networks.length === 0)
    return [
      'You are in no network yet: agent network create home',
      'Or join one, with a token that `agent invite` printed on a machine that is in it: agent join',
      '',
      openLine,
    ]
  const endings = networks.map(({ member }) => endingOf(member, nowMs))
  const columns = [
    { title: 'NAME', style: (text: string) => terminal.style('bold', text) },
    { title: 'THIS MACHINE' },
    { title: 'HERE', align: 'right' as const },
    { title: 'CERTIFICATE ENDS', style: (text: string, row: number) => styled(terminal, endings[row]?.style, text) },
    { title: 'MAY', cut: 'end' as const },
    { title: 'ID' },
  ]
  const rows = networks.map((network, at) => [
    network.name,
    network.member.name,
    presentText(network),
    network.member.state === 'member' ? (endings[at]?.text ?? '') : stateText(network.member.state),
    network.may.join(', ') || '-',
    network.id.slice(0, ID_LENGTH),
  ])
  return [...table(columns, rows, terminal.columns), '', openLine]
}

function networkScreen(network: NetworkDetail, terminal: Terminal, nowMs: number): string[] {
  const { member, invitations } = network
  const ending = endingOf(member, nowMs)
  const labels = labelsText(member.labels)
  const shown = printable(network.name)
  const entries: [string, string][] = [
    ['Id', network.id],
    ['This machine', `${printable(member.name)}${labels === '' ? '' : ` (${labels})`}`],
    ['Certificate', styled(terminal, ending.style, endingText(ending))],
    ['Members', `${presentText(network)} here: agent member list --network ${shown}`],
    ['May', network.may.join(', ') || 'neither invite, revoke, nor set the policy'],
    ['Gives out', network.share === 'store' ? 'the Nix store of this machine' : 'what it published there'],
    ['Root key', rootKeyText(network)],
    [
      'Policy',
      network.policyVersion === null ? 'none received yet' : `version ${network.policyVersion}: agent policy show`,
    ],
  ]
  const fault = member.state === 'member' ? [] : ['', `${terminal.style('red', '!')} ${faultText(network)}`]
  return [
    terminal.style('bold', shown),
    '',
    ...fields(entries),
    ...fault,
    ...(invitations.length > 0 ? ['', 'Invitations made here', ...invitationTable(invitations, terminal, nowMs)] : []),
  ]
}

function faultText({ name, member }: NetworkDetail): string {
  const why = member.why === undefined ? '' : `: ${printable(member.why)}`
  return `This machine is no member of ${printable(name)} now (${stateText(member.state)}${why}). A new invitation brings it back: agent join`
}

function rootKeyText({ name, rootKey }: NetworkDetail): string {
  const shown = printable(name)
  if (rootKey === 'here') return `here, and nowhere else: agent network export-root ${shown} --to ${shown}-root.age`
  return rootKey === 'exported' ? `here, and exported: agent network remove-root ${shown}` : 'not on this machine'
}

/** `issuer-revoked` as people say it. */
function stateText(state: string): string {
  return printable(state.replaceAll('-', ' '))
}

function styled(
  terminal: Pick<Terminal, 'style'>,
  style: Parameters<Terminal['style']>[0] | undefined,
  text: string,
): string {
  return style === undefined ? text : terminal.style(style, text)
}
