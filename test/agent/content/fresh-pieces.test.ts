/** Pieces that arrived a moment ago: bounded, and memory that is used again is never what somebody was given. */
import { expect, test } from 'vitest'
import { FreshPieces } from '../../../agent/content/fresh-pieces.ts'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { digestOf, never, Store } from './peers.ts'

const piece = (value: number, length = PIECE_BYTES) => new Uint8Array(length).fill(value)

test('are kept up to a bound, and memory comes back for what comes in', () => {
  const fresh = new FreshPieces(3 * PIECE_BYTES)
  const first = piece(1)
  expect(fresh.put('a', 1, first)).toBeUndefined()
  expect(fresh.put('b', 1, piece(2))).toBeUndefined()
  expect(fresh.put('a', 2, piece(3))).toBeUndefined()
  expect(fresh.put('a', 3, piece(4))).toBe(first)
  expect(fresh.peek('a', 1)).toBeUndefined()
  expect(fresh.peek('b', 1)?.[0]).toBe(2)
})

test('of a blob go together, and take nothing of another one with them', () => {
  const fresh = new FreshPieces()
  for (const blob of ['a', 'ab']) fresh.put(blob, 7, piece(1))
  fresh.drop('a')
  expect(fresh.peek('a', 7)).toBeUndefined()
  expect(fresh.peek('ab', 7)).toBeDefined()
})

test('the last piece of a blob is no memory for others', () => {
  const fresh = new FreshPieces(PIECE_BYTES)
  fresh.put('a', 0, piece(1, 100))
  expect(fresh.put('a', 1, piece(2))).toBeUndefined()
})

test('what was given out stays as it is when the memory is used again', async () => {
  using store = new Store()
  const bytes = pattern(3 * PIECE_BYTES)
  const { digest, hashes } = digestOf(bytes)
  const list = listOf(bytes.byteLength, hashes)
  const partial = await PartialBlob.open(store.blobs, { digest, network: OPEN_NETWORK_ID }, list, never)
  // A buffer, as they come from a stream: its own `slice` would be a view.
  const memory = Buffer.from(bytes.subarray(PIECE_BYTES, 2 * PIECE_BYTES))
  await partial.write(1, memory)
  const given = partial.fresh(1)
  memory.fill(0)
  expect(given && Buffer.compare(given, bytes.subarray(PIECE_BYTES, 2 * PIECE_BYTES))).toBe(0)
  expect(partial.fresh(0)).toBeUndefined()
  partial.useList(listOf(bytes.byteLength, digestOf(pattern(3 * PIECE_BYTES, 2)).hashes))
  expect(partial.fresh(1)).toBeUndefined()
  await partial.leave()
})
