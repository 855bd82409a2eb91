/** The types of image-contract.ts as schemas: as schemas.ts, which they are a part of. */
import { z } from 'zod'
import type { ImageDetail, ImageHistory, ImageList, ImageRemoved, ImageView, OciConf } from './image-contract.ts'

/** A network, a repository, a tag or a digest. */
const REF_LENGTH_MAX = 512
const WORDS_LENGTH_MAX = 500
const LIMIT_MAX = 1_000
const LIMIT_DEFAULT = 50

const count = z.int().min(0)
const time = z.iso.datetime()
const network = z.string().min(1).max(128).exactOptional()
const publisher = z.object({ peerId: z.string(), name: z.string().nullable() })
const limit = z.coerce.number().int().min(1).max(LIMIT_MAX).default(LIMIT_DEFAULT)

export const listRequest = z.strictObject({ q: z.string().max(WORDS_LENGTH_MAX).default(''), limit, network })
export const refRequest = z.strictObject({ ref: z.string().min(1).max(REF_LENGTH_MAX) })
export const historyRequest = z.strictObject({ ref: z.string().min(1).max(REF_LENGTH_MAX), limit })
export const confRequest = z.strictObject({ program: z.enum(['containerd', 'podman', 'docker']) })

export const image: z.ZodType<ImageView> = z.object({
  name: z.string(),
  network: z.string().nullable(),
  repository: z.string(),
  tag: z.string(),
  digest: z.string(),
  mediaType: z.string(),
  artifactType: z.string().exactOptional(),
  platforms: z.array(z.string()),
  sizeBytes: count,
  labels: z.record(z.string(), z.string()),
  publisher,
  own: z.boolean(),
  updated: time,
  holders: count,
  signatures: z.array(
    z.object({
      digest: z.string(),
      artifactType: z.string(),
      publisher: z.string(),
      verified: z.boolean().nullable(),
      key: z.string().exactOptional(),
    }),
  ),
  here: z.enum(['all', 'part', 'none']),
  upstream: z
    .object({ registry: z.string(), checked: time, fresh: z.boolean(), reason: z.string().exactOptional() })
    .exactOptional(),
})
export const imageList: z.ZodType<ImageList> = z.object({ images: z.array(image), truncated: z.boolean() })
export const imageDetail: z.ZodType<ImageDetail> = z.intersection(
  image,
  z.object({
    heldBy: z.array(z.object({ peerId: z.string(), name: z.string().nullable(), connected: z.boolean() })),
  }),
)
export const imageHistory: z.ZodType<ImageHistory> = z.object({
  name: z.string(),
  moves: z.array(z.object({ moved: time, digest: z.string().nullable(), publisher, counts: z.boolean() })),
})
export const imageRemoved: z.ZodType<ImageRemoved> = z.object({ name: z.string(), digest: z.string() })
export const ociConf: z.ZodType<OciConf> = z.object({
  program: z.enum(['containerd', 'podman', 'docker']),
  url: z.string(),
  files: z.array(z.object({ path: z.string(), lines: z.array(z.string()) })),
  next: z.string(),
})
