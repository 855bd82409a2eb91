/**
 * `agent get`: an artifact, fetched by the agent and then put into a directory of the caller's, who needs no right but to connect to
 * the agent. What arrived stays with the agent, so a command that was interrupted goes on where it was.
 */
import type { FetchResult } from '../api/contract.ts'
import { printable } from '../printable.ts'
import { type CommandLine, IN_NETWORK, type Session } from './command-line.ts'
import { Interrupted } from './interruption.ts'
import { showMs, showSize } from './measures.ts'
import { Progress } from './progress.ts'
import { artifactText } from './search.ts'

export function addGet(line: CommandLine): void {
  const command = line
    .command({
      usage: 'get <ref>',
      summary: 'fetch an artifact from the peers that have it',
      details:
        'The reference is a name, publisher/name, or a CID. Every byte is checked against the CID; a Nix closure named otherwise must also be signed by a key that the agent trusts. A file or folder becomes DIR/<name>, a Nix closure DIR/nix/store/...; what exists is never overwritten.',
      examples: [
        ['get site --to ./public', 'into ./public/site'],
        ['get apple/hello --to /tmp/hello', 'the one that the node apple publishes'],
      ],
    })
    .option('--to <dir>', 'directory to put it in', '.')
    .option(...IN_NETWORK)
  line.asks<[string], { to: string; network?: string }>(command, async (session, { to, network }, ref) => {
    const { terminal, isJson } = session
    const startedAt = performance.now()
    const signal = session.interrupted()
    try {
      const { artifact, parts } = await fetchArtifact(session, { ref, network }, signal)
      const { place } = await import('./place.ts')
      const placed = await placeParts(session, { artifact, parts }, to, place, signal)
      if (isJson) return terminal.json({ artifact, files: placed })
      const took = performance.now() - startedAt
      const rate = took > 0 ? `, ${showSize(artifact.sizeBytes / (took / 1_000))}/s` : ''
      terminal.print(`Got ${artifactText(artifact)} in ${showMs(took)}${rate}`)
      const [first] = placed
      if (artifact.type !== 'nix')
        terminal.print(`  ${first?.path}${first?.isNew ? '' : ' (was there already, identical)'}`)
      else {
        terminal.print(`  ${placed.length} store paths below ${to}/nix/store`)
        if (terminal.isInteractive && artifact.root !== undefined)
          terminal.note(
            '',
            `To install it on this machine (see agent nix-conf):  nix-store --realise ${printable(artifact.root)}`,
          )
      }
    } catch (error) {
      if (signal.aborted)
        throw new Interrupted('Interrupted. What has arrived stays with the agent: run the command again to go on.')
      throw error
    }
  })
}

async function fetchArtifact(
  { client, terminal }: Session,
  asked: { ref: string; network: string | undefined },
  signal: AbortSignal,
): Promise<FetchResult> {
  using progress = new Progress(terminal.progressOutput, `Fetching ${asked.ref}`)
  for await (const event of client.events('fetch', asked, signal)) {
    if (event.type === 'progress') progress.show(event.doneBytes, event.totalBytes)
    else if (event.type === 'done') return event.result
  }
  throw new Error('an answer without an end is thrown by the client')
}

async function placeParts(
  { client, terminal }: Session,
  { artifact, parts }: FetchResult,
  to: string,
  place: typeof import('./place.ts').place,
  signal: AbortSignal,
): Promise<{ path: string; isNew: boolean }[]> {
  using progress = new Progress(terminal.progressOutput, `Writing ${artifact.name}`)
  const totalBytes = parts.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  let doneBytes = 0
  const placed: { path: string; isNew: boolean }[] = []
  for (const part of parts) {
    async function* bytes() {
      for await (const chunk of client.download(`blobs/${part.digest}`, signal)) {
        doneBytes += chunk.byteLength
        progress.show(doneBytes, totalBytes)
        yield chunk
      }
    }
    placed.push(await place(part, { name: artifact.name, directory: to }, bytes, signal))
  }
  return placed
}
