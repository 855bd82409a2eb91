/** Names that are listened on: only those that somebody wants, for as long as he does, at the ports that there are, and again after a restart. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect } from 'node:net'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { ClaimedRange } from '../../../agent/routing/address-range.ts'
import { NameAddresses } from '../../../agent/routing/name-addresses.ts'
import { NameListeners } from '../../../agent/routing/name-listeners.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { freePort, until } from '../../agents.ts'
import { FakeDialer, FakeServices, instance, TcpServer } from './fake-services.ts'

const HOUR_MS = 60 * 60_000
let stack: AsyncDisposableStack
let services: FakeServices
let addresses: NameAddresses
let dialer: FakeDialer
let nowMs = 1_000 * HOUR_MS
let port: number

beforeEach(async () => {
  stack = new AsyncDisposableStack()
  services = new FakeServices()
  const db = openDatabase(':memory:')
  const { range } = stack.use(await ClaimedRange.claim(db, `listeners ${process.pid}`, undefined))
  addresses = new NameAddresses(db, range)
  const echo = stack.use(await TcpServer.echo())
  dialer = new FakeDialer(services, { web: echo.port })
  port = await freePort()
  services.set(instance({ port }))
})
afterEach(async () => {
  vi.useRealTimers()
  await stack.disposeAsync()
})

function start(): NameListeners {
  const log = pino({ level: 'silent' })
  const init = { addresses, services, dialer, ownHost: () => undefined, now: () => nowMs, log }
  return stack.use(NameListeners.start(init))
}

/** `echo`, or how it failed. */
async function knock(address: string, at = port): Promise<string> {
  const socket = connect(at, address)
  socket.end('echo')
  return await new Promise((resolve) => {
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? ''))
    socket.once('data', (bytes: Buffer) => resolve(bytes.toString()))
    socket.once('end', () => resolve('end'))
  })
}

async function addressOf(listeners: NameListeners, name = 'web.home.internal'): Promise<string> {
  const held = await listeners.hold(name)
  return held !== undefined && 'address' in held ? held.address : JSON.stringify(held)
}

describe('a name', () => {
  it('takes no port before somebody asks for it: members cannot take ports here by offering something', async () => {
    const listeners = start()
    const address = addresses.use('web.home.internal', nowMs - 2 * HOUR_MS)
    await using stranger = await TcpServer.start((socket) => socket.end(), '0.0.0.0', port)
    expect(stranger.port).toBe(port)
    expect(listeners.list()).toEqual([])
    // The stranger is at that address, too: that is why the name has none.
    expect(await knock(address)).toBe('end')
    expect(await listeners.hold('web.home.internal')).toEqual({ fault: expect.stringContaining(`port ${port} of web`) })
    expect(listeners.faults()).toMatchObject([{ name: 'web.home.internal', port, code: 'used' }])
    await stranger[Symbol.asyncDispose]()
    expect(await knock(await addressOf(listeners)), 'as soon as he is gone').toBe('echo')
    expect(listeners.faults()).toEqual([])
  })

  it('follows the ports of the service, and is given back when nobody has used it for an hour', async () => {
    vi.useFakeTimers({ toFake: ['setInterval'] })
    const listeners = start()
    const address = await addressOf(listeners)
    expect(await knock(address)).toBe('echo')
    const next = await freePort()
    services.set(instance({ port: next }), instance({ port: next, node: 'board', proto: 'udp' }))
    await until(() => listeners.list()[0]?.ports.join() === String(next), { what: 'it listens at the new port' })
    expect(await knock(address)).toBe('ECONNREFUSED')
    expect(await knock(address, next)).toBe('echo')
    await until(() => listeners.list()[0]?.connections === 0, { what: 'the connections end' })
    nowMs += HOUR_MS + 1
    vi.advanceTimersByTime(61_000)
    await until(() => listeners.list().length === 0, { what: 'it is given back' })
    expect(await addressOf(listeners), 'the same when it is wanted again').toBe(address)
  })

  it('is listened on again after a restart when it was in use, and not for longer than that', async () => {
    const before = start()
    const address = await addressOf(before)
    await before[Symbol.asyncDispose]()
    expect(await knock(address)).toBe('ECONNREFUSED')
    nowMs += HOUR_MS / 2
    const after = start()
    await until(() => after.list().length === 1, { what: 'it is listened on' })
    expect(await knock(address)).toBe('echo')
    await after[Symbol.asyncDispose]()
    nowMs += 2 * HOUR_MS
    const later = start()
    expect(await addressOf(later, 'web.nas.home.internal')).not.toBe(address)
    expect(later.list().map(({ name }) => name)).toEqual(['web.nas.home.internal'])
  })

  it('is nothing for what nobody offers, and a reset for what cannot be dialled', async () => {
    const listeners = start()
    for (const none of ['nothing.home.internal', 'web', 'example.org', '', 'web.home.internal.evil'])
      expect([none, await listeners.hold(none)]).toEqual([none, undefined])
    const address = await addressOf(listeners)
    dialer.refusals.set('web', new Error('no grant'))
    expect(await knock(address)).toBe('ECONNRESET')
  })

  it('cuts its connections when the agent stops', async () => {
    const listeners = start()
    const socket = connect(port, await addressOf(listeners))
    socket.write('hello')
    await once(socket, 'data')
    const cut = once(socket, 'error') as Promise<[NodeJS.ErrnoException]>
    await listeners[Symbol.asyncDispose]()
    expect((await cut)[0].code).toBe('ECONNRESET')
  })
})

it('carries datagrams of each program apart from those of others', async () => {
  const echo = createSocket('udp4')
  echo.on('message', (bytes, from) => echo.send(`${from.port} ${bytes.toString()}`, from.port, from.address))
  echo.bind(0, '127.0.0.1')
  await once(echo, 'listening')
  dialer = new FakeDialer(services, { time: echo.address().port })
  services.set(instance({ service: 'time', proto: 'udp', port }))
  const address = await addressOf(start(), 'time.home.internal')
  const say = async (words: string[]) => {
    const client = createSocket('udp4')
    const heard: string[] = []
    client.on('message', (bytes) => heard.push(bytes.toString()))
    for (const word of words) client.send(word, port, address)
    await until(() => heard.length === words.length, { what: 'both are answered' })
    client.close()
    return heard.map((text) => text.split(' '))
  }
  const [one, other] = await Promise.all([say(['a', 'b']), say(['c', 'd'])])
  expect([one.map(([, word = '']) => word).toSorted(), other.map(([, word = '']) => word).toSorted()]).toEqual([
    ['a', 'b'],
    ['c', 'd'],
  ])
  const ports = [one, other].map((lines) => new Set(lines.map(([from]) => from)))
  expect(
    ports.map(({ size }) => size),
    'a tunnel each',
  ).toEqual([1, 1])
  expect(ports[0]).not.toEqual(ports[1])
  expect(dialer.targets).toHaveLength(2)
  echo.close()
})
