/** Blobs of less than a piece: many of one peer in one round trip, and none spoilt by what happens to another. */
import { describe, expect, onTestFinished, test } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import { decodeRequest } from '../../../protocols/pieces/exchange.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { serveRaw } from './hostile.ts'
import { ContentNode, digestOf, never, Peer } from './peers.ts'

const LIMITS = { pieceMs: 2_000, hasteMs: 500, openMs: 5_000, listMsPerGib: 0 }
const BLOBS = Array.from({ length: 100 }, (_, seed) => pattern(500 + seed, seed))
const BY_DIGEST = new Map(BLOBS.map((bytes) => [digestOf(bytes).digest, bytes]))

async function network() {
  const known = new Map()
  const node = await ContentNode.start(known, { limits: LIMITS })
  const peer = await Peer.start(known)
  const honest = await ContentNode.start(known)
  onTestFinished(async () => {
    for (const one of [node, peer, honest]) await one[Symbol.asyncDispose]()
  })
  for (const bytes of BLOBS) await honest.store.publish(bytes)
  const fetch = (digest: string, ...sources: string[]) =>
    node.fetcher.fetch(digest, {
      network: OPEN_NETWORK_ID,
      sources,
      signal: never,
      sizeBytes: BY_DIGEST.get(digest)?.byteLength ?? 0,
    })
  return { node, peer, honest, fetch }
}

/** Answers each batch of requests only when no more come for a while: whoever waits for an answer before asking on is found out. */
async function serveInBatches(peer: Peer, answer: (digest: string) => Uint8Array[] | 'reset'): Promise<number[]> {
  const batches: number[] = []
  await serveRaw(peer, async (stream) => {
    const frames = new Frames(stream)
    const waiting: string[] = []
    const answerAll = () => {
      if (waiting.length === 0) return
      batches.push(waiting.length)
      for (const digest of waiting.splice(0)) {
        const parts = answer(digest)
        if (parts === 'reset') return stream.abort(new Error('no'))
        for (const part of parts) stream.send(part)
      }
    }
    const timer = setInterval(answerAll, 50)
    for (;;) {
      const frame = await frames.read(never).catch(() => undefined)
      if (!frame) break
      const request = decodeRequest(frame)
      if (request !== 'unknown' && request.op === 'get') waiting.push(Buffer.from(request.digest).toString('hex'))
      timer.refresh()
    }
    clearInterval(timer)
  })
  return batches
}

const given = (bytes: Uint8Array) => [encodeFrame(encodeCbor({ lengthBytes: bytes.byteLength })), bytes]
const absent = [encodeFrame(encodeCbor({ error: 'absent' }))]

describe('many small blobs of one peer', () => {
  test('are asked for without waiting for answers, at most 64 ahead', async () => {
    const { node, peer, fetch } = await network()
    const batches = await serveInBatches(peer, (digest) => given(BY_DIGEST.get(digest) ?? Buffer.of()))
    await Promise.all([...BY_DIGEST.keys()].map((digest) => fetch(digest, peer.peerId)))
    for (const [digest, bytes] of BY_DIGEST)
      expect(Buffer.compare((await node.store.contents(digest)) ?? Buffer.of(), bytes)).toBe(0)
    expect(Math.max(...batches)).toBe(64)
    expect(batches.length).toBeLessThanOrEqual(4)
  })

  test('one that it has not, and one that it lies about, cost the others nothing', async () => {
    const { node, peer, honest, fetch } = await network()
    const [lacking = '', lied = '', ...right] = BY_DIGEST.keys()
    await serveInBatches(peer, (digest) => {
      if (digest === lacking) return absent
      const bytes = BY_DIGEST.get(digest) ?? Buffer.of()
      return given(digest === lied ? bytes.map((byte) => byte ^ 1) : bytes)
    })
    await Promise.all([
      ...right.map((digest) => fetch(digest, peer.peerId)),
      fetch(lacking, peer.peerId, honest.peerId),
      fetch(lied, peer.peerId, honest.peerId),
    ])
    expect(node.faults).toMatchObject([{ peerId: peer.peerId, digest: lied }])
    expect(honest.server.servedBytes).toBe(500 + 501)
  })

  test('are asked for again, but the one in question, when the stream is cut at one', async () => {
    const { node, peer, honest, fetch } = await network()
    const digests = [...BY_DIGEST.keys()].slice(0, 20)
    const [, , cutting] = digests
    await serveInBatches(peer, (digest) => (digest === cutting ? 'reset' : given(BY_DIGEST.get(digest) ?? Buffer.of())))
    await Promise.all(digests.map((digest) => fetch(digest, peer.peerId, honest.peerId)))
    expect(node.faults).toEqual([])
    // What the peer could give, it gave.
    expect(honest.server.servedBytes).toBe(BY_DIGEST.get(cutting ?? '')?.byteLength)
    for (const digest of digests) expect(node.store.blobs.has(digest)).toBe(true)
  })

  test('are had from another when it says nothing', async () => {
    const { node, peer, honest, fetch } = await network()
    await serveRaw(peer, () => new Promise(() => undefined))
    const digests = [...BY_DIGEST.keys()].slice(0, 20)
    await Promise.all(digests.map((digest) => fetch(digest, peer.peerId, honest.peerId)))
    for (const digest of digests) expect(node.store.blobs.has(digest)).toBe(true)
    expect(node.faults).toEqual([])
  })

  test('whoever leaves does not disturb the others', async () => {
    const { node, peer } = await network()
    await serveInBatches(peer, (digest) => given(BY_DIGEST.get(digest) ?? Buffer.of()))
    const leaving = new AbortController()
    const fetches = [...BY_DIGEST].map(([digest, bytes], at) =>
      node.fetcher.fetch(digest, {
        network: OPEN_NETWORK_ID,
        sources: [peer.peerId],
        signal: at % 2 === 0 ? leaving.signal : never,
        sizeBytes: bytes.byteLength,
      }),
    )
    await new Promise((resolve) => setTimeout(resolve, 20))
    leaving.abort()
    const outcomes = await Promise.allSettled(fetches)
    for (const [at, { status }] of outcomes.entries()) if (at % 2 === 1) expect(status).toBe('fulfilled')
  })
})
