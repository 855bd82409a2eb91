/** The hash of a whole blob whose pieces come by a thread: left to that, made here when it is gone, and what it says of pieces that nobody looked at. */
import { createHash, type Hash } from 'node:crypto'
import { readSync, writeSync } from 'node:fs'
import { expect, onTestFinished, test } from 'vitest'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { Hasher } from '../../../agent/content/whole-hash.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered } from './hostile.ts'
import { digestOf, never, Store } from './peers.ts'

const COUNT = 40
const BLOB = pattern(COUNT * PIECE_BYTES - 99)
const { digest, hashes } = digestOf(BLOB)
const list = listOf(BLOB.byteLength, hashes)

async function opened(): Promise<{ partial: PartialBlob; store: Store }> {
  const store = new Store()
  const partial = await PartialBlob.open(store.blobs, { digest, network: OPEN_NETWORK_ID }, list, never)
  onTestFinished(async () => {
    await partial.leave()
    store[Symbol.dispose]()
  })
  return { partial, store }
}

/** A thread that is only pretended, and gone after `updates`. */
function hashing(updates = Number.POSITIVE_INFINITY) {
  const seen = { made: 0, updates: 0, ended: 0 }
  const make = (fd: number): Hasher | undefined => {
    seen.made++
    const hash: Hash = createHash('sha256')
    return {
      update: async (offset, length) => {
        if (++seen.updates > updates) return false
        const bytes = Buffer.alloc(length)
        hash.update(bytes.subarray(0, readSync(fd, bytes, 0, length, offset)))
        return true
      },
      digest: async () => hash.digest('hex'),
      end: () => void seen.ended++,
    }
  }
  return { make, seen }
}

/** The pieces come to the file past the main thread, in any order. */
function arrive(partial: PartialBlob, bytes: Uint8Array, isChecked: boolean): void {
  const order = Array.from({ length: COUNT }, (_, at) => (at * 7) % COUNT)
  for (const index of order) {
    const piece = bytes.subarray(index * PIECE_BYTES, (index + 1) * PIECE_BYTES)
    writeSync(partial.fd, piece, 0, piece.byteLength, index * PIECE_BYTES)
    partial.arrived(index, list, isChecked)
  }
}

test('is made by the thread, whatever order the pieces come in', async () => {
  const { partial } = await opened()
  const { make, seen } = hashing()
  await partial.write(0, BLOB.slice(0, PIECE_BYTES))
  partial.hashBy(() => make(partial.fd))
  arrive(partial, BLOB, true)
  expect(await partial.finish(never)).toBe('whole')
  expect(seen).toMatchObject({ made: 1, ended: 1 })
})

test('is made here when the thread ends in the middle, or there is none', async () => {
  for (const make of [hashing(1).make, () => undefined]) {
    const { partial } = await opened()
    partial.hashBy(() => make(partial.fd))
    arrive(partial, BLOB, true)
    expect(await partial.finish(never)).toBe('whole')
  }
})

test('tells of a wrong piece that nobody looked at, which is asked for again, and then each is looked at', async () => {
  const { partial } = await opened()
  expect(partial.isTrusting).toBe(true)
  arrive(partial, altered(BLOB, 11), false)
  expect(await partial.finish(never)).toBe('hole')
  expect([partial.missing, partial.has(11), partial.isTrusting]).toEqual([1, false, false])
  await partial.write(11, BLOB.slice(11 * PIECE_BYTES, 12 * PIECE_BYTES))
  expect(await partial.finish(never)).toBe('whole')
})

test('is not waited for where somebody else wants a piece: it is looked at first', async () => {
  const { partial } = await opened()
  arrive(partial, altered(BLOB, 11), false)
  expect(await partial.check(10)).toBe(true)
  expect(partial.has(11)).toBe(true)
  expect(await partial.check(11)).toBe(false)
  expect(partial.has(11)).toBe(false)
})

test('is no reason to believe after a restart what nobody looked at', async () => {
  const { partial, store } = await opened()
  const sound = PIECE_BYTES * 3
  await partial.write(0, BLOB.slice(0, PIECE_BYTES))
  writeSync(partial.fd, altered(BLOB, 2), 0, sound, 0)
  for (const index of [1, 2]) partial.arrived(index, list, false)
  partial.retain()
  expect(partial.isTrusting).toBe(false)
  await partial.leave()
  const again = await PartialBlob.open(store.blobs, { digest, network: OPEN_NETWORK_ID }, list, never)
  expect([0, 1, 2].map((index) => again.has(index))).toEqual([true, true, false])
  await again.leave()
})
