/** Serving: sound pieces only, bounded streams, and nobody's garbage disturbs the others. */
import { writeFileSync } from 'node:fs'
import type { Stream } from '@libp2p/interface'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { BlobHolder, BlobSource } from '../../../agent/content/content.ts'
import { Holdings } from '../../../agent/content/holdings.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { PieceServer } from '../../../agent/content/server.ts'
import { Frames } from '../../../protocols/frame.ts'
import { PIECES_PROTOCOL, PieceAsker } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { ContentNode, digestOf, never, Peer, Store, until } from './peers.ts'

const BLOB = pattern(5 * PIECE_BYTES + 9)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
const NAME = Buffer.from(DIGEST, 'hex')

const known = new Map()
let asking: Peer

beforeAll(async () => {
  asking = await Peer.start(known)
})
afterAll(async () => {
  await asking[Symbol.asyncDispose]()
})

async function serving(): Promise<ContentNode> {
  const node = await ContentNode.start(known)
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.store.publish(BLOB)
  return node
}

async function ask(node: { peerId: string }): Promise<{ stream: Stream; asker: PieceAsker; frames: Frames }> {
  const stream = await asking.streams.openStream(node.peerId, PIECES_PROTOCOL, never)
  const frames = new Frames(stream)
  return { stream, frames, asker: new PieceAsker(frames) }
}

describe('a server', () => {
  test('tells what it has, lists it, and gives any pieces', async () => {
    const node = await serving()
    const { asker } = await ask(node)
    expect(await asker.have([NAME, new Uint8Array(32)], never)).toEqual([
      { sizeBytes: BLOB.byteLength, pieces: 'all' },
      null,
    ])
    const { hashes } = await asker.hashes(NAME, { sizeBytesMax: 2 ** 30 }, never)
    expect(Buffer.compare(hashes, HASHES)).toBe(0)
    await asker.askGet(NAME, 4, 2, never)
    const bytes = new Uint8Array(await asker.readGet(never))
    await asker.readInto(bytes, never)
    expect(Buffer.compare(bytes, BLOB.subarray(4 * PIECE_BYTES))).toBe(0)
    // Counted when it was handed on, which may be a moment after it arrived.
    await until(() => node.server.servedBytes === bytes.byteLength)
    await asker.askGet(NAME, 5, 2, never)
    await expect(asker.readGet(never)).rejects.toMatchObject({ code: 'refused' })
  })

  test('whose disk rots loses the blob, not its good name: no wrong byte leaves', async () => {
    const node = await serving()
    const rotten = Buffer.from(BLOB)
    rotten[2 * PIECE_BYTES] = (rotten[2 * PIECE_BYTES] ?? 0) ^ 4
    writeFileSync(node.store.blobs.pathOf(DIGEST), rotten)
    const { asker } = await ask(node)
    await asker.askGet(NAME, 0, 4, never)
    const bytes = new Uint8Array(await asker.readGet(never))
    await expect(asker.readInto(bytes, never)).rejects.toMatchObject({ code: 'closed' })
    expect(Buffer.compare(bytes.subarray(2 * PIECE_BYTES), new Uint8Array(bytes.byteLength - 2 * PIECE_BYTES))).toBe(0)
    expect(node.store.blobs.has(DIGEST)).toBe(false)
    expect(node.store.entries).toContainEqual(expect.objectContaining({ msg: 'blob.lost', digest: DIGEST }))
    const again = await ask(node)
    expect(await again.asker.have([NAME], never)).toEqual([null])
  })

  test('serves any holder, whatever chunks it gives, and reads it once for the list', async () => {
    using store = new Store()
    await using peer = await Peer.start(known)
    let reads = 0
    const source: BlobSource = {
      sizeBytes: BLOB.byteLength,
      async *read(offset, length) {
        if (length === BLOB.byteLength) reads++
        for (let at = offset; at < offset + length; at += 70_001)
          yield BLOB.subarray(at, Math.min(at + 70_001, offset + length))
      },
    }
    const holder: BlobHolder = {
      open: async (digest) => (digest === DIGEST ? source : undefined),
      networksOf: (digest) => (digest === DIGEST ? [OPEN_NETWORK_ID] : []),
    }
    await using server = await PieceServer.start({
      streams: peer.streams,
      holdings: new Holdings([store.blobs, holder]),
      lists: store.lists,
      mayFetch: () => true,
      log: store.log,
    })
    const both = await Promise.all([ask(peer), ask(peer)])
    for (const { hashes } of await Promise.all(
      both.map(({ asker }) => asker.hashes(NAME, { sizeBytesMax: 2 ** 30 }, never)),
    ))
      expect(Buffer.compare(hashes, HASHES)).toBe(0)
    expect(reads).toBe(1)
    const [{ asker }] = both
    await asker.askGet(NAME, 1, 5, never)
    const bytes = new Uint8Array(await asker.readGet(never))
    await asker.readInto(bytes, never)
    expect(Buffer.compare(bytes, BLOB.subarray(PIECE_BYTES))).toBe(0)
    await until(() => server.servedBytes === bytes.byteLength)
  })

  test('resets streams beyond its limit, and serves on when some are gone', async () => {
    const node = await serving()
    // A connection that is just being made takes few streams: that is another limit.
    const first = await ask(node)
    const streams = [first, ...(await Promise.all(Array.from({ length: 23 }, () => ask(node))))]
    for (const { asker } of streams) expect(await asker.have([NAME], never)).toHaveLength(1)
    const extra = ask(node).then(({ asker }) => asker.have([NAME], never))
    await expect(extra).rejects.toThrow()
    for (const { stream } of streams) stream.abort(new Error('done'))
    // It hears of each in its own time.
    for (;;) {
      const have = await ask(node)
        .then(({ asker }) => asker.have([NAME], never))
        .catch(() => undefined)
      if (have?.length === 1) break
    }
  })

  test.each([
    ['garbage', pattern(2_000)],
    ['a frame too large', Uint8Array.of(0xff, 0xff, 0x7f)],
    ['a frame that is no request', Uint8Array.of(3, 1, 2, 3)],
  ])('given %s resets that stream, and answers on others', async (_what, bytes) => {
    const node = await serving()
    const [bad, good] = [await ask(node), await ask(node)]
    bad.stream.send(bytes)
    await expect(bad.frames.read(never)).rejects.toMatchObject({ code: 'closed' })
    expect(await good.asker.have([NAME], never)).toHaveLength(1)
  })

  test('gives up a stream on which nothing moves, asked or reading', async () => {
    using store = new Store()
    await using peer = await Peer.start(known)
    await store.publish(BLOB)
    await using _server = await PieceServer.start({
      streams: peer.streams,
      holdings: store.blobs,
      lists: store.lists,
      mayFetch: () => true,
      log: store.log,
      quietMsMax: 500,
    })
    const [silent, slow] = [await ask(peer), await ask(peer)]
    // Far more than fits on the way; on a busy machine it may be given up before all is asked.
    const asking = async () => {
      for (let at = 0; at < 40; at++) await slow.asker.askGet(NAME, 0, 6, never)
    }
    await asking().catch((error: unknown) => expect(error).toMatchObject({ code: 'closed' }))
    await expect(silent.frames.read(never)).rejects.toMatchObject({ code: 'closed' })
    await until(() => slow.stream.status !== 'open')
    await until(() => store.entries.filter(({ msg }) => msg === 'pieces.answer.failed').length === 2)
  })

  test('ends what it answers when it stops', async () => {
    using store = new Store()
    await using peer = await Peer.start(known)
    const server = await PieceServer.start({
      streams: peer.streams,
      holdings: store.blobs,
      lists: store.lists,
      mayFetch: () => true,
      log: store.log,
    })
    const { asker, frames } = await ask(peer)
    await asker.have([NAME], never)
    await server[Symbol.asyncDispose]()
    await expect(frames.read(never)).rejects.toMatchObject({ code: 'closed' })
    await expect(ask(peer)).rejects.toThrow()
  })
})
