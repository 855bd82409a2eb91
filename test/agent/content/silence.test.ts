/** Peers that take a question and do not answer it: others are asked soon, they themselves when nobody else is left. */
import { setTimeout as delay } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, until } from './peers.ts'

/** An honest peer answers well within the first also where the machine has much else to do. */
const LIMITS = { hasteMs: 1_500, pieceMs: 40_000, openMs: 40_000, listMsPerGib: 0 }
const CASE_MS_MAX = 90_000
const BLOBS = [1, 2, 3].map((seed) => pattern(3 * PIECE_BYTES, seed))
const DIGESTS = BLOBS.map((bytes) => digestOf(bytes).digest)

async function network() {
  const known = new Map()
  const node = await ContentNode.start(known, { limits: LIMITS })
  const honest = await ContentNode.start(known)
  const peer = await Peer.start(known)
  onTestFinished(async () => {
    for (const one of [node, honest, peer]) await one[Symbol.asyncDispose]()
  })
  for (const bytes of BLOBS) await honest.store.publish(bytes)
  return { node, honest, peer }
}

test('who says nothing gives way to the next soon, and is not asked first again', {
  timeout: CASE_MS_MAX,
}, async () => {
  const { node, honest, peer } = await network()
  let asked = 0
  const wait = () => {
    asked++
    return new Promise<never>(() => undefined)
  }
  await serve(peer, { have: wait, hashes: wait, get: wait })
  const startMs = performance.now()
  for (const digest of DIGESTS)
    await node.fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: [peer.peerId, honest.peerId], signal: never })
  expect(performance.now() - startMs).toBeLessThan(LIMITS.pieceMs)
  expect(asked).toBe(1)
  expect(node.faults).toEqual([])
})

test('who is slow, and the only one, is waited for', { timeout: CASE_MS_MAX }, async () => {
  const { node, peer } = await network()
  const [bytes = new Uint8Array(), digest = ''] = [BLOBS[0], DIGESTS[0]]
  const honest = liar(bytes)
  const slow: PieceHolder = {
    ...honest,
    hashes: async (...request) => {
      await delay(2 * LIMITS.hasteMs)
      return await honest.hashes(...request)
    },
  }
  await serve(peer, slow)
  await node.fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: [peer.peerId], signal: never })
  expect(Buffer.compare((await node.store.contents(digest)) ?? Buffer.of(), bytes)).toBe(0)
})

test.each([
  ['at once', 0],
  ['after a while, in vain', 200],
])(
  'who is waited for gives way to a source that comes up meanwhile, where the search for others ended %s',
  { timeout: CASE_MS_MAX },
  async (_when, searchMs) => {
    const { node, honest, peer } = await network()
    const [digest = ''] = DIGESTS
    let asked = 0
    const wait = () => {
      asked++
      return new Promise<never>(() => undefined)
    }
    await serve(peer, { have: wait, hashes: wait, get: wait })
    let isSearched = false
    async function* sources() {
      yield peer.peerId
      await delay(searchMs)
      isSearched = true
    }
    const first = node.fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: sources(), signal: never })
    // The second time is the patient one.
    await until(() => asked === 2 && isSearched)
    const startMs = performance.now()
    await node.fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: [peer.peerId, honest.peerId], signal: never })
    await first
    expect(performance.now() - startMs).toBeLessThan(LIMITS.pieceMs / 2)
  },
)

test('who is slow is not kept waiting for a search that takes long', { timeout: CASE_MS_MAX }, async () => {
  const { node, peer } = await network()
  const [bytes = new Uint8Array(), digest = ''] = [BLOBS[0], DIGESTS[0]]
  const honest = liar(bytes)
  let isSlow = true
  const slow: PieceHolder = {
    ...honest,
    hashes: async (...request) => {
      if (isSlow) await delay(2 * LIMITS.hasteMs)
      isSlow = false
      return await honest.hashes(...request)
    },
  }
  await serve(peer, slow)
  const searching = Promise.withResolvers<void>()
  async function* sources() {
    yield peer.peerId
    await searching.promise
  }
  await node.fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: sources(), signal: never })
  searching.resolve()
})
