/** `agent audit`: who came, who was refused and why, what was changed. */
import type { AuditEntry } from '../api/membership-contract.ts'
import { printable, printableJson } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { count as countText, readCount, showSize } from './measures.ts'
import { nameText } from './member.ts'
import type { Style, Terminal } from './terminal.ts'

const LIMIT_DEFAULT = 50
/** As the API has it. */
const LIMIT_MAX = 10_000
/** Of the longest event there is: lines come one by one, and should line up. */
const EVENT_WIDTH = 20
/** The word after the dot, where somebody should look. */
const STYLES: Readonly<Record<string, Style>> = { refused: 'yellow', cut: 'yellow', revoked: 'red' }

export function addAudit(line: CommandLine): void {
  const command = line
    .command({
      usage: 'audit',
      summary: 'who came, who was refused and why, what was changed',
      details: 'From the log on this machine, oldest first. Times are UTC.',
      examples: [
        ['audit', `the last ${LIMIT_DEFAULT} events`],
        ['audit --follow', 'and what comes, until Ctrl-C'],
        ['audit --limit 10000 --json | jq \'select(.event == "peer.refused")\'', 'a line of JSON each, for scripts'],
      ],
    })
    .option('-f, --follow', 'go on with what comes')
    .option('-n, --limit <number>', 'begin with at most so many', String(LIMIT_DEFAULT))
  type Options = { follow?: boolean; limit: string }
  line.asks<[], Options>(command, async (session, { follow = false, limit }) => {
    const { client, terminal, isJson } = session
    const query = { follow: String(follow), limit: readCount(limit, '--limit', { min: 0, max: LIMIT_MAX }) }
    let isEmpty = true
    for await (const entry of client.lines<AuditEntry>('audit', query, session.interrupted())) {
      isEmpty = false
      terminal.print(isJson ? printableJson(entry) : auditLine(entry, terminal))
    }
    if (isEmpty && !isJson && query.limit > 0)
      terminal.print('Nothing has happened yet. Wait for it: agent audit --follow')
  })
}

/** `2026-01-01 00:00:01Z  member.joined         pear (12D3KooW…iLiFq7q) in home`. */
function auditLine(entry: AuditEntry, terminal: Pick<Terminal, 'style'>): string {
  const { at, event, network, peerId, name } = entry
  const time = printable(at)
    .replace('T', ' ')
    .replace(/\.\d+Z$/, 'Z')
  const who = peerId === undefined ? printable(name ?? '') : nameText({ name, peerId })
  const where = network === undefined ? '' : `in ${printable(network)}`
  const style = STYLES[event.split('.')[1] ?? '']
  const shown = printable(event).padEnd(EVENT_WIDTH)
  const said = [joined([who, where], ' '), joined(reasonsOf(entry), ', ')]
  return `${terminal.style('dim', time)}  ${style === undefined ? shown : terminal.style(style, shown)}  ${joined(said, ': ')}`.trimEnd()
}

/** Why, how, and how often; texts of events that this version does not know are left to --json. */
function reasonsOf(entry: AuditEntry): string[] {
  const { why, rule, labels, version, by, address, count } = entry
  const text = (value: unknown, before = '') => (typeof value === 'string' ? before + printable(value) : '')
  return [
    ...flowText(entry),
    text(why),
    text(rule, 'rule '),
    text(labels),
    typeof version === 'number' ? `version ${version}` : '',
    text(by, 'by '),
    text(address, 'from '),
    count === undefined || count < 2 ? '' : `${count} times`,
  ]
}

/** `web, 3 flows, sent 1.2 MB, received 30 kB, direct`. */
function flowText({ service, flows, sentBytes, receivedBytes, path }: AuditEntry): string[] {
  if (typeof service !== 'string' || typeof flows !== 'number') return []
  const size = (value: unknown) => showSize(typeof value === 'number' ? value : 0)
  const moved = `sent ${size(sentBytes)}, received ${size(receivedBytes)}`
  return [printable(service), countText(flows, 'flow'), moved, typeof path === 'string' ? printable(path) : '']
}

function joined(parts: readonly string[], separator: string): string {
  return parts.filter((part) => part !== '').join(separator)
}
