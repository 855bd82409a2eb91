/** `agent network`: making, leaving, delegating; the root key on its way out and back. */
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { AgentApi } from '../../../agent/api/agent-api.ts'
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import type { NetworkDetail } from '../../../agent/api/membership-contract.ts'
import { AgentError } from '../../../agent/error.ts'
import { artifact, notFound, serve } from '../api/fake-agent.ts'
import { fakeMembership, home } from '../api/fake-membership.ts'
import { ask } from './ask-membership.ts'
import { plain, run } from './capture.ts'

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

const PASSPHRASE = 'correct horse battery'

describe('agent network', () => {
  it('says what to do when there is none', async () => {
    const none = { networks: () => ({ networks: [], open: null }) }
    const { out, status } = await ask(['network', 'list'], none)
    expect(status).toBe(0)
    expect(out).toMatch(
      /^You are in no network yet: agent network create home\n.*agent join\n\nThe open network is off\.$/m,
    )
    expect(await ask(['network', 'show'], none)).toMatchObject({
      status: 2,
      err: expect.stringMatching(/agent network create/),
    })
  })

  it('shows one of several only when it is named', async () => {
    const second: NetworkDetail = { ...home, name: 'work' }
    const { status, err } = await ask(['network', 'show'], {
      networks: () => ({ networks: [home, second], open: null }),
    })
    expect(status).toBe(2)
    expect(err).toMatch(/Name one: home, work\./)
  })

  it('tells what a new network needs, on a terminal', async () => {
    const { out, err } = await ask(['network', 'create', 'home'], {}, { columns: 100 })
    expect(plain(out)).toBe('This machine is apple in the new network home.\n')
    expect(err).toMatch(/agent invite --network home/)
    expect(err).toMatch(/export-root home --to home-root\.age/)
  })

  it('asks before it is left, but not a script', async () => {
    const left: unknown[] = []
    const leaveNetwork: MembershipApi['leaveNetwork'] = (network, force) => {
      left.push([network, force])
      return home
    }
    expect(await ask(['network', 'leave', 'home'], { leaveNetwork }, { answers: ['n'] })).toMatchObject({ status: 1 })
    expect(left).toEqual([])
    await ask(['network', 'leave', 'home'], { leaveNetwork }, { answers: ['y'] })
    await ask(['network', 'leave', 'home', '--force'], { leaveNetwork }, { answers: [] })
    await ask(['network', 'leave', 'home'], { leaveNetwork })
    expect(left).toEqual([
      [home.id, false],
      [home.id, true],
      [home.id, false],
    ])
  })

  it('delegates what was said, and no more', async () => {
    const asked: unknown[] = []
    const delegate: MembershipApi['delegate'] = (network, request) => {
      asked.push(request)
      return fakeMembership().delegate(network, request)
    }
    const words = [
      '--may',
      'policy,issue',
      '--names',
      'ci-*',
      '--labels',
      'zone=a',
      '--labels',
      'zone=b',
      '--labels',
      'role=*',
      '--days',
      '7',
    ]
    const { out } = await ask(['network', 'delegate', 'home', 'pear', ...words], { delegate })
    expect(asked).toEqual([
      { member: 'pear', may: ['issue', 'policy'], days: 7, names: ['ci-*'], labels: { zone: ['a', 'b'], role: ['*'] } },
    ])
    expect(out).toBe('pear may issue, policy in home; this ends in 7 d.\n  only: ci-*, zone=a, zone=b, role=*\n')
  })
})

describe('a root key', () => {
  const exported = { armored: 'AGE FILE\n' }

  it('is exported to a new file of its owner, with a passphrase that is asked for twice and never shown', async () => {
    const given: unknown[] = []
    const exportRoot: MembershipApi['exportRoot'] = async (_network, passphrase) => {
      given.push(passphrase)
      return exported
    }
    const to = join(directory, 'root.age')
    const words = ['network', 'export-root', 'home', '--to', to]
    const { status, out, err } = await ask(words, { exportRoot }, { columns: 100, answers: [PASSPHRASE, PASSPHRASE] })
    expect([status, given]).toEqual([0, [PASSPHRASE]])
    expect(out + err).not.toContain(PASSPHRASE)
    expect(readFileSync(to, 'utf8')).toBe('AGE FILE\n')
    expect(statSync(to).mode & 0o777).toBe(0o600)
    expect(err).toMatch(/agent network remove-root home/)
  })

  it('is not exported with a passphrase that is short, or not the same twice', async () => {
    const exportRoot = () => Promise.reject(new Error('asked'))
    const to = join(directory, 'root.age')
    const words = ['network', 'export-root', 'home', '--to', to]
    const answers = ['short', PASSPHRASE, 'another one', PASSPHRASE, 'mistyped']
    const { status, err } = await ask(words, { exportRoot }, { answers })
    expect(status).toBe(2)
    expect(err).toMatch(/less than 8 characters/)
    expect(err).toMatch(/not the same/)
    expect(existsSync(to)).toBe(false)
  })

  it('takes the first line of a file as the passphrase, and needs one when nobody can be asked', async () => {
    const given: unknown[] = []
    const exportRoot: MembershipApi['exportRoot'] = async (_network, passphrase) => {
      given.push(passphrase)
      return exported
    }
    const file = fileOf('pass', `${PASSPHRASE}\r\nsecond line\n`)
    const words = ['network', 'export-root', 'home', '--to', '-']
    expect(await ask([...words, '--passphrase-file', file], { exportRoot })).toMatchObject({
      status: 0,
      out: 'AGE FILE\n',
      err: '',
    })
    expect(given).toEqual([PASSPHRASE])
    expect(await ask(words)).toMatchObject({ status: 2, err: expect.stringMatching(/--passphrase-file FILE/) })
    expect(await ask([...words, '--passphrase-file', fileOf('empty', '\n')])).toMatchObject({ status: 2 })
    expect(await ask([...words, '--passphrase-file', fileOf('short', 'short\n')])).toMatchObject({ status: 2 })
    expect(await ask([...words, '--passphrase', PASSPHRASE])).toMatchObject({ status: 2 })
  })

  it('never overwrites, and leaves no file when the agent refuses', async () => {
    const taken = fileOf('taken', 'mine')
    const pass = ['--passphrase-file', fileOf('pass', PASSPHRASE)]
    let isAsked = false
    const exportRoot = () => {
      isAsked = true
      return Promise.reject(new AgentError('not-found', 'the root key is not here'))
    }
    expect(await ask(['network', 'export-root', 'home', '--to', taken, ...pass], { exportRoot })).toMatchObject({
      status: 1,
    })
    expect([isAsked, readFileSync(taken, 'utf8')]).toEqual([false, 'mine'])
    const to = join(directory, 'new.age')
    expect(await ask(['network', 'export-root', 'home', '--to', to, ...pass], { exportRoot })).toMatchObject({
      status: 5,
    })
    expect([isAsked, existsSync(to)]).toEqual([true, false])
  })

  it('comes back from a file or standard input', async () => {
    const given: unknown[] = []
    const importRoot: MembershipApi['importRoot'] = async (_network, request) => {
      given.push(request)
      return home
    }
    const file = fileOf('root.age', 'AGE FILE\n')
    await ask(['network', 'import-root', 'home', file], { importRoot }, { answers: [PASSPHRASE] })
    const pass = fileOf('pass', PASSPHRASE)
    await ask(
      ['network', 'import-root', 'home', '-', '--passphrase-file', pass],
      { importRoot },
      { input: 'AGE FILE\n' },
    )
    const request = { armored: 'AGE FILE\n', passphrase: PASSPHRASE }
    expect(given).toEqual([request, request])
    expect(await ask(['network', 'import-root', 'home', '-'], { importRoot })).toMatchObject({ status: 2 })
    expect(await ask(['network', 'import-root', 'home', fileOf('large', 'x'.repeat(20_000))])).toMatchObject({
      status: 2,
      err: expect.stringMatching(/larger than/),
    })
  })
})

describe('a network that is named', () => {
  it('is passed on by every command that is about artifacts, and shown where it is a closed one', async () => {
    writeFileSync(join(directory, 'notes'), 'x')
    const asked: unknown[] = []
    const askAgent = async (words: string[], replaced: Partial<AgentApi> = {}) => {
      await using agent = await serve(replaced)
      return await run(words, { socket: agent.socket })
    }
    const found = { ...artifact, network: 'home' }
    const api: Partial<AgentApi> = {
      search: (_words, _limit, network) => {
        asked.push(network)
        return { artifacts: [found, artifact], truncated: false }
      },
      artifact: (_ref, network) => {
        asked.push(network)
        return { ...found, holders: [] }
      },
      unpublish: (_ref, network) => {
        asked.push(network)
        return found
      },
      publishUpload: async ({ network }, bytes) => {
        for await (const _ of bytes);
        asked.push(network)
        return { artifact: found, announcedTo: 0 }
      },
      fetch: async (_ref, _onProgress, _signal, network) => {
        asked.push(network)
        throw notFound
      },
    }
    const within = ['--network', 'home']
    expect((await askAgent(['search', ...within], api)).out).toMatch(
      /^NAME +NETWORK +KIND.*\nhello +home +file.*\nhello +open/,
    )
    expect((await askAgent(['show', 'hello', ...within], api)).out).toMatch(/^Network +home$/m)
    expect((await askAgent(['unpublish', 'hello', ...within], api)).out).toMatch(/hello \(file, 4.8 MiB\) in home/)
    expect((await askAgent(['publish', join(directory, 'notes'), ...within], api)).out).toMatch(/in home$/m)
    await askAgent(['get', 'hello', ...within], api)
    expect(asked).toEqual(['home', 'home', 'home', 'home', 'home'])
    await askAgent(['search'], api)
    expect(asked.at(-1)).toBeUndefined()
    expect((await askAgent(['search'])).out).not.toMatch(/NETWORK/)
  })
})
