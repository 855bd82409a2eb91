/**
 * xDS over gRPC with two clients that are not ours, gRPC for Node and for C (Debian's python3-grpcio): they follow a service that moves between
 * nodes, and an ill endpoint never reaches them.
 */
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { registerDiscoveryRoutes } from '../../../agent/discovery/routes.ts'
import { XdsServer } from '../../../agent/discovery/xds-server.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { fairClock, until } from '../../agents.ts'
import { hasGrpcio, nodeClient, pythonClient, useXds, whoServer } from '../../grpc-clients.ts'
import { instance } from '../routing/fake-services.ts'
import { fakeDirectory } from './fake-directory.ts'

const log = pino({ level: 'silent' })
const { services, directory } = fakeDirectory()
const stack = new AsyncDisposableStack()
const ports: Record<string, number> = {}

const on = (node: string, state: 'healthy' | 'ill' | 'draining' = 'healthy') =>
  instance({ node, peerId: `12D3KooW${node}`, port: ports[node] ?? 0, state, zone: 'attic' })

beforeAll(async () => {
  for (const name of ['apple', 'pear']) ports[name] = await whoServer(name, stack)
  let xds: XdsServer | undefined
  const http = stack.use(
    await HttpServer.start(
      { host: '127.0.0.1', port: 0 },
      (app) => registerDiscoveryRoutes(app, directory),
      log,
      (socket) => xds?.accept(socket),
    ),
  )
  xds = stack.use(new XdsServer(directory, log))
  useXds(http.url.replace('http://', ''))
})
afterAll(() => stack.disposeAsync())

describe.each([
  ['gRPC for Node', nodeClient, true],
  ['gRPC for C', pythonClient, await hasGrpcio()],
])('%s', (_, start, isHere) => {
  it.skipIf(!isHere)('follows a service that moves, and never reaches an ill endpoint', async () => {
    services.set(on('apple'), on('pear', 'ill'))
    const ask = start('web.home.internal', stack)
    expect(await ask()).toBe('apple')
    for (const [now, before] of [
      ['pear', 'apple'],
      ['apple', 'pear'],
    ] as const) {
      services.set(on(now), on(before, 'ill'))
      // Within a second, on a machine that one has for oneself.
      const clock = fairClock(() => 0)
      await until(async () => (await ask()) === now, { what: `${now} answers`, everyMs: 10, ms: 1_000, clock })
      for (let nth = 0; nth < 20; nth += 1) expect(await ask()).toBe(now)
    }
    services.set(on('apple'), on('pear'))
    const seen = new Set<string>()
    await until(async () => seen.add(await ask()).size === 2, { what: 'both answer', everyMs: 10 })
    services.set(on('apple', 'draining'), on('pear', 'ill'))
    await until(async () => (await ask()).startsWith('failed UNAVAILABLE'), { what: 'nobody answers', everyMs: 10 })
    services.set()
    await until(async () => (await ask()).startsWith('failed UNAVAILABLE'), { what: 'still nobody', everyMs: 10 })
    services.set(on('pear'))
    await until(async () => (await ask()) === 'pear', { what: 'it is back', everyMs: 50, ms: 30_000 })
  })
})
