/** What the agent reads from Nix's database, while Nix writes, and when it is not there. */
import { existsSync, mkdirSync, renameSync } from 'node:fs'
import { expect, it } from 'vitest'
import { NixStore } from '../../../agent/nix/nix-store.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'

it('tells what Nix knows of a path, and finds it by its hash part', async () => {
  using nix = new FakeNix()
  const leaf = await nix.add('leaf', 'l', { sigs: 'a-1:AAAA b-1:BBBB', ultimate: false })
  const root = await nix.add('root', 'r', { references: [leaf, 'self'], ca: 'text:sha256:x' })
  const info = nix.store.info(root)
  expect(info).toMatchObject({ path: root, references: [leaf, root].sort(), ca: 'text:sha256:x', ultimate: true })
  expect(info?.signatures).toEqual([])
  expect(nix.store.info(leaf)).toMatchObject({ signatures: ['a-1:AAAA', 'b-1:BBBB'], ultimate: false, ca: undefined })
  expect(nix.store.byHashPart(hashPartOf(root))).toEqual(info)
  expect(nix.store.byHashPart('0'.repeat(32))).toBeUndefined()
  expect(nix.store.info(`${root}x`)).toBeUndefined()
})

it('gives the closure, references included, cycles and all', async () => {
  using nix = new FakeNix()
  const paths: string[] = []
  for (let nth = 0; nth < 30; nth++) {
    paths.push(await nix.add(`p${nth}`, `${nth}`, { references: ['self', ...paths.slice(-2)] }))
  }
  await nix.add('unrelated', 'u')
  const root = paths.at(-1) as string
  expect(nix.store.closure(root)?.map(({ path }) => path)).toEqual([...paths].sort())
  expect(nix.store.closure(`${root}-not`)).toBeUndefined()
})

it('knows which store path a file lies in', () => {
  using nix = new FakeNix()
  const path = `${nix.directory}/${'a'.repeat(32)}-name`
  expect(nix.store.storePathOf(`${path}/bin/hello`)).toBe(path)
  expect(nix.store.storePathOf(path)).toBe(path)
  expect(nix.store.storePathOf(nix.directory)).toBeUndefined()
  expect(nix.store.storePathOf(`${nix.directory}/${'e'.repeat(32)}-name`)).toBeUndefined()
  expect(nix.store.storePathOf(`${nix.directory}/.links/x`)).toBeUndefined()
  expect(nix.store.storePathOf('/etc/passwd')).toBeUndefined()
})

it('sees what Nix adds and removes', async () => {
  using nix = new FakeNix()
  const path = await nix.add('one', '1')
  expect(nix.store.info(path)).toBeDefined()
  const later = await nix.add('two', '2')
  expect(nix.store.info(later)).toBeDefined()
  nix.delete(path)
  expect(nix.store.info(path)).toBeUndefined()
})

it('reads a database that nobody has open, and the one that takes its place', async () => {
  using nix = new FakeNix()
  const path = await nix.add('one', '1')
  nix.closeDatabase()
  expect(existsSync(`${nix.databasePath}-wal`)).toBe(false)
  expect(nix.store.info(path)).toBeDefined()
  renameSync(nix.databasePath, `${nix.databasePath}.away`)
  expect(nix.store.isInstalled).toBe(false)
  expect(nix.store.info(path)).toBeUndefined()
  renameSync(`${nix.databasePath}.away`, nix.databasePath)
  expect(nix.store.info(path)).toBeDefined()
})

it('says what is wrong with a database that is none', () => {
  using nix = new FakeNix()
  mkdirSync(`${nix.root}/empty`)
  const store = new NixStore(nix.directory, `${nix.root}/empty`)
  expect(() => store.info(`${nix.directory}/x`)).toThrow(/cannot be read/)
})

it('follows the environment that Nix follows', () => {
  const store = NixStore.ofMachine({ NIX_STORE_DIR: '/other/store', NIX_STATE_DIR: '/nowhere' })
  expect(store.directory).toBe('/other/store')
  expect(store.isInstalled).toBe(false)
  expect(NixStore.ofMachine({}).directory).toBe('/nix/store')
})
