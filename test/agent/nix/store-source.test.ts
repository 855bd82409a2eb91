/** The Nix store as blobs: only in networks in which it is given out, only what may be, and the very bytes. */
import { createHash } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { PieceLists } from '../../../agent/content/piece-lists.ts'
import { StoreIndex } from '../../../agent/nix/store-index.ts'
import { StoreRules } from '../../../agent/nix/store-rules.ts'
import { StoreShares } from '../../../agent/nix/store-shares.ts'
import { StoreSource } from '../../../agent/nix/store-source.ts'
import { type Database, openDatabase } from '../../../agent/state/database.ts'
import { until } from '../../agents.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { memoryLog } from './peers.ts'

const HOME = 'ab'.repeat(32)
const signal = AbortSignal.timeout(20_000)
let nix: FakeNix
let db: Database
let index: StoreIndex
let shares: StoreShares
let source: StoreSource
beforeEach(() => {
  nix = new FakeNix()
  db = openDatabase(':memory:')
  const log = memoryLog()
  index = new StoreIndex({ store: nix.store, rules: new StoreRules(['*-secret']), log, lookMs: 10 })
  shares = new StoreShares(db)
  source = new StoreSource({ index, shares, log })
})
afterEach(async () => {
  await index[Symbol.asyncDispose]()
  db.close()
  nix[Symbol.dispose]()
})

async function added(name: string, contents: string): Promise<{ path: string; digest: string }> {
  const path = await nix.add(name, contents)
  index.start()
  await until(() => index.isReady, { what: 'the store is read' })
  if (!name.endsWith('-secret'))
    await until(() => index.byHashPart(hashPartOf(path)) !== undefined, { what: 'it is seen' })
  return { path, digest: nix.store.info(path)?.narHash ?? '' }
}

it('is given out where somebody said so, and nowhere else, also after a restart', async () => {
  const { path, digest } = await added('hello', 'h'.repeat(300_000))
  expect([[...source.networksOf(digest)], await source.open(digest), source.pathOf(digest)]).toEqual([
    [],
    undefined,
    undefined,
  ])
  let changes = 0
  const stop = shares.onChange(() => changes++)
  shares.set(HOME, 'store')
  shares.set(HOME, 'store')
  expect([changes, shares.modeOf(HOME), shares.modeOf('cd'.repeat(32))]).toEqual([1, 'store', 'published'])
  expect(new StoreShares(db).modeOf(HOME)).toBe('store')
  expect([...source.networksOf(digest)]).toEqual([HOME])
  const opened = await source.open(digest)
  const hash = createHash('sha256')
  for await (const chunk of opened?.read(0, opened.sizeBytes, signal) ?? []) hash.update(chunk)
  expect([hash.digest('hex'), source.pathOf(digest)]).toEqual([digest, path])
  shares.set(HOME, 'published')
  stop()
  expect([[...source.networksOf(digest)], await source.open(digest)]).toEqual([[], undefined])
  expect(new StoreShares(db).modeOf(HOME)).toBe('published')
})

it('is as if it had no private path', async () => {
  shares.set(HOME, 'store')
  const { digest } = await added('my-secret', 's')
  const absent = '00'.repeat(32)
  expect([[...source.networksOf(digest)], [...source.networksOf(absent)]]).toEqual([[], []])
  expect(await source.open(digest)).toBe(await source.open(absent))
})

it('gives a path no more whose files were deleted or are others than Nix registered', async () => {
  shares.set(HOME, 'store')
  const gone = await added('gone', 'g')
  const grown = await added('grown', 'g'.repeat(1_000))
  const bent = await added('bent', 'b'.repeat(600_000))
  rmSync(gone.path, { recursive: true })
  writeFileSync(`${grown.path}/file`, 'longer'.repeat(1_000))
  expect([await source.open(gone.digest), await source.open(grown.digest)]).toEqual([undefined, undefined])
  writeFileSync(`${bent.path}/file`, 'c'.repeat(600_000))
  const opened = await source.open(bent.digest)
  if (!opened) throw new Error('a change that leaves the size is not seen yet')
  await expect(new PieceLists(db).of(bent.digest, opened, signal)).rejects.toMatchObject({ code: 'corrupt' })
  expect(await source.open(bent.digest)).toBeUndefined()
})
