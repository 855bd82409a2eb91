/**
 * Manifests of other nodes and registries, brought to this one: fetched by their hash, read, and noted as parts of the repository that they were wanted in.
 *
 * That something is here already, for another repository, is no reason to give it to those who may pull from this one: only what was
 * fetched for a repository becomes one of its parts.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobFetcher, BlobSource, BlobStore, FetchOptions } from '../content/content.ts'
import { AgentError } from '../error.ts'
import { factsOf, type ImageFacts } from './image-facts.ts'
import type { LocalRepositories } from './local-repositories.ts'
import { MANIFEST_BYTES_MAX, readManifest } from './manifests.ts'
import { algorithmOf, hexOf, type OciDigest } from './names.ts'
import type { Part, Parts } from './parts.ts'
import type { HeldManifest, RepositoryName } from './repositories.ts'

/** A member that does not answer in that time is passed over while a client waits for a few kilobytes. */
const HASTE_MS = 1_000

export type FetchedManifestsInit = {
  local: Pick<LocalRepositories, 'resolve' | 'adoptManifest' | 'blobNamed' | 'nameBlob'>
  parts: Pick<Parts, 'note' | 'setPrivate'>
  blobs: Pick<BlobStore, 'has' | 'open' | 'write' | 'sizeOf'>
  fetcher: Pick<BlobFetcher, 'fetch'>
}

/** What is known of a manifest before it is here. */
export type WantedManifest = {
  digest: OciDigest
  blob: Digest
  sizeBytes?: number | undefined
  mediaType?: string | undefined
  /** Blobs that it names by SHA-512. */
  aliases?: readonly { digest: string; blob: Uint8Array }[] | undefined
  isPrivate?: boolean
}

export class FetchedManifests {
  readonly #init: FetchedManifestsInit

  constructor(init: FetchedManifestsInit) {
    this.#init = init
  }

  /** From peers of a network. @throws {AgentError} as BlobFetcher.fetch */
  async bring(
    name: RepositoryName,
    wanted: WantedManifest,
    from: Pick<FetchOptions, 'network' | 'sources'>,
    signal: AbortSignal,
  ): Promise<HeldManifest> {
    const { local, blobs, fetcher } = this.#init
    const { digest, blob, sizeBytes } = wanted
    const held = await local.resolve(name, { digest })
    if (held) return held
    const isHere = blobs.has(blob)
    const size = sizeBytes === undefined ? { sizeBytesMax: MANIFEST_BYTES_MAX } : { sizeBytes }
    if (!isHere) await fetcher.fetch(blob, { ...from, ...size, signal, hasteMs: HASTE_MS })
    return await this.#take(name, wanted, !isHere, signal)
  }

  /** From outside: bytes that are to have the digest. `network` is the one in which it may be given on. */
  async put(
    name: RepositoryName,
    { bytes, ...wanted }: Omit<WantedManifest, 'blob'> & { bytes: Uint8Array },
    network: string | undefined,
    signal: AbortSignal,
  ): Promise<HeldManifest> {
    const blob = createHash('sha256').update(bytes).digest('hex')
    checkDigest(bytes, wanted.digest)
    await this.#init.blobs.write(blob, [bytes], signal, network === undefined ? {} : { network })
    return await this.#take(name, { ...wanted, blob }, true, signal)
  }

  /** What is said of it to others. */
  async facts({ open, sizeBytes, mediaType }: HeldManifest, signal: AbortSignal): Promise<ImageFacts> {
    const { local, blobs } = this.#init
    const source = await open(signal)
    const bytes = await wholeOf(source, sizeBytes, signal)
    return await factsOf(bytes, mediaType, async (digest, bytesMax) => {
      const blob = local.blobNamed(digest)
      const size = blob === undefined ? undefined : blobs.sizeOf(blob)
      if (blob === undefined || size === undefined || size > bytesMax) return undefined
      const part = await blobs.open(blob)
      return part && (await wholeOf(part, size, signal))
    })
  }

  async #take(
    name: RepositoryName,
    wanted: WantedManifest,
    isFetched: boolean,
    signal: AbortSignal,
  ): Promise<HeldManifest> {
    const { local, parts, blobs } = this.#init
    const { digest, blob, mediaType, aliases = [], isPrivate = false } = wanted
    const source = await blobs.open(blob)
    if (source === undefined) throw new AgentError('not-found', `the manifest ${digest} is not here any more`)
    if (source.sizeBytes > MANIFEST_BYTES_MAX) {
      await source.close?.()
      throw new AgentError('corrupt', `${digest} is no manifest: it has ${source.sizeBytes} bytes`)
    }
    const bytes = await wholeOf(source, source.sizeBytes, signal)
    checkDigest(bytes, digest)
    const manifest = readManifest(bytes, mediaType === '' ? undefined : mediaType)
    const named = new Map(aliases.map((one) => [one.digest, Buffer.from(one.blob).toString('hex')]))
    const partOf = ({ digest: part, size }: { digest: OciDigest; size: number }): Part => ({
      digest: part,
      blob: algorithmOf(part) === 'sha256' ? hexOf(part) : named.get(part),
      sizeBytes: size,
    })
    parts.note(name, [...manifest.blobs, ...manifest.manifests].map(partOf))
    if (isFetched) {
      // Before it is a part of anything that may be given.
      parts.setPrivate(name, blob, isPrivate)
      await local.adoptManifest(name, { digest, tags: [], bytes, mediaType: manifest.mediaType }, signal)
    }
    return { digest, sizeBytes: bytes.byteLength, mediaType: manifest.mediaType, open: () => opened(blobs, blob) }
  }
}

/** Reads it to its end, and closes it. */
export async function wholeOf(source: BlobSource, sizeBytes: number, signal: AbortSignal): Promise<Uint8Array> {
  try {
    return Buffer.concat(await Array.fromAsync(source.read(0, sizeBytes, signal)))
  } finally {
    await source.close?.()
  }
}

/** @throws {AgentError} `not-found` */
export async function opened(blobs: Pick<BlobStore, 'open'>, blob: Digest): Promise<BlobSource> {
  const source = await blobs.open(blob)
  if (source) return source
  throw new AgentError('not-found', `the blob ${blob} is not here any more`, { next: 'Ask for it again.' })
}

function checkDigest(bytes: Uint8Array, digest: OciDigest): void {
  const found = createHash(algorithmOf(digest)).update(bytes).digest('hex')
  if (found !== hexOf(digest))
    throw new AgentError('corrupt', `a manifest of the digest ${found}, not ${digest} as it should`)
}
