/** Invitations: used once by as many keys as they say, by each as often as it likes; and the holder of one that ended is told why. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Grant, TokenFault } from '../../../protocols/hello/hello.ts'
import { decodeToken, encodeToken, type Token, tokenId } from '../../../protocols/membership/token.ts'
import { converse } from '../../protocols/hello/conversation.ts'
import { makeKey, TestParty } from '../../protocols/membership/people.ts'
import { DAY, type Home, letIn, makeFounder, makeHome, NOW } from './homes.ts'

type Founder = ReturnType<typeof makeFounder>
type Wish = Partial<Parameters<Home['invitations']['create']>[0]>

function invite({ net, invitations, clock }: Pick<Founder, 'net' | 'invitations' | 'clock'>, wish: Wish = {}): Token {
  return invitations.create({ membership: net, addresses: [], expires: clock.now() + DAY, ...wish }).token
}

const idOf = ({ secret }: Token) => tokenId(secret)

function given(answer: Grant | TokenFault): Grant['chain']['statement'] {
  if (typeof answer === 'string') throw new Error(answer)
  return answer.chain.statement
}

describe('an invitation', () => {
  it('is a token that travels, and a view that tells nothing of it', () => {
    const founder = makeFounder()
    const { token, invitation } = founder.invitations.create({
      membership: founder.net,
      addresses: [],
      name: 'ci-*',
      labels: { role: 'ci' },
      uses: 3,
      expires: NOW + DAY,
    })
    expect(decodeToken(encodeToken(token))).toEqual(token)
    const view = {
      network: founder.net.id,
      name: 'ci-*',
      labels: { role: 'ci' },
      uses: 3,
      used: 0,
      issued: NOW,
      expires: NOW + DAY,
      state: 'open',
    }
    expect(invitation).toEqual({ id: Buffer.from(idOf(token)).toString('hex'), ...view })
    expect(founder.invitations.list(founder.net.id)).toEqual([invitation])
    expect(founder.invitations.list('other')).toEqual([])
  })

  it.each([
    { uses: 0 },
    { uses: 1.5 },
    { uses: 10_001 },
    { expires: NOW },
    { expires: NOW + 400 * DAY },
    { name: 'A' },
    { name: 'a*b*' },
    { name: '-*' },
    { labels: { 'a b': 'c' } },
  ])('that nobody could use is refused: %j', (wish) => {
    expect(() => invite(makeFounder(), wish)).toThrow(expect.objectContaining({ code: 'usage' }))
  })

  it('is made only by a node that may give what it promises', () => {
    const founder = makeFounder()
    const guest = makeHome({ clock: founder.clock })
    const net = letIn(founder, guest)
    const own = { ...guest, net }
    const notAllowed = expect.objectContaining({ code: 'not-allowed' })
    expect(() => invite(own)).toThrow(notAllowed)
    const wish = { may: ['issue'], names: ['ci-*'], labels: { role: ['ci'] }, notAfter: NOW + DAY } as const
    net.takeDelegation(founder.issuer.delegate(founder.net, guest.key.publicKey, wish).bytes)
    expect(() => invite(own, { name: 'web' })).toThrow(notAllowed)
    expect(() => invite(own, { labels: { role: 'admin' } })).toThrow(notAllowed)
    const key = makeKey().publicKey
    const id = idOf(invite(own, { labels: { role: 'ci' } }))
    expect(given(guest.invitations.redeem(id, key, 'web')).name).toMatch(/^ci-/)
  })

  it('lets in whom it says as what it says: its name, the wished one, or one with the hash', () => {
    const founder = makeFounder()
    const use = (token: Token, wished?: string) =>
      given(founder.invitations.redeem(idOf(token), makeKey().publicKey, wished))
    const fleet = invite(founder, { name: 'ci-*', labels: { role: 'ci' }, uses: 2 })
    const [first, second] = [use(fleet, 'web'), use(fleet)]
    expect(first).toMatchObject({ name: expect.stringMatching(/^ci-[a-z2-7]{5}$/), labels: { role: 'ci' } })
    expect(second.name).not.toBe(first.name)
    expect(use(invite(founder), 'Web.local').name).toBe('web')
    expect(use(invite(founder), 'web').name).toMatch(/^web-[a-z2-7]{5}$/)
    expect(use(invite(founder, { name: 'db1' }), 'web').name).toBe('db1')
    expect(use(invite(founder), '\u0000\u202e').name).toMatch(/^node-/)
    expect(founder.redeemed.map(({ name }) => name)).toContain('db1')
  })

  it('that promises as much as fits a certificate is not used up by a name that does not', () => {
    const founder = makeFounder()
    const labels = Object.fromEntries(
      Array.from({ length: 7 }, (_, nth) => [`${'k'.repeat(31)}${nth}`, 'v'.repeat(63)]),
    )
    const id = idOf(invite(founder, { labels: { ...labels, k: 'v'.repeat(20) } }))
    const answers = Array.from({ length: 63 }, (_, length) =>
      founder.invitations.redeem(id, makeKey().publicKey, 'n'.repeat(63 - length)),
    )
    expect(answers[0]).toBe('not-issuing')
    expect(answers.filter((one) => typeof one !== 'string')).toHaveLength(1)
  })

  it('counts keys, not uses, also across a restart', () => {
    const founder = makeFounder()
    const token = invite(founder)
    const [key, other] = [makeKey().publicKey, makeKey().publicKey]
    const first = given(founder.invitations.redeem(idOf(token), key, 'web'))
    const again = founder.restart()
    expect(given(again.invitations.redeem(idOf(token), key, 'other')).name).toBe(first.name)
    expect(again.invitations.redeem(idOf(token), other)).toBe('used-up')
    expect(again.invitations.list()).toMatchObject([{ used: 1, state: 'used-up' }])
    expect(again.redeemed).toEqual([])
    expect(founder.redeemed).toHaveLength(1)
  })

  it('that is used again gives what the member is by now, not what the invitation said', () => {
    const founder = makeFounder()
    const { net, issuer, invitations } = founder
    const token = invite(founder, { labels: { role: 'admin' } })
    const key = makeKey().publicKey
    const { name } = given(invitations.redeem(idOf(token), key))
    issuer.relabel(net, { key, name }, {})
    expect(given(invitations.redeem(idOf(token), key)).labels).toEqual({})
  })

  it('lets in one of two that come at the same moment', async () => {
    const founder = makeFounder()
    const token = invite(founder)
    const listener = founder.networks.party(() => false) as TestParty
    const guests = Array.from({ length: 8 }, () => new TestParty(makeKey()))
    const outcomes = await Promise.all(
      guests.map((guest) => converse(guest, listener, { token, desk: founder.invitations, msMax: 10_000 })),
    )
    const texts = outcomes.map(({ dialler }) => (dialler instanceof Error ? dialler.message : 'in'))
    expect(texts.toSorted()).toEqual(['in', ...Array.from({ length: 7 }, () => 'the token was used already')])
    expect(founder.invitations.list()).toMatchObject([{ used: 1 }])
  })
})

describe('the holder of a token', () => {
  it('is told for a week that it has expired, and then nothing', () => {
    const founder = makeFounder()
    const token = invite(founder)
    const key = makeKey().publicKey
    founder.clock.at += DAY
    expect(founder.invitations.find(idOf(token))).toMatchObject({ network: founder.net.network })
    expect(founder.invitations.redeem(idOf(token), key)).toBe('token-expired')
    expect(founder.invitations.list()).toMatchObject([{ state: 'expired' }])
    founder.clock.at += 7 * DAY
    expect(founder.invitations.find(idOf(token))).toBeUndefined()
    expect(founder.invitations.redeem(idOf(token), key)).toBe('unknown-token')
    expect(founder.restart().invitations.list()).toEqual([])
  })

  it('is told for a week that it is used up, though it would last longer', () => {
    const founder = makeFounder()
    const token = invite(founder, { expires: NOW + 30 * DAY })
    founder.invitations.redeem(idOf(token), makeKey().publicKey)
    founder.clock.at += 6 * DAY
    expect(founder.invitations.redeem(idOf(token), makeKey().publicKey)).toBe('used-up')
    founder.clock.at += DAY
    expect(founder.invitations.find(idOf(token))).toBeUndefined()
  })

  it('is told nothing once it was withdrawn, or the network left', () => {
    const founder = makeFounder()
    const [token, other] = [invite(founder), invite(founder)]
    const { invitations, networks } = founder
    const id = Buffer.from(idOf(token)).toString('hex')
    expect(() => invitations.withdraw(id.slice(0, 3))).toThrow(expect.objectContaining({ code: 'not-found' }))
    expect(invitations.withdraw(id.slice(0, 8)).id).toBe(id)
    expect(invitations.find(idOf(token))).toBeUndefined()
    expect(invitations.redeem(idOf(token), makeKey().publicKey)).toBe('unknown-token')
    networks.leave('lab', { force: true })
    expect(invitations.find(idOf(other))).toBeUndefined()
    expect(invitations.redeem(idOf(other), makeKey().publicKey)).toBe('unknown-token')
  })

  it('whose key was revoked, or who comes to one that may not issue, does not use it up', () => {
    const founder = makeFounder()
    const { net, issuer, invitations } = founder
    const token = invite(founder)
    const key = makeKey().publicKey
    issuer.revoke(net, { key, scope: 'member' })
    expect(invitations.redeem(idOf(token), key)).toBe('revoked')
    expect(invitations.list()).toMatchObject([{ used: 0 }])
    founder.clock.at += 3_600_000
    const guest = makeHome({ clock: founder.clock })
    const there = letIn(founder, guest)
    const own = { ...guest, net: there }
    const delegation = issuer.delegate(net, guest.key.publicKey, { may: ['issue'], notAfter: NOW + DAY / 2 })
    there.takeDelegation(delegation.bytes)
    const mine = invite(own)
    founder.clock.at += DAY * 0.75
    expect(guest.invitations.redeem(idOf(mine), makeKey().publicKey)).toBe('not-issuing')
    expect(guest.invitations.list()).toMatchObject([{ used: 0 }])
  })
})

it('the count holds, whatever is done in whatever order', () => {
  const keys = Array.from({ length: 4 }, () => makeKey().publicKey)
  const step = fc.record({ key: fc.nat(3), token: fc.nat(1), withdraw: fc.boolean(), wished: fc.string() })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
      const founder = makeFounder()
      const tokens = [invite(founder, { uses: 1 }), invite(founder, { uses: 2 })]
      const used = [new Set<number>(), new Set<number>()]
      const gone = new Set<number>()
      for (const { key, token, withdraw, wished } of steps) {
        const id = idOf(tokens[token] as Token)
        if (withdraw && !gone.has(token) && wished.length > 4) {
          founder.invitations.withdraw(Buffer.from(id).toString('hex'))
          gone.add(token)
        }
        const answer = founder.invitations.redeem(id, keys[key] as Uint8Array, wished)
        const isIn = used[token]?.has(key) || (used[token]?.size ?? 0) < token + 1
        expect(typeof answer === 'string' ? answer : 'in').toBe(
          gone.has(token) ? 'unknown-token' : isIn ? 'in' : 'used-up',
        )
        if (typeof answer !== 'string') used[token]?.add(key)
      }
    }),
    { numRuns: 25 },
  )
})
