/** Binary caches upstream: what is taken from them, and that those which misbehave cost nothing but the miss. */
import { randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { isSignedBy } from '../../../agent/nix/signing.ts'
import { publisher, Receiver } from './cache.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { sha256 } from './peers.ts'
import { type Misbehaviour, UpstreamServer } from './upstream-server.ts'

const SOON_MS = 500
const limits = { narinfoMs: SOON_MS, quietMs: SOON_MS }
const narinfoUrl = (path: string) => `/nix/${hashPartOf(path)}.narinfo`
const field = (body: string, name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(body)?.[1] ?? ''

let nix: FakeNix
let upstream: UpstreamServer
let stack: AsyncDisposableStack
beforeEach(async () => {
  stack = new AsyncDisposableStack()
  nix = stack.use(new FakeNix())
  upstream = stack.use(await UpstreamServer.start())
})
afterEach(() => stack.disposeAsync())

function receiver(options: ConstructorParameters<typeof Receiver>[1] = {}): Receiver {
  const here = stack.use(new Receiver(nix.store, { urls: [upstream.url], limits, ...options }))
  here.trust.add(upstream.key.publicKey.text)
  return here
}

/** A path as another machine's store has it: here nothing is published. */
const path = (name: string, bytes = 200_000) => nix.add(name, randomBytes(bytes / 2).toString('hex'))

async function narOf(here: Receiver, narinfo: string) {
  return await here.server.inject(`/nix/${field(narinfo, 'URL')}`)
}

describe('a cache upstream', () => {
  it.each(['none', 'zstd', 'gzip'] as const)(
    'gives what no peer has, compressed with %s, under the own signature, and is asked once',
    async (compressing) => {
      const root = await path('root')
      const info = await upstream.add(nix.store, root, compressing)
      const here = receiver()
      for (let round = 0; round < 3; round++) {
        const { statusCode, body } = await here.server.inject(narinfoUrl(root))
        expect(statusCode).toBe(200)
        expect(isSignedBy(here.key.publicKey, info, field(body, 'Sig'))).toBe(true)
        expect(sha256((await narOf(here, body)).rawPayload)).toBe(info.narHash)
      }
      expect(upstream.nars).toHaveLength(1)
      expect(upstream.asked.filter((one) => one.endsWith('.narinfo'))).toHaveLength(1)
      // It is kept: the cache may go.
      await upstream.down()
      expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
    },
  )

  it('is fetched from once, however many ask at the same time', async () => {
    const root = await path('root')
    const { narHash } = await upstream.add(nix.store, root)
    const here = receiver()
    const { body } = await here.server.inject(narinfoUrl(root))
    const nars = await Promise.all(Array.from({ length: 8 }, () => narOf(here, body)))
    for (const nar of nars) expect(sha256(nar.rawPayload)).toBe(narHash)
    expect(upstream.nars).toHaveLength(1)
  })

  it('is asked after peers only', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    const here = receiver()
    const other = await publisher('peer-a', nix.store, root)
    here.trust.add(other.key.publicKey.text)
    here.meet(other)
    const { body } = await here.server.inject(narinfoUrl(root))
    expect((await narOf(here, body)).statusCode).toBe(200)
    expect(upstream.asked).toEqual([])
  })

  it('helps out when the peer that was believed has the NAR no more', async () => {
    const root = await path('root')
    const { narHash } = await upstream.add(nix.store, root)
    const here = receiver()
    const other = await publisher('peer-a', nix.store, root)
    here.trust.add(other.key.publicKey.text)
    here.meet(other)
    const { body } = await here.server.inject(narinfoUrl(root))
    await vi.waitFor(() => expect(here.blobs.has(narHash)).toBe(true))
    here.blobs.blobs.delete(narHash)
    here.peers.peers.delete('peer-a')
    expect(sha256((await narOf(here, body)).rawPayload)).toBe(narHash)
    expect(upstream.nars).toHaveLength(1)
  })

  it('is not asked again for what it does not have', async () => {
    const here = receiver()
    const absent = `${nix.directory}/${'a'.repeat(32)}-absent`
    for (let round = 0; round < 3; round++) expect((await here.server.inject(narinfoUrl(absent))).statusCode).toBe(404)
    expect(upstream.asked).toHaveLength(1)
  })

  it('is refused when its signature is not trusted, which is said', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    const here = receiver()
    here.trust.remove(upstream.key.publicKey.name)
    const { statusCode, body } = await here.server.inject(narinfoUrl(root))
    expect(statusCode).toBe(404)
    expect(body).toContain(upstream.url)
    expect(body).toContain(`signed by ${upstream.key.publicKey.name}, which this agent does not trust`)
  })

  it('is believed again where it was configured anew', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    const here = receiver({ urls: [] })
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
    here.upstreams.configure([upstream.url])
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
  })

  it.each<Misbehaviour>(['cuts', 'cuts-and-forgets'])('that %s is read to the end', async (misbehaves) => {
    const root = await path('root', 2_000_000)
    const { narHash } = await upstream.add(nix.store, root, 'none')
    upstream.misbehaves = misbehaves
    const here = receiver()
    const { body } = await here.server.inject(narinfoUrl(root))
    expect(sha256((await narOf(here, body)).rawPayload)).toBe(narHash)
    expect(upstream.nars.length).toBeGreaterThan(2)
  })
})

describe('a cache upstream that misbehaves', () => {
  it.each<Misbehaviour>(['hangs', 'fails', 'forges'])(
    '(%s) is a miss, and another gives the path',
    async (misbehaves) => {
      const root = await path('root')
      await upstream.add(nix.store, root)
      const good = stack.use(await UpstreamServer.start(upstream.key))
      const { narHash } = await good.add(nix.store, root)
      upstream.misbehaves = misbehaves
      const alone = receiver()
      expect((await alone.server.inject(narinfoUrl(root))).statusCode).toBe(404)
      const both = receiver({ urls: [upstream.url, good.url] })
      const { statusCode, body } = await both.server.inject(narinfoUrl(root))
      expect(statusCode).toBe(200)
      expect(sha256((await narOf(both, body)).rawPayload)).toBe(narHash)
    },
  )

  it.each<Misbehaviour>(['spoils', 'loses'])(
    '(%s) is passed over for its NAR, and another gives it',
    async (misbehaves) => {
      const root = await path('root')
      await upstream.add(nix.store, root)
      upstream.misbehaves = misbehaves
      const good = stack.use(await UpstreamServer.start(upstream.key))
      const { narHash } = await good.add(nix.store, root)
      good.delayMs = 50
      const alone = receiver()
      const first = await alone.server.inject(narinfoUrl(root))
      expect((await narOf(alone, first.body)).statusCode).toBe(404)
      expect(alone.blobs.blobs.size).toBe(0)
      // What was spoilt once is not offered again.
      expect((await alone.server.inject(narinfoUrl(root))).statusCode).toBe(404)
      const both = receiver({ urls: [upstream.url, good.url] })
      const { body } = await both.server.inject(narinfoUrl(root))
      expect(sha256((await narOf(both, body)).rawPayload)).toBe(narHash)
    },
  )

  it('costs one wait, not one for each path, and is asked again when it is well', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    upstream.misbehaves = 'hangs'
    const here = receiver()
    const startMs = performance.now()
    const ask = (nth: number) =>
      here.server.inject(`/nix/${`${nth}`.padStart(32, '0')}.narinfo`).then(({ statusCode }) => statusCode)
    const all = await Promise.all(Array.from({ length: 25 }, (_, nth) => ask(nth)))
    for (let nth = 25; nth < 200; nth++) all.push(await ask(nth))
    const tookMs = performance.now() - startMs
    expect(new Set(all)).toEqual(new Set([404]))
    expect(tookMs).toBeLessThan(10 * SOON_MS)
    expect(here.upstreams.resting()).toMatchObject([{ reason: expect.stringContaining('did not answer') }])
    expect(upstream.asked.length).toBeLessThanOrEqual(25)
  })

  it('is tried again after a rest, with nobody waiting', async () => {
    let now = 0
    const root = await path('root')
    await upstream.add(nix.store, root)
    upstream.misbehaves = 'fails'
    const here = receiver({ now: () => now })
    for (let nth = 0; nth < 4; nth++) await here.server.inject(narinfoUrl(root))
    expect(upstream.asked).toHaveLength(3)
    upstream.misbehaves = undefined
    now += 60_000
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(404)
    await vi.waitFor(() => expect(here.upstreams.resting()).toEqual([]))
    expect((await here.server.inject(narinfoUrl(root))).statusCode).toBe(200)
  })

  it('is no fault of the path when it is down', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    await upstream.down()
    const here = receiver()
    const { statusCode, body } = await here.server.inject(narinfoUrl(root))
    expect(statusCode).toBe(404)
    expect(body).toContain('ECONNREFUSED')
  })

  it('that stalls in the middle of a NAR is given up, and what came is thrown away', async () => {
    const root = await path('root')
    await upstream.add(nix.store, root)
    const here = receiver()
    const { body } = await here.server.inject(narinfoUrl(root))
    upstream.misbehaves = 'hangs'
    here.blobs.blobs.clear()
    here.held.forget(root)
    const { statusCode } = await narOf(here, body)
    expect(statusCode).toBe(404)
    expect(here.blobs.blobs.size).toBe(0)
  })
})
