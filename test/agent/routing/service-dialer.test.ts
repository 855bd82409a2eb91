/** Tunnels between members, opened and taken: grants, moving on, datagrams, and what ends them. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Offer } from '../../../agent/routing/offers.ts'
import { until } from '../../agents.ts'
import { instanceOf } from './instance.ts'
import { FakeMesh } from './mesh.ts'

const WEB = { network: 'home', service: 'web' }
const signal = AbortSignal.timeout(20_000)
const wait = (what: string, look: () => boolean) => until(async () => look(), { what, ms: 10_000 })

/** An application that greets, and sends back what comes. */
async function application(greeting = ''): Promise<{ port: number; sockets: Socket[] }> {
  const sockets: Socket[] = []
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket)
    socket.on('error', () => undefined)
    socket.write(greeting)
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return { port: (server.address() as AddressInfo).port, sockets }
}

async function said(tunnel: NodeJS.ReadableStream & { end(text: string): unknown }, text: string): Promise<string> {
  tunnel.end(text)
  let all = ''
  for await (const chunk of tunnel) all += String(chunk)
  return all
}

describe('a tunnel', () => {
  it('is the application of another member, both ways, with half-closes, and is counted and noted', async () => {
    const mesh = new FakeMesh()
    const { port } = await application('hello ')
    const pear = await mesh.member('pear', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear' }))
    const tunnel = await apple.dialer.open(WEB, signal)
    expect([tunnel.path, tunnel.instance.node]).toEqual(['direct', 'pear'])
    expect(pear.flows.list()).toMatchObject([{ direction: 'in', peerId: 'apple', rule: '* -> *: service:connect *' }])
    expect(await said(tunnel, 'world')).toBe('hello world')
    await wait('both have noted it', () => pear.audit.length === 1 && apple.audit.length === 1)
    expect(pear.audit).toMatchObject([{ event: 'flow.served', name: 'apple', sentBytes: 11, receivedBytes: 5 }])
    expect(apple.audit).toMatchObject([{ event: 'flow.used', name: 'pear', sentBytes: 5, receivedBytes: 11 }])
  })

  it('needs no mesh on the own node, and says who calls there, too', async () => {
    const mesh = new FakeMesh()
    const { port } = await application()
    const pear = await mesh.member('pear', { web: { port, proxyProtocol: true } })
    pear.instances.push(instanceOf({ peerId: 'pear' }))
    const tunnel = await pear.dialer.open(WEB, signal)
    expect(tunnel.path).toBe('local')
    expect(await said(tunnel, 'x')).toMatch(/QUIT[\s\S]*pear[\s\S]*home[\s\S]*x$/)
    expect(mesh.opened).toEqual([])
  })

  it('is refused without a grant, with what is missing, whether the service is there or not', async () => {
    const mesh = new FakeMesh()
    mesh.grants = []
    const { port } = await application()
    const pear = await mesh.member('pear', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear' }), instanceOf({ peerId: 'pear', service: 'none' }))
    for (const service of ['web', 'none']) {
      await expect(apple.dialer.open({ ...WEB, service }, signal)).rejects.toMatchObject({
        code: 'not-allowed',
        message: expect.stringContaining(`no grant gives service:connect ${service} from apple to pear`),
      })
    }
    expect(pear.audit).toMatchObject([{ event: 'access.refused' }, { event: 'access.refused' }])
    const stranger = await mesh.member('stranger')
    stranger.instances.push(instanceOf({ peerId: 'pear' }))
    await expect(stranger.dialer.open(WEB, signal)).rejects.toMatchObject({
      message: expect.stringContaining('not a member'),
    })
  })

  it.each([
    ['cannot be reached', undefined],
    ['offers it no more', {}],
    ['is drained', { web: { isDraining: true } }],
    ['has lost its application', { web: { port: 1 } }],
    ['offers it for datagrams', { web: { proto: 'udp' as const } }],
  ] as [string, Record<string, Partial<Offer>> | undefined][])(
    'goes to the next instance at once when one %s',
    async (_why, offers) => {
      const mesh = new FakeMesh()
      const { port } = await application()
      const bad = offers && (await mesh.member('bad', offers))
      await mesh.member('good', { web: { port } })
      const apple = await mesh.member('apple')
      apple.instances.push(instanceOf({ peerId: 'bad', rttMs: 1 }), instanceOf({ peerId: 'good', rttMs: 100 }))
      const tunnel = await apple.dialer.open(WEB, signal)
      expect(tunnel.instance.node).toBe('good')
      expect(await said(tunnel, 'x')).toBe('x')
      // And who asks next does not meet it.
      expect(apple.dialer.candidates(WEB).map(({ peerId }) => peerId)).toEqual(['good', 'bad'])
      if (offers?.web?.port !== undefined) expect(bad?.suspected).toEqual(['web'])
    },
  )

  it('tries the next beside one that does not answer, and closes what comes too late', async () => {
    const mesh = new FakeMesh()
    mesh.silent.add('dead')
    const { port, sockets } = await application()
    await mesh.member('good', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'dead', rttMs: 1 }), instanceOf({ peerId: 'good', rttMs: 100 }))
    expect((await apple.dialer.open(WEB, signal)).instance.node).toBe('good')
    expect(apple.flows.list()).toHaveLength(1)
    expect(sockets).toHaveLength(1)
    // And who asks next does not wait for it.
    expect(apple.dialer.candidates(WEB).map(({ peerId }) => peerId)).toEqual(['good', 'dead'])
  })

  it('says why none opens, and which instances take none', async () => {
    const mesh = new FakeMesh()
    const apple = await mesh.member('apple')
    await expect(apple.dialer.open(WEB, signal)).rejects.toMatchObject({ code: 'not-found' })
    await expect(apple.dialer.open({ ...WEB, network: 'x' }, signal)).rejects.toMatchObject({ code: 'not-found' })
    apple.instances.push(instanceOf({ peerId: 'bad', state: 'ill' }))
    await expect(apple.dialer.open(WEB, signal)).rejects.toThrow('takes no connections: ill on bad')
    apple.instances.push(instanceOf({ peerId: 'gone' }))
    await expect(apple.dialer.open(WEB, signal)).rejects.toThrow('gone: gone cannot be reached')
  })

  it('is given up when whoever wanted it goes away', async () => {
    const mesh = new FakeMesh()
    mesh.silent.add('dead')
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'dead' }))
    const over = new AbortController()
    const opening = apple.dialer.open(WEB, over.signal)
    await delay(10)
    over.abort(new Error('gone away'))
    await expect(opening).rejects.toThrow('gone away')
  })

  it('is opened on a stream that was ready, and on another when that has gone', async () => {
    const mesh = new FakeMesh()
    const { port } = await application()
    const pear = await mesh.member('pear', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear' }))
    await apple.dialer.open(WEB, signal)
    await wait('spares are there', () => mesh.opened.length === 5)
    await apple.dialer.open(WEB, signal)
    expect(mesh.opened.length).toBe(5)
    await pear.stop()
    await expect(apple.dialer.open(WEB, signal)).rejects.toThrow('cannot be reached')
  })
})

describe('an open tunnel', () => {
  it('is reset when its grant goes, not by draining, and when the service goes', async () => {
    const mesh = new FakeMesh()
    const { port } = await application()
    const pear = await mesh.member('pear', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear' }))
    const first = await apple.dialer.open(WEB, signal)
    pear.offers.web = { port, isDraining: true }
    for (const listener of pear.changed) listener()
    expect(pear.flows.list()).toHaveLength(1)
    mesh.change([])
    await wait('it is reset', () => first.errored !== null)
    expect(first.errored).toMatchObject({ code: 'ECONNRESET' })

    mesh.change([{ from: 'name:apple', to: '*', allow: ['service:connect web'] }])
    pear.offers.web = { port }
    const second = await apple.dialer.open(WEB, signal)
    delete pear.offers.web
    for (const listener of pear.changed) listener()
    await wait('it is reset', () => second.errored !== null)
  })

  it('is reset when the application resets, and the other way round', async () => {
    const mesh = new FakeMesh()
    const { port, sockets } = await application()
    await mesh.member('pear', { web: { port } })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear' }))
    const first = await apple.dialer.open(WEB, signal)
    sockets[0]?.resetAndDestroy()
    await wait('told here', () => first.errored !== null)
    const second = await apple.dialer.open(WEB, signal)
    await wait('connected', () => sockets.length === 2)
    const code = new Promise((resolve) =>
      sockets[1]?.once('error', (error: NodeJS.ErrnoException) => resolve(error.code)),
    )
    second.destroy(new Error('enough'))
    expect(await code).toBe('ECONNRESET')
  })
})

describe('datagrams', () => {
  it('go there and back, of every size', async () => {
    const mesh = new FakeMesh()
    const echo = createSocket('udp4')
    onTestFinished(() => void echo.close())
    echo.on('message', (bytes, { port, address }) => echo.send(bytes, port, address))
    echo.bind(0, '127.0.0.1')
    await once(echo, 'listening')
    const offer = { port: echo.address().port, proto: 'udp' as const }
    const pear = await mesh.member('pear', { web: offer })
    const apple = await mesh.member('apple')
    apple.instances.push(instanceOf({ peerId: 'pear', proto: 'udp' }))
    pear.instances.push(instanceOf({ peerId: 'pear', proto: 'udp' }))
    for (const member of [apple, pear]) {
      const tunnel = await member.dialer.openDatagrams(WEB, signal)
      const sizes: number[] = []
      tunnel.onDatagram((bytes) => sizes.push(bytes.byteLength))
      for (const size of [0, 1, 1_400, 60_000]) tunnel.send(new Uint8Array(size))
      tunnel.send(new Uint8Array(70_000))
      await wait('all came back', () => sizes.length === 4)
      expect(sizes.toSorted((a, b) => a - b)).toEqual([0, 1, 1_400, 60_000])
      const closed = new Promise<void>((resolve) => tunnel.onClose(resolve))
      tunnel.close()
      await closed
    }
    await wait('the other side has ended it', () => pear.flows.list().length === 0)
  })
})
