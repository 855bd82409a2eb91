/**
 * What the routes of `/v2/` ask of repositories. `LocalRepositories` answers from what is on this node; what knows tags of other nodes,
 * fetches from peers and asks upstream registries stands in front of it with the same type, and hands on what it does not answer itself.
 *
 * Names and references were parsed before they come here: nothing of this type takes a text that a client wrote.
 */
import type { BlobSource } from '../content/content.ts'
import type { OciDigest, Reference, RepositoryPath, Tag } from './names.ts'

/**
 * A repository: `space` is where it is (the id of a network in hex, or what stands for an upstream registry), `path` what it is called
 * there, and `text` the name as the client wrote it, for answers and messages.
 */
export type RepositoryName = { readonly space: string; readonly path: RepositoryPath; readonly text: string }

/** Something that can be read once it is opened; to know of it costs no open file. */
export type Held = {
  readonly digest: OciDigest
  readonly sizeBytes: number
  /** The caller closes it. @throws {AgentError} `not-found` when it went away meanwhile */
  readonly open: (signal: AbortSignal) => Promise<BlobSource>
}

export type HeldManifest = Held & {
  readonly mediaType: string
  /** For people: why the answer may not be the newest (the upstream is down). Goes out as a Warning header. */
  readonly warning?: string
}

/** A page of tags in ASCII order; `hasMore` when others come after it. */
export type TagPage = { readonly tags: readonly Tag[]; readonly hasMore: boolean }

/** An entry of an index; of image-spec, as far as it is used here. */
export type Descriptor = {
  readonly mediaType: string
  readonly digest: OciDigest
  readonly size: number
  readonly artifactType?: string
  readonly annotations?: Readonly<Record<string, string>>
}

export type ReferrerPage = { readonly descriptors: readonly Descriptor[]; readonly hasMore: boolean }

/** What a PUT of a manifest was. */
export type ManifestPush = {
  /** Of the bytes, in the algorithm of the reference where that is a digest; verified by the repository. */
  readonly digest?: OciDigest
  readonly tags: readonly Tag[]
  readonly bytes: Uint8Array
  /** As the client sent it, without parameters; undefined when it sent none. */
  readonly mediaType: string | undefined
}

export type PushedManifest = { readonly digest: OciDigest; readonly subject: OciDigest | undefined }

/** All of it throws OciError with the specification's codes, or AgentError (`limit` for a full disk). */
export type Repositories = {
  /** Whether anything was ever put there, or is known of it: NAME_UNKNOWN or an empty list. */
  exists(name: RepositoryName, signal: AbortSignal): Promise<boolean>
  resolve(name: RepositoryName, reference: Reference, signal: AbortSignal): Promise<HeldManifest | undefined>
  blob(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<Held | undefined>
  /** Undefined when the repository is not known. */
  tags(
    name: RepositoryName,
    page: { n: number; last: string | undefined },
    signal: AbortSignal,
  ): Promise<TagPage | undefined>
  /** Manifests whose subject this is, ordered by digest; an empty page is no error. `last`: from after that digest on. */
  referrers(
    name: RepositoryName,
    digest: OciDigest,
    query: { artifactType: string | undefined; last: string | undefined },
    signal: AbortSignal,
  ): Promise<ReferrerPage>
  /** On disk for good, and pinned when it is tagged, before it resolves. */
  putManifest(name: RepositoryName, push: ManifestPush, signal: AbortSignal): Promise<PushedManifest>
  /** False when there was none, as below. */
  deleteTag(name: RepositoryName, tag: Tag, signal: AbortSignal): Promise<boolean>
  deleteManifest(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<boolean>
  deleteBlob(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<boolean>
  /** Makes a blob of one repository one of another, too; false when it is not there. `from` undefined: wherever it is in the same space. */
  mount(
    name: RepositoryName,
    digest: OciDigest,
    from: RepositoryName | undefined,
    signal: AbortSignal,
  ): Promise<boolean>
}

/** Which repository a client means. Declared here, since what networks and upstreams there are is others' to know. */
export type Places = {
  /**
   * Of `<network>/<repository>`, or with `ns` (containerd's mirrors) the upstream registry's name for itself.
   * Undefined when there is no such network or upstream.
   */
  locate(path: RepositoryPath, ns: string | undefined): RepositoryName | undefined
  /** Why nothing may be pushed or deleted there by anybody (it is an upstream's, a grant is missing); undefined when it may. */
  writeFault(name: RepositoryName): string | undefined
}
