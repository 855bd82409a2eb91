/** Pinned artifacts and the notes on blobs: what they say, and that they survive what happens to the agent. */
import { describe, expect, test } from 'vitest'
import { BlobNotes } from '../../../agent/content/blob-notes.ts'
import { Pins } from '../../../agent/content/pins.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { digestOf, never, Store } from './peers.ts'

const HOME = 'ab'.repeat(32)
const hello = { network: OPEN_NETWORK_ID, cid: 'c1', name: 'hello', type: 'file', sizeBytes: 1_000 } as const
const root = '/nix/store/0c0n4bqrmk2bmnmzsl2rg7a2hx3vc1dd-hello-2.12'

const pinsOf = (store: Store) => new Pins({ db: store.db, index: store.index, blobs: store.blobs, now: () => 5 })

describe('pinned artifacts', () => {
  test('keep their blobs whatever the quota, across restarts, until they are unpinned', async () => {
    using store = new Store({ quotaBytes: 2_000 })
    const { digest } = await store.blobs.write(undefined, [pattern(1_500)], never)
    pinsOf(store).add(hello, [digest])
    using after = store.reopened({ quotaBytes: 2_000 })
    const pins = pinsOf(after)
    expect(pins.list()).toEqual([{ ...hello, pinnedMs: 5 }])
    expect(pins.blobsOf(hello)).toEqual([digest])
    await expect(after.blobs.write(undefined, [pattern(1_000, 2)], never)).rejects.toMatchObject({ code: 'limit' })
    expect(pins.remove('hello')).toMatchObject(hello)
    expect(after.blobs.has(digest)).toBe(true)
    await after.blobs.write(undefined, [pattern(1_000, 2)], never)
    expect(after.blobs.has(digest)).toBe(false)
    expect(pins.list()).toEqual([])
  })

  test('share blobs, each with its own reason', async () => {
    using store = new Store()
    const { digest } = await store.blobs.write(undefined, [pattern(10)], never)
    const pins = pinsOf(store)
    pins.add(hello, [digest])
    pins.add({ ...hello, cid: 'c2', name: 'other' }, [digest])
    pins.remove('hello')
    expect(store.index.pins(digest)).toEqual([`pin:${OPEN_NETWORK_ID}/c2`])
    expect(pins.pinnedFor(`pin:${OPEN_NETWORK_ID}/c2`)?.name).toBe('other')
    expect(pins.pinnedFor('published')).toBeUndefined()
  })

  test('pinned again are one, with the blobs of the second time', () => {
    using store = new Store()
    const pins = pinsOf(store)
    pins.add(hello, ['a', 'b'])
    pins.add({ ...hello, name: 'renamed' }, ['b'])
    expect(pins.list()).toMatchObject([{ name: 'renamed' }])
    expect(pins.blobsOf(hello)).toEqual(['b'])
    expect(pins.absentOf(hello)).toEqual(['b'])
  })

  test('are named by CID, name, publisher and name, or store path; several are asked back', () => {
    using store = new Store()
    const pins = pinsOf(store)
    pins.add({ ...hello, type: 'nix', root, pathCount: 2 }, [])
    for (const ref of ['hello', 'apple/hello', 'c1', root]) expect(pins.find(ref)).toHaveLength(1)
    expect(() => pins.remove('nope')).toThrow(expect.objectContaining({ code: 'not-found' }) as Error)
    pins.add({ ...hello, cid: 'c2' }, [])
    expect(() => pins.remove('hello')).toThrow(
      expect.objectContaining({ code: 'usage', next: 'Name one by its CID: c1 or c2.' }) as Error,
    )
    pins.add({ ...hello, network: HOME }, [])
    expect(() => pins.remove('c1')).toThrow(
      expect.objectContaining({ next: expect.stringContaining('--network') }) as Error,
    )
    expect(pins.remove('c1', HOME)).toMatchObject({ network: HOME })
  })

  test('of a network that was left go, and what is here for them only', async () => {
    using store = new Store()
    const pins = pinsOf(store)
    const [{ digest }, both] = [
      await store.blobs.write(undefined, [pattern(10)], never),
      await store.blobs.write(undefined, [pattern(11)], never),
    ]
    pins.add({ ...hello, network: HOME }, [digest, both.digest])
    pins.add(hello, [both.digest])
    expect(pins.networks()).toEqual(new Set([HOME, OPEN_NETWORK_ID]))
    pins.forgetNetwork(HOME)
    expect([digest, both.digest].map((one) => store.blobs.has(one))).toEqual([false, true])
    expect(pins.networks()).toEqual(new Set([OPEN_NETWORK_ID]))
  })

  test('give nobody a right to be given their blobs', async () => {
    using store = new Store()
    const { digest } = await store.blobs.write(undefined, [pattern(10)], never)
    pinsOf(store).add({ ...hello, network: HOME }, [digest])
    expect([...store.blobs.networksOf(digest)]).toEqual([])
  })
})

describe('notes', () => {
  test('say since when a blob is here, and what it is; they go with it', async () => {
    let now = 1_000
    using store = new Store({ now: () => now })
    const { digest } = digestOf(pattern(10))
    store.index.notes.name(digest, 'hello')
    await store.blobs.write(undefined, [pattern(10)], never)
    now = 2_000_000
    await store.blobs.write(undefined, [pattern(10)], never)
    const { notes } = store.index
    expect(notes.get(digest)).toMatchObject({ sinceMs: 1_000, what: 'hello' })
    expect(notes.named('hello')).toEqual([digest])
    store.index.drop(digest)
    expect(notes.get(digest)).toMatchObject({ sinceMs: undefined, what: undefined })
  })

  test('count servings in memory, and write them down once a minute and at the end', async () => {
    let now = 0
    using store = new Store()
    const { digest } = await store.blobs.write(undefined, [pattern(10)], never)
    const changes = () => (store.db.prepare('SELECT total_changes() AS n').get() as { n: number }).n
    const before = changes()
    {
      using notes = new BlobNotes(store.db, () => now)
      for (let piece = 0; piece < 500; piece++) notes.served(digest, 100, piece % 100 === 0)
      expect(changes()).toBe(before)
      expect(notes.get(digest).served).toEqual({ times: 5, bytes: 50_000, lastMs: 0 })
      now = 61_000
      notes.served(digest, 1, false)
      expect(changes()).toBe(before + 1)
      notes.served(digest, 1, false)
      expect(changes()).toBe(before + 1)
    }
    using after = store.reopened()
    expect(after.index.notes.get(digest).served).toEqual({ times: 5, bytes: 50_002, lastMs: 61_000 })
  })

  test('of what is not in the blob directory stay as long as it is somewhere', async () => {
    using store = new Store()
    const { notes } = store.index
    const { digest } = await store.blobs.write(undefined, [pattern(10)], never)
    for (const one of [digest, 'aa', 'bb']) notes.name(one, 'what')
    notes.served('cc', 1, true)
    notes.sweep((one) => one === 'aa')
    notes.flush()
    expect(notes.named('what').sort()).toEqual([digest, 'aa'].sort())
    expect(notes.get('cc').served.bytes).toBe(0)
  })

  test('are there for what was here before there were notes', async () => {
    using store = new Store()
    const { digest } = await store.blobs.write(undefined, [pattern(10)], never)
    store.db.exec(`DROP TABLE content_notes; DROP TRIGGER content_notes_new; DROP TRIGGER content_notes_gone;
      DELETE FROM schema_versions WHERE part = 'content-notes'`)
    using after = store.reopened()
    expect(after.index.notes.get(digest).sinceMs).toBeGreaterThan(0)
  })

  test('of many blobs are listed by size, use and servings', async () => {
    let now = 0
    using store = new Store({ now: () => now })
    const digests: string[] = []
    for (const size of [30, 10, 20]) {
      now += 1_000
      digests.push((await store.blobs.write(undefined, [pattern(size)], never)).digest)
    }
    const [large, small, middle] = digests as [string, string, string]
    store.index.notes.served(small, 5, true)
    store.index.notes.flush()
    store.index.putPartial({ digest: 'ff', sizeBytes: 25, network: HOME }, 500)
    const order = (by: 'size' | 'used' | 'served', limit = 10) =>
      store.index.rows(by, limit).map(({ digest }) => digest)
    expect(order('size')).toEqual([large, 'ff', middle, small])
    expect(order('used')).toEqual([middle, small, large, 'ff'])
    expect(order('served', 1)).toEqual([small])
    expect(store.index.rows('size', 2)[1]).toMatchObject({ partialOf: HOME })
  })
})
