/**
 * The text that a Nix binary cache answers for a store path, and the files around it. Follows Nix's nar-info.cc and
 * http-binary-cache-store.cc; what the real client needs is in the order that it writes it.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { decodeNix32, encodeNix32 } from './nix32.ts'

/** Lower is asked first; cache.nixos.org says 40. Peers are near, and say at once what they do not have. */
const PRIORITY = 30

export type Narinfo = {
  path: string
  narHash: Digest
  narSize: number
  /** Full paths. */
  references: readonly string[]
  signatures: readonly string[]
  ca?: string | undefined
  /** Full path of what it was built by: no signature covers it. */
  deriver?: string | undefined
}

/** The file `nix-cache-info`. */
export function formatCacheInfo(storeDirectory: string): string {
  return `StoreDir: ${storeDirectory}\nWantMassQuery: 1\nPriority: ${PRIORITY}\n`
}

/**
 * Everything follows from hashes, so the answer stays true for as long as Nix remembers it. The URL's query says which path the NAR is
 * of: an agent that was started anew finds by it who has the NAR.
 */
export function formatNarinfo({ path, narHash, narSize, references, signatures, ca, deriver }: Narinfo): string {
  const hash = encodeNix32(Buffer.from(narHash, 'hex'))
  const lines = [
    `StorePath: ${path}`,
    `URL: nar/${hash}.nar?of=${baseName(path).slice(0, 32)}`,
    'Compression: none',
    `FileHash: sha256:${hash}`,
    `FileSize: ${narSize}`,
    `NarHash: sha256:${hash}`,
    `NarSize: ${narSize}`,
    `References: ${references.map(baseName).join(' ')}`,
    ...(deriver === undefined ? [] : [`Deriver: ${baseName(deriver)}`]),
    ...signatures.map((signature) => `Sig: ${signature}`),
    ...(ca === undefined ? [] : [`CA: ${ca}`]),
  ]
  return `${lines.join('\n')}\n`
}

/** The digest in the name of a NAR file, `<52 characters>.nar`. */
export function digestOfNarFile(file: string): Digest | undefined {
  if (!file.endsWith('.nar')) return undefined
  const bytes = decodeNix32(file.slice(0, -'.nar'.length), 32)
  return bytes && Buffer.from(bytes).toString('hex')
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}
