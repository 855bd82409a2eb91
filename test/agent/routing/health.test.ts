/** Whether an application answers: thresholds, back-off, and what is asked. */
import { once } from 'node:events'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, createServer, type Server } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { type Check, checkIn, checkText, type Health, HealthCheck } from '../../../agent/routing/health.ts'
import { freePort, until } from '../../agents.ts'

const soon = (what: string, look: () => boolean) => until(async () => look(), { what, ms: 15_000 })

async function listening(server: Server, port = 0): Promise<number> {
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return (server.address() as AddressInfo).port
}

function watch(port: number, check: Check) {
  const changes: Health[] = []
  const options = { host: '127.0.0.1', port, check, intervalMs: 30, suspectMs: 10 }
  const health = new HealthCheck({ ...options, onChange: (now) => changes.push(now) })
  onTestFinished(() => health[Symbol.dispose]())
  return { health, changes }
}

describe('a health check', () => {
  it('knows an application that comes, goes and comes back', async () => {
    const port = await freePort()
    const { health, changes } = watch(port, { kind: 'tcp' })
    expect(health.health).toBe('unknown')
    await soon('it is ill', () => health.health === 'ill')
    expect(health.why).toMatch(/ECONNREFUSED/)
    const server = createServer((socket) => socket.destroy())
    await listening(server, port)
    await soon('it is well', () => health.health === 'healthy')
    expect(health.why).toBeUndefined()
    server.close()
    await soon('it is ill again', () => health.health === 'ill')
    expect(changes).toEqual(['ill', 'healthy', 'ill'])
  })

  it('asks by HTTP where it is to', async () => {
    let status = 200
    const asked: string[] = []
    const server = createHttpServer((request, response) => {
      asked.push(request.url ?? '')
      response.writeHead(status).end('x'.repeat(100_000))
    })
    const { health } = watch(await listening(server), { kind: 'http', path: '/health?deep=1' })
    await soon('it is well', () => health.health === 'healthy')
    status = 503
    await soon('it is ill', () => health.health === 'ill')
    expect([health.why, asked[0]]).toEqual(['it answers /health?deep=1 with 503', '/health?deep=1'])
  })

  it('is not moved by one failure, and asks at once when somebody could not connect', async () => {
    let isUp = true
    let asked = 0
    const server = createHttpServer((_request, response) => {
      asked++
      response.writeHead(isUp || asked === 3 ? 200 : 500).end()
    })
    const port = await listening(server)
    const changes: Health[] = []
    using health = new HealthCheck({
      host: '127.0.0.1',
      port,
      check: { kind: 'http', path: '/' },
      intervalMs: 60_000,
      suspectMs: 10,
      onChange: (now) => changes.push(now),
    })
    await soon('it is well', () => health.health === 'healthy')
    isUp = false
    health.suspect()
    await soon('it was asked again', () => asked >= 3)
    expect(changes).toEqual(['healthy'])
    await soon('it is ill', () => {
      health.suspect()
      return health.health === 'ill'
    })
  })

  it('takes an application at its word that is not to be asked', async () => {
    const { health, changes } = watch(1, { kind: 'none' })
    health.suspect()
    expect([health.health, changes]).toEqual(['healthy', []])
  })

  it('is written as it is read', () => {
    for (const text of ['tcp', 'none', 'http:/', 'http:/a?b=c']) expect(checkText(checkIn(text) as Check)).toBe(text)
    for (const text of ['', 'udp', 'http', 'http:x', 'http:/ ', `http:/${'a'.repeat(300)}`])
      expect(checkIn(text)).toBeUndefined()
  })
})
