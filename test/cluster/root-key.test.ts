/**
 * The root key of a network as people handle it: exported as an age file, removed, brought back; a delegate lets others in meanwhile. And
 * secrets (keys, network secrets, tokens, passphrases): in files for the owner only, and in nothing that is printed, logged or seen by
 * other users of the machine.
 */
import { createPrivateKey } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { NetworkDetail } from '../../agent/api/membership-contract.ts'
import { decodeToken } from '../../protocols/membership/token.ts'
import { hasAge, runAge } from '../age.ts'
import { type Outcome, type RealAgent, until } from '../agents.ts'
import { allSee, filesWith, Lab, membersOf, SOON_MS_MAX, secretOf } from './members.ts'

const PASSPHRASE = 'correct-horse-battery-staple'
const WRONG = 'incorrect-horse-battery-staple'
/** Command lines of all processes are looked at this often. */
const LOOK_MS = 20
/** All that an agent logs in this test, also in detail. */
const LOG_LINES_MAX = 100_000

let lab: Lab
let founder: RealAgent
/** The delegate. */
let gate: RealAgent
let web: RealAgent
let id: string
/** All that commands printed, but for what they were asked to print. */
const printed: string[] = []
/** Command lines and what else other users see of processes. */
const seen = new Set<string>()
/** By what they are. */
const secrets: Record<string, Uint8Array | string> = {}
const watching = new AbortController()
let watched: Promise<void>

beforeAll(async () => {
  lab = await Lab.open()
  watched = watch(watching.signal)
  const start = (name: string) =>
    lab.start({ name, flags: ['--no-open', '--log-level', 'debug'], logLinesMax: LOG_LINES_MAX })
  ;[founder, gate, web] = await Promise.all([start('founder'), start('gate'), start('web')])
  secrets.passphrase = PASSPHRASE
  secrets.wrong = WRONG
  for (const agent of [founder, gate, web]) addKey(`node key of ${agent.name}`, join(agent.state, 'node.key'))
})
afterAll(async () => {
  watching.abort()
  await watched
  await lab[Symbol.asyncDispose]()
})

describe('the root key', () => {
  const passphrase = () => lab.file('passphrase', `${PASSPHRASE}\n`)
  const exported = () => lab.path('home-root.age')

  test('is made with the network, and neither removed nor left behind while there is no copy', async () => {
    id = (JSON.parse(await says(founder, 'network', 'create', 'home', '--json')) as NetworkDetail).id
    addKey('root key', join(founder.state, 'networks', `${id}.root`))
    secrets['network secret'] = secretOf(founder, id)
    await admit(gate, founder)
    await allSee([founder, gate], ['founder', 'gate'])
    const here = 'the only copy of the root key of "home" is here'
    expect(await refuses(founder, 'network', 'remove-root', 'home', '--yes')).toContain(here)
    expect(await refuses(founder, 'network', 'leave', 'home', '--yes')).toContain(here)
    expect(await refuses(gate, 'network', 'export-root', 'home', '--to', lab.path('none'))).toContain('passphrase')
    const flags = ['--passphrase-file', passphrase()]
    expect(await refuses(gate, 'network', 'export-root', 'home', '--to', lab.path('none'), ...flags)).toContain(
      'the root key of "home" is not on this node',
    )
    expect(existsSync(lab.path('none'))).toBe(false)
  })

  test('is exported to a file for the owner only, which age opens', async () => {
    const short = lab.file('short', 'abc\n')
    const to = ['--to', exported()]
    const said = await refuses(founder, 'network', 'export-root', 'home', ...to, '--passphrase-file', short)
    expect(said).toContain('a passphrase has 8 to 1024 characters')
    expect(existsSync(exported())).toBe(false)
    await says(founder, 'network', 'export-root', 'home', ...to, '--passphrase-file', passphrase())
    expect(statSync(exported()).mode & 0o777).toBe(0o600)
    const again = await refuses(founder, 'network', 'export-root', 'home', ...to, '--passphrase-file', passphrase())
    expect(again).toContain('exists')
    expect(readFileSync(exported(), 'utf8')).toMatch(/^-----BEGIN AGE ENCRYPTED FILE-----\n/)
    if (!hasAge) return
    const plain = lab.path('plain.json')
    expect(await runAge(`-d -o ${plain} ${exported()}`, WRONG)).not.toBe(0)
    expect(await runAge(`-d -o ${plain} ${exported()}`, PASSPHRASE)).toBe(0)
    expect(JSON.parse(readFileSync(plain, 'utf8'))).toMatchObject({ network: id, name: 'home' })
  })

  test('once removed is nowhere on the node; its delegate lets others in, within its limits', async () => {
    const limits = ['--may', 'issue,revoke', '--names', 'w*', '--labels', 'zone=a', '--days', '30']
    expect(await says(founder, 'network', 'delegate', 'home', 'gate', ...limits)).toContain('gate may issue, revoke')
    const delegated = async () => (await gate.client.get<NetworkDetail>('networks/home')).may
    await until(async () => (await delegated()).join() === 'issue,revoke', { what: 'gate knows', ms: SOON_MS_MAX })
    expect(await says(founder, 'network', 'remove-root', 'home', '--yes')).toContain(
      'it can no longer invite or revoke',
    )
    expect(filesWith(founder.state, only('root key'))).toEqual([])
    expect(await founder.client.get<NetworkDetail>('networks/home')).toMatchObject({ rootKey: 'absent', may: [] })
    for (const words of [
      ['invite'],
      ['network', 'delegate', 'home', 'gate'],
      ['member', 'revoke', 'gate', '--yes'],
      ['policy', 'set', lab.file('policy.toml', ''), '--yes'],
    ]) {
      expect(await refuses(founder, ...words)).not.toBe('')
    }

    expect(await refuses(gate, 'invite', '--name', 'db')).toContain('db')
    expect(await refuses(gate, 'invite', '--label', 'zone=b')).toContain('zone')
    expect(await refuses(gate, 'network', 'delegate', 'home', 'founder')).toContain('root key')
    await admit(web, gate, '--label', 'zone=a')
    await allSee([founder, gate, web], ['founder', 'gate', 'web'])
    const member = (await membersOf(founder)).find(({ name }) => name === 'web')
    expect(member).toMatchObject({ labels: { zone: 'a' }, issuer: { root: false, name: 'gate' } })
    expect((await membersOf(founder)).find(({ name }) => name === 'gate')).toMatchObject({ issues: true })
  })

  test('comes back with the passphrase, and with no other', async () => {
    const importing = ['network', 'import-root', 'home', exported(), '--passphrase-file']
    const wrong = await refuses(founder, ...importing, lab.file('wrong', `${WRONG}\n`))
    expect(wrong).toMatch(/passphrase/)
    await says(founder, 'network', 'create', 'other')
    const foreign = ['network', 'import-root', 'other', exported(), '--passphrase-file', passphrase()]
    expect(await refuses(founder, ...foreign)).toContain('this is the root key of another network, called "home"')
    await says(founder, 'network', 'leave', 'other', '--force')
    await says(founder, ...importing, passphrase())
    const { rootKey, may } = await founder.client.get<NetworkDetail>('networks/home')
    expect({ rootKey, may }).toEqual({ rootKey: 'exported', may: ['issue', 'revoke', 'policy'] })
    await says(founder, 'member', 'label', 'web', 'zone=c')
    printed.push(...founder.log)
    founder = await lab.restart(founder)
    expect(await founder.client.get<NetworkDetail>('networks/home')).toMatchObject({ rootKey: 'exported' })
  })

  test('lets a new machine into the network when all others are lost', async () => {
    const last = await lab.start({ name: 'last', flags: ['--no-open'] })
    await says(last, 'network', 'restore', exported(), '--passphrase-file', passphrase(), '--as', 'last')
    const home = await last.client.get<NetworkDetail>('networks/home')
    expect(home).toMatchObject({ id, rootKey: 'exported', member: { name: 'last', state: 'member' } })
    // It knows no address of the others; they let it know where they are.
    await admit(last, founder)
    await allSee([founder, last], ['founder', 'gate', 'last', 'web'])
    await lab.end(last)
  })
})

describe('secrets', () => {
  test('are in files that are for their owner only', () => {
    for (const agent of [founder, gate, web]) {
      const files = filesWith(agent.state, secrets).map((found) => found.split(' in ').at(-1) ?? '')
      expect(files.length, agent.name).toBeGreaterThan(1)
      const open = files.filter((path) => !isOwners(path, agent.state))
      expect(open).toEqual([])
      expect(statSync(join(agent.state, 'node.key')).mode & 0o777).toBe(0o600)
    }
    const networks = join(founder.state, 'networks')
    expect(statSync(networks).mode & 0o777).toBe(0o700)
    const roots = readdirSync(networks).filter((name) => name.endsWith('.root'))
    expect(roots).toEqual([`${id}.root`])
    expect(statSync(join(networks, `${id}.root`)).mode & 0o777).toBe(0o600)
  })

  test('are in no log, no answer, no message, no command line and no exported file', async () => {
    for (const agent of [founder, gate, web]) {
      for (const path of ['config', 'status', 'networks', 'members', 'policy', 'invitations', 'doctor'])
        printed.push(JSON.stringify(await agent.client.get(path)))
      for (const words of [['config', 'show'], ['network', 'show', 'home'], ['invite', '--list'], ['audit']])
        await says(agent, ...words)
      // What goes wrong must not show what it was about.
      const token = await agent.run(
        'join',
        '--file',
        lab.file('broken', `${String(secrets['a token']).slice(0, -1)}\n`),
      )
      expect(note(token).stderr).toContain('this is not a token')
      expect(agent.log.length).toBeLessThan(LOG_LINES_MAX)
    }
    watching.abort()
    await watched
    expect(
      [...seen].some((line) => line.includes('--passphrase-file')),
      'commands were seen',
    ).toBe(true)
    const texts = {
      printed: printed.join('\n'),
      'seen by others': [...seen].join('\n'),
      exported: readFileSync(lab.path('home-root.age'), 'utf8'),
      ...Object.fromEntries(
        [founder, gate, web].flatMap(({ name, log, state }) => [
          [`log of ${name}`, log.join('\n')],
          [`audit log of ${name}`, readFileSync(join(state, 'audit.jsonl'), 'utf8')],
        ]),
      ),
    }
    for (const [where, text] of Object.entries(texts)) {
      expect(text.length, where).toBeGreaterThan(0)
      for (const [what, secret] of Object.entries(secrets))
        for (const form of formsOf(secret)) expect(text.includes(form), `${what} in ${where}`).toBe(false)
    }
  })
})

async function says(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = note(await agent.run(...args))
  expect(code, `agent ${args.join(' ')} on ${agent.name}: ${stderr}${stdout}`).toBe(0)
  return stdout.trim()
}

async function refuses(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = note(await agent.run(...args))
  expect(code, `agent ${args.join(' ')} on ${agent.name} succeeded: ${stdout}`).not.toBe(0)
  return stderr.trim()
}

function note(outcome: Outcome): Outcome {
  printed.push(outcome.stdout, outcome.stderr)
  return outcome
}

/** By a token from one to the other, as a file. */
async function admit(agent: RealAgent, issuer: RealAgent, ...flags: string[]): Promise<void> {
  const { code, stdout, stderr } = await issuer.run('invite', ...flags)
  expect(code, stderr).toBe(0)
  const token = stdout.trim()
  secrets['a token'] = token
  secrets[`secret of a token for ${agent.name}`] = decodeToken(token).secret
  await says(agent, 'join', '--file', lab.file(`token-${agent.name}`, `${token}\n`))
}

/** A private key in its file, as the file has it and as what it is. */
function addKey(what: string, path: string): void {
  const pem = readFileSync(path, 'utf8')
  const [, body = ''] = pem.split('\n')
  secrets[`${what}, as it is stored`] = body
  secrets[what] = Buffer.from(String(createPrivateKey(pem).export({ format: 'jwk' }).d), 'base64url')
}

function only(prefix: string): typeof secrets {
  return Object.fromEntries(Object.entries(secrets).filter(([what]) => what.startsWith(prefix)))
}

/** As a text could have it. */
function formsOf(secret: Uint8Array | string): string[] {
  if (typeof secret === 'string') return [secret]
  const bytes = Buffer.from(secret)
  const base64 = [bytes.toString('base64'), bytes.toString('base64url')].map((text) => text.replace(/=+$/, ''))
  return [bytes.toString('hex'), ...base64, bytes.toString('latin1'), bytes.join(',')]
}

/** Whether nobody but the owner can read a file, by its own rights or by those of a directory above it. */
function isOwners(path: string, within: string): boolean {
  for (let at = path; at.startsWith(within); at = dirname(at)) if ((statSync(at).mode & 0o077) === 0) return true
  return false
}

/** Notes what every user sees of every process of the machine, until it is told to stop. */
async function watch(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        seen.add(readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' '))
      } catch {
        // It has ended.
      }
    }
    await delay(LOOK_MS)
  }
}
