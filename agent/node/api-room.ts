/**
 * The room that content takes, as the local API has it (agent/api/room-contract.ts): pins, what is here and why, and freeing it.
 */
import { randomUUID } from 'node:crypto'
import type { CID } from 'multiformats/cid'
import { blobOf, type Digest } from '../../protocols/artifact/artifact.ts'
import type { RoomApi } from '../api/room-api.ts'
import type {
  ContentItem,
  ContentList,
  ContentReason,
  ContentRequest,
  GcRequest,
  GcResult,
  PinList,
  PinView,
} from '../api/room-contract.ts'
import { cidIn, partsOf, readManifest } from '../artifacts/bring.ts'
import { TEMPORARY_PIN } from '../content/content.ts'
import { collectGarbage } from '../content/gc.ts'
import type { PinnedArtifact } from '../content/pins.ts'
import { imageOfPin, OPEN_NETWORK_ID, PUBLICATION_PIN, publicationOf } from '../content/publication-key.ts'
import { AgentError } from '../error.ts'
import type { Log } from '../log.ts'
import { type BringingDeps, bring } from './bringing.ts'
import type { Content } from './content.ts'
import { type Entrance, OPEN_NETWORK_NAME } from './entrance.ts'

const DIGEST_PATTERN = /^[0-9a-f]{64}$/
/** Of what was freed, so many are named. */
const FREED_SHOWN_MAX = 1_000
/** Published store paths that are looked at for a list; the smaller ones of a larger closure are nothing that one looks for. */
const PUBLISHED_SORTED_MAX = 2_000
/** Pins of blobs that somebody sent here, not published under a name. */
const UPLOAD_PIN = 'upload'

export type NodeRoomDeps = Omit<BringingDeps, 'content'> & {
  content: Content
  networks: Pick<Entrance['networks'], 'get'>
  /** The id of a network that a person named. */
  idOf: (network: string | undefined) => string | undefined
  log: Log
}

export class NodeRoom implements RoomApi {
  readonly #deps: NodeRoomDeps

  constructor(deps: NodeRoomDeps) {
    this.#deps = deps
  }

  pins(): PinList {
    return { pins: this.#deps.content.pins.list().map((one) => this.#pinView(one)) }
  }

  async pin(
    ref: string,
    onProgress: (doneBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
    network?: string,
  ): Promise<PinView> {
    const { content, idOf, log } = this.#deps
    const hold = `${TEMPORARY_PIN}${randomUUID()}`
    try {
      const asked = { ref, network: idOf(network) }
      const { cid, entry, brought, digests, ...rest } = await bring(
        asked,
        this.#deps,
        { onProgress, pin: hold },
        signal,
      )
      const { type, root, parts } = brought
      const pinned = content.pins.add(
        {
          network: rest.network,
          cid: cid.toString(),
          name: entry?.name ?? cid.toString(),
          type,
          sizeBytes: parts.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
          ...(root !== undefined && { root, pathCount: parts.length }),
        },
        digests,
      )
      log.info({ cid: pinned.cid, name: pinned.name, blobs: digests.length }, 'artifact.pinned')
      return this.#pinView(pinned)
    } finally {
      content.blobs.index.unpinAll(hold)
    }
  }

  unpin(ref: string, network?: string): PinView {
    const { content, idOf, log } = this.#deps
    const id = idOf(network)
    const [found] = content.pins.find(ref, id)
    const view = found && this.#pinView(found)
    const { cid, name } = content.pins.remove(ref, id)
    log.info({ cid, name }, 'artifact.unpinned')
    return view as PinView
  }

  async content({ ref, network, sort, limit }: ContentRequest, signal: AbortSignal): Promise<ContentList> {
    const { blobs, published } = this.#deps.content
    const totals = {
      ...blobs.stats,
      keptBytes: blobs.index.pinnedBytes(),
      pathsShared: this.#deps.content.sharing.pathCount ?? published.pathCount,
    }
    if (ref === undefined) {
      const rows = blobs.index.rows(sort, limit + 1)
      const digests = new Set([...rows.map(({ digest }) => digest), ...this.#published(sort, limit + 1)])
      const items = [...digests].map((digest) => this.#item(digest)).sort(BY[sort])
      return { items: items.slice(0, limit), truncated: items.length > limit, ...totals }
    }
    const digests = await this.#digestsOf(ref, this.#deps.idOf(network), signal)
    const items = digests.map((digest) => this.#item(digest)).sort(BY[sort])
    return { items: items.slice(0, limit), truncated: items.length > limit, ...totals }
  }

  async gc({ all, dryRun }: GcRequest, signal: AbortSignal): Promise<GcResult> {
    const { content, log } = this.#deps
    const { blobs } = content
    const named = new Map<Digest, string | null>()
    const onFree = (digest: Digest) => void named.set(digest, this.#whatIs(digest))
    if (!dryRun) blobs.index.notes.sweep((digest) => this.#isHere(digest))
    const freed = await collectGarbage(blobs, { all, dryRun, onFree }, signal)
    const bytes = freed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    if (!dryRun) log.info({ blobs: freed.length, bytes, all }, 'blobs.collected')
    const shown = freed.sort((a, b) => b.sizeBytes - a.sizeBytes).slice(0, FREED_SHOWN_MAX)
    return {
      dryRun,
      freed: shown.map(({ digest, sizeBytes, isPartial }) => ({
        digest,
        what: named.get(digest) ?? null,
        sizeBytes,
        arriving: isPartial,
      })),
      truncated: freed.length > shown.length,
      blobs: freed.length,
      bytes,
      leftBytes: blobs.stats.bytes - (dryRun ? bytes : 0),
    }
  }

  #pinView(pinned: PinnedArtifact): PinView {
    const { published, pins } = this.#deps.content
    const { network, cid, name, type, sizeBytes, root, pathCount, pinnedMs } = pinned
    const digests = pins.blobsOf(pinned)
    const elsewhere = pins.absentOf(pinned)
    const inStore = elsewhere.filter((digest) => published.pathOf(digest) !== undefined).length
    return {
      cid,
      network: this.#networkName(network),
      name,
      type,
      sizeBytes,
      pinned: new Date(pinnedMs).toISOString(),
      parts: digests.length,
      inStore,
      missing: elsewhere.length - inStore,
      ...(root !== undefined && { root }),
      ...(pathCount !== undefined && { pathCount }),
    }
  }

  #isHere(digest: Digest): boolean {
    const { blobs } = this.#deps.content
    const isInDirectory = blobs.has(digest) || blobs.index.partial(digest) !== undefined
    return isInDirectory || blobs.isInUse(digest) || this.#inStore(digest) !== undefined
  }

  /** The store path of a NAR that is published or given out from the Nix store. */
  #inStore(digest: Digest): string | undefined {
    const { published, sharing } = this.#deps.content
    return published.pathOf(digest) ?? sharing.source.pathOf(digest)
  }

  #item(digest: Digest): ContentItem {
    const { blobs, published } = this.#deps.content
    const row = blobs.index.get(digest)
    const partial = blobs.index.partial(digest)
    const path = this.#inStore(digest)
    const { sinceMs, served } = blobs.index.notes.get(digest)
    const usedMs = Math.max(row?.usedMs ?? 0, served.lastMs ?? 0)
    return {
      digest,
      what: this.#whatIs(digest),
      place: row ? 'blobs' : path !== undefined ? 'store' : partial ? 'arriving' : 'nowhere',
      sizeBytes: row?.sizeBytes ?? published.sizeOf(digest) ?? partial?.sizeBytes ?? 0,
      reasons: this.#reasonsOf(digest),
      inUse: blobs.isInUse(digest),
      since: timeOf(sinceMs),
      used: timeOf(usedMs || undefined),
      served: { times: served.times, bytes: served.bytes },
    }
  }

  /** Store paths that are given out from where they are: the first in this order. */
  #published(sort: ContentRequest['sort'], limit: number): Digest[] {
    const { blobs, published } = this.#deps.content
    const keyOf = ({ digest, sizeBytes }: { digest: Digest; sizeBytes: number }) => {
      if (sort === 'size') return sizeBytes
      const { served } = blobs.index.notes.get(digest)
      return sort === 'served' ? served.bytes : (served.lastMs ?? 0)
    }
    return published
      .largest(PUBLISHED_SORTED_MAX)
      .map((one) => ({ digest: one.digest, key: keyOf(one) }))
      .sort((a, b) => b.key - a.key)
      .slice(0, limit)
      .map(({ digest }) => digest)
  }

  #reasonsOf(digest: Digest): ContentReason[] {
    const { blobs, published, pins } = this.#deps.content
    const { index } = blobs
    const reasons = index.pins(digest).map((reason): ContentReason => {
      if (reason.startsWith(PUBLICATION_PIN)) return this.#publishedAs(reason.slice(PUBLICATION_PIN.length))
      const pinned = pins.pinnedFor(reason)
      if (pinned) return { why: 'pinned', name: pinned.name, network: this.#networkName(pinned.network) }
      const image = imageOfPin(reason)
      if (image) return { why: 'published', name: image.repository, network: this.#networkName(image.space) }
      return { why: reason.startsWith(UPLOAD_PIN) ? 'uploaded' : 'in use' }
    })
    const partial = index.partial(digest)?.network
    const fetched = new Set([...index.fetchedIn(digest), ...(partial === undefined ? [] : [partial])])
    return [
      ...reasons,
      ...published.keysOf(digest).map((key) => this.#publishedAs(key)),
      ...[...fetched].map((network): ContentReason => ({ why: 'fetched', network: this.#networkName(network) })),
    ]
  }

  #publishedAs(key: string): ContentReason {
    const { network, name } = publicationOf(key)
    return { why: 'published', name, network: this.#networkName(network) }
  }

  #whatIs(digest: Digest): string | null {
    const { blobs, pins } = this.#deps.content
    const { what } = blobs.index.notes.get(digest)
    if (what !== undefined) return what
    const path = this.#inStore(digest)
    if (path !== undefined) return path
    for (const reason of blobs.index.pins(digest)) {
      if (reason.startsWith(PUBLICATION_PIN)) return publicationOf(reason.slice(PUBLICATION_PIN.length)).name
      const pinned = pins.pinnedFor(reason)
      if (pinned) return pinned.name
      const image = imageOfPin(reason)
      if (image) return image.repository
    }
    return null
  }

  #networkName(id: string): string {
    return id === OPEN_NETWORK_ID ? OPEN_NETWORK_NAME : (this.#deps.networks.get(id)?.name ?? id)
  }

  /** The blobs that a digest, a store path, a CID or a name means, as far as that can be told from what is here. */
  async #digestsOf(ref: string, network: string | undefined, signal: AbortSignal): Promise<Digest[]> {
    const { content, catalogs } = this.#deps
    if (DIGEST_PATTERN.test(ref)) return [ref]
    const named = content.blobs.index.notes.named(ref)
    if (named.length > 0 && ref.startsWith('/')) return named
    const [pinned] = content.pins.find(ref, network)
    if (pinned) return content.pins.blobsOf(pinned)
    const cid = cidIn(ref)
    if (cid !== undefined) return await this.#partsOf(cid, [], signal)
    try {
      const { body } = catalogs.resolve(ref, network)
      return await this.#partsOf(body.cid, body.type === 'nix' ? [blobOf(body.signatures).digest] : [], signal)
    } catch (error) {
      if (!(error instanceof AgentError) || error.code !== 'not-found') throw error
      // Nobody offers it any more; what it was called is noted here.
      if (named.length > 0) return named
      throw new AgentError('not-found', `nothing that is here is called ${JSON.stringify(ref)}`, {
        next: '`agent content` lists what is here; `agent search` what peers share.',
      })
    }
  }

  /** Of an artifact whose manifest is here, all of them; nothing is fetched. */
  async #partsOf(cid: CID, also: readonly Digest[], signal: AbortSignal): Promise<Digest[]> {
    const { blobs, holdings } = this.#deps.content
    const own = [blobOf(cid).digest, ...also]
    const { digest, isManifest } = blobOf(cid)
    if (!isManifest || !blobs.has(digest)) return own
    const manifest = await readManifest(holdings, digest, signal)
    return [...new Set([...own, ...partsOf(manifest).map(({ digest }) => digest)])]
  }
}

const BY: Record<ContentRequest['sort'], (a: ContentItem, b: ContentItem) => number> = {
  size: (a, b) => b.sizeBytes - a.sizeBytes,
  used: (a, b) => (b.used ?? '').localeCompare(a.used ?? ''),
  served: (a, b) => b.served.bytes - a.served.bytes,
}

function timeOf(ms: number | undefined): string | null {
  return ms === undefined ? null : new Date(ms).toISOString()
}
