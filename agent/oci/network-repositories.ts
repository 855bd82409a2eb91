/**
 * Repositories of networks: what was pushed here, and what other nodes say that they have. Tags are those of the network's records; manifests and layers come
 * from peers when somebody asks for them, and layers are read while they arrive.
 *
 * A push is acknowledged when all of it is on disk and its tag has been said: bytes first, the record last.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { ImageTag, ImageTags, SaidManifest } from '../catalog/image-tags.ts'
import type { BlobFetcher, BlobSource, BlobStore, FetchOptions } from '../content/content.ts'
import type { PassThrough } from '../content/pass-through.ts'
import { AgentError } from '../error.ts'
import { type FetchedManifests, opened } from './fetched-manifests.ts'
import type { LocalRepositories } from './local-repositories.ts'
import { algorithmOf, hexOf, type OciDigest, parseDigest, parseTag, type Reference, type Tag } from './names.ts'
import type { Part, Parts } from './parts.ts'
import type {
  Descriptor,
  Held,
  HeldManifest,
  ManifestPush,
  PushedManifest,
  ReferrerPage,
  Repositories,
  RepositoryName,
  TagPage,
} from './repositories.ts'

/** What a network is to repositories. */
export type ImageNetwork = {
  /** In hex. */
  readonly id: string
  readonly tags: ImageTags
  /** Peers that may have a blob: those, then others. */
  sources(near: Iterable<string>, blob: Digest, signal: AbortSignal): AsyncIterable<string>
  /** Lets it be found by who is in no touch with this node. */
  provide?(blob: Digest): void
  /** Whether some member may have of this one what it fetched with credentials, in a repository. */
  lends(repository: string): boolean
}

export type NetworkRepositoriesInit = {
  local: LocalRepositories
  parts: Parts
  fetched: FetchedManifests
  blobs: Pick<BlobStore, 'has' | 'open' | 'sizeOf'>
  fetcher: Pick<BlobFetcher, 'fetch' | 'open'>
  /** For what there is no room for. */
  passThrough: Pick<PassThrough, 'open'>
  /** By its id; undefined for one that this node is not in. */
  networkOf: (space: string) => ImageNetwork | undefined
}

export class NetworkRepositories implements Repositories {
  readonly #init: NetworkRepositoriesInit

  constructor(init: NetworkRepositoriesInit) {
    this.#init = init
  }

  async exists(name: RepositoryName): Promise<boolean> {
    const network = this.#networkOf(name)
    return network.tags.has(calledIn(network, name)) || (await this.#init.local.exists(name))
  }

  async resolve(name: RepositoryName, reference: Reference, signal: AbortSignal): Promise<HeldManifest | undefined> {
    const network = this.#networkOf(name)
    const said = this.#saidOf(network, name, reference)
    if (reference.tag !== undefined && said === undefined) return undefined
    const digest = reference.digest ?? parseDigest(said?.body.digest ?? '')
    if (digest === undefined) return undefined
    const held = await this.#init.local.resolve(name, { digest })
    if (held) return held
    const known = said?.body
    const blob = known ? hex(known.blob) : algorithmOf(digest) === 'sha256' ? hexOf(digest) : undefined
    if (blob === undefined) return undefined
    const near = [...(said ? [said.peerId] : []), ...network.tags.holders(digest)]
    const from = { network: network.id, sources: network.sources(near, blob, signal) }
    try {
      return await this.#init.fetched.bring(name, { ...known, digest, blob }, from, signal)
    } catch (error) {
      signal.throwIfAborted()
      // Of what nobody speaks, and nobody has, is nothing to be said.
      if (said === undefined && error instanceof AgentError && error.code === 'not-found') return undefined
      throw error
    }
  }

  async blob(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<Held | undefined> {
    const { local, parts, blobs } = this.#init
    const held = await local.blob(name, digest)
    if (held) return held
    const part = parts.find(name, digest)
    signal.throwIfAborted()
    if (part?.blob === undefined) return undefined
    const { blob, sizeBytes } = part
    if (blobs.has(blob) && algorithmOf(digest) === 'sha256')
      return { digest, sizeBytes, open: () => opened(blobs, blob) }
    return { digest, sizeBytes, open: (until) => this.#open(name, { ...part, blob }, until) }
  }

  async tags(name: RepositoryName, { n, last }: { n: number; last: string | undefined }): Promise<TagPage | undefined> {
    const network = this.#networkOf(name)
    const all = network.tags.tags(calledIn(network, name)).filter((tag) => last === undefined || tag > last)
    if (all.length === 0 && !(await this.exists(name))) return undefined
    return { tags: all.slice(0, n).flatMap((tag) => parseTag(tag) ?? []), hasMore: all.length > n }
  }

  async referrers(
    name: RepositoryName,
    digest: OciDigest,
    query: { artifactType: string | undefined; last: string | undefined },
  ): Promise<ReferrerPage> {
    const network = this.#networkOf(name)
    const page = await this.#init.local.referrers(name, digest, query)
    const end = page.hasMore ? page.descriptors.at(-1)?.digest : undefined
    const said = network.tags
      .referrers(calledIn(network, name), digest)
      .map(descriptorOf)
      .filter((one) => query.artifactType === undefined || one.artifactType === query.artifactType)
      .filter((one) => one.digest > (query.last ?? '') && (end === undefined || one.digest <= end))
    const all = new Map([...said, ...page.descriptors].map((one) => [one.digest, one]))
    const descriptors = [...all.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1))
    return { descriptors, hasMore: page.hasMore }
  }

  async putManifest(name: RepositoryName, push: ManifestPush, signal: AbortSignal): Promise<PushedManifest> {
    const network = this.#networkOf(name)
    const { local } = this.#init
    const pushed = await local.putManifest(name, push, signal)
    const held = await local.resolve(name, { digest: pushed.digest })
    if (held === undefined)
      throw new AgentError('failed', `the manifest ${pushed.digest} went away while it was pushed`)
    const said = await this.#said(held, signal)
    for (const tag of push.tags) network.tags.move(name.path, tag, said)
    if (push.tags.length === 0 && pushed.subject !== undefined) network.tags.addReferrer(name.path, said)
    network.provide?.(hex(said.blob))
    return pushed
  }

  async deleteTag(name: RepositoryName, tag: Tag): Promise<boolean> {
    const wasSaid = this.#networkOf(name).tags.remove(name.path, tag)
    const wasHere = await this.#init.local.deleteTag(name, tag)
    return wasSaid || wasHere
  }

  /** Its tags go with it. */
  async deleteManifest(name: RepositoryName, digest: OciDigest): Promise<boolean> {
    const network = this.#networkOf(name)
    const called = calledIn(network, name)
    const named = network.tags.withDigest(digest).filter(({ repository }) => repository === called)
    for (const tag of new Set(named.flatMap((one) => one.tag ?? []))) {
      if (network.tags.get(called, tag)?.body.digest === digest) network.tags.remove(name.path, tag)
    }
    network.tags.removeReferrer(name.path, digest)
    return (await this.#init.local.deleteManifest(name, digest)) || named.length > 0
  }

  /** Something was said of a tag: what another node deleted is kept no longer for it. */
  async settle(name: RepositoryName, tag: Tag): Promise<void> {
    const network = this.#init.networkOf(name.space)
    if (network?.tags.settle(calledIn(network, name), tag)) await this.#init.local.deleteTag(name, tag)
  }

  async deleteBlob(name: RepositoryName, digest: OciDigest): Promise<boolean> {
    return await this.#init.local.deleteBlob(name, digest)
  }

  async mount(name: RepositoryName, digest: OciDigest, from: RepositoryName | undefined): Promise<boolean> {
    return await this.#init.local.mount(name, digest, from)
  }

  /** A blob that is a part of the repository, to be read while it arrives. */
  async #open(name: RepositoryName, part: Part & { blob: Digest }, signal: AbortSignal): Promise<BlobSource> {
    const { local, fetcher, passThrough } = this.#init
    const network = this.#networkOf(name)
    const { blob, sizeBytes, digest } = part
    const near = network.tags.publishers(calledIn(network, name))
    const options = (): FetchOptions => {
      return { network: network.id, sources: network.sources(near, blob, signal), signal, sizeBytes }
    }
    local.addBlob(name, blob, false)
    if (algorithmOf(digest) === 'sha512') return await this.#openLong(part, options())
    try {
      return await fetcher.open(blob, options())
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof AgentError) || error.code !== 'limit') throw error
      return await passThrough.open(blob, options())
    }
  }

  /** That a SHA-512 is this blob's is the word of whoever pushed it, until it was looked at. */
  async #openLong({ digest, blob }: Part & { blob: Digest }, options: FetchOptions): Promise<BlobSource> {
    const { local, fetcher, blobs } = this.#init
    await fetcher.fetch(blob, options)
    const source = await opened(blobs, blob)
    const hasher = createHash('sha512')
    for await (const chunk of source.read(0, source.sizeBytes, options.signal)) hasher.update(chunk)
    if (hasher.digest('hex') === hexOf(digest)) {
      local.nameBlob(digest, blob)
      return source
    }
    await source.close?.()
    throw new AgentError('corrupt', `what is said to be ${digest} is something else`)
  }

  async #said(held: HeldManifest, signal: AbortSignal): Promise<SaidManifest> {
    const { local, fetched } = this.#init
    const { longDigests, ...facts } = await fetched.facts(held, signal)
    return saidOf(held, local.blobNamed(held.digest), facts, longDigests, (digest) => local.blobNamed(digest))
  }

  #saidOf(network: ImageNetwork, name: RepositoryName, { tag, digest }: Reference): ImageTag | undefined {
    if (tag !== undefined) return network.tags.get(calledIn(network, name), tag)
    const all = network.tags.withDigest(digest)
    return all.find(({ repository }) => repository === calledIn(network, name)) ?? all[0]
  }

  #networkOf({ space, text }: RepositoryName): ImageNetwork {
    const network = this.#init.networkOf(space)
    if (network) return network
    throw new AgentError('not-found', `the network of ${text} does not run here`, { next: '`agent status` says why.' })
  }
}

/** What is said of a manifest that is here. */
export function saidOf(
  { digest, sizeBytes, mediaType }: HeldManifest,
  blob: Digest | undefined,
  facts: Pick<SaidManifest, 'platforms' | 'labels' | 'imageBytes' | 'artifactType' | 'subject'>,
  longDigests: readonly OciDigest[],
  blobNamed: (digest: OciDigest) => Digest | undefined,
): SaidManifest {
  const aliases = longDigests.flatMap((one) => {
    const named = blobNamed(one)
    return named === undefined ? [] : [{ digest: one, blob: fromHex(named) }]
  })
  const { platforms, labels, imageBytes, artifactType, subject } = facts
  return {
    digest,
    blob: fromHex(blob ?? ''),
    sizeBytes,
    mediaType,
    imageBytes,
    platforms,
    labels,
    ...(artifactType !== undefined && { artifactType }),
    ...(subject !== undefined && { subject }),
    ...(aliases.length > 0 && { aliases }),
  }
}

/** In the open network a repository without a publisher is this node's own. */
function calledIn({ tags }: ImageNetwork, { path }: RepositoryName): string {
  return tags.callOf(path)
}

function descriptorOf({ body }: ImageTag): Descriptor {
  const { mediaType, digest, sizeBytes, artifactType, labels } = body
  return {
    mediaType,
    digest: digest as OciDigest,
    size: sizeBytes,
    ...(artifactType !== undefined && { artifactType }),
    ...(Object.keys(labels).length > 0 && { annotations: labels }),
  }
}

function hex(bytes: Uint8Array): Digest {
  return Buffer.from(bytes).toString('hex')
}

function fromHex(digest: Digest): Uint8Array {
  return Uint8Array.from(Buffer.from(digest, 'hex'))
}
