/** Bodies of tag records and which of several counts, against vectors made by another implementation. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeCbor, encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import {
  ALIASES_MAX,
  compareMoves,
  countsBy,
  LABELS_LENGTH_MAX,
  type OciTagBody,
  ociTagBody,
  ociTagName,
  PLATFORMS_MAX,
} from '../../../protocols/oci-tag/oci-tag.ts'
import { encodeRecord, LEASE_MS_MAX, OPEN_NETWORK, RECORD_BYTES_MAX } from '../../../protocols/records/record.ts'

const vectors = JSON.parse(readFileSync('protocols/oci-tag/vectors.json', 'utf8')) as {
  bodies: { name: string; bytes: string; record: string }[]
  refusedBodies: { why: string; bytes: string }[]
  moves: { why: string; now: number; moves: { moved: number; publisher: string }[]; counts: number | null }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))

describe('bodies', () => {
  it.each(vectors.bodies)('reads $name, and knows its record', ({ bytes, record }) => {
    const body = decodeCbor(hex(bytes), ociTagBody)
    expect(ociTagName(body.gone === true ? { ...body, digest: undefined } : body)).toBe(record)
  })

  it.each(vectors.refusedBodies)('refuses $why', ({ bytes }) => {
    expect(() => decodeCbor(hex(bytes), ociTagBody)).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('throws a WireError for altered bytes, or reads what fits all bounds', () => {
    const bytes = hex(vectors.bodies[1]?.bytes ?? '')
    fc.assert(
      fc.property(fc.nat(bytes.byteLength - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const altered = Uint8Array.from(bytes, (byte, nth) => (nth === at ? byte ^ flip : byte))
        try {
          const body = decodeCbor(altered, ociTagBody)
          expect(ociTagName({ ...body, digest: undefined })).toMatch(/^[!-~]{1,128}$/)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
      { numRuns: 1_000 },
    )
  })

  it('of the largest size fits a record, and many of the usual size what is kept of a publisher', () => {
    const alias = { digest: `sha512:${'0'.repeat(128)}`, blob: new Uint8Array(32) }
    const body: OciTagBody = {
      repository: 'a'.repeat(239),
      tag: 'a'.repeat(128),
      moved: Number.MAX_SAFE_INTEGER,
      digest: alias.digest,
      blob: alias.blob,
      sizeBytes: 4 * 1024 * 1024,
      mediaType: `${'a'.repeat(127)}/${'a'.repeat(127)}`,
      artifactType: `${'a'.repeat(127)}/${'a'.repeat(127)}`,
      subject: alias.digest,
      imageBytes: Number.MAX_SAFE_INTEGER,
      platforms: Array.from({ length: PLATFORMS_MAX }, () => ['a', 'b', 'c'].map((one) => one.repeat(32)).join('/')),
      labels: Object.fromEntries(
        Array.from({ length: 4 }, (_, nth) => [`${nth}`, '\uffff'.repeat(LABELS_LENGTH_MAX / 4 - 1)]),
      ),
      aliases: Array.from({ length: ALIASES_MAX }, () => alias),
      upstream: true,
    }
    expect(ociTagBody.parse(body)).toEqual(body)
    const issued = Number.MAX_SAFE_INTEGER - LEASE_MS_MAX
    const signer = { publicKey: new Uint8Array(32), sign: () => new Uint8Array(64) }
    const expires = Number.MAX_SAFE_INTEGER
    const fields = { network: OPEN_NETWORK, kind: 'oci-tag', seq: expires, issued, expires }
    const record = encodeRecord({ ...fields, name: ociTagName(body), body }, signer)
    expect(record.bytes.byteLength).toBeLessThan(RECORD_BYTES_MAX)
    const usual = encodeRecord(
      { ...fields, name: 'app:1', body: decodeCbor(hex(vectors.bodies[0]?.bytes ?? ''), ociTagBody) },
      signer,
    )
    expect(usual.bytes.byteLength * 1_024).toBeLessThan(4 * 1024 * 1024)
  })

  it('are not fooled by a label that is called like something that all objects have', () => {
    const body = ociTagBody.parse(decodeCbor(hex(vectors.bodies[0]?.bytes ?? ''), ociTagBody))
    const odd = encodeCbor({ ...body, labels: { constructor: 'x', toString: 'y' } })
    expect(decodeCbor(odd, ociTagBody)).toMatchObject({ labels: { constructor: 'x' } })
  })
})

describe('moves of a tag', () => {
  it.each(vectors.moves)('$why', ({ now, moves, counts }) => {
    const all = moves.map(({ moved, publisher }) => ({ moved, publisher: hex(publisher) }))
    const [first] = all.filter((one) => countsBy(one, now)).sort((a, b) => compareMoves(b, a))
    expect(first).toBe(counts === null ? undefined : all[counts])
  })

  it('are in one order, whoever compares them', () => {
    const move = fc.record({ moved: fc.nat(3), publisher: fc.uint8Array({ minLength: 2, maxLength: 2 }) })
    fc.assert(
      fc.property(fc.array(move, { minLength: 1, maxLength: 6 }), (all) => {
        const first = (list: typeof all) => list.toSorted((a, b) => compareMoves(b, a))[0]
        expect(first(all.toReversed())).toEqual(first(all))
      }),
    )
  })
})
