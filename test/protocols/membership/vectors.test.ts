/** Membership against vectors made by another implementation: what is read, what is refused, and the same bytes written. */
import { createPrivateKey, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { decodeChain, issueCertificate, judgeChain } from '../../../protocols/membership/certificate.ts'
import { deriveKey, meetingKeys, networkOf, opaqueName } from '../../../protocols/membership/network.ts'
import { decodePass, encodePass } from '../../../protocols/membership/pass.ts'
import { decodePolicy } from '../../../protocols/membership/policy.ts'
import { decodeRevocation } from '../../../protocols/membership/revocation.ts'
import { decodeToken, encodeToken, tokenId, tokenKey } from '../../../protocols/membership/token.ts'
import { hex } from './people.ts'

type Vectors = {
  keys: Record<'root' | 'delegate' | 'member' | 'other' | 'otherRoot', { seedByte: number; public: string }>
  network: {
    id: string
    secret: string
    hello: string
    gossipName: string
    meetings: { now: number; keys: string[] }[]
  }
  chains: { name: string; chain: string; network: string; subject: string; now: number; expect: string }[]
  refusedChains: { why: string; chain: string; code: string }[]
  revocations: { name: string; revocation: string; code: string | null }[]
  policies: { name: string; policy: string; code: string | null }[]
  tokens: {
    valid: {
      text: string
      network: string
      issuer: string
      addresses: string[]
      secret: string
      expires: number
      id: string
      key: string
      pass?: string
    }[]
    refused: { why: string; text: string }[]
  }
  passes: { name: string; pass: string; code: string | null }[]
}
const vectors = JSON.parse(readFileSync('protocols/membership/vectors.json', 'utf8')) as Vectors
const { keys } = vectors
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const network = bytes(vectors.network.id)
const secret = bytes(vectors.network.secret)
const nothingRevoked = { faultOf: () => undefined, isVoid: () => false }

function signer({ seedByte, public: publicKey }: { seedByte: number; public: string }) {
  const der = Buffer.concat([bytes('302e020100300506032b657004220420'), Buffer.alloc(32, seedByte)])
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  return { publicKey: bytes(publicKey), sign: (data: Uint8Array) => sign(null, data, key) }
}

describe('vectors of membership', () => {
  it('derives the network from its root key, and names and keys from its secret', () => {
    expect(hex(networkOf(bytes(keys.root.public)))).toBe(vectors.network.id)
    expect(hex(deriveKey({ network, secret }, 'hello'))).toBe(vectors.network.hello)
    expect(opaqueName({ network, secret }, 'gossip')).toBe(vectors.network.gossipName)
    for (const { now, keys: expected } of vectors.network.meetings)
      expect(meetingKeys({ network, secret }, now).map(hex).sort()).toEqual(expected)
  })

  it.each(vectors.chains)('judges a certificate $name: $expect', ({ chain, now, expect: expected, ...by }) => {
    const subject = bytes(by.subject)
    const verdict = judgeChain(decodeChain(bytes(chain)), {
      network: bytes(by.network),
      subject,
      now,
      revocations: nothingRevoked,
    })
    expect('member' in verdict ? 'member' : verdict.fault).toBe(expected)
    if ('member' in verdict) expect(verdict.member).toMatchObject({ key: subject, network: bytes(by.network) })
  })

  it('writes the same certificate', () => {
    const [first] = vectors.chains
    const { statement } = decodeChain(bytes(first?.chain ?? ''))
    const { v: _v, issuer: _issuer, id: _id, bytes: _bytes, ...fields } = statement
    expect(hex(issueCertificate(fields, signer(keys.root)).bytes)).toBe(first?.chain)
  })

  it.each(vectors.refusedChains)('refuses as a chain: $why', ({ chain, code }) => {
    expect(() => decodeChain(bytes(chain))).toThrow(expect.objectContaining({ name: 'WireError', code }))
  })

  it.each(vectors.revocations)('reads a revocation of $name: $code', ({ revocation, code }) => {
    const read = () => decodeRevocation(bytes(revocation), network)
    if (code !== null) expect(read).toThrow(expect.objectContaining({ name: 'WireError', code }))
    else expect(read().statement.v).toBe(1)
  })

  it.each(vectors.policies)('reads a policy $name: $code', ({ policy, code }) => {
    const read = () => decodePolicy(bytes(policy), network, nothingRevoked)
    if (code !== null) expect(read).toThrow(expect.objectContaining({ name: 'WireError', code }))
    else expect(read().statement.network).toEqual(network)
  })

  it.each(vectors.tokens.valid)('reads and writes a token', ({ text, id, key, ...expected }) => {
    const token = decodeToken(text)
    expect({
      network: hex(token.network),
      issuer: hex(token.issuer),
      addresses: token.addresses.map(String),
      secret: hex(token.secret),
      expires: token.expires,
      ...(token.pass && { pass: hex(token.pass) }),
    }).toEqual(expected)
    expect(encodeToken(token)).toBe(text)
    expect(hex(tokenId(token.secret))).toBe(id)
    expect(hex(tokenKey(token))).toBe(key)
  })

  it.each(vectors.passes)('reads a pass $name: $code', ({ pass, code }) => {
    const read = () => decodePass(bytes(pass))
    if (code !== null) return expect(read).toThrow(expect.objectContaining({ name: 'WireError', code }))
    expect(read()).toMatchObject({ network, issuer: bytes(keys.member.public) })
    expect(hex(encodePass(read(), signer(keys.member)).bytes)).toBe(pass)
  })

  it.each(vectors.tokens.refused)('refuses a token: $why', ({ text }) => {
    expect(() => decodeToken(text)).toThrow(expect.objectContaining({ name: 'WireError' }))
  })
})
