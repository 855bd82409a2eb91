/** `agent image`: the images that networks have, what a tag means and meant, and how to take one back. */
import type { Command } from 'commander'
import type {
  ImageDetail,
  ImageHistory,
  ImageList,
  ImageRemoved,
  ImageSignature,
  ImageView,
} from '../api/image-contract.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { showShortDuration, showSize } from './measures.ts'
import { fields, table } from './table.ts'
import type { Terminal } from './terminal.ts'

const LIMIT_DEFAULT = 50
const HISTORY_DEFAULT = 20
/** Of a digest, where there is no room for all. */
const DIGEST_SHOWN = 'sha256:'.length + 12

export function addImage(line: CommandLine): void {
  const parent = line.command({
    usage: 'image',
    summary: 'images of containers: what networks have, and what tags mean',
    examples: [
      ['image ls', 'those that are known here'],
      ['image show home/team/app:1', 'what it is, who has it, who signed it'],
    ],
  })
  addList(line, parent)
  addShow(line, parent)
  addHistory(line, parent)
  addRemove(line, parent)
}

function addList(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'ls [words...]',
      summary: 'the images that this node knows of, the last pushed first',
      details: 'Push one with any client: podman push 127.0.0.1:7478/NETWORK/REPOSITORY:TAG',
      examples: [
        ['image ls', 'everything'],
        ['image ls arm64 web', 'what has these words in its name, labels, platforms or publisher'],
      ],
    })
    .option('-n, --limit <number>', 'at most so many', String(LIMIT_DEFAULT))
    .option(...IN_NETWORK)
  type Options = { limit: string; network?: string }
  line.asks<[string[]], Options>(command, async ({ client, terminal, isJson }, { limit, network }, words) => {
    const result = await client.get<ImageList>('images', { q: words.join(' '), limit, network })
    if (isJson) return terminal.json(result)
    if (result.images.length === 0)
      return terminal.print('No image is known here. Push one: podman push 127.0.0.1:7478/NETWORK/REPOSITORY:TAG')
    terminal.print(...imageTable(result.images, terminal, Date.now()))
    if (result.truncated) terminal.note(`There are more: --limit ${Number(limit) * 2} shows some of them.`)
  })
}

function addShow(line: CommandLine, parent: Command): void {
  const command = line.command({
    parent,
    usage: 'show <image>',
    summary: 'all about one image: what its tag means, who has it, who signed it',
    examples: [['image show home/team/app:1', 'as clients name it, without the host']],
  })
  line.asks<[string], object>(command, async ({ client, terminal, isJson }, _options, ref) => {
    const image = await client.get<ImageDetail>(`images/${encodeURIComponent(ref)}`)
    if (isJson) return terminal.json(image)
    terminal.print(...imageScreen(image, terminal, Date.now()))
  })
}

function addHistory(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'history <image>',
      summary: 'what a tag meant before, and who moved it, as far as this node heard of it',
      examples: [['image history home/team/app:latest', 'the newest first']],
    })
    .option('-n, --limit <number>', 'at most so many', String(HISTORY_DEFAULT))
  line.asks<[string], { limit: string }>(command, async ({ client, terminal, isJson }, { limit }, ref) => {
    const history = await client.get<ImageHistory>(`images/${encodeURIComponent(ref)}/history`, { limit })
    if (isJson) return terminal.json(history)
    terminal.print(...historyTable(history, terminal))
  })
}

function addRemove(line: CommandLine, parent: Command): void {
  const command = line.command({
    parent,
    usage: 'rm <image>',
    summary: 'delete a tag, for everybody in its network',
    details: 'The image stays with those who have it, and can be pulled by its digest as long as one does.',
    examples: [['image rm home/team/app:1', 'needs what pushing needs: image:push on the repository']],
  })
  line.asks<[string], object>(command, async ({ client, terminal, isJson }, _options, ref) => {
    const removed = await client.delete<ImageRemoved>(`images/${encodeURIComponent(ref)}`)
    if (isJson) return terminal.json(removed)
    terminal.print(`Deleted ${printable(removed.name)}`, `  ${removed.digest}`)
  })
}

export function imageTable(
  images: readonly ImageView[],
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  const columns = [
    { title: 'IMAGE', cut: 'middle' as const, style: (text: string) => terminal.style('bold', text) },
    { title: 'PLATFORMS', cut: 'end' as const },
    { title: 'SIZE', align: 'right' as const },
    { title: 'PUBLISHER', cut: 'middle' as const },
    { title: 'UPDATED', align: 'right' as const },
    { title: 'HELD BY', align: 'right' as const },
    { title: 'HERE' },
    { title: 'SIGNED', cut: 'end' as const },
  ]
  const rows = images.map((image) => [
    image.name,
    platformsText(image),
    showSize(image.sizeBytes),
    image.own ? 'this node' : (image.publisher.name ?? image.publisher.peerId),
    ageText(image.updated, nowMs),
    String(image.holders),
    image.here === 'none' ? '-' : image.here,
    signedText(image.signatures),
  ])
  return table(columns, rows, terminal.columns)
}

function imageScreen(image: ImageDetail, terminal: Terminal, nowMs: number): string[] {
  const { publisher, upstream } = image
  const entries: [string, string | string[]][] = [
    ['Digest', image.digest],
    ['Network', printable(image.network ?? '')],
    ['Type', printable(image.artifactType ?? image.mediaType)],
    ['Platforms', image.platforms.map(printable).join(', ')],
    ['Size', `${showSize(image.sizeBytes)} (${image.sizeBytes} bytes)`],
    ['Labels', Object.entries(image.labels).map(([key, value]) => `${printable(key)}=${printable(value)}`)],
    [upstream === undefined ? 'Pushed by' : 'Known by', image.own ? 'this node' : publisherText(publisher)],
    ['Updated', `${ageText(image.updated, nowMs)} ago`],
    ['Upstream', upstream === undefined ? '' : upstreamText(upstream, terminal, nowMs)],
    ['Here', { all: 'all of it', part: 'some of it', none: 'nothing of it' }[image.here]],
    ['Held by', image.heldBy.map((holder) => `${publisherText(holder)}${holder.connected ? '' : ' (not connected)'}`)],
    ['Signatures', image.signatures.map((one) => signatureText(one, terminal))],
  ]
  return [terminal.style('bold', printable(image.name)), '', ...fields(entries.filter(([, value]) => value.length > 0))]
}

function historyTable({ moves }: ImageHistory, terminal: Pick<Terminal, 'columns'>): string[] {
  const columns = [
    { title: 'WHEN' },
    { title: 'DIGEST' },
    { title: 'BY', cut: 'middle' as const },
    { title: '', cut: 'end' as const },
  ]
  const rows = moves.map(({ moved, digest, publisher, counts }) => [
    moved.replace('T', ' ').replace(/\.\d+Z$/, 'Z'),
    digest === null ? 'deleted' : digest.slice(0, DIGEST_SHOWN),
    publisher.name ?? publisher.peerId,
    counts ? '' : 'may not push there',
  ])
  return table(columns, rows, terminal.columns)
}

function platformsText({ platforms, artifactType }: ImageView): string {
  return platforms.length > 0 ? platforms.join(', ') : (artifactType ?? '-')
}

function signedText(signatures: readonly ImageSignature[]): string {
  if (signatures.length === 0) return '-'
  const good = signatures.find(({ verified }) => verified === true)
  if (good !== undefined) return good.key ?? 'yes'
  return signatures.some(({ verified }) => verified === null) ? 'not checked' : 'not by a known key'
}

function signatureText({ digest, artifactType, publisher, verified, key }: ImageSignature, terminal: Terminal): string {
  const verdict =
    verified === null
      ? 'not checked: no key is configured (image_keys), or it is not at hand'
      : verified
        ? terminal.style('green', `verified by ${printable(key ?? '')}`)
        : terminal.style('yellow', 'not by a key of image_keys')
  const from = publisher === '' ? '' : `, said by ${printable(publisher)}`
  return `${digest.slice(0, DIGEST_SHOWN)} (${printable(artifactType)}${from}): ${verdict}`
}

function upstreamText(
  { registry, checked, fresh, reason }: NonNullable<ImageView['upstream']>,
  terminal: Terminal,
  nowMs: number,
): string {
  const said = `${printable(registry)}, asked ${ageText(checked, nowMs)} ago`
  if (reason !== undefined) return terminal.style('yellow', `${said}; it does not answer now: ${printable(reason)}`)
  return fresh ? said : `${said}; asked again when it is pulled`
}

function publisherText({ name, peerId }: ImageView['publisher']): string {
  return name === null ? peerId : `${printable(name)} (${peerId})`
}

function ageText(time: string, nowMs: number): string {
  const seconds = Math.max(0, (nowMs - Date.parse(time)) / 1_000)
  return Number.isNaN(seconds) ? '-' : showShortDuration(seconds)
}
