/**
 * How two nodes find out what the other lacks, and hand it over: `/undernet/records/1`, both sides. See spec.md beside this file.
 *
 * The one who dials asks, one request frame at a time; the other answers each by one frame and remembers nothing between them. From
 * coarse to fine: digests of 256 buckets, digests of publishers, positions of records, records. Lists are packed byte strings of
 * fixed-width entries. An answer that would be too large holds the first part of what was asked, at least one entry, and the
 * asker asks for the rest.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'
import { PUBLISHER_RECORDS_MAX, RECORD_BYTES_MAX, TAG_BYTES } from './record.ts'

export const RECORDS_PROTOCOL = '/undernet/records/1'

/** One for each value of the first byte of a publisher's key. */
export const BUCKETS = 256
/** Digests are compared, never searched for: a collision needs 2^64 work and hides only the colliding publisher's own records. */
export const DIGEST_BYTES = 16
const PUBLISHER_BYTES = 32
const ID_BYTES = 32
/** Publishers in one answer, about half of a frame. No store keeps more. */
const PUBLISHERS_MAX = 10_000
/** Publishers in one request for positions, and records in one request for records. */
export const ASKED_MAX = 1_024
/** An answer stops growing here; with one more record of the largest size it still fits a frame. */
const ANSWER_BYTES_MAX = 512 * 1024

const SUMMARY_ENTRY_BYTES = PUBLISHER_BYTES + 4 + DIGEST_BYTES
const POSITION_BYTES = TAG_BYTES + 8 + ID_BYTES

/** What a node holds of one publisher. */
export type PublisherDigest = { publisher: Uint8Array; count: number; digest: Uint8Array }
/** Where one record stands: which key it is of, and how new it is. */
export type Position = { tag: Uint8Array; seq: number; id: Uint8Array }
export type OfferResult = { accepted: number; refused: number }

/** What the answering side reads and writes. */
export type RecordHoldings = {
  readonly network: Uint8Array
  now(): number
  /** BUCKETS × DIGEST_BYTES. */
  bucketDigests(): Uint8Array
  /** Of the buckets, sorted by publisher. */
  publishers(buckets: Uint8Array): PublisherDigest[]
  /** Newest first; empty for an unknown publisher. */
  positions(publisher: Uint8Array): Position[]
  /** The record's bytes. */
  fetch(id: Uint8Array): Uint8Array | undefined
  /** @throws {WireError} when one of them is not a record at all: the peer's fault. */
  offer(records: Uint8Array[]): Promise<OfferResult>
  /** Told what the asker's clock says. */
  onClock(peerNow: number): void
}

const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array, 'not bytes')
const packed = (entryBytes: number, entriesMax: number) =>
  bytes.refine(
    (list) => list.byteLength % entryBytes === 0 && list.byteLength <= entryBytes * entriesMax,
    `not a list of at most ${entriesMax} entries of ${entryBytes} bytes`,
  )
const record = bytes.refine((one) => one.byteLength <= RECORD_BYTES_MAX, 'a record over the limit')
const timeMs = z.int().min(0)

const request = z.discriminatedUnion('ask', [
  z.object({ ask: z.literal('summary'), network: packed(32, 1), now: timeMs }),
  z.object({ ask: z.literal('publishers'), buckets: packed(1, BUCKETS) }),
  z.object({ ask: z.literal('positions'), publishers: packed(PUBLISHER_BYTES, ASKED_MAX) }),
  z.object({ ask: z.literal('records'), ids: packed(ID_BYTES, ASKED_MAX) }),
  z.object({ ask: z.literal('offer'), records: z.array(record).max(ASKED_MAX) }),
])
type Request = z.infer<typeof request>

const summaryAnswer = z.object({ buckets: packed(DIGEST_BYTES, BUCKETS), now: timeMs })
const publishersAnswer = z.object({ publishers: packed(SUMMARY_ENTRY_BYTES, PUBLISHERS_MAX) })
const positionsAnswer = z.object({ positions: z.array(packed(POSITION_BYTES, PUBLISHER_RECORDS_MAX)).max(ASKED_MAX) })
const recordsAnswer = z.object({ records: z.array(record.nullable()).max(ASKED_MAX) })
const offerAnswer = z.object({ accepted: z.int().min(0), refused: z.int().min(0) })
const errorAnswer = z.object({ error: z.string().max(64) })

/** The asking side. Each method is one request and its answer. */
export class RecordsAsker {
  readonly #frames: Frames

  constructor(frames: Frames) {
    this.#frames = frames
  }

  /** @throws {WireError} `refused` when the peer is not in this network. */
  async summary(network: Uint8Array, now: number, signal: AbortSignal): Promise<{ buckets: Uint8Array; now: number }> {
    const answer = await this.#ask({ ask: 'summary', network, now }, summaryAnswer, signal)
    if (answer.buckets.byteLength !== BUCKETS * DIGEST_BYTES) throw new WireError('malformed', 'not 256 digests')
    return answer
  }

  async publishers(buckets: Uint8Array, signal: AbortSignal): Promise<PublisherDigest[]> {
    const answer = await this.#ask({ ask: 'publishers', buckets }, publishersAnswer, signal)
    return split(answer.publishers, SUMMARY_ENTRY_BYTES).map((entry) => ({
      publisher: entry.subarray(0, PUBLISHER_BYTES),
      count: entry.readUInt32BE(PUBLISHER_BYTES),
      digest: entry.subarray(PUBLISHER_BYTES + 4),
    }))
  }

  /** Positions of the first of `publishers`, at least one. */
  async positions(publishers: Uint8Array[], signal: AbortSignal): Promise<Position[][]> {
    const asked = { ask: 'positions', publishers: Buffer.concat(publishers) } as const
    const { positions } = await this.#ask(asked, positionsAnswer, signal)
    checkPart(positions.length, publishers.length)
    return positions.map((list) =>
      split(list, POSITION_BYTES).map((entry) => ({
        tag: entry.subarray(0, TAG_BYTES),
        seq: Number(entry.readBigUInt64BE(TAG_BYTES)),
        id: entry.subarray(TAG_BYTES + 8),
      })),
    )
  }

  /** The first of the records asked for, at least one; null for one that the peer has no more. */
  async records(ids: Uint8Array[], signal: AbortSignal): Promise<(Uint8Array | null)[]> {
    const { records } = await this.#ask({ ask: 'records', ids: Buffer.concat(ids) }, recordsAnswer, signal)
    checkPart(records.length, ids.length)
    return records
  }

  /** Hands over records; the caller keeps to `offerPages`. */
  offer(records: Uint8Array[], signal: AbortSignal): Promise<OfferResult> {
    return this.#ask({ ask: 'offer', records }, offerAnswer, signal)
  }

  async #ask<T>(question: Request, schema: z.ZodType<T>, signal: AbortSignal): Promise<T> {
    await this.#frames.write(encodeCbor(question), signal)
    const frame = await this.#frames.read(signal)
    if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
    const answer = decodeCbor(frame, z.union([errorAnswer, schema]))
    if (isError(answer)) throw new WireError('refused', `the peer answered: ${answer.error}`)
    return answer as T
  }
}

/**
 * Answers requests until the peer ends the stream. A request that breaks the rules is answered with its error code, and ends it too.
 *
 * @throws {WireError} for what the peer did wrong.
 */
export async function answerRecords(frames: Frames, holdings: RecordHoldings, limits: AnswerLimits): Promise<void> {
  for (let asked = 0; ; asked++) {
    const frame = await frames.read(limits.signal())
    if (!frame) return
    try {
      if (asked >= limits.requestsMax) throw new WireError('too-large', `over ${limits.requestsMax} requests`)
      const answer = await answerTo(decodeCbor(frame, request), holdings)
      await frames.write(encodeCbor(answer), limits.signal())
    } catch (error) {
      if (error instanceof WireError && error.code !== 'closed')
        await frames.write(encodeCbor({ error: error.code }), limits.signal())
      throw error
    }
  }
}

export type AnswerLimits = {
  requestsMax: number
  /** Of one wait for the peer. */
  signal(): AbortSignal
}

async function answerTo(asked: Request, holdings: RecordHoldings): Promise<unknown> {
  switch (asked.ask) {
    case 'summary':
      if (Buffer.compare(asked.network, holdings.network) !== 0) throw new WireError('refused', 'another network')
      holdings.onClock(asked.now)
      return { buckets: holdings.bucketDigests(), now: holdings.now() }
    case 'publishers':
      return { publishers: packPublishers(holdings.publishers(asked.buckets)) }
    case 'positions': {
      const lists = split(asked.publishers, PUBLISHER_BYTES)
        .values()
        .map((one) => packPositions(holdings.positions(one)))
      return { positions: firstThatFit(lists) }
    }
    case 'records': {
      const found = split(asked.ids, ID_BYTES)
        .values()
        .map((id) => holdings.fetch(id) ?? null)
      return { records: firstThatFit(found) }
    }
    case 'offer':
      return holdings.offer(asked.records)
  }
}

/** Cuts a list of records into offers that fit a frame. */
export function* offerPages(records: Iterable<Uint8Array>): Iterable<Uint8Array[]> {
  let page: Uint8Array[] = []
  let sizeBytes = 0
  for (const one of records) {
    page.push(one)
    sizeBytes += one.byteLength
    if (sizeBytes < ANSWER_BYTES_MAX && page.length < ASKED_MAX) continue
    yield page
    page = []
    sizeBytes = 0
  }
  if (page.length > 0) yield page
}

function firstThatFit<T extends Uint8Array | null>(list: Iterable<T>): T[] {
  const fit: T[] = []
  let sizeBytes = 0
  for (const one of list) {
    fit.push(one)
    sizeBytes += one?.byteLength ?? 0
    if (sizeBytes >= ANSWER_BYTES_MAX) break
  }
  return fit
}

function packPublishers(list: PublisherDigest[]): Uint8Array {
  const entries = list.slice(0, PUBLISHERS_MAX).map(({ publisher, count, digest }) => {
    const entry = Buffer.alloc(SUMMARY_ENTRY_BYTES)
    entry.set(publisher)
    entry.writeUInt32BE(count, PUBLISHER_BYTES)
    entry.set(digest, PUBLISHER_BYTES + 4)
    return entry
  })
  return Buffer.concat(entries)
}

function packPositions(list: Position[]): Uint8Array {
  const entries = Buffer.alloc(list.length * POSITION_BYTES)
  for (const [nth, { tag, seq, id }] of list.entries()) {
    const at = nth * POSITION_BYTES
    entries.set(tag, at)
    entries.writeBigUInt64BE(BigInt(seq), at + TAG_BYTES)
    entries.set(id, at + TAG_BYTES + 8)
  }
  return entries
}

function split(list: Uint8Array, entryBytes: number): Buffer[] {
  const whole = Buffer.from(list.buffer, list.byteOffset, list.byteLength)
  return Array.from({ length: list.byteLength / entryBytes }, (_, nth) =>
    whole.subarray(nth * entryBytes, (nth + 1) * entryBytes),
  )
}

function checkPart(answered: number, asked: number): void {
  if (answered === 0 || answered > asked) throw new WireError('malformed', 'not an answer to what was asked')
}

function isError(answer: unknown): answer is { error: string } {
  return typeof (answer as { error?: unknown }).error === 'string'
}
