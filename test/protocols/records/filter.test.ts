/** Filters of store paths, against vectors made by another implementation, and against any bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import {
  CHANGES_MAX,
  encodeChanges,
  encodePart,
  FilterPart,
  filterKey,
  PART_PATHS_MAX,
  type PartBody,
  partOfKey,
  partsFor,
  prefixOfKey,
  readChanges,
  readPart,
} from '../../../protocols/records/filter.ts'
import { RECORD_BYTES_MAX } from '../../../protocols/records/record.ts'
import { randomFrom } from '../../random.ts'

type Part = { what: string; part: number; parts: number; paths: string[]; absent: string[]; body: string }
type Changes = { what: string; signer: string; added: string[]; gone: string[]; body: string }
const { filters: vectors } = JSON.parse(readFileSync('protocols/records/vectors.json', 'utf8')) as {
  filters: {
    keys: { hashPart: string; key: number }[]
    parts: Part[]
    changes: Changes[]
    refusedParts: { why: string; body: string }[]
    refusedChanges: { why: string; body: string }[]
  }
}
const bodyOf = (text: string) => decodeCbor(Buffer.from(text, 'hex'), z.unknown())
const hexOf = (body: unknown) => Buffer.from(encodeCbor(body)).toString('hex')
const prefixOf = (hashPart: string) => prefixOfKey(filterKey(hashPart))
const key = fc.nat({ max: 2 ** 52 - 1 })

it.each(vectors.keys)('the key of $hashPart is its first 52 bits', ({ hashPart, key: expected }) => {
  expect(filterKey(hashPart)).toBe(expected)
})

describe('a part', () => {
  it.each(vectors.parts)('of $what is read, and written in the same bytes', ({ part, parts, paths, absent, body }) => {
    const read = readPart(bodyOf(body))
    expect(read).toMatchObject({ part, parts, paths: paths.length })
    expect(paths.filter((path) => !read.has(filterKey(path)))).toEqual([])
    expect(absent.filter((path) => read.has(filterKey(path)))).toEqual([])
    expect(hexOf(encodePart(part, parts, paths.map(filterKey).reverse()))).toBe(body)
  })

  it.each(vectors.refusedParts)('is refused: $why', ({ body }) => {
    expect(() => readPart(bodyOf(body))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('has whatever keys it was made of, and is made anew of what was read', () => {
    fc.assert(
      fc.property(fc.array(key, { maxLength: 700 }), fc.constantFrom(1, 2, 64), (keys, parts) => {
        const own = keys.filter((one) => partOfKey(one, parts) === 0)
        const body = encodePart(0, parts, own)
        const part = readPart(body)
        expect(own.every((one) => part.has(one))).toBe(true)
        expect(part.memoryBytes).toBeLessThan(own.length * 1.8 + 16)
      }),
    )
  })

  it('of the largest size fits a record, and says yes to one stranger in 4,096', () => {
    const random = randomFrom(4)
    const some = () => Math.floor(random() * 2 ** 26) * 2 ** 26 + Math.floor(random() * 2 ** 26)
    const keys = Array.from({ length: PART_PATHS_MAX }, some)
    const body = encodePart(0, 1, keys)
    expect(encodeCbor(body).byteLength).toBeLessThan(RECORD_BYTES_MAX - 1_024)
    const part = new FilterPart(body)
    expect(keys.every((one) => part.has(one))).toBe(true)
    const asked = 200_000
    const yes = Array.from({ length: asked }, some).filter((one) => part.has(one)).length
    expect(yes / asked).toBeGreaterThan(0.5 / 4_096)
    expect(yes / asked).toBeLessThan(2 / 4_096)
  })

  it('that was altered is another set or refused, and answers in any case', () => {
    const good = vectors.parts.at(-2) as Part
    fc.assert(
      fc.property(fc.nat(), fc.nat(255), fc.boolean(), key, (at, byte, isCounts, asked) => {
        const body = bodyOf(good.body) as PartBody
        const bytes = isCounts ? body.counts : body.rests
        bytes[at % bytes.length] = byte
        expectReadOrRefused(() => readPart(body).has(asked))
      }),
    )
  })

  it('is never made of anything else', () => {
    const bytes = fc.uint8Array({ maxLength: 12 })
    const small = fc.nat(6)
    const like = fc.record({ v: small, part: small, parts: small, paths: small, counts: bytes, rests: bytes })
    fc.assert(
      fc.property(fc.oneof(fc.anything(), like), key, (body, asked) =>
        expectReadOrRefused(() => readPart(body).has(asked)),
      ),
    )
  })
})

describe('changes', () => {
  it.each(vectors.changes)('of $what are read, and written in the same bytes', ({ signer, added, gone, body }) => {
    const read = readChanges(bodyOf(body))
    expect(read.signer).toBe(signer)
    expect(added.every((path) => read.added.has(prefixOf(path)) && !read.gone.has(prefixOf(path)))).toBe(true)
    expect(gone.every((path) => read.gone.has(prefixOf(path)) && !read.added.has(prefixOf(path)))).toBe(true)
    expect(hexOf(encodeChanges(signer, added.map(prefixOf).reverse(), gone.map(prefixOf)))).toBe(body)
  })

  it.each(vectors.refusedChanges)('are refused: $why', ({ body }) => {
    expect(() => readChanges(bodyOf(body))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('are bounded', () => {
    const many = Array.from({ length: CHANGES_MAX + 1 }, (_, nth) => nth)
    expect(() => readChanges(encodeChanges('', many, []))).toThrow(WireError)
    const most = encodeChanges('', many.slice(1), [])
    expect(readChanges(most).added.has(CHANGES_MAX)).toBe(true)
    expect(encodeCbor(most).byteLength).toBeLessThan(RECORD_BYTES_MAX - 1_024)
  })

  it('are never made of anything else', () => {
    const like = fc.record({ v: fc.nat(2), signer: fc.string(), added: fc.uint8Array(), gone: fc.uint8Array() })
    fc.assert(fc.property(fc.oneof(fc.anything(), like), (body) => expectReadOrRefused(() => readChanges(body))))
  })
})

it('a store is split into a power of two of parts', () => {
  expect([0, 1, 100, 101, 400, 401, 1e9].map((paths) => partsFor(paths, 100))).toEqual([1, 1, 1, 2, 4, 8, 64])
})

function expectReadOrRefused(read: () => unknown): void {
  try {
    read()
  } catch (error) {
    expect(error).toBeInstanceOf(WireError)
  }
}
