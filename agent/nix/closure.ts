/**
 * Makes an artifact of a store path: the manifest of its closure, the signatures of its paths, and the body of the record that announces
 * them. The NARs themselves are not copied; NarSource reads them from the store when a peer asks.
 *
 * Whatever was built here, or bears no signature, is signed with this agent's cache key; signatures that Nix has are passed on.
 */
import {
  type ClosureManifest,
  DESCRIPTION_LENGTH_MAX,
  type Digest,
  encodeManifest,
  encodeSignatures,
  MANIFEST_BYTES_MAX,
  manifestCid,
  NAME_LENGTH_MAX,
  NAME_PATTERN,
  type NixArtifactBody,
  pathPrefix,
} from '../../protocols/artifact/artifact.ts'
import type { BlobStore } from '../content/content.ts'
import { AgentError } from '../error.ts'
import type { NixStore, PathInfo } from './nix-store.ts'
import type { CacheKey } from './signing.ts'

/** A reader takes no more of one path, and no longer ones. */
const SIGNATURES_MAX = 8
const SIGNATURE_LENGTH_MAX = 256

export type StorePathArtifact = {
  name: string
  body: NixArtifactBody
  manifest: ClosureManifest
  /** Of the two blobs that were stored and pinned. */
  blobs: { manifest: Digest; signatures: Digest }
}

type Deps = {
  store: Pick<NixStore, 'storePathOf' | 'closure' | 'isInstalled'>
  key: Pick<CacheKey, 'publicKey' | 'sign'>
  blobs: Pick<BlobStore, 'write'>
}

type Options = {
  /** The path's own name if not given. */
  name?: string | undefined
  description?: string | undefined
  /** Why the blobs are kept; the caller unpins them by it when the artifact is withdrawn. */
  pin: string
  signal: AbortSignal
}

/**
 * Stores and pins the manifest and the signatures of `storePath` and all that it needs.
 *
 * @throws {AgentError} `not-found` when it is not a valid path of the store, `usage` for a bad name or description, `limit` when it needs
 *   too many paths.
 */
export async function publishStorePath(storePath: string, options: Options, deps: Deps): Promise<StorePathArtifact> {
  return await publishPaths(storePath, closureOf(storePath, deps.store), options, deps)
}

/**
 * The same for paths that need not be in the store: `infos` are all of the closure, sorted by path.
 *
 * @throws {AgentError} `usage`, `limit`
 */
export async function publishPaths(
  storePath: string,
  infos: readonly PathInfo[],
  options: Options,
  deps: Pick<Deps, 'key' | 'blobs'>,
): Promise<StorePathArtifact> {
  const { name, description } = checkTexts(storePath, options)
  const manifest = manifestOf(storePath, infos)
  const manifestBytes = encodeManifest(manifest)
  const signatureBytes = encodeSignatures(infos.map((info) => signaturesOf(info, deps.key)))
  if (Math.max(manifestBytes.byteLength, signatureBytes.byteLength) > MANIFEST_BYTES_MAX) {
    throw new AgentError('limit', `the manifest of ${storePath} and its ${infos.length} paths is too large`)
  }
  const write = (bytes: Uint8Array) => deps.blobs.write(undefined, [bytes], options.signal, { pin: options.pin })
  const stored = { manifest: await write(manifestBytes), signatures: await write(signatureBytes) }
  return {
    name,
    body: {
      type: 'nix',
      cid: manifestCid(manifestBytes),
      sizeBytes: infos.reduce((sum, { narSize }) => sum + narSize, 0),
      description,
      root: storePath,
      signatures: manifestCid(signatureBytes),
      signer: deps.key.publicKey.text,
      paths: prefixesOf(infos),
    },
    manifest,
    blobs: { manifest: stored.manifest.digest, signatures: stored.signatures.digest },
  }
}

function checkTexts(storePath: string, options: Options): { name: string; description: string } {
  const own = storePath.slice(storePath.lastIndexOf('/') + 1).slice(33)
  const name = options.name ?? own.replace(/^\.+/, '').slice(0, NAME_LENGTH_MAX)
  if (name.length > NAME_LENGTH_MAX || !NAME_PATTERN.test(name)) {
    throw new AgentError('usage', `${JSON.stringify(name)} cannot be the name of an artifact`, {
      next: `Give --name: letters, digits and + - . _ ? =, at most ${NAME_LENGTH_MAX} of them, not starting with a dot.`,
    })
  }
  const description = options.description ?? ''
  if (description.length > DESCRIPTION_LENGTH_MAX) {
    throw new AgentError('usage', `the description is longer than ${DESCRIPTION_LENGTH_MAX} characters`)
  }
  return { name, description }
}

function closureOf(storePath: string, store: Deps['store']): PathInfo[] {
  if (!store.isInstalled) {
    throw new AgentError('not-found', 'there is no Nix store on this machine', {
      next: 'Install Nix, or publish a folder instead.',
    })
  }
  const infos = store.storePathOf(storePath) === storePath ? store.closure(storePath) : undefined
  if (!infos) {
    throw new AgentError('not-found', `${storePath} is not a valid path of the Nix store`, {
      next: `Build it first: \`nix-store --realise ${storePath}\`.`,
    })
  }
  return infos
}

function manifestOf(root: string, infos: readonly PathInfo[]): ClosureManifest {
  const indices = new Map(infos.map(({ path }, at) => [path, at]))
  const indexOf = (path: string) => indices.get(path) ?? -1
  return {
    v: 1,
    type: 'closure',
    root: indexOf(root),
    paths: infos.map(({ path, narHash, narSize, references, ca }) => ({
      path,
      nar: Buffer.from(narHash, 'hex'),
      sizeBytes: narSize,
      references: references.map(indexOf).sort((one, other) => one - other),
      ...(ca !== undefined && { ca }),
    })),
  }
}

export function signaturesOf(info: PathInfo, key: Deps['key']): string[] {
  const theirs = info.signatures.filter((signature) => signature.length <= SIGNATURE_LENGTH_MAX)
  const own = info.ultimate || theirs.length === 0 ? [key.sign(info)] : []
  return [...new Set([...own, ...theirs])].slice(0, SIGNATURES_MAX)
}

function prefixesOf(infos: readonly PathInfo[]): Uint8Array<ArrayBuffer> {
  // Sorted by path, and so by prefix.
  return Buffer.concat(infos.map(({ path }) => pathPrefix(path.slice(path.lastIndexOf('/') + 1))))
}
