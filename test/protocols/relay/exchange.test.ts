/** The words before a relay carries: against vectors made by hand, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import {
  decodeRelayAnswer,
  decodeRelayRequest,
  encodeRelayAnswer,
  encodeRelayRequest,
  type RelayAnswer,
  type RelayRequest,
} from '../../../protocols/relay/exchange.ts'

const vectors = JSON.parse(readFileSync('protocols/relay/vectors.json', 'utf8')) as {
  requests: { ask: RelayRequest['ask']; peer: string; bytes: string }[]
  answers: { answer: RelayAnswer; bytes: string }[]
  refused: { why: string; bytes: string }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex')

describe('a request to a relay', () => {
  it.each(vectors.requests)('$ask is read, and written in the same bytes', ({ ask, peer, bytes: encoded }) => {
    const request = { ask, peer: bytes(peer) }
    expect(decodeRelayRequest(bytes(encoded))).toEqual(request)
    expect(hex(encodeRelayRequest(request))).toBe(encoded)
  })

  it.each(vectors.refused)('is refused: $why', ({ bytes: encoded }) => {
    expect(() => decodeRelayRequest(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('of a later version is unknown', () => {
    expect(decodeRelayRequest(bytes('a16361736b6570756e6368'))).toBe('unknown')
  })

  it('is of any bytes one, unknown or refused', () => {
    const altered = fc.tuple(fc.constantFrom(...vectors.requests), fc.nat(), fc.nat(255)).map(([one, at, byte]) => {
      const changed = bytes(one.bytes)
      changed[at % changed.length] = byte
      return changed
    })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), altered), (input) => {
        for (const decode of [decodeRelayRequest, decodeRelayAnswer]) {
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

describe('an answer of a relay', () => {
  it.each(vectors.answers)('$answer is read, and written in the same bytes', ({ answer, bytes: encoded }) => {
    expect(decodeRelayAnswer(bytes(encoded))).toBe(answer)
    expect(hex(encodeRelayAnswer(answer))).toBe(encoded)
  })

  it('of a later version is a refusal', () => {
    expect(decodeRelayAnswer(bytes('a1656572726f72657469726564'))).toBe('refused')
  })
})
