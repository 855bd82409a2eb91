/** The category `push` of the specification's conformance, each promise by the request that a client makes. */
import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { OCI_INDEX, OCI_MANIFEST } from '../../../agent/oci/manifests.ts'
import { digestOf, Registry } from './registry.ts'

const NONE = `sha256:${'0'.repeat(64)}`
let registry: Registry
beforeAll(async () => {
  registry = await Registry.start()
})
afterAll(() => registry[Symbol.asyncDispose]())

describe('push', () => {
  const bytes = randomBytes(3_000)
  const digest = digestOf(bytes)
  const begin = async (name: string, query = '') => {
    const { status, headers } = await registry.ask('POST', `${name}/blobs/uploads/${query}`)
    expect([status, headers.range]).toEqual([202, '0-0'])
    expect(headers.location).toMatch(new RegExp(`^/v2/${name}/blobs/uploads/[0-9a-f-]{36}$`))
    return String(headers.location)
  }
  const pulled = async (name: string, what = digest) => (await registry.ask('GET', `${name}/blobs/${what}`)).body

  it('takes a blob in a PUT, and in the POST itself', async () => {
    const place = await begin('home/push/a')
    const put = await registry.ask('PUT', `${place}?digest=${digest}`, { body: bytes })
    expect(put).toMatchObject({
      status: 201,
      headers: { location: `/v2/home/push/a/blobs/${digest}`, 'docker-content-digest': digest },
    })
    expect((await pulled('home/push/a')).equals(bytes)).toBe(true)
    const post = await registry.ask('POST', `home/push/b/blobs/uploads/?digest=${encodeURIComponent(digest)}`, {
      body: bytes,
    })
    expect(post).toMatchObject({ status: 201, headers: { location: `/v2/home/push/b/blobs/${digest}` } })
    expect((await pulled('home/push/b')).equals(bytes)).toBe(true)
    expect((await registry.ask('GET', place)).status).toBe(404)
  })

  it('takes a blob in chunks, the last with the PUT or before it', async () => {
    for (const withPut of [true, false]) {
      const name = withPut ? 'home/push/c' : 'home/push/d'
      let place = await begin(name)
      const parts = [bytes.subarray(0, 1_000), bytes.subarray(1_000, 2_500), bytes.subarray(2_500)]
      let at = 0
      for (const part of withPut ? parts.slice(0, 2) : parts) {
        const headers = { 'content-range': `${at}-${at + part.byteLength - 1}` }
        const patch = await registry.ask('PATCH', place, { body: part, headers })
        at += part.byteLength
        expect(patch).toMatchObject({ status: 202, headers: { range: `0-${at - 1}` } })
        place = String(patch.headers.location)
      }
      const status = await registry.ask('GET', place)
      expect(status).toMatchObject({ status: 204, headers: { range: `0-${at - 1}`, location: place } })
      const last = withPut ? { body: bytes.subarray(at), headers: { 'content-range': `${at}-2999` } } : {}
      expect((await registry.ask('PUT', `${place}?digest=${digest}`, last)).status).toBe(201)
      expect((await pulled(name)).equals(bytes)).toBe(true)
    }
  })

  it('takes a stream of unknown length', async () => {
    const place = await begin('home/push/e')
    const patch = await registry.ask('PATCH', place, { body: [bytes.subarray(0, 7), bytes.subarray(7)] })
    expect(patch).toMatchObject({ status: 202, headers: { range: '0-2999' } })
    expect((await registry.ask('PUT', `${place}?digest=${digest}`)).status).toBe(201)
    expect((await pulled('home/push/e')).equals(bytes)).toBe(true)
  })

  it('refuses a chunk that is not the next, and goes on from what it has', async () => {
    const place = await begin('home/push/f')
    const chunk = (from: number, to: number) => ({
      body: bytes.subarray(from, to),
      headers: { 'content-range': `${from}-${to - 1}` },
    })
    expect(await registry.fault('PATCH', place, chunk(1_000, 2_000))).toEqual([416, 'BLOB_UPLOAD_INVALID'])
    expect((await registry.ask('PATCH', place, chunk(0, 1_000))).status).toBe(202)
    expect(await registry.fault('PATCH', place, chunk(0, 1_000))).toEqual([416, 'BLOB_UPLOAD_INVALID'])
    expect(await registry.fault('PUT', `${place}?digest=${digest}`, chunk(2_000, 3_000))).toEqual([
      416,
      'BLOB_UPLOAD_INVALID',
    ])
    const wrong = { body: bytes.subarray(1_000, 1_100), headers: { 'content-range': '1000-1199' } }
    expect(await registry.fault('PATCH', place, wrong)).toEqual([400, 'SIZE_INVALID'])
    const none = { body: bytes.subarray(1_000), headers: { 'content-range': 'from here' } }
    expect(await registry.fault('PATCH', place, none)).toEqual([400, 'BLOB_UPLOAD_INVALID'])
    expect((await registry.ask('GET', place)).headers.range).toBe('0-999')
    expect((await registry.ask('PUT', `${place}?digest=${digest}`, chunk(1_000, 3_000))).status).toBe(201)
    expect((await pulled('home/push/f')).equals(bytes)).toBe(true)
  })

  it('refuses bytes of another digest, and a digest that is none', async () => {
    const place = await begin('home/push/g')
    expect(await registry.fault('PUT', place, { body: bytes })).toEqual([400, 'DIGEST_INVALID'])
    expect(await registry.fault('PUT', `${place}?digest=md5:abc`, { body: bytes })).toEqual([400, 'DIGEST_INVALID'])
    expect(await registry.fault('PUT', `${place}?digest=${NONE}`, { body: bytes })).toEqual([400, 'DIGEST_INVALID'])
    // It is over: whatever these bytes are, they are not what was meant.
    expect(await registry.fault('GET', place)).toEqual([404, 'BLOB_UPLOAD_UNKNOWN'])
    const post = `home/push/g/blobs/uploads/?digest=${NONE}`
    expect(await registry.fault('POST', post, { body: bytes })).toEqual([400, 'DIGEST_INVALID'])
    expect(registry.uploads.stats).toMatchObject({ bytes: 0 })
    expect(await registry.fault('POST', 'home/push/g/blobs/uploads/?digest-algorithm=md5')).toEqual([
      400,
      'DIGEST_INVALID',
    ])
  })

  it('cancels an upload', async () => {
    const place = await begin('home/push/h')
    await registry.ask('PATCH', place, { body: bytes })
    expect((await registry.ask('DELETE', place)).status).toBe(204)
    for (const method of ['GET', 'PATCH', 'DELETE'])
      expect(await registry.fault(method, place)).toEqual([404, 'BLOB_UPLOAD_UNKNOWN'])
    expect(await registry.fault('PATCH', 'home/push/h/blobs/uploads/no-id')).toEqual([404, 'BLOB_UPLOAD_UNKNOWN'])
  })

  it('lets nobody go on with an upload of another repository', async () => {
    const place = await begin('home/push/i')
    expect(await registry.fault('PATCH', place.replace('push/i', 'push/j'), { body: bytes })).toEqual([
      404,
      'BLOB_UPLOAD_UNKNOWN',
    ])
  })

  it('mounts what another repository has, and else begins an upload', async () => {
    await registry.push('home/push/from', bytes)
    const mount = (name: string, query: string) => registry.ask('POST', `${name}/blobs/uploads/?${query}`)
    const mounted = await mount('home/push/k', `mount=${digest}&from=home/push/from`)
    expect(mounted).toMatchObject({ status: 201, headers: { location: `/v2/home/push/k/blobs/${digest}` } })
    expect((await pulled('home/push/k')).equals(bytes)).toBe(true)
    expect((await mount('home/push/l', `mount=${digest}`)).status).toBe(201)
    expect((await mount('other/push/l', `mount=${digest}&from=home/push/from`)).status).toBe(201)
    for (const query of [
      `mount=${NONE}&from=home/push/from`,
      `mount=${digest}&from=home/push/nobody`,
      `mount=${digest}&from=..`,
    ]) {
      const { status, headers } = await mount('home/push/m', query)
      expect([query, status]).toEqual([query, 202])
      expect(headers.location).toContain('/v2/home/push/m/blobs/uploads/')
    }
    // Without a source: only what is in the same network.
    const secret = await registry.push('home/push/from', randomBytes(10))
    expect((await mount('other/push/m', `mount=${secret.digest}`)).status).toBe(202)
    expect(await registry.fault('POST', 'home/push/m/blobs/uploads/?mount=sha256:1')).toEqual([400, 'DIGEST_INVALID'])
  })

  it('keeps what is named by SHA-512, announced or not', async () => {
    const long = digestOf(bytes, 'sha512')
    const announced = await begin('home/push/n', '?digest-algorithm=sha512')
    await registry.ask('PATCH', announced, { body: bytes })
    expect((await registry.ask('PUT', `${announced}?digest=${long}`)).status).toBe(201)
    await registry.push('home/push/o', bytes, 'sha512')
    for (const name of ['home/push/n', 'home/push/o']) {
      const { status, headers, body } = await registry.ask('GET', `${name}/blobs/${long}`)
      expect([status, headers['docker-content-digest'], body.equals(bytes)]).toEqual([200, long, true])
    }
    expect(await registry.fault('GET', `home/push/k/blobs/${digestOf(randomBytes(9), 'sha512')}`)).toEqual([
      404,
      'BLOB_UNKNOWN',
    ])
    const place = await begin('home/push/o')
    const wrong = digestOf(randomBytes(9), 'sha512')
    expect(await registry.fault('PUT', `${place}?digest=${wrong}`, { body: bytes })).toEqual([400, 'DIGEST_INVALID'])
    const manifest = {
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: { mediaType: 'a/b', digest: long, size: 3_000 },
      layers: [],
    }
    const text = Buffer.from(JSON.stringify(manifest))
    const name512 = digestOf(text, 'sha512')
    const headers = { 'content-type': OCI_MANIFEST }
    const put = await registry.ask('PUT', `home/push/o/manifests/${name512}?tag=long&tag=2`, { body: text, headers })
    expect(put).toMatchObject({ status: 201, headers: { 'docker-content-digest': name512, 'oci-tag': 'long, 2' } })
    for (const reference of ['long', '2', name512]) {
      const got = await registry.ask('GET', `home/push/o/manifests/${reference}`)
      expect([got.status, got.headers['docker-content-digest'], got.body.equals(text)]).toEqual([200, name512, true])
    }
    await registry.restart()
    expect((await registry.ask('GET', `home/push/n/blobs/${long}`)).body.equals(bytes)).toBe(true)
  })

  it('takes a blob of nothing', async () => {
    const { digest: empty } = await registry.push('home/push/p', Buffer.alloc(0))
    const { status, body, headers } = await registry.ask('GET', `home/push/p/blobs/${empty}`)
    expect([status, body.byteLength, headers['content-length']]).toEqual([200, 0, '0'])
  })

  it('answers a manifest with where it is and what it is, and moves its tag', async () => {
    const first = await registry.pushImage('home/push/q', 'v1')
    expect(first.answer.headers).toMatchObject({
      location: '/v2/home/push/q/manifests/v1',
      'docker-content-digest': first.digest,
    })
    const second = await registry.pushImage('home/push/q', 'v1')
    const head = await registry.ask('HEAD', 'home/push/q/manifests/v1')
    expect(head.headers['docker-content-digest']).toBe(second.digest)
    // A digest never changes its meaning.
    expect((await registry.ask('GET', `home/push/q/manifests/${first.digest}`)).body.equals(first.bytes)).toBe(true)
  })

  it('refuses a manifest of another digest, with other tags, or that names what is not here', async () => {
    const { bytes: good, digest: is } = await registry.pushImage('home/push/r', 'v1')
    const headers = { 'content-type': OCI_MANIFEST }
    const put = (reference: string, body: Uint8Array = good) =>
      registry.fault('PUT', `home/push/r/manifests/${reference}`, { body, headers })
    expect(await put(NONE)).toEqual([400, 'DIGEST_INVALID'])
    expect(await put('.no-tag')).toEqual([400, 'MANIFEST_INVALID'])
    expect(await put(`${is}?tag=good&tag=.bad`)).toEqual([400, 'MANIFEST_INVALID'])
    expect(await put(`${is}?${'tag=a&'.repeat(101)}`)).toEqual([414, 'MANIFEST_INVALID'])
    const elsewhere = await registry.pushImage('home/push/s', 'v1')
    // What another repository has is not here.
    expect(await put('v2', elsewhere.bytes)).toEqual([404, 'MANIFEST_BLOB_UNKNOWN'])
    const index = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [elsewhere.descriptor] }),
    )
    const asked = { body: index, headers: { 'content-type': OCI_INDEX } }
    expect(await registry.fault('PUT', 'home/push/r/manifests/v2', asked)).toEqual([404, 'MANIFEST_BLOB_UNKNOWN'])
    expect(await registry.fault('GET', 'home/push/r/manifests/good')).toEqual([404, 'MANIFEST_UNKNOWN'])
  })

  it('takes an index of several platforms, and layers that may not be given on', async () => {
    const images = await Promise.all([1, 2].map(() => registry.pushImage('home/push/t', undefined)))
    const entries = images.map(({ descriptor }, at) => ({
      ...descriptor,
      platform: { os: 'linux', architecture: `a${at}` },
    }))
    const { digest: index } = await registry.putIndex('home/push/t', 'multi', entries)
    const got = await registry.ask('GET', 'home/push/t/manifests/multi')
    expect([got.headers['content-type'], got.headers['docker-content-digest']]).toEqual([OCI_INDEX, index])
    const foreign = { mediaType: 'application/vnd.oci.image.layer.nondistributable.v1.tar', digest: NONE, size: 5 }
    expect((await registry.pushImage('home/push/t', 'foreign', { layers: [foreign] })).answer.status).toBe(201)
  })

  it('is for those who may, and for no web page', async () => {
    expect(await registry.fault('POST', 'home/locked/blobs/uploads/')).toEqual([403, 'DENIED'])
    for (const headers of [{ origin: 'http://evil.example' }, { 'sec-fetch-site': 'cross-site' }])
      expect(await registry.fault('POST', 'home/push/u/blobs/uploads/', { headers })).toEqual([403, 'DENIED'])
    registry.refusal = 'you are somebody else'
    try {
      for (const [method, path] of [
        ['POST', 'home/push/u/blobs/uploads/'],
        ['PUT', 'home/push/q/manifests/v1'],
        ['DELETE', 'home/push/q/manifests/v1'],
        ['DELETE', `home/push/a/blobs/${digest}`],
      ] as const)
        expect([method, path, await registry.fault(method, path)]).toEqual([method, path, [403, 'DENIED']])
      expect((await registry.ask('GET', 'home/push/q/manifests/v1')).status).toBe(200)
    } finally {
      registry.refusal = undefined
    }
  })
})
