/** What a stream is answered from while a blob arrives: only what is here, only by the list that it was told, only to whom it may. */
import { closeSync, openSync, writeSync } from 'node:fs'
import { expect, onTestFinished, test } from 'vitest'
import type { PartSource } from '../../../agent/content/content.ts'
import { Deadline } from '../../../agent/content/deadline.ts'
import { Holdings } from '../../../agent/content/holdings.ts'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { Shelf, type ShelfInit } from '../../../agent/content/shelf.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered } from './hostile.ts'
import { digestOf, never, Store } from './peers.ts'

const BLOB = pattern(4 * PIECE_BYTES)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
const KEY = Buffer.from(DIGEST, 'hex')
const piece = (index: number) => BLOB.subarray(index * PIECE_BYTES, (index + 1) * PIECE_BYTES)

async function arriving(mayGet: ShelfInit['mayGet'] = () => 'part', isBusy = false) {
  const store = new Store()
  const fetching = { digest: DIGEST, network: OPEN_NETWORK_ID }
  const partial = await PartialBlob.open(store.blobs, fetching, listOf(BLOB.byteLength, HASHES), never)
  const deadline = new Deadline(60_000, never)
  onTestFinished(async () => {
    deadline[Symbol.dispose]()
    await partial.leave()
    store[Symbol.dispose]()
  })
  await partial.write(1, piece(1))
  const asked: string[] = []
  const shelf = new Shelf({
    holdings: new Holdings([store.blobs]),
    lists: store.lists,
    deadline,
    mayGet,
    arriving: (digest, network): PartSource | undefined =>
      digest === DIGEST && network === OPEN_NETWORK_ID ? partial : undefined,
    give: ({ pieces }) => pieces,
    isBusy: () => isBusy,
    asked: (digest) => {
      asked.push(digest)
      return ['somebody']
    },
  })
  /** As when much has arrived since. */
  const forget = () => store.blobs.fresh.drop(`${DIGEST} ${OPEN_NETWORK_ID}`)
  return { shelf, partial, asked, forget, path: store.blobs.partialPathOf(fetching) }
}

const ABSENT = { error: 'absent' }

test('gives the pieces that are here, and says which these are', async () => {
  const { shelf, partial } = await arriving()
  expect(await shelf.have(KEY, never, undefined)).toEqual({ sizeBytes: BLOB.byteLength, pieces: Uint8Array.of(0x40) })
  const stated = await shelf.hashes(KEY, 0, 4, never, undefined)
  expect(stated).toMatchObject({ sizeBytes: BLOB.byteLength, pieces: Uint8Array.of(0x40), askers: ['somebody'] })
  expect(await shelf.get(KEY, 0, 1, never, undefined)).toEqual(ABSENT)
  expect(await shelf.get(KEY, 1, 2, never, undefined)).toEqual(ABSENT)
  expect(await shelf.get(KEY, 3, 2, never, undefined)).toEqual({ error: 'range' })
  const given = await shelf.get(KEY, 1, 1, never, undefined)
  if ('error' in given) throw new Error(given.error)
  expect(Buffer.compare(Buffer.concat(await Array.fromAsync(given.chunks)), piece(1))).toBe(0)
  await partial.write(2, piece(2))
  expect(await shelf.get(KEY, 1, 2, never, undefined)).toMatchObject({ lengthBytes: 2 * PIECE_BYTES })
})

test('gives no piece that the disk did not keep', async () => {
  const { shelf, forget, path } = await arriving()
  await shelf.hashes(KEY, 0, 4, never, undefined)
  forget()
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.of(~(piece(1)[9] ?? 0) & 0xff), 0, 1, PIECE_BYTES + 9)
  closeSync(fd)
  const given = await shelf.get(KEY, 1, 1, never, undefined)
  if ('error' in given) throw new Error(given.error)
  await expect(Array.fromAsync(given.chunks)).rejects.toMatchObject({ code: 'corrupt' })
})

test('gives nothing by a list that it did not tell, before or after another one was taken', async () => {
  const { shelf, partial } = await arriving()
  expect(await shelf.get(KEY, 1, 1, never, undefined)).toEqual(ABSENT)
  await shelf.hashes(KEY, 0, 4, never, undefined)
  const other = altered(BLOB, 3)
  partial.useList(listOf(other.byteLength, digestOf(other).hashes))
  expect(partial.has(1)).toBe(true)
  expect(await shelf.get(KEY, 1, 1, never, undefined)).toEqual(ABSENT)
  await shelf.hashes(KEY, 0, 0, never, undefined)
  expect(await shelf.get(KEY, 1, 1, never, undefined)).toMatchObject({ lengthBytes: PIECE_BYTES })
})

test('gives nothing in another network, nor to whom nothing may be given, whose question is not told of; nor when busy', async () => {
  const { shelf, asked } = await arriving()
  const network = Buffer.alloc(32, 9)
  expect(await shelf.have(KEY, never, network)).toBeNull()
  expect(await shelf.hashes(KEY, 0, 4, never, network)).toEqual(ABSENT)
  expect(asked).toEqual([DIGEST])
  const busy = await arriving(() => 'part', true)
  await busy.shelf.hashes(KEY, 0, 4, never, undefined)
  expect(await busy.shelf.get(KEY, 1, 1, never, undefined)).toEqual({ error: 'busy' })
  const refusing = await arriving(() => undefined)
  expect(await refusing.shelf.have(KEY, never, undefined)).toBeNull()
  expect(await refusing.shelf.hashes(KEY, 0, 4, never, undefined)).toEqual(ABSENT)
  expect(await refusing.shelf.get(KEY, 1, 1, never, undefined)).toEqual(ABSENT)
  expect(refusing.asked).toEqual([])
})
