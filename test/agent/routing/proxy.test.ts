/** The proxy on loopback, with real clients: who is led where, who is refused and how he is told, and what hostile ones cannot do. */

import { createHash, randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { pino } from 'pino'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import { absoluteOf, authorityOf } from '../../../agent/routing/http-proxy.ts'
import { ServiceProxy } from '../../../agent/routing/proxy.ts'
import { writeDatagram } from '../../../agent/routing/socks-messages.ts'
import { run } from '../../agents.ts'
import { FakeDialer, FakeServices, instance, TcpServer } from './fake-services.ts'

const log = pino({ level: 'silent' })
const services = new FakeServices()
const stack = new AsyncDisposableStack()
const directory = mkdtempSync(join(tmpdir(), 'undernet-proxy-'))
stack.defer(() => rmSync(directory, { recursive: true }))
let dialer: FakeDialer
let proxy: ServiceProxy
let port: number

/** Says what it was asked; `/big` is some megabytes; upgrades and says back. */
async function webServer(): Promise<number> {
  const server = createHttpServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const { method, url, headers } = request
      if (url === '/big') return response.end(Buffer.alloc(3_000_000, 'x'))
      const hash = createHash('sha256').update(Buffer.concat(chunks)).digest('hex')
      response.setHeader('x-service', 'web').end(JSON.stringify({ method, url, headers, hash }))
    })
  })
  server.on('upgrade', (_request, socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  stack.defer(() => {
    server.closeAllConnections()
    server.close()
  })
  return (server.address() as { port: number }).port
}

beforeAll(async () => {
  const echo = stack.use(await TcpServer.echo())
  const udp = createSocket('udp4')
  udp.on('message', (bytes, from) => udp.send(bytes, from.port, from.address))
  udp.bind(0, '127.0.0.1')
  await once(udp, 'listening')
  stack.defer(() => void udp.close())
  dialer = new FakeDialer(services, { web: await webServer(), echo: echo.port, time: udp.address().port })
  const destinations = {
    services,
    networks: () => ['home'],
    nameAt: (address: string) => (address === '127.77.0.9' ? 'web.home.internal' : undefined),
  }
  proxy = stack.use(await ServiceProxy.start({ host: '127.0.0.1', port: 0 }, { destinations, dialer, log }))
  port = Number(proxy.address.split(':')[1])
})
afterAll(() => stack.disposeAsync())
beforeEach(() => {
  dialer.targets.length = 0
  dialer.refusals.clear()
  services.set(
    instance(),
    instance({ service: 'echo', port: 7 }),
    instance({ service: 'time', proto: 'udp', port: 123 }),
  )
})

const curl = (...args: string[]) => run('curl', ['-sS', '--max-time', '20', '--noproxy', '', ...args])
const ways: [string, () => string[]][] = [
  ['SOCKS 5', () => ['--socks5-hostname', proxy.address]],
  ['HTTP', () => ['-x', `http://${proxy.address}`]],
  ['CONNECT', () => ['-p', '-x', `http://${proxy.address}`]],
]

/** Sends bytes, and gathers what comes until the other side ends. */
async function talk(...parts: (string | Uint8Array)[]): Promise<Buffer> {
  const socket = connect(port, '127.0.0.1')
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  socket.on('error', () => undefined)
  for (const part of parts) socket.write(part)
  await once(socket, 'close')
  return Buffer.concat(chunks)
}

describe.each(ways)('%s', (_, way) => {
  it('leads curl to a service by its name, at its port and without one', async () => {
    for (const url of ['http://web.home.internal/a?b=c', 'http://WEB.home.internal.:8080/a?b=c']) {
      const { code, stdout, stderr } = await curl(...way(), url)
      expect(code, stderr).toBe(0)
      expect(JSON.parse(stdout)).toMatchObject({ method: 'GET', url: '/a?b=c' })
    }
    expect(dialer.targets[0]).toEqual({ network: 'home', service: 'web' })
    await curl(...way(), 'http://web.nas.home.internal:8080/')
    expect(dialer.targets.at(-1)).toEqual({ network: 'home', service: 'web', node: 'nas' })
  })

  it('leads to a name by the address that it has here', async () => {
    const { stdout, stderr } = await curl(...way(), 'http://127.77.0.9:8080/by-address')
    expect(stdout, stderr).toContain('"url":"/by-address"')
    expect(dialer.targets.at(-1)).toEqual({ network: 'home', service: 'web' })
  })

  it('carries megabytes both ways, and several requests', async () => {
    const sent = randomBytes(2_000_000)
    const child = await curl(...way(), '-o', '/dev/null', '-w', '%{size_download}', 'http://web.home.internal/big')
    expect(child.stdout).toBe('3000000')
    const file = join(directory, 'sent')
    writeFileSync(file, sent)
    const { stdout } = await curl(
      ...way(),
      '-T',
      file,
      'http://web.home.internal/up',
      '-:',
      '-sS',
      ...way(),
      'http://web.home.internal/next',
    )
    expect(stdout).toContain('"url":"/up"')
    expect(stdout).toContain(createHash('sha256').update(sent).digest('hex'))
    expect(stdout).toContain('"url":"/next"')
  })

  it('refuses what is no service of ours, and does not go there', async () => {
    for (const url of [
      'http://example.org/',
      'http://127.0.0.1:7478/',
      'http://web.work.internal/',
      'http://home.internal/',
      'http://[::1]/',
    ]) {
      const { code, stdout } = await curl(...way(), '-w', '%{http_code} %{http_connect}', url)
      expect([url, code === 0 ? stdout.includes('403') : true]).toEqual([url, true])
    }
    expect(dialer.targets).toEqual([])
  })
})

describe('refusals', () => {
  it('tell people by HTTP what is missing', async () => {
    const via = ['-x', `http://${proxy.address}`, '-w', '%{http_code}']
    const told = async (url: string) => (await curl(...via, url)).stdout
    expect(await told('http://nothing.home.internal/')).toMatch(
      /no member of home offers nothing.home.internal.*\n502$/s,
    )
    expect(await told('http://example.org/')).toMatch(
      /services of your networks only, and example.org is none.*\n403$/s,
    )
    expect(await told('http://web.work.internal/')).toMatch(/in no network called work.*SERVICE.home.internal.*403$/s)
    expect(await told('http://web.home.internal:22/')).toMatch(/is at port 8080, not 22\n502$/)
    expect(await told('http://time.home.internal:123/')).toMatch(/speaks UDP, not TCP\n502$/)
    dialer.refusals.set(
      'web',
      new AgentError('not-allowed', 'this node may not use web: it has no grant of service:connect web'),
    )
    expect(await told('http://web.home.internal/')).toMatch(/no grant of service:connect web\n403$/)
    dialer.refusals.set('web', new AgentError('failed', 'web.home.internal takes no connections: ill on nas'))
    const { stdout } = await curl(...via, '-i', 'http://web.home.internal/')
    expect(stdout).toMatch(/proxy-status: undernet; error=destination_unavailable; details="web.home.internal takes/i)
    expect(stdout).toMatch(/ill on nas\n503$/)
  })

  it('are numbers in SOCKS', async () => {
    const asked = (host: string, to: number, command = 1) =>
      talk(
        Uint8Array.of(5, 1, 0),
        Uint8Array.of(5, command, 0, 3, host.length, ...Buffer.from(host), to >> 8, to & 255),
      )
    expect((await asked('nothing.home.internal', 80))[3]).toBe(4)
    expect((await asked('example.org', 80))[3]).toBe(2)
    expect((await asked('web.home.internal', 22))[3]).toBe(5)
    expect((await asked('web.home.internal', 80, 2))[3]).toBe(7)
    expect([...(await talk(Uint8Array.of(5, 1, 2)))], 'only a password').toEqual([5, 0xff])
    expect([...(await talk(Uint8Array.of(4, 1, 0, 80, 1, 2, 3, 4, 0)))].slice(0, 2), 'SOCKS 4').toEqual([0, 0x5b])
  })
})

describe('SOCKS 5 datagrams', () => {
  /** What a program that sends UDP through SOCKS does. */
  async function associated(): Promise<{ control: Socket; relay: number }> {
    const control = connect(port, '127.0.0.1')
    control.write(Uint8Array.of(5, 1, 0))
    await once(control, 'data')
    control.write(Uint8Array.of(5, 3, 0, 1, 0, 0, 0, 0, 0, 0))
    const [reply] = (await once(control, 'data')) as [Buffer]
    expect([...reply.subarray(0, 8)]).toEqual([5, 0, 0, 1, 127, 0, 0, 1])
    return { control, relay: reply.readUInt16BE(8) }
  }

  it('go to a service and back, for the program that asked, for as long as it stays', async () => {
    const { control, relay } = await associated()
    const client = createSocket('udp4')
    const stranger = createSocket('udp4')
    const heard: string[] = []
    stranger.on('message', () => heard.push('stranger'))
    const to = { host: 'time.home.internal', port: 123 }
    for (const word of ['one', 'two']) {
      const answer = once(client, 'message')
      client.send(writeDatagram(to, Buffer.from(word)), relay, '127.0.0.1')
      const [bytes] = (await answer) as [Buffer]
      expect(bytes).toEqual(writeDatagram(to, Buffer.from(word)))
    }
    stranger.send(writeDatagram(to, Buffer.from('x')), relay, '127.0.0.1')
    client.send(writeDatagram({ host: 'web.home.internal', port: 8080 }, Buffer.from('x')), relay, '127.0.0.1')
    client.send(randomBytes(50), relay, '127.0.0.1')
    const answer = once(client, 'message')
    client.send(writeDatagram(to, Buffer.from('still')), relay, '127.0.0.1')
    await answer
    expect(heard).toEqual([])
    expect(dialer.targets.map(({ service }) => service)).toEqual(['time'])
    control.end()
    await once(control, 'close')
    client.close()
    stranger.close()
  })
})

describe('hostile clients', () => {
  it('get an answer or a closed connection for whatever they say', async () => {
    const refused = async (text: string) => (await talk(text)).toString('latin1').split('\r\n')[0]
    expect(await refused('GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n')).toBe('HTTP/1.1 400 Bad Request')
    expect(await refused('CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n')).toMatch(/^HTTP\/1.1 (400|502)/)
    expect(await refused('CONNECT web.home.internal:99999 HTTP/1.1\r\nHost: x\r\n\r\n')).toMatch(/^HTTP\/1.1 502/)
    expect(await refused('GET https://web.home.internal/ HTTP/1.1\r\nHost: x\r\n\r\n')).toMatch(/^HTTP\/1.1 400/)
    expect(await refused(`GET http://web.home.internal/ HTTP/1.1\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`)).toMatch(/ 431 /)
    expect(await refused('\x16\x03\x01\x02\x00\x01\x00\r\n\r\n')).toMatch(/400|^$/)
    for (let nth = 0; nth < 20; nth += 1) {
      await talk(Uint8Array.of(5, ...randomBytes(nth + 1), 0), randomBytes(400), '\r\n\r\n')
    }
    expect((await curl('-x', `http://${proxy.address}`, 'http://web.home.internal/')).code).toBe(0)
  })

  it('that say nothing, or do not end what they say, are not waited for', async () => {
    const init = { destinations: { services, networks: () => [], nameAt: () => undefined }, dialer, handshakeMs: 100 }
    await using impatient = await ServiceProxy.start({ host: '127.0.0.1', port: 0 }, { ...init, log })
    const said = async (bytes: Uint8Array | string) => {
      const socket = connect(Number(impatient.address.split(':')[1]), '127.0.0.1')
      const chunks: Buffer[] = []
      socket.on('data', (chunk: Buffer) => chunks.push(chunk))
      socket.write(bytes)
      await once(socket, 'close')
      return Buffer.concat(chunks).toString('latin1')
    }
    expect(await said('')).toBe('')
    expect(await said('GET http://web.home.internal/ HTTP/1.1\r\nHost:')).toMatch(/^HTTP\/1.1 408 /)
    expect(Buffer.from(await said(Uint8Array.of(5, 2, 0)), 'latin1').subarray(0, 1)).toEqual(Buffer.of(5))
    expect(Buffer.from(await said(Uint8Array.of(5, 1, 0, 5, 1)), 'latin1').subarray(0, 2)).toEqual(Buffer.of(5, 0))
  })

  it('cannot put lines into what is sent on', async () => {
    const answer = await talk(
      'GET http://web.home.internal/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nProxy-Authorization: Basic eA==\r\n\r\n',
    )
    const body = JSON.parse(answer.toString().split('\r\n\r\n')[1] ?? '') as { headers: Record<string, string> }
    expect(body.headers.host).toBe('web.home.internal')
    expect(body.headers).not.toHaveProperty('proxy-authorization')
    expect(body.headers).not.toHaveProperty('x-secret')
  })
})

it('goes on with bytes that came along with a CONNECT, and half-closes', async () => {
  const answer = await talkHalf('CONNECT echo.home.internal:7 HTTP/1.1\r\nHost: echo\r\n\r\nhello')
  expect(answer).toMatch(/^HTTP\/1.1 200 [^\r]*\r\n\r\nhello and more$/)
})

it('lets a plain request upgrade, as WebSockets do', async () => {
  const head = 'GET http://web.home.internal/ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n'
  expect(await talkHalf(head)).toMatch(/^HTTP\/1.1 101 .* and more$/s)
})

/** Sends, says more once there is an answer, ends its side, and reads to the end. */
async function talkHalf(text: string): Promise<string> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  socket.write(text)
  let heard = ''
  socket.once('data', () => socket.end(' and more'))
  socket.on('data', (chunk: Buffer) => {
    heard += chunk.toString()
  })
  await once(socket, 'end')
  return heard
}

describe('what HTTP clients name', () => {
  it('is a host and a port, or nothing', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const place = authorityOf(text)
        if (place !== undefined) expect(`${text}`).toContain(place.host)
        absoluteOf(text)
        absoluteOf(`http://${text}`)
      }),
      { numRuns: 1_000 },
    )
    fc.assert(
      fc.property(
        fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,30}$/),
        fc.integer({ min: 1, max: 65_535 }),
        fc.stringMatching(/^(\/[a-z0-9%?=.]{0,9}){0,3}$/),
        (host, to, path) => {
          expect(authorityOf(`${host}:${to}`)).toEqual({ host, port: to })
          expect(absoluteOf(`http://${host}:${to}${path}`)).toEqual({ host, port: to, path: path === '' ? '/' : path })
        },
      ),
    )
    for (const wrong of ['a:0', 'a:65536', 'a', ':80', 'a@b:80', '[::1]', 'a b:80', 'a:80x', '[fe80::1%lo]:80'])
      expect([wrong, authorityOf(wrong)]).toEqual([wrong, undefined])
    expect(absoluteOf('http://a?x')).toEqual({ host: 'a', port: 80, path: '/?x' })
    expect(absoluteOf('http://user@a/')).toBeUndefined()
  })
})
