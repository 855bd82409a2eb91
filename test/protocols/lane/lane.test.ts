/** The handing over of lanes: vectors, that no bytes from outside do anything but parse or be refused, and both sides together. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  answerLanes,
  askLanes,
  decodeLaneAnswer,
  decodeLaneRequest,
  encodeLaneAnswer,
  encodeLaneRequest,
  identityOf,
  type LaneOffers,
  type LaneRequest,
} from '../../../protocols/lane/lane.ts'
import vectors from '../../../protocols/lane/vectors.json' with { type: 'json' }
import { streamPair } from '../../stream-pair.ts'

const never = new AbortController().signal
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const bytesOf = (length: number) => fc.uint8Array({ minLength: length, maxLength: length })
const lane = fc.record({ id: bytesOf(16), key: bytesOf(32) })
const offers = fc.record({
  port: fc.integer({ min: 1, max: 65_535 }),
  expiresMs: fc.integer({ min: 1, max: 10_000 }),
  lanes: fc.array(lane, { minLength: 1, maxLength: 4 }),
})
const request = fc
  .tuple(bytesOf(32), fc.integer({ min: 1, max: 4 }), fc.option(bytesOf(32), { nil: undefined }))
  .map(([digest, count, network]) => ({ digest, count, ...(network && { network }) }))

describe('vectors', () => {
  test.each(vectors.requests)('request for $request.count', ({ request: { digest, count, network }, payload }) => {
    const named = network === undefined ? {} : { network: Buffer.from(network, 'hex') }
    const fields = { digest: Buffer.from(digest, 'hex'), count, ...named }
    expect(hex(encodeLaneRequest(fields))).toBe(payload)
    expect(decodeLaneRequest(Buffer.from(payload, 'hex'))).toMatchObject({ count })
  })

  test.each(vectors.answers)('answer $payload', ({ answer, payload }) => {
    const bytes = Buffer.from(payload, 'hex')
    if ('error' in answer) {
      expect(() => decodeLaneAnswer(bytes)).toThrow(
        expect.objectContaining({ code: answer.error === 'absent' ? 'absent' : 'refused' }),
      )
      return
    }
    const decoded = decodeLaneAnswer(bytes)
    expect({ ...decoded, lanes: decoded.lanes.map(({ id, key }) => ({ id: hex(id), key: hex(key) })) }).toEqual(answer)
    expect(hex(encodeLaneAnswer(decoded))).toBe(payload)
  })

  test.each(vectors.refusedRequests)('request: $why', ({ payload }) => {
    expect(() => decodeLaneRequest(Buffer.from(payload, 'hex'))).toThrow(WireError)
  })

  test.each(vectors.refusedAnswers)('answer: $why', ({ payload }) => {
    expect(() => decodeLaneAnswer(Buffer.from(payload, 'hex'))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })
})

describe('bytes from outside', () => {
  test('any request and any offer survive the way there', () => {
    fc.assert(
      fc.property(request, offers, (asked, given) => {
        expect(hex(encodeLaneRequest(decodeLaneRequest(encodeLaneRequest(asked))))).toBe(hex(encodeLaneRequest(asked)))
        expect(hex(encodeLaneAnswer(decodeLaneAnswer(encodeLaneAnswer(given))))).toBe(hex(encodeLaneAnswer(given)))
      }),
    )
  })

  test('random bytes, and valid ones with one byte changed, parse or are refused', () => {
    const changed = fc
      .tuple(offers, fc.nat(), fc.integer({ min: 1, max: 255 }))
      .map(([given, at, by]) =>
        encodeLaneAnswer(given).map((byte, n, { length }) => (n === at % length ? byte ^ by : byte)),
      )
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), changed), (bytes) => {
        for (const decode of [decodeLaneRequest, decodeLaneAnswer]) {
          try {
            decode(bytes)
          } catch (error) {
            expect(error).toBeInstanceOf(WireError)
          }
        }
      }),
    )
  })

  test('fields of a later version are ignored', () => {
    const bytes = encodeCbor({ digest: new Uint8Array(32), count: 1, color: 'blue' })
    expect(decodeLaneRequest(bytes)).toMatchObject({ count: 1 })
  })
})

describe('both sides', () => {
  const offered: LaneOffers = {
    port: 7_476,
    expiresMs: 10_000,
    lanes: [1, 2].map((n) => ({ id: new Uint8Array(16).fill(n), key: new Uint8Array(32).fill(n) })),
  }

  function pair(offer: Parameters<typeof answerLanes>[1]) {
    const [here, there] = streamPair()
    const answered = answerLanes(new Frames(there), offer, never)
    answered.catch(() => undefined)
    return { asker: new Frames(here), answered }
  }

  test('ask and answer, several times on one stream', async () => {
    const asked: LaneRequest[] = []
    const { asker, answered } = pair((one) => {
      asked.push(one)
      return asked.length === 1 ? offered : { error: 'busy' }
    })
    const want = { digest: new Uint8Array(32).fill(7), count: 2 }
    expect(await askLanes(asker, want, never)).toMatchObject({ port: 7_476 })
    await expect(askLanes(asker, want, never)).rejects.toMatchObject({ code: 'refused' })
    await asker.close()
    await answered
    expect(asked.map(({ count }) => count)).toEqual([2, 2])
  })

  test('more lanes than were asked for are malformed', async () => {
    const { asker } = pair(() => offered)
    await expect(askLanes(asker, { digest: new Uint8Array(32), count: 1 }, never)).rejects.toMatchObject({
      code: 'malformed',
    })
  })

  test('a request that is too long ends the answering', async () => {
    const { asker, answered } = pair(() => offered)
    await asker.write(new Uint8Array(257), never)
    await expect(answered).rejects.toMatchObject({ code: 'too-large' })
  })

  test('an id is named in lower-case hex', () => {
    expect(identityOf(Uint8Array.of(0xab, 1))).toBe('ab01')
  })
})
