/** SOCKS 5, byte by byte: what clients send is read whole or not at all, and nothing that is none is taken for it. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  readDatagram,
  readGreeting,
  readRequest,
  SocksFault,
  writeDatagram,
  writeReply,
} from '../../../agent/routing/socks-messages.ts'

const host = fc.oneof(fc.ipV4(), fc.stringMatching(/^[a-z][a-z0-9.-]{0,62}$/))
const address = fc.record({ host, port: fc.integer({ min: 0, max: 65_535 }) })

/** As clients write it: the reply has the same shape, with the version and a number before it. */
function request(command: number, to: { host: string; port: number }): Buffer {
  const bytes = Buffer.from(writeReply(0, to))
  bytes[1] = command
  return bytes
}

describe('SOCKS 5', () => {
  it('reads back what it writes, also in the middle of more, and waits for what is missing', () => {
    fc.assert(
      fc.property(address, fc.uint8Array({ maxLength: 20 }), (to, more) => {
        const bytes = request(1, to)
        expect(readRequest(Buffer.concat([bytes, more]))).toEqual({
          value: { ...to, command: 'connect' },
          length: bytes.byteLength,
        })
        for (let cut = 0; cut < bytes.byteLength; cut += 1) expect(readRequest(bytes.subarray(0, cut))).toBeUndefined()
        expect(readDatagram(writeDatagram(to, more))).toEqual({ ...to, data: Buffer.from(more) })
      }),
    )
  })

  it('takes whatever bytes for a message, for the beginning of one, or for a fault', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        for (const read of [readGreeting, readRequest]) {
          try {
            const message = read(bytes)
            if (message !== undefined) expect(message.length).toBeLessThanOrEqual(bytes.byteLength)
          } catch (error) {
            expect(error).toBeInstanceOf(SocksFault)
          }
        }
        readDatagram(bytes)
      }),
      { numRuns: 1_000 },
    )
  })

  it('says which of its faults it was', () => {
    const fault = (bytes: Uint8Array) => {
      try {
        readRequest(bytes)
      } catch (error) {
        return (error as SocksFault).reply
      }
      return undefined
    }
    expect(fault(request(2, { host: '1.2.3.4', port: 1 })), 'BIND').toBe(7)
    expect(fault(Uint8Array.of(5, 1, 0, 9, 1)), 'no such kind of address').toBe(8)
    expect(fault(Uint8Array.of(5, 1, 0, 3, 3, 0x61, 0, 0x62, 0, 80)), 'a zero in a name').toBe(1)
    expect(() => readGreeting(Uint8Array.of(6, 1, 0))).toThrow(/SOCKS 6/)
    expect(readDatagram(Uint8Array.of(0, 0, 1, 1, 1, 2, 3, 4, 0, 80, 9)), 'a fragment').toBeUndefined()
  })
})
