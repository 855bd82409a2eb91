/** DNS on loopback, asked by dig and by what is no client at all, with the addresses that names have really listened on. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect } from 'node:net'
import { DatabaseSync } from 'node:sqlite'
import { pino } from 'pino'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { ClaimedRange, reverseZone } from '../../../agent/routing/address-range.ts'
import { DnsServer } from '../../../agent/routing/dns-server.ts'
import { NameAddresses } from '../../../agent/routing/name-addresses.ts'
import { NameListeners } from '../../../agent/routing/name-listeners.ts'
import { freePort, run } from '../../agents.ts'
import { FakeDialer, FakeServices, instance, TcpServer } from './fake-services.ts'

const log = pino({ level: 'silent' })
const migrations = 'CREATE TABLE schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT'
const services = new FakeServices()
const stack = new AsyncDisposableStack()
let server: DnsServer
let addresses: NameAddresses
let port: number

beforeAll(async () => {
  const db = new DatabaseSync(':memory:')
  db.exec(migrations)
  const { range } = stack.use(await ClaimedRange.claim(db, `test ${process.pid}`, undefined))
  addresses = new NameAddresses(db, range)
  const echo = stack.use(await TcpServer.echo())
  const dialer = new FakeDialer(services, { web: echo.port })
  const ownHost = (_: string, service: string) => (service === 'own' ? '127.0.0.1' : undefined)
  const listeners = stack.use(NameListeners.start({ addresses, services, dialer, ownHost, log }))
  const zones = {
    networks: () => ['home'],
    services,
    hold: (name: string) => listeners.hold(name),
    nameAt: (address: string) => addresses.nameAt(address),
    reverseZone: reverseZone(range),
  }
  server = stack.use(await DnsServer.start({ host: '127.0.0.1', port: 0 }, zones, log))
  port = await freePort()
})
afterAll(() => stack.disposeAsync())
beforeEach(() => {
  services.set(
    instance({ port, weight: 3, zone: 'attic', labels: { tier: 'gold' } }),
    instance({ port, node: 'board', peerId: '12D3KooWboard' }),
    instance({ port, node: 'old', peerId: '12D3KooWold', state: 'ill' }),
    instance({ service: 'own', port: 1_234 }),
  )
})

async function dig(...args: string[]): Promise<string> {
  const common = ['@127.0.0.1', '-p', String(server.address.port), '+tries=1', '+time=5', '+noall']
  const { code, stdout, stderr } = await run('dig', [...common, ...args])
  expect(code, stdout + stderr).toBe(0)
  return stdout.replace(/[\t ]+/g, ' ').trim()
}
const answers = (...args: string[]) => dig('+answer', ...args)
const status = async (...args: string[]) => {
  const text = await dig('+comments', '+authority', ...args)
  const [, code] = /status: (\w+)/.exec(text) ?? []
  return `${code}${/flags: qr aa/.test(text) ? ' aa' : ''}${/ SOA /.test(text) ? ' SOA' : ''}`
}

describe('dig', () => {
  it('finds the address of a name, which stays, leads to the service, and has that name', async () => {
    const line = await answers('web.home.internal')
    const [, address = ''] = /^web\.home\.internal\. 5 IN A (127\.\d+\.\d+\.\d+)$/.exec(line) ?? []
    expect(await answers('+tcp', 'WEB.Home.internal')).toBe(line.replace('web.home', 'WEB.Home'))
    expect(await dig('+short', '+answer', '-x', address)).toBe('web.home.internal.')
    const other = await dig('+short', '+answer', 'web.board.home.internal')
    expect(other).not.toBe(address)
    const socket = connect(port, address)
    socket.end('hello')
    const [heard] = (await once(socket, 'data')) as [Buffer]
    expect(heard.toString()).toBe('hello')
    expect(addresses.get('web.home.internal')).toBe(address)
  })

  it('finds the instances that can be used, and their addresses with them', async () => {
    for (const name of ['_web._tcp.home.internal', 'web.home.internal']) {
      const text = await dig('+answer', '+additional', 'SRV', name)
      const targets = text.split('\n').filter((line) => line.includes(' SRV '))
      expect(targets.sort()).toEqual([
        `${name}. 5 IN SRV 0 1 ${port} web.board.home.internal.`,
        `${name}. 5 IN SRV 0 3 ${port} web.nas.home.internal.`,
      ])
      expect(text).toMatch(/^web\.nas\.home\.internal\. 5 IN A 127\./m)
      expect(text).not.toContain('old')
    }
    expect(await answers('TXT', 'web.nas.home.internal')).toMatch(/"label.tier=gold"/)
    expect(await answers('TXT', 'web.home.internal')).toMatch(/"instances=3"\n.*"usable=2"/)
  })

  it('is told the difference between no name, no such record, and not ours', async () => {
    expect(await status('web.home.internal', 'AAAA')).toBe('NOERROR aa SOA')
    expect(await status('nothing.home.internal')).toBe('NXDOMAIN aa SOA')
    expect(await status('nas.home.internal'), 'there are names below it').toBe('NOERROR aa SOA')
    expect(await status('_udp.home.internal')).toBe('NOERROR aa SOA')
    expect(await status('_web._udp.home.internal', 'SRV')).toBe('NXDOMAIN aa SOA')
    for (const foreign of ['example.org', 'web.work.internal', 'internal', '.', '1.0.0.127.in-addr.arpa'])
      expect([foreign, await status(foreign)]).toEqual([foreign, 'REFUSED'])
    expect(await status('web.home.internal', 'AXFR', '+noall')).not.toContain('NOERROR')
    expect(await dig('+answer', 'SOA', 'home.internal')).toMatch(
      /SOA home.internal. nobody.invalid. 1 3600 1200 604800 2$/,
    )
    expect(await answers('NS', 'home.internal')).toBe('home.internal. 300 IN NS home.internal.')
    expect(await answers('ANY', 'web.home.internal')).toMatch(/ A 127\./)
  })

  it('follows a service that goes', async () => {
    const before = await dig('+short', '+answer', 'web.home.internal')
    services.set()
    expect(await status('web.home.internal')).toBe('NXDOMAIN aa SOA')
    const socket = connect(port, before)
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException]
    expect(error.code).toBe('ECONNREFUSED')
    services.set(instance({ port }))
    expect(await dig('+short', '+answer', 'web.home.internal')).toBe(before)
  })

  it('is not led to a stranger who has the port, and told why', async () => {
    await using stranger = await TcpServer.start((socket) => socket.end(), '0.0.0.0')
    services.set(instance({ service: 'db', port: stranger.port }))
    const text = await dig('+comments', '+answer', 'db.home.internal')
    expect(text).toMatch(/status: SERVFAIL/)
    expect(text).toMatch(/EDE: 0 \(Other\): \(port \d+ of db.home.internal is used by another program/)
  })

  it('is given the application itself where this node offers it', async () => {
    expect(await dig('+short', '+answer', 'own.home.internal')).toBe('127.0.0.1')
  })

  it('gets answers that are too long by TCP', async () => {
    const many = Array.from({ length: 40 }, (_, nth) => instance({ port, node: `n${nth}`, peerId: `12D3KooW${nth}` }))
    services.set(...many)
    const text = await dig('+answer', '+stats', 'SRV', 'web.home.internal')
    expect(text.match(/ SRV /g)).toHaveLength(40)
    expect(text).toContain('(TCP)')
  })
})

describe('noise', () => {
  it('leaves the server answering', async () => {
    const udp = createSocket('udp4')
    for (let nth = 0; nth < 50; nth += 1)
      udp.send(crypto.getRandomValues(new Uint8Array(nth * 3)), server.address.port, '127.0.0.1')
    const cut = connect(server.address.port, '127.0.0.1')
    cut.write(Uint8Array.of(0xff, 0xff, 1, 2, 3))
    const noise = connect(server.address.port, '127.0.0.1')
    noise.on('error', () => undefined)
    noise.write(Uint8Array.of(0, 3, 1, 2, 3))
    await once(noise, 'close')
    expect(await status('web.home.internal')).toBe('NOERROR aa')
    cut.destroy()
    udp.close()
  })
})
