/** The types of room-contract.ts as schemas: as schemas.ts, which they are a part of. */
import { z } from 'zod'
import type {
  ContentItem,
  ContentList,
  ContentRequest,
  GcRequest,
  GcResult,
  PinEvent,
  PinList,
  PinRequest,
  PinView,
} from './room-contract.ts'

/** The longest of a CID, `publisher/name`, a store path. */
const REF_LENGTH_MAX = 512
const NAME_LENGTH_MAX = 128
/** More than a person reads; bounds one answer. */
const ITEMS_MAX = 10_000
const ITEMS_DEFAULT = 100

const count = z.int().min(0)
const ref = z.string().min(1).max(REF_LENGTH_MAX)
const network = z.string().min(1).max(NAME_LENGTH_MAX).exactOptional()
const time = z.iso.datetime()

export const pinRequest: z.ZodType<PinRequest> = z.strictObject({ ref, network })
export const contentRequest: z.ZodType<ContentRequest> = z.strictObject({
  ref: ref.exactOptional(),
  network,
  sort: z.enum(['size', 'used', 'served']).default('size'),
  limit: z.coerce.number().int().min(1).max(ITEMS_MAX).default(ITEMS_DEFAULT),
})
export const gcRequest: z.ZodType<GcRequest> = z.strictObject({
  all: z.boolean().default(false),
  dryRun: z.boolean().default(false),
})

export const pin: z.ZodType<PinView> = z.object({
  cid: z.string(),
  network: z.string(),
  name: z.string(),
  type: z.enum(['file', 'folder', 'nix']),
  sizeBytes: count,
  pinned: time,
  parts: count,
  inStore: count,
  missing: count,
  root: z.string().exactOptional(),
  pathCount: count.exactOptional(),
})
export const pins: z.ZodType<PinList> = z.object({ pins: z.array(pin) })
export const pinEvent: z.ZodType<PinEvent> = z.union([
  z.object({ type: z.literal('progress'), doneBytes: count, totalBytes: count }),
  z.object({ type: z.literal('done'), result: pin }),
  z.object({
    type: z.literal('error'),
    error: z.object({ code: z.string(), message: z.string(), next: z.string().exactOptional() }),
  }),
])

const item: z.ZodType<ContentItem> = z.object({
  digest: z.string(),
  what: z.string().nullable(),
  place: z.enum(['blobs', 'arriving', 'store', 'nowhere']),
  sizeBytes: count,
  reasons: z.array(
    z.object({
      why: z.enum(['published', 'pinned', 'fetched', 'uploaded', 'in use']),
      name: z.string().exactOptional(),
      network: z.string().exactOptional(),
    }),
  ),
  inUse: z.boolean(),
  since: time.nullable(),
  used: time.nullable(),
  served: z.object({ times: count, bytes: count }),
})
export const contentList: z.ZodType<ContentList> = z.object({
  items: z.array(item),
  truncated: z.boolean(),
  blobs: count,
  bytes: count,
  quotaBytes: count,
  keptBytes: count,
  pathsShared: count,
})

export const gcResult: z.ZodType<GcResult> = z.object({
  dryRun: z.boolean(),
  freed: z.array(
    z.object({ digest: z.string(), what: z.string().nullable(), sizeBytes: count, arriving: z.boolean() }),
  ),
  truncated: z.boolean(),
  blobs: count,
  bytes: count,
  leftBytes: count,
})
