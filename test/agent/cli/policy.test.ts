/** `agent policy` and `agent audit`: who may do what, and what came of it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import type { AuditEntry } from '../../../agent/api/membership-contract.ts'
import { notFound } from '../api/fake-agent.ts'
import { auditLog, fakeMembership, policy } from '../api/fake-membership.ts'
import { ask } from './ask-membership.ts'
import { run } from './capture.ts'

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

describe('agent policy', () => {
  const NEW = '[[grants]]\nfrom = "name:web*"\nto = "label:role=db"\nallow = ["service:connect pg"]\n'

  it('shows what it takes: setting it again changes nothing', async () => {
    const { out } = await ask(['policy', 'show'])
    const again = await ask(
      ['policy', 'set', '-'],
      { setPolicy: () => Promise.reject(new Error('asked')) },
      { input: out },
    )
    expect(again).toMatchObject({ status: 0, out: expect.stringMatching(/^Nothing changes: version 1/) })
  })

  it('shows which grants come and go, asks, and says which version it takes the place of', async () => {
    const asked: unknown[] = []
    const setPolicy: MembershipApi['setPolicy'] = (request) => {
      asked.push(request)
      return fakeMembership().setPolicy(request)
    }
    const file = fileOf('policy.toml', NEW)
    const change = '- * -> *: content:fetch, content:publish\n+ name:web* -> label:role=db: service:connect pg\n'
    const no = await ask(['policy', 'set', file], { setPolicy }, { answers: ['n'] })
    expect(no).toMatchObject({ status: 1, out: change })
    expect(asked).toEqual([])
    const { out } = await ask(['policy', 'set', file], { setPolicy }, { answers: ['y'] })
    expect(out).toBe(`${change}Version 2 is in force in home: 1 grant.\n`)
    const json = await ask(['policy', 'set', '-', '--json'], { setPolicy }, { input: NEW })
    expect(JSON.parse(json.out)).toMatchObject({
      version: 2,
      added: [expect.any(String)],
      removed: [expect.any(String)],
    })
    expect(asked).toEqual([
      { text: NEW, replaces: 1 },
      { text: NEW, replaces: 1 },
    ])
  })

  it('can be the first one, and can be empty', async () => {
    const asked: unknown[] = []
    const replaced: Partial<MembershipApi> = {
      policy: () => Promise.reject(notFound),
      setPolicy: (request) => {
        asked.push(request)
        return { ...policy, text: request.text }
      },
    }
    expect((await ask(['policy', 'set', fileOf('empty.toml', '')], replaced)).out).toMatch(/nobody may do anything/)
    expect(asked).toEqual([{ text: '' }])
  })

  it('is checked without an agent, with the place of each mistake', async () => {
    const socket = join(directory, 'no.sock')
    expect(await run(['policy', 'check', fileOf('good.toml', NEW)], { socket })).toMatchObject({ status: 0, err: '' })
    const bad = fileOf('bad.toml', `${NEW}\n[[grants]]\nfrom = "web"\nto = "*"\nallow = ["fly"]\n`)
    const { status, err, out } = await run(['policy', 'check', bad], { socket })
    expect([status, out]).toEqual([2, ''])
    expect(err).toMatch(/bad\.toml: line 6: grants\[1\]\.from: "web" is no selector/)
    expect(err).toMatch(/bad\.toml: line 6: grants\[1\]\.allow\[0\]: "fly" is no verb/)
    const json = await run(['policy', 'check', bad, '--json'], { socket })
    expect(json.status).toBe(2)
    expect(JSON.parse(json.out).mistakes).toHaveLength(2)
    expect(await run(['policy', 'check', '-'], { socket, input: 'grants = 3' })).toMatchObject({
      status: 2,
      err: expect.stringMatching(/standard input: grants: must be a list/),
    })
  })

  it('is not set with a mistake in it', async () => {
    const setPolicy = () => Promise.reject(new Error('asked'))
    const { status, err } = await ask(['policy', 'set', fileOf('bad.toml', '[[grants]]\nfrom = "*"\n')], { setPolicy })
    expect(status).toBe(2)
    expect(err).toMatch(/grants\[0\]\.to: is missing/)
  })

  it('explains: 0 with the rule when it is allowed, 4 with what is missing when not', async () => {
    const yes = await ask(['policy', 'explain', 'pear', 'apple', 'content:fetch'])
    expect(yes).toEqual({
      status: 0,
      err: '',
      out: 'Allowed  pear -> apple: content:fetch in home\n  by grant 1: * -> *: content:fetch, content:publish\n',
    })
    const no = await ask(['policy', 'explain', 'pear', 'apple', 'service:connect', 'db'])
    expect(no).toEqual({
      status: 4,
      err: '',
      out: 'Denied  pear -> apple: service:connect db in home\n  no grant gives service:connect db\n',
    })
    const json = await ask(['policy', 'explain', 'pear', 'apple', 'api:read', '--json'])
    expect([json.status, JSON.parse(json.out).allowed]).toEqual([4, false])
  })
})

describe('agent audit', () => {
  it('prints a line an event, as JSON for scripts', async () => {
    expect((await ask(['audit'])).out.split('\n')).toEqual([
      '2026-01-01 00:00:00Z  network.created       in home',
      '2026-01-01 00:00:01Z  member.joined         pear (12D3KooW…iLiFq7q) in home',
      '2026-01-01 00:01:00Z  peer.refused          12D3KooW…kx6nXTN: no network is shared, 7 times',
      '',
    ])
    const { out } = await ask(['audit', '--json'])
    expect(
      out
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual(auditLog)
    expect((await ask(['audit'], {}, { columns: 100 })).out).toContain('\x1b[33mpeer.refused')
  })

  it('passes on how much, and whether to go on', async () => {
    const asked: unknown[] = []
    const audit: MembershipApi['audit'] = async function* (request) {
      asked.push(request)
      yield* [] as AuditEntry[]
    }
    expect((await ask(['audit', '--follow', '-n', '3'], { audit })).out).toMatch(/Nothing has happened yet/)
    await ask(['audit'], { audit })
    expect(asked).toEqual([
      { follow: true, limit: 3 },
      { follow: false, limit: 50 },
    ])
  })

  it('names who did what', async () => {
    const audit = async function* () {
      yield { at: '2026-01-01T00:00:00.000Z', event: 'policy.changed', network: 'home', version: 3, by: 'apple' }
      yield {
        at: '2026-01-01T00:00:00.000Z',
        event: 'access.refused',
        name: 'pear',
        rule: 'x',
        address: '/ip4/192.0.2.1',
        count: 1,
      }
    }
    expect((await ask(['audit'], { audit })).out).toBe(
      `2026-01-01 00:00:00Z  policy.changed        in home: version 3, by apple
2026-01-01 00:00:00Z  access.refused        pear: rule x, from /ip4/192.0.2.1
`,
    )
  })
})
