/** A registry upstream, played by an HTTP server: tokens, credentials, blobs that are cut, and being down. Where credentials are found. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type OciDigest, parsePath, type RepositoryPath, type Tag } from '../../../agent/oci/names.ts'
import { authFiles, RegistryAuth } from '../../../agent/oci/registry-auth.ts'
import { parseChallenge, UpstreamRegistry } from '../../../agent/oci/upstream-registry.ts'
import { never, recordingLog } from '../content/peers.ts'

const digest = `sha256:${'ab'.repeat(32)}` as OciDigest
const path = parsePath('team/app') as RepositoryPath
const tag = '1' as Tag
const login = { user: 'me', password: 'se:cret' }
const { log, entries } = recordingLog()

let server: Server
let url: string
let asked: string[]
let answer: (request: IncomingMessage, response: ServerResponse) => void
let now: number
let registry: UpstreamRegistry
let credentials: typeof login | undefined

beforeAll(async () => {
  server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url} ${request.headers.authorization ?? '-'}`)
    answer(request, response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  url = `http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`
})
afterAll(() => void server.close())
beforeEach(() => {
  asked = []
  now = 0
  credentials = login
  registry = new UpstreamRegistry({
    url,
    prefix: 'docker.io',
    auth: { find: async () => credentials },
    log,
    now: () => now,
  })
})

/** As registries do it: a token for everybody, or one for those who log in, and manifests for who has the right one. */
function withTokens({ isPrivate }: { isPrivate: boolean }) {
  return (request: IncomingMessage, response: ServerResponse) => {
    const { authorization = '' } = request.headers
    if (request.url?.startsWith('/token')) {
      const isIn = authorization === `Basic ${Buffer.from('me:se:cret').toString('base64')}`
      response.end(JSON.stringify({ token: isIn ? 'mine' : 'everybodys', expires_in: 60 }))
    } else if (authorization !== (isPrivate ? 'Bearer mine' : 'Bearer everybodys')) {
      const challenge = `Bearer realm="${url}/token",service="test",scope="repository:team/app:pull"`
      response.writeHead(401, { 'www-authenticate': challenge }).end()
    } else
      response
        .writeHead(200, {
          'docker-content-digest': digest,
          'content-type': 'application/x; charset=utf-8',
          'content-length': '2',
        })
        .end('{}')
  }
}

describe('tokens', () => {
  it('are asked for in nobody’s name, and that is enough for what everybody may have', async () => {
    answer = withTokens({ isPrivate: false })
    expect(await registry.head(path, { tag }, never)).toEqual({
      digest,
      mediaType: 'application/x',
      sizeBytes: 2,
      isPrivate: false,
    })
    expect(asked).toEqual([
      'HEAD /v2/team/app/manifests/1 -',
      'GET /token?service=test&scope=repository%3Ateam%2Fapp%3Apull -',
      'HEAD /v2/team/app/manifests/1 Bearer everybodys',
    ])
    await registry.head(path, { tag }, never)
    expect(asked).toHaveLength(4)
    now = 60_000
    await registry.head(path, { tag }, never)
    expect(asked).toHaveLength(7)
  })

  it('are asked for with credentials where nothing else is enough, and it is told that they were', async () => {
    answer = withTokens({ isPrivate: true })
    expect(await registry.manifest(path, { digest }, never)).toMatchObject({ isPrivate: true, sizeBytes: 2 })
    credentials = undefined
    now = 60_000
    await expect(registry.head(path, { tag }, never)).rejects.toMatchObject({
      code: 'not-allowed',
      next: expect.stringContaining('podman login'),
    })
    expect(JSON.stringify(entries)).not.toContain('se:cret')
  })

  it('are not asked for at a place that is not safe', async () => {
    answer = (_request, response) =>
      void response.writeHead(401, { 'www-authenticate': 'Bearer realm="file:///etc/passwd"' }).end()
    await expect(registry.head(path, { tag }, never)).rejects.toMatchObject({ code: 'failed' })
    expect(asked).toHaveLength(1)
  })

  it('come from a challenge, whatever is written there', () => {
    expect(parseChallenge('Bearer realm="https://a/b",service="c, d",scope="e"')).toEqual({
      scheme: 'bearer',
      realm: 'https://a/b',
      service: 'c, d',
      scope: 'e',
    })
    expect(parseChallenge('')).toEqual({ scheme: '' })
    fc.assert(fc.property(fc.string(), (text) => /^[a-z]*$/.test(parseChallenge(text).scheme)))
  })
})

describe('what it says', () => {
  it('is that there is nothing, when there is nothing', async () => {
    answer = (_request, response) => void response.writeHead(404).end('{}')
    expect(await registry.head(path, { tag }, never)).toBeUndefined()
    expect(await registry.tags(path, { n: 1, last: undefined }, never)).toBeUndefined()
  })

  it('is read no further than it may be', async () => {
    answer = (_request, response) => void response.end(Buffer.alloc(5 * 1024 * 1024))
    await expect(registry.manifest(path, { tag }, never)).rejects.toMatchObject({ code: 'corrupt' })
  })

  it('lists what are tags', async () => {
    answer = (_request, response) => void response.end(JSON.stringify({ tags: ['1', '../x', 7, 'b'] }))
    expect(await registry.tags(path, { n: 10, last: 'a' }, never)).toEqual(['1', 'b'])
    expect(asked[0]).toContain('tags/list?n=10&last=a')
  })

  it('of a blob begins where it is wanted, also from a server that knows no ranges', async () => {
    for (const isRanged of [true, false]) {
      answer = (_request, response) => void (isRanged ? response.writeHead(206).end('cd') : response.end('abcd'))
      expect(Buffer.concat(await Array.fromAsync(registry.blob(path, digest, 2, never))).toString()).toBe('cd')
    }
  })

  it('is nothing for a while after it failed several times, and then it is asked again', async () => {
    answer = (_request, response) => void response.writeHead(503).end()
    for (let nth = 0; nth < 3; nth++)
      await expect(registry.head(path, { tag }, never)).rejects.toMatchObject({ code: 'failed' })
    await expect(registry.head(path, { tag }, never)).rejects.toThrow('left alone')
    expect(asked).toHaveLength(3)
    now = 16_000
    answer = withTokens({ isPrivate: false })
    expect(await registry.head(path, { tag }, never)).toMatchObject({ digest })
  })
})

describe('credentials', () => {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-auth-'))
  afterAll(() => rmSync(directory, { recursive: true, force: true }))
  const entry = (text: string) => ({ auth: Buffer.from(text).toString('base64') })
  const write = (name: string, content: unknown) => {
    const file = join(directory, name)
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content))
    return file
  }

  it('are those of the longest name that fits, in the first file that has some', async () => {
    const first = write('first', { auths: { 'a.example': entry('a:1'), 'a.example/team': entry('b:2:3') } })
    const second = write('second', { auths: { 'https://c.example/v1/': entry('c:4') } })
    const auth = new RegistryAuth([join(directory, 'absent'), first, second], log)
    expect(await auth.find(['a.example'], 'team/app')).toEqual({ user: 'b', password: '2:3' })
    expect(await auth.find(['a.example'], 'teams/app')).toEqual({ user: 'a', password: '1' })
    expect(await auth.find(['prefix', 'c.example'], 'x')).toEqual({ user: 'c', password: '4' })
    expect(await auth.find(['d.example'], 'x')).toBeUndefined()
  })

  it('that cannot be read are none, and nothing of them is in the log', async () => {
    for (const content of [
      '{"auths": {"a.example": {"auth": "c2VjcmV0"',
      { auths: { 'a.example': { auth: 7 } } },
      { auths: { 'a.example': entry('nocolon') } },
      [],
    ]) {
      const auth = new RegistryAuth([write('bad', content)], log)
      expect(await auth.find(['a.example'], 'x')).toBeUndefined()
    }
    expect(JSON.stringify(entries)).not.toContain('c2VjcmV0')
  })

  it('are looked for where podman and docker keep them, unless a file is named', () => {
    const env = { HOME: '/home/me', XDG_RUNTIME_DIR: '/run/user/1' }
    expect(authFiles(undefined, env)).toEqual([
      '/run/user/1/containers/auth.json',
      '/home/me/.config/containers/auth.json',
      '/home/me/.docker/config.json',
    ])
    expect(authFiles('/etc/auth.json', env)).toEqual(['/etc/auth.json'])
  })
})
