/** The piece tree: vectors, and the same root as the plain definition with all its padding. */
import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  HASH_BYTES,
  isPiece,
  merkleRoot,
  PIECE_BYTES,
  PieceHasher,
  pieceBytes,
  pieceCount,
  rangeBytes,
} from '../../../protocols/pieces/tree.ts'
import vectors from '../../../protocols/pieces/vectors.json' with { type: 'json' }
import { pattern } from './pattern.ts'

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const sha256 = (...parts: Uint8Array[]) => {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

/** The definition, word for word. */
function plainRoot(hashes: Uint8Array[]): Uint8Array {
  if (hashes.length === 0) return new Uint8Array(HASH_BYTES)
  let level = [...hashes]
  while (!Number.isInteger(Math.log2(level.length))) level.push(new Uint8Array(HASH_BYTES))
  while (level.length > 1) {
    level = Array.from({ length: level.length / 2 }, (_, at) =>
      sha256(level[at * 2] as Uint8Array, level[at * 2 + 1] as Uint8Array),
    )
  }
  return level[0] as Uint8Array
}

describe('the piece tree', () => {
  test.each(vectors.trees)('of $sizeBytes bytes is that of the vectors', ({ sizeBytes, digest, pieces, root }) => {
    const hasher = new PieceHasher()
    hasher.update(pattern(sizeBytes))
    const found = hasher.finish()
    expect({
      digest: found.digest,
      pieces: found.hashes.byteLength / HASH_BYTES,
      root: hex(merkleRoot(found.hashes)),
    }).toEqual({
      digest,
      pieces,
      root,
    })
    expect(pieceCount(sizeBytes)).toBe(pieces)
  })

  test('has the root of the definition, whatever the number of pieces', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ minLength: 32, maxLength: 32 }), { maxLength: 70 }), (hashes) => {
        expect(hex(merkleRoot(Buffer.concat(hashes)))).toBe(hex(plainRoot(hashes)))
      }),
    )
  })

  test('is the same however the bytes are cut on the way', () => {
    const bytes = pattern(3 * PIECE_BYTES + 17)
    const whole = new PieceHasher()
    whole.update(bytes)
    const expected = whole.finish()
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 400_000 }), { maxLength: 12 }), (lengths) => {
        const hasher = new PieceHasher()
        let at = 0
        for (const length of lengths) {
          hasher.update(bytes.subarray(at, at + length))
          at = Math.min(bytes.byteLength, at + length)
        }
        hasher.update(bytes.subarray(at))
        expect(hasher.finish()).toEqual(expected)
      }),
      { numRuns: 25 },
    )
  })

  test('knows its pieces, and no others', () => {
    const bytes = pattern(PIECE_BYTES + 5)
    const hasher = new PieceHasher()
    hasher.update(bytes)
    const { hashes } = hasher.finish()
    expect(isPiece(bytes.subarray(0, PIECE_BYTES), hashes, 0)).toBe(true)
    expect(isPiece(bytes.subarray(PIECE_BYTES), hashes, 1)).toBe(true)
    expect(isPiece(bytes.subarray(PIECE_BYTES), hashes, 0)).toBe(false)
    expect(isPiece(bytes.subarray(PIECE_BYTES), hashes, 2)).toBe(false)
  })

  test('lengths of ranges add up to the blob', () => {
    fc.assert(
      fc.property(fc.nat(20 * PIECE_BYTES), fc.integer({ min: 1, max: 16 }), (sizeBytes, count) => {
        let total = 0
        for (let from = 0; from < pieceCount(sizeBytes); from += count) {
          const length = rangeBytes(sizeBytes, from, count)
          let pieces = 0
          for (let index = from; index < from + count; index++) pieces += pieceBytes(sizeBytes, index)
          expect(pieces).toBe(length)
          total += length
        }
        expect(total).toBe(sizeBytes)
        expect(rangeBytes(sizeBytes, pieceCount(sizeBytes) + 1, count)).toBe(0)
      }),
    )
  })
})
