/** Signed records, against vectors made by another implementation, and against altered and hostile bytes. */
import { createPrivateKey, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import {
  compareRank,
  decodeRecord,
  encodeRecord,
  ISSUED_AHEAD_MS_MAX,
  keyTag,
  OPEN_NETWORK,
  RECORD_BYTES_MAX,
  type RecordFields,
  timeFault,
} from '../../../protocols/records/record.ts'

const vectors = JSON.parse(readFileSync('protocols/records/vectors.json', 'utf8')) as {
  seed: string
  publicKey: string
  openNetwork: string
  valid: { name: string; record: string; id: string; fields: Record<string, unknown>; body: string | null }[]
  refused: { why: string; record: string; code: string }[]
  tags: { kind: string; name: string; tag: string }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

const key = createPrivateKey({
  key: Buffer.concat([hex('302e020100300506032b657004220420'), hex(vectors.seed)]),
  format: 'der',
  type: 'pkcs8',
})
const signer = { publicKey: hex(vectors.publicKey), sign: (bytes: Uint8Array) => sign(null, bytes, key) }
const fields: RecordFields = {
  network: OPEN_NETWORK,
  kind: 'presence',
  name: 'node',
  seq: 1,
  issued: 1_000,
  expires: 2_000,
  body: {},
}

describe('signed records', () => {
  it.each(vectors.valid)('reads $name', ({ record, id, fields, body }) => {
    const read = decodeRecord(hex(record))
    expect(text(read.id)).toBe(id)
    const { v: _v, extra: _extra, deleted = false, ...rest } = fields
    expect({ ...read, network: text(read.network), publisher: text(read.publisher) }).toMatchObject({
      ...rest,
      deleted,
    })
    expect(body === null ? read.body === undefined : text(encodeCbor(read.body)) === body).toBe(true)
  })

  it('writes the same bytes as another implementation', () => {
    const [presence, deletion] = vectors.valid.map(({ record }) => decodeRecord(hex(record)))
    for (const record of [presence, deletion]) {
      if (!record) throw new Error('no vector')
      const { network, kind, name, seq, issued, expires, body } = record
      const said = record.deleted ? ({ deleted: true } as const) : { body }
      const written = encodeRecord({ network, kind, name, seq, issued, expires, ...said }, signer)
      expect(text(written.bytes)).toBe(text(record.bytes))
    }
  })

  it.each(vectors.refused)('refuses $why', ({ record, code }) => {
    expect(() => decodeRecord(hex(record))).toThrow(expect.objectContaining({ name: 'WireError', code }))
  })

  it('refuses a record over the limit before it reads it', () => {
    const bytes = new Uint8Array(RECORD_BYTES_MAX + 1)
    expect(() => decodeRecord(bytes)).toThrow(expect.objectContaining({ code: 'too-large' }))
  })

  it('refuses every other reading of the same bytes: any one bit turned', () => {
    const { bytes } = encodeRecord(fields, signer)
    fc.assert(
      fc.property(fc.nat(bytes.byteLength * 8 - 1), (bit) => {
        const altered = Uint8Array.from(bytes)
        altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
        expect(() => decodeRecord(altered)).toThrow(WireError)
      }),
      { numRuns: 500 },
    )
  })

  it('refuses arbitrary bytes with a WireError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(() => decodeRecord(bytes)).toThrow(WireError)
      }),
      { numRuns: 500 },
    )
  })

  it('does not sign what others would refuse', () => {
    for (const wrong of [
      { kind: 'A' },
      { name: '' },
      { expires: 1_000 },
      { seq: 0.5 },
      { network: new Uint8Array(3) },
    ]) {
      expect(() => encodeRecord({ ...fields, ...wrong }, signer)).toThrow(RangeError)
    }
    expect(() => encodeRecord({ ...fields, body: 'a'.repeat(RECORD_BYTES_MAX) }, signer)).toThrow(RangeError)
  })

  it('is named by what was signed, not by the signature', () => {
    const { bytes, id } = encodeRecord(fields, signer)
    const altered = Uint8Array.from(bytes)
    altered[0] = (altered[0] ?? 0) ^ 1
    expect(() => decodeRecord(altered)).toThrow(WireError)
    expect(text(encodeRecord(fields, { ...signer, sign: () => new Uint8Array(64) }).id)).toBe(text(id))
  })

  it('is late when it expired, and early when it comes from too far in the future', () => {
    const times = { issued: 1_000_000, expires: 2_000_000 }
    expect(timeFault(times, 2_000_000)).toBe('expired')
    expect(timeFault(times, 1_999_999)).toBeUndefined()
    expect(timeFault(times, 1_000_000 - ISSUED_AHEAD_MS_MAX)).toBeUndefined()
    expect(timeFault(times, 1_000_000 - ISSUED_AHEAD_MS_MAX - 1)).toBe('future')
  })

  it('orders by seq, then by id', () => {
    const rank = (seq: number, id: number) => ({ seq, id: Uint8Array.of(id) })
    expect(compareRank(rank(2, 0), rank(1, 9))).toBeGreaterThan(0)
    expect(compareRank(rank(1, 0), rank(1, 9))).toBeLessThan(0)
    expect(compareRank(rank(1, 9), rank(1, 9))).toBe(0)
  })

  it.each(vectors.tags)('tags $kind/$name', ({ kind, name, tag }) => {
    expect(text(keyTag(kind, name))).toBe(tag)
  })

  it('knows the open network', () => {
    expect(text(OPEN_NETWORK)).toBe(vectors.openNetwork)
  })
})
