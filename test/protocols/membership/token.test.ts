/** Tokens as people paste them, and as hostile text. */
import { multiaddr } from '@multiformats/multiaddr'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { decodePass, encodePass } from '../../../protocols/membership/pass.ts'
import { decodeToken, encodeToken, TOKEN_LENGTH_MAX, type Token } from '../../../protocols/membership/token.ts'
import { HOUR, makeKey, NOW, TestNetwork } from './people.ts'

const token: Token = {
  network: new TestNetwork().id,
  issuer: makeKey().publicKey,
  addresses: ['/ip4/192.168.1.10/tcp/7477', '/ip6/2001:db8::1/udp/7477/quic-v1', '/dns/node.example/tcp/7477'].map(
    (one) => multiaddr(one),
  ),
  secret: new Uint8Array(16).fill(7),
  expires: NOW + HOUR,
}
const text = encodeToken(token)

describe('a token', () => {
  it('is one line that survives being pasted with line breaks, spaces and capitals', () => {
    expect(text).toMatch(/^un1[a-z2-7]+$/)
    expect(text.length).toBeLessThan(320)
    const pasted = `  ${text.slice(0, 40).toUpperCase()}\n  ${text.slice(40)}\n`
    expect(encodeToken(decodeToken(pasted))).toBe(text)
  })

  it('is refused with any one letter changed, left out or put in', () => {
    const at = fc.nat(text.length - 1)
    const letter = fc.stringMatching(/^[a-z2-7]$/)
    fc.assert(
      fc.property(at, letter, fc.nat(2), (at, letter, kind) => {
        const [before, after] = [text.slice(0, at), text.slice(at + 1)]
        const altered = [before + letter + after, before + after, before + letter + text.slice(at)][kind] ?? ''
        fc.pre(altered !== text)
        expect(() => decodeToken(altered)).toThrow(WireError)
      }),
      { numRuns: 500 },
    )
  })

  it('is refused as any other text, with a WireError', () => {
    const hostile = fc.oneof(fc.string(), fc.stringMatching(/^un1[a-z2-7]{0,80}$/))
    fc.assert(
      fc.property(hostile, (text) => {
        expect(() => decodeToken(text)).toThrow(WireError)
      }),
      { numRuns: 500 },
    )
    expect(() => decodeToken('un1'.padEnd(TOKEN_LENGTH_MAX + 1, 'a'))).toThrow(
      expect.objectContaining({ code: 'too-large' }),
    )
  })

  it('has a pass that is refused as any other bytes, with a WireError', () => {
    const issuer = makeKey()
    const { bytes } = encodePass({ network: token.network, expires: token.expires }, issuer)
    const changed = fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 })).map(([at, by]) => {
      const other = Uint8Array.from(bytes)
      other[at] = (other[at] ?? 0) ^ by
      return other
    })
    fc.assert(
      fc.property(fc.oneof(changed, fc.uint8Array({ maxLength: 300 })), (pass) => {
        expect(() => decodePass(pass)).toThrow(WireError)
      }),
    )
  })

  it('is not made when readers would refuse it', () => {
    const many = Array.from({ length: 9 }, () => multiaddr('/ip4/10.0.0.1/tcp/1'))
    for (const wrong of [{ addresses: many }, { secret: new Uint8Array(15) }, { expires: -1 }])
      expect(() => encodeToken({ ...token, ...wrong })).toThrow(RangeError)
  })
})
