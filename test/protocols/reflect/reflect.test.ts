/** Reflection: the words on the stream and the two datagrams, against vectors and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import {
  answerQuestion,
  decodeReflectAnswer,
  decodeReflectRequest,
  decodeReflectSeen,
  encodeQuestion,
  encodeReflectAnswer,
  encodeReflectRequest,
  encodeReflectSeen,
  questionId,
  REFLECT_DATAGRAM_BYTES,
  type ReflectRequest,
  readReflection,
} from '../../../protocols/reflect/reflect.ts'

type Why = { why: string; bytes: string }
const vectors = JSON.parse(readFileSync('protocols/reflect/vectors.json', 'utf8')) as {
  requests: { ask: ReflectRequest; bytes: string }[]
  seen: { address: string; port: number; bytes: string }[]
  refusedSeen: Why[]
  offers: { id: string; key: string; ports: number[]; bytes: string }[]
  refusals: { error: 'off' | 'busy' | 'unknown' | 'absent'; bytes: string }[]
  refusedOffers: Why[]
  key: { id: string; key: string }
  nonce: string
  question: string
  reflections: { from: string; port: number; told: string; answer: string }[]
  silent: Why[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array | undefined) => value && Buffer.from(value).toString('hex')
const key = { id: bytes(vectors.key.id), key: bytes(vectors.key.key) }
const question = bytes(vectors.question)
const FROM = { address: '45.10.0.1', port: 40_000 }

describe('the words for a key', () => {
  it('are the same bytes as anybody’s', () => {
    for (const { ask, bytes: encoded } of vectors.requests) {
      expect(hex(encodeReflectRequest(ask))).toBe(encoded)
      expect(decodeReflectRequest(bytes(encoded))).toBe(ask)
    }
    for (const { bytes: encoded, ...place } of vectors.seen) {
      expect(decodeReflectSeen(bytes(encoded))).toEqual(place)
      expect(hex(encodeReflectSeen(place))).toBe(encoded)
    }
    expect(decodeReflectSeen(bytes(vectors.refusals.at(-1)?.bytes ?? ''))).toBe('absent')
    for (const { bytes: encoded, ports } of vectors.offers) {
      expect(decodeReflectAnswer(bytes(encoded))).toEqual({ ...key, ports })
      expect(hex(encodeReflectAnswer({ ...key, ports }))).toBe(encoded)
    }
    for (const { error, bytes: encoded } of vectors.refusals) {
      expect(decodeReflectAnswer(bytes(encoded))).toBe(error)
      expect(hex(encodeReflectAnswer(error))).toBe(encoded)
    }
  })

  it.each(vectors.refusedSeen)('name no place: $why', ({ bytes: encoded }) => {
    expect(() => decodeReflectSeen(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it.each(vectors.refusedOffers)('are no offer: $why', ({ bytes: encoded }) => {
    expect(() => decodeReflectAnswer(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('of a later version are unknown, or a refusal', () => {
    expect(decodeReflectRequest(bytes('a16361736b646d6f7265'))).toBe('unknown')
    expect(decodeReflectAnswer(bytes('a1656572726f72657469726564'))).toBe('off')
  })

  it('are of any bytes words, or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (input) => {
        for (const decode of [decodeReflectRequest, decodeReflectAnswer, decodeReflectSeen]) {
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

describe('a question and its answer', () => {
  it.each(vectors.reflections)('from $from tell where it came from', ({ from, port, told, answer }) => {
    expect(hex(encodeQuestion(key, bytes(vectors.nonce)))).toBe(vectors.question)
    expect(questionId(question)).toBe(vectors.key.id)
    expect(hex(answerQuestion(key, question, { address: from, port }))).toBe(answer)
    expect(readReflection(key, question, bytes(answer))).toEqual({ address: told, port })
    expect(bytes(answer).byteLength).toBe(question.byteLength)
  })

  it.each(vectors.silent)('are not there for $why', ({ bytes: input }) => {
    const isOurs = questionId(bytes(input)) === vectors.key.id
    expect(isOurs ? answerQuestion(key, bytes(input), FROM) : undefined).toBeUndefined()
  })

  it('belong together: an answer to another question, of another key or of altered bytes is none', () => {
    const answer = answerQuestion(key, question, FROM) ?? new Uint8Array()
    const other = encodeQuestion(key, Buffer.alloc(12, 6))
    expect(readReflection(key, other, answer)).toBeUndefined()
    expect(readReflection({ ...key, key: new Uint8Array(32) }, question, answer)).toBeUndefined()
    fc.assert(
      fc.property(fc.nat(REFLECT_DATAGRAM_BYTES - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const altered = Uint8Array.from(answer)
        altered[at] = (altered[at] ?? 0) ^ change
        expect(readReflection(key, question, altered)).toBeUndefined()
        const asked = Uint8Array.from(question)
        asked[at] = (asked[at] ?? 0) ^ change
        expect(answerQuestion(key, asked, FROM)).toBeUndefined()
      }),
    )
  })

  it('carry any address and port, and are never read out of noise', () => {
    const address = fc.oneof(fc.ipV4(), fc.ipV6())
    fc.assert(
      fc.property(address, fc.integer({ min: 1, max: 65_535 }), (from, port) => {
        const answer = answerQuestion(key, question, { address: from, port })
        const place = answer && readReflection(key, question, answer)
        expect(place?.port).toBe(port)
        expect(normal(place?.address ?? '')).toBe(normal(from.replace(/^::ffff:(?=\d+\.)/i, '')))
      }),
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), (noise) => {
        expect(readReflection(key, question, noise)).toBeUndefined()
        expect(answerQuestion(key, noise, FROM)).toBeUndefined()
      }),
    )
  })
})

/** As URLs write addresses, where each has one form. */
function normal(address: string): string {
  return new URL(`http://${address.includes(':') ? `[${address}]` : address}`).hostname
}
