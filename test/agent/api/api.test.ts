/** The local API through its own client, and past it: what the socket promises, and what it refuses. */
import { existsSync, mkdtempSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer as createHttpServer, request } from 'node:http'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { pino } from 'pino'
import { describe, expect, it, vi } from 'vitest'
import type { FetchEvent, Status } from '../../../agent/api/contract.ts'
import { openApi } from '../../../agent/api/openapi.ts'
import { routes } from '../../../agent/api/routes.ts'
import * as schemas from '../../../agent/api/schemas.ts'
import { ApiServer } from '../../../agent/api/server.ts'
import { AgentError } from '../../../agent/error.ts'
import { clientOf, collect, failure, never } from './asking.ts'
import { artifact, blobOf, digestOf, fakeAgent, notFound, serve, status } from './fake-agent.ts'

/** A request as any program may make it. */
function raw(socket: string, method: string, path: string, headers: Record<string, string> = {}, body?: string) {
  return new Promise<{ status: number; text: string }>((resolve, reject) => {
    const asked = request({ socketPath: socket, method, path, headers, agent: false }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => {
        text += chunk
      })
      response.once('end', () => resolve({ status: response.statusCode ?? 0, text }))
      response.once('error', reject)
    })
    asked.once('error', reject)
    asked.end(body)
  })
}

describe('the API', () => {
  it('answers every endpoint as its schema says', async () => {
    const bytes = Buffer.from('hello')
    await using agent = await serve({ blob: async () => blobOf(bytes) })
    const bodies: Record<string, object> = {
      'POST /v1/ping': { peer: 'pear' },
      'POST /v1/publish': { storePath: '/nix/store/x', network: 'home' },
      'POST /v1/unpublish': { ref: 'hello' },
      'POST /v1/fetch': { ref: 'hello' },
      'POST /v1/pins': { ref: 'hello' },
      'POST /v1/gc': { dryRun: true },
      'POST /v1/trust': { key: 'a:b' },
      'POST /v1/networks': { name: 'home', as: 'apple' },
      'POST /v1/networks/:network/root/export': { passphrase: 'correct horse' },
      'POST /v1/networks/:network/root/import': { passphrase: 'correct horse', armored: 'age' },
      'POST /v1/networks/restore': { passphrase: 'correct horse', armored: 'age', as: 'apple' },
      'POST /v1/networks/:network/root/remove': {},
      'PUT /v1/networks/:network/share': { share: 'store' },
      'POST /v1/networks/:network/delegate': { member: 'pear', may: ['issue'], labels: { zone: ['*'] }, days: 90 },
      'POST /v1/invitations': { labels: { zone: 'a' }, uses: 1, expiresSeconds: 86_400 },
      'POST /v1/join': { token: 'un1token' },
      'POST /v1/members/:member/revoke': { reason: 'stolen', issuer: true, issuedAfter: '2026-01-01T00:00:00Z' },
      'POST /v1/members/:member/labels': { labels: { zone: 'a', old: null } },
      'POST /v1/services': { name: 'web', port: 8080 },
      'POST /v1/services/drain': { name: 'web' },
      'POST /v1/trace': { name: 'web' },
      'POST /v1/forward': { name: 'web' },
      'PUT /v1/policy': { text: '', replaces: 1 },
      'POST /v1/backup': { passphrase: 'correct horse' },
      'POST /v1/policy/check': { text: '' },
      'POST /v1/policy/explain': { from: 'pear', to: 'apple', verb: 'content:fetch' },
    }
    const queries: Record<string, string> = {
      'POST /v1/upload': '?type=file&name=x',
      'DELETE /v1/trust': '?key=a',
      'DELETE /v1/networks/:network': '?force=true',
    }
    const values: Record<string, string> = { digest: digestOf(bytes), id: '0123abcd', name: 'web', program: 'podman' }
    for (const route of routes) {
      const noun = `${route.method} ${route.path}`
      const path = route.path.replace(/:([a-z]+)/, (_, name: string) => values[name] ?? 'hello') + (queries[noun] ?? '')
      const type = route.takes === 'json' ? 'application/json' : 'application/octet-stream'
      const body = route.takes === 'json' ? JSON.stringify(bodies[noun]) : route.takes === 'query' ? undefined : 'bytes'
      const headers: Record<string, string> = body === undefined ? {} : { 'content-type': type }
      const { status: code, text } = await raw(agent.socket, route.method, path, headers, body)
      expect([noun, code, text]).toEqual([noun, 200, text])
      if (route.answers === 'bytes') expect(text).toBe('hello')
      else if (route.answers === 'lines')
        for (const line of text.trim().split('\n'))
          expect(route.reply.parse(JSON.parse(line))).toEqual(JSON.parse(line))
      else route.reply.parse(JSON.parse(text))
    }
  })

  it('describes itself by an OpenAPI document that names every endpoint', async () => {
    await using agent = await serve()
    const { text } = await raw(agent.socket, 'GET', '/v1/openapi.json')
    const document = JSON.parse(text)
    expect(document).toEqual(JSON.parse(JSON.stringify(openApi())))
    const described = Object.entries(document.paths as Record<string, object>).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    )
    expect(described.sort()).toEqual(
      routes.map(({ method, path }) => `${method} ${path.replace(/:(\w+)/, '{$1}')}`).sort(),
    )
    const ids = Object.values(document.paths as Record<string, Record<string, { operationId: string }>>).flatMap(
      (methods) => Object.values(methods).map(({ operationId }) => operationId),
    )
    expect(new Set(ids).size).toBe(routes.length)
    const delegate = document.paths['/v1/networks/{network}/delegate'].post
    expect(delegate.parameters).toMatchObject([{ name: 'network', in: 'path' }])
    expect(delegate.requestBody.content['application/json'].schema.required).toEqual(['member', 'may', 'days'])
    expect(document.paths['/v1/artifacts/{ref}'].get.parameters).toMatchObject([
      { name: 'ref', in: 'path', required: true },
      { name: 'network', in: 'query', required: false },
    ])
    expect(document.paths['/v1/search'].get.parameters).toMatchObject([
      { name: 'q', required: false },
      { name: 'limit' },
      { name: 'network' },
    ])
    expect(document.paths['/v1/publish'].post.requestBody.content['application/json'].schema.required).toEqual([
      'storePath',
    ])
  })

  it('hands errors over with code, message and next step, and a fitting HTTP status', async () => {
    await using agent = await serve({
      artifact: () => {
        throw notFound
      },
    })
    const error = await failure(clientOf(agent.socket).get('artifacts/nope'))
    expect(error).toMatchObject({ code: 'not-found', message: notFound.message, next: notFound.next })
    expect((await raw(agent.socket, 'GET', '/v1/artifacts/nope')).status).toBe(404)
  })

  it('says what is wrong with a request', async () => {
    await using agent = await serve()
    const json = { 'content-type': 'application/json' }
    const cases: [string, string, string | undefined, RegExp][] = [
      ['POST', '/v1/ping', '{"peer":""}', /peer: /],
      ['POST', '/v1/ping', '{', /JSON/],
      ['POST', '/v1/ping', 'null', /peer/],
      ['POST', '/v1/ping', '[1]', /peer/],
      ['POST', '/v1/ping', undefined, /./],
      ['GET', '/v1/search?limit=100000', undefined, /limit: /],
      ['GET', '/v1/blobs/nothex', undefined, /digest: /],
      ['GET', '/v1/artifacts/%E0%A4%A', undefined, /./],
      ['POST', '/v1/networks', '{"name":"My Network"}', /name: must be a name/],
      ['DELETE', '/v1/networks/home?force=maybe', undefined, /force: /],
      ['POST', '/v1/networks/home/root/export', '{"passphrase":"short"}', /passphrase: must have at least 8/],
      ['POST', '/v1/invitations', '{"labels":{"Zone":"a"},"uses":1,"expiresSeconds":60}', /labels\.Zone: /],
      ['POST', '/v1/invitations', '{"labels":{},"uses":1,"expiresSeconds":5}', /expiresSeconds: /],
      ['POST', '/v1/invitations', '{"labels":{},"uses":1,"expiresSeconds":60,"name":"a*b*"}', /name: .*one \*/],
      ['POST', '/v1/join', `{"token":"${'x'.repeat(9_000)}"}`, /token: /],
      ['POST', '/v1/members/pear/revoke', '{"issuedAfter":"2026-01-01T00:00:00Z"}', /issuedAfter goes with issuer/],
      ['POST', '/v1/members/pear/revoke', '{"reason":"a\u202eb"}', /reason: not printable/],
      ['POST', '/v1/members/pear/labels', '{"labels":{"zone":"a b"}}', /labels\.zone: /],
      ['DELETE', '/v1/invitations/XYZ', undefined, /id: /],
      ['GET', '/v1/audit?limit=99999', undefined, /limit: /],
      ['GET', '/v2/status', undefined, /has no GET/],
      ['POST', '/v1/upload?type=file&name=x', '{}', /octet-stream/],
    ]
    for (const [method, path, body, message] of cases) {
      const { status: code, text } = await raw(agent.socket, method, path, body === undefined ? {} : json, body)
      expect([path, code]).toEqual([path, 400])
      expect(schemas.errorBody.parse(JSON.parse(text)).error.message).toMatch(message)
    }
  })

  it('bounds what it reads: bodies, headers', async () => {
    await using agent = await serve()
    const json = { 'content-type': 'application/json' }
    const large = await raw(agent.socket, 'POST', '/v1/ping', json, JSON.stringify({ peer: 'x'.repeat(100_000) }))
    expect(JSON.parse(large.text).error.code).toBe('usage')
    const headers = await raw(agent.socket, 'GET', '/v1/status', { 'x-large': 'x'.repeat(60_000) }).catch(
      () => undefined,
    )
    expect(headers?.status ?? 431).toBe(431)
  })

  it('logs a fault of its own with its stack, and stays up', async () => {
    const log = { debug: vi.fn(), info: vi.fn(), warn: vi.fn(), error: vi.fn() }
    const directory = mkdtempSync(join(tmpdir(), 'undernet-api-'))
    const socket = join(directory, 's')
    const api = fakeAgent({
      peers: () => {
        throw new TypeError('a bug')
      },
    })
    await using _server = await ApiServer.start({ socket, mode: 0o600, api, log })
    expect(await failure(clientOf(socket).get('peers'))).toMatchObject({ code: 'failed', message: 'a bug' })
    expect(log.error).toHaveBeenCalledOnce()
    expect(await clientOf(socket).get<Status>('status')).toEqual(status)
    rmSync(directory, { recursive: true })
  })
})

describe('streams', () => {
  it('takes an upload far larger than a JSON body may be, and gives blobs back', async () => {
    const bytes = Buffer.alloc(3_000_000, 'undernet')
    await using agent = await serve({ blob: async () => blobOf(bytes) })
    const client = clientOf(agent.socket)
    async function* parts() {
      for (let at = 0; at < bytes.byteLength; at += 100_000) yield bytes.subarray(at, at + 100_000)
    }
    const { artifact: made } = await client.upload<{ artifact: typeof artifact }>(
      'upload',
      { type: 'folder', name: 'x' },
      parts(),
      never,
    )
    expect(made.sizeBytes).toBe(bytes.byteLength)
    const got = Buffer.concat(await collect(client.download(`blobs/${digestOf(bytes)}`, never)))
    expect(digestOf(got)).toBe(digestOf(bytes))
  })

  it('hears why an upload is refused while it is still sending', async () => {
    const refusal = new AgentError('limit', 'the quota is used up', { next: 'Raise it.' })
    await using agent = await serve({
      publishUpload: async (_request, bytes) => {
        for await (const _ of bytes) throw refusal
        throw new Error('no bytes came')
      },
    })
    let isClosed = false
    async function* endless() {
      try {
        for (;;) {
          yield Buffer.alloc(100_000)
          await turn()
        }
      } finally {
        isClosed = true
      }
    }
    const error = await failure(clientOf(agent.socket).upload('upload', { type: 'file', name: 'x' }, endless(), never))
    expect(error).toMatchObject({ code: 'limit', message: refusal.message, next: refusal.next })
    await vi.waitUntil(() => isClosed)
  })

  it('tells the agent when an upload breaks off, with the reason to the one who sends', async () => {
    const begun = Promise.withResolvers<void>()
    const ended = Promise.withResolvers<unknown>()
    await using agent = await serve({
      publishUpload: async (_request, bytes) => {
        try {
          for await (const _ of bytes) begun.resolve()
        } catch (error) {
          ended.resolve(error)
          throw error
        }
        throw new Error('it seemed complete')
      },
    })
    async function* broken() {
      yield Buffer.alloc(10)
      await begun.promise
      throw new AgentError('corrupt', 'the file changed')
    }
    const error = await failure(clientOf(agent.socket).upload('upload', { type: 'file', name: 'x' }, broken(), never))
    expect(error.message).toBe('the file changed')
    expect(await ended.promise).toBeInstanceOf(Error)
  })

  it('sends progress, not more often than people see, and then the result', async () => {
    await using agent = await serve({
      fetch: async (_ref, onProgress) => {
        for (let done = 0; done <= 10_000; done++) onProgress(done, 10_000)
        return { artifact, parts: [] }
      },
    })
    const events = await collect(clientOf(agent.socket).events('fetch', { ref: 'hello' }, never))
    expect(events.length).toBeLessThan(10)
    expect(events.at(-2)).toEqual({ type: 'progress', doneBytes: 10_000, totalBytes: 10_000 })
    expect(events.at(-1)).toEqual({ type: 'done', result: { artifact, parts: [] } })
  })

  it('throws what went wrong, before the first event and after it', async () => {
    await using agent = await serve({
      fetch: async (ref, onProgress) => {
        if (ref === 'later') onProgress(1, 2)
        throw notFound
      },
    })
    const client = clientOf(agent.socket)
    for (const ref of ['at once', 'later'])
      expect(await failure(collect(client.events('fetch', { ref }, never)))).toMatchObject({
        code: 'not-found',
        next: notFound.next,
      })
    expect(
      (await raw(agent.socket, 'POST', '/v1/fetch', { 'content-type': 'application/json' }, '{"ref":"x"}')).status,
    ).toBe(404)
  })

  it('does not take a stream that was cut for a result', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-api-'))
    const socket = join(directory, 's')
    const cutter = createHttpServer((_request, response) => {
      response.write(`${JSON.stringify({ type: 'progress', doneBytes: 1, totalBytes: 2 } satisfies FetchEvent)}\n`)
      setImmediate(() => response.destroy())
    })
    await new Promise<void>((resolve) => cutter.listen(socket, resolve))
    expect(await failure(collect(clientOf(socket).events('fetch', { ref: 'x' }, never)))).toMatchObject({
      code: 'failed',
    })
    cutter.close()
    rmSync(directory, { recursive: true })
  })

  it('aborts the work of a client that hangs up', async () => {
    const began = Promise.withResolvers<void>()
    const aborted = Promise.withResolvers<unknown>()
    await using agent = await serve({
      fetch: (_ref, _onProgress, signal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            aborted.resolve(signal.reason)
            reject(signal.reason)
          })
          began.resolve()
        }),
    })
    const hangUp = new AbortController()
    const events = collect(clientOf(agent.socket).events('fetch', { ref: 'x' }, hangUp.signal))
    await began.promise
    hangUp.abort(new Error('Ctrl-C'))
    await expect(events).rejects.toThrow('Ctrl-C')
    expect(await aborted.promise).toMatchObject({ code: 'cancelled' })
  })

  it('closes a blob that its reader left half-way', async () => {
    const closed = Promise.withResolvers<void>()
    await using agent = await serve({
      blob: async () => ({
        sizeBytes: 1e9,
        async *read(_offset, _length, signal) {
          while (!signal.aborted) {
            yield Buffer.alloc(65_536)
            await turn()
          }
        },
        close: () => closed.resolve(),
      }),
    })
    for await (const _ of clientOf(agent.socket).download(`blobs/${'0'.repeat(64)}`, never)) break
    await closed.promise
  })
})

describe('the socket', () => {
  it('is open to its owner only, and gone when the agent is', async () => {
    const agent = await serve()
    expect(statSync(agent.socket).mode & 0o777).toBe(0o600)
    await agent.server[Symbol.asyncDispose]()
    expect(existsSync(agent.socket)).toBe(false)
    expect(await failure(clientOf(agent.socket).get('status'))).toMatchObject({ code: 'not-running' })
    rmSync(agent.directory, { recursive: true })
  })

  it('is not taken from an agent that answers', async () => {
    await using first = await serve()
    const start = ApiServer.start({
      socket: first.socket,
      mode: 0o600,
      api: fakeAgent(),
      log: pino({ level: 'silent' }),
    })
    expect(await failure(start)).toMatchObject({ code: 'taken' })
    expect(await clientOf(first.socket).get<Status>('status')).toEqual(status)
  })

  it('replaces one that a killed agent left', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-api-'))
    const socket = join(directory, 's')
    await leaveStale(socket)
    expect(await failure(clientOf(socket).get('status'))).toMatchObject({ code: 'not-running' })
    await using server = await ApiServer.start({
      socket,
      mode: 0o660,
      api: fakeAgent(),
      log: pino({ level: 'silent' }),
    })
    expect(server).toBeDefined()
    expect(statSync(socket).mode & 0o777).toBe(0o660)
    expect(await clientOf(socket).get<Status>('status')).toEqual(status)
    rmSync(directory, { recursive: true })
  })

  it('leaves a file alone that is no socket, and refuses a path too long for one', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-api-'))
    const socket = join(directory, 's')
    writeFileSync(socket, 'precious')
    const options = { mode: 0o600, api: fakeAgent(), log: pino({ level: 'silent' }) }
    expect(await failure(ApiServer.start({ socket, ...options }))).toMatchObject({ code: 'taken' })
    expect(statSync(socket).size).toBe(8)
    expect(await failure(ApiServer.start({ socket: join(directory, 'x'.repeat(120)), ...options }))).toMatchObject({
      code: 'usage',
    })
    rmSync(directory, { recursive: true })
  })

  it('is looked for in several places', async () => {
    await using agent = await serve()
    expect(await clientOf('/nowhere/agent.sock', agent.socket).get<Status>('status')).toEqual(status)
    const error = await failure(clientOf('/nowhere/a.sock', '/nowhere/b.sock').get('status'))
    expect(error.message).toMatch(/a\.sock, \/nowhere\/b\.sock/)
  })

  it('lets answers that are under way end before it is gone', async () => {
    const began = Promise.withResolvers<void>()
    const ended: string[] = []
    const agent = await serve({
      fetch: async (_ref, _onProgress, signal) => {
        began.resolve()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        for (let n = 0; n < 20; n++) await turn()
        ended.push('fetch')
        throw signal.reason
      },
    })
    const asked = failure(collect(clientOf(agent.socket).events('fetch', { ref: 'x' }, never)))
    await began.promise
    await agent.server[Symbol.asyncDispose]()
    ended.push('server')
    expect(ended).toEqual(['fetch', 'server'])
    expect((await asked).message).toMatch(/agent is stopping/)
    rmSync(agent.directory, { recursive: true })
  })

  it('stops within seconds while a client neither reads nor goes', async () => {
    const agent = await serve({
      fetch: () => new Promise(() => undefined),
    })
    const client = connect(agent.socket)
    await new Promise((resolve) => client.once('connect', resolve))
    client.on('error', () => undefined)
    client.write(
      'POST /v1/fetch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ref":"x"}',
    )
    await turn()
    const startedAt = performance.now()
    await agent.server[Symbol.asyncDispose]()
    expect(performance.now() - startedAt).toBeLessThan(3_000)
    client.destroy()
    rmSync(agent.directory, { recursive: true })
  })
})

/** As kill -9 leaves it: the file is there, and nobody listens. */
async function leaveStale(path: string): Promise<void> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(`${path}.bound`, resolve))
  renameSync(`${path}.bound`, path)
  await new Promise((resolve) => server.close(resolve))
}
