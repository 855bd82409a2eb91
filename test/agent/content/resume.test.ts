/** What an interrupted fetch left is used again, and never trusted: pieces are held against the list, each one. */
import { closeSync, openSync, readFileSync, rmSync, truncateSync, writeSync } from 'node:fs'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Fetcher } from '../../../agent/content/fetcher.ts'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { PIECE_BYTES, pieceBytes, pieceCount } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, Store, until } from './peers.ts'

const BLOB = pattern(11 * PIECE_BYTES + 99)
const COUNT = pieceCount(BLOB.byteLength)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
const LIST = listOf(BLOB.byteLength, HASHES)
const FETCHING = { digest: DIGEST, network: OPEN_NETWORK_ID }

const known = new Map()
let honest: ContentNode
let peer: Peer

beforeAll(async () => {
  honest = await ContentNode.start(known)
  peer = await Peer.start(known)
  await honest.store.publish(BLOB)
})
afterAll(async () => {
  await Promise.all([honest[Symbol.asyncDispose](), peer[Symbol.asyncDispose]()])
})

const piece = (bytes: Uint8Array, index: number) =>
  bytes.subarray(index * PIECE_BYTES, index * PIECE_BYTES + pieceBytes(bytes.byteLength, index))

/** Pieces that an earlier run had fetched when it was killed. */
async function leave(store: Store, pieces: Iterable<number>): Promise<void> {
  const partial = await PartialBlob.open(store.blobs, FETCHING, LIST, never)
  for (const index of pieces) await partial.write(index, piece(BLOB, index))
  await partial.leave()
}

async function fetchWith(store: Store): Promise<number> {
  await using fetcher = new Fetcher({ blobs: store.blobs, streams: peer.streams, self: peer.peerId, log: store.log })
  await fetcher.fetch(DIGEST, { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never })
  return fetcher.fetchedBytes
}

function spoilAt(path: string, offset: number): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.from([readFileSync(path)[offset] === 1 ? 2 : 1]), 0, 1, offset)
  closeSync(fd)
}

describe('after a restart', () => {
  test('only what is missing is fetched, whichever pieces were there', async () => {
    const some = fc.subarray([...Array(COUNT).keys()], { minLength: 1, maxLength: COUNT - 1 })
    await fc.assert(
      fc.asyncProperty(some, async (pieces) => {
        using before = new Store()
        await leave(before, pieces)
        using after = before.reopened()
        const thereBytes = pieces.reduce((sum, index) => sum + pieceBytes(BLOB.byteLength, index), 0)
        expect(await fetchWith(after)).toBe(BLOB.byteLength - thereBytes)
        expect(Buffer.compare((await after.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
      }),
      { numRuns: 12 },
    )
  })

  test.each([
    ['a piece on disk is altered', (path: string) => spoilAt(path, 2 * PIECE_BYTES + 5), PIECE_BYTES],
    ['the file is cut short', (path: string) => truncateSync(path, 3 * PIECE_BYTES), PIECE_BYTES],
    ['the file is gone', (path: string) => rmSync(path), 4 * PIECE_BYTES],
    ['the file is longer than it should be', (path: string) => truncateSync(path, 2 * BLOB.byteLength), 0],
  ])('when %s, that much more is fetched, and the bytes are right', async (_what, spoil, extraBytes) => {
    using before = new Store()
    await leave(before, [0, 1, 2, 3])
    spoil(before.blobs.partialPathOf(FETCHING))
    using after = before.reopened()
    expect(await fetchWith(after)).toBe(BLOB.byteLength - 4 * PIECE_BYTES + extraBytes)
    expect(Buffer.compare((await after.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
  })

  test('what was written down is not read again, and is found out by the whole hash when the disk lost it', async () => {
    using before = new Store()
    await leave(before, [0, 1, 2, 3])
    spoilAt(before.blobs.partialPathOf(FETCHING), 2 * PIECE_BYTES + 5)
    using after = before.reopened()
    const partial = await PartialBlob.open(after.blobs, FETCHING, LIST, never)
    // Nobody looked.
    expect(partial.has(2)).toBe(true)
    for (let index = 4; index < COUNT; index++) await partial.write(index, piece(BLOB, index))
    expect(await partial.finish(never)).toBe('hole')
    expect(partial.has(2)).toBe(false)
    expect(partial.missing).toBe(1)
    await partial.write(2, piece(BLOB, 2))
    expect(await partial.finish(never)).toBe('whole')
    await partial.leave()
  })

  test('what came after it was last written down is read, and what was written down by another list is, too', async () => {
    using before = new Store()
    await leave(before, [0, 1])
    before.index.progress.drop(DIGEST)
    using after = before.reopened()
    const partial = await PartialBlob.open(after.blobs, FETCHING, LIST, never)
    expect([partial.has(0), partial.has(1), partial.missing]).toEqual([true, true, COUNT - 2])
    await partial.leave()
    const lie = altered(BLOB, 1)
    using third = after.reopened()
    const other = await PartialBlob.open(third.blobs, FETCHING, listOf(lie.byteLength, digestOf(lie).hashes), never)
    expect([other.has(0), other.has(1)]).toEqual([true, false])
    await other.leave()
  })

  test('a file made anew is not thought to have what an earlier one had', async () => {
    using before = new Store()
    await leave(before, [0, 1, 2, 3])
    truncateSync(before.blobs.partialPathOf(FETCHING), 0)
    using after = before.reopened()
    const partial = await PartialBlob.open(after.blobs, FETCHING, LIST, never)
    await partial.write(COUNT - 1, piece(BLOB, COUNT - 1))
    expect(partial.missing).toBe(COUNT - 1)
    expect(after.index.progress.get(DIGEST)).toBeUndefined()
    await partial.leave()
  })

  test('a list that was a lie costs the pieces that differ, and no more', async () => {
    using before = new Store()
    const lie = altered(BLOB, 3)
    const partial = await PartialBlob.open(before.blobs, FETCHING, listOf(lie.byteLength, digestOf(lie).hashes), never)
    for (const index of [0, 1, 2, 3, 4]) await partial.write(index, piece(lie, index))
    await partial.leave()
    using after = before.reopened()
    expect(await fetchWith(after)).toBe(BLOB.byteLength - 4 * PIECE_BYTES)
    expect(Buffer.compare((await after.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
  })
})

describe('a partial blob', () => {
  test('becomes a blob in whatever order its pieces come, and only when all are there and right', async () => {
    const order = fc.shuffledSubarray([...Array(COUNT).keys()], { minLength: COUNT })
    await fc.assert(
      fc.asyncProperty(order, async (pieces) => {
        using store = new Store()
        const partial = await PartialBlob.open(store.blobs, FETCHING, LIST, never)
        for (const index of pieces) {
          expect(partial.isFull).toBe(false)
          await partial.write(index, piece(BLOB, index))
        }
        expect(await partial.finish(never)).toBe('whole')
        await partial.leave()
        expect(Buffer.compare((await store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
      }),
      { numRuns: 10 },
    )
  })

  test('notices a disk that does not keep what it is given', async () => {
    using store = new Store()
    const partial = await PartialBlob.open(store.blobs, FETCHING, LIST, never)
    // Out of order, so that the bytes have to be read back for the whole hash.
    for (let index = COUNT - 1; index > 0; index--) await partial.write(index, piece(BLOB, index))
    store.blobs.fresh.drop(`${FETCHING.digest} ${FETCHING.network}`)
    await partial.write(0, piece(BLOB, 0))
    spoilAt(store.blobs.partialPathOf(FETCHING), 5 * PIECE_BYTES)
    expect(await partial.finish(never)).toBe('hole')
    expect(Array.from({ length: COUNT }, (_, index) => partial.has(index)).indexOf(false)).toBe(5)
    expect(partial.missing).toBe(1)
    await partial.write(5, piece(BLOB, 5))
    expect(await partial.finish(never)).toBe('whole')
    await partial.leave()
  })

  test('says which pieces are there, as the protocol does', async () => {
    using store = new Store()
    const partial = await PartialBlob.open(store.blobs, FETCHING, LIST, never)
    for (const index of [2, 3, 7, 8]) await partial.write(index, piece(BLOB, index))
    expect(Buffer.from(partial.bitmap()).toString('hex')).toBe('3180')
    expect(partial.missing).toBe(COUNT - 4)
    await partial.leave()
  })
})

test('what was begun before a start waits for peers that cannot be reached yet, and nothing else does', async () => {
  const few = new Map()
  await using node = await ContentNode.start(few, { limits: { comebackMs: 20_000 } })
  const fetch = () => node.fetcher.fetch(DIGEST, { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never })
  await expect(fetch()).rejects.toMatchObject({ code: 'not-found' })

  const partial = await PartialBlob.open(node.store.blobs, FETCHING, LIST, never)
  for (const index of [0, 1, 2]) await partial.write(index, piece(BLOB, index))
  await partial.leave()
  const failures = () => node.store.entries.filter(({ msg }) => msg === 'blob.source.failed').length
  const before = failures()
  const fetching = fetch()
  await until(() => failures() > before)
  few.set(honest.peerId, known.get(honest.peerId))
  await fetching
  expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength - 3 * PIECE_BYTES)
})
