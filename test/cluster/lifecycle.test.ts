/**
 * The life of an agent as a service sees it: ready, reloaded, stopped, refused. Each agent is a process as it is shipped; the service
 * manager is a datagram socket that python3 reads.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { ConfigView, FetchEvent, PublishResult } from '../../agent/api/contract.ts'
import { type AgentOptions, Bundle, freePort, RealAgent, until } from '../agents.ts'

/** What the contract promises of SIGTERM. */
const STOP_MS_MAX = 5_000
/** Takes a second or two to fetch on one machine: long enough to be interrupted. */
const LARGE_BYTES = 256 * 1024 * 1024
const CHUNK = Buffer.alloc(1024 * 1024, 'undernet')
/** Of what fails at start: as for a person who sees only this. */
const REFUSAL_MS_MAX = 5_000

let bundle: Bundle
beforeAll(async () => {
  bundle = await Bundle.build()
})
afterAll(() => bundle[Symbol.dispose]())

describe('SIGTERM', () => {
  test('ends an idle agent with 0, and leaves neither socket nor temporary files', async () => {
    const [a, b] = await pair()
    for (const agent of [b, a]) await stops(agent, 'idle')
    expect(readdirSync(a.state).filter((name) => /sock|\.new$|-wal$|-shm$/.test(name))).toEqual([])
  })

  test('ends a lone agent with 0, and so does SIGINT', async () => {
    await stops(await start({ name: 'a' }), 'alone')
    await stops(await start({ name: 'b' }), 'alone, SIGINT', 'SIGINT')
  })

  test('ends both ends of a transfer within 5 s; what has arrived is kept, and goes on after a restart', async () => {
    const [a, b] = await pair()
    const { artifact } = await upload(a, 'large', LARGE_BYTES)
    await until(() => b.client.get(`artifacts/${artifact.cid}`).catch(() => undefined), {
      what: 'b knows the artifact',
    })

    const fetching = fetchFrom(b, artifact.cid)
    await until(() => fetching.doneBytes > LARGE_BYTES / 10, { what: 'b has a part of it' })
    expect(fetching.isDone).toBe(false)
    await stops(b, 'fetching')
    expect(await fetching.outcome).toBe('the agent is stopping')
    const again = await start({ name: 'b', state: b.state, bootstrap: [await a.address()] })

    const resumed = fetchFrom(again, artifact.cid)
    await until(() => resumed.doneBytes > LARGE_BYTES / 3, { what: 'b has more of it' })
    expect(resumed.isDone).toBe(false)
    await stops(a, 'serving')
    expect(await resumed.outcome).toMatch(/large|not-found|reach|nobody|no peer|source/i)
    const source = await start({ name: 'a', state: a.state, bootstrap: [await again.address()] })
    await until(async () => (await again.status()).peers.length === 1, { what: 'they meet again', ms: 30_000 })

    const before = (await again.status()).content.fetchedBytes
    expect(await fetchFrom(again, artifact.cid).outcome).toBe('done')
    const { fetchedBytes } = (await again.status()).content
    console.log(`fetched ${mib(fetchedBytes - before)} of ${mib(LARGE_BYTES)} after the last restart`)
    expect(fetchedBytes).toBeLessThan(LARGE_BYTES)
    await stops(source, 'served')
  })

  test('ends within 5 s an agent whose clients neither read nor finish what they send', async () => {
    const a = await start({ name: 'a' })
    const { artifact } = await upload(a, 'large', 64 * CHUNK.byteLength)
    const { digest } = await partOf(a, artifact.cid)
    await stalledDownload(a, `/v1/blobs/${digest}`)
    await stalledUpload(a)
    await stops(a, 'with stalled clients')
    const again = await start({ name: 'a', state: a.state })
    expect(readdirSync(join(again.state, 'blobs', 'incoming'))).toEqual([])
    expect((await again.status()).artifacts.own).toBe(1)
  })
})

describe('SIGHUP', () => {
  test('takes over what it can, says what needs a restart, and refuses a broken file', async () => {
    const peer = await start({ name: 'peer' })
    const directory = temporary()
    const file = join(directory, 'agent.toml')
    writeFileSync(file, 'quota = "1GiB"\n')
    const a = await start({ name: 'a', flags: ['--config', file] })

    const bootstrap = await peer.address()
    writeFileSync(file, `quota = "2GiB"\nmax_peers = 7\nlog_level = "debug"\nbootstrap = ["${bootstrap}"]\n`)
    a.signal('SIGHUP')
    const [reloaded] = await until(() => some(a.logged('config.reloaded')), { what: 'a has reloaded' })
    expect(reloaded).toMatchObject({ needRestart: ['max_peers'] })
    expect(new Set(reloaded?.changed as string[])).toEqual(new Set(['bootstrap', 'log_level', 'max_peers', 'quota']))
    expect((await a.status()).content.quotaBytes).toBe(2 * 1024 ** 3)
    await until(async () => (await a.status()).peers.length === 1, { what: 'a meets its new bootstrap' })

    writeFileSync(file, 'quota = "2GiB"\nquotta = 5\n')
    a.signal('SIGHUP')
    const [refused] = await until(() => some(a.logged('config.refused')), { what: 'a has refused' })
    expect(refused?.reason).toMatch(/quotta.*quota/)
    writeFileSync(file, 'this is = = no TOML\n')
    a.signal('SIGHUP')
    await until(() => a.logged('config.refused').length === 2, { what: 'a has refused again' })
    const { content, peers } = await a.status()
    expect([content.quotaBytes, peers.length]).toEqual([2 * 1024 ** 3, 1])
    const { entries } = await a.client.get<ConfigView>('config')
    expect(entries.find(({ key }) => key === 'bootstrap')?.value).toEqual([bootstrap])
    await stops(a, 'reloaded')
  })

  test('ends nothing when there is no file at all', async () => {
    const a = await start({ name: 'a' })
    a.signal('SIGHUP')
    const [reloaded] = await until(() => some(a.logged('config.reloaded')), { what: 'a has reloaded' })
    expect(reloaded).toMatchObject({ changed: [], needRestart: [] })
  })
})

describe('an agent that cannot start says why, ends with 1 and leaves nothing behind', () => {
  test('another agent holds the state', async () => {
    const a = await start({ name: 'a' })
    const said = await refused({ name: 'b', state: a.state, flags: ['--socket', join(temporary(), 'b.sock')] })
    expect(said).toContain(`another agent uses the state in ${a.state} (process ${a.pid}, since `)
    expect(said).toMatch(/--state/)
    expect((await a.status()).name).toBe('a')
    await a.end('SIGKILL')
    // What a kill leaves behind holds nobody.
    await start({ name: 'b', state: a.state })
  })

  test('another process has the TCP port', async () => {
    const port = await freePort()
    const listen = `/ip4/127.0.0.1/tcp/${port}`
    const a = await start({ name: 'a', listen })
    const state = temporary()
    const said = await refused({ name: 'b', state, listen })
    expect(said).toContain(`port ${port} is in use`)
    expect(said).toMatch(/--listen/)
    await stops(a, 'whose port was wanted')
    // The same state, as if the user had freed the port.
    await start({ name: 'b', state, listen })
  })

  test('another process has the HTTP port', async () => {
    const a = await start({ name: 'a' })
    const { host } = new URL((await a.status()).http ?? '')
    const state = temporary()
    const said = await refused({ name: 'b', state, flags: ['--http', host] })
    expect(said).toContain(`the HTTP port ${host} is in use`)
    expect(said).toMatch(/--http/)
    await start({ name: 'b', state })
  })

  test('another agent answers on the socket', async () => {
    const a = await start({ name: 'a' })
    const state = temporary()
    const said = await refused({ name: 'b', state, flags: ['--socket', a.socket] })
    expect(said).toContain(`another agent answers on ${a.socket}`)
    expect(said).toMatch(/--socket/)
    expect((await a.status()).name).toBe('a')
    await start({ name: 'b', state })
  })

  test('a file that is no socket stands in its place, and stays', async () => {
    const state = temporary()
    const file = join(state, 'precious')
    writeFileSync(file, 'precious')
    expect(await refused({ name: 'b', state, flags: ['--socket', file] })).toContain('is not a socket')
    expect(statSync(file).size).toBe(8)
  })

  test('a socket that a killed agent left is no obstacle', async () => {
    const a = await start({ name: 'a' })
    await a.end('SIGKILL')
    expect(existsSync(a.socket)).toBe(true)
    await start({ name: 'a', state: a.state })
  })
})

describe('the service manager is told', () => {
  test.each(['path', 'abstract'])('ready, alive, reloading and stopping (%s socket)', async (kind) => {
    const address = kind === 'path' ? join(temporary(), 'notify') : `@undernet-test-${process.pid}`
    const manager = await serviceManager(address)
    const startedMs = performance.now()
    const a = await start({ name: 'a', env: { NOTIFY_SOCKET: address, WATCHDOG_USEC: '600000' } })
    const ready = await manager.hears('READY=1')
    console.log(`ready ${Math.round(performance.now() - startedMs)} ms after it was spawned`)
    expect(ready).toMatch(/^STATUS=\d+ peers? in \d+ networks?, \d+ artifacts? known$/m)

    await until(() => manager.heard('WATCHDOG=1').length >= 3, { what: 'three signs of life', ms: 3_000 })

    const beforeUsec = process.hrtime.bigint() / 1_000n
    a.signal('SIGHUP')
    const reloading = await manager.hears('RELOADING=1')
    const usec = BigInt(/^MONOTONIC_USEC=(\d+)$/m.exec(reloading)?.[1] ?? 0)
    expect(usec).toBeGreaterThanOrEqual(beforeUsec)
    expect(usec).toBeLessThanOrEqual(process.hrtime.bigint() / 1_000n)
    await until(() => manager.heard('READY=1').length === 2, { what: 'ready after the reload' })

    if (kind === 'path') await isGivenUp(a, () => manager.heard('WATCHDOG=1').length)
    await stops(a, 'watched')
    await manager.hears('STOPPING=1')
  })

  test('and an agent that nobody listens to starts all the same', async () => {
    const a = await start({ name: 'a', env: { NOTIFY_SOCKET: join(temporary(), 'nobody'), WATCHDOG_USEC: '500000' } })
    await stops(a, 'unheard')
  })
})

/** An agent that nobody can ask any more gives no signs of life: the manager will start it again. */
async function isGivenUp(agent: RealAgent, signs: () => number): Promise<void> {
  const unwell = (count: number) =>
    until(() => agent.log.filter((line) => line.includes('agent.unwell')).length >= count, { what: 'it is not well' })
  rmSync(agent.socket)
  await unwell(3)
  const before = signs()
  await unwell(6)
  expect(signs()).toBe(before)
}

async function start(options: AgentOptions): Promise<RealAgent> {
  const { entry, env } = bundle
  const agent = await RealAgent.start({ entry, ...options, env: { ...env, ...options.env } })
  onTestFinished(() => agent[Symbol.asyncDispose]())
  return agent
}

/** Two agents that are connected. */
async function pair(): Promise<[RealAgent, RealAgent]> {
  const a = await start({ name: 'a' })
  const b = await start({ name: 'b', bootstrap: [await a.address()] })
  await until(async () => (await a.status()).peers.length === 1, { what: 'they meet' })
  return [a, b]
}

/** What an agent said that could not start. */
async function refused(options: AgentOptions): Promise<string> {
  const startedMs = performance.now()
  const agent = RealAgent.launch({ entry: bundle.entry, ...options, env: bundle.env })
  onTestFinished(() => agent[Symbol.asyncDispose]())
  const { code, signal } = await agent.ended
  const said = agent.log.join('\n')
  expect([code, signal], said).toEqual([1, null])
  expect(performance.now() - startedMs).toBeLessThan(REFUSAL_MS_MAX)
  expect(said).not.toMatch(/^\s+at |Error:|node:internal/m)
  if (!options.flags?.includes('--socket')) expect(existsSync(agent.socket)).toBe(false)
  return said
}

async function stops(agent: RealAgent, how: string, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  const askedMs = performance.now()
  const code = await agent.end(signal)
  const tookMs = performance.now() - askedMs
  console.log(`stopped (${how}) in ${Math.round(tookMs)} ms`)
  expect(code, agent.log.slice(-20).join('\n')).toBe(0)
  expect(tookMs).toBeLessThan(STOP_MS_MAX)
  expect(existsSync(agent.socket)).toBe(false)
}

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-test-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

async function upload(agent: RealAgent, name: string, sizeBytes: number): Promise<PublishResult> {
  async function* bytes() {
    for (let at = 0; at < sizeBytes; at += CHUNK.byteLength)
      yield Buffer.concat([Buffer.from([at >> 20]), CHUNK.subarray(1)])
  }
  return await agent.client.upload<PublishResult>(
    'upload',
    { type: 'file', name },
    bytes(),
    AbortSignal.timeout(60_000),
  )
}

/** A fetch under way: how far it is, and `done` or why not. */
function fetchFrom(agent: RealAgent, ref: string) {
  const fetching = { doneBytes: 0, isDone: false, outcome: Promise.resolve('') }
  const run = async () => {
    for await (const event of agent.client.events('fetch', { ref }, AbortSignal.timeout(60_000))) {
      if (event.type === 'progress') fetching.doneBytes = event.doneBytes
      fetching.isDone = event.type === 'done'
    }
    return 'done'
  }
  fetching.outcome = run().catch((error: Error) => error.message)
  return fetching
}

async function partOf(agent: RealAgent, ref: string): Promise<{ digest: string }> {
  const events = await Array.fromAsync(agent.client.events('fetch', { ref }, AbortSignal.timeout(10_000)))
  const last = events.at(-1) as Extract<FetchEvent, { type: 'done' }>
  return last.result.parts[0] ?? expect.fail('an artifact without parts')
}

/** A client that asks and never reads. */
function stalledDownload(agent: RealAgent, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const asked = request({ socketPath: agent.socket, path }, (answer) => {
      answer.pause().on('error', () => undefined)
      resolve()
    })
    asked.on('error', reject).end()
    onTestFinished(() => void asked.destroy())
  })
}

/** A client that begins an upload and never ends it. */
function stalledUpload(agent: RealAgent): Promise<void> {
  const headers = { 'content-type': 'application/octet-stream' }
  const asked = request({ socketPath: agent.socket, method: 'POST', path: '/v1/upload?type=file&name=half', headers })
  asked.on('error', () => undefined).write(CHUNK)
  onTestFinished(() => void asked.destroy())
  const incoming = join(agent.state, 'blobs', 'incoming')
  return until(() => readdirSync(incoming).length > 0, { what: 'the upload has begun' }).then(() => undefined)
}

const RECEIVER = `
import socket, sys
address = sys.argv[1]
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind("\\0" + address[1:] if address.startswith("@") else address)
print("listening", flush=True)
while True:
    print(repr(receiver.recv(4096).decode()), flush=True)
`

/** What systemd is to a service with Type=notify: a datagram socket. */
async function serviceManager(address: string) {
  const python = spawn('python3', ['-c', RECEIVER, address], { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void python.kill('SIGKILL'))
  const lines: string[] = []
  createInterface(python.stdout).on('line', (line) => lines.push(line))
  await until(() => lines[0] === 'listening', { what: 'the service manager listens' })
  const heard = (assignment: string) =>
    lines
      .map((line) => line.slice(1, -1).replaceAll('\\n', '\n'))
      .filter((text) => text.split('\n').includes(assignment))
  return { heard, hears: (assignment: string) => until(() => heard(assignment)[0], { what: assignment }) }
}

function some<T>(list: T[]): T[] | undefined {
  return list.length > 0 ? list : undefined
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 1024 ** 2)} MiB`
}
