/** What cannot be kept is still had: verified, from whoever gives it, and nothing of it is written down. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { BlobSource, Fault } from '../../../agent/content/content.ts'
import { PassThrough } from '../../../agent/content/pass-through.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { PieceHashes } from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, until as honestUntil, liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, recordingLog } from './peers.ts'

/** Read into memory first, and read as it arrives. */
const SMALL = pattern(3 * PIECE_BYTES + 77)
const LARGE = pattern(40 * PIECE_BYTES + 5, 2)
const ID = { small: digestOf(SMALL).digest, large: digestOf(LARGE).digest }

const known = new Map()
let honest: ContentNode

beforeAll(async () => {
  honest = await ContentNode.start(known)
  await honest.store.publish(SMALL)
  await honest.store.publish(LARGE)
})
afterAll(async () => {
  await honest[Symbol.asyncDispose]()
})

async function passing() {
  const peer = await Peer.start(known)
  const faults: Fault[] = []
  const passThrough = new PassThrough({
    streams: peer.streams,
    log: recordingLog().log,
    onFault: (fault) => faults.push(fault),
  })
  onTestFinished(async () => {
    await passThrough[Symbol.asyncDispose]()
    await peer[Symbol.asyncDispose]()
  })
  const open = (digest: string, sources: string[], sizeBytes?: number) =>
    passThrough.open(digest, {
      network: OPEN_NETWORK_ID,
      sources,
      signal: never,
      ...(sizeBytes !== undefined && { sizeBytes }),
    })
  return { passThrough, open, faults }
}

async function lying(bytes: Uint8Array, hashes?: Uint8Array): Promise<string> {
  const peer = await Peer.start(known)
  onTestFinished(() => peer[Symbol.asyncDispose]())
  await serve(peer, liar(bytes, hashes))
  return peer.peerId
}

async function readAll(source: BlobSource, offset = 0, length = source.sizeBytes - offset): Promise<Buffer> {
  const bytes = Buffer.concat(await Array.fromAsync(source.read(offset, length, never)))
  await source.close?.()
  return bytes
}

describe('a blob that is passed on', () => {
  test.each([
    ['small', SMALL],
    ['large', LARGE],
  ] as const)('is given whole and in parts when it is %s, and counted', async (size, bytes) => {
    const { open, passThrough } = await passing()
    const whole = await open(ID[size], [honest.peerId], bytes.byteLength)
    expect(Buffer.compare(await readAll(whole), bytes)).toBe(0)
    const part = await readAll(await open(ID[size], [honest.peerId]), PIECE_BYTES + 3, PIECE_BYTES)
    expect(Buffer.compare(part, bytes.subarray(PIECE_BYTES + 3, 2 * PIECE_BYTES + 3))).toBe(0)
    const end = await readAll(await open(ID[size], [honest.peerId]), bytes.byteLength - 10)
    expect(Buffer.compare(end, bytes.subarray(-10))).toBe(0)
    expect(passThrough.stats.count).toBe(3)
  })

  test('comes from the next peer where one lies about a piece, and who lied is named', async () => {
    const { open, faults } = await passing()
    const bad = await lying(altered(LARGE, 9), digestOf(LARGE).hashes)
    const source = await open(ID.large, [bad, honest.peerId])
    expect(Buffer.compare(await readAll(source), LARGE)).toBe(0)
    expect(faults).toMatchObject([{ peerId: bad, digest: ID.large }])
  })

  test('is not taken from who has only a part, whose false list is not held against him', async () => {
    const peer = await Peer.start(known)
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const told = liar(altered(LARGE, 0))
    const pieces = new Uint8Array(Math.ceil(LARGE.byteLength / PIECE_BYTES / 8)).fill(0xff)
    await serve(peer, {
      ...told,
      hashes: async (...asked) => ({ ...(await told.hashes(...asked)), pieces }) as PieceHashes,
    })
    const { open, faults } = await passing()
    const source = await open(ID.large, [peer.peerId, honest.peerId])
    expect(Buffer.compare(await readAll(source), LARGE)).toBe(0)
    expect(faults).toEqual([])
  })

  test('comes from the next peer where one breaks off', async () => {
    const peer = await Peer.start(known)
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const holder = liar(LARGE)
    await serve(
      peer,
      honestUntil(3, holder, () => Promise.reject(new Error('broken'))),
    )
    const { open, faults } = await passing()
    expect(Buffer.compare(await readAll(await open(ID.large, [peer.peerId, honest.peerId])), LARGE)).toBe(0)
    expect(faults).toEqual([])
  })

  test('that is small is taken from the next peer where all of what one states is a lie', async () => {
    const { open, faults } = await passing()
    const bad = await lying(altered(SMALL, 1))
    expect(Buffer.compare(await readAll(await open(ID.small, [bad, honest.peerId])), SMALL)).toBe(0)
    expect(faults).toMatchObject([{ peerId: bad, digest: ID.small }])
  })

  test('that is large never ends where all of what a peer states is a lie', async () => {
    const { open, faults } = await passing()
    const bad = await lying(altered(LARGE, 1))
    const source = await open(ID.large, [bad])
    let readBytes = 0
    const reading = (async () => {
      for await (const chunk of source.read(0, source.sizeBytes, never)) readBytes += chunk.byteLength
    })()
    await expect(reading).rejects.toMatchObject({ code: 'corrupt' })
    expect(readBytes).toBe(40 * PIECE_BYTES)
    expect(faults).toMatchObject([{ peerId: bad }])
    await source.close?.()
  })

  test('is refused when nobody has it, or only of another size', async () => {
    const { open } = await passing()
    await expect(open(digestOf(pattern(3, 9)).digest, [honest.peerId])).rejects.toMatchObject({ code: 'not-found' })
    await expect(open(ID.small, [honest.peerId], 5)).rejects.toMatchObject({ code: 'not-found' })
    await expect(open(ID.small, [])).rejects.toMatchObject({ code: 'not-found' })
  })

  test('takes a place of few, given back by closing', async () => {
    const { open } = await passing()
    for (let nth = 0; nth < 20; nth++) await readAll(await open(ID.small, [honest.peerId]))
    for (let nth = 0; nth < 20; nth++) await expect(open('00'.repeat(32), [honest.peerId])).rejects.toThrow()
    const half = await open(ID.large, [honest.peerId])
    for await (const _ of half.read(0, half.sizeBytes, never)) break
    await half.close?.()
    await readAll(await open(ID.small, [honest.peerId]))
  })
})

describe('what comes from outside', () => {
  const wanted = { digest: ID.large, sizeBytes: LARGE.byteLength }
  /** In crumbs of other sizes than pieces have. */
  const giving = (bytes: Uint8Array) =>
    async function* (from: number) {
      for (let at = from; at < bytes.byteLength; at += 100_001) yield bytes.subarray(at, at + 100_001)
    }

  test('is read whole or in part', async () => {
    const { passThrough } = await passing()
    for (const [offset, length] of [
      [0, LARGE.byteLength],
      [5, 300_000],
      [LARGE.byteLength - 1, 1],
      [LARGE.byteLength - 400_000, 400_000],
    ] as const) {
      await using source = asDisposable(await passThrough.openFrom(wanted, giving(LARGE), never))
      const read = await readAll(source, offset, length)
      expect(Buffer.compare(read, LARGE.subarray(offset, offset + length))).toBe(0)
    }
    expect(passThrough.stats.count).toBe(4)
  })

  test('lacks its last byte when it is another blob, is too short or too long', async () => {
    const { passThrough } = await passing()
    const faults = { corrupt: [altered(LARGE, 7), Buffer.concat([LARGE, SMALL])], failed: [LARGE.subarray(0, -1)] }
    for (const [code, all] of Object.entries(faults))
      for (const bytes of all) {
        await using source = asDisposable(await passThrough.openFrom(wanted, giving(bytes), never))
        let sizeBytes = 0
        const reading = (async () => {
          for await (const chunk of source.read(0, source.sizeBytes, never)) sizeBytes += chunk.byteLength
        })()
        await expect(reading).rejects.toMatchObject({ code })
        expect(sizeBytes).toBeLessThan(LARGE.byteLength)
      }
  })
})

function asDisposable(source: BlobSource): BlobSource & AsyncDisposable {
  return Object.assign(source, { [Symbol.asyncDispose]: async () => source.close?.() })
}

test('a quota that is full of pins refuses a fetch, and what is fetched past it leaves no trace', async () => {
  await using node = await ContentNode.start(known, { quotaBytes: 2 ** 20 })
  await node.store.publish(pattern(2 ** 20 - 10, 7))
  const options = { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never }
  await expect(node.fetcher.fetch(ID.large, options)).rejects.toMatchObject({ code: 'limit' })
  await using passThrough = new PassThrough({ streams: node.peer.streams, log: node.store.log })
  expect(Buffer.compare(await readAll(await passThrough.open(ID.large, options)), LARGE)).toBe(0)
  expect(node.store.blobs.stats.blobs).toBe(1)
  expect(readdirSync(join(node.store.directory, 'blobs', 'partial'))).toEqual([])
  expect([...node.store.blobs.networksOf(ID.large)]).toEqual([])
})
