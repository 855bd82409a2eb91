/**
 * Brings what a person named to this node: a Nix closure named otherwise than by its CID only when somebody who is trusted signed it.
 */
import type { CID } from 'multiformats/cid'
import { blobOf, type Digest } from '../../protocols/artifact/artifact.ts'
import { type BringDeps, type Brought, bringArtifact, cidIn } from '../artifacts/bring.ts'
import type { Artifact } from '../catalog/artifacts.ts'
import type { Catalogs } from '../catalog/catalogs.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import type { Substituter } from '../nix/substituter.ts'
import type { Content } from './content.ts'

export type BringingDeps = {
  catalogs: Pick<Catalogs, 'holders' | 'resolve'>
  content: Pick<Content, 'blobs' | 'holdings' | 'fetcher'>
  sources: BringDeps['sources']
  substituter: Pick<Substituter, 'vouch'>
}

/** `entry` is what a record says of it, where one names it; `network` the one that it was brought from, by its id. */
export type BroughtArtifact = {
  cid: CID
  network: string
  entry: Artifact | undefined
  brought: Brought
  /** Every blob of it, manifest and signatures included. */
  digests: Digest[]
}

/** @throws {AgentError} as bringArtifact; `not-allowed` when nobody who is trusted signed it. */
export async function bring(
  { ref, network: wanted }: { ref: string; network: string | undefined },
  { catalogs, content, sources, substituter }: BringingDeps,
  { onProgress, pin }: Pick<BringDeps, 'onProgress' | 'pin'>,
  signal: AbortSignal,
): Promise<BroughtArtifact> {
  const { blobs, holdings, fetcher } = content
  const named = (digest: Digest, what: string) => blobs.index.notes.name(digest, what)
  const deps = { blobs, holdings, fetcher, sources, onProgress, named, ...(pin !== undefined && { pin }) }
  const cid = cidIn(ref)
  // Content named by its hash needs nobody's word for it: neither a record, nor a signature.
  if (cid !== undefined && catalogs.holders(cid.toString(), wanted).length === 0) {
    const network = wanted ?? OPEN_NETWORK_ID
    const brought = await bringArtifact(cid, { ...deps, network }, signal)
    return { cid, network, entry: undefined, brought, digests: digestsOf(cid, brought, []) }
  }
  const entry = catalogs.resolve(ref, wanted)
  const { network, body, name } = entry
  if (cid === undefined && body.type === 'nix' && !entry.isOwn) await substituter.vouch(body, network, signal)
  // Whoever pins a closure wants to install from it later; whoever gets it wants its files.
  const also = body.type === 'nix' && pin !== undefined ? [blobOf(body.signatures).digest] : []
  const brought = await bringArtifact(body.cid, { ...deps, network, name, also }, signal)
  return { cid: body.cid, network, entry, brought, digests: digestsOf(body.cid, brought, also) }
}

function digestsOf(cid: CID, { parts }: Brought, also: readonly Digest[]): Digest[] {
  return [...new Set([blobOf(cid).digest, ...also, ...parts.map(({ digest }) => digest)])]
}
