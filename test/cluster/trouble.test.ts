/**
 * What can go wrong on the machine of an agent: a corrupt database, an unreadable key, a full disk, a mistyped configuration. It stays up
 * where it can, says what it lost where it cannot, and no stack trace ever reaches its user.
 */
import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { type AgentOptions, Bundle, RealAgent, run, until } from '../agents.ts'
import { Network } from '../network.ts'

const MIB = 2 ** 20
const DISK_BYTES = 24 * MIB
const STACK = /^\s+at .*[(:]/m
const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn('skipped: full disks, which need root for a file system of their own')

let bundle: Bundle
beforeAll(async () => {
  bundle = await Bundle.build()
  // Another user has to read it, too.
  chmodSync(bundle.directory, 0o755)
})
afterAll(() => bundle?.[Symbol.dispose]())

const start = (options: Omit<AgentOptions, 'entry'>) =>
  RealAgent.start({ entry: bundle.entry, env: bundle.env, ...options })

/** Starts an agent that must not start: its exit code, and what it said. */
async function refused(options: Omit<AgentOptions, 'entry'>): Promise<{ code: number | null; said: string }> {
  await using agent = RealAgent.launch({ entry: bundle.entry, env: bundle.env, ...options })
  const { code } = await agent.ended
  const said = agent.log.join('\n')
  expect(said).not.toMatch(STACK)
  return { code, said }
}

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-trouble-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** The state of an agent that has run, published a file, and stopped. */
async function usedState(): Promise<{ state: string; peerId: string }> {
  const state = temporary()
  const file = join(temporary(), 'shared')
  writeFileSync(file, 'shared')
  await using agent = await start({ name: 'used', state })
  await agent.json('publish', file)
  const { peerId } = await agent.status()
  await agent.end()
  return { state, peerId }
}

/** Where it said at its start that it can be dialled: its status cannot be asked any more. */
async function addressIn(agent: RealAgent): Promise<string> {
  const { addresses } = await until(() => agent.logged('host.started')[0], { what: 'it has said where it listens' })
  return (addresses as string[])[0] ?? ''
}

function overwrite(path: string, offset: number, length: number): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.alloc(length, 0xa5), 0, length, offset)
}

describe('a corrupt database', () => {
  it.each([
    ['overwritten at its beginning', (path: string) => overwrite(path, 0, 4_096)],
    ['overwritten in the middle', (path: string) => overwrite(path, 8_192, statSync(path).size - 12_288)],
    ['cut short', (path: string) => truncateSync(path, 5_000)],
    ['something else', (path: string) => writeFileSync(path, 'PNG\r\n')],
  ])('that is %s is named and left as it is; the advice helps, and the identity stays', async (_how, spoil) => {
    const { state, peerId } = await usedState()
    const database = join(state, 'state.db')
    spoil(database)
    const spoiled = readFileSync(database)
    const { code, said } = await refused({ name: 'used', state })
    expect(code).toBe(1)
    expect(said).toContain(database)
    expect(said).toMatch(
      /move it away and start again: the node key is kept, records and the list of shared files are lost/,
    )
    expect(readFileSync(database).equals(spoiled)).toBe(true)
    for (const name of ['state.db', 'state.db-wal', 'state.db-shm'])
      if (existsSync(join(state, name))) renameSync(join(state, name), join(state, `${name}.bad`))
    await using again = await start({ name: 'used', state })
    const status = await again.status()
    expect(status).toMatchObject({ peerId, artifacts: { own: 0 }, content: { blobs: 0 } })
  })

  it('that becomes so while the agent runs is told of, and ends nothing', async () => {
    const state = temporary()
    await using agent = await start({ name: 'unlucky', state })
    const file = join(temporary(), 'file')
    writeFileSync(file, 'content')
    await agent.json('publish', file)
    for (const name of ['state.db', 'state.db-wal', 'state.db-shm']) {
      const path = join(state, name)
      overwrite(path, 0, statSync(path).size)
    }
    // Peers come, and say things that cannot be kept.
    await using other = await start({ name: 'other', bootstrap: [await addressIn(agent)] })
    await until(async () => (await other.status()).peers.length === 1, { what: 'the other is connected' })
    await other.json('publish', file)
    for (const args of [
      ['publish', file, '--name', 'again'],
      ['search'],
      ['status'],
      ['unpublish', 'file'],
      ['get', 'file'],
    ]) {
      const { stderr, code } = await agent.run(...args)
      expect(code).toBe(1)
      expect(stderr).toContain(`the state database in ${state} is corrupt`)
      expect(stderr).toContain('Stop the agent, and start it again')
      expect(stderr).not.toMatch(STACK)
    }
    expect((await agent.run('peers')).stdout).toContain((await other.status()).peerId.slice(-8))
    // In order, though not all could be put away: it says what could not.
    expect(await agent.end()).not.toBeNull()
    expect((await refused({ name: 'unlucky', state })).said).toContain('move it away and start again')
  })
})

describe('a key that cannot be used', () => {
  it('is named, and never replaced', async () => {
    const { state } = await usedState()
    const key = join(state, 'node.key')
    for (const contents of ['', 'rubbish', readFileSync(join(state, 'cache.key'))]) {
      writeFileSync(key, contents)
      const { code, said } = await refused({ name: 'used', state })
      expect(code).toBe(1)
      expect(said).toContain(key)
      expect(said).toContain('Restore it from a backup')
      expect(readFileSync(key).equals(Buffer.from(contents))).toBe(true)
    }
    rmSync(key)
    mkdirSync(key)
    expect((await refused({ name: 'used', state })).said).toContain(key)
  })

  it('because it is another user’s says whose agent it is', async () => {
    const { state } = await usedState()
    const key = join(state, 'node.key')
    const flags = [
      'start',
      '--state',
      state,
      '--socket',
      join(state, 's'),
      '--no-mdns',
      '--listen',
      '/ip4/127.0.0.1/tcp/0',
    ]
    const command = [process.execPath, bundle.entry, ...flags, '--http', 'off', '--proxy', 'off', '--dns', 'off']
    let outcome: Awaited<ReturnType<typeof run>>
    if (isRoot) {
      // All is nobody's but the key.
      execFileSync('chown', ['-R', '65534:65534', state])
      chownSync(key, 0, 0)
      chmodSync(key, 0o600)
      const asNobody = ['--reuid', '65534', '--regid', '65534', '--clear-groups']
      outcome = await run('setpriv', [...asNobody, ...command], { HOME: state, CACHE_DIRECTORY: '' })
    } else {
      chmodSync(key, 0)
      outcome = await run(command[0] ?? '', command.slice(1))
    }
    expect(outcome.code).toBe(4)
    expect(outcome.stderr).toContain(`the key ${key} cannot be read`)
    expect(outcome.stderr).toContain('as the user who owns the state directory')
    expect(outcome.stderr).not.toMatch(STACK)
  })

  it('of the binary cache is named, too', async () => {
    const { state } = await usedState()
    writeFileSync(join(state, 'cache.key'), 'rubbish')
    const { code, said } = await refused({ name: 'used', state })
    expect(code).toBe(1)
    expect(said).toContain(join(state, 'cache.key'))
  })
})

describe('a configuration that is not one', () => {
  it.each([
    ['an unknown key', 'bootstraps = []', /bootstraps.*bootstrap/s],
    ['a value of the wrong type', 'quota = "plenty"', /quota/],
    ['an address that is none', 'bootstrap = ["127.0.0.1:7477"]', /bootstrap.*127\.0\.0\.1:7477/s],
    ['no TOML', 'name = ', /agent\.toml/],
  ])('%s is named, with what to do', async (_what, text, message) => {
    const file = join(temporary(), 'agent.toml')
    writeFileSync(file, text)
    const { code, said } = await refused({ name: 'x', flags: ['--config', file] })
    expect(code).toBe(2)
    expect(said).toMatch(message)
    expect(said).toContain(file)
  })
})

describe.skipIf(!isRoot)('a full disk', () => {
  /** A small file system, with an agent's state on it. */
  function smallDisk(): { state: string; fill: () => void; clear: () => void } {
    const mount = temporary()
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK_BYTES}`, 'undernet-test', mount])
    onTestFinished(() => void execFileSync('umount', ['--lazy', mount]))
    const filler = join(mount, 'filler')
    return {
      state: join(mount, 'state'),
      fill: () => {
        // To the last byte: dd stops when there is none left.
        execFileSync('sh', [
          '-c',
          `dd if=/dev/zero of=${filler} bs=64k 2>/dev/null || true; dd if=/dev/zero bs=1 count=4096 >>${filler} 2>/dev/null || true`,
        ])
      },
      clear: () => rmSync(filler, { force: true }),
    }
  }

  it('refuses an upload that does not fit, says how much is free, and takes the next that does', async () => {
    const { state } = smallDisk()
    await using agent = await start({ name: 'small', state })
    const [large, little] = [join(temporary(), 'large'), join(temporary(), 'little')]
    writeFileSync(large, Buffer.alloc(2 * DISK_BYTES, 1))
    writeFileSync(little, 'little')
    const { code, stderr } = await agent.run('publish', large)
    expect(code).toBe(1)
    expect(stderr).toMatch(/the disk of .*state\/blobs is full: [\d.]+ \w+ free/)
    expect(stderr).toContain('Free some space there')
    expect(stderr).not.toMatch(STACK)
    await agent.json('publish', little)
    expect((await agent.status()).content).toMatchObject({ blobs: 1, bytes: 6 })
  })

  it('stops a get, which goes on when there is room', async () => {
    const { state } = smallDisk()
    await using net = await Network.start(['a'], { entry: bundle.entry, env: bundle.env })
    const [a] = net.agents as [RealAgent]
    await using b = await start({ name: 'b', state, bootstrap: [await a.address()] })
    const large = join(temporary(), 'large')
    writeFileSync(large, Buffer.alloc(DISK_BYTES - 8 * MIB, 1))
    await a.json('publish', large)
    await until(async () => (await b.json<SearchResult>('search', 'large')).artifacts.length === 1, {
      what: 'b knows it',
    })
    const filler = join(state, '..', 'filler')
    writeFileSync(filler, Buffer.alloc(12 * MIB))
    const to = temporary()
    const { code, stderr } = await b.run('get', 'large', '--to', to)
    expect(code).toBe(1)
    expect(stderr).toMatch(/is full: /)
    expect(stderr).not.toMatch(STACK)
    rmSync(filler)
    await b.json('get', 'large', '--to', to)
    expect(statSync(join(to, 'large')).size).toBe(DISK_BYTES - 8 * MIB)
  })

  it('to the last byte leaves the agent up, answering, and saying so; with room again it is as before', async () => {
    const { state, fill, clear } = smallDisk()
    await using net = await Network.start(['a'], { entry: bundle.entry, env: bundle.env })
    const [a] = net.agents as [RealAgent]
    await using b = await start({ name: 'b', state, bootstrap: [await a.address()] })
    const [one, two] = [join(temporary(), 'one'), join(temporary(), 'two')]
    writeFileSync(one, 'one')
    writeFileSync(two, 'two')
    await b.json('publish', one)
    fill()
    const refusal = await b.run('publish', two)
    expect(refusal.code).toBe(1)
    expect(refusal.stderr).toMatch(/full/)
    expect(refusal.stderr).not.toMatch(STACK)
    // Records of others keep coming, and cannot be kept.
    for (let nth = 0; nth < 20; nth++) await a.json('publish', two, '--name', `two-${nth}`)
    const { stdout } = await b.run('status')
    expect(stdout).toContain(`the disk of ${state} is full`)
    expect((await b.json<SearchResult>('search', 'one')).artifacts.length).toBe(1)
    for (const args of [['unpublish', 'one'], ['trust', 'remove', 'nobody'], ['peers'], ['doctor']])
      expect((await b.run(...args)).stderr).not.toMatch(STACK)
    clear()
    await until(async () => (await b.run('publish', two)).code === 0, { what: 'b publishes again' })
    await until(async () => (await b.json<SearchResult>('search', 'two')).artifacts.length >= 20, {
      what: 'b has what it missed',
      ms: 60_000,
    })
    expect(await b.end()).toBe(0)
  })

  it('keeps an agent from starting with a word about the disk', async () => {
    const { state, fill } = smallDisk()
    mkdirSync(state)
    fill()
    const { code, said } = await refused({ name: 'x', state })
    expect(code).toBe(1)
    expect(said).toMatch(/full|no space/i)
    expect(said).toContain(state)
  })
})

describe('what others keep from an agent', () => {
  it('is no reason to fail: a published file whose blob was deleted is told of', async () => {
    const { state } = await usedState()
    await using agent = await start({ name: 'used', state })
    const { artifact } = await agent.json<PublishResult>('publish', join(import.meta.dirname, 'trouble.test.ts'))
    execFileSync('sh', ['-c', `find ${join(state, 'blobs')} -type f -delete`])
    const { code, stderr } = await agent.run('get', artifact.cid, '--to', temporary())
    expect(code).toBe(5)
    expect(stderr).not.toMatch(STACK)
    expect(agent.logged('blob.lost').length).toBeGreaterThan(0)
  })
})
