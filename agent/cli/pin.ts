/** `agent pin`, `agent unpin` and `agent pins`: what this node keeps whatever the quota. */
import type { PinEvent, PinList, PinView } from '../api/room-contract.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK, type Session } from './command-line.ts'
import { Interrupted } from './interruption.ts'
import { count, showShortDuration, showSize } from './measures.ts'
import { Progress } from './progress.ts'
import { table } from './table.ts'
import type { Terminal } from './terminal.ts'

/** What the network of everybody is called. */
const OPEN = 'open'

export function addPin(line: CommandLine): void {
  const command = line
    .command({
      usage: 'pin <ref>',
      summary: 'keep an artifact on this node whatever the quota; fetched first if it is not here',
      details:
        'The reference is a name, publisher/name, or a CID. All its parts are kept until it is unpinned, also when its publisher withdraws it. Store paths that this node shares from its own Nix store stay there: a GC root keeps those.',
      examples: [
        ['pin hello', 'what is called hello'],
        ['pin apple/toolchain --network home', 'the one that the node apple publishes there'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[string], { network?: string }>(command, async (session, { network }, ref) => {
    const { terminal, isJson } = session
    const signal = session.interrupted()
    try {
      const pin = await pinned(session, { ref, network }, signal)
      if (isJson) return terminal.json(pin)
      terminal.print(`Pinned ${pinText(pin)}`, `  ${pin.cid}`)
      if (pin.inStore > 0)
        terminal.note(`  ${count(pin.inStore, 'part')} of it in the Nix store: a GC root keeps them there.`)
    } catch (error) {
      if (signal.aborted)
        throw new Interrupted('Interrupted, and not pinned. What has arrived is used when the command is run again.')
      throw error
    }
  })
}

export function addUnpin(line: CommandLine): void {
  const command = line
    .command({
      usage: 'unpin <ref>',
      summary: 'keep an artifact no longer',
      details: 'It stays until its room is needed, or `agent gc --all` frees it.',
      examples: [['unpin hello', 'by the name it was pinned by, its CID or store path']],
    })
    .option(...IN_NETWORK)
  line.asks<[string], { network?: string }>(command, async ({ client, terminal, isJson }, { network }, ref) => {
    const pin = await client.delete<PinView>(`pins/${encodeURIComponent(ref)}`, { network })
    if (isJson) terminal.json(pin)
    else terminal.print(`No longer pinned: ${pinText(pin)}`)
  })
}

export function addPins(line: CommandLine): void {
  const command = line.command({
    usage: 'pins',
    summary: 'what is pinned, since when, and whether all of it is here',
    examples: [
      ['pins', 'the oldest first'],
      ["pins --json | jq -r '.pins[].cid'", 'for scripts'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const list = await client.get<PinList>('pins')
    if (isJson) return terminal.json(list)
    if (list.pins.length === 0) return terminal.print('Nothing is pinned. Keep something: agent pin <ref>')
    terminal.print(...pinTable(list.pins, terminal, Date.now()))
  })
}

async function pinned(
  { client, terminal }: Session,
  asked: { ref: string; network: string | undefined },
  signal: AbortSignal,
): Promise<PinView> {
  using progress = new Progress(terminal.progressOutput, `Fetching ${asked.ref}`)
  for await (const event of client.events<PinEvent>('pins', asked, signal)) {
    if (event.type === 'progress') progress.show(event.doneBytes, event.totalBytes)
    else if (event.type === 'done') return event.result
  }
  throw new Error('an answer without an end is thrown by the client')
}

export function pinTable(
  pins: readonly PinView[],
  terminal: Pick<Terminal, 'style' | 'columns'>,
  nowMs: number,
): string[] {
  const isMixed = pins.some(({ network }) => network !== OPEN)
  const columns = [
    { title: 'NAME', cut: 'end' as const, style: (text: string) => terminal.style('bold', text) },
    ...(isMixed ? [{ title: 'NETWORK', cut: 'end' as const }] : []),
    { title: 'KIND' },
    { title: 'SIZE', align: 'right' as const },
    { title: 'PARTS', align: 'right' as const },
    { title: 'PINNED', align: 'right' as const },
    { title: 'HERE', style: (text: string) => (text === 'all' ? text : terminal.style('yellow', text)) },
  ]
  const rows = pins.map(({ name, network, type, sizeBytes, parts, inStore, missing, pinned: since }) => [
    name,
    ...(isMixed ? [network] : []),
    type,
    showSize(sizeBytes),
    String(parts),
    ageText(since, nowMs),
    missing > 0 ? `${missing} gone` : inStore > 0 ? `${inStore} in the store` : 'all',
  ])
  return table(columns, rows, terminal.columns)
}

function pinText({ name, type, pathCount, sizeBytes, network }: PinView): string {
  const paths = pathCount === undefined ? '' : `${count(pathCount, 'path')}, `
  return `${printable(name)} (${type}, ${paths}${showSize(sizeBytes)})${network === OPEN ? '' : ` in ${printable(network)}`}`
}

function ageText(time: string, nowMs: number): string {
  const seconds = Math.max(0, (nowMs - Date.parse(time)) / 1_000)
  return Number.isNaN(seconds) ? '-' : showShortDuration(seconds)
}
