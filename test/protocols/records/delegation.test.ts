/** Delegations in records, against vectors made by another implementation. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { decodeCbor } from '../../../protocols/cbor.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import { delegationIn } from '../../../protocols/records/delegation.ts'
import { makeKey, TestNetwork } from '../membership/people.ts'

const vectors = JSON.parse(readFileSync('protocols/records/vectors.json', 'utf8')) as {
  delegations: { what: string; network: string; body: string; expect: string | null }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))

describe('a delegation in a record', () => {
  it.each(vectors.delegations)('is read as the vectors say: $what', ({ network, body, expect: expected }) => {
    const found = delegationIn(decodeCbor(bytes(body), z.unknown()), bytes(network))
    expect(found === undefined ? null : hexOf(found.id)).toBe(expected)
  })

  it('is none in any other body, and never a crash', () => {
    const network = new TestNetwork()
    const good = network.delegate(makeKey().publicKey)
    expect(delegationIn({ v: 1, delegation: good.bytes }, network.id)?.may).toEqual(['issue', 'revoke'])
    const changed = fc
      .tuple(fc.nat(good.bytes.byteLength - 1), fc.integer({ min: 1, max: 255 }))
      .map(([at, change]) => {
        const one = Uint8Array.from(good.bytes)
        one[at] = (one[at] ?? 0) ^ change
        return one
      })
    const delegation = fc.oneof(fc.uint8Array({ maxLength: 2_000 }), changed, fc.anything())
    fc.assert(
      fc.property(fc.oneof(fc.record({ v: fc.constantFrom(1, 2), delegation }), fc.anything()), (body) => {
        expect(delegationIn(body, network.id)).toBeUndefined()
      }),
      { numRuns: 300 },
    )
  })
})
