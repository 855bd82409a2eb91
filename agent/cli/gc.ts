/** `agent gc`: frees what nothing needs, and says what that was. */
import type { GcResult } from '../api/room-contract.ts'
import type { CommandLine } from './command-line.ts'
import { count, showSize } from './measures.ts'
import { table } from './table.ts'
import type { Terminal } from './terminal.ts'

/** More than a person reads; --json has them. */
const SHOWN_MAX = 20
const DIGEST_SHOWN = 16

export function addGc(line: CommandLine): void {
  const command = line
    .command({
      usage: 'gc',
      summary: 'free what nothing needs',
      details:
        'What nobody may be given, fetches that were broken off a day ago, and what was not used for 30 days. Never what is published, pinned, being read or being fetched. The quota is kept without it.',
      examples: [
        ['gc --dry-run', 'what would go, and how much it is'],
        ['gc', 'let it go'],
        ['gc --all', 'everything that was fetched once and is not pinned'],
      ],
    })
    .option('--dry-run', 'only say what would be freed')
    .option('--all', 'also what was used a short while ago')
  type Options = { dryRun?: boolean; all?: boolean }
  line.asks<[], Options>(command, async (session, { dryRun = false, all = false }) => {
    const { client, terminal, isJson } = session
    const result = await client.post<GcResult>('gc', { dryRun, all }, session.interrupted())
    if (isJson) terminal.json(result)
    else terminal.print(...gcScreen(result, terminal))
  })
}

export function gcScreen(
  { dryRun, freed, blobs, bytes, leftBytes }: GcResult,
  terminal: Pick<Terminal, 'style' | 'columns'>,
): string[] {
  if (blobs === 0) return [`Nothing to free; ${showSize(leftBytes)} is here.`]
  const columns = [
    { title: dryRun ? 'WOULD GO' : 'FREED', cut: 'middle' as const },
    { title: 'SIZE', align: 'right' as const },
  ]
  const rows = freed
    .slice(0, SHOWN_MAX)
    .map(({ what, digest, sizeBytes, arriving }) => [
      `${what ?? `${digest.slice(0, DIGEST_SHOWN)}…`}${arriving ? ' (half fetched)' : ''}`,
      showSize(sizeBytes),
    ])
  const more = blobs > rows.length ? [`and ${blobs - rows.length} more`] : []
  const left = `${showSize(leftBytes)} ${dryRun ? 'would be' : 'is'} left`
  return [
    ...table(columns, rows, terminal.columns),
    ...more,
    '',
    `${dryRun ? 'Would free' : 'Freed'} ${showSize(bytes)} in ${count(blobs, 'blob')}; ${left}.`,
  ]
}
