/** What a node signs for a network: within what it may, under names that are one key's, never older than what it replaces. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Roll } from '../../../agent/identity/issuing.ts'
import { memberNameFor, nameOf } from '../../../agent/identity/member-names.ts'
import type { Membership } from '../../../agent/identity/membership.ts'
import type { Chain, Refusal } from '../../../protocols/membership/certificate.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import { NAME_PATTERN } from '../../../protocols/membership/words.ts'
import { makeKey } from '../../protocols/membership/people.ts'
import { DAY, type Home, letIn, makeFounder, makeHome, NOW } from './homes.ts'

const notAllowed = expect.objectContaining({ code: 'not-allowed' })
const nobody = () => false

function chainOf(given: Chain | Refusal | undefined): Chain['statement'] {
  if (given === undefined || 'fault' in given) throw new Error(given?.why ?? 'nothing was given')
  return given.statement
}

type Wish = Omit<Parameters<Home['issuer']['delegate']>[2], 'notAfter'>

/** A member that the founder lets sign, and its founder. */
function makeDelegate(wish: Wish) {
  const founder = makeFounder()
  const guest = makeHome({ clock: founder.clock })
  const net = letIn(founder, guest, { name: 'delegate' })
  const delegation = founder.issuer.delegate(founder.net, guest.key.publicKey, { ...wish, notAfter: NOW + 30 * DAY })
  net.takeDelegation(delegation.bytes)
  return { founder, ...guest, net, delegation }
}

describe('names', () => {
  it.each([
    ['web1', 'web1'],
    ['Web1.example.com', 'web1'],
    ['my_box 2', 'my-box-2'],
    ['-a-', 'a'],
    ['…', undefined],
    ['', undefined],
    ['x'.repeat(80), 'x'.repeat(63)],
    [`${'x'.repeat(62)}--y`, 'x'.repeat(62)],
  ])('makes of host name "%s" the label %s', (text, label) => {
    expect(nameOf(text)).toBe(label)
  })

  it('fills a pattern with the hash of the key, and puts the hash behind a name that is taken', () => {
    const key = new Uint8Array(32)
    const taken = new Set<string>()
    const next = (pattern?: string, wished?: string) => {
      const name = memberNameFor({ key, pattern, wished, isTaken: (one) => taken.has(one) })
      taken.add(name)
      return name
    }
    expect(next('ci-*', 'web')).toBe('ci-mzuhv')
    expect(next('ci-*')).toBe('ci-mzuhvlpymk')
    expect(next(undefined, 'Web.local')).toBe('web')
    expect(next(undefined, 'web')).toBe('web-mzuhv')
    expect(next('db1', 'web')).toBe('db1')
    expect(next('db1', 'web')).toBe('db1-mzuhv')
    expect(next()).toBe('node-mzuhv')
    expect(next(undefined, '???')).toBe('node-mzuhvlpymk')
  })

  it('gives what the issuer may give', () => {
    const key = new Uint8Array(32)
    const allowed = ['ci-*']
    expect(memberNameFor({ key, wished: 'web', allowed, isTaken: nobody })).toBe('ci-mzuhv')
    expect(memberNameFor({ key, wished: 'ci-a', allowed, isTaken: nobody })).toBe('ci-a')
    expect(() => memberNameFor({ key, pattern: 'web', allowed, isTaken: nobody })).toThrow(notAllowed)
  })

  it('are labels, whatever anybody wishes', () => {
    const pattern = fc.option(
      fc.tuple(
        fc.stringMatching(/^[a-z0-9-]{0,40}$/),
        fc.constantFrom('', '*'),
        fc.stringMatching(/^[a-z0-9-]{0,22}$/),
      ),
    )
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        fc.string({ unit: 'binary' }),
        pattern,
        (key, wished, parts) => {
          const wish = { key, wished, ...(parts && { pattern: parts.join('') }) }
          for (const isTaken of [nobody, (name: string) => !/-[a-z2-7]{10}/.test(name)]) {
            try {
              expect(memberNameFor({ ...wish, isTaken })).toMatch(NAME_PATTERN)
            } catch (error) {
              // There is nothing to give only where the invitation's own words allow nothing.
              expect(error).toMatchObject({ code: 'not-allowed' })
              expect(parts).not.toBeNull()
            }
          }
        },
      ),
    )
  })

  it("are one key's in a network: not the issuer's own, not one that was given and holds, not one that a member says", () => {
    const other = makeKey().publicKey
    const roll: Roll = { holderOf: (name) => (name === 'said' ? other : undefined), memberOf: () => undefined }
    const { net, issuer, clock } = makeFounder({ roll })
    const [first, second] = [makeKey().publicKey, makeKey().publicKey]
    issuer.issue(net, { subject: first, name: 'web', labels: {}, lifetimeMs: DAY })
    expect(issuer.nameFor(net, first, 'web')).toBe('web')
    for (const name of ['web', 'said', 'founder'])
      expect(issuer.nameFor(net, second, name)).toMatch(new RegExp(`^${name}-[a-z2-7]{5}$`))
    expect(issuer.nameFor(net, other, 'said')).toBe('said')
    clock.at += 2 * DAY
    expect(issuer.nameFor(net, second, 'web')).toBe('web')
    clock.at = NOW
    issuer.revoke(net, { key: first, scope: 'member' })
    expect(issuer.nameFor(net, second, 'web')).toBe('web')
  })
})

describe('a certificate', () => {
  it('is refused to a key that was revoked, by a node that may not, and with labels that are none', () => {
    const founder = makeFounder()
    const guest = makeHome()
    const net = letIn(founder, guest)
    const subject = makeKey().publicKey
    expect(() => guest.issuer.issue(net, { subject, name: 'a', labels: {} })).toThrow(/may not let others in/)
    const labels = Object.fromEntries(
      Array.from({ length: 16 }, (_, nth) => [`${'k'.repeat(30)}${nth}`, 'v'.repeat(63)]),
    )
    for (const bad of [
      { name: 'A', labels: {} },
      { name: 'a', labels: { '': 'x' } },
      { name: 'a', labels },
    ])
      expect(() => founder.issuer.issue(founder.net, { subject, ...bad })).toThrow(
        expect.objectContaining({ code: 'usage' }),
      )
    founder.issuer.revoke(founder.net, { key: subject, scope: 'member' })
    expect(() => founder.issuer.issue(founder.net, { subject, name: 'a', labels: {} })).toThrow(notAllowed)
  })

  it('is renewed under the same name, later, as long as its member is one', () => {
    const { net, issuer, clock } = makeFounder()
    const subject = makeKey().publicKey
    const first = issuer.issue(net, { subject, name: 'web', labels: { zone: 'a' } })
    expect(first.statement.notAfter).toBe(NOW + 90 * DAY)
    clock.at += 45 * DAY
    const second = chainOf(issuer.renew(net, subject, first))
    expect(second).toMatchObject({
      name: 'web',
      labels: { zone: 'a' },
      issued: NOW + 45 * DAY,
      notAfter: NOW + 135 * DAY,
    })
    clock.at += 1_000
    expect(hexOf(chainOf(issuer.renew(net, subject, first)).id)).toBe(hexOf(second.id))
    expect(issuer.renew(net, makeKey().publicKey, first)).toMatchObject({ fault: 'not-yours' })
    expect(issuer.renew(net, makeKey().publicKey)).toMatchObject({ fault: 'foreign' })
    clock.at = NOW + 136 * DAY
    expect(issuer.renew(net, subject)).toMatchObject({ fault: 'expired' })
    clock.at = NOW + 50 * DAY
    issuer.revoke(net, { key: subject, scope: 'member' })
    expect(issuer.renew(net, subject)).toMatchObject({ fault: 'revoked' })
  })

  it('of the node itself is renewed also when it has ended, if the node may', () => {
    const { net, issuer, clock } = makeFounder()
    clock.at += 100 * DAY
    expect(net.fault()).toMatchObject({ fault: 'expired' })
    const own = issuer.renew(net, net.self.key)
    expect(net.takeChain(own as Chain)).toBe(true)
    expect(net.fault()).toBeUndefined()
  })

  it('of a short life stays short', () => {
    const { net, issuer, clock } = makeFounder()
    const subject = makeKey().publicKey
    const first = issuer.issue(net, { subject, name: 'a', labels: {}, lifetimeMs: DAY })
    clock.at += DAY / 2
    expect(chainOf(issuer.renew(net, subject, first)).notAfter).toBe(clock.at + DAY)
  })

  it('is always issued after the one that it replaces', () => {
    const { net, issuer, clock } = makeFounder()
    const subject = makeKey().publicKey
    const first = issuer.issue(net, { subject, name: 'a', labels: {} }).statement.issued
    expect(issuer.relabel(net, { key: subject, name: 'a' }, { zone: 'b' }).statement.issued).toBe(first + 1)
    clock.at -= 300_000
    expect(issuer.relabel(net, { key: subject, name: 'a' }, { zone: 'c' }).statement.issued).toBe(first + 2)
    clock.at -= 10 * DAY
    expect(issuer.relabel(net, { key: subject, name: 'a' }, { zone: 'd' }).statement.issued).toBe(clock.at)
  })
})

describe('labels', () => {
  it('given to a member that is away are given when it comes back, whatever it renewed elsewhere', () => {
    const { net, issuer, clock, restart } = makeFounder()
    const subject = makeKey().publicKey
    const first = issuer.issue(net, { subject, name: 'web', labels: { zone: 'a' } })
    expect(issuer.owed(net, first)).toBeUndefined()
    const second = issuer.relabel(net, { key: subject, name: 'web' }, { zone: 'b' })
    expect(hexOf(chainOf(issuer.owed(net, first)).id)).toBe(hexOf(second.statement.id))
    const again = restart()
    const there = again.networks.find('lab')
    clock.at += 40 * DAY
    expect(chainOf(again.issuer.renew(there, subject, first)).labels).toEqual({ zone: 'b' })
    const third = again.issuer.owed(there, first)
    expect(chainOf(third).labels).toEqual({ zone: 'b' })
    // It comes with that: nothing is owed any more, and an older one brings nothing back.
    expect(again.issuer.owed(there, third as Chain)).toBeUndefined()
    expect(again.issuer.owed(there, first)).toBeUndefined()
    clock.at += DAY
    expect(chainOf(again.issuer.renew(there, subject, first)).labels).toEqual({ zone: 'b' })
  })

  it('that another issuer gave since are kept', () => {
    const said = { name: 'web', labels: { zone: 'c' }, issued: NOW + DAY }
    const { net, issuer, clock } = makeFounder({ roll: { holderOf: () => undefined, memberOf: () => said } })
    const subject = makeKey().publicKey
    const first = issuer.issue(net, { subject, name: 'web', labels: { zone: 'a' } })
    clock.at += 2 * DAY
    expect(chainOf(issuer.renew(net, subject, first)).labels).toEqual({ zone: 'c' })
  })
})

describe('a delegate', () => {
  it('gives what it may and no more, and not for longer', () => {
    const { net, issuer, clock } = makeDelegate({
      may: ['issue'],
      names: ['ci-*'],
      labels: { role: ['ci'], zone: ['*'] },
      lifetimeMsMax: DAY,
    })
    const subject = makeKey().publicKey
    const give = (name: string, labels: Record<string, string>) => issuer.issue(net, { subject, name, labels })
    expect(give('ci-1', { role: 'ci', zone: 'b' }).statement.notAfter).toBe(NOW + DAY)
    expect(() => give('web', {})).toThrow(notAllowed)
    expect(() => give('ci-1', { role: 'admin' })).toThrow(notAllowed)
    expect(() => give('ci-1', { other: 'x' })).toThrow(notAllowed)
    expect(issuer.nameFor(net, subject, 'web')).toMatch(/^ci-/)
    for (const may of ['revoke', 'policy'] as const) expect(net.can(may)).toBeUndefined()
    expect(() => issuer.setPolicy(net, [])).toThrow(notAllowed)
    expect(() => issuer.revoke(net, { key: subject, scope: 'member' })).toThrow(notAllowed)
    expect(() => issuer.delegate(net, subject, { may: ['issue'], notAfter: NOW + DAY })).toThrow(/only the root key/)
    clock.at += 29.5 * DAY
    expect(chainOf(issuer.issue(net, { subject, name: 'ci-1', labels: {} })).notAfter).toBe(NOW + 30 * DAY)
    clock.at += DAY
    expect(net.can('issue')).toBeUndefined()
  })

  it('can sign at once, also when its clock is behind, and after a restart', () => {
    const { net, issuer, clock, restart } = makeDelegate({ may: ['issue'] })
    clock.at -= 9 * 60_000
    issuer.issue(net, { subject: makeKey().publicKey, name: 'a', labels: {} })
    expect(restart().networks.find('lab').can('issue')?.delegation).toBeDefined()
  })

  it('is none when its key was revoked, as an issuer or as a member', () => {
    for (const scope of ['issuer', 'member'] as const) {
      const { net, founder, key } = makeDelegate({ may: ['issue', 'revoke', 'policy'] })
      const { bytes } = founder.issuer.revoke(founder.net, { key: key.publicKey, scope })
      net.takeRevocation(bytes)
      expect(net.ways('issue')).toEqual([])
      const wish = { may: ['issue'] as const, notAfter: NOW + DAY }
      expect(() => founder.issuer.delegate(founder.net, key.publicKey, wish)).toThrow(notAllowed)
    }
  })

  it('that set a policy and was revoked leaves the policy that was before', () => {
    const { net, issuer, founder, key, restart } = makeDelegate({ may: ['policy'] })
    const sent = founder.net.policy?.bytes as Uint8Array
    expect(net.takePolicy(sent)).toBe(true)
    expect(net.takePolicy(sent)).toBe(false)
    const mine = issuer.setPolicy(net, [])
    expect(mine.statement.version).toBe(2)
    expect(founder.net.takePolicy(mine.bytes)).toBe(true)
    const heard: string[] = []
    net.onChange((what) => void heard.push(what))
    const { bytes } = founder.issuer.revoke(founder.net, { key: key.publicKey, scope: 'issuer' })
    expect(net.takeRevocation(bytes)).toBe(true)
    expect(net.takeRevocation(bytes)).toBe(false)
    expect(heard).toEqual(['revocations', 'policy'])
    for (const one of [net, founder.net, restart().networks.find('lab')]) expect(one.policy?.bytes).toEqual(sent)
    expect(founder.issuer.setPolicy(founder.net, []).statement.version).toBe(2)
  })
})

describe('what is learned', () => {
  it('is there after a restart byte for byte, and is told of once', () => {
    const founder = makeFounder()
    const guest = makeHome({ clock: founder.clock })
    const net = letIn(founder, guest)
    const heard: string[] = []
    guest.networks.onChange(({ what }) => void heard.push(what))
    const { bytes } = founder.issuer.revoke(founder.net, { key: makeKey().publicKey, scope: 'member', reason: 'lost' })
    // It came in a larger message, which need not be kept for it.
    const message = Buffer.concat([new Uint8Array(100_000), bytes])
    net.takeRevocation(message.subarray(100_000))
    expect(net.revocations.list()[0]?.bytes.buffer.byteLength).toBe(bytes.byteLength)
    net.takePolicy(founder.issuer.setPolicy(founder.net, []).bytes)
    const delegation = founder.issuer.delegate(founder.net, guest.key.publicKey, {
      may: ['issue'],
      notAfter: NOW + DAY,
    })
    expect(net.takeDelegation(delegation.bytes)).toBe(true)
    expect(net.takeDelegation(delegation.bytes)).toBe(false)
    expect(heard).toEqual(['revocations', 'policy', 'rights'])
    const again = guest.restart().networks.find('lab')
    expect(again.revocations.list().map((one) => Buffer.from(one.bytes))).toEqual([Buffer.from(bytes)])
    expect(Buffer.from(again.policy?.bytes ?? [])).toEqual(Buffer.from(net.policy?.bytes ?? []))
    expect(again.delegations()).toHaveLength(1)
  })

  it('never is an older certificate, or one of somebody else', () => {
    const founder = makeFounder()
    const guest = makeHome({ clock: founder.clock })
    const net: Membership = letIn(founder, guest, { name: 'web', labels: { zone: 'a' } })
    const first = net.chain
    const second = founder.issuer.relabel(founder.net, net.self, {})
    expect(net.takeChain(second)).toBe(true)
    expect(net.takeChain(second)).toBe(false)
    expect(net.takeChain(first)).toBe(false)
    expect(() => net.takeChain(founder.net.chain)).toThrow(/another key/)
    expect(guest.restart().networks.find('lab').self.labels).toEqual({})
  })

  it('that this node itself is out is not said by this node', () => {
    const { net, issuer } = makeFounder()
    expect(() => issuer.revoke(net, { key: net.self.key, scope: 'member' })).toThrow(
      expect.objectContaining({ code: 'usage' }),
    )
    expect(() => issuer.revoke(net, { key: makeKey().publicKey, scope: 'member', reason: 'a\nb' })).toThrow(
      /not printable/,
    )
  })
})
