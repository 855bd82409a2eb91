/** `agent search` and `agent show`: what is shared here and by peers. */
import type { ArtifactDetail, ArtifactView, FetchedArtifact, SearchResult } from '../api/contract.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { imageTable } from './image.ts'
import { count, showShortDuration, showSize } from './measures.ts'
import { fields, table } from './table.ts'
import type { Terminal } from './terminal.ts'

const LIMIT_DEFAULT = 50
/** What the network of everybody is called. */
const OPEN = 'open'

export function addSearch(line: CommandLine): void {
  const command = line
    .command({
      usage: 'search [words...]',
      summary: 'find what is shared, by name, description, kind or publisher: artifacts and images',
      details:
        'All words must be found; the last may be the beginning of one. Without words: everything, newest first.',
      examples: [
        ['search hello', 'what has hello in its name or description'],
        ['search nix apple', 'Nix paths that the node apple shares'],
        ["search --json hello | jq -r '.artifacts[0].cid'", 'for scripts'],
      ],
    })
    .option('-n, --limit <number>', 'at most so many', String(LIMIT_DEFAULT))
    .option(...IN_NETWORK)
  type Options = { limit: string; network?: string }
  line.asks<[string[]], Options>(command, async ({ client, terminal, isJson }, { limit, network }, words) => {
    const q = words.join(' ')
    const result = await client.get<SearchResult>('search', { q, limit, network })
    if (isJson) return terminal.json(result)
    const { artifacts, images = [] } = result
    if (artifacts.length + images.length === 0) return terminal.print(...nothingFound(q))
    if (artifacts.length > 0) terminal.print(...artifactTable(artifacts, terminal, Date.now()))
    if (artifacts.length > 0 && images.length > 0) terminal.print('')
    if (images.length > 0) terminal.print(...imageTable(images, terminal, Date.now()))
    if (result.truncated || result.imagesTruncated === true)
      terminal.note(`There are more: --limit ${Number(limit) * 2} shows some of them.`)
    if (terminal.isInteractive && artifacts.length > 0) {
      const name = printable(artifacts[0]?.name ?? '')
      terminal.note('', `Details: agent show ${name}    Fetch: agent get ${name} --to DIR`)
    }
  })
}

export function addShow(line: CommandLine): void {
  const command = line
    .command({
      usage: 'show <ref>',
      summary: 'all about one artifact: its CID, who has it, whether its signer is trusted',
      details: 'The reference is a name, publisher/name, or a CID.',
      examples: [
        ['show hello', 'by name'],
        ['show apple/hello', 'the one that the node apple publishes'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[string], { network?: string }>(command, async ({ client, terminal, isJson }, { network }, ref) => {
    const artifact = await client.get<ArtifactDetail>(`artifacts/${encodeURIComponent(ref)}`, { network })
    if (isJson) return terminal.json(artifact)
    terminal.print(...artifactScreen(artifact, terminal, Date.now()))
  })
}

/** One line about an artifact: `hello (nix, 51 paths, 230 MiB)`, with its network where that is a closed one. */
export function artifactText({ name, type, pathCount, sizeBytes, network = OPEN }: FetchedArtifact): string {
  const paths = pathCount === undefined ? '' : `${count(pathCount, 'path')}, `
  return `${printable(name)} (${type}, ${paths}${showSize(sizeBytes)})${network === OPEN ? '' : ` in ${printable(network)}`}`
}

function artifactTable(artifacts: ArtifactView[], terminal: Terminal, nowMs: number): string[] {
  // Most nodes are in the open network only.
  const isMixed = artifacts.some(({ network }) => network !== OPEN)
  const columns = [
    { title: 'NAME', cut: 'end' as const, style: (text: string) => terminal.style('bold', text) },
    ...(isMixed ? [{ title: 'NETWORK', cut: 'end' as const }] : []),
    { title: 'KIND' },
    { title: 'SIZE', align: 'right' as const },
    { title: 'PUBLISHER', cut: 'middle' as const },
    { title: 'AGE', align: 'right' as const },
    { title: 'DESCRIPTION', cut: 'end' as const },
  ]
  const rows = artifacts.map(({ name, network, type, sizeBytes, publisher, own, issued, description }) => [
    name,
    ...(isMixed ? [network] : []),
    type,
    showSize(sizeBytes),
    own ? 'this node' : (publisher.name ?? publisher.peerId),
    ageText(issued, nowMs),
    description,
  ])
  return table(columns, rows, terminal.columns)
}

function artifactScreen(artifact: ArtifactDetail, terminal: Terminal, nowMs: number): string[] {
  const { publisher, own, holders, signer, signerTrusted, refused } = artifact
  const entries: [string, string | string[]][] = [
    ['CID', artifact.cid],
    ['Network', printable(artifact.network)],
    ['Kind', artifact.type],
    ['Size', `${showSize(artifact.sizeBytes)} (${artifact.sizeBytes} bytes)`],
    ['Description', printable(artifact.description)],
    ['Publisher', own ? 'this node' : publisherText(publisher)],
    [
      'Published',
      `${ageText(artifact.issued, nowMs)} ago; the offer ends ${printable(artifact.expires).slice(0, 10)} unless it is renewed`,
    ],
    ['Store path', printable(artifact.root ?? '')],
    ['Closure', artifact.pathCount === undefined ? '' : count(artifact.pathCount, 'path')],
    ['Signed by', signer === undefined ? '' : signerText(signer, signerTrusted === true, terminal)],
    ['Refused', printable(refused ?? '')],
    ['Held by', holders.map((holder) => `${publisherText(holder)}${holder.connected ? '' : ' (not connected)'}`)],
  ]
  return [
    terminal.style('bold', printable(artifact.name)),
    '',
    ...fields(entries.filter(([, value]) => value.length > 0)),
    ...(signer !== undefined && !signerTrusted && !own
      ? ['', 'To install it with Nix, trust its signer first, if you do:', `  agent trust add ${printable(signer)}`]
      : []),
  ]
}

function signerText(signer: string, isTrusted: boolean, terminal: Terminal): string {
  return `${printable(signer)}, ${isTrusted ? terminal.style('green', 'trusted') : terminal.style('yellow', 'not trusted here')}`
}

function publisherText({ name, peerId }: ArtifactView['publisher']): string {
  return name === null ? peerId : `${printable(name)} (${peerId})`
}

function ageText(issued: string, nowMs: number): string {
  const seconds = Math.max(0, (nowMs - Date.parse(issued)) / 1_000)
  return Number.isNaN(seconds) ? '-' : showShortDuration(seconds)
}

function nothingFound(words: string): string[] {
  if (words === '') {
    return [
      'Nothing is shared yet, here or by the peers.',
      'Share something: agent publish <store path | folder | file>',
    ]
  }
  return [
    `Nothing found for ${printable(words)}.`,
    'Fewer words find more; `agent search` alone lists everything, and `agent peers` shows who was asked.',
  ]
}
