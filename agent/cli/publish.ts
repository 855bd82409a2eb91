/** `agent publish` and `agent unpublish`: what this node offers. */
import type { ArtifactView, PublishResult } from '../api/contract.ts'
import { type CommandLine, IN_NETWORK, type Session } from './command-line.ts'
import { count } from './measures.ts'
import { Progress } from './progress.ts'
import { artifactText } from './search.ts'

export function addPublish(line: CommandLine): void {
  const command = line
    .command({
      usage: 'publish <path>',
      summary: 'share a Nix store path with its closure, a folder or a file',
      details:
        'A store path (or a link to one, such as ./result) is served from the Nix store; files and folders are copied to the agent. `-` is standard input.',
      examples: [
        ['publish ./result', 'what nix-build made, with all it needs'],
        ['publish ./site --name site -d "our pages"', 'a folder'],
        ['publish - --name dump.sql < dump.sql', 'standard input, as a file'],
        ['publish ./notes --network home', 'for the members of a closed network'],
      ],
    })
    .option('--name <name>', 'what others find it by; otherwise from the path')
    .option('-d, --description <text>', 'what it is, for those who search')
    .option(...IN_NETWORK)
  line.asks<[string], Naming>(command, async (session, options, path) => {
    const { terminal, isJson } = session
    const result = await publish(session, path, options)
    if (isJson) return terminal.json(result)
    const { artifact, announcedTo } = result
    terminal.print(
      `Published ${artifactText(artifact)}`,
      `  ${artifact.cid}`,
      announcedTo > 0
        ? `  ${count(announcedTo, 'peer')} told; there: agent get ${artifact.name} --to DIR`
        : '  No peer is connected: those that come will be told.',
    )
    if (artifact.root !== undefined && terminal.isInteractive)
      terminal.note('', `With Nix there (see agent nix-conf):  nix-store --realise ${artifact.root}`)
  })
}

export function addUnpublish(line: CommandLine): void {
  const command = line
    .command({
      usage: 'unpublish <ref>',
      summary: 'stop sharing an artifact of this node',
      details: 'Peers forget it; copies that they fetched stay theirs.',
      examples: [['unpublish hello', 'by name or CID']],
    })
    .option(...IN_NETWORK)
  line.asks<[string], { network?: string }>(command, async ({ client, terminal, isJson }, { network }, ref) => {
    const artifact = await client.post<ArtifactView>('unpublish', { ref, network })
    if (isJson) terminal.json(artifact)
    else terminal.print(`No longer shared: ${artifactText(artifact)}`)
  })
}

type Naming = { name?: string; description?: string; network?: string }

async function publish(session: Session, path: string, { name, ...said }: Naming): Promise<PublishResult> {
  const { client, terminal } = session
  const signal = session.interrupted()
  const { sourceOf } = await import('./source.ts')
  const source = await sourceOf(path, signal)
  if (source.kind === 'store path') {
    const request = { storePath: source.path, ...said, ...(name !== undefined && { name }) }
    return await client.post<PublishResult>('publish', request, signal)
  }
  using progress = new Progress(terminal.progressOutput, `Sending ${name ?? source.name}`)
  async function* shown(bytes: AsyncIterable<Uint8Array>) {
    let doneBytes = 0
    for await (const chunk of bytes) {
      yield chunk
      doneBytes += chunk.byteLength
      progress.show(doneBytes, source.kind === 'store path' ? undefined : source.sizeBytes)
    }
  }
  const query = { type: source.kind, name: name ?? source.name, ...said }
  return await client.upload<PublishResult>('upload', query, shown(source.bytes), signal)
}
