/** Sources that say that they are busy are asked again, and not for ever. */
import { expect, onTestFinished, test } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer } from './peers.ts'

const LIMITS = { hasteMs: 5_000, pieceMs: 20_000, openMs: 10_000, listMsPerGib: 0 }
const SIZES = [1_000, 3 * PIECE_BYTES, 20 * PIECE_BYTES]

/** A node, and its only source, which is busy for so many questions. */
async function network(bytes: Uint8Array, times: number, comebackMs: number) {
  const known = new Map()
  const node = await ContentNode.start(known, { limits: { ...LIMITS, comebackMs } })
  const peer = await Peer.start(known)
  onTestFinished(async () => {
    for (const one of [node, peer]) await one[Symbol.asyncDispose]()
  })
  const honest = liar(bytes)
  let asked = 0
  const get: PieceHolder['get'] = (...request) =>
    asked++ < times ? Promise.resolve({ error: 'busy' }) : honest.get(...request)
  await serve(peer, { ...honest, get })
  const { digest } = digestOf(bytes)
  const options = { network: OPEN_NETWORK_ID, sources: [peer.peerId], sizeBytes: bytes.byteLength, signal: never }
  return { node, digest, fetch: () => node.fetcher.fetch(digest, options) }
}

test.each(SIZES)('the only source of %i bytes may be busy at first', { timeout: 60_000 }, async (size) => {
  const { node, digest, fetch } = await network(pattern(size), 2, 30_000)
  await fetch()
  expect((await node.store.contents(digest))?.byteLength).toBe(size)
  expect(node.faults).toEqual([])
})

test.each(SIZES)('of %i bytes that nobody gives because he is busy, that is what is told in the end', async (size) => {
  const { node, fetch } = await network(pattern(size), Number.POSITIVE_INFINITY, 300)
  await expect(fetch()).rejects.toMatchObject({ code: 'not-found', message: expect.stringMatching(/it is busy/) })
  expect(node.faults).toEqual([])
})
