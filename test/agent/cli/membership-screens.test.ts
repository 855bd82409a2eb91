/** What people see of closed networks: the screens, with the colours of what they should look at. */
import { describe, expect, it } from 'vitest'
import type { MemberView, NetworkDetail, OwnMembership } from '../../../agent/api/membership-contract.ts'
import { endingOf } from '../../../agent/cli/lifetime.ts'
import { readDuration } from '../../../agent/cli/measures.ts'
import { membersScreen } from '../../../agent/cli/member.ts'
import { networksScreen } from '../../../agent/cli/network.ts'
import { statusScreen } from '../../../agent/cli/status.ts'
import { textWidth } from '../../../agent/cli/table.ts'
import type { Style } from '../../../agent/cli/terminal.ts'
import { peer, status } from '../api/fake-agent.ts'
import { home, members } from '../api/fake-membership.ts'

const pipe = { columns: undefined, style: (_style: unknown, text: string) => text }
const painted = { columns: undefined, style: (style: Style, text: string) => `<${String(style)} ${text}>` }
const NOW = Date.parse('2026-06-01T00:00:00Z')
const [apple, pear, quince] = members.map((member, at) => ({
  ...member,
  issued: '2026-05-01T00:00:00.000Z',
  expires: ['2026-07-30T00:00:00.000Z', '2026-06-05T00:00:00.000Z', '2026-05-31T21:00:00.000Z'][at] ?? '',
})) as [MemberView, MemberView, MemberView]
const own: OwnMembership = { ...home.member, issued: apple.issued, expires: apple.expires }
const network: NetworkDetail = { ...home, member: own }

describe('member list', () => {
  const list = { network: 'home', members: [apple, pear, { ...quince, state: 'expired' as const }] }

  it('lines up, whom it shows', () => {
    expect(membersScreen(list, pipe, NOW).join('\n')).toBe(
      `
NAME    STATE         LABELS           CERTIFICATE ENDS  ISSUED BY  PEER ID
apple   this machine  zone=a           in 59 d           root key   12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS
pear    here          -                in 4 d            apple      12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q
quince  expired       zone=b, role=db  3 h ago           root key   12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN
`.trim(),
    )
  })

  it('colours states, and certificates that nobody has renewed', () => {
    const text = membersScreen(list, painted, NOW).join('\n')
    expect(text).toContain('<green here>')
    expect(text).toContain('<yellow in 4 d>')
    expect(text).toContain('<red 3 h ago>')
    expect(text).not.toMatch(/<yellow in 59 d>/)
  })

  it('shortens the peer id first, and fits a narrow terminal', () => {
    const lines = membersScreen(list, { ...pipe, columns: 90 }, NOW)
    expect(lines[1]).toMatch(/12D3KooW.*….*kaNfS$/)
    expect(lines.filter((line) => textWidth(line) > 90)).toEqual([])
  })

  it('says what to do when nobody is known', () => {
    expect(membersScreen({ network: 'home', members: [] }, pipe, NOW)).toEqual([
      'No member of home is known yet: agent invite',
    ])
  })
})

describe('network list', () => {
  it('shows the name there, who is here, and when the certificate ends', () => {
    const expired: NetworkDetail = {
      ...network,
      name: 'work',
      may: [],
      nodes: 1,
      members: 12,
      member: { ...own, name: 'w7', state: 'revoked' },
    }
    expect(
      networksScreen(
        { networks: [network, expired], open: { id: '', name: 'open', kind: 'open', nodes: 2 } },
        pipe,
        NOW,
      ).join('\n'),
    ).toBe(
      `
NAME  THIS MACHINE     HERE  CERTIFICATE ENDS  MAY                    ID
home  apple          2 of 3  in 59 d           issue, revoke, policy  cdcdcdcdcdcd
work  w7            1 of 12  revoked           -                      cdcdcdcdcdcd

The open network is on: 2 nodes known.
`.trim(),
    )
  })
})

describe('status screen', () => {
  const shown = (member: OwnMembership, open = true) => ({
    ...status,
    networks: [{ ...network, member }, ...(open ? status.networks : [])],
    peers: [{ ...peer, networks: ['open', 'home'] }],
  })

  it('shows each network with this node in it, and the networks of peers', () => {
    expect(statusScreen(shown(own), pipe, NOW).slice(4, 7)).toEqual([
      'Network    home: this node is apple, 2 of 3 members here, certificate ends in 59 d',
      '           open, 2 nodes known',
      'Peers      1 connected: pear 1.3 ms (home)',
    ])
  })

  it('says that the open network is off', () => {
    expect(statusScreen(shown(own, false), pipe, NOW)[5]).toBe('           the open one is off')
    expect(statusScreen({ ...status, networks: [] }, pipe, NOW)[4]).toBe(
      'Network    none, and the open one is off: agent join',
    )
  })

  it('says when a certificate ended, or is about to, in colours that nothing cuts', () => {
    const ended = shown({ ...own, state: 'expired', expires: quince.expires })
    expect(statusScreen(ended, painted, NOW)[4]).toBe(
      'Network    home: this node is apple, but certificate <red ended 3 h ago>: agent network show home',
    )
    const soon = shown({ ...own, expires: pear.expires })
    expect(statusScreen(soon, painted, NOW)[4]).toMatch(/certificate <yellow ends in 4 d>$/)
    const narrow = statusScreen(soon, { ...painted, columns: 60 }, NOW)
    expect(narrow[4]).not.toContain('<')
    expect(textWidth(narrow[4] ?? '')).toBeLessThanOrEqual(60)
    const revoked = shown({ ...own, state: 'issuer-revoked' })
    expect(statusScreen(revoked, pipe, NOW)[4]).toMatch(
      /but issuer revoked, certificate ends in 59 d: agent network show home$/,
    )
  })
})

describe('times', () => {
  it('are read as people write them', () => {
    expect(['90m', '24h', '7d', '2w', '30s', ' 1h '].map((text) => readDuration(text, 'x'))).toEqual([
      5_400, 86_400, 604_800, 1_209_600, 30, 3_600,
    ])
    for (const text of ['', '0h', '1', 'h', '1.5h', '-1h', '1y', '1h30m', '9999999999s'])
      expect(() => readDuration(text, '--expires')).toThrow(/--expires must be like 90m/)
  })

  it('that are left are rounded to what is shown', () => {
    const text = (seconds: number) =>
      endingOf({ issued: new Date(NOW).toISOString(), expires: new Date(NOW + seconds * 1_000).toISOString() }, NOW)
        .text
    expect([90 * 86_400 - 5, 86_400 - 5, 36 * 3_600 + 1, 3_600 - 5, 65, 5].map(text)).toEqual([
      'in 90 d',
      'in 1 d',
      'in 2 d',
      'in 1 h',
      'in 1 min',
      'in 5 s',
    ])
  })

  it('of which nothing is known are no ending', () => {
    expect(endingOf({ issued: 'x', expires: 'y' }, NOW)).toEqual({ text: '-', isOver: false, style: undefined })
  })
})
