/** Who gets in, and what anybody learns: members, strangers, and those who once were or pretend to be members. */
import { describe, expect, it } from 'vitest'
import { HOUR, hex, makeKey, NOW, TestNetwork, TestParty } from '../membership/people.ts'
import { converse, view } from './conversation.ts'

const home = new TestNetwork()
const work = new TestNetwork()
const NOTHING_SHARED = 'refused: the peer shares no network with this node'

describe('two members of a network', () => {
  it('know each other by name after three messages, and the fourth is empty when all is well', async () => {
    const { dialler, listener, said } = await converse(home.member({ name: 'db1' }), home.member({ name: 'web1' }))
    expect([view(dialler), view(listener)]).toEqual(['web1', 'db1'])
    expect(await (dialler as { afterwards: Promise<unknown> }).afterwards).toEqual([])
    expect(said.map(({ by }) => by)).toEqual(['dialler', 'listener', 'dialler', 'listener'])
    expect(said[3]?.bytes.byteLength).toBe(0)
    expect(said.reduce((sum, { bytes }) => sum + bytes.byteLength, 0)).toBeLessThan(1_500)
  })

  it('share all networks that both are in, and show nothing of the others', async () => {
    const dialler = home.member({ name: 'a' }).join(work, undefined)
    const third = new TestNetwork()
    const listener = home.member({ name: 'b' }).join(third)
    const both = home.member({ name: 'c' }).join(work).join(third)
    const { said, ...one } = await converse(dialler, listener)
    expect([view(one.dialler), view(one.listener)]).toEqual(['b', 'a'])
    const heard = said.map(({ bytes }) => hex(bytes)).join()
    expect(heard).not.toContain(hex(work.id))
    expect(heard).not.toContain(hex(third.id))
    expect((await converse(dialler, both)).listener).toMatchObject({ members: [{ name: 'a' }, { name: 'web1' }] })
  })

  it('are also in the open network if both take part in it', async () => {
    const [a, b] = [home.member({ name: 'a' }), home.member({ name: 'b' })]
    a.open = true
    expect(view((await converse(a, b)).dialler)).toBe('b')
    b.open = true
    expect(view((await converse(a, b)).dialler)).toBe('b open')
  })

  it('by delegates are members like others', async () => {
    const issuer = makeKey()
    const key = makeKey()
    const delegation = home.delegate(issuer.publicKey, { names: ['ci-*'] })
    const member = new TestParty(key).join(home, home.certify(key.publicKey, { name: 'ci-7' }, issuer, delegation))
    expect(view((await converse(member, home.member())).listener)).toBe('ci-7')
  })
})

describe('strangers', () => {
  it('of each other get nothing: the listener does not say a word', async () => {
    for (const stranger of [new TestParty(), work.member()]) {
      const { dialler, listener, said } = await converse(stranger, home.member())
      expect([view(dialler), view(listener)]).toEqual([NOTHING_SHARED, NOTHING_SHARED])
      expect(said.map(({ by }) => by)).toEqual(['dialler'])
    }
  })

  it('meet in the open network if both take part, and show no certificate', async () => {
    const [a, b] = [home.member(), work.member()]
    a.open = true
    expect(view((await converse(a, b)).dialler)).toBe(NOTHING_SHARED)
    b.open = true
    const { dialler, listener, said } = await converse(a, b)
    expect([view(dialler), view(listener)]).toEqual(['open', 'open'])
    expect(said.map(({ bytes }) => hex(bytes)).join()).not.toContain(hex(home.id))
  })

  it('see as many tags from whoever is in many networks as in none, and never the same twice', async () => {
    const many = home.member().join(work)
    for (const party of [many, new TestParty()]) {
      const [first, second] = [await converse(party, new TestParty()), await converse(party, new TestParty())].map(
        ({ said: [opening] }) => opening?.bytes ?? new Uint8Array(),
      )
      expect(first?.byteLength).toBe(second?.byteLength)
      expect(first?.byteLength).toBe(314)
      const tags = new Set(
        [first, second].flatMap(
          (one) =>
            hex(one ?? new Uint8Array())
              .match(/.{2}/g)
              ?.join('') ?? [],
        ),
      )
      expect(tags.size).toBe(2)
    }
  })

  it('are not let in by their own key', async () => {
    const party = home.member()
    expect(view((await converse(party, party)).dialler)).toBe('refused: this is our own key')
  })
})

describe('those who are no members any more', () => {
  it('learn nothing, not even who is a member, from whoever knows that they were revoked', async () => {
    const network = new TestNetwork()
    const [former, member] = [network.member({ name: 'former' }), network.member()]
    former.known.set(hex(network.id), new TestNetwork().revocations)
    network.revoke(former.key.publicKey)
    const inward = await converse(former, member)
    expect([view(inward.dialler), view(inward.listener)]).toEqual([NOTHING_SHARED, NOTHING_SHARED])
    expect(inward.said).toHaveLength(1)
    const outward = await converse(member, former)
    expect([view(outward.dialler), view(outward.listener)]).toEqual([NOTHING_SHARED, NOTHING_SHARED])
  })

  it('are told why when it is their issuer that was revoked', async () => {
    const network = new TestNetwork()
    const issuer = makeKey()
    const delegation = network.delegate(issuer.publicKey)
    const issuedAt = (issued: number, name: string) => {
      const key = makeKey()
      const times = { issued, notBefore: issued, notAfter: issued + HOUR }
      return new TestParty(key).join(network, network.certify(key.publicKey, { ...times, name }, issuer, delegation))
    }
    const [early, late] = [issuedAt(NOW - 11, 'early'), issuedAt(NOW - 10, 'late')]
    const member = network.member()
    for (const party of [early, late]) party.known.set(hex(network.id), new TestNetwork().revocations)
    network.revoke(issuer.publicKey, { scope: 'issuer', issuedAfter: NOW - 11 })
    const refused = await converse(late, member)
    expect(view(refused.listener)).toContain('whoever issued the certificate of "late" was revoked')
    const { afterwards } = refused.dialler as { afterwards: Promise<unknown> }
    expect(await afterwards).toEqual([{ network: network.id, fault: 'issuer-revoked' }])
    expect(view((await converse(early, member)).listener)).toBe('early')
    expect(view((await converse(member, late)).dialler)).toContain('was revoked')
  })

  it('do not speak of a network in which their own certificate ended', async () => {
    const ended = home.member({ issued: NOW - HOUR, notBefore: NOW - HOUR, notAfter: NOW })
    expect(view((await converse(ended, home.member())).dialler)).toBe(NOTHING_SHARED)
    ended.open = true
    const open = home.member()
    open.open = true
    expect(view((await converse(ended, open)).listener)).toBe('open')
  })

  it('and whose clock says otherwise are refused, and told', async () => {
    const slow = home.member({ issued: NOW - HOUR, notBefore: NOW - HOUR, notAfter: NOW })
    slow.clock = NOW - 60_000
    const { dialler, listener } = await converse(slow, home.member())
    expect(view(listener)).toContain('ended at 2026-06-01')
    expect(await (dialler as { afterwards: Promise<unknown> }).afterwards).toMatchObject([{ fault: 'expired' }])
    expect(view((await converse(home.member(), slow)).dialler)).toContain('ended at')
  })

  it('or not yet, by more than clocks differ, are refused', async () => {
    const times = (ms: number) => ({ issued: NOW + ms, notBefore: NOW + ms, notAfter: NOW + ms + HOUR })
    const [soon, later] = [home.member(times(600_000)), home.member(times(600_001))]
    expect(view((await converse(soon, home.member())).listener)).toBe('web1')
    later.clock = NOW + 600_001
    expect(view((await converse(later, home.member())).listener)).toContain('begins at')
  })
})

describe('those who pretend', () => {
  /** Knows the network's secret, as every former member does. */
  const pretender = (chain: ReturnType<TestNetwork['certify']>, key = makeKey()) => {
    const party = new TestParty(key)
    party.credentials.push(home.credentials(chain))
    party.known.set(hex(home.id), home.revocations)
    return party
  }

  it('to be a member by the certificate of another key are refused', async () => {
    const stolen = home.certify(makeKey().publicKey)
    for (const { dialler, listener } of [await converse(pretender(stolen), home.member())]) {
      expect(view(listener)).toContain('is of another key')
      expect(await (dialler as { afterwards: Promise<unknown> }).afterwards).toMatchObject([{ fault: 'not-yours' }])
    }
    expect(view((await converse(home.member(), pretender(stolen))).dialler)).toContain('is of another key')
  })

  it('to issue are refused: another root, a delegate that gives more than it may', async () => {
    const [key, issuer] = [makeKey(), makeKey()]
    const wrong = [
      home.certify(key.publicKey, {}, makeKey()),
      home.certify(key.publicKey, {}, issuer, home.delegate(issuer.publicKey, { names: ['ci-*'] })),
      home.certify(key.publicKey, {}, issuer, home.delegate(issuer.publicKey, {}, makeKey())),
      home.certify(key.publicKey, { notAfter: NOW + 2 * HOUR }, issuer, home.delegate(issuer.publicKey)),
    ]
    for (const chain of wrong) {
      expect(view((await converse(pretender(chain, key), home.member())).listener)).toMatch(/^refused: /)
      expect(view((await converse(home.member(), pretender(chain, key))).dialler)).toMatch(/^refused: /)
    }
  })

  it('to know a network without its secret find nobody', async () => {
    const member = home.member()
    const guesser = home.member()
    guesser.credentials.splice(0, 1, {
      ...home.credentials(home.certify(guesser.key.publicKey)),
      secret: new Uint8Array(32),
    })
    const { said, listener } = await converse(guesser, member)
    expect(view(listener)).toBe(NOTHING_SHARED)
    expect(said).toHaveLength(1)
  })

  it('get what is left when both are open', async () => {
    const party = pretender(home.certify(makeKey().publicKey))
    const member = home.member()
    party.open = true
    member.open = true
    const { dialler, listener } = await converse(party, member)
    expect(view(listener)).toBe('open')
    expect(listener).toMatchObject({ faults: [{ fault: 'not-yours' }] })
    expect(await (dialler as { afterwards: Promise<unknown> }).afterwards).toMatchObject([{ fault: 'not-yours' }])
  })
})
