/**
 * What the routes need of a running agent, one method an endpoint; the composition root implements it. Each method may throw an
 * AgentError, which becomes the answer. A `signal` fires when the requester hangs up or the agent stops.
 *
 * `network` is a network's local name or the beginning of its id. What is published without it goes to the only network that this node
 * is in, the open one included; with several, a `usage` error names them, since nothing private goes out by a guess. What is asked for
 * without it is looked for in all.
 */
import type { BlobReader } from './blob-reader.ts'
import type {
  ArtifactDetail,
  ArtifactView,
  ConfigView,
  FetchResult,
  NixConfView,
  PeerView,
  PingResult,
  PublishRequest,
  PublishResult,
  SearchResult,
  Status,
  TrustedKeyView,
  UploadRequest,
} from './contract.ts'
import type { ImageApi } from './image-api.ts'
import type { MembershipApi } from './membership-api.ts'
import type { NamesApi } from './names-api.ts'
import type { NetcheckApi } from './netcheck-api.ts'
import type { RoomApi } from './room-api.ts'
import type { ServiceApi } from './service-api.ts'
import type { ShareApi } from './share-contract.ts'
import type { UpkeepApi } from './upkeep-api.ts'

type Awaitable<T> = T | Promise<T>

export interface AgentApi {
  readonly membership: MembershipApi
  readonly room: RoomApi
  readonly sharing: ShareApi
  readonly names: NamesApi
  readonly netcheck: NetcheckApi
  readonly routing: ServiceApi
  readonly images: ImageApi
  readonly upkeep: UpkeepApi

  status(): Awaitable<Status>
  peers(): Awaitable<PeerView[]>
  /** `peer` is a peer id, a node's name, a multiaddr or the name of a service, whose nearest instance is meant. */
  ping(peer: string, signal: AbortSignal): Promise<PingResult>

  publishStorePath(request: PublishRequest, signal: AbortSignal): Promise<PublishResult>
  /** A folder arrives as a NAR. The bytes end with an error when the requester hangs up. */
  publishUpload(request: UploadRequest, bytes: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<PublishResult>
  unpublish(ref: string, network?: string): Awaitable<ArtifactView>

  /** Everything, newest first, when there are no words. */
  search(words: string, limit: number, network?: string, signal?: AbortSignal): Awaitable<SearchResult>
  artifact(ref: string, network?: string): Awaitable<ArtifactDetail>
  /** Brings all of an artifact to this node. `onProgress` may be called as often as is handy: the server thins it out. */
  fetch(
    ref: string,
    onProgress: (doneBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
    network?: string,
  ): Promise<FetchResult>
  /** What this node holds under a digest; undefined when nothing. */
  blob(digest: string): Promise<BlobReader | undefined>

  trustedKeys(): Awaitable<TrustedKeyView[]>
  /** `key` is `name:base64`. */
  trust(key: string): Awaitable<TrustedKeyView>
  /** `key` is a key or the name of one. */
  distrust(key: string): Awaitable<TrustedKeyView>
  nixConf(): Awaitable<NixConfView>

  config(): Awaitable<ConfigView>
}
