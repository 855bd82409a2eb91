/**
 * The contract about the room that content takes on this node: what is kept, why, and how it is freed. As contract.ts, which it is a part
 * of.
 */
import type { ErrorLine } from './contract.ts'

/** An artifact that is kept whatever the quota. */
export type PinView = {
  cid: string
  /** Name of the network that it was pinned in. */
  network: string
  /** What it was pinned by. */
  name: string
  type: 'file' | 'folder' | 'nix'
  sizeBytes: number
  /** ISO 8601. */
  pinned: string
  /** Blobs that it consists of, manifests included; of them those in the Nix store, which Nix's GC roots keep, and those that are gone. */
  parts: number
  inStore: number
  missing: number
  /** Of a Nix closure: the store path, and how many paths it has. */
  root?: string
  pathCount?: number
}
export type PinList = { pins: PinView[] }
export type PinRequest = { ref: string; network?: string }
/** Lines of the answer to a pin, since it may have to be fetched. The last is `done` or `error`. */
export type PinEvent =
  | { type: 'progress'; doneBytes: number; totalBytes: number }
  | { type: 'done'; result: PinView }
  | ErrorLine

/** Why a blob is here. Other reasons may be added. */
export type ContentReason = {
  why: 'published' | 'pinned' | 'fetched' | 'uploaded' | 'in use'
  /** Of the artifact that it is kept for. */
  name?: string
  /** Name of the network; its id when this node has left it. */
  network?: string
}

/** One blob. */
export type ContentItem = {
  /** SHA-256, 64 hexadecimal digits. */
  digest: string
  /** A store path, or the name of an artifact; null when nobody said. */
  what: string | null
  /** `blobs`: in the blob directory; `arriving`: begun and not whole; `store`: in the Nix store; `nowhere`: not here any more. */
  place: 'blobs' | 'arriving' | 'store' | 'nowhere'
  sizeBytes: number
  /** None for what nobody may be given: `agent gc` frees it. */
  reasons: ContentReason[]
  /** It is being read or fetched. */
  inUse: boolean
  /** ISO 8601; null where it is not known. */
  since: string | null
  used: string | null
  /** To peers: times from its beginning, and bytes in all. */
  served: { times: number; bytes: number }
}
type ContentOrder = 'size' | 'used' | 'served'
export type ContentRequest = { ref?: string; network?: string; sort: ContentOrder; limit: number }
export type ContentList = {
  items: ContentItem[]
  /** There were more than the limit. */
  truncated: boolean
  /** Of the blob directory. */
  blobs: number
  bytes: number
  quotaBytes: number
  /** Of these bytes, those that no room is made of. */
  keptBytes: number
  /** Nix store paths that are shared from where they are, and take no room here. */
  pathsShared: number
}

export type GcRequest = { all: boolean; dryRun: boolean }
export type GcResult = {
  dryRun: boolean
  /** What was freed, or would be; the largest first, not all of many. */
  freed: { digest: string; what: string | null; sizeBytes: number; arriving: boolean }[]
  truncated: boolean
  blobs: number
  bytes: number
  /** What is left. */
  leftBytes: number
}
