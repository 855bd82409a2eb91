/**
 * Brings an artifact, whatever its type, from peers of one network to this node: its manifest first, where it has one, then every blob that the manifest names.
 * What is already here (fetched before, or in the Nix store) is not fetched again, so an interrupted `get` goes on where it was.
 */
import { randomUUID } from 'node:crypto'
import { CID } from 'multiformats/cid'
import {
  blobOf,
  type Digest,
  decodeManifest,
  MANIFEST_BYTES_MAX,
  type Manifest,
} from '../../protocols/artifact/artifact.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { type BlobFetcher, type BlobHolder, type BlobStore, TEMPORARY_PIN } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'

/** At once. Large blobs share what line there is; of small ones many fit in a round trip. */
const LARGE_AT_ONCE = 4
const SMALL_AT_ONCE = 32

type BringPart = { digest: Digest; sizeBytes: number; kind: 'file' | 'nar'; path?: string }

/** What was brought: `root` is the store path that a closure is of. */
export type Brought = { type: 'file' | 'folder' | 'nix'; root?: string; parts: BringPart[] }

/** The size where it is known, or a bound where it is not. */
type Wanted = { digest: Digest; sizeBytes?: number; sizeBytesMax?: number }

export type BringDeps = {
  blobs: Pick<BlobStore, 'pin' | 'unpin' | 'sizeOf'>
  holdings: Pick<BlobHolder, 'open'>
  fetcher: Pick<BlobFetcher, 'fetch'>
  /** The network that it is brought from, by its id in hex. */
  network: string
  /** Peers of a network that may have an artifact and its parts, best first. */
  sources: (cid: CID, network: string, signal: AbortSignal) => AsyncIterable<string>
  onProgress: (doneBytes: number, totalBytes: number) => void
  /** What blobs are pinned for meanwhile and afterwards, until the caller takes it away; without it they are let go at the end. */
  pin?: string
  /** More blobs of the artifact than its manifest names: the signatures of a closure. */
  also?: readonly Digest[]
  /** What the artifact is called, and who remembers what a blob is. */
  name?: string
  named?: (digest: Digest, what: string) => void
}

/**
 * Resolves when every part is on this node.
 *
 * @throws {AgentError} `corrupt` naming the peers that lied, `not-found` when nobody has it, `limit`, `cancelled`.
 */
export async function bringArtifact(cid: CID, deps: BringDeps, signal: AbortSignal): Promise<Brought> {
  const pin = deps.pin ?? `${TEMPORARY_PIN}${randomUUID()}`
  const pinned = new Set<Digest>()
  const { digest, isManifest } = blobOf(cid)
  /** One part that fails ends the others. */
  const failed = new AbortController()
  const both = AbortSignal.any([signal, failed.signal])
  const fetch = async ({ digest: wanted, ...size }: Wanted, onProgress: BringDeps['onProgress']) => {
    // Also what is here already: room for the rest must not be made of it.
    pinned.add(wanted)
    deps.blobs.pin(wanted, pin)
    if (await isHere(deps.holdings, wanted)) return
    const { network } = deps
    const sources = deps.sources(cid, network, both)
    await deps.fetcher.fetch(wanted, { ...size, network, sources, signal: both, onProgress })
  }
  const { name, named } = deps
  const note = (wanted: Digest, what: string | undefined) => what !== undefined && named?.(wanted, what)
  try {
    if (!isManifest) {
      await fetch({ digest }, deps.onProgress)
      note(digest, name)
      return { type: 'file', parts: [{ digest, sizeBytes: deps.blobs.sizeOf(digest) ?? 0, kind: 'file' }] }
    }
    for (const small of [digest, ...(deps.also ?? [])]) {
      await fetch({ digest: small, sizeBytesMax: MANIFEST_BYTES_MAX }, () => undefined)
      note(small, name && `${name} (${small === digest ? 'manifest' : 'signatures'})`)
    }
    const manifest = await readManifest(deps.holdings, digest, signal)
    const parts = partsOf(manifest)
    const progress = new Progress(parts, deps.onProgress)
    const bring = async (part: BringPart) => {
      const { digest, sizeBytes } = part
      await fetch({ digest, sizeBytes }, (doneBytes) => progress.update(part, doneBytes)).catch(failOn(part))
      note(digest, part.path ?? name)
      progress.update(part, part.sizeBytes)
    }
    const isSmall = ({ sizeBytes }: BringPart) => sizeBytes < PIECE_BYTES
    await Promise.all([
      eachAtOnce(parts.filter(isSmall), SMALL_AT_ONCE, bring),
      eachAtOnce(
        parts.filter((part) => !isSmall(part)),
        LARGE_AT_ONCE,
        bring,
      ),
    ])
    if (manifest.type === 'folder') return { type: 'folder', parts }
    return { type: 'nix', root: manifest.paths[manifest.root]?.path ?? '', parts }
  } catch (error) {
    failed.abort(error)
    throw error
  } finally {
    if (deps.pin === undefined) for (const one of pinned) deps.blobs.unpin(one, pin)
  }
}

/** Says which store path it is that cannot be had: people do not know digests. */
function failOn({ path }: BringPart): (error: unknown) => never {
  return (error) => {
    if (path === undefined || !(error instanceof AgentError) || error.code === 'cancelled') throw error
    const { code, message, next } = error
    throw new AgentError(code, `${path}: ${message}`, { cause: error, ...(next !== undefined && { next }) })
  }
}

/** The blobs that a manifest names: one a store path, or the one NAR of a folder. */
export function partsOf(manifest: Manifest): BringPart[] {
  if (manifest.type === 'folder') return [{ digest: hex(manifest.nar), sizeBytes: manifest.sizeBytes, kind: 'nar' }]
  return manifest.paths.map(({ path, nar, sizeBytes }) => ({ digest: hex(nar), sizeBytes, kind: 'nar', path }))
}

/** @throws {AgentError} `corrupt` when the blob is no manifest: then whoever made the artifact made it wrong. */
export async function readManifest(
  holder: Pick<BlobHolder, 'open'>,
  digest: Digest,
  signal: AbortSignal,
): Promise<Manifest> {
  const source = await holder.open(digest)
  if (source === undefined) throw new AgentError('not-found', `the manifest ${digest} is not on this node`)
  try {
    if (source.sizeBytes > MANIFEST_BYTES_MAX) throw new RangeError(`it has ${source.sizeBytes} bytes`)
    return decodeManifest(Buffer.concat(await Array.fromAsync(source.read(0, source.sizeBytes, signal))))
  } catch (cause) {
    signal.throwIfAborted()
    throw new AgentError('corrupt', `the manifest ${digest} cannot be used: ${reasonOf(cause)}`, { cause })
  } finally {
    await source.close?.()
  }
}

/**
 * The CID that a reference is; undefined for names.
 *
 * @throws {AgentError} `usage` for the CID of something that is no artifact.
 */
export function cidIn(ref: string): CID | undefined {
  let cid: CID
  try {
    cid = CID.parse(ref)
  } catch {
    return undefined
  }
  try {
    blobOf(cid)
    return cid
  } catch (cause) {
    throw new AgentError('usage', `${ref} is not the CID of an artifact: ${reasonOf(cause)}`, { cause })
  }
}

/** Adds up what the parts have done. */
class Progress {
  readonly #done = new Map<BringPart, number>()
  readonly #totalBytes: number
  readonly #report: (doneBytes: number, totalBytes: number) => void
  #doneBytes = 0

  constructor(parts: readonly BringPart[], report: (doneBytes: number, totalBytes: number) => void) {
    this.#totalBytes = parts.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    this.#report = report
  }

  update(part: BringPart, doneBytes: number): void {
    this.#doneBytes += doneBytes - (this.#done.get(part) ?? 0)
    this.#done.set(part, doneBytes)
    this.#report(this.#doneBytes, this.#totalBytes)
  }
}

async function isHere(holder: Pick<BlobHolder, 'open'>, digest: Digest): Promise<boolean> {
  const source = await holder.open(digest)
  await source?.close?.()
  return source !== undefined
}

/** Runs `work` on every item, at most `atOnce` at a time, in order. */
async function eachAtOnce<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values()
  const worker = async () => {
    for (const item of queue) await work(item)
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
}

function hex(bytes: Uint8Array): Digest {
  return Buffer.from(bytes).toString('hex')
}
