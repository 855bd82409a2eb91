/** Reading a blob while it arrives: in time, and never to the end before the whole is known to be right. */
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { BlobSource } from '../../../agent/content/content.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, until as honestUntil, liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, until } from './peers.ts'

const BLOB = pattern(9 * PIECE_BYTES + 1234)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)

const known = new Map()
let honest: ContentNode

beforeAll(async () => {
  honest = await ContentNode.start(known)
  await honest.store.publish(BLOB)
})
afterAll(async () => {
  await honest[Symbol.asyncDispose]()
})

async function fetching(): Promise<ContentNode> {
  const node = await ContentNode.start(known, { limits: { pieceMs: 1_500 } })
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

/** A peer that answers one get (four pieces), waits to be let go, and goes on from `bytes`. */
async function pausing(bytes: Uint8Array, hashes = HASHES) {
  const peer = await Peer.start(known)
  onTestFinished(() => peer[Symbol.asyncDispose]())
  const go = Promise.withResolvers<void>()
  const holder = liar(bytes, hashes)
  await serve(
    peer,
    honestUntil(1, holder, async (...request) => {
      await go.promise
      return holder.get(...request)
    }),
  )
  return { peerId: peer.peerId, go: () => go.resolve() }
}

async function readAll(source: BlobSource, offset = 0, length = source.sizeBytes - offset): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(source.read(offset, length, never)))
}

describe('a blob that is read while it arrives', () => {
  test('gives the first pieces before the rest is there, then the rest', async () => {
    const [node, source] = [await fetching(), await pausing(BLOB)]
    const blob = await node.fetcher.open(DIGEST, { network: OPEN_NETWORK_ID, sources: [source.peerId], signal: never })
    expect(blob.sizeBytes).toBe(BLOB.byteLength)
    const head = await readAll(blob, 10, 2 * PIECE_BYTES)
    expect(Buffer.compare(head, BLOB.subarray(10, 10 + 2 * PIECE_BYTES))).toBe(0)
    expect(node.store.blobs.has(DIGEST)).toBe(false)
    source.go()
    expect(Buffer.compare(await readAll(blob), BLOB)).toBe(0)
    expect(node.store.blobs.has(DIGEST)).toBe(true)
    expect(node.store.blobs.isInUse(DIGEST)).toBe(true)
    await blob.close?.()
    await until(() => !node.store.blobs.isInUse(DIGEST))
    await blob.close?.()
  })

  test('is opened from disk when it is there already', async () => {
    const node = await fetching()
    await node.store.blobs.write(undefined, [BLOB], never)
    const blob = await node.fetcher.open(DIGEST, { network: OPEN_NETWORK_ID, sources: [], signal: never })
    expect(Buffer.compare(await readAll(blob), BLOB)).toBe(0)
    await blob.close?.()
  })

  test('is never read to the end when its list is a lie', async () => {
    const lie = altered(BLOB, 9)
    const [node, source] = [await fetching(), await pausing(lie, digestOf(lie).hashes)]
    const blob = await node.fetcher.open(DIGEST, { network: OPEN_NETWORK_ID, sources: [source.peerId], signal: never })
    const reading = readAll(blob)
    const refused = expect(reading).rejects.toMatchObject({
      code: 'corrupt',
      message: expect.stringContaining(source.peerId),
    })
    source.go()
    await refused
    await blob.close?.()
    expect(node.faults).toMatchObject([{ peerId: source.peerId }])
  })

  test('fails its reader when what was read turns out to be wrong, although the fetch succeeds', async () => {
    const lie = altered(BLOB, 0)
    const [node, source] = [await fetching(), await pausing(lie, digestOf(lie).hashes)]
    const blob = await node.fetcher.open(DIGEST, {
      network: OPEN_NETWORK_ID,
      sources: [source.peerId, honest.peerId],
      signal: never,
    })
    expect((await readAll(blob, 0, PIECE_BYTES)).byteLength).toBe(PIECE_BYTES)
    const rest = expect(readAll(blob, PIECE_BYTES)).rejects.toMatchObject({ code: 'corrupt' })
    source.go()
    await rest
    await blob.close?.()
    await node.fetcher.fetch(DIGEST, { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never })
    expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
  })

  test('ends the fetch when its only reader closes it, or is gone', async () => {
    const [node, source] = [await fetching(), await pausing(BLOB)]
    const closed = await node.fetcher.open(DIGEST, {
      network: OPEN_NETWORK_ID,
      sources: [source.peerId],
      signal: never,
    })
    await readAll(closed, 0, 100)
    await closed.close?.()
    const gone = new AbortController()
    const blob = await node.fetcher.open(DIGEST, {
      network: OPEN_NETWORK_ID,
      sources: [honest.peerId],
      signal: gone.signal,
    })
    gone.abort()
    await expect(readAll(blob)).rejects.toMatchObject({ code: 'cancelled' })
    await blob.close?.()
  })

  test('is not evicted while somebody reads it, also when it is whole', async () => {
    const node = await fetching()
    const blob = await node.fetcher.open(DIGEST, { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never })
    await node.fetcher.fetch(DIGEST, { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never })
    node.store.blobs.setQuota(PIECE_BYTES)
    const write = () => node.store.blobs.write(undefined, [pattern(PIECE_BYTES)], never)
    await expect(write()).rejects.toMatchObject({ code: 'limit' })
    expect(Buffer.compare(await readAll(blob), BLOB)).toBe(0)
    await blob.close?.()
    await write()
    expect(node.store.blobs.has(DIGEST)).toBe(false)
  })

  test('that nobody has is an error at once', async () => {
    const node = await fetching()
    await expect(
      node.fetcher.open(DIGEST, { network: OPEN_NETWORK_ID, sources: [], signal: never }),
    ).rejects.toMatchObject({ code: 'not-found' })
  })
})
