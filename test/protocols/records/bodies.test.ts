/** Bodies of records that the protocol itself speaks of, presence and member, against vectors made by another implementation. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { decodeCbor } from '../../../protocols/cbor.ts'
import { Revocations } from '../../../protocols/membership/revocation.ts'
import { MEMBER_KIND, MEMBER_NAME, memberBody, memberIn } from '../../../protocols/records/member.ts'
import { addressesIn, presenceBody, relaysIn } from '../../../protocols/records/presence.ts'
import { decodeRecord, encodeRecord } from '../../../protocols/records/record.ts'
import { HOUR, makeKey, NOW, TestNetwork } from '../membership/people.ts'

const vectors = JSON.parse(readFileSync('protocols/records/vectors.json', 'utf8')) as {
  members: {
    what: string
    record: string
    network: string
    now: number
    expect: { name: string; labels: object; issues: boolean } | null
  }[]
  presences: { what: string; body: string; addresses: string[] | null; relays?: string[] }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))

describe('a member record', () => {
  it.each(vectors.members)('of $what makes who it says', ({ record, network, now, expect: expected }) => {
    const by = { network: hex(network), now, revocations: new Revocations(hex(network)) }
    const found = memberIn(decodeRecord(hex(record)), by)
    expect(found && { name: found.member.name, labels: found.member.labels, issues: found.issues }).toEqual(
      expected ?? undefined,
    )
  })

  it('makes nobody a member whom a revocation names, or whose issuer one names', () => {
    const network = new TestNetwork()
    const [key, delegate] = [makeKey(), makeKey()]
    const about = {
      network: network.id,
      kind: MEMBER_KIND,
      name: MEMBER_NAME,
      seq: 1,
      issued: NOW,
      expires: NOW + HOUR,
    }
    const said = (chain: Uint8Array) => encodeRecord({ ...about, body: { v: 1, chain, issues: false } }, key)
    const byRoot = said(network.certify(key.publicKey).bytes)
    const byDelegate = said(network.certify(key.publicKey, {}, delegate, network.delegate(delegate.publicKey)).bytes)
    const by = { network: network.id, now: NOW, revocations: network.revocations }
    expect([memberIn(byRoot, by), memberIn(byDelegate, by)]).not.toContain(undefined)
    network.revoke(delegate.publicKey, { scope: 'issuer' })
    expect([memberIn(byRoot, by) !== undefined, memberIn(byDelegate, by)]).toEqual([true, undefined])
    network.revoke(key.publicKey)
    expect(memberIn(byRoot, by)).toBeUndefined()
  })

  it('meets any body with no member, never with a crash', () => {
    const key = makeKey()
    const by = { network: new Uint8Array(32), now: NOW, revocations: new Revocations(new Uint8Array(32)) }
    const anything = fc.oneof(
      fc.record({ v: fc.nat(3), chain: fc.uint8Array({ maxLength: 200 }), issues: fc.boolean() }),
      fc.record({ v: fc.nat(3), chain: fc.uint8Array({ maxLength: 200 }) }),
      fc.constantFrom(null, 0, 'x', [], {}),
    )
    fc.assert(
      fc.property(anything, (body) => {
        const times = { seq: 1, issued: NOW, expires: NOW + HOUR }
        const record = encodeRecord({ network: by.network, kind: MEMBER_KIND, name: MEMBER_NAME, ...times, body }, key)
        expect(memberIn(record, by)).toBeUndefined()
      }),
      { numRuns: 200 },
    )
    expect(memberBody.safeParse({ v: 1, chain: new Uint8Array(5_000), issues: false }).success).toBe(false)
  })
})

describe('a presence', () => {
  it.each(vectors.presences)('with $what is read as the vectors say', ({ body, addresses, relays = [] }) => {
    const read = presenceBody.safeParse(decodeCbor(hex(body), z.unknown()))
    expect(read.success).toBe(addresses !== null)
    if (!read.success) return
    expect(addressesIn(read.data)).toEqual(addresses)
    expect(relaysIn(read.data).map((key) => Buffer.from(key).toString('hex'))).toEqual(relays)
  })

  it('has at most four relays that are keys, whatever stands there', () => {
    fc.assert(
      fc.property(fc.anything(), (relays) => {
        const read = relaysIn({ relays })
        expect(read.length).toBeLessThanOrEqual(4)
        for (const one of read) expect(one.byteLength).toBe(32)
      }),
    )
  })

  it('has at most eight addresses that are short texts, whatever stands there', () => {
    fc.assert(
      fc.property(fc.anything(), (addresses) => {
        const read = addressesIn({ addresses })
        expect(read.length).toBeLessThanOrEqual(8)
        for (const one of read) expect(typeof one === 'string' && one.length <= 512).toBe(true)
      }),
    )
  })
})
