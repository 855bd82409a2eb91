/** Who is out: by key, for issuers too, in whatever order it was learned. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { judgeChain } from '../../../protocols/membership/certificate.ts'
import { issueRevocation, REVOCATIONS_PER_DELEGATE_MAX, Revocations } from '../../../protocols/membership/revocation.ts'
import { HOUR, makeKey, NOW, TestNetwork } from './people.ts'

const network = new TestNetwork()
const [web, db, issuer, second] = [makeKey(), makeKey(), makeKey(), makeKey()]
const delegation = network.delegate(issuer.publicKey)
const secondDelegation = network.delegate(second.publicKey)

type Fields = { key?: Uint8Array; scope?: 'member' | 'issuer'; issuedAfter?: number; issued?: number }

function revocation(
  fields: Fields,
  by = network.root,
  right = by === issuer ? delegation : by === second ? secondDelegation : undefined,
) {
  const all = { network: network.id, key: web.publicKey, scope: 'member' as const, issued: NOW, ...fields }
  return issueRevocation(all, by, right).bytes
}

function knowing(...revocations: Uint8Array[]): Revocations {
  const known = new Revocations(network.id)
  for (const one of revocations) known.add(one)
  return known
}

/** What a chain is worth to a node that knows these. */
function worth(revocations: Revocations, { issued = NOW - 10, by = network.root } = {}) {
  const times = { issued, notBefore: issued, notAfter: issued + HOUR }
  const chain = network.certify(web.publicKey, times, by, by === issuer ? delegation : undefined)
  const verdict = judgeChain(chain, { network: network.id, subject: web.publicKey, now: NOW, revocations })
  return 'member' in verdict ? 'member' : verdict.fault
}

describe('revocations', () => {
  it('of a member cover every certificate of the key, whenever it was issued', () => {
    const known = knowing(revocation({}))
    expect(worth(known)).toBe('revoked')
    expect(worth(known, { issued: NOW })).toBe('revoked')
    expect(known.isRevoked(web.publicKey)).toBe(true)
    expect(known.isRevoked(db.publicKey)).toBe(false)
  })

  it('of an issuer cover what it issued after the time that is stated', () => {
    const known = knowing(revocation({ key: issuer.publicKey, scope: 'issuer', issuedAfter: NOW - 100 }))
    expect(worth(known, { by: issuer, issued: NOW - 100 })).toBe('member')
    expect(worth(known, { by: issuer, issued: NOW - 99 })).toBe('issuer-revoked')
    expect(worth(known)).toBe('member')
  })

  it('of an issuer without a time cover all that it issued', () => {
    const known = knowing(revocation({ key: issuer.publicKey, scope: 'issuer' }))
    expect(worth(known, { by: issuer, issued: NOW - HOUR + 1 })).toBe('issuer-revoked')
  })

  it('of a member who also issues end its issuing, and leave what it issued before', () => {
    const known = knowing(revocation({ key: issuer.publicKey, issued: NOW - 100 }))
    expect(worth(known, { by: issuer, issued: NOW - 100 })).toBe('member')
    expect(worth(known, { by: issuer, issued: NOW - 99 })).toBe('issuer-revoked')
  })

  it('by an issuer that the root revoked are void from then on, and count again for nobody else', () => {
    const [early, late] = [revocation({ issued: NOW - 200 }, issuer), revocation({ issued: NOW - 50 }, issuer)]
    const fall = revocation({ key: issuer.publicKey, scope: 'issuer', issuedAfter: NOW - 100 })
    expect(worth(knowing(late))).toBe('revoked')
    expect(worth(knowing(late, fall))).toBe('member')
    expect(worth(knowing(early, fall))).toBe('revoked')
    expect(worth(knowing(late, fall, revocation({ issued: NOW })))).toBe('revoked')
  })

  it('by two delegates of each other both hold: neither undoes the other', () => {
    const known = knowing(revocation({ key: second.publicKey }, issuer), revocation({ key: issuer.publicKey }, second))
    expect(known.isRevoked(issuer.publicKey) && known.isRevoked(second.publicKey)).toBe(true)
  })

  it('mean the same in whatever order, and however often, they came', () => {
    const all = [
      revocation({}),
      revocation({ key: issuer.publicKey, scope: 'issuer', issuedAfter: NOW - 100 }),
      revocation({ key: db.publicKey, issued: NOW - 50 }, issuer),
      revocation({ key: db.publicKey, issued: NOW - 150 }, second),
      revocation({ key: second.publicKey, issued: NOW - 120 }, issuer),
      revocation({ key: second.publicKey, scope: 'issuer' }),
    ]
    const keys = [web, db, issuer, second].map(({ publicKey }) => publicKey)
    const seen = (known: Revocations) =>
      keys.flatMap((key) => keys.map((by) => known.faultOf({ key, issuer: by, issued: NOW - 90 })))
    const expected = seen(knowing(...all))
    fc.assert(
      fc.property(fc.shuffledSubarray([...all, ...all], { minLength: all.length * 2 }), (order) => {
        expect(seen(knowing(...order))).toEqual(expected)
      }),
      { numRuns: 50 },
    )
  })

  it('are known once', () => {
    const known = new Revocations(network.id)
    expect([known.add(revocation({})), known.add(revocation({}))]).toEqual([true, false])
    expect(known.list()).toHaveLength(1)
  })

  it('are refused as arbitrary and as altered bytes, with a WireError', () => {
    const known = new Revocations(network.id)
    const good = revocation({}, issuer)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(() => known.add(bytes)).toThrow(WireError)
      }),
    )
    fc.assert(
      fc.property(fc.nat(good.byteLength * 8 - 1), (bit) => {
        const altered = Uint8Array.from(good)
        altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
        expect(() => known.add(altered)).toThrow(WireError)
      }),
      { numRuns: 300 },
    )
    expect(known.list()).toHaveLength(0)
  })

  it('of one delegate do not fill the memory of everybody', () => {
    expect(REVOCATIONS_PER_DELEGATE_MAX * 1_200).toBeLessThan(32 * 1024 * 1024)
  })
})
