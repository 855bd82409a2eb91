/**
 * Repositories of registries upstream: asked once for a whole network, and then had from its members. A tag's answer stays fresh for as long as the
 * configuration says, also that which another member was given, when the policy lets that push to the repository. When the registry does not answer, what it
 * said last is served, and marked.
 *
 * In the network a repository is called `<prefix>/<path>`: so grants name it. What was fetched with credentials is given to nobody whom no grant of `image:private` names.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { ImageTag } from '../catalog/image-tags.ts'
import type { BlobFetcher, BlobSource, BlobStore, FetchOptions } from '../content/content.ts'
import type { PassThrough } from '../content/pass-through.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Arrivals, WantedBlob } from './arrivals.ts'
import { OciError } from './errors.ts'
import { type FetchedManifests, opened } from './fetched-manifests.ts'
import type { LocalRepositories } from './local-repositories.ts'
import {
  algorithmOf,
  hexOf,
  type OciDigest,
  ofSha256,
  parseDigest,
  type Reference,
  type RepositoryPath,
  type Tag,
} from './names.ts'
import { type ImageNetwork, saidOf } from './network-repositories.ts'
import type { Parts } from './parts.ts'
import type {
  Descriptor,
  Held,
  HeldManifest,
  ReferrerPage,
  Repositories,
  RepositoryName,
  TagPage,
} from './repositories.ts'
import type { Answer, UpstreamAnswers } from './upstream-answers.ts'
import { referrersIn } from './upstream-referrers.ts'
import type { UpstreamRegistry } from './upstream-registry.ts'

/** The space of repositories of an upstream begins so. */
const UPSTREAM_SPACE = 'upstream:'

/** A registry, and the network in which what comes from it is shared. */
export type Upstream = { registry: UpstreamRegistry; network: ImageNetwork | undefined }

export type UpstreamRepositoriesInit = {
  /** This node's peer id. */
  self: string
  local: LocalRepositories
  parts: Parts
  fetched: FetchedManifests
  answers: UpstreamAnswers
  arrivals: Pick<Arrivals, 'open'>
  blobs: Pick<BlobStore, 'has' | 'open'>
  fetcher: Pick<BlobFetcher, 'open'>
  /** For what there is no room for. */
  passThrough: Pick<PassThrough, 'open' | 'openFrom'>
  upstreamOf: (prefix: string) => Upstream | undefined
  /** For how long an answer about a tag holds. */
  freshMs: () => number
  log: Log
  now?: () => number
}

/** How it is with a tag of an upstream: `reason` is why an answer is served that is no longer fresh. */
export type UpstreamTag = Answer & { isFresh: boolean; reason: string | undefined }

type Asked = {
  name: RepositoryName
  path: RepositoryPath
  registry: UpstreamRegistry
  network: ImageNetwork | undefined
}

export class UpstreamRepositories implements Pick<Repositories, 'exists' | 'resolve' | 'blob' | 'tags' | 'referrers'> {
  readonly #init: UpstreamRepositoriesInit
  readonly #now: () => number
  /** Answers that are being asked for. */
  readonly #asking = new Map<string, Promise<HeldManifest | undefined>>()
  /** Why the answer of a tag is an old one. */
  readonly #stale = new Map<string, string>()

  constructor(init: UpstreamRepositoriesInit) {
    this.#init = init
    this.#now = init.now ?? Date.now
  }

  /** What is known of a tag. */
  known(name: RepositoryName, tag: Tag): UpstreamTag | undefined {
    const { registry, path } = this.#asked(name)
    const answer = this.#init.answers.get(registry.prefix, path, tag)
    if (answer === undefined) return undefined
    return { ...answer, isFresh: this.#isFresh(answer), reason: this.#stale.get(`${name.space}/${path}:${tag}`) }
  }

  async exists(name: RepositoryName, signal: AbortSignal): Promise<boolean> {
    return (
      (await this.#init.local.exists(name)) || (await this.tags(name, { n: 1, last: undefined }, signal)) !== undefined
    )
  }

  async resolve(name: RepositoryName, reference: Reference, signal: AbortSignal): Promise<HeldManifest | undefined> {
    const asked = this.#asked(name)
    if (reference.tag !== undefined) return await this.#tagged(asked, reference.tag, signal)
    const { digest } = reference
    const held = await this.#init.local.resolve(name, { digest })
    if (held) return held
    const [said] = asked.network?.tags.withDigest(digest) ?? []
    const blob = said ? hex(said.body.blob) : algorithmOf(digest) === 'sha256' ? hexOf(digest) : undefined
    return await this.#bring(
      asked,
      {
        digest,
        blob,
        near: said ? [said.peerId] : [],
        sizeBytes: said?.body.sizeBytes,
        isPrivate: said?.body.private ?? false,
      },
      signal,
    )
  }

  async blob(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<Held | undefined> {
    const { local, parts, blobs } = this.#init
    const held = await local.blob(name, digest)
    if (held) return held
    const asked = this.#asked(name)
    const part = parts.find(name, digest)
    const blob = algorithmOf(digest) === 'sha256' ? hexOf(digest) : part?.blob
    // Registries outside name blobs by SHA-256.
    if (blob === undefined) return undefined
    const sizeBytes = part?.sizeBytes ?? (await asked.registry.sizeOf(asked.path, digest, signal))
    if (sizeBytes === undefined) return undefined
    if (blobs.has(blob)) return { digest, sizeBytes, open: () => opened(blobs, blob) }
    return { digest, sizeBytes, open: (until) => this.#open(asked, { digest, blob, sizeBytes }, until) }
  }

  async tags(
    name: RepositoryName,
    page: { n: number; last: string | undefined },
    signal: AbortSignal,
  ): Promise<TagPage | undefined> {
    const { registry, path } = this.#asked(name)
    const { n, last } = page
    let all: readonly Tag[] | undefined
    try {
      all = await registry.tags(path, { n: n + 1, last }, signal)
    } catch (error) {
      signal.throwIfAborted()
      const known = this.#init.answers.tags(registry.prefix, path)
      if (known.length === 0) throw error
      all = known.filter((tag) => last === undefined || tag > last)
    }
    return all && { tags: all.slice(0, n), hasMore: all.length > n }
  }

  async referrers(
    name: RepositoryName,
    digest: OciDigest,
    { artifactType, last }: { artifactType: string | undefined; last: string | undefined },
    signal: AbortSignal,
  ): Promise<ReferrerPage> {
    const { registry, path } = this.#asked(name)
    let said: Descriptor[] = []
    try {
      said = referrersIn(await registry.referrers(path, digest, signal))
    } catch (error) {
      // What is here is an answer, too.
      signal.throwIfAborted()
      this.#init.log.debug({ registry: registry.prefix, reason: reasonOf(error) }, 'registry.no-referrers')
    }
    const here = await this.#init.local.referrers(name, digest, { artifactType, last })
    const wanted = said
      .filter((one) => artifactType === undefined || one.artifactType === artifactType)
      .filter((one) => one.digest > (last ?? ''))
    const all = new Map([...wanted, ...here.descriptors].map((one) => [one.digest, one]))
    return { descriptors: [...all.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1)), hasMore: here.hasMore }
  }

  async #tagged(asked: Asked, tag: Tag, signal: AbortSignal): Promise<HeldManifest | undefined> {
    const { registry, path, name } = asked
    const key = `${name.space}/${path}:${tag}`
    const known = this.#answers(asked, tag)
    for (const one of known.filter((answer) => this.#isFresh(answer))) {
      const held = await this.#held(asked, one, signal)
      if (held) return held
    }
    try {
      // A crowd that asks at the same time is one question; each of them leaves as he likes.
      const running = this.#asking.get(key)
      if (running === undefined) {
        const asking = this.#ask(asked, tag, signal).finally(() => this.#asking.delete(key))
        this.#asking.set(key, asking)
        return await asking
      }
      const held = await running.catch((error: unknown) => {
        if (error instanceof AgentError && error.code === 'cancelled') return undefined
        throw error
      })
      return held ?? (await this.#ask(asked, tag, signal))
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof AgentError) || (error.code !== 'failed' && error.code !== 'not-allowed')) throw error
      for (const last of known) {
        const held = await this.#held(asked, last, signal)
        if (held === undefined) continue
        if (this.#stale.size > 1_000) this.#stale.clear()
        this.#stale.set(key, error.message)
        const since = new Date(last.checkedMs).toISOString()
        this.#init.log.warn({ image: `${registry.prefix}/${path}:${tag}`, since, reason: error.message }, 'image.stale')
        return { ...held, warning: `${error.message}; this is what ${registry.prefix} said at ${since}` }
      }
      throw error
    }
  }

  /** Asks the registry, and has what it names here: from members, if one has it. */
  async #ask(asked: Asked, tag: Tag, signal: AbortSignal): Promise<HeldManifest | undefined> {
    const { registry, path, name, network } = asked
    const { answers } = this.#init
    const said = await registry.head(path, { tag }, signal)
    if (said === undefined) {
      answers.drop(registry.prefix, path, tag)
      return undefined
    }
    const { isPrivate } = said
    const held = said.digest
      ? await this.#bring(
          asked,
          {
            ...said,
            digest: said.digest,
            blob: sha256Of(said.digest),
            near: network?.tags.holders(said.digest) ?? [],
            tag,
          },
          signal,
        )
      : await this.#download(asked, { tag }, signal)
    if (held === undefined) return undefined
    const blob = this.#init.local.blobNamed(held.digest) ?? sha256Of(held.digest)
    if (blob === undefined) return held
    const { digest, sizeBytes, mediaType } = held
    const answer = { digest, blob, sizeBytes, mediaType, checkedMs: this.#now(), isPrivate }
    answers.put(registry.prefix, path, tag, answer)
    this.#stale.delete(`${name.space}/${path}:${tag}`)
    await this.#share(asked, tag, held, answer, signal)
    return held
  }

  /** Says it to the network, where others may have it. */
  async #share(asked: Asked, tag: Tag, held: HeldManifest, answer: Answer, signal: AbortSignal): Promise<void> {
    const { network, registry, path } = asked
    const { fetched, local, log } = this.#init
    if (network === undefined || this.#sharedIn(asked, answer.isPrivate) === undefined) return
    try {
      const { longDigests, ...facts } = await fetched.facts(held, signal)
      const said = saidOf(held, answer.blob, facts, longDigests, (digest) => local.blobNamed(digest))
      const marks = { upstream: true as const, ...(answer.isPrivate && { private: true as const }) }
      network.tags.move(`${registry.prefix}/${path}`, tag, { ...said, ...marks }, answer.checkedMs)
    } catch (error) {
      // Who pulls has his image all the same.
      signal.throwIfAborted()
      log.warn({ image: `${registry.prefix}/${path}:${tag}`, reason: reasonOf(error) }, 'image.unsaid')
    }
  }

  /** What this node was told, and what members were: the newest first. */
  #answers({ registry, path, network }: Asked, tag: Tag): Answer[] {
    const own = this.#init.answers.get(registry.prefix, path, tag)
    const said = network?.tags.get(`${registry.prefix}/${path}`, tag)
    const theirs = said && !said.isOwn ? answerOf(said) : undefined
    return [own, theirs].filter((one) => one !== undefined).sort((a, b) => b.checkedMs - a.checkedMs)
  }

  /** What an answer names; undefined when it cannot be had. */
  async #held(asked: Asked, answer: Answer, signal: AbortSignal): Promise<HeldManifest | undefined> {
    try {
      const near = asked.network?.tags.holders(answer.digest) ?? []
      return await this.#bring(asked, { ...answer, near }, signal)
    } catch (error) {
      signal.throwIfAborted()
      this.#init.log.debug({ digest: answer.digest, reason: reasonOf(error) }, 'image.answer-unheld')
      return undefined
    }
  }

  /** From members, or from the registry. */
  async #bring(
    asked: Asked,
    wanted: {
      digest: OciDigest
      blob: Digest | undefined
      near: string[]
      sizeBytes?: number | undefined
      isPrivate: boolean
      tag?: Tag
    },
    signal: AbortSignal,
  ): Promise<HeldManifest | undefined> {
    const { name, network } = asked
    const { local, fetched } = this.#init
    const { digest, blob, near, sizeBytes, isPrivate } = wanted
    const held = await local.resolve(name, { digest })
    if (held) return held
    if (network !== undefined && blob !== undefined) {
      try {
        const from = { network: network.id, sources: network.sources(near, blob, signal) }
        return await fetched.bring(name, { digest, blob, sizeBytes, isPrivate }, from, signal)
      } catch (error) {
        signal.throwIfAborted()
        this.#init.log.debug({ digest, reason: reasonOf(error) }, 'image.not-at-members')
      }
    }
    return await this.#download(asked, { digest }, signal)
  }

  async #download(asked: Asked, reference: Reference, signal: AbortSignal): Promise<HeldManifest | undefined> {
    const { registry, path, name } = asked
    const found = await registry.manifest(path, reference, signal)
    if (found === undefined) return undefined
    const digest = reference.digest ?? found.digest ?? ofSha256(await sha256(found.bytes))
    const { bytes, mediaType, isPrivate } = found
    return await this.#init.fetched.put(
      name,
      { bytes, digest, mediaType, isPrivate },
      this.#sharedIn(asked, isPrivate),
      signal,
    )
  }

  async #open(
    asked: Asked,
    { digest, blob, sizeBytes }: { digest: OciDigest; blob: Digest; sizeBytes: number },
    signal: AbortSignal,
  ): Promise<BlobSource> {
    const { registry, path, name, network } = asked
    const { local, parts, arrivals } = this.#init
    const isPrivate = parts.hasPrivate(name)
    local.addBlob(name, blob, false)
    parts.setPrivate(name, blob, isPrivate)
    // What is private here may be had of who says that he has it; who gets it from here is for grants to say all the same.
    const called = `${registry.prefix}/${path}`
    const isSaid = network?.tags.publishers(called).some((peerId) => peerId !== this.#init.self) ?? false
    const shared = isSaid ? network?.id : this.#sharedIn(asked, isPrivate)
    const wanted: WantedBlob = {
      digest: blob,
      sizeBytes,
      network: shared,
      fromOutside: (from, until) => registry.blob(path, digest, from, until),
      fromHolder: (peerId, until) =>
        this.#fromHolder(blob, () => {
          const sources = network?.sources([peerId], blob, until) ?? []
          return { network: shared ?? '', sources, signal: until, sizeBytes }
        }),
    }
    try {
      return await arrivals.open(wanted, signal)
    } catch (error) {
      signal.throwIfAborted()
      if (!isLimit(error)) throw error
      return await this.#init.passThrough.openFrom(wanted, wanted.fromOutside, signal)
    }
  }

  async #fromHolder(blob: Digest, options: () => FetchOptions): Promise<BlobSource> {
    const { fetcher, passThrough } = this.#init
    try {
      return await fetcher.open(blob, options())
    } catch (error) {
      if (!isLimit(error)) throw error
      return await passThrough.open(blob, options())
    }
  }

  /** The network in which it may be given on. */
  #sharedIn({ network, registry, path }: Asked, isPrivate: boolean): string | undefined {
    return network && (!isPrivate || network.lends(`${registry.prefix}/${path}`)) ? network.id : undefined
  }

  #isFresh({ checkedMs }: Answer): boolean {
    const age = this.#now() - checkedMs
    return age < this.#init.freshMs()
  }

  #asked(name: RepositoryName): Asked {
    const upstream = this.#init.upstreamOf(prefixOf(name.space) ?? '')
    if (upstream) return { ...upstream, name, path: name.path }
    throw new OciError('NAME_UNKNOWN', `no upstream registry is configured for ${name.text}`)
  }
}

export function upstreamSpace(prefix: string): string {
  return `${UPSTREAM_SPACE}${prefix}`
}

/** The prefix of an upstream's space; undefined for a network's. */
export function prefixOf(space: string): string | undefined {
  return space.startsWith(UPSTREAM_SPACE) ? space.slice(UPSTREAM_SPACE.length) : undefined
}

/** That there is no room for it. */
function isLimit(error: unknown): boolean {
  return error instanceof AgentError && error.code === 'limit'
}

/** What a member says that the registry answered; not what it pushed there itself. */
function answerOf({ body, moved }: ImageTag): Answer | undefined {
  const digest = parseDigest(body.digest)
  if (body.upstream !== true || digest === undefined) return undefined
  const { sizeBytes, mediaType } = body
  return { digest, blob: hex(body.blob), sizeBytes, mediaType, checkedMs: moved, isPrivate: body.private ?? false }
}

function sha256Of(digest: OciDigest): Digest | undefined {
  return algorithmOf(digest) === 'sha256' ? hexOf(digest) : undefined
}

async function sha256(bytes: Uint8Array): Promise<Digest> {
  return Buffer.from(await crypto.subtle.digest('SHA-256', Uint8Array.from(bytes))).toString('hex')
}

function hex(bytes: Uint8Array): Digest {
  return Buffer.from(bytes).toString('hex')
}
