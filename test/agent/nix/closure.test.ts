/** What publishing a store path makes, and what the store then gives to peers. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { OPEN_NETWORK_ID, publicationKey } from '../../../agent/content/publication-key.ts'
import { publishStorePath } from '../../../agent/nix/closure.ts'
import { NarSource } from '../../../agent/nix/nar-source.ts'
import { CacheKey, isSignedBy } from '../../../agent/nix/signing.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import {
  artifactBody,
  type ClosureManifest,
  decodeManifest,
  decodeSignatures,
  encodeManifest,
  manifestCid,
  pathPrefix,
} from '../../../protocols/artifact/artifact.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { MemoryBlobs, memoryLog, readAll, sha256 } from './peers.ts'

const signal = new AbortController().signal
const key = CacheKey.ephemeral('here')

const onStore = (nix: FakeNix) => ({ store: nix.store, key, blobs: new MemoryBlobs() })

describe('publishing a store path', () => {
  it('makes the manifest of its closure, and signs what was built here or is not signed', async () => {
    using nix = new FakeNix()
    const elsewhere = `cache-1:${Buffer.alloc(64).toString('base64')}`
    const built = await nix.add('built', 'b', { sigs: elsewhere, ultimate: true })
    const fetched = await nix.add('fetched', 'f', { sigs: elsewhere, ultimate: false })
    const unsigned = await nix.add('unsigned', 'u', { ultimate: false })
    const root = await nix.add('root', 'r', { references: ['self', built, fetched, unsigned] })
    const deps = onStore(nix)
    const made = await publishStorePath(root, { description: 'text', pin: 'artifact:root', signal }, deps)

    expect(made.name).toBe('root')
    expect(made.manifest.paths.map(({ path }) => path)).toEqual([built, fetched, unsigned, root].sort())
    expect(made.manifest.paths[made.manifest.root]?.path).toBe(root)
    const manifestBytes = deps.blobs.blobs.get(made.blobs.manifest) as Buffer
    expect(encodeManifest(decodeManifest(manifestBytes))).toEqual(encodeManifest(made.manifest))
    expect(made.body.cid.equals(manifestCid(manifestBytes))).toBe(true)
    expect(deps.blobs.pins).toEqual([`${made.blobs.manifest} artifact:root`, `${made.blobs.signatures} artifact:root`])

    const signatures = decodeSignatures(deps.blobs.blobs.get(made.blobs.signatures) as Buffer)
    const of = (path: string) => signatures[made.manifest.paths.findIndex((each) => each.path === path)] ?? []
    expect(of(built)).toHaveLength(2)
    expect(of(fetched)).toEqual([elsewhere])
    for (const path of [built, unsigned, root]) {
      expect(isSignedBy(key.publicKey, nix.store.info(path) as never, of(path)[0] ?? '')).toBe(true)
    }
  })

  it('makes the body of a record that peers accept', async () => {
    using nix = new FakeNix()
    const leaf = await nix.add('leaf', 'l')
    const root = await nix.add('root', 'r', { references: [leaf] })
    const { name, body } = await publishStorePath(root, { name: 'mine', pin: 'p', signal }, onStore(nix))
    expect(name).toBe('mine')
    expect(body).toMatchObject({ type: 'nix', root, description: '', signer: key.publicKey.text })
    expect(body.sizeBytes).toBe((nix.store.info(leaf)?.narSize ?? 0) + (nix.store.info(root)?.narSize ?? 0))
    const prefixes = [leaf, root].map((path) => Buffer.from(pathPrefix(hashPartOf(path)))).sort((a, b) => a.compare(b))
    expect(Buffer.from(body.paths)).toEqual(Buffer.concat(prefixes))
    // A test's store is elsewhere than /nix/store, which the schema allows too.
    expect(artifactBody.safeParse(body).error).toBeUndefined()
  })

  it('gives one closure one CID, whoever publishes it', async () => {
    using nix = new FakeNix()
    const root = await nix.add('root', 'r', { references: ['self'] })
    const mine = await publishStorePath(root, { pin: 'p', signal }, onStore(nix))
    const theirs = await publishStorePath(root, { pin: 'p', signal }, { ...onStore(nix), key: CacheKey.ephemeral('b') })
    expect(mine.body.cid.toString()).toBe(theirs.body.cid.toString())
    expect(mine.body.signatures.toString()).not.toBe(theirs.body.signatures.toString())
  })

  it('refuses what is not a valid path, and names that cannot be typed', async () => {
    using nix = new FakeNix()
    const root = await nix.add('root', 'r')
    const publish = (path: string, name?: string) => publishStorePath(path, { name, pin: 'p', signal }, onStore(nix))
    await expect(publish(`${root}/file`)).rejects.toMatchObject({ code: 'not-found' })
    await expect(publish('/etc')).rejects.toMatchObject({ code: 'not-found' })
    await expect(publish(root, 'a name')).rejects.toMatchObject({ code: 'usage' })
    await expect(publish(root, '')).rejects.toMatchObject({ code: 'usage' })
    await expect(publish(root, 'n'.repeat(129))).rejects.toMatchObject({ code: 'usage' })
    nix.closeDatabase()
    rmSync(nix.databasePath)
    await expect(publish(root)).rejects.toThrow(/no Nix store on this machine/)
  })
})

describe('the NARs of published paths', () => {
  const manifestOf = async (nix: FakeNix, root: string): Promise<ClosureManifest> =>
    (await publishStorePath(root, { pin: 'p', signal }, onStore(nix))).manifest

  async function published(nix: FakeNix, db = openDatabase(':memory:')) {
    const log = memoryLog()
    const leaf = await nix.add('leaf', 'l'.repeat(1000))
    const root = await nix.add('root', 'r', { references: [leaf] })
    const source = new NarSource({ db, store: nix.store, log })
    source.publish('mine', await manifestOf(nix, root))
    return { source, log, leaf, root, db }
  }

  it('are read from the store, and survive a restart', async () => {
    using nix = new FakeNix()
    const { leaf, root, db } = await published(nix)
    const again = new NarSource({ db, store: nix.store, log: memoryLog() })
    expect(again.pathCount).toBe(2)
    for (const path of [leaf, root]) {
      const digest = nix.store.info(path)?.narHash ?? ''
      const blob = await again.open(digest)
      expect(sha256(await readAll(blob as never))).toBe(digest)
      expect(again.byHashPart(hashPartOf(path))?.path).toBe(path)
      expect(again.pathOf(digest)).toBe(path)
    }
  })

  it('are not given when they are not published, or not any more', async () => {
    using nix = new FakeNix()
    const { source, leaf } = await published(nix)
    const other = await nix.add('other', 'o')
    expect(await source.open(nix.store.info(other)?.narHash ?? '')).toBeUndefined()
    expect(source.byHashPart(hashPartOf(other))).toBeUndefined()
    expect(source.byHashPart('z'.repeat(32))).toBeUndefined()
    source.publish('again', await manifestOf(nix, leaf))
    source.withdraw('mine')
    expect(source.pathCount).toBe(1)
    expect(source.byHashPart(hashPartOf(leaf))).toBeDefined()
    source.withdraw('again')
    expect(source.byHashPart(hashPartOf(leaf))).toBeUndefined()
  })

  it('are for the networks in which an artifact has them', async () => {
    using nix = new FakeNix()
    const { source, leaf, root, db } = await published(nix)
    const [leafNar, rootNar] = [leaf, root].map((path) => nix.store.info(path)?.narHash ?? '') as [string, string]
    const closed = ['c1', 'c2'].map((byte) => byte.repeat(32)) as [string, string]
    expect(source.networksOf(rootNar)).toEqual(new Set([OPEN_NETWORK_ID]))
    expect(source.networksOf(sha256(Buffer.from('absent')))).toEqual(new Set())
    source.publish(publicationKey(closed[0], 'mine'), await manifestOf(nix, leaf))
    source.publish(publicationKey(closed[1], 'mine'), await manifestOf(nix, root))
    expect(source.networksOf(leafNar)).toEqual(new Set([OPEN_NETWORK_ID, ...closed]))
    expect(source.networksOf(rootNar)).toEqual(new Set([OPEN_NETWORK_ID, closed[1]]))
    source.withdraw('mine')
    source.forgetNetwork(closed[1])
    expect(source.networks()).toEqual(new Set([closed[0]]))
    const again = new NarSource({ db, store: nix.store, log: memoryLog() })
    expect(again.networksOf(leafNar)).toEqual(new Set([closed[0]]))
    expect(await again.open(rootNar)).toBeUndefined()
  })

  it('of a path that Nix deleted are not held, which is logged once', async () => {
    using nix = new FakeNix()
    const { source, log, root } = await published(nix)
    const digest = nix.store.info(root)?.narHash ?? ''
    expect(await source.open(digest)).toBeDefined()
    nix.delete(root)
    expect(await source.open(digest)).toBeUndefined()
    expect(await source.open(digest)).toBeUndefined()
    expect(source.byHashPart(hashPartOf(root))).toBeUndefined()
    expect(log.events.filter(({ event }) => event === 'nix.path-gone')).toHaveLength(1)
    expect([...source.missingPaths()]).toEqual([root])
  })

  it('of a closure that Nix deleted are known to be missing before anybody asks, until it is built again or withdrawn', async () => {
    using nix = new FakeNix()
    const { source, root, leaf } = await published(nix)
    expect([...source.missingPaths()]).toEqual([])
    nix.delete(root)
    expect([...source.missingPaths()]).toEqual([root])
    mkdirSync(root)
    writeFileSync(join(root, 'file'), 'r')
    await nix.register(root, { references: [leaf] })
    expect([...source.missingPaths()]).toEqual([])
    nix.delete(root)
    expect([...source.missingPaths()]).toEqual([root])
    source.withdraw('mine')
    expect([...source.missingPaths()]).toEqual([])
  })

  it('of a path that was built again, differently, or whose files are gone, are not held', async () => {
    using nix = new FakeNix()
    const { source, root, leaf } = await published(nix)
    const digest = nix.store.info(root)?.narHash ?? ''
    writeFileSync(join(root, 'file'), 'another result')
    await nix.register(root)
    expect(await source.open(digest)).toBeUndefined()
    rmSync(leaf, { recursive: true })
    expect(await source.open(nix.store.info(leaf)?.narHash ?? '')).toBeUndefined()
  })

  it('of a path whose files changed size are not held', async () => {
    using nix = new FakeNix()
    const { source, log, root } = await published(nix)
    writeFileSync(join(root, 'file'), 'longer than it was')
    expect(await source.open(nix.store.info(root)?.narHash ?? '')).toBeUndefined()
    expect(log.events.at(-1)).toMatchObject({ event: 'nix.path-gone', fields: { path: root } })
  })

  it('are had from another path of the same contents when one is deleted', async () => {
    using nix = new FakeNix()
    const one = await nix.add('one', 'same')
    const other = await nix.add('other', 'same')
    const root = await nix.add('root', 'r', { references: [one, other] })
    const source = new NarSource({ db: openDatabase(':memory:'), store: nix.store, log: memoryLog() })
    source.publish('mine', await manifestOf(nix, root))
    const digest = nix.store.info(one)?.narHash ?? ''
    nix.exec('PRAGMA foreign_keys = OFF')
    nix.delete(one)
    expect(await source.open(digest)).toBeDefined()
  })

  it('keep few layouts in memory, and give the same bytes', async () => {
    using nix = new FakeNix()
    const big = join(nix.directory, `${'b'.repeat(32)}-big`)
    mkdirSync(big)
    for (let nth = 0; nth < 300; nth++) writeFileSync(join(big, `${nth}`), `${nth}`.repeat(nth))
    await nix.register(big)
    const source = new NarSource({ db: openDatabase(':memory:'), store: nix.store, log: memoryLog() })
    source.publish('big', await manifestOf(nix, big))
    const digest = nix.store.info(big)?.narHash ?? ''
    const all = await Promise.all(Array.from({ length: 8 }, async () => readAll((await source.open(digest)) as never)))
    for (const bytes of all) expect(sha256(bytes)).toBe(digest)
  })
})

it('a manifest of the most paths that there may be fits its limit', () => {
  const paths = Array.from({ length: 10_000 }, (_, at) => ({
    path: `/nix/store/${at.toString().padStart(32, '0')}-${'n'.repeat(40)}`,
    nar: Buffer.alloc(32),
    sizeBytes: 1_000_000,
    references: Array.from({ length: 12 }, (_unused, nth) => nth * 800 + (at % 800)),
  }))
  expect(encodeManifest({ v: 1, type: 'closure', root: 0, paths }).byteLength).toBeLessThan(4 * 1024 * 1024)
})
