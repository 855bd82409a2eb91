/** What is on the disk for good only a while after it came, and what is left of it when the machine stops before. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { LateSync } from '../../../agent/content/late-sync.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { until } from '../mesh/nodes.ts'
import { digestOf, never, recordingLog, Store } from './peers.ts'

const synced = vi.hoisted((): string[] => [])
vi.mock('../../../agent/state/disk.ts', async (original) => {
  const disk = await original<typeof import('../../../agent/state/disk.ts')>()
  const syncPath = async (path: string) => {
    await disk.syncPath(path)
    synced.push(path)
  }
  return { ...disk, syncPath }
})

const LATE = { network: 'ab'.repeat(32), isLate: true }

function unsyncedIn({ index }: Store): string[] {
  return index.unsynced().map(({ digest }) => digest)
}

describe('a blob that can be had again', () => {
  test('is there at once, and on the disk when the agent has stopped', async () => {
    using store = new Store()
    const bytes = pattern(1000)
    const { digest } = await store.blobs.write(undefined, [bytes], never, LATE)
    expect(Buffer.compare((await store.contents(digest)) ?? Buffer.of(), bytes)).toBe(0)
    expect(unsyncedIn(store)).toEqual([digest])
    await store.blobs[Symbol.asyncDispose]()
    expect(unsyncedIn(store)).toEqual([])
  })

  test('is on the disk at once when it is kept for a reason', async () => {
    using store = new Store()
    const [first, second] = [pattern(1000, 1), pattern(1000, 2)]
    store.blobs.pin(digestOf(first).digest, 'kept')
    await store.blobs.write(digestOf(first).digest, [first], never, LATE)
    await store.blobs.write(undefined, [second], never, { ...LATE, pin: 'kept' })
    expect(unsyncedIn(store)).toEqual([])
  })

  test('is synced late with its name, and that of its directory', async () => {
    using store = new Store()
    synced.length = 0
    const { digest } = await store.blobs.write(undefined, [pattern(1000)], never, LATE)
    expect(synced).toEqual([])
    await store.blobs[Symbol.asyncDispose]()
    const path = store.blobs.pathOf(digest)
    expect(synced).toEqual([path, dirname(path), dirname(dirname(path))])
  })

  test('is synced so at once when it is kept for a reason', async () => {
    using store = new Store()
    synced.length = 0
    const { digest } = await store.blobs.write(undefined, [pattern(1000)], never, { ...LATE, pin: 'kept' })
    const path = store.blobs.pathOf(digest)
    expect(synced).toEqual([expect.stringContaining('/incoming/'), dirname(path), dirname(dirname(path))])
  })

  test('outlives a kill, and is still to be synced then', async () => {
    using before = new Store()
    const { digest } = await before.blobs.write(undefined, [pattern(1000)], never, LATE)
    using after = before.reopened()
    expect((await after.contents(digest))?.byteLength).toBe(1000)
    expect(unsyncedIn(after)).toEqual([digest])
    await after.blobs[Symbol.asyncDispose]()
    expect(unsyncedIn(after)).toEqual([])
  })

  test('is dropped, and that is logged, when the machine stopped before; what was synced stays', async () => {
    using before = new Store()
    const { digest: synced } = await before.blobs.write(undefined, [pattern(1000, 1)], never, LATE)
    await before.blobs[Symbol.asyncDispose]()
    const { digest: late } = await before.blobs.write(undefined, [pattern(1000, 2)], never, LATE)
    before.db.exec(`UPDATE content_unsynced SET boot = 'another'`)
    using after = before.reopened()
    expect([late, synced].map((one) => after.blobs.has(one))).toEqual([false, true])
    expect(existsSync(after.blobs.pathOf(late))).toBe(false)
    expect(after.blobs.stats).toMatchObject({ blobs: 1, bytes: 1000 })
    expect(after.blobs.networksOf(late)).toEqual(new Set())
    expect(unsyncedIn(after)).toEqual([])
    expect(after.entries).toContainEqual(
      expect.objectContaining({
        msg: 'blob.lost',
        digest: late,
        reason: expect.stringContaining('the machine stopped'),
      }),
    )
  })

  test('is no longer waited for when it was evicted, or written again for good', async () => {
    using store = new Store()
    const bytes = pattern(1000, 1)
    const [evicted, again] = [
      await store.blobs.write(undefined, [pattern(1000, 2)], never, LATE),
      await store.blobs.write(undefined, [bytes], never, LATE),
    ]
    store.blobs.evict({ ...evicted, partialOf: undefined })
    await store.blobs.write(undefined, [bytes], never)
    expect(unsyncedIn(store)).toEqual([])
    expect(store.blobs.has(again.digest)).toBe(true)
  })
})

describe('late syncs', () => {
  function made(synced: (digests: readonly string[]) => void) {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-late-'))
    onTestFinished(() => rmSync(directory, { recursive: true }))
    const { log, entries } = recordingLog()
    const pathOf = (digest: string) => join(directory, digest)
    const sync = new LateSync({ index: { synced }, pathOf, log, delayMs: 10 })
    const add = (digest: string) => {
      writeFileSync(pathOf(digest), digest)
      sync.add(digest)
    }
    return { sync, add, entries }
  }

  test('are made for all that came meanwhile, again and again, without those that are gone', async () => {
    const batches: (readonly string[])[] = []
    const { sync, add } = made((digests) => batches.push(digests))
    add('a')
    sync.add('gone')
    add('b')
    await until('the first are synced', () => batches.length === 1)
    add('c')
    await until('the next one is', () => batches.length === 2)
    expect(batches).toEqual([['a', 'b'], ['c']])
    add('d')
    await sync[Symbol.asyncDispose]()
    expect(batches).toEqual([['a', 'b'], ['c'], ['d']])
  })

  test('of one that fails keep no other from being synced', async () => {
    const all: string[] = []
    const { sync, add, entries } = made((digests) => all.push(...digests))
    add('a')
    // Below a file.
    sync.add('a/b')
    add('c')
    await until('the others are synced', () => all.length > 0)
    expect(all).toEqual(['a', 'c'])
    expect(entries).toContainEqual(expect.objectContaining({ msg: 'blobs.sync-failed' }))
    await sync[Symbol.asyncDispose]()
  })

  test('that fail are told of, and end nothing', async () => {
    let fails = true
    const later: string[] = []
    const { sync, add, entries } = made((digests) => {
      if (fails) throw new Error('the disk is full')
      later.push(...digests)
    })
    add('a')
    await until('it is told', () => entries.some(({ msg }) => msg === 'blobs.sync-failed'))
    fails = false
    add('b')
    await until('the next one is synced', () => later.includes('b'))
    await sync[Symbol.asyncDispose]()
  })
})
