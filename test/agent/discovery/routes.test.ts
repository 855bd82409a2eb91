/** Discovery over plain HTTP: what Envoy polls, what it polled before that, and what Prometheus reads. */
import fc from 'fast-check'
import { pino } from 'pino'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { readRequest, registerDiscoveryRoutes } from '../../../agent/discovery/routes.ts'
import { RESOURCE_KINDS, TYPE_URLS } from '../../../agent/discovery/xds-schema.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { instance } from '../routing/fake-services.ts'
import { fakeDirectory } from './fake-directory.ts'

const { services, directory } = fakeDirectory()
let server: HttpServer

beforeAll(async () => {
  const log = pino({ level: 'silent' })
  server = await HttpServer.start({ host: '127.0.0.1', port: 0 }, (app) => registerDiscoveryRoutes(app, directory), log)
})
afterAll(() => server[Symbol.asyncDispose]())
beforeEach(() =>
  services.set(
    instance({ zone: 'attic', weight: 300, labels: { canary: 'true', 'tier/x': 'gold' } }),
    instance({ node: 'old', peerId: '12D3KooWold', state: 'ill' }),
    instance({ service: 'db', port: 5_432 }),
  ),
)

async function ask(kind: string, body: unknown): Promise<{ status: number; body: Record<string, unknown> }> {
  const headers = { 'content-type': 'application/json' }
  const reply = await fetch(`${server.url}/v3/discovery:${kind}`, {
    method: 'POST',
    headers,
    body: JSON.stringify(body),
  })
  const text = await reply.text()
  return { status: reply.status, body: text.startsWith('{') ? JSON.parse(text) : { text } }
}
const get = async (path: string) => (await fetch(server.url + path)).json()

describe('xDS over REST', () => {
  it('answers in either style of names, and 304 while nothing changes', async () => {
    const snake = {
      version_info: '',
      node: { id: 'n', cluster: 'c' },
      resource_names: ['web'],
      type_url: TYPE_URLS.endpoints,
    }
    const { status, body } = await ask('endpoints', snake)
    expect(status).toBe(200)
    expect(Object.keys(body).sort()).toEqual(['resources', 'type_url', 'version_info'])
    expect(body.resources).toMatchObject([
      { '@type': TYPE_URLS.endpoints, cluster_name: 'web', endpoints: [{ locality: { zone: 'attic' } }] },
    ])
    const camel = { versionInfo: body.version_info, node: { id: 'n' }, resourceNames: ['web'] }
    expect(await ask('endpoints', camel)).toMatchObject({ status: 304 })
    services.set(instance())
    expect(await ask('endpoints', camel)).toMatchObject({ status: 200 })
  })

  it('gives all of a kind to whoever names none', async () => {
    for (const kind of RESOURCE_KINDS) {
      const { status, body } = await ask(kind, {})
      expect([kind, status]).toEqual([kind, 200])
      expect((body.resources as unknown[]).length).toBeGreaterThan(0)
    }
    expect((await ask('clusters', {})).body.resources).toMatchObject([
      { name: 'db.home.internal' },
      { name: 'web.home.internal' },
    ])
  })

  it('takes as much as Envoy says of itself, and refuses what is no request', async () => {
    const node = {
      id: 'n',
      extensions: Array.from({ length: 2_000 }, (_, nth) => ({
        name: `envoy.filters.http.${nth}`,
        category: 'x'.repeat(40),
      })),
    }
    expect(await ask('clusters', { node })).toMatchObject({ status: 200 })
    expect(await ask('clusters', { resource_names: 'web' })).toMatchObject({ status: 400 })
    expect(await ask('clusters', { type_url: TYPE_URLS.routes })).toMatchObject({ status: 400 })
    expect(await ask('clusters', [])).toMatchObject({ status: 400 })
    expect(await ask('secrets', {})).toMatchObject({ status: 404 })
    fc.assert(
      fc.property(fc.jsonValue(), (body) => {
        const read = readRequest(body, 'clusters')
        if (typeof read !== 'string') expect(read.names.every((name) => typeof name === 'string')).toBe(true)
      }),
    )
  })
})

it('is not for web pages of others', async () => {
  for (const path of ['/v1/http_sd', '/v1/registration/web']) {
    const status = async (site: string) =>
      (await fetch(server.url + path, { headers: { 'sec-fetch-site': site } })).status
    expect([await status('cross-site'), await status('same-site'), await status('none')]).toEqual([403, 403, 200])
  }
})

describe('registration', () => {
  it('is as Envoy’s first discovery service had it', async () => {
    expect(await get('/v1/registration/web')).toEqual({
      hosts: [
        { ip_address: '127.0.0.1', port: 8_080, tags: { az: 'attic', canary: true, load_balancing_weight: 100 } },
      ],
    })
    expect(await get('/v1/registration/nothing')).toEqual({ hosts: [] })
    services.set(instance(), instance({ network: 'work' }))
    expect(await get('/v1/registration/web'), 'of which network?').toEqual({ hosts: [] })
    expect(await get('/v1/registration/web.work.internal')).toMatchObject({ hosts: [{ port: 8_080 }] })
  })
})

describe('http_sd', () => {
  it('is a list of targets with labels, of all or of one service', async () => {
    const [db, web] = (await get('/v1/http_sd')) as { targets: string[]; labels: Record<string, string> }[]
    expect(db?.targets).toEqual(['127.0.0.1:5432'])
    expect(web).toEqual({
      targets: ['127.0.0.1:8080'],
      labels: {
        __meta_undernet_name: 'web.home.internal',
        __meta_undernet_network: 'home',
        __meta_undernet_service: 'web',
        __meta_undernet_node: 'nas',
        __meta_undernet_zone: 'attic',
        __meta_undernet_label_canary: 'true',
        __meta_undernet_label_tier_x: 'gold',
      },
    })
    expect(await get('/v1/http_sd?service=db.home.internal')).toHaveLength(1)
    expect(await get('/v1/http_sd?service=db&service=web')).toEqual([])
  })
})
