/** A blob while it arrives: against vectors made by another implementation, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  answerArriving,
  askArriving,
  decodeArrivingAnswer,
  decodeArrivingRequest,
  encodeArrivingAnswer,
  encodeArrivingRequest,
} from '../../../protocols/arriving/exchange.ts'
import { WireError } from '../../../protocols/error.ts'
import { Frames } from '../../../protocols/frame.ts'
import { streamPair } from '../../stream-pair.ts'

const vectors = JSON.parse(readFileSync('protocols/arriving/vectors.json', 'utf8')) as {
  requests: { name: string; digest: string; from: number; bytes: string }[]
  answers: { name: string; bytes: string }[]
  refused: { why: string; bytes: string }[]
  refusedAnswers: { why: string; bytes: string }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex')
const signal = AbortSignal.timeout(10_000)
const digest = new Uint8Array(32)

describe('a request', () => {
  it.each(vectors.requests)('$name is read', ({ digest: named, from, bytes: encoded }) => {
    expect(decodeArrivingRequest(bytes(encoded))).toEqual({ digest: bytes(named), from })
    if (!encoded.includes(hex(Buffer.from('later'))))
      expect(hex(encodeArrivingRequest({ digest: bytes(named), from }))).toBe(encoded)
  })

  it.each(vectors.refused)('is refused: $why', ({ bytes: encoded }) => {
    expect(() => decodeArrivingRequest(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('is of any bytes one, or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (input) => {
        for (const decode of [decodeArrivingRequest, decodeArrivingAnswer]) {
          try {
            decode(input)
          } catch (error) {
            expect(error).toBeInstanceOf(WireError)
          }
        }
      }),
    )
  })
})

describe('an answer', () => {
  it.each(vectors.answers)('$name is read, and written in the same bytes', ({ bytes: encoded }) => {
    expect(hex(encodeArrivingAnswer(decodeArrivingAnswer(bytes(encoded))))).toBe(encoded)
  })

  it.each(vectors.refusedAnswers)('is refused: $why', ({ bytes: encoded }) => {
    expect(() => decodeArrivingAnswer(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })
})

describe('on a stream', () => {
  async function exchange(sizeBytes: number, given: Parameters<typeof answerArriving>[1]) {
    const [near, far] = streamPair()
    const answering = answerArriving(new Frames(far), given, signal).then(() => far.close())
    const asked = await askArriving(new Frames(near), { digest, from: 2 }, sizeBytes, signal)
    const got = 'bytes' in asked ? Buffer.concat(await Array.fromAsync(asked.bytes)).toString() : asked
    await answering
    return got
  }

  it('gives the bytes from the offset on, however they come', async () => {
    async function* slow() {
      yield Buffer.from('23')
      await new Promise((resolve) => setTimeout(resolve, 5))
      yield Buffer.from('456789')
    }
    expect(
      await exchange(10, async ({ from }) => ({ sizeBytes: 10, bytes: from === 2 ? slow() : ([] as never) })),
    ).toBe('23456789')
  })

  it('says who else has it when it is busy', async () => {
    expect(await exchange(10, async () => ({ error: 'busy', followers: [digest] }))).toEqual({
      error: 'busy',
      followers: [digest],
    })
  })

  it('is refused by the asker when it is of another size, and fails when it ends early', async () => {
    await expect(exchange(11, async () => ({ sizeBytes: 10, bytes: [] as never }))).rejects.toMatchObject({
      code: 'mismatch',
    })
    async function* short() {
      yield Buffer.from('2')
    }
    await expect(exchange(10, async () => ({ sizeBytes: 10, bytes: short() }))).rejects.toMatchObject({
      code: 'closed',
    })
  })
})
