/**
 * The repositories of this node: what was pushed here, and what was fetched and kept.
 *
 * What a tag leads to (the manifest, those in it, their configs and layers, and who has one of them as his subject) is pinned, and given to
 * peers of the network that the repository is in. What was pushed and is under no tag yet is kept for a day, for the rest of its push may
 * still come; after that, and when its tag has moved on, it may go when room is needed, and is there by its digest until then.
 *
 * A push is on disk for good when it resolves: bytes first, then one transaction with its rows and pins.
 */
import { hash, randomUUID } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type BlobSource, type BlobStore, TEMPORARY_PIN } from '../content/content.ts'
import { imageKey } from '../content/publication-key.ts'
import { AgentError } from '../error.ts'
import { type Database, durably, transaction } from '../state/database.ts'
import { OciError } from './errors.ts'
import { type Manifest, readManifest } from './manifests.ts'
import { algorithmOf, type OciDigest, ofSha256, ofSha512, type Reference, type Tag } from './names.ts'
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
import { type ManifestRow, RepositoryRows } from './repository-rows.ts'

/** How long something is kept that no tag leads to: the rest of its push may take as long as an upload may. */
const FRESH_MS_MAX = 24 * 60 * 60_000
/** What has been there for too long is looked for this often, and at the start. */
const SWEEP_MS = 60 * 60_000
/** Of an index of indexes: nobody nests deeper than two, and each level is walked whenever a tag moves. */
const DEPTH_MAX = 4
/** An answer of referrers ends when so much is in it; each may have 4 MiB of annotations. */
const REFERRERS_BYTES_MAX = 4 * 1024 * 1024
const REFERRERS_MAX = 1_000
/** Told of those that a manifest names and that are not here. */
const MISSING_MAX = 20

/** What is asked of the blob directory. */
export type RepositoryBlobs = Pick<BlobStore, 'has' | 'sizeOf' | 'open' | 'write' | 'pin' | 'unpin' | 'networksOf'> & {
  readonly index: { unpinAll(reason: string): void }
  evict(blob: { digest: Digest; sizeBytes: number; partialOf: undefined }): boolean
}

type Init = { db: Database; blobs: RepositoryBlobs; now?: () => number }

export class LocalRepositories implements Repositories, Disposable {
  readonly #db: Database
  readonly #blobs: RepositoryBlobs
  readonly #rows: RepositoryRows
  readonly #now: () => number
  readonly #sweeping: NodeJS.Timeout

  constructor({ db, blobs, now = Date.now }: Init) {
    this.#db = db
    this.#blobs = blobs
    this.#rows = new RepositoryRows(db)
    this.#now = now
    this.sweep()
    this.#sweeping = setInterval(() => this.sweep(), SWEEP_MS).unref()
  }

  async exists({ space, path }: RepositoryName): Promise<boolean> {
    return this.#rows.find(space, path) !== undefined
  }

  async resolve(name: RepositoryName, reference: Reference): Promise<HeldManifest | undefined> {
    const found = this.#find(name, reference)
    if (found === undefined || !this.#blobs.has(found.row.blob)) return undefined
    const { digest, row } = found
    const { blob, sizeBytes, mediaType } = row
    return { digest, sizeBytes, mediaType, open: () => this.#open(blob) }
  }

  async blob({ space, path }: RepositoryName, digest: OciDigest): Promise<Held | undefined> {
    const repository = this.#rows.find(space, path)
    const blob = this.#rows.blobNamed(digest)
    if (repository === undefined || blob === undefined || !this.#rows.hasBlob(repository, blob)) return undefined
    const sizeBytes = this.#blobs.sizeOf(blob)
    return sizeBytes === undefined ? undefined : { digest, sizeBytes, open: () => this.#open(blob) }
  }

  async tags(
    { space, path }: RepositoryName,
    { n, last }: { n: number; last: string | undefined },
  ): Promise<TagPage | undefined> {
    const repository = this.#rows.find(space, path)
    if (repository === undefined) return undefined
    const found = this.#rows.tags(repository, last ?? '', n + 1)
    return { tags: found.slice(0, n), hasMore: found.length > n }
  }

  async referrers(
    { space, path }: RepositoryName,
    digest: OciDigest,
    { artifactType, last }: { artifactType: string | undefined; last: string | undefined },
  ): Promise<ReferrerPage> {
    const repository = this.#rows.find(space, path)
    const descriptors: Descriptor[] = []
    let bytes = 0
    if (repository === undefined) return { descriptors, hasMore: false }
    for (const one of this.#rows.referrers(repository, digest, artifactType, last ?? '')) {
      bytes += JSON.stringify(one).length
      if (descriptors.length > 0 && (bytes > REFERRERS_BYTES_MAX || descriptors.length >= REFERRERS_MAX))
        return { descriptors, hasMore: true }
      descriptors.push(one)
    }
    return { descriptors, hasMore: false }
  }

  async putManifest(name: RepositoryName, push: ManifestPush, signal: AbortSignal): Promise<PushedManifest> {
    const manifest = readManifest(push.bytes, push.mediaType)
    this.#refuseMissing(name, manifest)
    return await this.#put(name, manifest, push, signal, () => this.#refuseMissing(name, manifest))
  }

  /**
   * Keeps a manifest that came from a peer or an upstream registry: what it names need not be here. Without tags it is nobody's push, and may
   * go when room is needed.
   */
  async adoptManifest(name: RepositoryName, fetched: ManifestPush, signal: AbortSignal): Promise<PushedManifest> {
    return await this.#put(name, readManifest(fetched.bytes, fetched.mediaType), fetched, signal, undefined)
  }

  /**
   * A blob that is here is one of this repository from now on. One that was pushed is kept until its manifest comes.
   *
   * @param also runs in the same transaction
   */
  addBlob({ space, path }: RepositoryName, blob: Digest, isPushed: boolean, also: () => void = () => {}): void {
    transaction(this.#db, () => {
      this.#rows.putBlob(this.#rows.findOrMake(space, path), blob, isPushed ? this.#now() : undefined)
      if (isPushed) this.#blobs.pin(blob, freshPin(space, path))
      also()
    })
  }

  /** A SHA-512 is known to be that of a blob. */
  nameBlob(digest: OciDigest, blob: Digest): void {
    this.#rows.name(digest, blob)
  }

  /** The blob that a client means, wherever it is; undefined when it is nowhere here. */
  blobNamed(digest: OciDigest): Digest | undefined {
    const blob = this.#rows.blobNamed(digest)
    return blob !== undefined && this.#blobs.has(blob) ? blob : undefined
  }

  async mount(name: RepositoryName, digest: OciDigest, from: RepositoryName | undefined): Promise<boolean> {
    const blob = this.blobNamed(digest)
    if (blob === undefined) return false
    if (from === undefined) {
      if (!this.#rows.isBlobInSpace(name.space, blob)) return false
    } else {
      const source = this.#rows.find(from.space, from.path)
      if (source === undefined || !this.#rows.hasBlob(source, blob)) return false
    }
    this.addBlob(name, blob, true)
    return true
  }

  async deleteTag({ space, path }: RepositoryName, tag: Tag): Promise<boolean> {
    const repository = this.#rows.find(space, path)
    if (repository === undefined) return false
    return durably(this.#db, () => {
      const isDeleted = this.#rows.dropTag(repository, tag)
      if (isDeleted) this.#letGo(repository, { space, path })
      return isDeleted
    })
  }

  async deleteManifest({ space, path }: RepositoryName, digest: OciDigest): Promise<boolean> {
    const found = this.#find({ space, path }, { digest })
    if (found === undefined) return false
    const { repository, row } = found
    durably(this.#db, () => {
      this.#blobs.index.unpinAll(imageKey(space, path, ofSha256(row.blob)))
      this.#blobs.unpin(row.blob, freshPin(space, path))
      this.#rows.dropManifest(repository, row.blob)
      this.#letGo(repository, { space, path })
    })
    this.#dropUnneeded(row.blob)
    return true
  }

  async deleteBlob({ space, path }: RepositoryName, digest: OciDigest): Promise<boolean> {
    const repository = this.#rows.find(space, path)
    const blob = this.#rows.blobNamed(digest)
    if (repository === undefined || blob === undefined || !this.#rows.hasBlob(repository, blob)) return false
    durably(this.#db, () => {
      this.#rows.dropBlob(repository, blob)
      this.#blobs.unpin(blob, freshPin(space, path))
    })
    this.#dropUnneeded(blob)
    return true
  }

  /** Tags that name a manifest, for people. */
  tagsOf({ space, path }: RepositoryName, digest: OciDigest): Tag[] {
    const found = this.#find({ space, path }, { digest })
    return found === undefined ? [] : this.#rows.tagsOf(found.repository, found.row.blob)
  }

  /** This node left the network: what is here for its repositories only goes with it. */
  forgetSpace(space: string): void {
    const blobs = this.#rows.blobsIn(space)
    transaction(this.#db, () => {
      for (const { id, path } of this.#rows.inSpace(space)) {
        for (const blob of this.#rows.kept(id)) this.#blobs.index.unpinAll(imageKey(space, path, ofSha256(blob)))
        this.#blobs.index.unpinAll(freshPin(space, path))
      }
      this.#rows.forgetSpace(space)
    })
    for (const blob of blobs) {
      const isOthers = [...this.#blobs.networksOf(blob)].some((network) => network !== space)
      if (!isOthers) this.#dropUnneeded(blob)
    }
  }

  /** What was pushed a day ago, and is still under no tag, is kept no longer. */
  sweep(): void {
    const old = this.#rows.freshBefore(this.#now() - FRESH_MS_MAX)
    if (old.length === 0) return
    transaction(this.#db, () => {
      for (const { space, path, repository, blob } of old) {
        this.#blobs.unpin(blob, freshPin(space, path))
        this.#rows.settle(repository, blob)
      }
    })
  }

  [Symbol.dispose](): void {
    clearInterval(this.#sweeping)
  }

  #find(
    { space, path }: Pick<RepositoryName, 'space' | 'path'>,
    { tag, digest: asked }: Reference,
  ): { repository: number; digest: OciDigest; row: ManifestRow } | undefined {
    const repository = this.#rows.find(space, path)
    if (repository === undefined) return undefined
    const tagged = tag === undefined ? undefined : this.#rows.tag(repository, tag)
    const digest = asked ?? tagged?.digest
    const blob = tagged?.blob ?? (asked && this.#rows.blobNamed(asked))
    const row = blob && this.#rows.manifest(repository, blob)
    return digest && row ? { repository, digest, row } : undefined
  }

  async #open(blob: Digest): Promise<BlobSource> {
    const source = await this.#blobs.open(blob)
    if (source) return source
    throw new AgentError('not-found', `the blob ${blob} is not here any more`, { next: 'Push it again.' })
  }

  /** @param check once more, when all of the bytes are on disk */
  async #put(
    name: RepositoryName,
    manifest: Manifest,
    push: ManifestPush,
    signal: AbortSignal,
    check: (() => void) | undefined,
  ): Promise<PushedManifest> {
    const blob = hash('sha256', push.bytes, 'hex')
    const digest = digestOf(push, blob)
    const pin = `${TEMPORARY_PIN}image/${randomUUID()}`
    this.#blobs.pin(blob, pin)
    try {
      if (!this.#blobs.has(blob)) await this.#blobs.write(blob, [push.bytes], signal, { pin })
      durably(this.#db, () => {
        check?.()
        this.#record(name, manifest, { digest, blob, push, isPushed: check !== undefined })
      })
    } finally {
      this.#blobs.unpin(blob, pin)
    }
    return { digest, subject: manifest.subject }
  }

  /** In a transaction. */
  #record(
    { space, path }: RepositoryName,
    manifest: Manifest,
    { digest, blob, push, isPushed }: { digest: OciDigest; blob: Digest; push: ManifestPush; isPushed: boolean },
  ): void {
    const repository = this.#rows.findOrMake(space, path)
    const { mediaType, artifactType, annotations, subject } = manifest
    const children = manifest.manifests.map((one) => this.#rows.blobNamed(one.digest))
    const depths = children.map((child) =>
      child === undefined ? 0 : (this.#rows.manifest(repository, child)?.depth ?? 0),
    )
    const depth = children.length === 0 ? 0 : 1 + depths.reduce((most, one) => Math.max(most, one), 0)
    if (depth > DEPTH_MAX) throw new OciError('MANIFEST_INVALID', `more than ${DEPTH_MAX} indexes in each other`)
    const references = [
      ...children.map((child) => ({ blob: child, isManifest: true })),
      ...manifest.blobs.map((one) => ({ blob: this.#rows.blobNamed(one.digest), isManifest: false })),
    ].flatMap(({ blob: named, isManifest }) => (named === undefined ? [] : { blob: named, isManifest }))
    const freshMs = isPushed ? this.#now() : undefined
    const sizeBytes = push.bytes.byteLength
    const row = { blob, digest, sizeBytes, mediaType, artifactType, annotations, subject, depth, references, freshMs }
    this.#rows.putManifest(repository, row)
    this.#rows.name(digest, blob)
    if (isPushed) this.#blobs.pin(blob, freshPin(space, path))
    const leaving = push.tags.some((tag) => {
      const before = this.#rows.tag(repository, tag)
      return before !== undefined && before.blob !== blob
    })
    for (const tag of push.tags) this.#rows.putTag(repository, tag, digest, blob)
    const subjectBlob = subject && this.#rows.blobNamed(subject)
    const isSubjectKept = subjectBlob !== undefined && this.#rows.manifest(repository, subjectBlob)?.isKept
    const isKept = this.#rows.manifest(repository, blob)?.isKept
    if (push.tags.length > 0 || isSubjectKept || isKept) this.#keep(repository, { space, path }, blob)
    if (leaving) this.#letGo(repository, { space, path })
  }

  /** In a transaction: pins a manifest, and all that is kept with it. */
  #keep(repository: number, { space, path }: Pick<RepositoryName, 'space' | 'path'>, from: Digest): void {
    const fresh = freshPin(space, path)
    for (const { blob } of this.#rows.reachedFrom(repository, from)) {
      const reason = imageKey(space, path, ofSha256(blob))
      const named = this.#rows.references(repository, blob).filter(({ isManifest }) => !isManifest)
      for (const one of [blob, ...named.map((reference) => reference.blob)]) {
        this.#blobs.pin(one, reason)
        this.#blobs.unpin(one, fresh)
        this.#rows.settle(repository, one)
      }
      this.#rows.setKept(repository, blob, true)
    }
  }

  /** In a transaction: unpins what no tag leads to any more. It stays until its room is needed. */
  #letGo(repository: number, { space, path }: Pick<RepositoryName, 'space' | 'path'>): void {
    const reached = new Set(this.#rows.reachedFromTags(repository).map(({ blob }) => blob))
    for (const blob of this.#rows.kept(repository)) {
      if (reached.has(blob)) continue
      this.#blobs.index.unpinAll(imageKey(space, path, ofSha256(blob)))
      this.#rows.setKept(repository, blob, false)
    }
  }

  /** Who deletes something wants it gone, not there until its room is needed: others could still have it by its hash. */
  #dropUnneeded(blob: Digest): void {
    const sizeBytes = this.#blobs.sizeOf(blob)
    if (sizeBytes === undefined || this.#rows.isAnywhere(blob)) return
    this.#blobs.evict({ digest: blob, sizeBytes, partialOf: undefined })
  }

  #refuseMissing({ space, path, text }: RepositoryName, { blobs, manifests }: Manifest): void {
    const repository = this.#rows.find(space, path)
    const isHere = (digest: OciDigest, isIn: (repository: number, blob: Digest) => boolean) => {
      const blob = this.blobNamed(digest)
      return repository !== undefined && blob !== undefined && isIn(repository, blob)
    }
    const missing = [
      ...blobs.filter((one) => !one.isForeign && !isHere(one.digest, (id, blob) => this.#rows.hasBlob(id, blob))),
      ...manifests.filter((one) => !isHere(one.digest, (id, blob) => this.#rows.manifest(id, blob) !== undefined)),
    ].map(({ digest }) => digest)
    const [first] = missing
    if (first === undefined) return
    const others = missing.length > 1 ? ` and ${missing.length - 1} more` : ''
    const detail = missing.slice(0, MISSING_MAX).map((digest) => ({ digest }))
    throw new OciError('MANIFEST_BLOB_UNKNOWN', `the manifest names ${first}${others}, which ${text} has not`, {
      detail,
    })
  }
}

/** Keeps what was pushed and has no tag yet. */
function freshPin(space: string, path: string): string {
  return `pushed:${space}/${path}`
}

/** @throws {OciError} DIGEST_INVALID when the bytes have another than the client says */
function digestOf({ digest, bytes }: ManifestPush, sha256: Digest): OciDigest {
  if (digest === undefined) return ofSha256(sha256)
  const found = algorithmOf(digest) === 'sha256' ? ofSha256(sha256) : ofSha512(hash('sha512', bytes, 'hex'))
  if (found === digest) return digest
  throw new OciError('DIGEST_INVALID', `the manifest has the digest ${found}, not ${digest}`)
}
