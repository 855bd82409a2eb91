/** What a client pushes: what is accepted, what is refused and why, and what is published of it when. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { brotliCompressSync, gzipSync, zstdCompressSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { PathInfo } from '../../../agent/nix/nix-store.ts'
import { CacheKey } from '../../../agent/nix/signing.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { readAll, sha256 } from './peers.ts'
import { HOME, narinfoOf, nix32Of, PushedTo } from './push.ts'

const builder = CacheKey.ephemeral('builder')
let there: FakeNix
let nix: FakeNix
let here: PushedTo
beforeEach(() => {
  there = new FakeNix()
  nix = new FakeNix()
  here = new PushedTo(nix.store)
})
afterEach(async () => {
  await here[Symbol.asyncDispose]()
  nix[Symbol.dispose]()
  there[Symbol.dispose]()
})

/** A path of another machine, whose store has the same name. */
async function elsewhere(
  name: string,
  contents: string,
  references: string[] = [],
): Promise<{ info: PathInfo; nar: Buffer }> {
  const path = await there.add(name, contents)
  const made = there.store.info(path) as PathInfo
  const moved = (one: string) => one.replace(there.directory, nix.directory)
  const facts = { ...made, path: moved(path), references: [...references].sort(), ultimate: false }
  return { info: { ...facts, signatures: [builder.sign(facts)] }, nar: await narOf(path) }
}

async function narOf(path: string): Promise<Buffer> {
  const layout = await layoutNar(path)
  return await readAll({ sizeBytes: layout.sizeBytes, read: (...range) => layout.read(...range) })
}

const trusted = () => here.trust.add(builder.publicKey.text)

describe('a push', () => {
  it('is accepted, published as one closure for each root, and kept for good', async () => {
    trusted()
    const leaf = await elsewhere('leaf', 'l'.repeat(100_000))
    const root = await elsewhere('root', 'r', [leaf.info.path])
    expect((await here.push(leaf.info, leaf.nar)).statusCode).toBe(200)
    expect((await here.push(root.info, root.nar)).statusCode).toBe(200)
    await here.settled()
    const [name] = here.published.keys()
    expect([...here.published.keys()]).toEqual([root.info.path.slice(nix.directory.length + 1)])
    const { body, blobs, manifest } = here.published.get(name ?? '') ?? {}
    expect(body).toMatchObject({ type: 'nix', root: root.info.path })
    expect(blobs).toEqual(expect.arrayContaining([leaf.info.narHash, root.info.narHash]))
    // Nothing of it is in this machine's store.
    expect(manifest?.paths).toEqual([])
    for (const { info } of [leaf, root]) {
      expect(here.held.info(info.path)).toMatchObject({ narHash: info.narHash, references: info.references })
      expect([...here.blobs.networksOf(info.narHash)]).toEqual([HOME])
    }
    expect(here.held.waiting(HOME)).toEqual([])
    expect(here.blobs.pinReasons('temporary:')).toEqual([])
    expect(here.blobs.pinReasons('pushed:')).toEqual([])
  })

  it('replaces what it published before a slow path came, and leaves what is of another copy', async () => {
    trusted()
    const leaf = await elsewhere('leaf', 'l')
    const other = await elsewhere('other', 'o')
    const root = await elsewhere('root', 'r', [leaf.info.path])
    await here.push(leaf.info, leaf.nar)
    await here.push(other.info, other.nar)
    await here.settled()
    expect(here.published.size).toBe(2)
    await here.push(root.info, root.nar)
    await here.settled()
    const names = [...here.published.keys()].map((name) => name.slice(33)).sort()
    expect(names).toEqual(['other', 'root'])
    expect(here.blobs.has(leaf.info.narHash)).toBe(true)
  })

  it('takes every compression that it can read, and says which when it cannot', async () => {
    trusted()
    const { info, nar } = await elsewhere('x', randomBytes(300_000).toString('hex'))
    const xz = execFileSync('xz', ['-c'], { input: nar, maxBuffer: 2 ** 24 })
    const files: [Buffer, string][] = [
      [nar, '.nar'],
      [gzipSync(nar), '.nar'],
      [gzipSync(nar), '.nar.gz'],
      [zstdCompressSync(nar), '.nar.zst'],
      [brotliCompressSync(nar), '.nar.br'],
      [xz, '.nar.xz'],
    ]
    for (const [bytes, suffix] of files) {
      const file = `${nix32Of(bytes)}${suffix}`
      expect((await here.put(`/nix/nar/${file}`, bytes)).body).toBe('')
      expect(here.pushes.sizeOfUpload(here.pushes.place('home'), file)).toBe(nar.byteLength)
      const { statusCode, body } = await here.put(`/nix/${hashPartOf(info.path)}.narinfo`, narinfoOf(info, file))
      expect([suffix, statusCode, body]).toEqual([suffix, 200, ''])
    }
    const refused = await here.put(`/nix/nar/${nix32Of(nar)}.nar.bz2`, nar)
    expect(refused.statusCode).toBe(400)
    expect(refused.body).toContain('?compression=zstd')
  })

  it.each(['gzip', 'zstd', 'br', 'xz'])('is refused when its %s is none, or was cut', async (method) => {
    const { nar } = await elsewhere('x', randomBytes(100_000).toString('hex'))
    const suffix = { gzip: 'gz', zstd: 'zst', br: 'br', xz: 'xz' }[method]
    const whole =
      method === 'gzip'
        ? gzipSync(nar)
        : method === 'zstd'
          ? zstdCompressSync(nar)
          : method === 'br'
            ? brotliCompressSync(nar)
            : execFileSync('xz', ['-c'], { input: nar })
    // Four in a hundred runs of random bytes begin with a whole stream of brotli, of nothing.
    for (const bytes of [Buffer.from('no archive'.repeat(500)), whole.subarray(0, 20_000)]) {
      const refused = await here.put(`/nix/nar/${nix32Of(bytes)}.nar.${suffix}`, bytes)
      expect(refused.statusCode).toBe(400)
    }
    expect(here.blobs.stats.blobs).toBe(0)
  })

  it('is refused when the file has another hash than its name', async () => {
    const refused = await here.put(`/nix/nar/${'0'.repeat(52)}.nar`, 'x')
    expect(refused.statusCode).toBe(400)
    expect(refused.body).toContain('another hash')
    expect(here.blobs.stats.blobs).toBe(0)
  })

  it('is refused when the narinfo says other contents, and leaves nothing', async () => {
    trusted()
    const { info, nar } = await elsewhere('x', 'x')
    const lies: ((text: string) => string)[] = [
      (text) => text.replace(/^NarSize: .*$/m, 'NarSize: 8'),
      (text) => text.replace(/^NarHash: .*$/m, `NarHash: sha256:${'0'.repeat(52)}`),
      (text) => text.replace(/^StorePath: .*$/m, `StorePath: ${nix.directory}/${'a'.repeat(32)}-y`),
      (text) => text.replace(/^URL: .*$/m, 'URL: nar/elsewhere.nar'),
      (text) => text.replace(/^References: .*$/m, `References: ${'b'.repeat(32)}-absent`),
      (text) => text.slice(0, -1),
    ]
    for (const lie of lies) {
      const refused = await here.push(info, nar, { text: lie })
      expect(refused.statusCode).toBe(400)
    }
    expect(here.held.info(info.path)).toBeUndefined()
    await here.settled()
    expect(here.published.size).toBe(0)
  })

  it('is refused without a signature that is trusted, naming what is missing, and accepted with it', async () => {
    const { info, nar } = await elsewhere('x', 'x')
    const refused = await here.push(info, nar)
    expect(refused.statusCode).toBe(403)
    expect(refused.body).toContain(`signed by ${builder.publicKey.name}, which this agent does not trust`)
    expect(refused.body).toContain('nix store sign')
    // What was refused is not kept.
    expect(here.blobs.stats.blobs).toBe(0)
    trusted()
    expect((await here.push(info, nar)).statusCode).toBe(200)
  })

  it('is accepted unsigned when this machine has the path, and shared from the store without a copy', async () => {
    const path = await nix.add('built', 'here')
    const info = { ...(nix.store.info(path) as PathInfo), signatures: [] }
    const nar = await narOf(path)
    expect((await here.push(info, nar)).statusCode).toBe(200)
    await here.settled()
    const [publication] = here.published.values()
    expect(publication?.manifest.paths.map((entry) => entry.path)).toEqual([path])
    expect(here.blobs.has(info.narHash)).toBe(false)
    // The same name with other contents is nobody's word.
    const forged = await elsewhere('built', 'elsewhere')
    const lie = { ...forged.info, path, signatures: [] }
    expect((await here.push(lie, forged.nar)).statusCode).toBe(403)
  })

  it('brings what a path needs and a peer has, and is refused where nobody has it', async () => {
    trusted()
    const leaf = await elsewhere('leaf', 'l')
    const root = await elsewhere('root', 'r', [leaf.info.path])
    const refused = await here.push(root.info, root.nar)
    expect(refused.statusCode).toBe(400)
    expect(refused.body).toContain(leaf.info.path)
    here.elsewhere.set(hashPartOf(leaf.info.path), leaf.info)
    expect((await here.push(root.info, root.nar)).statusCode).toBe(200)
    await here.settled()
    expect([...here.published.values()][0]?.body.paths.byteLength).toBe(12)
    expect(here.held.info(leaf.info.path)).toBeDefined()
  })

  it('is published after a restart when the agent was killed before', async () => {
    trusted()
    const { info, nar } = await elsewhere('x', 'x')
    await here.push(info, nar)
    await here.pushes[Symbol.asyncDispose]()
    expect(here.published.size).toBe(0)
    here.pushes = here.make()
    here.pushes.resume()
    await here.settled()
    expect(here.published.size).toBe(1)
    expect(here.blobs.has(info.narHash)).toBe(true)
  })

  it('is taken from those only who may use the agent, and for networks that there are', async () => {
    trusted()
    const { info, nar } = await elsewhere('x', 'x')
    expect((await here.push(info, nar, { base: '/nix/in/work' })).statusCode).toBe(404)
    expect((await here.push(info, nar, { base: '/nix/in/home' })).statusCode).toBe(200)
    here.refusal = 'not you'
    const refused = await here.push(info, nar)
    expect([refused.statusCode, refused.body]).toEqual([403, 'not you\n'])
  })

  it('is told when there is no room', async () => {
    await here[Symbol.asyncDispose]()
    here = new PushedTo(nix.store, { quotaBytes: 100_000 })
    const { info, nar } = await elsewhere('x', randomBytes(200_000).toString('hex'))
    const refused = await here.push(info, nar)
    expect(refused.statusCode).toBe(507)
    expect(refused.body).toContain('no room')
    expect(here.blobs.stats).toMatchObject({ blobs: 0, bytes: 0 })
  })

  it('answers in a network what is there for it, and takes the small files around', async () => {
    trusted()
    const { info, nar } = await elsewhere('x', 'x')
    const url = `/nix/in/home/${hashPartOf(info.path)}.narinfo`
    expect((await here.server.inject(url)).statusCode).toBe(404)
    await here.push(info, nar, { base: '/nix/in/home' })
    expect((await here.server.inject(url)).body).toContain(`StorePath: ${info.path}\n`)
    expect((await here.server.inject('/nix/in/home/nix-cache-info')).body).toContain('StoreDir: ')
    expect(
      (await here.put(`/nix/${hashPartOf(info.path)}.ls`, '{}', { 'content-type': 'application/json' })).statusCode,
    ).toBe(200)
    expect((await here.put('/nix/odd', 'x')).statusCode).toBe(404)
    expect(sha256(nar)).toBe(info.narHash)
  })
})
