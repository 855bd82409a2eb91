/**
 * The categories `pull`, `content discovery` and `content management` of the specification's conformance, by the requests that clients make.
 */
import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { OCI_INDEX, OCI_MANIFEST } from '../../../agent/oci/manifests.ts'
import { digestOf, json, Registry } from './registry.ts'

const NONE = `sha256:${'0'.repeat(64)}`
let registry: Registry
beforeAll(async () => {
  registry = await Registry.start()
})
afterAll(() => registry[Symbol.asyncDispose]())

describe('pull', () => {
  it('says what it is', async () => {
    for (const path of ['/v2/', '/v2']) {
      const { status, headers, body } = await registry.ask('GET', path)
      expect([status, headers['docker-distribution-api-version'], body.toString()]).toEqual([200, 'registry/2.0', '{}'])
    }
    expect(await registry.fault('POST', '/v2/')).toEqual([405, 'UNSUPPORTED'])
  })

  it('gives a manifest as it was pushed, by tag and by digest', async () => {
    const { bytes, digest } = await registry.pushImage('home/pull/app', 'v1')
    for (const reference of ['v1', digest]) {
      const answer = await registry.ask('GET', `home/pull/app/manifests/${reference}`)
      expect(answer.status).toBe(200)
      expect(answer.body.equals(bytes)).toBe(true)
      expect(answer.headers).toMatchObject({
        'content-type': OCI_MANIFEST,
        'docker-content-digest': digest,
        'content-length': String(bytes.byteLength),
      })
      const head = await registry.ask('HEAD', `home/pull/app/manifests/${reference}`)
      expect(head).toMatchObject({ status: 200, body: Buffer.alloc(0) })
      expect(head.headers).toMatchObject({
        'content-type': OCI_MANIFEST,
        'docker-content-digest': digest,
        'content-length': String(bytes.byteLength),
      })
    }
    const again = await registry.ask('GET', 'home/pull/app/manifests/v1', {
      headers: { 'if-none-match': `"${digest}"` },
    })
    expect(again.status).toBe(304)
  })

  it('gives blobs, whole and in ranges, however large', async () => {
    const bytes = randomBytes(700_001)
    const { digest } = await registry.push('home/pull/app', bytes)
    const path = `home/pull/app/blobs/${digest}`
    const whole = await registry.ask('GET', path)
    expect([whole.status, whole.headers['docker-content-digest']]).toEqual([200, digest])
    expect(whole.body.equals(bytes)).toBe(true)
    const head = await registry.ask('HEAD', path)
    expect([head.status, head.headers['content-length'], head.headers['docker-content-digest']]).toEqual([
      200,
      '700001',
      digest,
    ])
    const ranges: [string, number, number][] = [
      ['0-', 0, 700_001],
      ['5-9', 5, 10],
      ['-10', 699_991, 700_001],
      ['300000-900000', 300_000, 700_001],
      ['1-600000', 1, 600_001],
    ]
    for (const [range, from, to] of ranges) {
      const part = await registry.ask('GET', path, { headers: { range: `bytes=${range}` } })
      expect([part.status, part.headers['content-range']]).toEqual([206, `bytes ${from}-${to - 1}/700001`])
      expect([range, part.body.equals(bytes.subarray(from, to))]).toEqual([range, true])
    }
    for (const range of ['700001-', '9-5'])
      expect(await registry.fault('GET', path, { headers: { range: `bytes=${range}` } })).toEqual([416, 'SIZE_INVALID'])
  })

  it('has nothing that was not pushed, and says so in its own words', async () => {
    await registry.pushImage('home/pull/other', 'v1')
    const { layer } = await registry.pushImage('home/pull/secret', 'v1')
    expect(await registry.fault('GET', 'home/pull/other/manifests/v2')).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(await registry.fault('GET', 'home/pull/other/manifests/.not-a-tag')).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(await registry.fault('GET', `home/pull/other/manifests/${NONE}`)).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(await registry.fault('GET', `home/pull/other/blobs/${NONE}`)).toEqual([404, 'BLOB_UNKNOWN'])
    expect(await registry.fault('GET', `home/pull/other/blobs/${layer.digest}`)).toEqual([404, 'BLOB_UNKNOWN'])
    expect(await registry.fault('GET', 'home/pull/nobody/manifests/v1')).toEqual([404, 'NAME_UNKNOWN'])
    expect(await registry.fault('GET', 'elsewhere/app/manifests/v1')).toEqual([404, 'NAME_UNKNOWN'])
    expect(await registry.fault('GET', 'home/pull/other/blobs/sha256:abc')).toEqual([400, 'DIGEST_INVALID'])
    expect(await registry.fault('GET', 'home/../other/manifests/v1')).toEqual([400, 'NAME_INVALID'])
    expect((await registry.ask('HEAD', 'home/pull/other/manifests/v2')).status).toBe(404)
    expect((await registry.ask('HEAD', `home/pull/other/blobs/${NONE}`)).status).toBe(404)
  })

  it('answers a mirror by the registry that is mirrored, and no other', async () => {
    expect(await registry.fault('GET', 'library/app/manifests/v1?ns=mirror.example')).toEqual([404, 'NAME_UNKNOWN'])
    expect(await registry.fault('GET', 'library/app/manifests/v1?ns=nobody.example')).toEqual([404, 'NAME_UNKNOWN'])
    expect(await registry.fault('GET', 'library/app/manifests/v1?ns=a%0d%0ab')).toEqual([400, 'NAME_INVALID'])
    const { headers } = await registry.ask('GET', 'library/app/manifests/v1?ns=mirror.example')
    expect(headers['oci-namespace']).toBe('mirror.example')
  })
})

describe('content discovery', () => {
  it('lists tags in ASCII order, by the page', async () => {
    const { bytes, descriptor } = await registry.pushImage('home/tags/a', 'b')
    const headers = { 'content-type': descriptor.mediaType }
    for (const tag of ['a', 'B', '_', '1', 'c', 'a.1'])
      await registry.ask('PUT', `home/tags/a/manifests/${tag}`, { body: bytes, headers })
    const sorted = ['1', 'B', '_', 'a', 'a.1', 'b', 'c']
    const list = async (query: string) => {
      const answer = await registry.ask('GET', `home/tags/a/tags/list${query}`)
      return {
        tags: json(answer.body).tags,
        link: answer.headers.link?.toString(),
        type: answer.headers['content-type'],
      }
    }
    expect(await list('')).toEqual({ tags: sorted, link: undefined, type: 'application/json' })
    expect(await list('?n=0')).toMatchObject({ tags: [], link: undefined })
    expect(await list('?n=7')).toMatchObject({ tags: sorted, link: undefined })
    expect(await list('?last=a')).toMatchObject({ tags: ['a.1', 'b', 'c'], link: undefined })
    expect(await list('?n=2&last=a')).toMatchObject({ tags: ['a.1', 'b'] })
    expect(await list('?last=zzz')).toMatchObject({ tags: [] })
    const seen: unknown[] = []
    for (let next: string | undefined = '?n=3'; next !== undefined; ) {
      const { tags, link } = await list(next)
      seen.push(tags)
      next = /^<\/v2\/home\/tags\/a\/tags\/list(\?[^>]*)>; rel="next"$/.exec(link ?? '')?.[1]
    }
    expect(seen).toEqual([sorted.slice(0, 3), sorted.slice(3, 6), sorted.slice(6)])
    for (const query of ['?n=x', '?n=-1', '?last=%00'])
      expect((await registry.ask('GET', `home/tags/a/tags/list${query}`)).status).toBe(400)
    expect(await registry.fault('GET', 'home/tags/nobody/tags/list')).toEqual([404, 'NAME_UNKNOWN'])
    expect((await registry.ask('HEAD', 'home/tags/a/tags/list')).status).toBe(200)
  })

  it('lists who refers to a manifest, in either order of pushing, and by type', async () => {
    const name = 'home/referrers/a'
    const config = await registry.push(name, Buffer.from('{}'), 'sha256', 'application/vnd.example.config+json')
    const image = { schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [], annotations: { is: 'the subject' } }
    const bytes = Buffer.from(JSON.stringify(image))
    const subject = { mediaType: OCI_MANIFEST, digest: digestOf(bytes), size: bytes.byteLength }
    const signature = await registry.pushImage(name, undefined, {
      subject,
      artifactType: 'application/vnd.example.signature+json',
      annotations: { by: 'me' },
    })
    expect(signature.answer.headers['oci-subject']).toBe(subject.digest)
    await registry.putManifest(name, 'v1', image)
    const byConfig = await registry.putManifest(name, undefined, { ...image, subject, annotations: {} })
    const index = await registry.putIndex(name, undefined, [], { subject, annotations: { an: 'index' } })
    const list = async (query = '') => {
      const { status, headers, body } = await registry.ask('GET', `${name}/referrers/${subject.digest}${query}`)
      expect([status, headers['content-type']]).toEqual([200, OCI_INDEX])
      return { filters: headers['oci-filters-applied'], index: json(body) as { manifests: { digest: string }[] } }
    }
    const all = await list()
    expect(all.index).toMatchObject({ schemaVersion: 2, mediaType: OCI_INDEX })
    expect(all.filters).toBeUndefined()
    const expected = [
      { ...signature.descriptor, artifactType: 'application/vnd.example.signature+json', annotations: { by: 'me' } },
      { ...byConfig.descriptor, artifactType: 'application/vnd.example.config+json', annotations: {} },
      { ...index.descriptor, annotations: { an: 'index' } },
    ].sort((a, b) => (a.digest < b.digest ? -1 : 1))
    expect(all.index.manifests).toEqual(expected)
    // A plus that is not encoded means one.
    for (const type of ['application/vnd.example.signature+json', 'application/vnd.example.signature%2Bjson']) {
      const filtered = await list(`?artifactType=${type}`)
      expect(filtered.filters).toBe('artifactType')
      expect(filtered.index.manifests.map(({ digest }) => digest)).toEqual([signature.digest])
    }
    expect((await list('?artifactType=a/b')).index.manifests).toEqual([])
    const none = await registry.ask('GET', `home/referrers/nobody/referrers/${NONE}`)
    expect([none.status, json(none.body).manifests]).toEqual([200, []])
    expect(await registry.fault('GET', `${name}/referrers/latest`)).toEqual([400, 'DIGEST_INVALID'])
    // What clients do that know no referrers: an index under a tag.
    const tag = subject.digest.replace(':', '-')
    await registry.putIndex(name, tag, [signature.descriptor])
    expect((await registry.ask('GET', `${name}/manifests/${tag}`)).status).toBe(200)
  })

  it('gives many referrers by the page', async () => {
    const name = 'home/referrers/b'
    const subject = { mediaType: OCI_MANIFEST, digest: NONE, size: 2 }
    // Each has two thirds of what a page has room for.
    const large = 'x'.repeat(2_800_000)
    const pushed: string[] = []
    for (const at of [1, 2, 3])
      pushed.push(
        (await registry.putIndex(name, undefined, [], { subject, annotations: { at: `${at}`, large } })).digest,
      )
    const seen: string[] = []
    let pages = 0
    for (let next: string | undefined = `/v2/${name}/referrers/${NONE}`; next !== undefined; pages++) {
      const { headers, body } = await registry.ask('GET', next)
      seen.push(...(json(body) as { manifests: { digest: string }[] }).manifests.map(({ digest }) => digest))
      next = /^<([^>]*)>; rel="next"$/.exec(String(headers.link))?.[1]
    }
    expect([seen, pages]).toEqual([[...pushed].sort(), 3])
  })
})

describe('content management', () => {
  it('deletes a tag, and leaves the manifest', async () => {
    const { digest } = await registry.pushImage('home/delete/a', 'v1')
    expect((await registry.ask('DELETE', 'home/delete/a/manifests/v1')).status).toBe(202)
    expect(await registry.fault('GET', 'home/delete/a/manifests/v1')).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect((await registry.ask('GET', `home/delete/a/manifests/${digest}`)).status).toBe(200)
    expect(await registry.fault('DELETE', 'home/delete/a/manifests/v1')).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(json((await registry.ask('GET', 'home/delete/a/tags/list')).body)).toEqual({
      name: 'home/delete/a',
      tags: [],
    })
  })

  it('deletes a manifest, and its tags with it', async () => {
    const { digest, layer } = await registry.pushImage('home/delete/b', 'v1')
    expect((await registry.ask('DELETE', `home/delete/b/manifests/${digest}`)).status).toBe(202)
    for (const reference of ['v1', digest])
      expect(await registry.fault('GET', `home/delete/b/manifests/${reference}`)).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(await registry.fault('DELETE', `home/delete/b/manifests/${digest}`)).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect((await registry.ask('GET', `home/delete/b/blobs/${layer.digest}`)).status).toBe(200)
  })

  it('deletes a blob in one repository, and in no other', async () => {
    const bytes = randomBytes(100)
    const { digest } = await registry.push('home/delete/c', bytes)
    await registry.push('home/delete/d', bytes)
    expect((await registry.ask('DELETE', `home/delete/c/blobs/${digest}`)).status).toBe(202)
    expect(await registry.fault('GET', `home/delete/c/blobs/${digest}`)).toEqual([404, 'BLOB_UNKNOWN'])
    expect(await registry.fault('DELETE', `home/delete/c/blobs/${digest}`)).toEqual([404, 'BLOB_UNKNOWN'])
    expect((await registry.ask('GET', `home/delete/d/blobs/${digest}`)).status).toBe(200)
    expect(await registry.fault('DELETE', `home/delete/nobody/blobs/${digest}`)).toEqual([404, 'NAME_UNKNOWN'])
    expect((await registry.ask('DELETE', `home/delete/d/blobs/${digest}`)).status).toBe(202)
    expect(registry.blobs.has(digest.slice(7))).toBe(false)
  })

  it('knows no other methods', async () => {
    expect(await registry.fault('PUT', 'home/delete/a/tags/list')).toEqual([405, 'UNSUPPORTED'])
    expect(await registry.fault('DELETE', `home/delete/a/referrers/${NONE}`)).toEqual([405, 'UNSUPPORTED'])
    expect(await registry.fault('GET', '_catalog')).toEqual([404, 'UNSUPPORTED'])
  })
})
