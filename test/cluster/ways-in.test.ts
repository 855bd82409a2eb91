/**
 * Services between real agents by their names: unmodified programs find them by DNS and connect, or go through the proxy, and others learn of
 * them from discovery; for those whom a grant allows, and while the service is there.
 */
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import type { Server } from 'node:http'
import { connect as connectHttp2, createServer as createHttp2Server } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { DnsConfView, NameList } from '../../agent/api/names-contract.ts'
import type { ServiceDetail } from '../../agent/api/service-contract.ts'
import { freePort, type RealAgent, run, until } from '../agents.ts'
import { hasGrpcio, nodeClient, pythonClient, useXds, whoServer } from '../grpc-clients.ts'
import { hasEnvoy, startDnsmasq, startEnvoy, startHaproxy } from '../other-programs.ts'
import { webServer } from '../web-server.ts'
import { allSee, invite, joinWith, Lab, SOON_MS_MAX, says } from './members.ts'

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

describe('services by their names', () => {
  const stack = new AsyncDisposableStack()
  let client: RealAgent
  let server: RealAgent
  let guest: RealAgent
  let dns = ''
  const proxies = new Map<RealAgent, string>()

  beforeAll(async () => {
    const lab = stack.use(await Lab.open())
    const flags = ['--no-open']
    server = await lab.start({ name: 'server', flags })
    const bootstrap = [await server.address()]
    const start = async (name: string) => {
      const proxy = `127.0.0.1:${await freePort()}`
      const agent = await lab.start({ name, bootstrap, flags, loopback: { proxy, dns: '127.0.0.1:0' } })
      proxies.set(agent, proxy)
      return agent
    }
    ;[client, guest] = await Promise.all([start('client'), start('guest')])
    await server.json('network', 'create', 'home', '--as', 'server')
    await joinWith(client, await invite(server, '--label', 'role=client'), '--as', 'client')
    await joinWith(guest, await invite(server), '--as', 'guest')
    await says(server, 'policy', 'set', lab.file('policy.toml', POLICY), '--yes')
    await allSee([client, guest, server], ['client', 'guest', 'server'])
    dns = (await client.client.get<DnsConfView>('dns-conf')).address
    await offerAll()
  })
  afterAll(() => stack.disposeAsync())

  /** Each an application of this machine that the server's agent offers. */
  const ports: Record<string, number> = {}
  async function offerAll(): Promise<void> {
    ports.web = await listens(webServer())
    const http2 = createHttp2Server((request, response) => response.end(`h2 ${request.url}`))
    ports.h2 = await listens(http2 as unknown as Server)
    const udp = createSocket('udp4')
    udp.on('message', (bytes, from) => udp.send(`heard ${bytes.toString()}`, from.port, from.address))
    udp.bind(0, '127.0.0.1')
    await once(udp, 'listening')
    stack.defer(() => void udp.close())
    ports.time = udp.address().port
    await says(server, 'service', 'add', 'web', `${ports.web}`, '--proto', 'http', '--check', 'http:/')
    await says(server, 'service', 'add', 'h2', `${ports.h2}`)
    await says(server, 'service', 'add', 'time', `${ports.time}`, '--proto', 'udp', '--check', 'none')
    for (const name of ['web', 'h2', 'time']) await sees(client, name)
    await sees(guest, 'web')
  }

  async function listens(application: Server): Promise<number> {
    application.listen(0, '127.0.0.1')
    await once(application, 'listening')
    stack.defer(() => void application.close())
    return (application.address() as AddressInfo).port
  }

  /** What a resolver of this machine would be told. */
  async function lookup(...args: string[]): Promise<string> {
    const [host, port = ''] = dns.split(':')
    const { code, stdout, stderr } = await run('dig', [`@${host}`, '-p', port, '+short', '+tries=1', ...args])
    expect(code, stderr).toBe(0)
    return stdout.trim()
  }

  test('curl finds a web server by DNS, at its port and at that of URLs without one', async () => {
    const address = await lookup('web.home.internal')
    expect(address).toMatch(/^127\.\d+\.\d+\.\d+$/)
    const places = process.getuid?.() === 0 ? ['', `:${ports.web}`] : [`:${ports.web}`]
    for (const place of places) {
      const port = place === '' ? '80' : place.slice(1)
      const resolve = ['--noproxy', '*', '--resolve', `web.home.internal:${port}:${address}`]
      const url = `http://web.home.internal${place}/hello`
      const { stdout, stderr } = await run('curl', ['-sS', '--max-time', '20', ...resolve, url])
      expect([place, stdout], stderr).toEqual([place, 'web /hello'])
    }
    const { names } = await client.client.get<NameList>('names')
    expect(names).toMatchObject([{ name: 'web.home.internal', address }])
    expect(await says(client, 'names')).toContain(address)
    expect(await lookup('SRV', '_web._tcp.home.internal')).toBe(`0 1 ${ports.web} web.server.home.internal.`)
  })

  test('curl goes through the proxy; a member without the grant is told which one he lacks', async () => {
    for (const way of [
      ['-x', `http://${proxies.get(client)}`],
      ['-p', '-x', `http://${proxies.get(client)}`],
      ['--socks5-hostname', `${proxies.get(client)}`],
    ]) {
      const { stdout, stderr } = await run('curl', ['-sS', '--noproxy', '', ...way, 'http://web.home.internal/x'])
      expect(stdout, stderr).toBe('web /x')
    }
    const asGuest = ['-x', `http://${proxies.get(guest)}`, '-w', '%{http_code}']
    const { stdout } = await run('curl', ['-sS', '--noproxy', '', ...asGuest, 'http://web.home.internal/x'])
    expect(stdout).toMatch(/service:connect web/)
    expect(stdout).toMatch(/403$/)
  })

  test('HTTP/2, WebSocket and UDP clients connect by the address', async () => {
    const h2 = connectHttp2(`http://${await lookup('h2.home.internal')}:${ports.h2}`)
    const stream = h2.request({ ':path': '/there' }).setEncoding('utf8')
    const [body] = (await once(stream, 'data')) as [string]
    expect(body).toBe('h2 /there')
    h2.close()

    const socket = new WebSocket(`ws://${await lookup('web.home.internal')}:${ports.web}/ws`)
    const heard = Promise.withResolvers<unknown>()
    socket.onerror = () => heard.reject(new Error('the WebSocket failed'))
    socket.onmessage = ({ data }) => heard.resolve(data)
    socket.onopen = () => socket.send('over the mesh')
    expect(await heard.promise).toBe('over the mesh')
    socket.close()

    const udp = createSocket('udp4')
    const answer = once(udp, 'message') as Promise<[Buffer]>
    udp.send('you', ports.time, await lookup('time.home.internal'))
    expect((await answer)[0].toString()).toBe('heard you')
    udp.close()
  })

  const hasRedis = existsSync('/usr/bin/redis-server')
  if (!hasRedis) console.warn('SKIPPED: redis-cli needs Debian’s redis-server')
  test.skipIf(!hasRedis)('redis-cli works', async () => {
    const port = await freePort()
    const quiet = ['--save', '', '--appendonly', 'no', '--bind', '127.0.0.1', '--port', `${port}`]
    const redis = spawn('redis-server', quiet, { stdio: 'ignore' })
    stack.defer(() => void redis.kill('SIGKILL'))
    await says(server, 'service', 'add', 'redis', `${port}`, '--check', 'tcp')
    await sees(client, 'redis')
    const address = await lookup('redis.home.internal')
    const say = async (...args: string[]) =>
      (await run('redis-cli', ['-h', address, '-p', `${port}`, ...args])).stdout.trim()
    expect(await say('ping')).toBe('PONG')
    expect(await say('set', 'k', 'x'.repeat(100_000))).toBe('OK')
    expect(await say('strlen', 'k')).toBe('100000')
  })

  const got = async (url: string, ...args: string[]) =>
    (await run('curl', ['-sS', '--noproxy', '*', '--max-time', '5', ...args, url])).stdout
  const answers = (url: string, ...args: string[]) =>
    until(async () => (await got(url, ...args)).startsWith('web '), { what: `${url} answers`, ms: SOON_MS_MAX })

  test('dnsmasq resolves with the lines for it, and HAProxy balances what SRV says', async () => {
    await using others = new AsyncDisposableStack()
    const port = await startDnsmasq(await says(client, 'dns-conf', 'dnsmasq'), others)
    const ask = async (...args: string[]) =>
      (await run('dig', ['@127.0.0.1', '-p', port, '+short', '+tries=1', '+time=1', ...args])).stdout.trim()
    const address = await lookup('web.home.internal')
    await until(async () => (await ask('web.home.internal')) === address, { what: 'dnsmasq answers', ms: SOON_MS_MAX })
    expect(await ask('-x', address)).toBe('web.home.internal.')
    await answers(`http://${await startHaproxy('_web._tcp.home.internal', dns, others)}/balanced`)
  })

  if (hasEnvoy())
    test.each(['ads', 'rest'] as const)('a real Envoy takes everything by %s, and follows', async (way) => {
      await using others = new AsyncDisposableStack()
      await startEnvoy(way, new URL((await client.status()).http ?? ''), others)
      const through = ['http://127.0.0.1:7480/through', '-H', 'Host: web.home.internal'] as const
      await answers(...through)
      await says(server, 'service', 'drain', 'web')
      const isGone = async () => (await got(...through)).startsWith('no healthy upstream')
      await until(isGone, { what: 'Envoy knows that it is drained', ms: SOON_MS_MAX })
      await says(server, 'service', 'drain', 'web', '--undo')
      await answers(...through)
    })

  test('discovery tells of it at the address; what is drained is in no answer, and what is gone has no name', async () => {
    const { http } = await client.status()
    const registered = async () =>
      ((await (await fetch(`${http}/v1/registration/web`)).json()) as { hosts: { ip_address: string; port: number }[] })
        .hosts
    const [host] = await registered()
    const answer = await fetch(`http://${host?.ip_address}:${host?.port}/by-discovery`)
    expect(await answer.text()).toBe('web /by-discovery')
    const targets = (await (await fetch(`${http}/v1/http_sd`)).json()) as { targets: string[] }[]
    expect(targets.map((one) => one.targets[0])).toContain(`${host?.ip_address}:${host?.port}`)
    const xds = await fetch(`${http}/v3/discovery:endpoints`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ node: { id: 'n' }, resource_names: ['web.home.internal'] }),
    })
    expect(JSON.stringify(await xds.json())).toContain(host?.ip_address)

    await says(server, 'service', 'drain', 'web')
    await until(async () => (await registered()).length === 0, { what: 'a drained instance goes', ms: SOON_MS_MAX })
    expect(await lookup('SRV', 'web.home.internal')).toBe('')
    await says(server, 'service', 'remove', 'web')
    await until(async () => (await lookup('web.home.internal')) === '', { what: 'its name goes', ms: SOON_MS_MAX })
  })

  test('gRPC for Node and for C follow a service that moves between nodes', async () => {
    for (const [agent, name] of [
      [server, 'apple'],
      [guest, 'pear'],
    ] as const)
      await says(agent, 'service', 'add', 'who', `${await whoServer(name, stack)}`)
    await until(async () => (await client.client.get<ServiceDetail>('services/who')).healthyCount === 2, {
      what: 'both nodes offer it',
      ms: SOON_MS_MAX,
    })
    const { http } = await client.status()
    useXds((http ?? '').replace('http://', ''))
    const starts = (await hasGrpcio()) ? [nodeClient, pythonClient] : [nodeClient]
    const clients = starts.map((start) => start('who.home.internal', stack))
    const told = () => Promise.all(clients.map((ask) => ask()))
    const reach = (name: string) =>
      until(async () => (await told()).every((one) => one === name), { what: `all reach ${name}`, ms: SOON_MS_MAX })
    await says(server, 'service', 'drain', 'who')
    await reach('pear')
    await says(server, 'service', 'drain', 'who', '--undo')
    await says(guest, 'service', 'remove', 'who')
    await reach('apple')
    for (let nth = 0; nth < 10; nth += 1) expect(new Set(await told())).toEqual(new Set(['apple']))
  })

  test('the lines for resolvers name the networks', async () => {
    const lines = (await says(client, 'dns-conf', 'systemd-resolved')).split('\n')
    expect(lines).toContain(`DNS=${dns}`)
    expect(lines.some((line) => line.startsWith('Domains=~home.internal'))).toBe(true)
    expect(await says(client, 'dns-conf', 'dnsmasq')).toContain(`server=/home.internal/${dns.replace(':', '#')}`)
  })
})

async function sees(agent: RealAgent, name: string): Promise<void> {
  const look = async () => {
    const detail = await agent.client.get<ServiceDetail>(`services/${name}`).catch(() => undefined)
    return detail?.instances.some(({ state }) => state === 'healthy' || (name === 'time' && state === 'unknown'))
  }
  await until(look, { what: () => `${agent.name} sees ${name}`, ms: SOON_MS_MAX })
}
