/** Questions of DNS as bytes: read by hand and answered by a library, compared with what the library reads; and whatever else may come. */
import { type Answer, decode, encode, type Packet } from 'dns-packet'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { RCODE, type Reply, readQuery, writeFault, writeReply } from '../../../agent/routing/dns-message.ts'

const name = fc
  .array(fc.stringMatching(/^[A-Za-z0-9_-]{1,20}$/), { minLength: 1, maxLength: 8 })
  .map((labels) => labels.join('.'))
const nothing: Reply = { rcode: RCODE.ok, answers: [], authorities: [], additionals: [] }

function question(fields: Partial<Packet> = {}, asked = 'web.home.internal'): Buffer {
  return encode({ type: 'query', id: 7, flags: 0x0100, questions: [{ type: 'A', name: asked }], ...fields })
}
const opt = (udpPayloadSize: number) =>
  [{ type: 'OPT', name: '.', udpPayloadSize, flags: 0, options: [] }] as unknown as Answer[]

function malformed(bytes: Uint8Array) {
  const read = readQuery(bytes)
  return 'malformed' in read ? read.malformed : undefined
}

describe('a DNS question', () => {
  it('is read, and said back as it was written', () => {
    fc.assert(
      fc.property(
        name,
        fc.constantFrom('A', 'AAAA', 'SRV', 'TXT', 'PTR'),
        fc.integer({ min: 0, max: 65_535 }),
        (asked, type, id) => {
          const read = readQuery(
            encode({ type: 'query', id, questions: [{ type, name: asked }], additionals: opt(1_000) }),
          )
          if (!('query' in read)) throw new Error(JSON.stringify(read))
          expect(read.query).toMatchObject({ id, name: asked, type, udpBytes: 1_000 })
          const reply = decode(Buffer.from(writeReply(read.query, nothing, true)))
          expect(reply).toMatchObject({ id, type: 'response', questions: [{ name: asked, type }], flag_aa: true })
        },
      ),
    )
  })

  it('may be any bytes: then it is read, answered with a fault, or dropped', () => {
    const mangled = fc.record({ at: fc.nat(40), byte: fc.nat(255) }).map(({ at, byte }) => {
      const bytes = question({ additionals: opt(1_232) })
      bytes[at % bytes.byteLength] = byte
      return bytes
    })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 100 }), mangled), (bytes) => {
        const read = readQuery(bytes)
        const reply = 'query' in read ? writeReply(read.query, nothing, true) : writeFault(read.malformed)
        if (reply !== undefined) expect(reply[2] ?? 0, 'is an answer').toBeGreaterThanOrEqual(0x80)
      }),
      { numRuns: 2_000 },
    )
  })

  it('is refused by what is wrong with it', () => {
    expect(malformed(Buffer.alloc(11)), 'too short').toBe('drop')
    expect(malformed(encode({ type: 'response', questions: [{ type: 'A', name: 'a' }] })), 'an answer').toBe('drop')
    expect(malformed(question({ flags: 0x2800 }))).toMatchObject({ rcode: RCODE.notImplemented })
    expect(malformed(question({ questions: [] }))).toMatchObject({ rcode: RCODE.format })
    const two = [
      { type: 'A', name: 'a' },
      { type: 'A', name: 'b' },
    ] as const
    expect(malformed(question({ questions: [...two] }))).toMatchObject({ rcode: RCODE.format })
    expect(malformed(question().subarray(0, -2)), 'cut').toMatchObject({ rcode: RCODE.format })
    const pointer = Buffer.from([0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1])
    expect(malformed(pointer), 'a name that points at itself').toMatchObject({ rcode: RCODE.format })
    const chaos = question()
    chaos[chaos.byteLength - 1] = 3
    expect(malformed(chaos), 'class CH').toMatchObject({ rcode: RCODE.refused })
    expect(malformed(question({}, 'a\x00b.home.internal'))).toMatchObject({ rcode: RCODE.refused })
    expect(malformed(question({ additionals: [...opt(1), ...opt(2)] })), 'two EDNS').toMatchObject({
      rcode: RCODE.format,
    })
    const versioned = [{ ...opt(1_232)[0], ednsVersion: 1 }] as Answer[]
    const fault = malformed(question({ additionals: versioned }))
    expect(fault).toMatchObject({ rcode: RCODE.version })
    const [record] = decode(Buffer.from(writeFault(fault as never) ?? [])).additionals as unknown as {
      extendedRcode: number
    }[]
    expect(record?.extendedRcode).toBe(1)
  })

  it('is answered within what its way carries, and by TCP with all', () => {
    const answers = Array.from(
      { length: 60 },
      (_, nth): Answer => ({ name: 'web.home.internal', type: 'A', ttl: 5, data: `127.1.1.${nth}` }),
    )
    const sizes = [undefined, 512, 900, 4_096].map((bytes) => {
      const read = readQuery(question(bytes === undefined ? {} : { additionals: opt(bytes) }))
      if (!('query' in read)) throw new Error('no question')
      const whole = writeReply(read.query, { ...nothing, answers }, false)
      expect(decode(Buffer.from(whole))).toMatchObject({ flag_tc: false, answers: { length: 60 } })
      const cut = writeReply(read.query, { ...nothing, answers }, true)
      expect(decode(Buffer.from(cut))).toMatchObject({ flag_tc: true, answers: [] })
      const spare = writeReply(read.query, { ...nothing, answers: answers.slice(0, 10), additionals: answers }, true)
      expect(decode(Buffer.from(spare)), 'what is additional is left out').toMatchObject({
        flag_tc: false,
        answers: { length: 10 },
      })
      return cut.byteLength
    })
    expect(Math.max(...sizes)).toBeLessThanOrEqual(512)
  })
})
