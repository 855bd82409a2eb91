/** What a careless or hostile client of this machine may send: it is refused with the specification's codes, and costs little. */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { OciError } from '../../../agent/oci/errors.ts'
import { MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST, readManifest } from '../../../agent/oci/manifests.ts'
import { until } from '../../agents.ts'
import { digestOf, type Json, named, Registry } from './registry.ts'

const MIB = 1024 * 1024
const NONE = `sha256:${'0'.repeat(64)}`
let registry: Registry
beforeAll(async () => {
  registry = await Registry.start({ quotaBytes: 32 * MIB })
})
afterAll(() => registry[Symbol.asyncDispose]())

const put = (name: string, body: Uint8Array | readonly Uint8Array[], type = OCI_MANIFEST) =>
  registry.fault('PUT', `${name}/manifests/v1`, { body, headers: { 'content-type': type } })

describe('manifests', () => {
  it('of 100 MB are refused at once, and those of an unknown length at 4 MiB', async () => {
    const before = process.memoryUsage().rss
    const headers = { 'content-type': OCI_MANIFEST, 'content-length': 100_000_000 }
    const answer = await new Promise<string>((resolve, reject) => {
      const { hostname, port } = new URL(registry.url)
      const socket = connect(Number(port), hostname, () => {
        const lines = Object.entries(headers).map(([key, value]) => `${key}: ${value}\r\n`)
        socket.write(`PUT /v2/home/hostile/a/manifests/v1 HTTP/1.1\r\nhost: 127.0.0.1\r\n${lines.join('')}\r\n{`)
      })
      socket.once('data', (bytes) => {
        socket.destroy()
        resolve(bytes.toString())
      })
      socket.once('error', reject)
    })
    expect(answer).toMatch(/^HTTP\/1.1 413 .*MANIFEST_INVALID/s)
    const mebibytes = Array.from({ length: 6 }, () => Buffer.alloc(MIB, ' '))
    expect(await put('home/hostile/a', mebibytes)).toEqual([413, 'MANIFEST_INVALID'])
    expect(process.memoryUsage().rss - before).toBeLessThan(100 * MIB)
  })

  it('may have 4 MiB', async () => {
    const fields = { annotations: { large: 'x'.repeat(MANIFEST_BYTES_MAX - 800) } }
    const { bytes } = await registry.pushImage('home/hostile/b', 'large', fields)
    expect(bytes.byteLength).toBeGreaterThan(MANIFEST_BYTES_MAX - 1_000)
    expect((await registry.ask('GET', 'home/hostile/b/manifests/large')).body.equals(bytes)).toBe(true)
  })

  it('are nested no deeper than somebody could mean', async () => {
    let inner = (await registry.pushImage('home/hostile/c', undefined)).descriptor
    for (let depth = 1; depth <= 4; depth++)
      inner = (await registry.putIndex('home/hostile/c', undefined, [inner])).descriptor
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [inner] }))
    expect(await put('home/hostile/c', index, OCI_INDEX)).toEqual([400, 'MANIFEST_INVALID'])
    const many = Array.from({ length: 5_000 }, () => inner)
    const wide = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: many }))
    expect(await put('home/hostile/c', wide, OCI_INDEX)).toEqual([400, 'MANIFEST_INVALID'])
  })

  const config = { mediaType: 'application/vnd.oci.empty.v1+json', digest: NONE, size: 2 }
  const sound: Json = { schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [config] }
  const text = (value: unknown) => Buffer.from(JSON.stringify(value))
  it.each<[string, Uint8Array, string?]>([
    ['nothing', Buffer.alloc(0)],
    ['no JSON', Buffer.from('manifest')],
    ['no UTF-8', Buffer.from([0x22, 0xff, 0x22])],
    ['a list', text([sound])],
    ['null', text(null)],
    ['brackets', Buffer.from('['.repeat(1_000_000))],
    ['schema 1', text({ ...sound, schemaVersion: 1 })],
    ['an image that is an index as well', text({ ...sound, manifests: [] })],
    ['an index with layers', text({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [], layers: [] }), OCI_INDEX],
    ['another type than it says', text(sound), OCI_INDEX],
    ['a type of nobody', text({ ...sound, mediaType: 'text/html' }), 'text/html'],
    ['a digest with a path', text({ ...sound, config: { ...config, digest: 'sha256:../../etc/passwd' } })],
    ['a size below nothing', text({ ...sound, layers: [{ ...config, size: -1 }] })],
    ['a size that is none', text({ ...sound, layers: [{ ...config, size: 1e300 }] })],
    ['a media type with a line break', text({ ...sound, artifactType: 'a/b\r\nx: y' })],
    ['annotations that are no texts', text({ ...sound, annotations: { a: { b: 1 } } })],
    ['a subject that is none', text({ ...sound, subject: 'latest' })],
  ])('are refused when they are %s', async (_what, body, type = OCI_MANIFEST) => {
    expect(await put('home/hostile/d', body, type)).toEqual([400, 'MANIFEST_INVALID'])
  })

  it('are read or refused, whatever is in them', () => {
    const value = fc.oneof(fc.jsonValue(), fc.constantFrom<unknown>(config, [config], NONE, 2, OCI_INDEX, OCI_MANIFEST))
    const keys = fc.constantFrom(
      'schemaVersion',
      'mediaType',
      'config',
      'layers',
      'manifests',
      'subject',
      'artifactType',
      'annotations',
      '__proto__',
    )
    const odd = fc
      .array(fc.tuple(keys, value), { maxLength: 4 })
      .map((fields) => ({ ...sound, ...Object.fromEntries(fields) }))
    fc.assert(
      fc.property(
        fc.oneof(odd, fc.jsonValue()),
        fc.constantFrom(undefined, OCI_MANIFEST, OCI_INDEX),
        (manifest, type) => {
          try {
            const read = readManifest(text(manifest), type)
            for (const { digest } of [...read.blobs, ...read.manifests]) expect(digest).toBe(NONE)
          } catch (error) {
            expect(error).toBeInstanceOf(OciError)
          }
        },
      ),
      { numRuns: 500 },
    )
  })
})

describe('names', () => {
  it.each([
    'home/../../etc',
    'home/a/../b',
    '..',
    'home//a',
    'home/A',
    'home/%2e%2e/a',
    'home/a%2fb',
    'home/a%00',
    'home/a\\b',
    `home/${'a'.repeat(300)}`,
  ])('like %j lead nowhere', async (name) => {
    for (const [method, path] of [
      ['GET', `${name}/manifests/v1`],
      ['PUT', `${name}/manifests/v1`],
      ['POST', `${name}/blobs/uploads/`],
      ['GET', `${name}/tags/list`],
      ['GET', `${name}/referrers/${NONE}`],
    ] as const)
      expect([method, path, await registry.fault(method, path)]).toEqual([method, path, [400, 'NAME_INVALID']])
  })
})

it('answers a path that is no URL in plain words', async () => {
  const { status, headers } = await registry.ask('GET', 'home/%/manifests/v1')
  expect([status, headers['content-type']]).toEqual([400, 'text/plain'])
})

describe('uploads', () => {
  it('left open by the thousand harm nobody', async () => {
    const begun = await registry.ask('POST', 'home/hostile/e/blobs/uploads/')
    await registry.ask('PATCH', String(begun.headers.location), { body: Buffer.from('some') })
    for (let at = 0; at < 9_500; at++) registry.uploads.begin(named('home/hostile/e'), 'sha256')
    for (let round = 0; round < 5; round++)
      await Promise.all(Array.from({ length: 100 }, () => registry.ask('POST', 'home/hostile/e/blobs/uploads/')))
    expect(registry.uploads.stats).toEqual({ open: 1_000, bytes: 4 })
    // Those with bytes stay while there are empty ones, and others can push.
    expect((await registry.ask('GET', String(begun.headers.location))).headers.range).toBe('0-3')
    await registry.pushImage('home/hostile/e', 'v1')
    expect((await registry.ask('DELETE', String(begun.headers.location))).status).toBe(204)
  })

  it('of bytes that are others are thrown away, with their room', async () => {
    const { bytes: before } = registry.blobs.stats
    const excess = registry.blobs.excessBytes
    for (let at = 0; at < 10; at++)
      expect(
        await registry.fault('POST', `home/hostile/f/blobs/uploads/?digest=${NONE}`, { body: randomBytes(MIB) }),
      ).toEqual([400, 'DIGEST_INVALID'])
    expect(registry.blobs.stats.bytes).toBe(before)
    expect(registry.blobs.excessBytes).toBe(excess)
  })

  it('of more than there is room for end with a clear word, and leave the room', async () => {
    const excess = registry.blobs.excessBytes
    const { status, body } = await registry.ask('POST', `home/hostile/f/blobs/uploads/?digest=${NONE}`, {
      body: Buffer.alloc(40 * MIB),
    })
    expect([status, body.toString()]).toEqual([
      507,
      expect.stringMatching(/DENIED.*no room for .* the quota is 32\.0 MiB/),
    ])
    expect(registry.blobs.excessBytes).toBe(excess)
    await registry.pushImage('home/hostile/f', 'v1')
  })

  it("do not get in each other's way", async () => {
    const { headers } = await registry.ask('POST', 'home/hostile/g/blobs/uploads/')
    const place = String(headers.location)
    const { hostname, port } = new URL(registry.url)
    const slow = connect(Number(port), hostname)
    slow.write(`PATCH ${place} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhello`)
    await until(() => registry.uploads.stats.bytes === 5, { what: 'half of it came' })
    expect(await registry.fault('PATCH', place, { body: Buffer.from('x') })).toEqual([416, 'BLOB_UPLOAD_INVALID'])
    expect(await registry.fault('DELETE', place)).toEqual([416, 'BLOB_UPLOAD_INVALID'])
    slow.destroy()
    // What came of it stays, and it goes on from there.
    const all = Buffer.from('hello, you')
    const rest = { body: all.subarray(5), headers: { 'content-range': '5-9' } }
    await until(async () => (await registry.ask('PATCH', place, rest)).status === 202, { what: 'the first has let go' })
    expect((await registry.ask('PUT', `${place}?digest=${digestOf(all)}`)).status).toBe(201)
  })
})
