/**
 * The contract's types as schemas: what requests are checked against, and what the OpenAPI document says of replies. Each is declared
 * with its type of contract.ts, so the two cannot drift apart unseen.
 */
import { z } from 'zod'
import type {
  ArtifactDetail,
  ArtifactView,
  ConfigView,
  ErrorBody,
  FetchEvent,
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
  Warning,
} from './contract.ts'
import { image } from './image-schemas.ts'
import { networkView } from './membership-schemas.ts'
import { instance, service } from './service-schemas.ts'

/** As in protocols/artifact: what a record can hold. */
const NAME_LENGTH_MAX = 128
const DESCRIPTION_LENGTH_MAX = 1_000
/** The longest of a CID, `publisher/name`, a store path, a multiaddr. */
const REF_LENGTH_MAX = 512
const WORDS_LENGTH_MAX = 256
/** More than a person reads; bounds one answer. */
const SEARCH_RESULTS_MAX = 500
const SEARCH_RESULTS_DEFAULT = 50

const count = z.int().min(0)
const ref = z.string().min(1).max(REF_LENGTH_MAX)
const name = z.string().min(1).max(NAME_LENGTH_MAX)
const network = z.string().min(1).max(NAME_LENGTH_MAX).exactOptional()
const description = z.string().max(DESCRIPTION_LENGTH_MAX)
const digest = z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 hexadecimal digits')
const artifactType = z.enum(['file', 'folder', 'nix'])
const node = { peerId: z.string(), name: z.string().nullable() }

// Requests. A field that is not known is refused: what it asks for would not be done.

export const pingRequest = z.strictObject({ peer: ref })
export const publishRequest: z.ZodType<PublishRequest> = z.strictObject({
  storePath: z.string().startsWith('/').max(REF_LENGTH_MAX),
  name: name.exactOptional(),
  description: description.exactOptional(),
  network,
})
export const uploadRequest: z.ZodType<UploadRequest> = z.strictObject({
  type: z.enum(['file', 'folder']),
  name,
  description: description.exactOptional(),
  network,
})
export const refRequest = z.strictObject({ ref, network })
export const searchRequest = z.strictObject({
  q: z.string().max(WORDS_LENGTH_MAX).default(''),
  limit: z.coerce.number().int().min(1).max(SEARCH_RESULTS_MAX).default(SEARCH_RESULTS_DEFAULT),
  network,
})
export const digestRequest = z.strictObject({ digest })
export const keyRequest = z.strictObject({ key: ref })

// Replies.

export const errorBody: z.ZodType<ErrorBody> = z.object({
  error: z.object({ code: z.string(), message: z.string(), next: z.string().exactOptional() }),
})

const warning: z.ZodType<Warning> = z.object({ code: z.string(), message: z.string(), next: z.string() })

const peer: z.ZodType<PeerView> = z.object({
  ...node,
  address: z.string(),
  path: z.enum(['direct', 'punched', 'relay']),
  relay: z.object(node).nullable(),
  direction: z.enum(['in', 'out']),
  rttMs: z.number().min(0).nullable(),
  connectedSeconds: z.number().min(0),
  networks: z.array(z.string()),
})
export const peers = z.object({ peers: z.array(peer) })

export const status: z.ZodType<Status> = z.object({
  version: z.string(),
  ...node,
  name: z.string(),
  uptimeSeconds: z.number().min(0),
  listen: z.array(z.string()),
  http: z.string().nullable(),
  networks: z.array(networkView),
  peers: z.array(peer),
  artifacts: z.object({ own: count, known: count }),
  content: z.object({
    pathsShared: count,
    blobs: count,
    bytes: count,
    quotaBytes: count,
    hits: count,
    misses: count,
    fetchedBytes: count,
    servedBytes: count,
    lanes: z.object({ port: count.nullable(), fetchedBytes: count, servedBytes: count }),
  }),
  services: z.array(service),
  instances: z.array(instance),
  warnings: z.array(warning),
})

export const pingResult: z.ZodType<PingResult> = z.object({
  ...node,
  address: z.string(),
  path: z.string(),
  rttMs: z.number().min(0),
})

const artifactFields = {
  cid: z.string(),
  network: z.string(),
  name: z.string(),
  type: artifactType,
  description: z.string(),
  sizeBytes: count,
  publisher: z.object(node),
  own: z.boolean(),
  issued: z.iso.datetime(),
  expires: z.iso.datetime(),
  root: z.string().exactOptional(),
  pathCount: count.exactOptional(),
}
export const artifact: z.ZodType<ArtifactView> = z.object(artifactFields)
export const artifactDetail: z.ZodType<ArtifactDetail> = z.object({
  ...artifactFields,
  holders: z.array(z.object({ ...node, connected: z.boolean() })),
  signer: z.string().exactOptional(),
  signerTrusted: z.boolean().exactOptional(),
  refused: z.string().exactOptional(),
})
export const searchResult: z.ZodType<SearchResult> = z.object({
  artifacts: z.array(artifact),
  truncated: z.boolean(),
  images: z.array(image).exactOptional(),
  imagesTruncated: z.boolean().exactOptional(),
})
export const publishResult: z.ZodType<PublishResult> = z.object({ artifact, announcedTo: count })

const fetchResult: z.ZodType<FetchResult> = z.object({
  artifact: z.object({
    ...artifactFields,
    publisher: artifactFields.publisher.exactOptional(),
    own: artifactFields.own.exactOptional(),
    issued: artifactFields.issued.exactOptional(),
    expires: artifactFields.expires.exactOptional(),
    network: artifactFields.network.exactOptional(),
  }),
  parts: z.array(
    z.object({ digest, sizeBytes: count, kind: z.enum(['file', 'nar']), path: z.string().exactOptional() }),
  ),
})
export const fetchEvent: z.ZodType<FetchEvent> = z.union([
  z.object({ type: z.literal('progress'), doneBytes: count, totalBytes: count }),
  z.object({ type: z.literal('done'), result: fetchResult }),
  z.object({
    type: z.literal('error'),
    error: z.object({ code: z.string(), message: z.string(), next: z.string().exactOptional() }),
  }),
])

export const trustedKey: z.ZodType<TrustedKeyView> = z.object({
  name: z.string(),
  key: z.string(),
  origin: z.enum(['own', 'config', 'added']),
})
export const trustedKeys = z.object({ keys: z.array(trustedKey) })
export const nixConf: z.ZodType<NixConfView> = z.object({
  url: z.string(),
  publicKey: z.string(),
  lines: z.array(z.string()),
})

export const config: z.ZodType<ConfigView> = z.object({
  file: z.string().nullable(),
  entries: z.array(
    z.object({
      key: z.string(),
      value: z.union([z.string(), z.number(), z.boolean(), z.array(z.string())]),
      origin: z.enum(['default', 'file', 'env', 'flag']),
      source: z.string(),
    }),
  ),
})
