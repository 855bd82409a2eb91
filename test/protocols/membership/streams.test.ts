/** The header of a network's stream: against vectors made by another implementation, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { decodeHeader, encodeHeader, HEADER_BYTES_MAX } from '../../../protocols/membership/streams.ts'
import { hex } from './people.ts'

const vectors = JSON.parse(readFileSync('protocols/membership/vectors.json', 'utf8')) as {
  streams: { network: string; protocol: string; header: string }[]
  refusedStreams: { why: string; header: string }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))

describe('the header of a stream', () => {
  it.each(vectors.streams)('is read and written for $protocol', ({ network, protocol, header }) => {
    expect(decodeHeader(bytes(header))).toEqual({ network: bytes(network), protocol })
    expect(hex(encodeHeader({ network: bytes(network), protocol }))).toBe(header)
    expect(header.length / 2).toBeLessThanOrEqual(HEADER_BYTES_MAX)
  })

  it.each(vectors.refusedStreams)('is refused: $why', ({ header }) => {
    expect(() => decodeHeader(bytes(header))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('is not written for what readers refuse', () => {
    expect(() => encodeHeader({ network: new Uint8Array(31), protocol: '/a' })).toThrow(RangeError)
    expect(() => encodeHeader({ network: new Uint8Array(32), protocol: 'a' })).toThrow(RangeError)
  })

  it('is read back as it was written, and of any bytes either read or refused', () => {
    const protocol = fc.stringMatching(/^\/[!-~]{1,127}$/)
    const network = fc.uint8Array({ minLength: 32, maxLength: 32 })
    fc.assert(
      fc.property(network, protocol, (id, name) => {
        expect(decodeHeader(encodeHeader({ network: id, protocol: name }))).toEqual({ network: id, protocol: name })
      }),
    )
    const altered = fc.tuple(fc.constantFrom(...vectors.streams), fc.nat(), fc.nat(255)).map(([one, at, byte]) => {
      const changed = bytes(one.header)
      changed[at % changed.length] = byte
      return changed
    })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), altered), (input) => {
        try {
          expect(hex(encodeHeader(decodeHeader(input)))).toBe(hex(input))
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
    )
  })
})
