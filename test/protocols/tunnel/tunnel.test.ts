/** How a tunnel is asked for and answered: against vectors made by hand, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import {
  ANSWER_BYTES_MAX,
  decodeTunnelAnswer,
  decodeTunnelRequest,
  encodeTunnelAnswer,
  encodeTunnelRequest,
  REQUEST_BYTES_MAX,
  TUNNEL_ERRORS,
  type TunnelAnswer,
  type TunnelRequest,
} from '../../../protocols/tunnel/tunnel.ts'

const vectors = JSON.parse(readFileSync('protocols/tunnel/vectors.json', 'utf8')) as {
  requests: (TunnelRequest & { bytes: string })[]
  answers: { answer: TunnelAnswer; bytes: string }[]
  refused: { why: string; bytes: string }[]
}
const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex, 'hex'))
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

describe('a request', () => {
  it.each(vectors.requests)('for $service is read, and written in the same bytes', ({ bytes, ...request }) => {
    expect(decodeTunnelRequest(bytesOf(bytes))).toEqual(request)
    expect(hexOf(encodeTunnelRequest(request))).toBe(bytes)
  })

  it.each(vectors.refused)('is refused: $why', ({ bytes }) => {
    expect(() => decodeTunnelRequest(bytesOf(bytes))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('may say more than is known here, and fits its frame', () => {
    expect(decodeTunnelRequest(encodeCbor({ service: 'web', carrier: 'tcp', sticky: 'x' }))).toEqual({
      service: 'web',
      carrier: 'tcp',
    })
    expect(encodeTunnelRequest({ service: 'a'.repeat(63), carrier: 'tcp' }).byteLength).toBeLessThan(
      REQUEST_BYTES_MAX / 2,
    )
    expect(() => encodeTunnelRequest({ service: 'No', carrier: 'tcp' })).toThrow(RangeError)
  })
})

describe('an answer', () => {
  it.each(vectors.answers)('is read, and written in the same bytes: $bytes', ({ answer, bytes }) => {
    expect(decodeTunnelAnswer(bytesOf(bytes))).toEqual(answer)
    expect(hexOf(encodeTunnelAnswer(answer))).toBe(bytes)
  })

  it('of a later version is a failure, and a reason of any length fits the frame', () => {
    expect(decodeTunnelAnswer(encodeCbor({ error: 'moved', to: 'pear' }))).toEqual({ error: 'failed', why: '' })
    fc.assert(
      fc.property(
        fc.constantFrom(...TUNNEL_ERRORS),
        fc.string({ unit: 'grapheme', maxLength: 5_000 }),
        (error, why) => {
          const bytes = encodeTunnelAnswer({ error, why })
          expect(bytes.byteLength).toBeLessThanOrEqual(ANSWER_BYTES_MAX)
          expect(decodeTunnelAnswer(bytes)).toMatchObject({ error })
        },
      ),
    )
  })
})

it('is of any bytes one, or malformed', () => {
  const altered = fc
    .tuple(fc.constantFrom(...vectors.requests, ...vectors.answers), fc.nat(), fc.nat(255))
    .map(([one, at, byte]) => {
      const changed = bytesOf(one.bytes)
      changed[at % changed.length] = byte
      return changed
    })
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 600 }), altered), (input) => {
      for (const decode of [decodeTunnelRequest, decodeTunnelAnswer]) {
        try {
          decode(input)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }
    }),
  )
})
