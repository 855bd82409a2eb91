/** The comparison protocol: messages against vectors, and a peer that does not keep to the rules on either side. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  answerRecords,
  BUCKETS,
  DIGEST_BYTES,
  offerPages,
  type RecordHoldings,
  RecordsAsker,
} from '../../../protocols/records/exchange.ts'
import { RECORD_BYTES_MAX } from '../../../protocols/records/record.ts'
import { streamPair } from '../../stream-pair.ts'

type Digests = {
  publishers: { publisher: string; digest: string; ids: string[] }[]
  bucket: number
  bucketDigest: string
}
const vectors = JSON.parse(readFileSync('protocols/records/vectors.json', 'utf8')) as {
  openNetwork: string
  publicKey: string
  valid: { record: string; id: string; fields: { seq: number } }[]
  digests: Digests
  tags: { tag: string }[]
  messages: { what: string; request: string; answer: string }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const signal = AbortSignal.timeout(20_000)
const limits = { requestsMax: 100, signal: () => signal }
const network = hex(vectors.openNetwork)
const publisher = hex(vectors.publicKey)
const [presence] = vectors.valid

/** Holds what the vectors say. */
function holdings(over: Partial<RecordHoldings> = {}): RecordHoldings {
  const record = hex(presence?.record ?? '')
  const id = hex(presence?.id ?? '')
  const digest = hex(vectors.digests.publishers[0]?.digest ?? '')
  return {
    network,
    now: () => (presence?.fields.seq ?? 0) + 5,
    bucketDigests() {
      const all = Buffer.alloc(BUCKETS * DIGEST_BYTES)
      all.set(hex(vectors.digests.bucketDigest), vectors.digests.bucket * DIGEST_BYTES)
      return all
    },
    publishers: () => [{ publisher, count: 3, digest }],
    positions: () => [{ tag: hex(vectors.tags[0]?.tag ?? ''), seq: presence?.fields.seq ?? 0, id }],
    fetch: (wanted) => (text(wanted) === presence?.id ? record : undefined),
    offer: async () => ({ accepted: 1, refused: 0 }),
    onClock: () => {},
    ...over,
  }
}

/** An asker whose peer answers from `held`. */
function connected(held: RecordHoldings) {
  const [ours, theirs] = streamPair()
  const answering = answerRecords(new Frames(theirs), held, limits)
  answering.catch(() => {})
  const frames = new Frames(ours)
  return { frames, asker: new RecordsAsker(frames), answering }
}

/** An asker whose peer answers everything with `answer`. */
function askerOf(answer: unknown): RecordsAsker {
  const [ours, theirs] = streamPair()
  const frames = new Frames(theirs)
  frames
    .read(signal)
    .then(() => frames.write(encodeCbor(answer), signal))
    .catch(() => {})
  return new RecordsAsker(new Frames(ours))
}

describe('answering', () => {
  it.each(vectors.messages)('$what as the vectors say', async ({ request, answer }) => {
    const { frames } = connected(holdings())
    await frames.write(hex(request), signal)
    expect(text((await frames.read(signal)) ?? new Uint8Array())).toBe(answer)
  })

  it.each([
    ['a question that is not known', { ask: 'everything' }],
    ['a list that is not whole', { ask: 'positions', publishers: new Uint8Array(33) }],
    ['too many ids', { ask: 'records', ids: new Uint8Array(32 * 1_025) }],
    ['too many buckets', { ask: 'publishers', buckets: new Uint8Array(257) }],
    ['a record over the limit', { ask: 'offer', records: [new Uint8Array(RECORD_BYTES_MAX + 1)] }],
    ['no map', 7],
  ])('refuses %s, says so, and ends', async (_what, question) => {
    const { frames, answering } = connected(holdings())
    await frames.write(encodeCbor(question), signal)
    expect(await frames.read(signal)).toEqual(encodeCbor({ error: 'malformed' }))
    await expect(answering).rejects.toMatchObject({ code: 'malformed' })
  })

  it('meets any bytes with an error, never with a crash', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 100 }), async (bytes) => {
        const { frames, answering } = connected(holdings())
        await frames.write(bytes, signal)
        await frames.close()
        await answering.catch((error: Error) => expect(error.name).toBe('WireError'))
      }),
    )
  })

  it('answers no more requests than the limit', async () => {
    const { asker, answering } = connected(holdings())
    for (let nth = 0; nth < limits.requestsMax; nth++) await asker.offer([], signal)
    await expect(asker.offer([], signal)).rejects.toMatchObject({ code: 'refused' })
    await expect(answering).rejects.toMatchObject({ code: 'too-large' })
  })

  it('keeps every answer in a frame, and lets the asker go on', async () => {
    const large = new Uint8Array(RECORD_BYTES_MAX)
    const { asker } = connected(holdings({ fetch: () => large }))
    const ids = Array.from({ length: 100 }, () => new Uint8Array(32))
    let left = ids
    while (left.length > 0) {
      const records = await asker.records(left, signal)
      expect(records.length).toBeLessThan(20)
      left = left.slice(records.length)
    }
    const position = { tag: new Uint8Array(8), seq: 1, id: new Uint8Array(32) }
    const many = connected(holdings({ positions: () => Array.from({ length: 1_024 }, () => position) }))
    expect((await many.asker.positions(ids, signal)).length).toBeLessThan(20)
  })
})

describe('asking', () => {
  it('learns the clock and the digests', async () => {
    const clocks: number[] = []
    const { asker } = connected(holdings({ onClock: (now) => void clocks.push(now) }))
    const summary = await asker.summary(network, 17, signal)
    expect(summary.buckets.byteLength).toBe(BUCKETS * DIGEST_BYTES)
    expect(clocks).toEqual([17])
    await expect(asker.summary(new Uint8Array(32), 17, signal)).rejects.toMatchObject({ code: 'refused' })
  })

  it.each([
    ['fewer digests', { buckets: new Uint8Array(16), now: 1 }],
    ['half a digest', { buckets: new Uint8Array(257 * 8), now: 1 }],
    ['no clock', { buckets: new Uint8Array(BUCKETS * DIGEST_BYTES) }],
    ['something else', []],
  ])('refuses a summary of %s', async (_what, answer) => {
    await expect(askerOf(answer).summary(network, 1, signal)).rejects.toMatchObject({ code: 'malformed' })
  })

  it.each([
    ['no answer to any', { records: [] }],
    ['more than was asked for', { records: [null, null, null] }],
    ['a record over the limit', { records: [new Uint8Array(RECORD_BYTES_MAX + 1)] }],
  ])('refuses records that are %s', async (_what, answer) => {
    const ids = [new Uint8Array(32), new Uint8Array(32)]
    await expect(askerOf(answer).records(ids, signal)).rejects.toMatchObject({ code: 'malformed' })
  })

  it('refuses a gigabyte that calls itself an answer', async () => {
    const [ours, theirs] = streamPair()
    theirs.send(Uint8Array.of(0xff, 0xff, 0xff, 0x7f))
    await expect(new RecordsAsker(new Frames(ours)).records([new Uint8Array(32)], signal)).rejects.toMatchObject({
      code: 'too-large',
    })
  })

  it('offers in pages that fit a frame', () => {
    const sizes = fc.array(fc.integer({ min: 100, max: RECORD_BYTES_MAX }), { maxLength: 60 })
    fc.assert(
      fc.property(sizes, (list) => {
        const records = list.map((size) => new Uint8Array(size))
        const pages = [...offerPages(records)]
        expect(pages.flat().map(({ byteLength }) => byteLength)).toEqual(list)
        for (const page of pages) {
          expect(encodeCbor({ ask: 'offer', records: page }).byteLength).toBeLessThan(1024 * 1024)
          expect(page.length).toBeGreaterThan(0)
        }
      }),
      { numRuns: 30 },
    )
  })
})
