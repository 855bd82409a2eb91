/** `agent member`: who is in a network, and who is out. */
import type { Command } from 'commander'
import { reasonFault } from '../../protocols/membership/words.ts'
import type { Client } from '../api/client.ts'
import type {
  LabelResult,
  MemberList,
  MemberView,
  RevokeRequest,
  RevokeResult,
  SignerView,
} from '../api/membership-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import { agreed } from './agreement.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { collect, labelsText, readLabelKey, readLabels } from './labels.ts'
import { endingOf, endingText, minuteText } from './lifetime.ts'
import { count } from './measures.ts'
import { fields, shorten, table } from './table.ts'
import type { Style, Terminal } from './terminal.ts'

type InNetwork = { network?: string }

/** Of a peer id that stands in a line of text. */
const PEER_ID_WIDTH = 16
const STATE_STYLES: Record<MemberView['state'], Style | undefined> = {
  here: 'green',
  away: 'dim',
  'not-yet-valid': 'yellow',
  expired: 'red',
  revoked: 'red',
  'issuer-revoked': 'red',
}

export function addMember(line: CommandLine): void {
  const parent = line.command({
    usage: 'member',
    summary: 'the members of a network: who they are, and who is to be one no more',
    examples: [
      ['member list', 'all of them'],
      ['member revoke web1', 'web1 is out, for ever'],
    ],
  })
  addList(line, parent)
  addShowMember(line, parent)
  addRevoke(line, parent)
  addLabel(line, parent)
}

function addList(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'list',
      summary: 'the members of a network',
      examples: [
        ['member list', 'of the only network'],
        ['member list --network home', 'of one of several'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[], InNetwork>(command, async ({ client, terminal, isJson }, { network }) => {
    const reply = await client.get<MemberList>('members', { network })
    if (isJson) return terminal.json(reply)
    terminal.print(...membersScreen(reply, terminal, Date.now()))
  })
}

function addShowMember(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'show <member>',
      summary: 'all about one member',
      examples: [['member show web1', 'by name, or by peer id']],
    })
    .option(...IN_NETWORK)
  line.asks<[string], InNetwork>(command, async ({ client, terminal, isJson }, { network }, ref) => {
    const member = await client.get<MemberView>(memberPath(ref), { network })
    if (isJson) return terminal.json(member)
    terminal.print(...memberScreen(member, terminal, Date.now()))
  })
}

type RevokeOptions = InNetwork & { reason?: string; issuer?: boolean; issuedAfter?: string; yes?: boolean }

function addRevoke(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'revoke <member>',
      summary: 'put a member out of the network, for ever',
      details:
        'Its key is refused from then on by every member that hears of it, and its connections are cut. There is no way back for the key. By peer id also somebody who is not known here.',
      examples: [
        ['member revoke web1 --reason "stolen"', 'asks first, on a terminal'],
        ['member revoke gate --issuer', 'a delegate, with all that it issued'],
        ['member revoke gate --issuer --issued-after 2026-11-01', 'what it issued before then stays good'],
      ],
    })
    .option(...IN_NETWORK)
    .option('--reason <text>', 'for people, at most 200 bytes')
    .option('--issuer', 'as an issuer, too: what it issued counts no more')
    .option('--issued-after <time>', 'with --issuer: only what it issued after this (2026-11-01, or with a time)')
    .option('-y, --yes', 'do not ask')
  line.asks<[string], RevokeOptions>(command, async (session, options, ref) => {
    const { client, terminal, isJson } = session
    const request = revocationOf(options)
    const isSettled = options.yes === true || !terminal.canAsk
    if (!isSettled) await agreed(session, false, await revokeQuestion(client, ref, options))
    const result = await client.post<RevokeResult>(`${memberPath(ref)}/revoke`, request)
    if (isJson) return terminal.json(result)
    const who = result.name === null ? printable(result.peerId) : nameText(result)
    const as = result.scopes.includes('issuer') ? ', also as an issuer' : ''
    terminal.print(`Revoked: ${who} is out of ${printable(result.network)} for ever${as}.`)
    const cut = result.cut > 0 ? `; ${count(result.cut, 'connection')} cut here` : ''
    terminal.print(
      result.announcedTo > 0
        ? `  ${count(result.announcedTo, 'member')} told${cut}.`
        : `  No other member is connected: those that come are told${cut}.`,
    )
  })
}

type LabelOptions = InNetwork & { remove?: string[] }

function addLabel(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'label <member> [labels...]',
      summary: 'change the labels of a member',
      details: 'It gets a new certificate at once if it is connected, otherwise when it comes back.',
      examples: [
        ['member label web1 zone=a role=web', 'two labels; others stay'],
        ['member label web1 --remove role', 'one less'],
      ],
    })
    .option(...IN_NETWORK)
    .option('--remove <key>', 'a label to remove; repeatable', collect)
  line.asks<[string, string[]], LabelOptions>(command, async (session, { network, remove = [] }, ref, words) => {
    const { client, terminal, isJson } = session
    const labels: Record<string, string | null> = readLabels(words)
    for (const key of remove.map(readLabelKey)) {
      if (Object.hasOwn(labels, key)) throw new AgentError('usage', `the label ${key} cannot be both set and removed`)
      labels[key] = null
    }
    if (Object.keys(labels).length === 0)
      throw new AgentError('usage', 'no label to set or to remove', { next: 'Give KEY=VALUE, or --remove KEY.' })
    const result = await client.post<LabelResult>(`${memberPath(ref)}/labels`, { labels, network })
    if (isJson) return terminal.json(result)
    const { name, labels: now } = result.member
    terminal.print(`${printable(name)} has now ${labelsText(now, 'no labels')}.`)
    if (!result.delivered) terminal.print('  It is away: it gets its new certificate when it comes back.')
  })
}

export function membersScreen(
  { network, members }: MemberList,
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  if (members.length === 0) return [`No member of ${printable(network)} is known yet: agent invite`]
  const endings = members.map((member) => endingOf(member, nowMs))
  const paint = (style: Style | undefined, text: string) => (style === undefined ? text : terminal.style(style, text))
  const columns = [
    { title: 'NAME', style: (text: string) => terminal.style('bold', text) },
    { title: 'STATE', style: (text: string, row: number) => paint(styleOf(members[row]), text) },
    { title: 'LABELS', cut: 'end' as const },
    { title: 'CERTIFICATE ENDS', style: (text: string, row: number) => paint(endings[row]?.style, text) },
    { title: 'ISSUED BY', cut: 'middle' as const },
    { title: 'PEER ID', cut: 'middle' as const },
  ]
  const rows = members.map((member, at) => [
    member.name,
    stateText(member),
    labelsText(member.labels, '-'),
    endings[at]?.text ?? '',
    signerText(member.issuer),
    member.peerId,
  ])
  const [only] = members
  const isAlone = members.length === 1 && only?.own === true
  return [...table(columns, rows, terminal.columns), ...(isAlone ? ['', 'Nobody else yet: agent invite'] : [])]
}

function memberScreen(member: MemberView, terminal: Terminal, nowMs: number): string[] {
  const ending = endingOf(member, nowMs)
  const end = endingText(ending)
  const style = styleOf(member)
  const entries: [string, string][] = [
    ['Peer id', printable(member.peerId)],
    ['State', style === undefined ? stateText(member) : terminal.style(style, stateText(member))],
    ['Connected', member.own ? '' : member.connected ? 'to this machine' : 'not to this machine'],
    ['Labels', labelsText(member.labels, 'none')],
    [
      'Certificate',
      `${ending.style === undefined ? end : terminal.style(ending.style, end)} (${minuteText(member.expires)}), issued ${minuteText(member.issued)}`,
    ],
    ['Issued by', signerText(member.issuer)],
    ['May issue', member.issues ? 'yes: it invites, and renews certificates' : 'no'],
  ]
  return [terminal.style('bold', printable(member.name)), '', ...fields(entries.filter(([, value]) => value !== ''))]
}

/** `root key`, or a delegate's name. */
export function signerText({ root, name, peerId }: SignerView): string {
  return root ? 'root key' : printable(name ?? peerId ?? '-')
}

/** `pear (12D3KooW…iLiFq7q)`. */
export function nameText({ name, peerId }: { name?: string | null | undefined; peerId: string }): string {
  const short = printable(shorten(peerId, PEER_ID_WIDTH, 'middle'))
  return name ? `${printable(name)} (${short})` : short
}

function stateText({ state, own }: MemberView): string {
  const words = printable(state.replaceAll('-', ' '))
  return own && state === 'here' ? 'this machine' : words
}

/** A state of a later agent is printed as it is. */
function styleOf(member: MemberView | undefined): Style | undefined {
  return member && STATE_STYLES[member.state]
}

function memberPath(ref: string): string {
  return `members/${encodeURIComponent(ref)}`
}

/** Who it is, before it cannot be taken back. A key that nobody here knows can be revoked as well. */
async function revokeQuestion(client: Client, ref: string, { network, issuer }: RevokeOptions): Promise<string> {
  const known = await client.get<MemberView>(memberPath(ref), { network }).catch((error: unknown) => {
    if (error instanceof AgentError && error.code === 'not-found') return undefined
    throw error
  })
  const who = known === undefined ? `${ref}, which is not known here` : nameText(known)
  const own = known?.own === true ? ' This is the machine that you are on.' : ''
  return `Put ${who} out for ever${issuer ? ', with all that it issued' : ''}?${own}`
}

function revocationOf({ network, reason, issuer, issuedAfter }: RevokeOptions): RevokeRequest {
  const fault = reason === undefined ? undefined : reasonFault(reason)
  if (fault !== undefined) throw new AgentError('usage', `--reason: ${fault}`)
  if (issuedAfter !== undefined && !issuer) throw new AgentError('usage', '--issued-after goes with --issuer')
  return {
    ...(network !== undefined && { network }),
    ...(reason !== undefined && { reason }),
    ...(issuer && { issuer }),
    ...(issuedAfter !== undefined && { issuedAfter: readTime(issuedAfter, '--issued-after') }),
  }
}

function readTime(text: string, what: string): string {
  const ms = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/.test(text)
    ? Date.parse(text)
    : Number.NaN
  if (!Number.isNaN(ms)) return new Date(ms).toISOString()
  throw new AgentError('usage', `${what} must be like 2026-11-01 or 2026-11-01T12:00:00Z, not ${JSON.stringify(text)}`)
}
