/** What `agent status` says of closed networks: each warning when it should, and what to do. */
import { describe, expect, it } from 'vitest'
import { networkWarnings } from '../../../agent/node/network-warnings.ts'
import { DAY, letIn, makeFounder, makeHome, NOW } from '../identity/homes.ts'

const well = { memberships: [], failed: [], orphans: [], now: NOW }

describe('warnings of closed networks', () => {
  it('are silent when all is well, also long before a certificate ends', () => {
    const { net, clock } = makeFounder()
    expect(networkWarnings({ ...well, memberships: [net] })).toEqual([])
    clock.at = NOW + 50 * DAY
    expect(networkWarnings({ ...well, memberships: [net], now: clock.at })).toEqual([])
  })

  it('tell of a certificate that should have been renewed, of its end, and how to come back', () => {
    const { net, clock } = makeFounder()
    clock.at = NOW + 80 * DAY
    expect(networkWarnings({ ...well, memberships: [net], now: clock.at })).toMatchObject([
      {
        code: 'membership.ending',
        message: 'the certificate of this node in "lab" ends in 10 days and could not be renewed',
        next: expect.stringContaining('agent member list'),
      },
    ])
    clock.at = NOW + 90 * DAY
    expect(networkWarnings({ ...well, memberships: [net], now: clock.at })).toMatchObject([
      {
        code: 'membership.ended',
        message: expect.stringContaining('this node is not in "lab" any more: '),
        next: expect.stringContaining('`agent join` here'),
      },
    ])
  })

  it('count hours when there are few', () => {
    const { net } = makeFounder()
    const left = (ms: number) => networkWarnings({ ...well, memberships: [net], now: NOW + 90 * DAY - ms })[0]?.message
    expect(left(60_000)).toContain('ends in 1 hour and')
    expect(left(DAY)).toContain('ends in 24 hours and')
    expect(left(2 * DAY)).toContain('ends in 2 days and')
  })

  it('tell who was put out that this is for good, and that there are other reasons', () => {
    const founder = makeFounder()
    const guest = makeHome({ clock: founder.clock })
    const net = letIn(founder, guest)
    const { bytes } = founder.issuer.revoke(founder.net, {
      key: guest.key.publicKey,
      scope: 'member',
      reason: 'stolen',
    })
    net.takeRevocation(bytes)
    expect(networkWarnings({ ...well, memberships: [net] })).toMatchObject([
      {
        code: 'membership.revoked',
        message: expect.stringContaining('this node was put out of "lab": '),
        next: expect.stringContaining('`agent network leave lab`'),
      },
    ])
    // A clock that was set back by a day.
    const early = makeFounder()
    expect(networkWarnings({ ...well, memberships: [early.net], now: NOW - DAY })).toMatchObject([
      { code: 'membership.fault', message: expect.stringContaining('this node is not in "lab" now: ') },
    ])
  })

  it('tell of networks that do not run, and of root keys of which nothing else is left', () => {
    const { net } = makeFounder()
    const failed = [{ membership: net, reason: 'the database is corrupt' }]
    expect(networkWarnings({ ...well, failed, orphans: ['ab'.repeat(32)] })).toMatchObject([
      { code: 'network.failed', message: 'the network "lab" does not run: the database is corrupt' },
      { code: 'network.lost', message: expect.stringContaining('abababab') },
    ])
  })
})
