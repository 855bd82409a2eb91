/**
 * xDS over gRPC with two clients that are not ours, gRPC for Node and for C (Debian's python3-grpcio): they follow a service that moves between
 * nodes, and an ill endpoint never reaches them.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import * as grpc from '@grpc/grpc-js'
import { register } from '@grpc/grpc-js-xds'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { registerDiscoveryRoutes } from '../../../agent/discovery/routes.ts'
import { XdsServer } from '../../../agent/discovery/xds-server.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { fairClock, run, until } from '../../agents.ts'
import { instance } from '../routing/fake-services.ts'
import { fakeDirectory } from './fake-directory.ts'

const PYTHON = '/usr/bin/python3'
const hasGrpcio = existsSync(PYTHON) && (await run(PYTHON, ['-c', 'import grpc'])).code === 0
if (!hasGrpcio) console.warn('SKIPPED: the client in Python needs Debian’s python3-grpcio')
const log = pino({ level: 'silent' })
const METHOD = '/test.Who/Ask'
const bytes = { serialize: (text: string) => Buffer.from(text), deserialize: (raw: Buffer) => raw.toString() }

/** Asks `xds:///web.home.internal` once for each line that it reads, and says who answered. */
const CLIENT = `
import sys, grpc
channel = grpc.insecure_channel('xds:///web.home.internal')
ask = channel.unary_unary('${METHOD}', request_serializer=lambda t: t.encode(), response_deserializer=lambda b: b.decode())
for line in sys.stdin:
    try: print(ask('who', timeout=5), flush=True)
    except grpc.RpcError as error: print('failed', error.code().name, flush=True)
`

const { services, directory } = fakeDirectory()
const stack = new AsyncDisposableStack()
const ports: Record<string, number> = {}
let url = ''

/** An application that says its name. */
async function backend(name: string): Promise<void> {
  const server = new grpc.Server()
  const { serialize, deserialize } = bytes
  const method = { path: METHOD, requestStream: false, responseStream: false } as const
  const codecs = {
    requestSerialize: serialize,
    requestDeserialize: deserialize,
    responseSerialize: serialize,
    responseDeserialize: deserialize,
  }
  server.addService(
    { Ask: { ...method, ...codecs } },
    { Ask: (_call: unknown, done: grpc.sendUnaryData<string>) => done(null, name) },
  )
  ports[name] = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) =>
      error === null ? resolve(port) : reject(error),
    )
  })
  stack.defer(() => server.forceShutdown())
}

const on = (node: string, state: 'healthy' | 'ill' | 'draining' = 'healthy') =>
  instance({ node, peerId: `12D3KooW${node}`, port: ports[node] ?? 0, state, zone: 'attic' })

beforeAll(async () => {
  for (const name of ['apple', 'pear']) await backend(name)
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
  url = http.url.replace('http://', '')
  process.env.GRPC_XDS_BOOTSTRAP_CONFIG = JSON.stringify({
    xds_servers: [{ server_uri: url, channel_creds: [{ type: 'insecure' }], server_features: ['xds_v3'] }],
    node: { id: 'test', cluster: 'test', locality: { zone: 'attic' } },
  })
})
afterAll(() => stack.disposeAsync())

function nodeClient(): () => Promise<string> {
  register()
  const client = new grpc.Client('xds:///web.home.internal', grpc.credentials.createInsecure())
  stack.defer(() => client.close())
  return () =>
    new Promise((resolve) => {
      const { serialize, deserialize } = bytes
      client.makeUnaryRequest(METHOD, serialize, deserialize, 'who', { deadline: Date.now() + 5_000 }, (error, who) =>
        resolve(error === null ? (who ?? '') : `failed ${grpc.status[error.code]}`),
      )
    })
}

function pythonClient(): () => Promise<string> {
  const child: ChildProcess = spawn(PYTHON, ['-c', CLIENT], { stdio: ['pipe', 'pipe', 'inherit'] })
  stack.defer(() => void child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout as NonNullable<typeof child.stdout> })
  return async () => {
    const line = once(lines, 'line') as Promise<[string]>
    child.stdin?.write('\n')
    return (await line)[0]
  }
}

describe.each([
  ['gRPC for Node', nodeClient, true],
  ['gRPC for C', pythonClient, hasGrpcio],
])('%s', (_, start, isHere) => {
  it.skipIf(!isHere)('follows a service that moves, and never reaches an ill endpoint', async () => {
    services.set(on('apple'), on('pear', 'ill'))
    const ask = start()
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
