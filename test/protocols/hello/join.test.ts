/** Tokens in the hello: who is let in by one, and what everybody else gets. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Grant, TokenDesk, TokenFault } from '../../../protocols/hello/hello.ts'
import type { Chain } from '../../../protocols/membership/certificate.ts'
import { type Token, tokenId } from '../../../protocols/membership/token.ts'
import { HOUR, hex, makeKey, NOW, TestNetwork, TestParty } from '../membership/people.ts'
import { converse, view } from './conversation.ts'

const home = new TestNetwork()
const issuer = home.member({ name: 'gate' })

function tokenOf(secret = new Uint8Array(16).fill(7), by = issuer): Token {
  return { network: home.id, issuer: by.key.publicKey, addresses: [], secret, expires: NOW + HOUR }
}

/** Honours one token once for each key. */
class Desk implements TokenDesk {
  readonly token: Token
  readonly used: string[] = []
  readonly wishes: (string | undefined)[] = []
  fault: TokenFault | undefined
  chain = (key: Uint8Array): Chain => home.certify(key, { name: 'new1', labels: { zone: 'a' } })

  constructor(token = tokenOf()) {
    this.token = token
  }

  find(id: Uint8Array): Token | undefined {
    return hex(id) === hex(tokenId(this.token.secret)) ? this.token : undefined
  }

  redeem(_id: Uint8Array, key: Uint8Array, wished?: string): Grant | TokenFault {
    this.wishes.push(wished)
    if (this.fault !== undefined) return this.fault
    if (!this.used.includes(hex(key))) this.used.push(hex(key))
    return this.used.indexOf(hex(key)) > 0 ? 'used-up' : { name: 'home', secret: home.secret, chain: this.chain(key) }
  }
}

const joined = (side: unknown) => (side as { joined?: { name: string; secret: Uint8Array; chain: Chain } }).joined

describe('a token', () => {
  it('makes its holder a member in the same conversation, with all that it needs', async () => {
    const newcomer = new TestParty()
    const desk = new Desk()
    const { dialler, listener } = await converse(newcomer, issuer, { token: desk.token, desk })
    expect([view(dialler), view(listener)]).toEqual(['gate', 'new1'])
    expect(joined(dialler)).toMatchObject({ name: 'home', network: home.id, secret: home.secret })
    newcomer.join(home, joined(dialler)?.chain)
    expect(view((await converse(newcomer, home.member())).listener)).toBe('new1')
  })

  it('brings the name that its holder wishes to the one who gives names, and no other way', async () => {
    const desk = new Desk()
    const { dialler } = await converse(new TestParty(), issuer, { token: desk.token, desk, wished: 'db7' })
    expect(desk.wishes).toEqual(['db7'])
    expect(joined(dialler)?.chain.statement.name).toBe('new1')
    const { said } = await converse(home.member(), issuer, { wished: 'db7' })
    expect(said.map(({ bytes }) => hex(bytes)).join()).not.toContain(hex(Buffer.from('db7')))
  })

  it('is never sent, and the secret of the network only to whoever proved it', async () => {
    const desk = new Desk()
    const { said } = await converse(new TestParty(), issuer, { token: desk.token, desk })
    const heard = said.map(({ bytes }) => hex(bytes))
    expect(heard.join()).not.toContain(hex(desk.token.secret))
    expect(heard.slice(0, 3).join()).not.toContain(hex(home.secret))
    expect(heard.slice(0, 3).join()).not.toContain(hex(home.id))
  })

  it('can be used again by the same key, whose answer was lost, and by no other', async () => {
    const desk = new Desk()
    const newcomer = new TestParty()
    const lost = await converse(newcomer, issuer, {
      token: desk.token,
      desk,
      between: ({ bytes }, at) => (at === 3 ? undefined : bytes),
    })
    expect(view(lost.dialler)).toBe('refused: the peer ended the connection without giving a reason')
    expect(joined((await converse(newcomer, issuer, { token: desk.token, desk })).dialler)).toBeDefined()
    const other = await converse(new TestParty(), issuer, { token: desk.token, desk })
    expect(view(other.dialler)).toBe('refused: the token was used already')
    expect(view(other.listener)).toBe("refused: the peer's token: used-up")
  })

  it('used by two at the same moment lets one in', async () => {
    const desk = new Desk()
    const both = await Promise.all([1, 2].map(() => converse(new TestParty(), issuer, { token: desk.token, desk })))
    expect(both.filter(({ dialler }) => joined(dialler) !== undefined)).toHaveLength(1)
  })

  it('that expired is refused, and its holder told', async () => {
    const desk = new Desk()
    desk.fault = 'token-expired'
    expect(view((await converse(new TestParty(), issuer, { token: desk.token, desk })).dialler)).toBe(
      'refused: the token has expired',
    )
  })

  it('with the right name and a wrong secret is refused without being used', async () => {
    const desk = new Desk()
    const wrong = new Uint8Array(16).fill(8)
    const lenient: TokenDesk = { find: () => desk.token, redeem: (id, key) => desk.redeem(id, key) }
    const { dialler, listener } = await converse(new TestParty(), issuer, { token: tokenOf(wrong), desk: lenient })
    expect(view(dialler)).toBe('refused: the token is not the one that was made')
    expect(view(listener)).toBe("refused: the peer's token: wrong-secret")
    expect(desk.used).toEqual([])
  })

  it('of another issuer gets silence, and no word of whether there is a network', async () => {
    const desk = new Desk()
    const foreign = tokenOf(new Uint8Array(16).fill(9))
    const { dialler, listener, said } = await converse(new TestParty(), issuer, { token: foreign, desk })
    expect(view(dialler)).toContain('does not know it')
    expect(view(listener)).toContain('its token is not of this node')
    expect(said).toHaveLength(1)
    const elsewhere = await converse(new TestParty(), home.member(), { token: foreign })
    expect(view(elsewhere.dialler)).toBe('refused: the token is of another node')
  })

  it('of another issuer says so to a dialler that is let in for another reason', async () => {
    const [newcomer, open] = [new TestParty(), home.member({ name: 'gate' })]
    newcomer.open = true
    open.open = true
    const { dialler, listener } = await converse(newcomer, open, { token: tokenOf(undefined, open) })
    expect(view(dialler)).toContain('does not know it')
    expect(view(listener)).toBe('open')
  })

  it('does not let in a key that was revoked', async () => {
    const network = new TestNetwork()
    const gate = network.member()
    const newcomer = new TestParty()
    network.revoke(newcomer.key.publicKey)
    const token = { ...tokenOf(undefined, gate), network: network.id }
    const desk = new Desk(token)
    const { dialler } = await converse(newcomer, gate, { token, desk })
    expect(view(dialler)).toContain('revoked in that network')
    expect(desk.used).toEqual([])
  })

  it('is not honoured by a node that is no member itself', async () => {
    const gate = new TestParty()
    const token = tokenOf(undefined, gate)
    const desk = new Desk(token)
    expect(view((await converse(new TestParty(), gate, { token, desk })).dialler)).toContain(
      'cannot issue certificates now',
    )
    expect(desk.used).toEqual([])
  })

  it('brings nothing from an issuer that gives a certificate of another network, key or time', async () => {
    const wrong = [
      (key: Uint8Array) => new TestNetwork().certify(key),
      () => home.certify(makeKey().publicKey),
      (key: Uint8Array) => home.certify(key, {}, makeKey()),
      (key: Uint8Array) => home.certify(key, { issued: NOW - HOUR, notBefore: NOW - HOUR, notAfter: NOW }),
    ]
    for (const chain of wrong) {
      const desk = new Desk()
      desk.chain = chain
      const { dialler } = await converse(new TestParty(), issuer, { token: desk.token, desk })
      expect(view(dialler)).toContain('cannot issue certificates now')
    }
  })

  it('cannot be used by whoever passes the conversation on', async () => {
    const desk = new Desk()
    const relayed = await converse(new TestParty(), issuer, {
      token: desk.token,
      desk,
      listenerSees: makeKey().publicKey,
    })
    expect(view(relayed.listener)).toMatch(/^refused/)
    expect(desk.used).toEqual([])
  })

  it('is not used when any bit of the conversation was changed', async () => {
    const run = fc.asyncProperty(fc.nat(2), fc.nat(), async (place, bit) => {
      const desk = new Desk()
      await converse(new TestParty(), issuer, {
        token: desk.token,
        desk,
        between: ({ bytes }, at) => {
          if (at !== place) return bytes
          const altered = Uint8Array.from(bytes)
          const index = (bit >> 3) % bytes.byteLength
          altered[index] = (altered[index] ?? 0) ^ (1 << (bit & 7))
          return altered
        },
      })
      expect(desk.used).toEqual([])
    })
    await fc.assert(run, { numRuns: 40 })
  })

  it('renews the membership of one who is a member already', async () => {
    const desk = new Desk()
    const member = home.member({ name: 'old' })
    const { dialler, listener } = await converse(member, issuer, { token: desk.token, desk })
    expect([view(dialler), view(listener)]).toEqual(['gate', 'new1'])
  })
})
