/** Fetching over real libp2p connections, from honest and from hostile peers: the right bytes or an error that names who lied. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { FetchOptions } from '../../../agent/content/content.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import { answerPieces } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, until as honestUntil, liar, serve, serveGetRaw, serveRaw } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, type StoreOptions, until } from './peers.ts'

const BLOB = pattern(9 * PIECE_BYTES + 1234)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
/** Long enough for loopback under load, short enough for a test that waits for it. */
const SLOW = { comebackMs: 1_000, pieceMs: 1_500, openMs: 5_000, listMsPerGib: 0 }

const known = new Map()
let honest: ContentNode

beforeAll(async () => {
  honest = await ContentNode.start(known)
  await honest.store.publish(BLOB)
})
afterAll(async () => {
  await honest[Symbol.asyncDispose]()
})

async function fetching(options: StoreOptions = {}): Promise<ContentNode> {
  const node = await ContentNode.start(known, { limits: SLOW, ...options })
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

async function stranger(): Promise<Peer> {
  const peer = await Peer.start(known)
  onTestFinished(() => peer[Symbol.asyncDispose]())
  return peer
}

const from = (...sources: string[]): FetchOptions => ({ network: OPEN_NETWORK_ID, sources, signal: never })

describe('from an honest peer', () => {
  const sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 4 * PIECE_BYTES, 37 * PIECE_BYTES + 5]
  test.each(sizes)('a blob of %i bytes arrives, its size known or not', async (sizeBytes) => {
    const bytes = pattern(sizeBytes, 3)
    const { digest } = await honest.store.publish(bytes)
    for (const size of [{ sizeBytes }, {}]) {
      const node = await fetching()
      const progress: [number, number][] = []
      await node.fetcher.fetch(digest, {
        ...from(honest.peerId),
        ...size,
        onProgress: (doneBytes, totalBytes) => progress.push([doneBytes, totalBytes]),
      })
      expect(Buffer.compare((await node.store.contents(digest)) ?? Buffer.of(1), bytes)).toBe(0)
      expect(progress.at(-1)).toEqual([sizeBytes, sizeBytes])
      expect(node.fetcher.fetchedBytes).toBe(sizeBytes)
      expect(node.store.blobs.stats).toMatchObject({ blobs: 1, bytes: sizeBytes })
      expect(readdirSync(join(node.store.directory, 'blobs', 'partial'))).toEqual([])
    }
  })

  test('what was fetched is served on, by the list that came with it', async () => {
    const [first, second] = [await fetching(), await fetching()]
    await first.fetcher.fetch(DIGEST, from(honest.peerId))
    await second.fetcher.fetch(DIGEST, from(first.peerId))
    expect(Buffer.compare((await second.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
    expect(first.server.servedBytes).toBe(BLOB.byteLength)
  })

  test('what is here already asks nobody', async () => {
    const node = await fetching()
    await node.store.blobs.write(undefined, [BLOB], never)
    await node.fetcher.fetch(DIGEST, from('nobody'))
    expect(node.fetcher.fetchedBytes).toBe(0)
  })

  test('many blobs at once arrive, over few streams', async () => {
    const node = await fetching()
    const bytes = Array.from({ length: 60 }, (_, seed) => pattern(1_000 + seed * 7_000, seed))
    const written = await Promise.all(bytes.map((one) => honest.store.publish(one)))
    await Promise.all(
      written.map(({ digest, sizeBytes }) => node.fetcher.fetch(digest, { ...from(honest.peerId), sizeBytes })),
    )
    for (const [at, { digest }] of written.entries())
      expect(Buffer.compare((await node.store.contents(digest)) ?? Buffer.of(), bytes[at] ?? Buffer.of())).toBe(0)
    expect(node.peer.node.getConnections().flatMap(({ streams }) => streams).length).toBeLessThanOrEqual(12)
  })
})

describe('a peer that lies', () => {
  const lies: [string, RegExp, (peer: Peer) => Promise<void>][] = [
    [
      'sends a piece with a changed bit',
      /piece 3 has another hash/,
      (peer) => serve(peer, liar(altered(BLOB, 3), HASHES)),
    ],
    [
      'sends other bytes, and a list that fits them',
      /do not make up the blob/,
      (peer) => serve(peer, liar(altered(BLOB, 0))),
    ],
    [
      'states a root that its list has not',
      /root is not the one/,
      (peer) =>
        serve(peer, {
          ...liar(BLOB),
          hashes: async () => ({ sizeBytes: BLOB.byteLength, root: new Uint8Array(32), hashes: HASHES }),
        }),
    ],
    [
      'states a list that is cut short',
      /another length|end missing/,
      (peer) => serve(peer, liar(BLOB, HASHES.subarray(32))),
    ],
    [
      'announces another length than it was asked for',
      /in place of/,
      (peer) => serveGetRaw(peer, BLOB, (stream) => stream.send(encodeFrame(encodeCbor({ lengthBytes: 5 })))),
    ],
    [
      'sends more than it announced',
      /another hash|DAG-CBOR|frame|message/,
      (peer) =>
        serve(
          peer,
          honestUntil(0, liar(BLOB), async (_digest, first, count) => ({
            lengthBytes: Math.min(BLOB.byteLength, (first + count) * PIECE_BYTES) - first * PIECE_BYTES,
            chunks: (async function* () {
              yield BLOB.subarray(first * PIECE_BYTES, (first + count) * PIECE_BYTES)
              yield pattern(100_000, 9)
            })(),
          })),
        ),
    ],
    [
      'answers with garbage',
      /DAG-CBOR|message/,
      (peer) => serveGetRaw(peer, BLOB, (stream) => stream.send(encodeFrame(pattern(50)))),
    ],
    [
      'answers with a frame too large',
      /limit is/,
      (peer) => serveRaw(peer, async (stream) => void stream.send(Uint8Array.of(0xff, 0xff, 0xff, 0x7f))),
    ],
  ]

  test.each(lies)('and %s is named; an honest one then gives the right bytes', async (_what, reason, act) => {
    const [node, hostile] = [await fetching(), await stranger()]
    await act(hostile)
    const refusal = await node.fetcher.fetch(DIGEST, from(hostile.peerId)).catch((error: unknown) => error)
    expect(refusal).toMatchObject({ code: 'corrupt', message: expect.stringContaining(hostile.peerId) })
    expect((refusal as Error).message).toMatch(reason)
    expect(node.faults).toEqual([{ peerId: hostile.peerId, digest: DIGEST, reason: expect.stringMatching(reason) }])
    expect(node.store.blobs.has(DIGEST)).toBe(false)

    const second = await fetching()
    await second.fetcher.fetch(DIGEST, from(hostile.peerId, honest.peerId))
    expect(Buffer.compare((await second.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
    expect(second.faults).toMatchObject([{ peerId: hostile.peerId }])
  })

  test('about a blob of one piece is named', async () => {
    const [node, hostile] = [await fetching(), await stranger()]
    const bytes = pattern(1000)
    await serve(hostile, liar(altered(bytes, 0)))
    const fetch = node.fetcher.fetch(digestOf(bytes).digest, { ...from(hostile.peerId), sizeBytes: 1000 })
    await expect(fetch).rejects.toMatchObject({ code: 'corrupt', message: expect.stringContaining(hostile.peerId) })
    expect(node.faults).toMatchObject([{ peerId: hostile.peerId }])
  })

  test('is not asked for that blob again, and the next error still names it', async () => {
    const [node, hostile] = [await fetching(), await stranger()]
    let asked = 0
    await serve(hostile, {
      ...liar(altered(BLOB, 0)),
      hashes: (...request) => {
        asked++
        return liar(altered(BLOB, 0)).hashes(...request)
      },
    })
    const refused = { code: 'corrupt', message: expect.stringContaining(hostile.peerId) }
    await expect(node.fetcher.fetch(DIGEST, from(hostile.peerId))).rejects.toMatchObject(refused)
    const before = asked
    await expect(node.fetcher.fetch(DIGEST, from(hostile.peerId))).rejects.toMatchObject(refused)
    expect(asked).toBe(before)
    expect(node.faults).toHaveLength(1)
  })

  test('in its list only, and breaks off, is named when the truth is known', async () => {
    const [node, hostile] = [await fetching(), await stranger()]
    const false_ = altered(BLOB, 0)
    await serve(
      hostile,
      honestUntil(1, liar(false_), async () => {
        throw new Error('broken off')
      }),
    )
    await node.fetcher.fetch(DIGEST, from(hostile.peerId, honest.peerId))
    expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
    expect(node.faults).toEqual([
      { peerId: hostile.peerId, digest: DIGEST, reason: expect.stringContaining('piece hashes') },
    ])
  })

  test('cannot undo what an honest one gave: its list waits until nobody stands by the first', async () => {
    const [node, breaking, hostile] = [await fetching(), await stranger(), await stranger()]
    await serve(
      breaking,
      honestUntil(1, liar(BLOB), async () => {
        throw new Error('broken off')
      }),
    )
    await serve(hostile, liar(altered(BLOB, 0)))
    await node.fetcher.fetch(DIGEST, from(breaking.peerId, hostile.peerId, honest.peerId))
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
    expect(node.faults).toMatchObject([{ peerId: hostile.peerId }])
  })
})

describe('a peer that fails', () => {
  const failures: [string, RegExp, (peer: Peer) => Promise<void>][] = [
    [
      'does not have it',
      /does not have it/,
      (peer) => serve(peer, { ...liar(BLOB), hashes: async () => ({ error: 'absent' }) }),
    ],
    ['is busy', /busy/, (peer) => serve(peer, { ...liar(BLOB), hashes: async () => ({ error: 'busy' }) })],
    ['does not speak the protocol', /cannot be reached/, async () => undefined],
    ['never answers', /nothing came/, (peer) => serveRaw(peer, () => new Promise(() => undefined))],
    [
      'stops in the middle of a piece',
      /nothing came/,
      (peer) =>
        serveGetRaw(peer, BLOB, (stream, lengthBytes) => {
          stream.send(encodeFrame(encodeCbor({ lengthBytes })))
          stream.send(BLOB.subarray(0, 1000))
        }),
    ],
    [
      'ends in the middle of a piece',
      /ended/,
      (peer) =>
        serveGetRaw(peer, BLOB, (stream, lengthBytes) => {
          if (stream.writeStatus !== 'writable') return
          stream.send(encodeFrame(encodeCbor({ lengthBytes })))
          stream.send(BLOB.subarray(0, 1000))
          void stream.close()
        }),
    ],
    [
      'resets the stream',
      /reset|closed|reached/,
      (peer) => serveRaw(peer, async (stream) => stream.abort(new Error('no'))),
    ],
    ['has another size than was signed', /in place of/, (peer) => serve(peer, liar(pattern(5 * PIECE_BYTES)))],
  ]

  test.each(failures)(
    'and %s is no liar; the error says what was, and the next one is asked',
    async (_what, reason, act) => {
      const [node, hostile] = [await fetching(), await stranger()]
      await act(hostile)
      const wanted = { sizeBytes: BLOB.byteLength }
      const refusal = await node.fetcher
        .fetch(DIGEST, { ...from(hostile.peerId), ...wanted })
        .catch((error: unknown) => error)
      expect(refusal).toMatchObject({ code: 'not-found', message: expect.stringMatching(reason) })
      await node.fetcher.fetch(DIGEST, { ...from(hostile.peerId, honest.peerId), ...wanted })
      expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
      expect(node.faults).toEqual([])
    },
  )

  test('after some pieces is asked again when there is nobody else, and goes on where it was', async () => {
    const [node, breaking] = [await fetching(), await stranger()]
    let broken = 0
    const holder = liar(BLOB)
    await serve(breaking, {
      ...holder,
      get: (...request) => {
        if (request[1] > 0 && broken++ % 2 === 0) throw new Error('broken off')
        return holder.get(...request)
      },
    })
    await node.fetcher.fetch(DIGEST, from(breaking.peerId))
    expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
    expect(broken).toBeGreaterThan(1)
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
  })

  test('once, as where its connection is replaced by another, is asked again at once', async () => {
    const [node, cut] = [await fetching(), await stranger()]
    let streams = 0
    await serveRaw(cut, async (stream) => {
      if (streams++ === 0) return stream.abort(new Error('replaced'))
      await answerPieces(new Frames(stream), liar(BLOB), never, () => undefined).catch(() => undefined)
    })
    await node.fetcher.fetch(DIGEST, from(cut.peerId))
    expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
  })

  test('nobody at all is an error that says so', async () => {
    const node = await fetching()
    await expect(node.fetcher.fetch(DIGEST, from())).rejects.toMatchObject({ code: 'not-found' })
    const searching = (async function* () {
      yield 'QmNobody'
      throw new Error('the search failed')
    })()
    await expect(node.fetcher.fetch(DIGEST, { ...from(), sources: searching })).rejects.toMatchObject({
      code: 'not-found',
    })
  })
})

describe('several who wait', () => {
  /** A peer that answers its first get, and then waits to be let go. */
  async function pausing() {
    const peer = await stranger()
    const go = Promise.withResolvers<void>()
    const holder = liar(BLOB)
    await serve(
      peer,
      honestUntil(1, holder, async (...request) => {
        await go.promise
        return holder.get(...request)
      }),
    )
    return { peerId: peer.peerId, go: () => go.resolve() }
  }

  test('share one transfer; one that leaves does not end it', async () => {
    const [node, source] = [await fetching(), await pausing()]
    const leaving = new AbortController()
    let done = 0
    const onProgress = (doneBytes: number) => {
      done = doneBytes
    }
    const first = node.fetcher.fetch(DIGEST, { ...from(source.peerId), signal: leaving.signal, onProgress })
    const second = node.fetcher.fetch(DIGEST, from(source.peerId))
    await until(() => done > 0)
    leaving.abort()
    await expect(first).rejects.toMatchObject({ code: 'cancelled' })
    source.go()
    await second
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
  })

  test('know different peers: the one who can help helps all', async () => {
    const node = await fetching()
    const searching = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => undefined) }) }
    const first = node.fetcher.fetch(DIGEST, { ...from(), sources: searching })
    await node.fetcher.fetch(DIGEST, from(honest.peerId))
    await first
  })

  test('and were told different sizes do not spoil it for each other', async () => {
    const node = await fetching()
    const fetch = (sizeBytes: number) => node.fetcher.fetch(DIGEST, { ...from(honest.peerId), sizeBytes })
    const wrong = [0, 5, PIECE_BYTES, 2 * PIECE_BYTES].map((sizeBytes) =>
      expect(fetch(sizeBytes)).rejects.toMatchObject({
        code: 'not-found',
        message: expect.stringMatching(/in place of|more than/),
      }),
    )
    await Promise.all([...wrong, fetch(BLOB.byteLength)])
    expect(node.faults).toEqual([])
  })

  test('when all leave, it ends; the next one goes on where it was', async () => {
    const [node, source] = [await fetching(), await pausing()]
    const leaving = new AbortController()
    let done = 0
    const fetch = node.fetcher.fetch(DIGEST, {
      ...from(source.peerId),
      signal: leaving.signal,
      onProgress: (doneBytes) => {
        done = doneBytes
      },
    })
    await until(() => done >= 4 * PIECE_BYTES)
    leaving.abort()
    await expect(fetch).rejects.toMatchObject({ code: 'cancelled' })
    const before = node.fetcher.fetchedBytes
    await node.fetcher.fetch(DIGEST, from(honest.peerId))
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
    expect(before).toBe(4 * PIECE_BYTES)
  })

  test('are told when the agent stops', async () => {
    const [node, source] = [await fetching(), await pausing()]
    const fetch = node.fetcher.fetch(DIGEST, from(source.peerId))
    const refused = expect(fetch).rejects.toMatchObject({
      code: 'cancelled',
      message: expect.stringContaining('stopping'),
    })
    await until(() => node.fetcher.fetchedBytes > 0)
    await node.fetcher[Symbol.asyncDispose]()
    await refused
  })
})

describe('limits', () => {
  test('a blob larger than the quota is refused before any of it is transferred', async () => {
    const node = await fetching({ quotaBytes: PIECE_BYTES })
    await expect(node.fetcher.fetch(DIGEST, from(honest.peerId))).rejects.toMatchObject({ code: 'limit' })
    expect(node.fetcher.fetchedBytes).toBe(0)
    expect(node.faults).toEqual([])
    expect(node.store.blobs.stats.bytes).toBe(0)
  })

  test('a blob larger than was wanted is refused, and nobody blamed', async () => {
    const node = await fetching()
    const fetch = node.fetcher.fetch(DIGEST, { ...from(honest.peerId), sizeBytesMax: 1000 })
    await expect(fetch).rejects.toMatchObject({
      code: 'not-found',
      message: expect.stringContaining('more than the 1000'),
    })
    expect(node.faults).toEqual([])
  })

  test('half-fetched blobs make room when they are not being fetched', async () => {
    const node = await fetching({ quotaBytes: BLOB.byteLength + 10 })
    const breaking = await stranger()
    await serve(
      breaking,
      honestUntil(1, liar(BLOB), async () => ({ error: 'absent' })),
    )
    await expect(node.fetcher.fetch(DIGEST, from(breaking.peerId))).rejects.toMatchObject({ code: 'not-found' })
    expect(node.store.index.partialBytes()).toBe(BLOB.byteLength)
    await node.store.blobs.write(undefined, [pattern(PIECE_BYTES)], never)
    expect(node.store.index.partialBytes()).toBe(0)
    expect(readdirSync(join(node.store.directory, 'blobs', 'partial'))).toEqual([])
  })

  test('a pin of a fetch that failed is gone', async () => {
    const node = await fetching()
    await expect(node.fetcher.fetch(DIGEST, { ...from(), pin: 'why' })).rejects.toMatchObject({ code: 'not-found' })
    expect(node.store.index.pins(DIGEST)).toEqual([])
    await node.fetcher.fetch(DIGEST, { ...from(honest.peerId), pin: 'why' })
    expect(node.store.index.pins(DIGEST)).toEqual(['why'])
  })
})
