/** One blob from many sources, and to many who want it at once: the right bytes, little from each, and whoever spoils it named. */
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { FetchOptions } from '../../../agent/content/content.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { Frames } from '../../../protocols/frame.ts'
import { answerPieces, GET_PIECES_MAX, type PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { merkleRoot, PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, liar, serve, serveRaw } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, type StoreOptions, until } from './peers.ts'

const COUNT = 48
const BLOB = pattern(COUNT * PIECE_BYTES - 777)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
const LIMITS = { pieceMs: 3_000, hasteMs: 1_000, openMs: 5_000, listMsPerGib: 0, comebackMs: 5_000 }

function network() {
  const known = new Map()
  return {
    known,
    node: async (options: StoreOptions = {}) => {
      const node = await ContentNode.start(known, { limits: LIMITS, ...options })
      onTestFinished(() => node[Symbol.asyncDispose]())
      return node
    },
    seed: async (bytes = BLOB) => {
      const node = await ContentNode.start(known)
      onTestFinished(() => node[Symbol.asyncDispose]())
      await node.store.publish(bytes)
      return node
    },
    peer: async () => {
      const peer = await Peer.start(known)
      onTestFinished(() => peer[Symbol.asyncDispose]())
      return peer
    },
  }
}

const from = (...sources: string[]): FetchOptions => ({ network: OPEN_NETWORK_ID, sources, signal: never })

async function expectBlob(node: ContentNode, bytes = BLOB): Promise<void> {
  expect(Buffer.compare((await node.store.contents(digestOf(bytes).digest)) ?? Buffer.of(), bytes)).toBe(0)
}

/** Gives honestly, counts what it gave, and may be told to do otherwise. */
function honest(bytes = BLOB) {
  const holder = liar(bytes)
  const given: number[] = []
  return {
    given,
    holder: {
      ...holder,
      get: async (...request: Parameters<PieceHolder['get']>) => {
        for (let at = 0; at < request[2]; at++) given.push(request[1] + at)
        return await holder.get(...request)
      },
    } satisfies PieceHolder,
  }
}

describe('several who fetch the same blob at once', () => {
  test.each([4, 8])('%i of them: they have most of it from each other', { timeout: 60_000 }, async (count) => {
    const net = network()
    const source = await net.seed()
    const nodes = await Promise.all(Array.from({ length: count }, () => net.node()))
    await Promise.all(nodes.map((node) => node.fetcher.fetch(DIGEST, from(source.peerId))))
    for (const node of nodes) {
      await expectBlob(node)
      expect(node.faults).toEqual([])
      // Hardly anything twice: only what was late, where the machine is busy.
      expect(node.fetcher.fetchedBytes).toBeLessThan(1.2 * BLOB.byteLength)
    }
    // Hardly more than one copy where the machine is calm: see bench/swarm.ts. Of one so small the beginning is a large part.
    expect(source.server.servedBytes / BLOB.byteLength).toBeLessThan(count / 2)
  })

  test('go on among themselves when the source is gone', { timeout: 60_000 }, async () => {
    const net = network()
    const source = await net.peer()
    const { holder, given } = honest()
    let isGone = false
    await serve(source, {
      ...holder,
      get: async (...request) => {
        if (isGone) throw new Error('gone')
        return await holder.get(...request)
      },
    })
    const nodes = await Promise.all([net.node(), net.node(), net.node()])
    // As members of a network, who are asked whether they have it: at first none does.
    const all = from(source.peerId, ...nodes.map(({ peerId }) => peerId))
    const fetches = nodes.map((node) => node.fetcher.fetch(DIGEST, { ...all, sizeBytes: BLOB.byteLength }))
    await until(() => new Set(given).size === COUNT)
    isGone = true
    await Promise.all(fetches)
    for (const node of nodes) await expectBlob(node)
  })

  test('who comes when another is half through has what that one has from it', { timeout: 60_000 }, async () => {
    const net = network()
    const source = await net.peer()
    const { holder, given } = honest()
    const go = Promise.withResolvers<void>()
    await serve(source, {
      ...holder,
      get: async (...request) => {
        if (given.length >= COUNT / 2) await go.promise
        return await holder.get(...request)
      },
    })
    const [first, second] = [await net.node(), await net.node()]
    const fetches = [first.fetcher.fetch(DIGEST, from(source.peerId))]
    await until(() => first.fetcher.fetchedBytes >= 16 * PIECE_BYTES)
    fetches.push(second.fetcher.fetch(DIGEST, from(first.peerId)))
    await until(() => second.fetcher.fetchedBytes >= 16 * PIECE_BYTES)
    expect(first.store.blobs.has(DIGEST)).toBe(false)
    go.resolve()
    await Promise.all(fetches)
    await expectBlob(second)
    expect(second.fetcher.fetchedBytes).toBe(BLOB.byteLength)
  })
})

describe('of several sources', () => {
  test('each gives a part, and each piece is asked for once', async () => {
    const net = network()
    const sources = [honest(), honest(), honest()]
    const peers = await Promise.all(
      sources.map(async ({ holder }) => {
        const peer = await net.peer()
        await serve(peer, {
          ...holder,
          get: async (...request) => {
            await delay(20)
            return await holder.get(...request)
          },
        })
        return peer.peerId
      }),
    )
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(...peers))
    await expectBlob(node)
    for (const { given } of sources) expect(given.length).toBeGreaterThanOrEqual(COUNT / 12)
    const all = sources.flatMap(({ given }) => given)
    // The last ones may be asked for twice, where the machine is busy.
    expect(all.length).toBeLessThanOrEqual(1.5 * COUNT)
    expect(new Set(all).size).toBe(COUNT)
  })

  test('one is killed in the middle: nothing is fetched again', async () => {
    const net = network()
    const source = await net.seed()
    const dying = await net.peer()
    let streams = 0
    await serveRaw(dying, async (stream) => {
      if (streams++ > 0) return stream.abort(new Error('dead'))
      const { holder, given } = honest()
      const killed = Promise.withResolvers<never>()
      const get: PieceHolder['get'] = async (...request) => {
        if (given.length >= 8) stream.abort(new Error('killed'))
        return await holder.get(...request)
      }
      await Promise.race([
        answerPieces(new Frames(stream), { ...holder, get }, never, () => undefined),
        killed.promise,
      ]).catch(() => undefined)
    })
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(dying.peerId, source.peerId))
    await expectBlob(node)
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
    expect(node.faults).toEqual([])
  })

  test('one corrupts a piece in fifty: it is named, and nothing of what was right is fetched again', async () => {
    const net = network()
    const source = await net.seed()
    const corrupt = await net.peer()
    await serve(corrupt, liar(altered(BLOB, 11), HASHES))
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(corrupt.peerId, source.peerId))
    await expectBlob(node)
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
    const reason = 'piece 11 has another hash than it said'
    // If the other one was quicker, the wrong piece was never asked for.
    for (const fault of node.faults) expect(fault).toEqual({ peerId: corrupt.peerId, digest: DIGEST, reason })
  })

  test('one that corrupts what only it is asked for is named', async () => {
    const net = network()
    const [source, corrupt] = [await net.seed(), await net.peer()]
    await serve(corrupt, liar(altered(BLOB, 0), HASHES))
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(corrupt.peerId, source.peerId))
    await expectBlob(node)
    expect(node.faults).toMatchObject([{ peerId: corrupt.peerId, reason: expect.stringContaining('piece 0') }])
  })

  test('one stalls: the others give what it was asked for, and nobody waits for it', async () => {
    const net = network()
    const source = await net.seed()
    const stalling = await net.peer()
    const { holder, given } = honest()
    await serve(stalling, {
      ...holder,
      get: (...request) => (given.length >= 8 ? new Promise(() => undefined) : holder.get(...request)),
    })
    const node = await net.node({ limits: { ...LIMITS, pieceMs: 60_000 } } as StoreOptions)
    const startMs = performance.now()
    await node.fetcher.fetch(DIGEST, from(stalling.peerId, source.peerId))
    expect(performance.now() - startMs).toBeLessThan(10_000)
    await expectBlob(node)
    expect(node.faults).toEqual([])
  })

  test('a fellow that is stuck keeps nobody from what the others have', async () => {
    const net = network()
    const [source, fellow] = [await net.seed(), await net.peer()]
    const told = liar(BLOB)
    await serve(fellow, {
      ...told,
      hashes: async (...request) => ({
        ...(await told.hashes(...request)),
        pieces: new Uint8Array(Math.ceil(COUNT / 8)),
      }),
    } as PieceHolder)
    const node = await net.node()
    const startMs = performance.now()
    await node.fetcher.fetch(DIGEST, from(source.peerId, fellow.peerId))
    expect(performance.now() - startMs).toBeLessThan(10_000)
    await expectBlob(node)
  })

  test('one comes up in the middle, and gives what the first is too slow for', async () => {
    const net = network()
    const [source, slow] = [await net.seed(), await net.peer()]
    const { holder, given } = honest()
    await serve(slow, {
      ...holder,
      get: async (...request) => {
        if (given.length > 4) await delay(4_000)
        return await holder.get(...request)
      },
    })
    const node = await net.node()
    const first = node.fetcher.fetch(DIGEST, from(slow.peerId))
    await until(() => node.fetcher.fetchedBytes >= 4 * PIECE_BYTES)
    // While it was alone it was asked for as much as its window holds.
    const before = given.length
    await Promise.all([first, node.fetcher.fetch(DIGEST, from(source.peerId))])
    await expectBlob(node)
    expect(before).toBeLessThan(COUNT)
    expect(given.length).toBeLessThanOrEqual(before + GET_PIECES_MAX)
  })

  test('the only one is gone for a while, and back: it goes on where it was', async () => {
    const net = network()
    const source = await net.peer()
    const { holder, given } = honest()
    const address = net.known.get(source.peerId)
    let isGone = false
    await serve(source, {
      ...holder,
      get: (...request) => {
        if (!isGone && given.length >= 16) {
          isGone = true
          net.known.delete(source.peerId)
          setTimeout(() => net.known.set(source.peerId, address), 1_200)
          throw new Error('gone')
        }
        return holder.get(...request)
      },
    })
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(source.peerId))
    await expectBlob(node)
    expect(node.fetcher.fetchedBytes).toBe(BLOB.byteLength)
  })
})

describe('a false piece list', () => {
  test.each([
    ['first', true],
    ['second', false],
  ])(
    'of the source asked %s blames him alone, and costs no more than the pieces that differ',
    async (_when, isFirst) => {
      const net = network()
      const [source, hostile] = [await net.seed(), await net.peer()]
      await serve(hostile, liar(altered(BLOB, 7)))
      const node = await net.node()
      const sources = isFirst ? [hostile.peerId, source.peerId] : [source.peerId, hostile.peerId]
      await node.fetcher.fetch(DIGEST, from(...sources))
      await expectBlob(node)
      expect(node.fetcher.fetchedBytes).toBeLessThanOrEqual(BLOB.byteLength + PIECE_BYTES)
      if (isFirst) expect(node.faults).toMatchObject([{ peerId: hostile.peerId }])
      for (const { peerId } of node.faults) expect(peerId).toBe(hostile.peerId)
    },
  )

  test('is not held against a fellow who was told it, too', async () => {
    const net = network()
    const [source, fellow] = [await net.seed(), await net.peer()]
    const lie = digestOf(altered(BLOB, 3)).hashes
    // Fetches by the lie, and has most of it.
    const pieces = Buffer.alloc(Math.ceil(COUNT / 8), 0xff)
    const told = liar(altered(BLOB, 3), lie)
    await serve(fellow, {
      ...told,
      hashes: async (_digest, first, count) => ({
        sizeBytes: BLOB.byteLength,
        root: merkleRoot(lie),
        hashes: lie.subarray(first * 32, (first + count) * 32),
        pieces,
      }),
    })
    const node = await net.node()
    await node.fetcher.fetch(DIGEST, from(fellow.peerId, source.peerId))
    await expectBlob(node)
    expect(node.faults).toEqual([])
    // When he is the only one, it fails, and he is still no liar.
    const alone = await net.node()
    await expect(alone.fetcher.fetch(DIGEST, from(fellow.peerId))).rejects.toMatchObject({ code: 'not-found' })
    expect(alone.faults).toEqual([])
  })
})

describe('what is half fetched', () => {
  test('is given out in the network that it is fetched for, and in no other', async () => {
    const net = network()
    const other = Buffer.alloc(32, 7).toString('hex')
    const source = await net.peer()
    const { holder, given } = honest()
    await serve(source, {
      ...holder,
      get: (...request) => (given.length >= 24 ? new Promise(() => undefined) : holder.get(...request)),
    })
    const [first, same, elsewhere] = [await net.node(), await net.node(), await net.node()]
    const leaving = new AbortController()
    const fetches = [first.fetcher.fetch(DIGEST, { ...from(source.peerId), signal: leaving.signal })]
    await until(() => first.fetcher.fetchedBytes >= 20 * PIECE_BYTES)
    const asks = { network: other, sources: [first.peerId], signal: never }
    await expect(elsewhere.fetcher.fetch(DIGEST, asks)).rejects.toMatchObject({ code: 'not-found' })
    expect(elsewhere.fetcher.fetchedBytes).toBe(0)
    fetches.push(same.fetcher.fetch(DIGEST, { ...from(first.peerId), signal: leaving.signal }))
    await until(() => same.fetcher.fetchedBytes >= 20 * PIECE_BYTES)
    leaving.abort()
    await Promise.allSettled(fetches)
  })
})
