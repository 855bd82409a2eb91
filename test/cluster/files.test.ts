/**
 * Files and folders from one machine to another, by the commands that people type: what comes out is what went in, an interrupted `get`
 * goes on where it was, and what a peer wrote does nothing to the terminal.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { ArtifactDetail, FetchResult, PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { Providers } from '../../agent/mesh/providers.ts'
import { fileCid } from '../../protocols/artifact/artifact.ts'
import { Bundle, RealAgent, run, until } from '../agents.ts'
import { EvilPeer } from '../evil-peer.ts'
import { Network } from '../network.ts'

const MIB = 2 ** 20
/** Takes a second or so on loopback: long enough to be interrupted. */
const LARGE_BYTES = 256 * MIB
/** Begun well, and not nearly done. */
const BEGUN_BYTES = 8 * MIB
/** What may have to be fetched again after an interruption: pieces on their way, and those whose arrival was not yet written down. */
const AGAIN_BYTES_MAX = 48 * MIB

let bundle: Bundle
let directory: string
let large: string
beforeAll(async () => {
  bundle = await Bundle.build()
  directory = mkdtempSync(join(tmpdir(), 'undernet-files-'))
  large = join(directory, 'large')
  writeLarge(large)
})
afterAll(() => {
  bundle?.[Symbol.dispose]()
  if (directory) rmSync(directory, { recursive: true, force: true })
})

let places = 0
/** A directory that does not exist yet. */
const place = () => join(directory, `place-${places++}`)

async function network(...names: string[]) {
  const agents = await Network.start(names, { entry: bundle.entry, env: bundle.env })
  return { agents: agents.agents as RealAgent[], [Symbol.asyncDispose]: () => agents[Symbol.asyncDispose]() }
}

async function found(who: RealAgent, words: string, count = 1): Promise<SearchResult> {
  return await until(
    async () => {
      const result = await who.client.get<SearchResult>('search', { q: words })
      return result.artifacts.length === count && result
    },
    { what: `${who.name} finds ${count} of ${words}` },
  )
}

describe('files and folders', () => {
  it('go from one node to another as they were', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    const folder = makeFolder(join(place(), 'site'))
    const file = join(directory, 'notes.txt')
    writeFileSync(file, 'one\ntwo\n')
    const empty = join(directory, 'empty')
    writeFileSync(empty, '')

    const published = await a.run('publish', folder, '-d', 'our pages, for everybody')
    expect(published).toMatchObject({ code: 0, stderr: '' })
    expect(published.stdout).toMatch(
      /^Published site \(folder, [\d.]+ KiB\)\n {2}bafy\w+\n {2}1 peer told; there: agent get site/,
    )
    await a.json('publish', file)
    await a.json('publish', empty, '--name', 'nothing-in-it')
    await found(b, '', 3)

    const [site] = (await b.json<SearchResult>('search', 'pages')).artifacts
    expect(site).toMatchObject({ name: 'site', type: 'folder', publisher: { name: 'a' }, own: false })
    const shown = await b.run('show', 'site')
    expect(shown.stdout).toContain('our pages, for everybody')
    expect(shown.stdout).toContain(site?.cid)

    for (const ref of ['site', 'a/site', site?.cid ?? '']) {
      const to = place()
      const got = await b.run('get', ref, '--to', to)
      expect(got.code, got.stderr).toBe(0)
      expect(got.stdout).toMatch(/^Got site \(folder, /)
      expect((await run('diff', ['-r', '--no-dereference', folder, join(to, 'site')])).stdout).toBe('')
      expect(readFileSync(join(to, 'site', 'bin', 'run')).toString()).toContain('#!/bin/sh')
      expect((await run(join(to, 'site', 'bin', 'run'), [])).stdout).toBe('ran\n')
    }
    const to = place()
    await b.json('get', 'notes.txt', '--to', to)
    await b.json('get', 'nothing-in-it', '--to', to)
    expect(readFileSync(join(to, 'notes.txt'), 'utf8')).toBe('one\ntwo\n')
    expect(readFileSync(join(to, 'nothing-in-it')).byteLength).toBe(0)

    // Once more is no fault; something else in its place is.
    expect((await b.run('get', 'notes.txt', '--to', to)).stdout).toContain('was there already, identical')
    writeFileSync(join(to, 'notes.txt'), 'mine')
    const taken = await b.run('get', 'notes.txt', '--to', to)
    expect(taken.code).toBe(1)
    expect(taken.stderr).toContain('exists and is something else')
    expect(readFileSync(join(to, 'notes.txt'), 'utf8')).toBe('mine')
    expect(readdirSync(to).sort()).toEqual(['notes.txt', 'nothing-in-it'])
  })

  it('come and go: what was unpublished is not found, and not given to those who remember its CID', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    const file = join(directory, 'secret')
    writeFileSync(file, 'not for long')
    const { artifact } = await a.json<PublishResult>('publish', file)
    await found(b, 'secret')
    expect((await a.run('unpublish', 'secret')).stdout).toMatch(/^No longer shared: secret/)
    await found(b, 'secret', 0)
    for (const ref of ['secret', artifact.cid]) {
      const { code, stderr } = await b.run('get', ref, '--to', place())
      expect(code, stderr).toBe(5)
    }
    expect((await a.run('unpublish', 'secret')).code).toBe(5)
    expect((await a.status()).content.blobs).toBe(0)
  })

  it('of several publishers that mean different things by a name have to be told apart', async () => {
    await using net = await network('a', 'b', 'c')
    const [a, b, c] = net.agents as [RealAgent, RealAgent, RealAgent]
    for (const one of [a, b]) {
      const file = join(place(), 'report')
      mkdirSync(join(file, '..'))
      writeFileSync(file, `by ${one.name}`)
      await one.json('publish', file)
    }
    // What a publisher calls himself comes in a record of its own.
    const named = async () => (await found(c, 'report', 2)).artifacts.every(({ publisher }) => publisher.name !== null)
    await until(named, { what: 'c knows what the publishers are called' })
    const ambiguous = await c.run('get', 'report', '--to', place())
    expect(ambiguous.code).toBe(2)
    for (const one of [a, b]) expect(ambiguous.stderr).toContain(`${(await one.status()).peerId}/report`)
    expect(ambiguous.stderr).toContain('publisher/name')
    for (const one of [a, b]) {
      const to = place()
      await c.json('get', `${one.name}/report`, '--to', to)
      expect(readFileSync(join(to, 'report'), 'utf8')).toBe(`by ${one.name}`)
    }
  })

  it('are found by their CID in the DHT when no record tells of them', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    await using holder = await EvilPeer.start({ bootstrap: await a.address(), name: 'quiet' })
    const bytes = Buffer.from('nobody announced this')
    const cid = fileCid(holder.hold(bytes)).toString()
    await using providers = Providers.start({ dht: holder.host.dht, host: holder.host, log: silent })
    providers.provide(cid)
    await until(async () => (await b.client.get<SearchResult>('search')).artifacts.length === 0, {
      what: 'b knows none',
    })
    const got = await until(
      async () => {
        const to = place()
        const outcome = await b.run('get', cid, '--to', to, '--json')
        return outcome.code === 0 && { to, result: JSON.parse(outcome.stdout) as FetchResult }
      },
      { what: 'the DHT knows who has it', ms: 30_000 },
    )
    expect(readFileSync(join(got.to, cid))).toEqual(bytes)
    expect(got.result.artifact).toEqual({ cid, name: cid, type: 'file', description: '', sizeBytes: bytes.byteLength })
    const absent = await b.run('get', fileCid('0'.repeat(64)).toString())
    expect(absent.code).toBe(5)
    expect((await b.run('get', 'QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG')).code).toBe(2)
  })
})

describe('an interrupted get', () => {
  it('goes on where it was after the command was killed, or stopped by its user', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    await a.json('publish', large)
    await found(b, 'large')
    const to = place()
    let before = 0
    for (const signal of ['SIGKILL', 'SIGINT'] as const) {
      const command = get(b, 'large', to)
      const ended = once(command.process, 'exit')
      await until(async () => (await fetchedBytes(b)) > before + BEGUN_BYTES, { what: 'it has begun' })
      command.process.kill(signal)
      const [code] = (await ended) as [number | null]
      if (signal === 'SIGINT') {
        expect(code).toBe(130)
        expect(command.stderr()).toContain('run the command again to go on')
      }
      before = await settled(b)
      expect(before).toBeLessThan(LARGE_BYTES)
      expect(existsSync(to) ? readdirSync(to) : []).toEqual([])
    }
    await b.json('get', 'large', '--to', to)
    expect((await run('cmp', [large, join(to, 'large')])).code).toBe(0)
    const again = (await fetchedBytes(b)) - LARGE_BYTES
    console.log(`after two interruptions at ${mib(before)} MiB: ${mib(again)} MiB of ${mib(LARGE_BYTES)} fetched again`)
    expect(again).toBeLessThan(2 * AGAIN_BYTES_MAX)
  })

  it('says so when the sender dies, and goes on when it is back', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    await a.json('publish', large)
    await found(b, 'large')
    const { peerId } = await a.status()
    const to = place()
    const command = get(b, 'large', to)
    const ended = once(command.process, 'exit')
    await until(async () => (await fetchedBytes(b)) > BEGUN_BYTES, { what: 'it has begun' })
    await a.end('SIGKILL')
    const [code] = (await ended) as [number | null]
    expect(code).toBe(5)
    expect(command.stderr()).toContain(peerId)
    const before = await fetchedBytes(b)
    expect(before).toBeLessThan(LARGE_BYTES)

    await using again = await RealAgent.start({
      name: 'a',
      state: a.state,
      entry: bundle.entry,
      bootstrap: [await b.address()],
    })
    await until(async () => (await again.status()).peers.length > 0, { what: 'a is back' })
    await b.json('get', 'large', '--to', to)
    expect((await run('cmp', [large, join(to, 'large')])).code).toBe(0)
    const twice = (await fetchedBytes(b)) - LARGE_BYTES
    console.log(`after the sender died at ${mib(before)} MiB: ${mib(twice)} MiB of ${mib(LARGE_BYTES)} fetched again`)
    expect(twice).toBeLessThan(AGAIN_BYTES_MAX)
  })

  it('shows its progress on a terminal', async () => {
    await using net = await network('a', 'b')
    const [a, b] = net.agents as [RealAgent, RealAgent]
    await a.json('publish', large)
    await found(b, 'large')
    const command = [process.execPath, bundle.entry, 'get', 'large', '--to', place()].join(' ')
    const { stdout } = await run('script', ['-qec', command, '/dev/null'], {
      UNDERNET_SOCKET: b.socket,
      COLUMNS: '120',
    })
    expect(stdout).toMatch(/Fetching large {2}█*░* {2}[\d.]+ MiB of 256 MiB/)
    expect(stdout).toMatch(/Got large \(file, 256 MiB\) in/)
  })
})

describe('what a peer wrote', () => {
  it('does nothing to the terminal', async () => {
    await using net = await network('b')
    const [b] = net.agents as [RealAgent]
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const description =
      '\x1b[2J\x1b]0;owned\x07red\x1b[31m\r\nerased\x9b2K \u202Egnp.exe\u2066 \u0000 \ud83d zalgo\u0301\u0301\u0301\u0301'
    const cid = fileCid(evil.hold(Buffer.from('x')))
    evil.announce('tempting', { type: 'file', cid, sizeBytes: 1, description })
    await found(b, 'tempting')
    const commands = [
      ['search'],
      ['search', 'red'],
      ['show', 'tempting'],
      ['peers'],
      ['status'],
      ['get', 'tempting', '--to', place()],
    ]
    for (const args of commands) {
      const { stdout, stderr, code } = await b.run(...args)
      expect(code, stderr).toBe(0)
      expect(unprintable(stdout + stderr), args.join(' ')).toEqual([])
      const inJson = await b.run(...args, '--json')
      expect(unprintable(inJson.stdout), args.join(' ')).toEqual([])
      JSON.parse(inJson.stdout)
    }
    const onTerminal = [process.execPath, bundle.entry, 'search'].join(' ')
    const { stdout } = await run('script', ['-qec', onTerminal, '/dev/null'], {
      UNDERNET_SOCKET: b.socket,
      NO_COLOR: '1',
    })
    expect(unprintable(stdout.replaceAll('\r\n', '\n'))).toEqual([])
    expect((await b.json<ArtifactDetail>('show', 'tempting')).description).toBe(description.toWellFormed())
  })

  it('cannot be a name that is a path, or an option', async () => {
    await using net = await network('b')
    const [b] = net.agents as [RealAgent]
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const cid = fileCid(evil.hold(Buffer.from('x')))
    for (const name of ['../escaped', '.hidden', 'a/b', '/etc/passwd']) evil.announce(name, bodyOf(cid))
    evil.announce('harmless', bodyOf(cid))
    await found(b, 'harmless')
    expect((await b.json<SearchResult>('search')).artifacts.map(({ name }) => name)).toEqual(['harmless'])
    for (const ref of ['../escaped', '.hidden']) expect((await b.run('get', ref)).code).toBe(5)
  })
})

describe('exit codes', () => {
  it('are those of the contract', async () => {
    await using net = await network('a')
    const [a] = net.agents as [RealAgent]
    const expected: [number, ...string[]][] = [
      [0, 'status'],
      [0, 'version'],
      [0, 'search', 'nothing-like-it'],
      [2, 'bogus'],
      [2, 'get'],
      [2, 'status', '--bogus'],
      [2, 'publish', large, '--name', 'a/b'],
      [2, 'ping', '/ip4/nonsense'],
      [2, 'trust', 'add', 'nonsense'],
      [3, 'status', '--socket', join(directory, 'nobody.sock')],
      [5, 'publish', join(directory, 'no-such-file')],
      [5, 'publish', '/nix/store/00000000000000000000000000000000-nothing'],
      [5, 'show', 'nothing-like-it'],
      [5, 'get', 'nothing-like-it'],
      [5, 'ping', 'nobody'],
      [5, 'trust', 'remove', 'nobody'],
    ]
    for (const [code, ...args] of expected) {
      for (const format of [[], ['--json']]) {
        const outcome = await a.run(...args, ...format)
        expect(outcome.code, `agent ${args.join(' ')}: ${outcome.stderr}`).toBe(code)
        expect(outcome.stderr, args.join(' ')).not.toMatch(/^ {4}at /m)
        if (code !== 0) expect(outcome.stdout).toBe('')
      }
    }
  })
})

const silent = { debug() {}, info() {}, warn() {}, error() {} }

/** A folder with what a folder can have. */
function makeFolder(folder: string): string {
  mkdirSync(join(folder, 'bin'), { recursive: true })
  mkdirSync(join(folder, 'empty directory'))
  writeFileSync(join(folder, 'bin', 'run'), '#!/bin/sh\necho ran\n')
  chmodSync(join(folder, 'bin', 'run'), 0o755)
  symlinkSync('run', join(folder, 'bin', 'link'))
  symlinkSync('/nowhere', join(folder, 'dangling'))
  writeFileSync(join(folder, 'grüße.html'), '<p>'.repeat(1_000))
  writeFileSync(join(folder, '.hidden'), '')
  return folder
}

function bodyOf(cid: ReturnType<typeof fileCid>) {
  return { type: 'file' as const, cid, sizeBytes: 1, description: '' }
}

function writeLarge(path: string): void {
  const chunk = Buffer.alloc(MIB)
  for (let at = 0; at < MIB; at += 4) chunk.writeUInt32LE((at * 2_654_435_761) % 2 ** 32, at)
  const fd = openSync(path, 'w')
  for (let nth = 0; nth < LARGE_BYTES / MIB; nth++) {
    chunk.writeUInt32LE(nth, 0)
    writeSync(fd, chunk)
  }
  closeSync(fd)
}

/** `agent get`, to be interrupted. */
function get(who: RealAgent, ref: string, to: string): { process: ChildProcess; stderr: () => string } {
  const args = [bundle.entry, 'get', ref, '--to', to]
  const child = spawn(process.execPath, args, {
    env: { ...process.env, UNDERNET_SOCKET: who.socket },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const chunks: Buffer[] = []
  child.stderr?.on('data', (chunk: Buffer) => chunks.push(chunk))
  return { process: child, stderr: () => Buffer.concat(chunks).toString() }
}

async function fetchedBytes(who: RealAgent): Promise<number> {
  return (await who.status()).content.fetchedBytes
}

/** When nothing more is fetched: how much was. */
async function settled(who: RealAgent): Promise<number> {
  let last = -1
  return await until(
    async () => {
      const now = await fetchedBytes(who)
      const isSame = now === last
      last = now
      return isSame && now
    },
    { what: 'nothing more is fetched' },
  )
}

/** Characters that act on a terminal, but for the end of a line. */
function unprintable(text: string): string[] {
  return Array.from(text)
    .filter((one) => /[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/u.test(one) && one !== '\n')
    .map((one) => JSON.stringify(one))
}

function mib(bytes: number): number {
  return Math.round(bytes / MIB)
}
