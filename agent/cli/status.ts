/** `agent status`: whether this node is well, at a glance, and what to do if it is not. */
import type { PeerView, Status, Warning } from '../api/contract.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { type Ending, endingOf, endingText } from './lifetime.ts'
import { count, showDuration, showMs, showSize } from './measures.ts'
import { shortAddress } from './peers.ts'
import { fields, shorten } from './table.ts'
import type { Terminal } from './terminal.ts'

/** More names than this fill the line; `agent peers` has them all. */
const PEERS_SHOWN_MAX = 4

export function addStatus(line: CommandLine): void {
  const command = line.command({
    usage: 'status',
    summary: 'how this node is, and what to do if it is not well',
    examples: [
      ['status', 'one screen'],
      ["status --json | jq '.peers | length'", 'for scripts'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const status = await client.get<Status>('status')
    if (isJson) terminal.json(status)
    else terminal.print(...statusScreen(status, terminal))
  })
}

/** The screen, as lines. */
export function statusScreen(
  status: Status,
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs = Date.now(),
): string[] {
  const { warnings } = status
  const health =
    warnings.length === 0
      ? terminal.style('green', '● well')
      : terminal.style('yellow', `● ${count(warnings.length, 'thing')} to look at`)
  const entries: [string, string | string[]][] = [
    ['Peer id', status.peerId],
    ['Version', `${printable(status.version)}, up ${showDuration(status.uptimeSeconds)}`],
    ['Network', networksText(status, nowMs)],
    ['Peers', peersText(status)],
    ['Listens', status.listen.length > 0 ? status.listen.map(shortAddress) : 'nowhere: this node only dials'],
    ['Shares', sharesText(status)],
    ['Services', servicesText(status)],
    ['Content', contentText(status)],
    ['Nix cache', cacheText(status)],
  ]
  // All but the peer id, which people copy, is cut to the terminal.
  const shown = fields(entries.filter(([, value]) => value.length > 0))
  const endings = status.networks.flatMap(({ member }) => (member === undefined ? [] : [endingOf(member, nowMs)]))
  return [
    `${terminal.style('bold', printable(status.name))}  ${health}`,
    '',
    ...shown
      .map((text) => (terminal.columns && !text.startsWith('Peer id') ? shorten(text, terminal.columns) : text))
      .map((text) => coloured(text, endings, terminal)),
    ...warnings.flatMap((warning) => ['', ...warningText(warning, terminal)]),
  ]
}

/** A warning and what to do, on lines of their own that nothing cuts. */
function warningText({ message, next }: Warning, terminal: Pick<Terminal, 'style'>): string[] {
  return [`${terminal.style('yellow', '!')} ${printable(message)}`, ...(next ? [`  ${printable(next)}`] : [])]
}

/** Closed networks first: the open one is everybody's. */
function networksText({ networks }: Status, nowMs: number): string[] {
  const closed = networks.filter(({ kind }) => kind === 'closed').map((network) => closedText(network, nowMs))
  const open = networks.filter(({ kind }) => kind === 'open').map(openText)
  if (open.length > 0) return [...closed, ...open]
  return [...closed, closed.length > 0 ? 'the open one is off' : 'none, and the open one is off: agent join']
}

function openText({ name, nodes }: Status['networks'][number]): string {
  return `${printable(name)}, ${nodes > 1 ? `${count(nodes, 'node')} known` : 'no other node known yet'}`
}

/** `home: this node is pear, 2 of 3 members here, certificate ends in 80 d`. */
function closedText({ name, nodes, member, members = 0 }: Status['networks'][number], nowMs: number): string {
  const shown = printable(name)
  if (member === undefined) return `${shown} (closed), ${count(nodes, 'node')} known`
  const certificate = `certificate ${endingText(endingOf(member, nowMs))}`
  const here = `${shown}: this node is ${printable(member.name)}`
  if (member.state === 'member')
    return `${here}, ${nodes} of ${count(Math.max(nodes, members), 'member')} here, ${certificate}`
  const state = member.state === 'expired' ? '' : `${printable(member.state.replaceAll('-', ' '))}, `
  return `${here}, but ${state}${certificate}: agent network show ${shown}`
}

/** Only what was not cut off can be coloured. */
function coloured(text: string, endings: readonly Ending[], terminal: Pick<Terminal, 'style'>): string {
  for (const ending of endings) {
    const { style } = ending
    const shown = `certificate ${endingText(ending)}`
    if (style === undefined || !text.includes(shown)) continue
    return text.replace(shown, () => `certificate ${terminal.style(style, endingText(ending))}`)
  }
  return text
}

function peersText({ peers }: Status): string {
  if (peers.length === 0) return 'none'
  const nearest = [...peers].sort((a, b) => (a.rttMs ?? Infinity) - (b.rttMs ?? Infinity))
  const names = nearest.slice(0, PEERS_SHOWN_MAX).map(peerText)
  const more = peers.length > names.length ? [`${peers.length - names.length} more`] : []
  return `${peers.length} connected: ${[...names, ...more].join(', ')}`
}

/** `pear 1.3 ms`, with the closed networks that are shared with it. */
function peerText({ name, peerId, rttMs, networks }: PeerView): string {
  const shown = name === null ? shorten(peerId, 16, 'middle') : printable(name)
  const closed = networks.filter((one) => one !== 'open')
  return [
    shown,
    ...(rttMs === null ? [] : [showMs(rttMs)]),
    ...(closed.length > 0 ? [`(${printable(closed.join(', '))})`] : []),
  ].join(' ')
}

function sharesText({ artifacts, content, networks }: Status): string {
  const paths = content.pathsShared > 0 ? ` (${count(content.pathsShared, 'store path')})` : ''
  const inStore = networks.filter(({ share }) => share === 'store').map(({ name }) => printable(name))
  const store = inStore.length > 0 ? `the Nix store in ${inStore.join(', ')}` : ''
  const published = artifacts.own > 0 ? count(artifacts.own, 'artifact') : ''
  const shared = [published, store].filter(Boolean).join(' and ')
  const own = shared === '' ? 'nothing yet: agent publish <path>' : `${shared}${paths}`
  const known = artifacts.known - artifacts.own
  return known > 0 ? `${own}; ${known} of others known: agent search` : own
}

/** Nothing where there are none: not everybody has services. */
function servicesText({ services }: Status): string {
  if (services.length === 0) return ''
  const own = services.filter(({ offer }) => offer !== null)
  const states = own.map(({ address, offer }) => `${printable(address)} ${offer?.state}`).join(', ')
  const others = services.length - own.length
  const more = others > 0 ? `${count(others, 'service')} of others: agent service list` : ''
  return [states === '' ? '' : `offers ${states}`, more].filter((text) => text !== '').join('; ')
}

function contentText({ content }: Status): string {
  const { blobs, bytes, quotaBytes, fetchedBytes, servedBytes, lanes } = content
  const laneBytes = lanes.fetchedBytes + lanes.servedBytes
  const byLanes = laneBytes > 0 ? ` (${showSize(laneBytes)} of that over lanes)` : ''
  const moved =
    fetchedBytes + servedBytes > 0
      ? `; fetched ${showSize(fetchedBytes)}, served ${showSize(servedBytes)}${byLanes}`
      : ''
  return `${count(blobs, 'blob')}, ${showSize(bytes)} of ${showSize(quotaBytes)}${moved}`
}

function cacheText({ http, content }: Status): string {
  if (http === null) return 'off'
  const asked = content.hits + content.misses
  return `${printable(http)}/nix${asked > 0 ? `, ${count(content.hits, 'hit')}, ${count(content.misses, 'miss', 'misses')}` : ''}`
}
