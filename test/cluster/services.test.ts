/**
 * Services between real agents: what is offered by name is used by unmodified programs through a forward, by those whom a grant allows, and goes on
 * when an instance is drained, killed, or loses its node.
 */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { Status } from '../../agent/api/contract.ts'
import type { AuditEntry } from '../../agent/api/membership-contract.ts'
import type { ConnectionList, ForwardEvent, ServiceDetail, TraceResult } from '../../agent/api/service-contract.ts'
import { freePort, type RealAgent, run, until } from '../agents.ts'
import { Applications, exchange } from './applications.ts'
import { allSee, invite, joinWith, Lab, refuses, SOON_MS_MAX, says } from './members.ts'

const TRANSFERS = 400
const AT_ONCE = 20
/** A default lease, and the sweep behind it. */
const LEASE_MS = 15_000
/** Two seconds, on a machine that one has for oneself. */
const RECOVERY_MS_MAX = 10_000

const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish", "service:offer *"]

[[grants]]
from = "label:role=client"
to = "*"
allow = ["service:connect *"]
`

describe('a service of a network', () => {
  let lab: Lab
  /** Uses services; the others offer them. */
  let client: RealAgent
  let first: RealAgent
  let second: RealAgent
  /** A member to whom nothing is granted. */
  let guest: RealAgent
  const apps = new Applications()
  /** Port of the application that the first offers as web. */
  let one: number
  /** That the configuration of the client forwards. */
  let forwarded: number

  beforeAll(async () => {
    lab = await Lab.open()
    const flags = ['--no-open']
    const declared = `declared=127.0.0.1:${await apps.http('declared')}?proto=http&label=by:configuration`
    first = await lab.start({ name: 'first', flags: [...flags, '--services', declared] })
    const bootstrap = [await first.address()]
    forwarded = await freePort()
    const forwards = ['--forwards', `declared.home=127.0.0.1:${forwarded}`]
    ;[client, second, guest] = await Promise.all([
      lab.start({ name: 'client', bootstrap, flags: [...flags, ...forwards] }),
      lab.start({ name: 'second', bootstrap, flags }),
      lab.start({ name: 'guest', bootstrap, flags }),
    ])
    await first.json('network', 'create', 'home', '--as', 'first')
    await joinWith(client, await invite(first, '--label', 'role=client'), '--as', 'client')
    await joinWith(second, await invite(first), '--as', 'second')
    await joinWith(guest, await invite(first), '--as', 'guest')
    await says(first, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await allSee([client, first, second, guest], ['client', 'first', 'second', 'guest'])
  })
  afterAll(async () => {
    apps[Symbol.dispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  test('is reached by curl through a forward, and every step is told', async () => {
    one = await apps.http('one')
    await offer(first, 'web', one, '--proto', 'http', '--check', 'http:/', '--label', 'tier=front')
    await sees(client, 'web', ['first healthy'])
    const port = await forward(client, 'web')
    const { stdout, code } = await run('curl', ['-sS', `http://127.0.0.1:${port}/`])
    expect([code, stdout]).toEqual([0, 'one'])

    const trace = await client.client.post<TraceResult>('trace', { name: 'web.first.home.internal' })
    expect(trace.steps.map(({ step, ok }) => [step, ok])).toEqual(
      ['resolve', 'choose', 'rule', 'reach', 'open'].map((step) => [step, true]),
    )
    expect(trace.steps[2]?.text).toContain('label:role=client')
    const { services, instances } = await client.client.get<Status>('status')
    expect(services).toMatchObject([
      { name: 'declared' },
      { name: 'web', address: 'web.home.internal', instanceCount: 1, healthyCount: 1 },
    ])
    expect(instances.find(({ service }) => service === 'web')).toMatchObject({
      node: 'first',
      labels: { tier: 'front' },
      state: 'healthy',
    })
    expect(await says(client, 'ping', 'web', '-c', '3')).toMatch(/first at .*, direct: [\s\S]*p99/)
    expect(await textAt(forwarded)).toBe('declared')
    expect(await refuses(first, 'service', 'remove', 'declared')).toContain('by the configuration')
    const served = await audited(first, 'flow.served', ({ service }) => service === 'web')
    expect(served).toMatchObject({
      name: 'client',
      service: 'web',
      path: 'direct',
      rule: expect.stringContaining('role=client'),
    })
    expect(served.receivedBytes).toBeGreaterThan(0)
  })

  test('carries transfers of all sizes with half-closes, resets as resets, and tells who calls', async () => {
    await offer(first, 'bulk', await apps.digester())
    await sees(client, 'bulk', ['first healthy'])
    const port = await forward(client, 'bulk')
    let next = 0
    const worker = async () => {
      while (next < TRANSFERS) await exchange(port, next++)
    }
    await Promise.all(Array.from({ length: AT_ONCE }, worker))

    const near = connect(port, '127.0.0.1')
    near.on('error', () => undefined)
    near.write('reset')
    expect(await failureOf(near)).toBe('ECONNRESET')
    const gone = connect(port, '127.0.0.1')
    gone.write('wait')
    await until(async () => apps.waiting.size === 1, { what: 'the application has the connection', ms: SOON_MS_MAX })
    gone.resetAndDestroy()
    await until(async () => apps.waiting.size === 0, { what: 'the application is told', ms: SOON_MS_MAX })
    expect(apps.failures).toEqual(['ECONNRESET'])

    await offer(first, 'callers', await apps.callers(), '--proxy-protocol', '--check', 'none')
    await sees(client, 'callers', ['first healthy'])
    const caller = await readAll(connect(await forward(client, 'callers'), '127.0.0.1'))
    expect(caller.subarray(0, 12).toString('hex')).toBe('0d0a0d0a000d0a515549540a')
    expect(caller.toString('latin1')).toMatch(/client.*12D3KooW.*home/)
  })

  test('carries datagrams', async () => {
    await offer(second, 'echo', await apps.datagrams(), '--proto', 'udp')
    await sees(client, 'echo', ['second healthy'])
    const port = await forward(client, 'echo')
    const socket = createSocket('udp4')
    onTestFinished(() => void socket.close())
    const replies: string[] = []
    socket.on('message', (bytes) => replies.push(bytes.toString()))
    const send = async () => {
      for (const text of ['', 'a', 'b'.repeat(1_400)]) socket.send(text, port, '127.0.0.1')
      return replies.length >= 3
    }
    await until(send, { what: 'datagrams come back', ms: SOON_MS_MAX, everyMs: 100 })
    expect(new Set(replies)).toEqual(new Set(['', 'a', 'b'.repeat(1_400)]))
    expect((await client.client.get<ConnectionList>('connections')).connections).toMatchObject([
      { direction: 'out', service: 'echo', node: 'second', carrier: 'udp', path: 'direct' },
    ])
  })

  test('is refused to a member without the grant, who is told the verb, and shows nothing to a stranger', async () => {
    const trace = await guest.client.post<TraceResult>('trace', { name: 'web' })
    expect(trace).toMatchObject({ ok: false })
    expect(trace.steps.at(-1)).toMatchObject({ step: 'rule', ok: false })
    const over = new AbortController()
    onTestFinished(() => over.abort())
    const events = guest.client.events<ForwardEvent>('forward', { name: 'web', port: 0 }, over.signal)
    const { value: listening } = await events.next()
    if (listening?.type !== 'listening') throw new Error('no port')
    expect(await failureOf(connect(listening.port, '127.0.0.1'))).toBe('ECONNRESET')
    expect((await events.next()).value).toMatchObject({ message: expect.stringContaining('service:connect web') })
    expect(await audited(first, 'access.refused')).toMatchObject({
      name: 'guest',
      why: expect.stringContaining('service:connect web'),
    })

    const stranger = await lab.start({ name: 'stranger', bootstrap: [await first.address()] })
    expect(await stranger.json('service', 'list')).toEqual({ services: [] })
    expect(await refuses(stranger, 'service', 'show', 'web.home.internal')).toContain('nobody offers')
    expect(await refuses(stranger, 'service', 'add', 'web', '80')).toContain('in no closed network')
    await stranger.end()
  })

  test('loses no request while an instance is drained under load, and goes on when one is killed', async () => {
    const two = await apps.http('two')
    await offer(second, 'web', two, '--proto', 'http', '--check', 'http:/')
    await sees(client, 'web', ['first healthy', 'second healthy'])
    const load = apps.load(await forward(client, 'web'))
    const goesOn = async (from = load.answers.length) =>
      await until(async () => load.answers.length > from + 50, { what: 'requests are answered', ms: SOON_MS_MAX })
    await goesOn()
    // Whichever is nearer just now.
    const [busy, other] = load.answers.at(-1) === 'one' ? [first, 'two'] : [second, 'one']
    await says(busy, 'service', 'drain', 'web')
    await sees(client, 'web', [`${busy.name} draining`, `${busy === first ? 'second' : 'first'} healthy`])
    const drained = load.answers.length
    await goesOn()
    expect(load.failures).toEqual([])
    expect(new Set(load.answers.slice(drained + AT_ONCE))).toEqual(new Set([other]))

    await says(busy, 'service', 'drain', 'web', '--undo')
    await sees(client, 'web', ['first healthy', 'second healthy'])
    const [victim, port] = load.answers.at(-1) === 'one' ? ['first', one] : ['second', two]
    apps.kill(port)
    await goesOn()
    await load.stop()
    // Those that it had in hand when it died are lost with it.
    expect(load.failures.length).toBeLessThanOrEqual(AT_ONCE)
    expect(load.longestGapMs).toBeLessThan(RECOVERY_MS_MAX)
    await sees(client, 'web', [`${victim} ill`, `${victim === 'first' ? 'second' : 'first'} healthy`])
  })

  test('moves to another node, and a node that is killed is in no answer after the lease', async () => {
    await offer(first, 'moving', await apps.http('here'))
    await sees(client, 'moving', ['first healthy'])
    const port = await forward(client, 'moving')
    expect(await textAt(port)).toBe('here')
    await offer(second, 'moving', await apps.http('there'))
    await says(first, 'service', 'remove', 'moving')
    await sees(client, 'moving', ['second healthy'])
    expect(await textAt(port)).toBe('there')

    await offer(first, 'moving', await apps.http('here again'), '--weight', '0')
    await sees(client, 'moving', ['first healthy', 'second healthy'])
    expect(await textAt(port)).toBe('there')
    const killedMs = performance.now()
    await second.end('SIGKILL')
    expect(await textAt(port)).toBe('here again')
    expect(performance.now() - killedMs).toBeLessThan(RECOVERY_MS_MAX)
    const isGone = async () => (await instancesOf(client, 'moving')).join() === 'first healthy'
    await until(isGone, { what: 'second is gone', ms: SOON_MS_MAX, everyMs: 100 })
    expect(performance.now() - killedMs).toBeLessThan(LEASE_MS + RECOVERY_MS_MAX)
  })

  test('is cut when the grant is taken, and when the member is revoked', async () => {
    const port = await forward(client, 'bulk')
    const hold = async () => {
      const socket = connect(port, '127.0.0.1')
      socket.write('wait')
      await until(async () => apps.waiting.size === 1, { what: 'it is open', ms: SOON_MS_MAX })
      return socket
    }
    const open = await hold()
    const cut = failureOf(open)
    await says(first, 'policy', 'set', lab.file('none.toml', POLICY.replace('role=client', 'role=nobody')), '--yes')
    expect(await cut).toBe('ECONNRESET')
    expect(await failureOf(connect(port, '127.0.0.1'))).toBe('ECONNRESET')
    await says(first, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await until(async () => (await client.client.post<TraceResult>('trace', { name: 'bulk' })).ok, {
      what: 'allowed again',
      ms: SOON_MS_MAX,
    })
    const again = failureOf(await hold())
    await says(first, 'member', 'revoke', 'client', '--yes')
    expect(await again).toBe('ECONNRESET')
    expect(await failureOf(connect(port, '127.0.0.1'))).toBe('ECONNRESET')
  })
})

async function offer(agent: RealAgent, name: string, port: number, ...flags: string[]): Promise<void> {
  await says(agent, 'service', 'add', name, String(port), ...flags)
}

async function instancesOf(agent: RealAgent, name: string): Promise<string[]> {
  const detail = await agent.client.get<ServiceDetail>(`services/${name}`).catch(() => undefined)
  return (detail?.instances ?? []).map(({ node, state }) => `${node} ${state}`).toSorted()
}

/** Resolves when the agent knows these instances of a service, and no others. */
async function sees(agent: RealAgent, name: string, wanted: string[]): Promise<void> {
  let found: string[] = []
  const look = async () => {
    found = await instancesOf(agent, name)
    return found.join() === wanted.toSorted().join()
  }
  await until(look, { what: () => `${agent.name} sees ${found.join()} instead of ${wanted.join()}`, ms: SOON_MS_MAX })
}

/** A port that leads to the service until the test is over. */
async function forward(agent: RealAgent, name: string, more: object = {}): Promise<number> {
  const over = new AbortController()
  const listening = Promise.withResolvers<number>()
  const watching = (async () => {
    for await (const event of agent.client.events<ForwardEvent>('forward', { name, port: 0, ...more }, over.signal))
      if (event.type === 'listening') listening.resolve(event.port)
  })()
  watching.catch((error: unknown) => listening.reject(error))
  onTestFinished(async () => {
    over.abort()
    await watching.catch(() => undefined)
  })
  return await listening.promise
}

/** The newest of an event. */
async function audited(
  agent: RealAgent,
  event: string,
  isMeant: (entry: AuditEntry) => boolean = () => true,
): Promise<AuditEntry> {
  const find = async () => {
    const entries = await Array.fromAsync(
      agent.client.lines<AuditEntry>('audit', { limit: 1_000 }, AbortSignal.timeout(SOON_MS_MAX)),
    )
    return entries.findLast((entry) => entry.event === event && isMeant(entry))
  }
  return await until(find, { what: () => `${agent.name} notes ${event}`, ms: SOON_MS_MAX })
}

/** How a connection ends. */
async function failureOf(socket: Socket): Promise<string> {
  socket.resume()
  const failed = new Promise<string>((resolve) =>
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? '')),
  )
  return await Promise.race([failed, once(socket, 'close').then(() => 'closed')])
}

async function readAll(socket: Socket): Promise<Buffer> {
  return Buffer.concat((await socket.toArray()) as Buffer[])
}

async function textAt(port: number): Promise<string> {
  const { stdout, stderr } = await run('curl', ['-sS', '--max-time', '20', `http://127.0.0.1:${port}/`])
  return stdout + stderr
}
