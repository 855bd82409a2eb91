/** Large blobs over lanes, between real nodes of libp2p: that they are used, and that whatever goes wrong on one costs nothing but time. */
import { openSync, writeSync } from 'node:fs'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { Fetcher } from '../../../agent/content/fetcher.ts'
import type { LaneFrames } from '../../../agent/content/lane-frames.ts'
import type { LaneServer } from '../../../agent/content/lane-server.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { Uploads } from '../../../agent/content/uploads.ts'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { decodeRequest } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, liar } from './hostile.ts'
import { type Holders, laneNode, lanePeer, NEVER_OPEN } from './lane-peer.ts'
import { certificateServer, ELSEWHERE, LaneProxy } from './lane-proxy.ts'
import { ContentNode, digestOf, type NodeOptions, never, until } from './peers.ts'

/** Lanes are for what has 64 pieces at least. */
const COUNT = 72
/** Of a machine with much else to do. */
const TEST_MS_MAX = 60_000
vi.setConfig({ testTimeout: TEST_MS_MAX })

const BLOB = pattern(COUNT * PIECE_BYTES - 777)
const { digest: DIGEST } = digestOf(BLOB)
const known = new Map()

const node = (options?: NodeOptions): Promise<ContentNode> => laneNode(known, options)

async function seed(options: NodeOptions = {}): Promise<ContentNode & { laneServer: LaneServer }> {
  const made = await node(options)
  await made.store.publish(BLOB)
  return made as ContentNode & { laneServer: LaneServer }
}

/** One that gives little until it does so over lanes: else all is here before they are open. */
async function laneSeed(options: NodeOptions = {}): Promise<ContentNode & { laneServer: LaneServer }> {
  const uploads = new Uploads({ rateBytes: 2 ** 20 })
  const made = await seed({ uploads, ...options })
  void until(() => made.laneServer.size > 0).then(() => uploads.setRate(undefined))
  return made
}

const from = (...sources: string[]) => ({ network: OPEN_NETWORK_ID, sources, signal: never })

async function expectBlob(holder: ContentNode): Promise<void> {
  expect(Buffer.compare((await holder.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
}

function logged({ store }: ContentNode, msg: string) {
  return store.entries.filter((entry) => entry.msg === msg)
}

/** With whatever is between it and the source's lanes. */
async function fetchedBy(getter: ContentNode, ...sources: string[]): Promise<void> {
  await getter.fetcher.fetch(DIGEST, from(...sources))
  await expectBlob(getter)
  expect(getter.faults).toEqual([])
}

describe('lanes', () => {
  test('carry a large blob, and are counted on both sides; none is opened for a small one', async () => {
    const [source, getter] = [await laneSeed(), await node()]
    const small = await source.store.publish(BLOB.subarray(0, 100_000), OPEN_NETWORK_ID, 'small')
    await getter.fetcher.fetch(small.digest, from(source.peerId))
    expect(getter.lanes?.threads).toBe(0)
    await fetchedBy(getter, source.peerId)
    expect(getter.fetcher.laneBytes).toBeGreaterThan(BLOB.byteLength / 2)
    expect(source.laneServer.sentBytes).toBeGreaterThanOrEqual(getter.fetcher.laneBytes)
    expect(source.server.servedBytes).toBeGreaterThanOrEqual(BLOB.byteLength)
    expect(getter.fetcher.fetchedBytes).toBe(100_000 + BLOB.byteLength)
  })

  test('are used again for the next blob', async () => {
    const [source, getter] = [await laneSeed(), await node()]
    const other = await source.store.publish(pattern(COUNT * PIECE_BYTES, 5), OPEN_NETWORK_ID, 'other')
    await fetchedBy(getter, source.peerId)
    await getter.fetcher.fetch(other.digest, from(source.peerId))
    expect(logged(getter, 'lane.opened')).toHaveLength(1)
    expect(logged(source, 'lane.given')).toHaveLength(2)
  })

  test('go between those who fetch at once, too', async () => {
    const uploads = new Uploads({ rateBytes: 8 * 2 ** 20 })
    const [source, one, other] = [await seed({ uploads }), await node(), await node()]
    await Promise.all([
      one.fetcher.fetch(DIGEST, from(source.peerId, other.peerId)),
      other.fetcher.fetch(DIGEST, from(source.peerId, one.peerId)),
    ])
    await expectBlob(one)
    await expectBlob(other)
    expect((one.laneServer?.sentBytes ?? 0) + (other.laneServer?.sentBytes ?? 0)).toBeGreaterThan(0)
    expect(source.server.servedBytes).toBeLessThan(1.7 * BLOB.byteLength)
  })

  test('keep to the upload rate', async () => {
    const rateBytes = 16 * 2 ** 20
    const [source, getter] = [await seed({ uploads: new Uploads({ rateBytes }) }), await node()]
    const startedMs = performance.now()
    await fetchedBy(getter, source.peerId)
    expect(getter.fetcher.laneBytes).toBeGreaterThan(0)
    // A quarter of a second is given in advance.
    expect(performance.now() - startedMs).toBeGreaterThan((BLOB.byteLength / rateBytes - 0.3) * 1_000)
  })
})

describe('goes on over the stream', () => {
  test('when the port cannot be reached, which is not tried again soon', async () => {
    const [source, getter] = [await seed(), await node({ lanes: { hostOf: () => '127.0.0.3' } })]
    const other = await source.store.publish(pattern(COUNT * PIECE_BYTES, 6), OPEN_NETWORK_ID, 'other')
    await fetchedBy(getter, source.peerId)
    await getter.fetcher.fetch(other.digest, from(source.peerId))
    expect(getter.fetcher.laneBytes).toBe(0)
    expect(logged(getter, 'lane.closed').length).toBeLessThanOrEqual(2)
  })

  test('when the source gives no lanes', async () => {
    const source = await ContentNode.start(known)
    onTestFinished(() => source[Symbol.asyncDispose]())
    await source.store.publish(BLOB)
    const getter = await node()
    await fetchedBy(getter, source.peerId)
    expect(getter.fetcher.laneBytes).toBe(0)
  })

  test('while lanes are still being opened, and does not wait for that', async () => {
    const [source, getter] = [await seed(), await node()]
    const { blobs, log } = getter.store
    await using fetcher = new Fetcher({
      blobs,
      streams: getter.peer.streams,
      self: getter.peerId,
      lanes: NEVER_OPEN,
      log,
    })
    await fetcher.fetch(DIGEST, from(source.peerId))
    await expectBlob(getter)
  })

  test('when another answers in the place of the source, with a certificate', async () => {
    const [source, getter] = [await seed(), await node({ lanes: { hostOf: () => ELSEWHERE } })]
    await using rogue = await certificateServer(source.laneServer.port)
    await fetchedBy(getter, source.peerId)
    expect(rogue.handshakes()).toBeGreaterThan(0)
    expect(getter.fetcher.laneBytes).toBe(0)
    expect(logged(getter, 'lane.opened')).toEqual([])
  })

  test('when a bit is flipped on the wire', async () => {
    const [source, getter] = [await laneSeed(), await node({ lanes: { hostOf: () => ELSEWHERE } })]
    let flipped = 0
    await using _ = await LaneProxy.start(source.laneServer.port, (chunk, passedBytes) => {
      if (passedBytes < 2 ** 20) return chunk
      if (flipped++ === 0) chunk[chunk.byteLength >> 1] = (chunk[chunk.byteLength >> 1] ?? 0) ^ 0x04
      return chunk
    })
    await fetchedBy(getter, source.peerId)
    expect(flipped).toBeGreaterThan(0)
    expect(getter.fetcher.laneBytes).toBeGreaterThan(0)
    expect(logged(getter, 'lane.closed')).toContainEqual(expect.objectContaining({ why: 'lost' }))
  })

  test('when lanes break off in the middle, keeping what came', async () => {
    const [source, getter] = [await laneSeed(), await node({ lanes: { hostOf: () => ELSEWHERE } })]
    await using proxy = await LaneProxy.start(source.laneServer.port, (chunk, passedBytes) =>
      passedBytes > 3 * 2 ** 20 ? 'cut' : chunk,
    )
    await fetchedBy(getter, source.peerId)
    expect(proxy.connections).toBe(2)
    expect(getter.fetcher.laneBytes).toBeGreaterThan(2 ** 20)
    expect(getter.fetcher.laneBytes).toBeLessThan(BLOB.byteLength)
    // Nothing of it came twice.
    expect(getter.fetcher.fetchedBytes).toBe(BLOB.byteLength)
  })
})

describe('a wrong piece on a lane', () => {
  const two = async (...holders: Holders) => {
    const peer = await lanePeer(known, ...holders)
    onTestFinished(() => peer[Symbol.asyncDispose]())
    return peer
  }
  const truth = liar(BLOB)
  const lie = liar(altered(BLOB, COUNT - 1), digestOf(BLOB).hashes)

  test('is told from an answer of a later version, which is understood', async () => {
    const newer = async (frames: LaneFrames) => {
      for (let bytes = await frames.read(never); bytes; bytes = await frames.read(never)) {
        const request = decodeRequest(bytes)
        if (request === 'unknown' || request.op !== 'get') return
        const { from, count } = request
        const pieces = BLOB.subarray(from * PIECE_BYTES, (from + count) * PIECE_BYTES)
        await frames.write(encodeCbor({ lengthBytes: pieces.byteLength, color: 'blue' }), never)
        await frames.writeBytes(pieces, never)
      }
    }
    const [peer, getter] = [await two(truth, newer), await node()]
    await fetchedBy(getter, peer.peerId)
    expect(getter.fetcher.laneBytes).toBeGreaterThan(0)
    expect(logged(getter, 'lane.closed')).toEqual([])
  })

  test('is asked for on the stream, and where it is right there nobody is blamed', async () => {
    const [peer, getter] = [await two(truth, lie), await node()]
    await fetchedBy(getter, peer.peerId)
    expect(logged(getter, 'lane.closed')).toContainEqual(expect.objectContaining({ why: 'wrong' }))
  })

  test('is a lie when it is wrong on the stream, too', async () => {
    const [peer, getter, honest] = [await two(lie, lie), await node(), await seed()]
    await expect(getter.fetcher.fetch(DIGEST, from(peer.peerId))).rejects.toMatchObject({ code: 'corrupt' })
    expect(getter.faults).toMatchObject([{ peerId: peer.peerId }])
    await getter.fetcher.fetch(DIGEST, from(honest.peerId))
    await expectBlob(getter)
  })

  test('of a disk that went bad is found out by its owner, who is not blamed', async () => {
    const [rotten, sound, getter] = [await seed(), await seed(), await node()]
    writeSync(openSync(rotten.store.blobs.pathOf(DIGEST), 'r+'), Buffer.of(99), 0, 1, 70 * PIECE_BYTES + 5)
    await getter.fetcher.fetch(DIGEST, from(rotten.peerId, sound.peerId))
    await expectBlob(getter)
    expect(getter.faults).toEqual([])
  })
})

describe('a peer that is cut off', () => {
  const limits = { comebackMs: 500 }

  test('has no lane any more at once, on either side', async () => {
    let isAllowed = true
    const uploads = new Uploads({ rateBytes: 4 * 2 ** 20 })
    const [source, getter] = [await seed({ uploads, mayFetch: () => isAllowed }), await node({ limits })]
    const fetching = getter.fetcher.fetch(DIGEST, from(source.peerId))
    fetching.catch(() => undefined)
    await until(() => source.laneServer.size === 2 && getter.fetcher.laneBytes > 0)
    isAllowed = false
    for (const connection of source.peer.node.getConnections()) connection.abort(new Error('revoked'))
    await until(() => source.laneServer.size === 0 && logged(getter, 'lane.closed').length === 2)
    await expect(fetching).rejects.toMatchObject({ code: 'not-found' })
    expect(getter.fetcher.laneBytes).toBeLessThan(BLOB.byteLength)
  })

  test('gets nothing more on a lane of what it may not fetch any more', async () => {
    let isAllowed = true
    const uploads = new Uploads({ rateBytes: 4 * 2 ** 20 })
    const [source, getter] = [await seed({ uploads, mayFetch: () => isAllowed }), await node({ limits })]
    const fetching = getter.fetcher.fetch(DIGEST, from(source.peerId))
    fetching.catch(() => undefined)
    await until(() => getter.fetcher.laneBytes > 0)
    isAllowed = false
    await expect(fetching).rejects.toMatchObject({ code: 'not-found' })
    expect(getter.fetcher.laneBytes).toBeLessThan(BLOB.byteLength)
  })
})
