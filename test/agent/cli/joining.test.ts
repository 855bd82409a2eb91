/** `agent invite` and `agent join`: a token goes out, and comes in, without standing where others see it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import { AgentError } from '../../../agent/error.ts'
import { fakeMembership } from '../api/fake-membership.ts'
import { ask } from './ask-membership.ts'
import { plain } from './capture.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-membership-cli-'))
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

function fileOf(name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

describe('agent invite', () => {
  it('prints the token alone in a pipe, and what to do with it on a terminal', async () => {
    expect(await ask(['invite'])).toEqual({ status: 0, out: 'un1token\n', err: '' })
    const { out, err } = await ask(['invite', '--uses', '3'], {}, { columns: 100 })
    expect(plain(out)).toBe('un1token\n')
    expect(err).toMatch(/other machine run `agent join`/)
    expect(err).toMatch(/lets 3 machines into home, and ends in 1 d \(\d{4}-\d\d-\d\d \d\d:\d\dZ\)/)
    expect(err).toMatch(/agent invite --withdraw 0123456789abcdef/)
  })

  it('asks for what was said', async () => {
    const asked: unknown[] = []
    const invite: MembershipApi['invite'] = (request) => {
      asked.push(request)
      return fakeMembership().invite(request)
    }
    await ask(
      [
        'invite',
        '--network',
        'home',
        '--name',
        'ci-*',
        '--label',
        'zone=a',
        '--label',
        'role=ci',
        '--uses',
        '20',
        '--expires',
        '7d',
      ],
      { invite },
    )
    await ask(['invite'], { invite })
    expect(asked).toEqual([
      { network: 'home', name: 'ci-*', labels: { zone: 'a', role: 'ci' }, uses: 20, expiresSeconds: 604_800 },
      { labels: {}, uses: 1, expiresSeconds: 86_400 },
    ])
    expect((await ask(['invite', '--list'], { invitations: () => [] })).out).toMatch(/agent invite/)
  })
})

describe('agent join', () => {
  const joined: string[] = []
  const joining: Partial<MembershipApi> = {
    join: async (request, signal) => {
      joined.push(request.token)
      return await fakeMembership().join(request, signal)
    },
  }
  beforeEach(() => joined.splice(0))

  it('takes the token from an argument, a file, a pipe, or a person, and says what happened', async () => {
    const file = fileOf('token', '# for web1\n\n  un1file\n')
    const results = [
      await ask(['join', 'un1typed'], joining),
      await ask(['join', '--file', file], joining),
      await ask(['join'], joining, { input: 'un1piped\n' }),
      await ask(['join'], joining, { answers: ['un1asked'] }),
    ]
    expect(joined).toEqual(['un1typed', 'un1file', 'un1piped', 'un1asked'])
    for (const { out } of results) expect(out).toBe('This machine is web1 in network home; 3 members.\n')
  })

  it('joins the lines of a token that a mail has broken', async () => {
    await ask(['join', '-'], joining, { input: 'UN1bro\r\nken\r\n' })
    expect(joined).toEqual(['UN1broken'])
  })

  it('passes on the name that is wished for', async () => {
    expect((await ask(['join', 'un1x', '--as', 'web7'])).out).toMatch(/This machine is web7/)
  })

  it('says where tokens come from when it got none, and takes one at a time', async () => {
    for (const input of ['', '# only a comment\n', 'hello there'])
      expect(await ask(['join'], joining, { input })).toMatchObject({
        status: 2,
        err: expect.stringMatching(/agent invite/),
      })
    const several = await ask(['join'], joining, { input: 'un1a\nun1b\n' })
    expect(several).toMatchObject({ status: 2, err: expect.stringMatching(/2 tokens(.|\n)*join_file/) })
    expect(await ask(['join'], joining, { answers: [] })).toMatchObject({ status: 2 })
    expect(joined).toEqual([])
  })

  it('repeats the reason of a refusal, and not the token', async () => {
    const join = () => Promise.reject(new AgentError('not-allowed', 'the token was used up'))
    const { status, err } = await ask(['join', 'un1secret'], { join })
    expect([status, err]).toEqual([4, 'agent: the token was used up\n'])
  })
})
