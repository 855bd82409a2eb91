/** Blobs of a few pieces, which come as a whole over lanes that are open, between real nodes of libp2p; and what becomes of those that do not. */
import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { Fetcher } from '../../../agent/content/fetcher.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, liar } from './hostile.ts'
import { laneNode, lanePeer, NEVER_OPEN } from './lane-peer.ts'
import { ELSEWHERE, LaneProxy } from './lane-proxy.ts'
import { type ContentNode, digestOf, type NodeOptions, never, type Store, until } from './peers.ts'

/** Of a machine with much else to do. */
vi.setConfig({ testTimeout: 60_000 })

/** Enough for lanes to be opened. */
const LARGE = pattern(72 * PIECE_BYTES, 3)
const { digest: LARGE_DIGEST } = digestOf(LARGE)
const BLOB = pattern(6 * PIECE_BYTES + 999, 4)
const { digest: DIGEST } = digestOf(BLOB)
const known = new Map()

const node = (options?: NodeOptions): Promise<ContentNode> => laneNode(known, options)

const from = (source: { peerId: string }, signal = never) => ({
  network: OPEN_NETWORK_ID,
  sources: [source.peerId],
  sizeBytes: BLOB.byteLength,
  signal,
})

/** With lanes to the source from now on, for some seconds. */
async function withLanes(source: { peerId: string }, options: NodeOptions = {}): Promise<ContentNode> {
  const getter = await node(options)
  await getter.fetcher.fetch(LARGE_DIGEST, { ...from(source), sizeBytes: LARGE.byteLength })
  await until(() => getter.lanes?.hasOpen(source.peerId) === true)
  return getter
}

async function seed(): Promise<ContentNode> {
  const source = await node()
  for (const bytes of [LARGE, BLOB]) await source.store.publish(bytes)
  return source
}

async function expectBlob({ store }: ContentNode): Promise<void> {
  expect(Buffer.compare((await store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
}

/** Whoever fetched it by pieces was told its list. */
const hasList = ({ lists }: Store) => lists.get(DIGEST, BLOB.byteLength) !== undefined
const incoming = ({ directory }: Store) => readdirSync(join(directory, 'blobs', 'incoming'))

describe('a blob of a few pieces', () => {
  test('comes as a whole over an open lane, asked for without its list', async () => {
    const source = await seed()
    const getter = await withLanes(source)
    const before = getter.fetcher.laneBytes
    await getter.fetcher.fetch(DIGEST, from(source))
    await expectBlob(getter)
    expect(hasList(getter.store)).toBe(false)
    expect(getter.fetcher.laneBytes - before).toBe(BLOB.byteLength)
    expect([...getter.store.blobs.networksOf(DIGEST)]).toEqual([OPEN_NETWORK_ID])
    expect(getter.store.blobs.stats.bytes).toBe(LARGE.byteLength + BLOB.byteLength)
    await until(() => incoming(getter.store).length === 0)
    // It can be had again, so it is brought to the disk later; whoever has it gives it on.
    expect(getter.store.index.unsynced()).toContainEqual(expect.objectContaining({ digest: DIGEST }))
    const third = await node()
    await third.fetcher.fetch(DIGEST, from(getter))
    await expectBlob(third)
  })

  test('has lanes opened for it where much waits behind it', async () => {
    const [source, little, much] = [await seed(), await node(), await node()]
    await little.fetcher.fetch(DIGEST, { ...from(source), moreBytes: 2 ** 20 })
    await much.fetcher.fetch(DIGEST, { ...from(source), moreBytes: 64 * 2 ** 20 })
    for (const getter of [little, much]) await expectBlob(getter)
    // On a busy machine not soon enough for this one.
    await until(() => much.lanes?.hasOpen(source.peerId) === true)
    expect(little.lanes?.hasOpen(source.peerId)).toBe(false)
  })

  test('waits for lanes once for all, where they are not to be had', async () => {
    const [source, getter] = [await node(), await node()]
    const blobs = Array.from({ length: 24 }, (_, at) => pattern(PIECE_BYTES + at, 100 + at))
    for (const bytes of blobs) await source.store.publish(bytes)
    const { peer, peerId: self, store } = getter
    await using fetcher = new Fetcher({
      blobs: store.blobs,
      streams: peer.streams,
      self,
      lanes: NEVER_OPEN,
      log: store.log,
    })
    const began = performance.now()
    for (const bytes of blobs)
      await fetcher.fetch(digestOf(bytes).digest, { ...from(source), sizeBytes: bytes.byteLength, moreBytes: 2 ** 30 })
    // A quarter of a second for each would be six.
    expect(performance.now() - began).toBeLessThan(5_500)
  })

  test('does not wait long for lanes that a firewall is in the way of', async () => {
    const [source, getter] = [await seed(), await node({ lanes: { hostOf: () => ELSEWHERE } })]
    await using firewall = await LaneProxy.start(source.laneServer?.port ?? 0, () => Buffer.of())
    const began = performance.now()
    await getter.fetcher.fetch(DIGEST, { ...from(source), moreBytes: 64 * 2 ** 20 })
    await expectBlob(getter)
    expect(getter.fetcher.laneBytes).toBe(0)
    // Less than the 5 s that a lane may take to be opened.
    expect(performance.now() - began).toBeLessThan(4_800)
    await until(() => firewall.connections > 0)
  })

  test('can be opened while it comes, and is read when it is here', async () => {
    const source = await seed()
    const getter = await withLanes(source)
    const blob = await getter.fetcher.open(DIGEST, from(source))
    expect(Buffer.compare(Buffer.concat(await Array.fromAsync(blob.read(0, BLOB.byteLength, never))), BLOB)).toBe(0)
    await blob.close?.()
    expect(hasList(getter.store)).toBe(false)
  })

  test('is on the disk when it is fetched to be kept', async () => {
    const source = await seed()
    const getter = await withLanes(source)
    await getter.fetcher.fetch(DIGEST, { ...from(source), pin: 'test' })
    await expectBlob(getter)
    expect(getter.store.index.unsynced().map(({ digest }) => digest)).not.toContain(DIGEST)
  })

  test('comes by pieces where there is no lane, its size is not known, or some of it is here', async () => {
    const source = await seed()
    const without = await node()
    await without.fetcher.fetch(DIGEST, from(source))
    const { sizeBytes: _, ...unknown } = from(source)
    const asked = await withLanes(source)
    await asked.fetcher.fetch(DIGEST, unknown)
    const resumed = await withLanes(source)
    resumed.store.blobs.keepPartial({ digest: DIGEST, network: OPEN_NETWORK_ID }, BLOB.byteLength)
    await resumed.fetcher.fetch(DIGEST, from(source))
    for (const getter of [without, asked, resumed]) {
      await expectBlob(getter)
      expect(hasList(getter.store)).toBe(true)
    }
  })

  test('comes by pieces where the peer says no to the whole, and the lanes stay', async () => {
    let asked = 0
    const get: PieceHolder['get'] = async (...request) =>
      isLarge(request[0]) || asked++ > 0 ? await both(BLOB).get(...request) : { error: 'absent' }
    const peer = await lanePeer(known, both(BLOB), { ...both(BLOB), get })
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const getter = await withLanes(peer)
    await getter.fetcher.fetch(DIGEST, from(peer))
    await expectBlob(getter)
    expect(hasList(getter.store)).toBe(true)
    expect(asked).toBeGreaterThan(1)
    expect(getter.store.entries.filter(({ msg }) => msg === 'lane.closed')).toEqual([])
    await until(() => incoming(getter.store).length === 0)
  })

  test('that is another one over the lane is asked for by pieces, and nobody is blamed who gives it right then', async () => {
    const peer = await lanePeer(known, both(BLOB), both(altered(BLOB, 6)))
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const getter = await withLanes(peer)
    await getter.fetcher.fetch(DIGEST, from(peer))
    await expectBlob(getter)
    expect(getter.faults).toEqual([])
    await until(() => incoming(getter.store).length === 0)
    expect(getter.store.entries).toContainEqual(expect.objectContaining({ msg: 'lane.closed', why: 'wrong' }))
  })

  test("that is wrong by pieces, too, is its giver's fault", async () => {
    const lie = both(altered(BLOB, 2), digestOf(BLOB).hashes)
    const peer = await lanePeer(known, lie, lie)
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const getter = await withLanes(peer)
    await expect(getter.fetcher.fetch(DIGEST, from(peer))).rejects.toMatchObject({ code: 'corrupt' })
    expect(getter.faults).toMatchObject([{ peerId: peer.peerId, digest: DIGEST }])
    await until(() => incoming(getter.store).length === 0)
  })

  test('whose lane breaks off in the middle comes over the stream', async () => {
    const source = await seed()
    let isCut = false
    await using proxy = await LaneProxy.start(source.laneServer?.port ?? 0, (chunk) => (isCut ? 'cut' : chunk))
    const getter = await withLanes(source, { lanes: { hostOf: () => '127.0.0.2' } })
    isCut = true
    await getter.fetcher.fetch(DIGEST, from(source))
    await expectBlob(getter)
    expect(getter.faults).toEqual([])
    await until(() => incoming(getter.store).length === 0)
    expect(proxy.connections).toBe(2)
  })

  test('of a peer that gives a byte now and then on its lanes is not waited for', async () => {
    const get: PieceHolder['get'] = async (...request) =>
      isLarge(request[0]) ? await both(BLOB).get(...request) : { lengthBytes: BLOB.byteLength, chunks: dripping() }
    const peer = await lanePeer(known, both(BLOB), { ...both(BLOB), get })
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const getter = await withLanes(peer, { lanes: { pieceMs: 1_500 } })
    await getter.fetcher.fetch(DIGEST, from(peer))
    await expectBlob(getter)
    expect(getter.store.entries).toContainEqual(
      expect.objectContaining({ msg: 'lane.closed', reason: 'it is too slow' }),
    )
    expect(getter.faults).toEqual([])
    await until(() => incoming(getter.store).length === 0)
  })

  test('that nobody waits for any more leaves nothing behind', async () => {
    const asked = Promise.withResolvers<void>()
    const goOn = Promise.withResolvers<void>()
    const slow: PieceHolder['get'] = async (...request) => {
      if (!isLarge(request[0])) {
        asked.resolve()
        await goOn.promise
      }
      return await both(BLOB).get(...request)
    }
    const peer = await lanePeer(known, both(BLOB), { ...both(BLOB), get: slow })
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const getter = await withLanes(peer)
    const leaving = new AbortController()
    const fetching = getter.fetcher.fetch(DIGEST, from(peer, leaving.signal))
    await asked.promise
    leaving.abort()
    await expect(fetching).rejects.toMatchObject({ code: 'cancelled' })
    goOn.resolve()
    // What comes for nobody is written and thrown away, before what comes for the next.
    await getter.fetcher.fetch(DIGEST, from(peer))
    await until(() => incoming(getter.store).length === 0)
    await expectBlob(getter)
    expect(getter.store.blobs.stats.bytes).toBe(LARGE.byteLength + BLOB.byteLength)
    expect(getter.store.blobs.excessBytes).toBe(LARGE.byteLength + BLOB.byteLength - 2 ** 30)
  })

  test("that cannot be written here is no peer's fault, and is told with its place", async () => {
    const source = await seed()
    const getter = await withLanes(source)
    rmSync(join(getter.store.directory, 'blobs', 'incoming'), { recursive: true })
    await expect(getter.fetcher.fetch(DIGEST, from(source))).rejects.toMatchObject({
      code: 'failed',
      message: expect.stringContaining('cannot be written'),
    })
    expect(getter.faults).toEqual([])
  })

  test('that does not fit the quota is not asked for', async () => {
    const source = await seed()
    const getter = await withLanes(source, { quotaBytes: LARGE.byteLength + PIECE_BYTES })
    getter.store.blobs.pin(LARGE_DIGEST, 'test')
    const before = source.server.servedBytes
    await expect(getter.fetcher.fetch(DIGEST, from(source))).rejects.toMatchObject({ code: 'limit' })
    expect(source.server.servedBytes).toBe(before)
  })
})

/** A byte every tenth of a second, for as long as the lane is open. */
async function* dripping(): AsyncGenerator<Uint8Array> {
  for (;;) {
    yield new Uint8Array(1)
    await delay(100)
  }
}

const isLarge = (digest: Uint8Array) => Buffer.from(digest).toString('hex') === LARGE_DIGEST

/** Has the large blob, and these bytes as the other one. */
function both(bytes: Uint8Array, hashes = digestOf(bytes).hashes): PieceHolder {
  const [large, other] = [liar(LARGE), liar(bytes, hashes)]
  return {
    have: (...request) => large.have(...request),
    hashes: (digest, ...rest) => (isLarge(digest) ? large : other).hashes(digest, ...rest),
    get: (digest, ...rest) => (isLarge(digest) ? large : other).get(digest, ...rest),
  }
}
