/** A RoomApi with known answers: the part of fake-agent.ts that is about the room of content. */
import type { RoomApi } from '../../../agent/api/room-api.ts'
import type { ContentItem, ContentList, GcResult, PinView } from '../../../agent/api/room-contract.ts'

export const pin: PinView = {
  cid: 'bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy',
  network: 'open',
  name: 'hello',
  type: 'nix',
  sizeBytes: 230_000_000,
  pinned: '2026-01-01T00:00:00.000Z',
  parts: 53,
  inStore: 0,
  missing: 0,
  root: '/nix/store/0c0n4bqrmk2bmnmzsl2rg7a2hx3vc1dd-hello-2.12',
  pathCount: 51,
}

export const contentItem: ContentItem = {
  digest: 'ab'.repeat(32),
  what: '/nix/store/0c0n4bqrmk2bmnmzsl2rg7a2hx3vc1dd-hello-2.12',
  place: 'blobs',
  sizeBytes: 5_000_000,
  reasons: [
    { why: 'pinned', name: 'hello', network: 'open' },
    { why: 'fetched', network: 'home' },
  ],
  inUse: true,
  since: '2026-01-01T00:00:00.000Z',
  used: '2026-01-02T00:00:00.000Z',
  served: { times: 3, bytes: 15_000_000 },
}

export const contentItems: ContentItem[] = [
  contentItem,
  {
    digest: 'cd'.repeat(32),
    what: null,
    place: 'blobs',
    sizeBytes: 4_000,
    reasons: [],
    inUse: false,
    since: null,
    used: null,
    served: { times: 0, bytes: 0 },
  },
]

export const contentList: ContentList = {
  items: contentItems,
  truncated: false,
  blobs: 2,
  bytes: 5_004_000,
  quotaBytes: 20 * 2 ** 30,
  keptBytes: 5_000_000,
  pathsShared: 51,
}

export const freedBlob: GcResult['freed'][number] = {
  digest: 'cd'.repeat(32),
  what: null,
  sizeBytes: 4_000,
  arriving: false,
}

export const gcResult: GcResult = {
  dryRun: false,
  freed: [freedBlob],
  truncated: false,
  blobs: 1,
  bytes: 4_000,
  leftBytes: 5_000_000,
}

export function fakeRoom(replaced: Partial<RoomApi> = {}): RoomApi {
  return {
    pins: () => ({ pins: [pin] }),
    pin: async () => pin,
    unpin: () => pin,
    content: () => contentList,
    gc: ({ dryRun }) => ({ ...gcResult, dryRun }),
    ...replaced,
  }
}
