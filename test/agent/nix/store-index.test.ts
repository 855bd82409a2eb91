/** Which paths of a store may be given out, while Nix adds and deletes and rules change. */
import { renameSync } from 'node:fs'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { StoreIndex } from '../../../agent/nix/store-index.ts'
import { StoreRules } from '../../../agent/nix/store-rules.ts'
import { filterKey } from '../../../protocols/records/filter.ts'
import { until } from '../../agents.ts'
import { FakeNix, hashPartOf } from './nix-database.ts'
import { memoryLog } from './peers.ts'

const RULES = new StoreRules(['*-secret', '*.drv'])
let nix: FakeNix
let index: StoreIndex
beforeEach(() => {
  nix = new FakeNix()
  index = new StoreIndex({ store: nix.store, rules: RULES, log: memoryLog(), lookMs: 10 })
})
afterEach(async () => {
  await index[Symbol.asyncDispose]()
  nix[Symbol.dispose]()
})

const has = (path: string) => index.byHashPart(hashPartOf(path))?.path === path
const ready = () => until(() => index.isReady, { what: 'the store was read' })

it('has what is valid, by hash part and by NAR, once it follows the store', async () => {
  const path = await nix.add('hello', 'h')
  const narHash = nix.store.info(path)?.narHash ?? ''
  expect([has(path), index.hasNar(narHash)]).toEqual([false, false])
  index.start()
  await ready()
  expect([has(path), index.hasNar(narHash), index.byNar(narHash)?.path]).toEqual([true, true, path])
  expect(index.byHashPart('0'.repeat(32))).toBeUndefined()
  expect([...index.keys()]).toEqual([filterKey(hashPartOf(path))])
  await index.stop()
  expect([has(path), index.hasNar(narHash), index.pathCount]).toEqual([false, false, 0])
})

it('keeps back what is private and what refers to it, also through others, and never asks Nix of it', async () => {
  const leaf = await nix.add('leaf', 'l')
  const secret = await nix.add('my-secret', 's', { references: [leaf] })
  const over = await nix.add('over', 'o', { references: [secret] })
  const top = await nix.add('top', 't', { references: [over, leaf, 'self'] })
  const drv = await nix.add('leaf.drv', 'd')
  index.start()
  await ready()
  expect([leaf, secret, over, top, drv].filter(has)).toEqual([leaf])
  for (const path of [secret, over, top]) {
    const narHash = nix.store.info(path)?.narHash ?? ''
    expect([index.hasNar(narHash), index.byNar(narHash)]).toEqual([false, undefined])
  }
  // Also of what comes later, in whatever order.
  const above = await nix.add('above', 'a', { references: [top] })
  const beside = await nix.add('beside', 'b', { references: [leaf] })
  await until(() => has(beside), { what: 'it is seen' })
  expect(has(above)).toBe(false)
})

it('tells what came and what went', async () => {
  const told: { added: number[]; gone: number[] } = { added: [], gone: [] }
  index.onChange(({ added, gone }) => {
    told.added.push(...added)
    told.gone.push(...gone)
  })
  const one = await nix.add('one', '1')
  index.start()
  await until(() => told.added.length === 1, { what: 'the first is told of' })
  const two = await nix.add('two', '2')
  await until(() => told.added.length === 2, { what: 'the second is told of' })
  nix.delete(one)
  // The answer is right at once.
  expect(has(one)).toBe(false)
  await until(() => told.gone.length === 1, { what: 'it is told that it went' })
  expect(told).toEqual({ added: [one, two].map(keyOf), gone: [keyOf(one)] })
  expect(index.pathCount).toBe(1)
})

it('takes other rules at once, and what follows from them soon', async () => {
  const plain = await nix.add('plain', 'p')
  const over = await nix.add('over', 'o', { references: [plain] })
  const secret = await nix.add('my-secret', 's')
  index.start()
  await ready()
  expect([plain, over, secret].filter(has)).toEqual([plain, over])
  index.setRules(new StoreRules(['pl*']))
  expect(has(plain)).toBe(false)
  await until(() => has(secret) && !index.hasNar(nix.store.info(over)?.narHash ?? ''), { what: 'the rules hold' })
  expect([plain, over, secret].filter(has)).toEqual([secret])
})

it('gives out no more what is not as Nix registered it', async () => {
  const path = await nix.add('bad', 'b')
  const narHash = nix.store.info(path)?.narHash ?? ''
  index.start()
  await ready()
  index.reject(narHash)
  expect(has(path)).toBe(false)
  await until(() => index.pathCount === 0, { what: 'it is left out' })
})

it('waits for a Nix that is not there yet, and reads the store that takes its place', async () => {
  const path = await nix.add('one', '1')
  nix.closeDatabase()
  renameSync(nix.databasePath, `${nix.databasePath}.away`)
  index.start()
  expect(index.isReady).toBe(false)
  renameSync(`${nix.databasePath}.away`, nix.databasePath)
  await ready()
  expect(has(path)).toBe(true)
})

function keyOf(path: string): number {
  return filterKey(hashPartOf(path))
}
