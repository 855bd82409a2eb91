/** Who is a member: certificates and delegations against altered, hostile and revoked ones. What each fault is, the vectors say. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import { decodeChain, decodeDelegation, judgeChain, verifyChain } from '../../../protocols/membership/certificate.ts'
import { fitsName, LIFETIME_MS_MAX } from '../../../protocols/membership/statement.ts'
import { HOUR, makeKey, NOW, TestNetwork } from './people.ts'

const network = new TestNetwork()
const web = makeKey()
const issuer = makeKey()
const by = { network: network.id, subject: web.publicKey, now: NOW, revocations: network.revocations }

describe('a certificate', () => {
  it('makes its subject a member, with the name and labels that it gives', () => {
    const chain = network.certify(web.publicKey, { name: 'db1', labels: { zone: 'a' } })
    const member = verifyChain(chain.bytes, by)
    expect(member).toMatchObject({ key: web.publicKey, name: 'db1', labels: { zone: 'a' }, notAfter: NOW + HOUR })
  })

  it('is refused with any one bit turned, alone and with a delegation', () => {
    const delegation = network.delegate(issuer.publicKey)
    for (const chain of [network.certify(web.publicKey), network.certify(web.publicKey, {}, issuer, delegation)]) {
      expect(verifyChain(chain.bytes, by).name).toBe('web1')
      fc.assert(
        fc.property(fc.nat(chain.bytes.byteLength * 8 - 1), (bit) => {
          const altered = Uint8Array.from(chain.bytes)
          altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
          expect(() => verifyChain(altered, by)).toThrow(WireError)
        }),
        { numRuns: 400 },
      )
    }
  })

  it('is refused as arbitrary bytes, and as arbitrary values, with a WireError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
        expect(() => verifyChain(bytes, by)).toThrow(WireError)
      }),
      { numRuns: 500 },
    )
    const values = fc.object({
      withBigInt: false,
      values: [fc.integer(), fc.string(), fc.uint8Array({ maxLength: 64 })],
    })
    fc.assert(
      fc.property(values, fc.uint8Array({ minLength: 64, maxLength: 64 }), (value, signature) => {
        const chain = encodeCbor([Buffer.concat([signature, encodeCbor(value)])])
        expect(() => verifyChain(chain, by)).toThrow(WireError)
      }),
      { numRuns: 300 },
    )
  })

  it('says for people when it ended and of whom it is', () => {
    const ended = network.certify(web.publicKey, { issued: NOW - HOUR, notBefore: NOW - HOUR, notAfter: NOW })
    expect(() => verifyChain(ended.bytes, by)).toThrow('the certificate of "web1" ended at 2026-06-01T00:00:00.000Z')
  })

  it('is not issued when readers would refuse it', () => {
    const wrong = [{ name: 'A' }, { notAfter: NOW }, { notAfter: NOW + LIFETIME_MS_MAX + 1 }, { labels: { A: 'b' } }]
    for (const fields of wrong) expect(() => network.certify(web.publicKey, fields)).toThrow(RangeError)
  })

  it('is not kept as good for another network, key or time than it was judged for', () => {
    const chain = network.certify(web.publicKey)
    expect('member' in judgeChain(chain, by)).toBe(true)
    expect(judgeChain(chain, { ...by, network: new TestNetwork().id })).toMatchObject({ fault: 'foreign' })
    expect(judgeChain(chain, { ...by, subject: issuer.publicKey })).toMatchObject({ fault: 'not-yours' })
    expect(judgeChain(chain, { ...by, now: NOW + HOUR })).toMatchObject({ fault: 'expired' })
  })

  it('re-encoded with another signature of the same issuer is still of the same revoked key', () => {
    const own = new TestNetwork()
    const chain = own.certify(web.publicKey)
    own.revoke(web.publicKey)
    const again = own.certify(web.publicKey, { labels: { fresh: 'yes' }, notAfter: NOW + 2 * HOUR })
    for (const one of [chain, again])
      expect(judgeChain(one, { ...by, network: own.id, revocations: own.revocations })).toMatchObject({
        fault: 'revoked',
      })
  })

  it('round-trips whatever may be issued', () => {
    const name = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/)
    const labels = fc.dictionary(
      fc.stringMatching(/^[a-z0-9][a-z0-9.-]{0,9}$/),
      fc.stringMatching(/^[A-Za-z0-9][\w.-]{0,9}$/),
      {
        maxKeys: 8,
      },
    )
    fc.assert(
      fc.property(name, labels, (name, labels) => {
        const { statement } = decodeChain(network.certify(web.publicKey, { name, labels }).bytes)
        expect({ name: statement.name, labels: { ...statement.labels } }).toEqual({ name, labels: { ...labels } })
      }),
      { numRuns: 100 },
    )
  })
})

describe('a delegation', () => {
  it('is kept by the delegate, and read again as it was made', () => {
    const delegation = network.delegate(issuer.publicKey, { names: ['ci-*'], labels: { zone: ['*'] } })
    expect(decodeDelegation(delegation.bytes)).toEqual(delegation)
    expect(() => decodeDelegation(network.certify(web.publicKey).bytes)).toThrow(WireError)
  })
})

describe('patterns of names', () => {
  it.each([
    ['web1', 'web1', true],
    ['web1', 'web10', false],
    ['web*', 'web', true],
    ['web*', 'aweb', false],
    ['*-db', 'a-db', true],
    ['a*a', 'a', false],
    ['a*a', 'aa', true],
    ['*', 'x', true],
  ])('%s and %s: %s', (pattern, name, expected) => {
    expect(fitsName(pattern, name)).toBe(expected)
  })
})
