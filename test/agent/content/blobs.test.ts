/** The blob directory: what is written is kept or refused, the quota holds, and whatever a crash left is put right. */
import { existsSync, readdirSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { TEMPORARY_PIN } from '../../../agent/content/content.ts'
import { PieceLists } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { PieceHasher } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { digestOf, never, Store } from './peers.ts'

const MIB = 1024 * 1024

describe('writing', () => {
  test('keeps any bytes, however they are cut, and reads any range of them', async () => {
    using store = new Store()
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.uint8Array({ maxLength: 400_000, size: 'max' }), { maxLength: 4 }),
        fc.nat(),
        fc.nat(),
        async (chunks, x, y) => {
          const whole = Buffer.concat(chunks)
          const { digest, sizeBytes } = await store.blobs.write(undefined, chunks, never)
          expect({ digest, sizeBytes }).toEqual({ digest: digestOf(whole).digest, sizeBytes: whole.byteLength })
          const offset = x % (sizeBytes + 1)
          const length = y % (sizeBytes - offset + 1)
          const source = await store.blobs.open(digest)
          const read = Buffer.concat(await Array.fromAsync(source?.read(offset, length, never) ?? []))
          await source?.close?.()
          expect(Buffer.compare(read, whole.subarray(offset, offset + length))).toBe(0)
        },
      ),
      { numRuns: 20 },
    )
  })

  test('refuses bytes of another digest, and leaves nothing', async () => {
    using store = new Store()
    const { digest } = digestOf(pattern(10))
    await expect(store.blobs.write(digest, [pattern(11)], never)).rejects.toMatchObject({ code: 'corrupt' })
    expect(store.blobs.has(digest)).toBe(false)
    expect(store.blobs.stats).toMatchObject({ blobs: 0, bytes: 0 })
    expect(readdirSync(join(store.directory, 'blobs', 'incoming'))).toEqual([])
  })

  test('ends with its signal, and with its source, and leaves nothing', async () => {
    using store = new Store()
    const leaving = new AbortController()
    const endless = (async function* () {
      for (;;) {
        yield pattern(1000)
        leaving.abort(new Error('left'))
      }
    })()
    await expect(store.blobs.write(undefined, endless, leaving.signal)).rejects.toThrow('left')
    const broken = (async function* () {
      yield pattern(1000)
      throw new Error('broken off')
    })()
    await expect(store.blobs.write(undefined, broken, never)).rejects.toThrow('broken off')
    expect(readdirSync(join(store.directory, 'blobs', 'incoming'))).toEqual([])
    expect(store.blobs.stats.bytes).toBe(0)
  })

  test('the same bytes twice are one blob', async () => {
    using store = new Store()
    await store.blobs.write(undefined, [pattern(1000)], never)
    await store.blobs.write(undefined, [pattern(1000)], never)
    expect(store.blobs.stats).toMatchObject({ blobs: 1, bytes: 1000 })
  })
})

describe('the quota', () => {
  test('lets what was unused longest go; what is pinned or open stays', async () => {
    let now = 0
    using store = new Store({ quotaBytes: 4 * MIB, now: () => now })
    const written: string[] = []
    for (let seed = 0; seed < 4; seed++) {
      now += 60 * 60_000
      written.push((await store.blobs.write(undefined, [pattern(MIB, seed)], never)).digest)
    }
    const [pinned, open, oldest, youngest] = written as [string, string, string, string]
    store.blobs.pin(pinned, 'published')
    const source = await store.blobs.open(open)
    now += 60 * 60_000
    const added = await store.blobs.write(undefined, [pattern(MIB, 4)], never)
    expect([pinned, open, oldest, youngest, added.digest].map((one) => store.blobs.has(one))).toEqual([
      true,
      true,
      false,
      true,
      true,
    ])
    expect(existsSync(store.blobs.pathOf(oldest))).toBe(false)
    expect(store.blobs.stats.bytes).toBe(4 * MIB)
    await source?.close?.()
  })

  test('is an error that says why when everything left is pinned; nothing is evicted for it', async () => {
    using store = new Store({ quotaBytes: 3 * MIB })
    const kept = await store.blobs.write(undefined, [pattern(2 * MIB, 1)], never, { pin: 'published' })
    const cached = await store.blobs.write(undefined, [pattern(MIB / 2, 2)], never)
    await expect(store.blobs.write(undefined, [pattern(MIB + 1, 3)], never)).rejects.toMatchObject({
      code: 'limit',
      message: expect.stringContaining('2.0 MiB is published or kept'),
    })
    expect([kept.digest, cached.digest].map((one) => store.blobs.has(one))).toEqual([true, true])
    store.blobs.unpin(kept.digest, 'published')
    await store.blobs.write(undefined, [pattern(MIB + 1, 3)], never)
    expect(store.blobs.has(kept.digest)).toBe(false)
  })

  test('a pin has reasons, and holds until the last is gone', async () => {
    using store = new Store({ quotaBytes: MIB })
    const { digest } = await store.blobs.write(undefined, [pattern(MIB)], never, { pin: 'a' })
    store.blobs.pin(digest, 'b')
    store.blobs.unpin(digest, 'a')
    await expect(store.blobs.write(undefined, [pattern(1)], never)).rejects.toMatchObject({ code: 'limit' })
    store.blobs.unpin(digest, 'b')
    await store.blobs.write(undefined, [pattern(1)], never)
  })
})

describe('after a crash', () => {
  test('what was acknowledged is there; half-written files and files without a row are gone', async () => {
    using before = new Store()
    const { digest } = await before.blobs.write(undefined, [pattern(1000)], never)
    const stray = digestOf(pattern(7)).digest
    writeFileSync(join(before.directory, 'blobs', 'incoming', '1-1'), 'half')
    writeFileSync(join(before.directory, 'blobs', 'partial', stray), 'half')
    writeFileSync(join(before.directory, 'blobs', digest.slice(0, 2), stray), 'unacknowledged')
    using after = before.reopened()
    expect((await after.contents(digest))?.byteLength).toBe(1000)
    expect(after.blobs.stats).toMatchObject({ blobs: 1, bytes: 1000 })
    expect(readdirSync(join(after.directory, 'blobs', digest.slice(0, 2)))).toEqual([digest])
    expect(readdirSync(join(after.directory, 'blobs', 'incoming'))).toEqual([])
    expect(readdirSync(join(after.directory, 'blobs', 'partial'))).toEqual([])
  })

  test('a fetched blob that was moved to its place before its row was written is taken over', async () => {
    using before = new Store()
    const bytes = pattern(1000)
    const { digest } = digestOf(bytes)
    before.blobs.keepPartial({ digest, network: OPEN_NETWORK_ID }, 1000)
    await before.blobs.write(digest, [bytes], never)
    before.index.drop(digest)
    before.blobs.keepPartial({ digest, network: OPEN_NETWORK_ID }, 1000)
    using after = before.reopened()
    expect(Buffer.compare((await after.contents(digest)) ?? Buffer.of(), bytes)).toBe(0)
    // The row of a partial may be older than the file, and that of another network.
    expect(after.blobs.networksOf(digest)).toEqual(new Set())
  })

  test('rows whose file is gone are dropped, and that is logged', async () => {
    using before = new Store()
    const { digest } = await before.blobs.write(undefined, [pattern(1000)], never, { pin: 'published' })
    rmSync(before.blobs.pathOf(digest))
    using after = before.reopened()
    expect(after.blobs.has(digest)).toBe(false)
    expect(after.entries).toContainEqual(expect.objectContaining({ msg: 'blob.lost', digest, pins: ['published'] }))
  })

  test('a blob goes with the last reason that it was kept for', async () => {
    using store = new Store()
    const write = (seed: number) => store.blobs.write(undefined, [pattern(1000, seed)], never)
    const [both, one, cached] = [await write(1), await write(2), await write(3)]
    store.blobs.setPins('a', [both.digest, one.digest])
    store.blobs.setPins('b', [both.digest])
    store.blobs.setPins('a', [])
    expect([both, one, cached].map(({ digest }) => store.blobs.has(digest))).toEqual([true, false, true])
    expect(existsSync(store.blobs.pathOf(one.digest))).toBe(false)
    expect(store.blobs.stats).toMatchObject({ blobs: 2, bytes: 2000 })
    store.blobs.setPins('b', [both.digest])
    expect(store.blobs.has(both.digest)).toBe(true)
  })

  test('temporary pins do not outlive the agent that set them', async () => {
    using before = new Store()
    const { digest } = await before.blobs.write(undefined, [pattern(10)], never, { pin: `${TEMPORARY_PIN}1` })
    before.blobs.pin(digest, 'published')
    using after = before.reopened()
    expect(after.index.pins(digest)).toEqual(['published'])
  })
})

describe('a blob that is read', () => {
  test('is closed when what is being read of it has been read, and then no more is', async () => {
    using store = new Store()
    const bytes = pattern(4 * MIB)
    const { digest } = await store.blobs.write(undefined, [bytes], never)
    const source = await store.blobs.open(digest)
    const buffer = Buffer.alloc(4 * MIB)
    const reading = source?.readInto?.(buffer, 0)
    await source?.close?.()
    expect(Buffer.compare(buffer, bytes)).toBe(0)
    await reading
    await expect(source?.readInto?.(buffer, 0)).rejects.toThrow('closed')
    expect(store.blobs.isInUse(digest)).toBe(false)
  })
})

describe('a blob that the disk lost', () => {
  test.each([
    ['is gone', (path: string) => renameSync(path, `${path}.away`)],
    ['is cut short', (path: string) => truncateSync(path, 10)],
  ])('whose file %s is not there any more, and that is logged', async (_how, spoil) => {
    using store = new Store()
    const { digest } = await store.blobs.write(undefined, [pattern(1000)], never)
    spoil(store.blobs.pathOf(digest))
    expect(await store.blobs.open(digest)).toBeUndefined()
    expect(store.blobs.has(digest)).toBe(false)
    expect(store.blobs.stats.bytes).toBe(0)
    expect(store.entries).toContainEqual(expect.objectContaining({ msg: 'blob.lost', digest }))
  })

  test('with altered bytes is noticed when its list is made', async () => {
    using store = new Store()
    const bytes = pattern(3 * MIB)
    const { digest } = await store.blobs.write(undefined, [bytes], never)
    bytes[MIB] = (bytes[MIB] ?? 0) ^ 1
    writeFileSync(store.blobs.pathOf(digest), bytes)
    store.db.exec('DELETE FROM piece_lists')
    const source = await store.blobs.open(digest)
    if (!source) throw new Error('not there')
    await expect(store.lists.of(digest, source, never)).rejects.toMatchObject({ code: 'corrupt' })
    await source.close?.()
    expect(store.blobs.has(digest)).toBe(false)
  })
})

describe('piece lists', () => {
  test('are kept from writing, made again when lost, and bounded', async () => {
    using store = new Store()
    const bytes = pattern(3 * MIB)
    const { digest } = await store.blobs.write(undefined, [bytes], never)
    const { hashes } = digestOf(bytes)
    expect(Buffer.compare(store.lists.get(digest, bytes.byteLength)?.hashes ?? Buffer.of(), hashes)).toBe(0)
    store.db.exec('DELETE FROM piece_lists')
    expect(store.lists.get(digest, bytes.byteLength)).toBeUndefined()
    const source = await store.blobs.open(digest)
    if (!source) throw new Error('not there')
    const [one, two] = await Promise.all([store.lists.of(digest, source, never), store.lists.of(digest, source, never)])
    await source.close?.()
    expect([one, two].map((list) => Buffer.compare(list.hashes, hashes))).toEqual([0, 0])

    const small = new PieceLists(store.db, 1_000)
    for (let seed = 0; seed < 20; seed++) {
      const hasher = new PieceHasher()
      hasher.update(pattern(MIB, seed))
      const list = hasher.finish()
      small.put(list.digest, list.sizeBytes, list.hashes)
    }
    const { total } = store.db.prepare('SELECT sum(list_bytes) AS total FROM piece_lists').get() as { total: number }
    expect(total).toBeLessThanOrEqual(1_000)
    expect(total).toBeGreaterThan(800)
  })
})
