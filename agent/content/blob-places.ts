/** Where in the blob directory what is: see blobs.ts. */
import { join } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'

/** Blobs that are being fetched, and those that are being written. */
export const PARTIAL = 'partial'
export const INCOMING = 'incoming'

/** What is being fetched, and for which network. */
export type Fetching = { digest: Digest; network: string }

export function blobPath(directory: string, digest: Digest): string {
  return join(directory, digest.slice(0, 2), digest)
}

export function partialPath(directory: string, fetching: Fetching): string {
  return join(directory, PARTIAL, partialName(fetching))
}

/** In the open network the digest alone, as it was before there were others. */
export function partialName({ digest, network }: Fetching): string {
  return network === OPEN_NETWORK_ID ? digest : `${digest}.${network}`
}
