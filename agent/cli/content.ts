/** `agent content`: what is here, why, since when, and how often it was served. */
import type { ContentItem, ContentList, ContentReason } from '../api/room-contract.ts'
import { AgentError } from '../error.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { count, showShortDuration, showSize } from './measures.ts'
import { table } from './table.ts'
import type { Terminal } from './terminal.ts'

const LIMIT_DEFAULT = 50
const ORDERS = ['size', 'used', 'served']
/** What the network of everybody is called. */
const OPEN = 'open'
/** Of a digest, where there is no better name. */
const DIGEST_SHOWN = 16

export function addContent(line: CommandLine): void {
  const command = line
    .command({
      usage: 'content [ref]',
      summary: 'what is here: why, since when, how often it was served',
      details:
        'A line for each blob (a file, a manifest, a store path that was fetched) and for each store path that is published from the Nix store. With a reference (a name, a CID, a store path, a digest) the parts of that.',
      examples: [
        ['content', 'the largest first'],
        ['content --sort served', 'what peers want'],
        ['content hello', 'the parts of one artifact'],
        ["content --json --limit 1000 | jq '[.items[] | select(.reasons == [])]'", 'for scripts'],
      ],
    })
    .option('--sort <order>', ORDERS.join(', '), 'size')
    .option('-n, --limit <number>', 'at most so many', String(LIMIT_DEFAULT))
    .option(...IN_NETWORK)
  type Options = { sort: string; limit: string; network?: string }
  line.asks<[string | undefined], Options>(
    command,
    async ({ client, terminal, isJson }, { sort, limit, network }, ref) => {
      if (!ORDERS.includes(sort))
        throw new AgentError('usage', `--sort must be one of ${ORDERS.join(', ')}, not ${JSON.stringify(sort)}`)
      const list = await client.get<ContentList>('content', { ref, sort, limit, network })
      if (isJson) return terminal.json(list)
      if (list.items.length > 0) terminal.print(...contentTable(list.items, terminal, Date.now()), '')
      terminal.print(summaryOf(list))
      if (list.truncated) terminal.note(`There is more: --limit ${Number(limit) * 2} shows some of it.`)
    },
  )
}

export function contentTable(
  items: readonly ContentItem[],
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  const columns = [
    { title: 'WHAT', cut: 'middle' as const, style: (text: string) => terminal.style('bold', text) },
    { title: 'SIZE', align: 'right' as const },
    { title: 'WHY', cut: 'end' as const },
    { title: 'SINCE', align: 'right' as const },
    { title: 'SERVED', align: 'right' as const },
    { title: 'LAST USE', align: 'right' as const },
  ]
  const rows = items.map(({ what, digest, place, sizeBytes, reasons, since, served, used }) => [
    what ?? `${digest.slice(0, DIGEST_SHOWN)}…`,
    place === 'nowhere' ? 'gone' : showSize(sizeBytes),
    whyText(place, reasons),
    ageText(since, nowMs),
    served.bytes === 0 ? '-' : `${served.times}×, ${showSize(served.bytes)}`,
    ageText(used, nowMs),
  ])
  return table(columns, rows, terminal.columns)
}

/** `published as site, fetched for home`. */
function whyText(place: ContentItem['place'], reasons: readonly ContentReason[]): string {
  const told = [...new Set(reasons.map(reasonText))]
  const begun = place === 'arriving' ? ['half fetched'] : place === 'store' ? ['in the Nix store'] : []
  return [...begun, ...told].join(', ') || 'nothing needs it'
}

function reasonText({ why, name, network }: ContentReason): string {
  const where = network === undefined || network === OPEN ? '' : `${why === 'fetched' ? ' for' : ' in'} ${network}`
  return `${why}${name === undefined ? '' : ` as ${name}`}${where}`
}

function summaryOf({ blobs, bytes, quotaBytes, keptBytes, pathsShared }: ContentList): string {
  const store = pathsShared > 0 ? `; ${count(pathsShared, 'store path')} shared from the Nix store` : ''
  return `${count(blobs, 'blob')}, ${showSize(bytes)} of ${showSize(quotaBytes)}, ${showSize(keptBytes)} published or pinned${store}`
}

function ageText(time: string | null, nowMs: number): string {
  const seconds = Math.max(0, (nowMs - Date.parse(time ?? '')) / 1_000)
  return Number.isNaN(seconds) ? '-' : showShortDuration(seconds)
}
