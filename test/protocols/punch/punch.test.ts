/** The words by which holes are made: against vectors and whatever bytes there are; and plans of both ends that fit. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import {
  decodePunchOffer,
  decodePunchStep,
  encodePunchOffer,
  encodePunchStep,
  type PunchOffer,
  type PunchPlan,
  type PunchRefusal,
  type PunchStep,
  planOf,
} from '../../../protocols/punch/punch.ts'

type Router = PunchOffer['router']
const vectors = JSON.parse(readFileSync('protocols/punch/vectors.json', 'utf8')) as {
  offers: { router: Router; port?: number; quicPort?: number; address: string; tag: string; bytes: string }[]
  refusals: { error: PunchRefusal; bytes: string }[]
  steps: { step: PunchStep; bytes: string }[]
  refused: { why: string; bytes: string }[]
  plans: { opener: Router; other: Router; openers: PunchPlan; others: PunchPlan }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex')

describe('an offer', () => {
  it.each(vectors.offers)('of a router that is $router is read, and written in the same bytes', (vector) => {
    const { bytes: encoded, address, tag, ...rest } = vector
    const offer = { ...rest, address: bytes(address), tag: bytes(tag) } as PunchOffer
    expect(decodePunchOffer(bytes(encoded))).toEqual(offer)
    expect(hex(encodePunchOffer(offer))).toBe(encoded)
  })

  it.each(vectors.refused)('is refused: $why', ({ bytes: encoded }) => {
    expect(() => decodePunchOffer(bytes(encoded))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })
})

describe('words', () => {
  it('are read and written in the same bytes, and those of later versions are refusals', () => {
    for (const { error, bytes: encoded } of vectors.refusals) {
      expect(decodePunchOffer(bytes(encoded))).toBe(error)
      expect(hex(encodePunchOffer(error))).toBe(encoded)
    }
    for (const { step, bytes: encoded } of vectors.steps) {
      expect(decodePunchStep(bytes(encoded))).toBe(step)
      expect(hex(encodePunchStep(step))).toBe(encoded)
    }
    expect(decodePunchOffer(bytes('a1656572726f72657469726564'))).toBe('off')
    expect(decodePunchStep(bytes('a1656572726f72657469726564'))).toBe('failed')
  })

  it('are of any bytes words, or refused', () => {
    const altered = fc
      .tuple(fc.constantFrom(...vectors.offers, ...vectors.steps), fc.nat(), fc.nat(255))
      .map(([one, at, byte]) => {
        const changed = bytes(one.bytes)
        changed[at % changed.length] = byte
        return changed
      })
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), altered), (input) => {
        for (const decode of [decodePunchOffer, decodePunchStep]) {
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

describe('plans', () => {
  it.each(vectors.plans)('of $opener and $other fit', ({ opener, other, openers, others }) => {
    expect(planOf(opener, other, true)).toEqual(openers)
    expect(planOf(other, opener, false)).toEqual(others)
    if (openers === 'relay' || others === 'relay') expect(openers).toBe(others)
    else expect(new Set([openers.role, others.role])).toEqual(new Set(['dial', 'listen']))
  })
})
