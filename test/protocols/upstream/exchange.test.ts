/** Who fetches from upstream: against vectors made by hand, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  answerUpstream,
  askUpstream,
  decodeUpstreamAnswer,
  decodeUpstreamRequest,
  encodeUpstreamAnswer,
  encodeUpstreamRequest,
  type UpstreamRequest,
  type UpstreamState,
} from '../../../protocols/upstream/exchange.ts'
import { streamPair } from '../../stream-pair.ts'

const vectors = JSON.parse(readFileSync('protocols/upstream/vectors.json', 'utf8')) as {
  requests: { ask: UpstreamRequest['ask']; digest: string; bytes: string }[]
  answers: { state: UpstreamState; bytes: string }[]
  refused: { why: string; bytes: string }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex')
const signal = AbortSignal.timeout(10_000)

describe('a request', () => {
  it.each(vectors.requests)('$ask is read, and written in the same bytes', ({ ask, digest, bytes: encoded }) => {
    const request = { ask, digest: bytes(digest) }
    expect(decodeUpstreamRequest(bytes(encoded))).toEqual(request)
    expect(hex(encodeUpstreamRequest(request))).toBe(encoded)
  })

  it.each(vectors.refused)('is refused: $why', ({ bytes: encoded }) => {
    expect(() => decodeUpstreamRequest(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('is of any bytes one, unknown or refused', () => {
    const altered = fc.tuple(fc.constantFrom(...vectors.requests), fc.nat(), fc.nat(255)).map(([one, at, byte]) => {
      const changed = bytes(one.bytes)
      changed[at % changed.length] = byte
      return changed
    })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), altered), (input) => {
        for (const decode of [decodeUpstreamRequest, decodeUpstreamAnswer]) {
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
  it.each(vectors.answers)('$state is read, and written in the same bytes', ({ state, bytes: encoded }) => {
    expect(decodeUpstreamAnswer(bytes(encoded))).toBe(state)
    expect(hex(encodeUpstreamAnswer(state))).toBe(encoded)
  })

  it('of a later version is free', () => {
    expect(decodeUpstreamAnswer(bytes('a1657374617465646c617465'))).toBe('free')
    expect(decodeUpstreamAnswer(bytes('a1656572726f7267756e6b6e6f776e'))).toBe('free')
  })
})

it('is asked and answered on a stream, as often as the asker likes', async () => {
  const [near, far] = streamPair()
  const asked: string[] = []
  const answering = answerUpstream(
    new Frames(far),
    async ({ ask }) => {
      asked.push(ask)
      return asked.length === 1 ? 'coming' : 'here'
    },
    signal,
  )
  const frames = new Frames(near)
  const digest = new Uint8Array(32)
  expect(await askUpstream(frames, { ask: 'claim', digest }, signal)).toBe('coming')
  expect(await askUpstream(frames, { ask: 'await', digest }, signal)).toBe('here')
  await frames.close(signal)
  await answering
  expect(asked).toEqual(['claim', 'await'])
})
