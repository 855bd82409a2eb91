/**
 * Whom to ask for what is known of paths and for their NARs, in one network: those who publish artifacts with them and those in whose
 * stores they are, then whoever else holds these artifacts; each peer once.
 */
import type { NixArtifactBody } from '../../protocols/artifact/artifact.ts'
import type { Holder } from '../catalog/filters.ts'
import type { Candidate } from './path-faults.ts'

/** Peers of a network that may hold an artifact; those who publish it may be among them. */
export type Sources = (
  cid: NixArtifactBody['cid'],
  network: string,
  signal: AbortSignal,
) => Iterable<string> | AsyncIterable<string>

/** Networks in which somebody has what is wanted, that in which it was found first. */
export function networksOf(first: string | undefined, all: readonly { network: string }[]): string[] {
  return [...new Set([first, ...all.map(({ network }) => network)])].filter((network) => network !== undefined)
}

/** All are of one network. */
export async function* narPeers(
  { candidates, holders = [] }: { candidates: readonly Candidate[]; holders?: readonly Holder[] },
  sources: Sources,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const seen = new Set([...candidates, ...holders].map(({ peerId }) => peerId))
  yield* seen
  const distinct = new Map(candidates.map(({ body, network }) => [body.cid.toString(), { cid: body.cid, network }]))
  for (const { cid, network } of distinct.values()) {
    for await (const peerId of sources(cid, network, signal)) {
      if (seen.has(peerId)) continue
      seen.add(peerId)
      yield peerId
    }
  }
}
