/** What all commands of closed networks have in common: JSON, refusals, exit statuses, clean text. Then: who is in, who is out. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import type { MemberView, NetworkDetail } from '../../../agent/api/membership-contract.ts'
import { notFound, serve, status } from '../api/fake-agent.ts'
import { fakeMembership, home, invitation, members, policy } from '../api/fake-membership.ts'
import { ask } from './ask-membership.ts'
import { plain, run } from './capture.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-membership-cli-'))
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

const [, pear] = members as [MemberView, MemberView]

describe('every command', () => {
  it.each([
    [['network', 'list'], fakeMembership().networks()],
    [['network', 'show'], home],
    [['network', 'show', 'home'], home],
    [
      ['network', 'create', 'home', '--as', 'apple'],
      { ...home, member: { ...home.member, labels: {} }, nodes: 1, members: 1, invitations: [] },
    ],
    [['network', 'leave', 'home'], home],
    [['network', 'remove-root', 'home'], { ...home, rootKey: 'absent', may: [], issues: false }],
    [['invite', '--list'], { invitations: [invitation] }],
    [['invite', '--withdraw', '0123'], invitation],
    [['member', 'list'], { network: 'home', members }],
    [['member', 'show', 'pear'], pear],
    [['member', 'label', 'pear', 'zone=a'], { member: { ...pear, labels: { zone: 'a' } }, delivered: true }],
    [['policy', 'show'], policy],
    [
      ['policy', 'explain', 'pear', 'apple', 'content:fetch'],
      { network: 'home', allowed: true, rule: { index: 0, text: '* -> *: content:fetch, content:publish' } },
    ],
  ])('%j prints JSON with the names of the contract, and text for people', async (words, value) => {
    const json = await ask([...words, '--json'])
    expect(json).toMatchObject({ status: 0, err: '' })
    expect(JSON.parse(json.out)).toEqual(value)
    const text = await ask(words)
    expect(text).toMatchObject({ status: 0, err: '' })
    expect(text.out.length).toBeGreaterThan(5)
    expect(text.out).not.toContain('\x1b')
  })

  it('says that no agent is running, with exit status 3', async () => {
    const lines = [
      'network list',
      'network show',
      'network create x',
      'invite',
      'join un1x',
      'member list',
      'member revoke x',
      'policy show',
      'audit',
    ]
    for (const line of lines)
      expect([line, await run(line.split(' '), { socket: join(directory, 'no.sock') })]).toEqual([
        line,
        { status: 3, out: '', err: expect.stringMatching(/no agent is running/) },
      ])
  })

  it.each([
    ['network create My_Network', /a network cannot be "My_Network"/],
    ['network create home --as Gate', /--as cannot be "Gate"/],
    ['network delegate home pear --may issue,fly', /"fly" is no right/],
    ['network delegate home pear --names a*b*', /--names cannot be/],
    ['network delegate home pear --labels zone', /"zone" is no label/],
    ['network delegate home pear --days 0', /--days must be a whole number from 1/],
    ['invite --expires soon', /--expires must be like 90m, 24h or 7d/],
    ['invite --expires 1s', /--expires must be from 1m/],
    ['invite --expires 999w', /--expires must be from 1m/],
    ['invite --uses 0', /--uses must be a whole number/],
    ['invite --uses 1e3', /--uses must be a whole number/],
    ['invite --label Zone=a', /"Zone" cannot be a label/],
    ['invite --label zone=', /cannot be the value of a label/],
    ['invite --label zone=a --label zone=b', /zone is given twice/],
    ['invite --name web_1', /--name cannot be/],
    ['invite --withdraw zz', /not the id of an invitation/],
    ['join un1x --file y', /one will do/],
    ['join home', /not by its name/],
    ['join un1x --as Web', /--as cannot be/],
    ['member revoke pear --issued-after 2026-01-01', /goes with --issuer/],
    ['member revoke pear --issuer --issued-after yesterday', /must be like 2026-11-01/],
    ['member label pear', /no label to set/],
    ['member label pear zone=a --remove zone', /both set and removed/],
    ['audit --limit many', /--limit must be a whole number/],
  ])('%s is refused with what to write instead, and exit status 2', async (line, message) => {
    const { status, err, out } = await ask(line.split(' '))
    expect([status, out]).toEqual([2, ''])
    expect(err).toMatch(message)
  })

  it('shows nothing of what peers wrote but its printable characters, and cuts nothing that must be whole', async () => {
    const hostile = 'a\x1b[2Jb\u202ec'
    const shown = 'a[2Jbc'
    const replaced: Partial<MembershipApi> = {
      members: () => ({
        network: hostile,
        members: [
          { ...pear, name: hostile, labels: { x: hostile }, issuer: { root: false, peerId: null, name: hostile } },
        ],
      }),
      member: () => ({ ...pear, name: hostile }),
      networks: () => ({
        networks: [{ ...home, name: hostile, member: { ...home.member, name: hostile } }],
        open: null,
      }),
      network: () => ({ ...home, name: hostile, member: { ...home.member, state: 'revoked', why: hostile } }),
      policy: () => ({ ...policy, text: hostile }),
      explain: () => ({ network: 'home', allowed: false, missing: hostile }),
      audit: async function* () {
        yield { at: hostile, event: hostile, name: hostile, why: hostile, by: hostile }
      },
    }
    const lines = [
      'member list',
      'member show x',
      'network list',
      'network show home',
      'policy show',
      'policy explain a b api:read',
      'audit',
    ]
    for (const line of lines) {
      const { out } = await ask(line.split(' '), replaced)
      expect(out.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}]/u)
      expect(out).toContain(shown)
    }
  })
})

describe('colours', () => {
  it('are on a terminal, for what somebody should look at', async () => {
    const member = { ...home.member, issued: '2026-01-01T00:00:00.000Z', expires: '2026-01-02T00:00:00.000Z' }
    const ended: NetworkDetail = {
      ...home,
      member: { ...member, state: 'expired' },
      invitations: [{ ...invitation, state: 'used-up' }],
    }
    const replaced: Partial<MembershipApi> = {
      networks: () => ({ networks: [ended], open: null }),
      network: () => ended,
      invitations: () => ended.invitations,
      members: () => ({ network: 'home', members: members.map((one) => ({ ...one, ...member, state: 'expired' })) }),
      member: () => ({ ...pear, ...member, state: 'expired' }),
    }
    const screens = ['network list', 'network show home', 'invite --list', 'member list', 'member show pear', 'status']
    for (const screen of screens) {
      await using agent = await serve({
        membership: fakeMembership(replaced),
        status: () => ({ ...status, networks: [ended] }),
      })
      const asked = { socket: agent.socket }
      const { out, status: code } = await run(screen.split(' '), { ...asked, columns: 140 })
      expect([screen, code]).toEqual([screen, 0])
      expect(out).toContain(screen === 'invite --list' ? '\x1b[2mused up' : '\x1b[31m')
      // The same text as in a pipe, which has none.
      const { out: piped } = await run(screen.split(' '), asked)
      expect(plain(out)).toBe(piped)
    }
  })
})

describe('agent member', () => {
  it('asks before a key is revoked, with who it is; not a script, and not with --yes', async () => {
    const revoked: unknown[] = []
    const revoke: MembershipApi['revoke'] = (member, request) => {
      revoked.push(request)
      return fakeMembership().revoke(member, request)
    }
    const no = await ask(['member', 'revoke', 'pear'], { revoke }, { answers: [''] })
    expect(no.status).toBe(1)
    expect(plain(no.err)).toMatch(/Put pear \(12D3KooW…iLiFq7q\) out for ever\? \[y\/N\]/)
    expect(revoked).toEqual([])
    await ask(['member', 'revoke', 'pear', '--reason', 'stolen'], { revoke }, { answers: ['yes'] })
    await ask(
      ['member', 'revoke', 'pear', '--yes', '--issuer', '--issued-after', '2026-11-01'],
      { revoke },
      { answers: [] },
    )
    const { out } = await ask(['member', 'revoke', 'pear'], { revoke })
    expect(revoked).toEqual([{ reason: 'stolen' }, { issuer: true, issuedAfter: '2026-11-01T00:00:00.000Z' }, {}])
    expect(out).toBe(
      'Revoked: pear (12D3KooW…iLiFq7q) is out of home for ever.\n  1 member told; 1 connection cut here.\n',
    )
  })

  it('asks about a key that nobody here knows, too', async () => {
    const member = () => Promise.reject(notFound)
    const { err, status } = await ask(['member', 'revoke', pear.peerId], { member }, { answers: ['y'] })
    expect(status).toBe(0)
    expect(plain(err)).toMatch(/which is not known here/)
  })

  it('sets and removes labels', async () => {
    const asked: unknown[] = []
    const label: MembershipApi['label'] = async (member, request) => {
      asked.push(request)
      return { ...(await fakeMembership().label(member, request)), delivered: false }
    }
    const words = ['member', 'label', 'pear', 'zone=a', 'role=web', '--remove', 'old', '--network', 'home']
    expect((await ask(words, { label })).out).toBe(
      'pear has now zone=a, role=web.\n  It is away: it gets its new certificate when it comes back.\n',
    )
    expect(asked).toEqual([{ labels: { zone: 'a', role: 'web', old: null }, network: 'home' }])
  })

  it('says how to go on when this machine is alone', async () => {
    const [apple] = members as [MemberView]
    expect((await ask(['member', 'list'], { members: () => ({ network: 'home', members: [apple] }) })).out).toMatch(
      /Nobody else yet: agent invite/,
    )
  })
})
