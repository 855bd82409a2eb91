/**
 * One comparison of what this node and a peer hold, driven from here; afterwards each has what the other had, up to the limits of a
 * session. Wire format: protocols/records/spec.md.
 *
 * A peer's fault ends the session with a WireError. What this store refuses of a peer's honest records (its own clock may be off, a
 * publisher may be over its bounds or, in a closed network, a stranger) is remembered for a while, so that the next session does not
 * fetch it again. A publisher's member record is fetched and offered before its others, which are nothing without it.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { WireError } from '../../protocols/error.ts'
import {
  ASKED_MAX,
  BUCKETS,
  DIGEST_BYTES,
  offerPages,
  type Position,
  type RecordsAsker,
} from '../../protocols/records/exchange.ts'
import { MEMBER_KIND, MEMBER_NAME } from '../../protocols/records/member.ts'
import { compareRank, keyTag } from '../../protocols/records/record.ts'
import type { Acceptance, Records } from './records.ts'

/** Bytes fetched, and bytes offered, in one session; the next one goes on. */
const SESSION_BYTES_MAX = 64 * 1024 * 1024
/** Publishers asked about at once. */
const PUBLISHERS_ASKED_MAX = 256
/** Records verified and stored before the event loop has its turn: about 10 ms. */
const SLICE_RECORDS = 48
/** An answer about a peer's clock that took longer says too little. */
const CLOCK_RTT_MS_MAX = 5_000
/** Ids of refused records that are remembered, and how long: what was refused for a wrong clock is worth another try. */
const REFUSED_MAX = 20_000
const REFUSED_MS = 10 * 60_000

const MEMBER_TAG = keyTag(MEMBER_KIND, MEMBER_NAME)

export type SyncStore = Pick<
  Records,
  'network' | 'now' | 'bucketDigests' | 'publishers' | 'positions' | 'fetch' | 'acceptAll'
>

export type SyncResult = {
  /** New here. */
  received: number
  /** New to the peer. */
  accepted: number
  /** What the peer would not take, although it was new. */
  refused: number
  /** The peer's clock minus ours, when it could be told. */
  clockOffsetMs: number | undefined
}

export type SyncOptions = {
  refused: RefusedIds
  isOffering: boolean
  /** Told the records that are new here, page by page. */
  onReceived: (records: Uint8Array[]) => void
  signal: AbortSignal
}

/** Ids of records that were fetched and refused. */
export class RefusedIds {
  readonly #until = new Map<string, number>()
  /** How often all was forgotten. */
  epoch = 0

  add(id: Uint8Array, now: number): void {
    if (this.#until.size >= REFUSED_MAX) this.#until.clear()
    this.#until.set(hex(id), now + REFUSED_MS)
  }

  /** To be called when who was a stranger may be one no more. */
  forget(): void {
    this.#until.clear()
    this.epoch++
  }

  has(id: Uint8Array, now: number): boolean {
    const until = this.#until.get(hex(id))
    return until !== undefined && until > now && until <= now + REFUSED_MS
  }
}

/**
 * 1. Compare 256 digests of buckets. 2. Of those that differ, compare digests of publishers. 3. Of those that differ, compare
 * positions; fetch what is newer there, offer what is newer here.
 *
 * @throws {WireError} for what the peer did wrong.
 */
export async function syncWith(
  asker: RecordsAsker,
  store: SyncStore,
  { refused, isOffering, onReceived, signal }: SyncOptions,
): Promise<SyncResult> {
  const asked = store.now()
  const summary = await asker.summary(store.network, asked, signal)
  const rttMs = store.now() - asked
  const isTelling = rttMs >= 0 && rttMs <= CLOCK_RTT_MS_MAX
  const clockOffsetMs = isTelling ? Math.round(summary.now - asked - rttMs / 2) : undefined
  const result: SyncResult = { received: 0, accepted: 0, refused: 0, clockOffsetMs }
  const buckets = differingBuckets(store.bucketDigests(), summary.buckets)
  if (buckets.byteLength === 0) return result

  const differing = await differingPublishers(asker, store, buckets, signal)
  let fetchedBytes = 0
  const offers: Uint8Array[] = []
  for (let at = 0; at < differing.length; ) {
    const batch = differing.slice(at, at + PUBLISHERS_ASKED_MAX)
    const lists = await asker.positions(batch, signal)
    const wanted: Uint8Array[] = []
    for (const [nth, theirs] of lists.entries()) {
      const { newer, older } = compare(store.positions(batch[nth] ?? new Uint8Array()), theirs)
      wanted.push(...newer.filter((id) => !refused.has(id, store.now())))
      offers.push(...older)
    }
    at += lists.length
    for await (const { records, received } of fetchAll(asker, store, wanted, refused, signal)) {
      fetchedBytes += records.reduce((sum, bytes) => sum + bytes.byteLength, 0)
      result.received += received.length
      onReceived(received)
      if (fetchedBytes >= SESSION_BYTES_MAX) break
    }
    if (fetchedBytes >= SESSION_BYTES_MAX) break
  }
  if (isOffering) await offerAll(asker, store, offers, signal, result)
  return result
}

/** Stores records from a peer in slices, with turns of the event loop between. @throws {WireError} when one is not a record. */
export async function acceptInTurns(
  store: Pick<Records, 'acceptAll'>,
  list: readonly Uint8Array[],
): Promise<Acceptance[]> {
  const all: Acceptance[] = []
  for (let at = 0; at < list.length; at += SLICE_RECORDS) {
    if (at > 0) await nextTurn()
    const acceptances = store.acceptAll(list.slice(at, at + SLICE_RECORDS))
    all.push(...acceptances)
    const fault = acceptances.find(isFault)
    if (fault)
      throw new WireError(fault === 'refused:bad-signature' ? 'bad-signature' : 'malformed', `a record was ${fault}`)
  }
  return all
}

/** Whether only a peer that did not look at a record can have sent it. */
export function isFault(acceptance: Acceptance): boolean {
  switch (acceptance) {
    case 'refused:malformed':
    case 'refused:too-large':
    case 'refused:bad-signature':
    case 'refused:network':
      return true
    default:
      return false
  }
}

/** Fetches and stores, page by page. */
async function* fetchAll(
  asker: RecordsAsker,
  store: SyncStore,
  wanted: Uint8Array[],
  refused: RefusedIds,
  signal: AbortSignal,
): AsyncIterable<{ records: Uint8Array[]; received: Uint8Array[] }> {
  for (let at = 0; at < wanted.length; ) {
    const ids = wanted.slice(at, at + ASKED_MAX)
    const answered = await asker.records(ids, signal)
    at += answered.length
    const found = answered.flatMap((bytes, nth) => (bytes ? [{ bytes, id: ids[nth] ?? bytes }] : []))
    const records = found.map(({ bytes }) => bytes)
    const { epoch } = refused
    const acceptances = await acceptInTurns(store, records)
    const notTaken = found.filter((_, nth) => acceptances[nth] !== 'new')
    // What was refused before the members changed may be taken now.
    if (refused.epoch === epoch) for (const { id } of notTaken) refused.add(id, store.now())
    yield { records, received: records.filter((_, nth) => acceptances[nth] === 'new') }
  }
}

async function offerAll(
  asker: RecordsAsker,
  store: SyncStore,
  ids: Uint8Array[],
  signal: AbortSignal,
  result: SyncResult,
): Promise<void> {
  let offeredBytes = 0
  const records = ids.values().flatMap((id) => [store.fetch(id)].filter((bytes) => bytes !== undefined))
  for (const page of offerPages(records)) {
    const { accepted, refused } = await asker.offer(page, signal)
    result.accepted += accepted
    result.refused += refused
    offeredBytes += page.reduce((sum, bytes) => sum + bytes.byteLength, 0)
    if (offeredBytes >= SESSION_BYTES_MAX) return
  }
}

function differingBuckets(ours: Uint8Array, theirs: Uint8Array): Uint8Array {
  const digest = (all: Uint8Array, bucket: number) => all.subarray(bucket * DIGEST_BYTES, (bucket + 1) * DIGEST_BYTES)
  const differs = (bucket: number) => Buffer.compare(digest(ours, bucket), digest(theirs, bucket)) !== 0
  return Uint8Array.from(Array.from({ length: BUCKETS }, (_, bucket) => bucket).filter(differs))
}

async function differingPublishers(
  asker: RecordsAsker,
  store: SyncStore,
  buckets: Uint8Array,
  signal: AbortSignal,
): Promise<Uint8Array[]> {
  const theirs = await asker.publishers(buckets, signal)
  const ours = new Map(store.publishers(buckets).map((one) => [hex(one.publisher), one]))
  const differing = new Map<string, Uint8Array>()
  for (const { publisher, digest } of theirs) {
    const name = hex(publisher)
    const mine = ours.get(name)
    if (!mine || Buffer.compare(mine.digest, digest) !== 0) differing.set(name, publisher)
    ours.delete(name)
  }
  for (const [name, { publisher }] of ours) differing.set(name, publisher)
  return [...differing.values()]
}

/** Ids that are newer there, and ids that are newer here, of one publisher; each record is compared with the one of its key. */
function compare(ours: Position[], theirs: Position[]): { newer: Uint8Array[]; older: Uint8Array[] } {
  return { newer: ahead(theirs, ours), older: ahead(ours, theirs) }
}

function ahead(these: Position[], those: Position[]): Uint8Array[] {
  const known = new Map(those.map((position) => [hex(position.tag), position]))
  const found = these.filter((position) => {
    const other = known.get(hex(position.tag))
    return !other || compareRank(position, other) > 0
  })
  const isMember = ({ tag }: Position) => Buffer.compare(tag, MEMBER_TAG) === 0
  return [...found.filter(isMember), ...found.filter((position) => !isMember(position))].map(({ id }) => id)
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
