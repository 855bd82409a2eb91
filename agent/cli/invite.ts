/** `agent invite`: tokens that let other machines in. */
import type { InvitationList, InvitationView, InviteRequest, InviteResult } from '../api/membership-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK, type Session } from './command-line.ts'
import { collect, labelsText, readLabels, readNamePattern } from './labels.ts'
import { endingOf, minuteText } from './lifetime.ts'
import { count, readCount, readDuration } from './measures.ts'
import { table } from './table.ts'
import type { Terminal } from './terminal.ts'

const USES_MAX = 10_000
const EXPIRES_DEFAULT = '24h'
/** As the API has it. */
const EXPIRES_SECONDS_MIN = 60
const EXPIRES_SECONDS_MAX = 366 * 24 * 3_600

type Options = {
  network?: string
  name?: string
  label?: string[]
  uses: string
  expires: string
  list?: boolean
  withdraw?: string
}

export function addInvite(line: CommandLine): void {
  const command = line
    .command({
      usage: 'invite',
      summary: 'a token that lets another machine into a network',
      details:
        'Who has the token can join: hand it over as you would a password. This machine must run, and be reachable, when it is used. In a pipe the token alone is printed.',
      examples: [
        ['invite', 'one machine, within 24 hours'],
        ['invite --name web1 --label zone=a', 'what it is called, and which labels it gets'],
        ["invite --name 'ci-*' --uses 20 --expires 7d > tokens", 'a fleet, by join_file in the configuration'],
        ['invite --list', 'invitations that were made here'],
        ['invite --withdraw 3f2a', 'one that is no longer meant'],
      ],
    })
    .option(...IN_NETWORK)
    .option('--name <host>', 'what the machine is called there, or a pattern such as ci-*; otherwise its own name')
    .option('--label <k=v>', 'a label that it gets; repeatable', collect)
    .option('--uses <number>', 'how many machines may use it', '1')
    .option('--expires <duration>', 'until when: 90m, 24h, 7d', EXPIRES_DEFAULT)
    .option('--list', 'show the invitations made on this machine')
    .option('--withdraw <id>', 'take an invitation back')
  line.asks<[], Options>(command, async (session, options) => {
    if (options.withdraw !== undefined) await withdraw(session, options.withdraw)
    else if (options.list) await list(session, options.network)
    else await invite(session, options)
  })
}

async function invite({ client, terminal, isJson }: Session, options: Options): Promise<void> {
  const result = await client.post<InviteResult>('invitations', requestOf(options))
  if (isJson) return terminal.json(result)
  terminal.print(printable(result.token))
  if (!terminal.isInteractive) return
  const { id, network, uses, expires } = result.invitation
  terminal.note(
    '',
    `On the other machine run \`agent join\`, and give it this token when it asks.`,
    `It lets ${count(uses, 'machine')} into ${printable(network)}, and ends ${endingOf(result.invitation, Date.now()).text} (${minuteText(expires)}).`,
    `Take it back: agent invite --withdraw ${printable(id)}`,
  )
}

function requestOf({ network, name, label = [], uses, expires }: Options): InviteRequest {
  const expiresSeconds = readDuration(expires, '--expires')
  if (expiresSeconds < EXPIRES_SECONDS_MIN || expiresSeconds > EXPIRES_SECONDS_MAX)
    throw new AgentError('usage', '--expires must be from 1m to 366d')
  return {
    labels: readLabels(label),
    uses: readCount(uses, '--uses', { min: 1, max: USES_MAX }),
    expiresSeconds,
    ...(network !== undefined && { network }),
    ...(name !== undefined && { name: readNamePattern(name, '--name') }),
  }
}

async function list({ client, terminal, isJson }: Session, network: string | undefined): Promise<void> {
  const reply = await client.get<InvitationList>('invitations', { network })
  if (isJson) return terminal.json(reply)
  if (reply.invitations.length === 0) return terminal.print('Nobody is invited from this machine: agent invite')
  terminal.print(...invitationTable(reply.invitations, terminal, Date.now()))
}

async function withdraw({ client, terminal, isJson }: Session, id: string): Promise<void> {
  if (!/^[0-9a-f]{4,16}$/.test(id))
    throw new AgentError('usage', `${JSON.stringify(id)} is not the id of an invitation`, {
      next: 'At least its first 4 hexadecimal digits, as `agent invite --list` shows them.',
    })
  const invitation = await client.delete<InvitationView>(`invitations/${id}`)
  if (isJson) return terminal.json(invitation)
  terminal.print(`Withdrawn: the invitation ${printable(invitation.id)} into ${printable(invitation.network)}.`)
  if (invitation.used > 0)
    terminal.print(`${count(invitation.used, 'machine')} joined by it and stay: agent member list`)
}

export function invitationTable(
  invitations: readonly InvitationView[],
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  const columns = [
    { title: 'ID' },
    { title: 'NETWORK', cut: 'end' as const },
    { title: 'NAME', cut: 'end' as const },
    { title: 'LABELS', cut: 'end' as const },
    { title: 'USED', align: 'right' as const },
    { title: 'ENDS', style: (text: string, row: number) => dim(invitations[row], text, terminal) },
  ]
  const rows = invitations.map((one) => [
    one.id,
    one.network,
    one.name ?? '(its own)',
    labelsText(one.labels, '-'),
    `${one.used} of ${one.uses}`,
    one.state === 'used-up' ? 'used up' : endingOf(one, nowMs).text,
  ])
  return table(columns, rows, terminal.columns)
}

/** What nobody can use any more. */
function dim(invitation: InvitationView | undefined, text: string, terminal: Pick<Terminal, 'style'>): string {
  return invitation?.state === 'open' ? text : terminal.style('dim', text)
}
