/** Signed piece lists: vectors, and that nothing passes that was not signed as it stands. */
import { createPrivateKey, createPublicKey, sign } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { isAbout, LIST_STATEMENT_BYTES_MAX, readList, signList } from '../../../protocols/pieces/list-statement.ts'
import vectors from '../../../protocols/pieces/vectors.json' with { type: 'json' }

const bytes = (hex: string) => Buffer.from(hex, 'hex')
const hex = (data: Uint8Array) => Buffer.from(data).toString('hex')

function signerOf(seed: Uint8Array) {
  const key = createPrivateKey({
    key: Buffer.concat([bytes('302e020100300506032b657004220420'), seed]),
    format: 'der',
    type: 'pkcs8',
  })
  const publicKey = createPublicKey(key).export({ type: 'spki', format: 'der' }).subarray(12)
  return { publicKey, sign: (data: Uint8Array) => sign(null, data, key) }
}

function factsOf({ statement }: (typeof vectors.lists)[number]) {
  const { network, digest, sizeBytes, root, issued } = statement
  return { network: bytes(network), digest: bytes(digest), sizeBytes, root: bytes(root), issued }
}

describe('a signed piece list', () => {
  test.each(vectors.lists)('of $statement.sizeBytes bytes is as in the vectors', (vector) => {
    const facts = factsOf(vector)
    expect(hex(signList(facts, signerOf(bytes(vector.key))))).toBe(vector.bytes)
    const read = readList(bytes(vector.bytes))
    expect(hex(read.signer)).toBe(vector.statement.signer)
    expect(isAbout(read, facts)).toBe(true)
    expect(read.bytes.byteLength).toBeLessThanOrEqual(LIST_STATEMENT_BYTES_MAX)
  })

  test.each(vectors.refusedLists)('is refused: $why', (vector) => {
    expect(() => readList(bytes(vector.bytes))).toThrow(WireError)
  })

  test('is of one blob, of one size, with one root, in one network', () => {
    const [one, other] = vectors.lists.map(factsOf)
    if (!one || !other) throw new Error('two vectors')
    expect(isAbout(one, { ...one, network: other.network })).toBe(false)
    expect(isAbout(one, { ...one, sizeBytes: other.sizeBytes })).toBe(false)
    expect(isAbout(one, { ...one, digest: one.root })).toBe(false)
    expect(isAbout(one, { ...one, root: one.digest })).toBe(false)
  })

  test('with any byte changed, or any bytes in its place, is refused', () => {
    const good = bytes(vectors.lists[0]?.bytes ?? '')
    fc.assert(
      fc.property(fc.nat(good.byteLength - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const spoilt = Buffer.from(good)
        spoilt[at] = (spoilt[at] ?? 0) ^ change
        expect(() => readList(spoilt)).toThrow(WireError)
      }),
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: LIST_STATEMENT_BYTES_MAX + 8 }), (any) => {
        expect(() => readList(any)).toThrow(WireError)
      }),
    )
  })
})
