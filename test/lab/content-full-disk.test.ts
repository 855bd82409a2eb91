/** A full disk, which needs root to make one: a clear error, nothing half-written, and all goes on when there is room again. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { PassThrough } from '../../agent/content/pass-through.ts'
import { OPEN_NETWORK_ID } from '../../agent/content/publication-key.ts'
import { ContentNode, never } from '../agent/content/peers.ts'
import { pattern } from '../protocols/pieces/pattern.ts'

const MIB = 1024 * 1024
const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn('SKIPPED: a full disk is made by mounting a small tmpfs, which needs root')

describe.skipIf(!isRoot)('on a full disk', () => {
  let directory: string
  let filler: string

  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'undernet-full-'))
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', directory])
    filler = join(directory, 'filler')
  })
  afterAll(() => {
    execFileSync('umount', ['-l', directory])
    rmSync(directory, { recursive: true, force: true })
  })

  const full = { code: 'limit', message: expect.stringMatching(/disk of .* is full: .* free/) }

  test('writing is refused, and what was there before is still served', async () => {
    await using node = await ContentNode.start(new Map(), { directory })
    const kept = await node.store.blobs.write(undefined, [pattern(MIB)], never)
    await expect(node.store.blobs.write(undefined, megabytes(20), never)).rejects.toMatchObject(full)
    expect(readdirSync(join(directory, 'blobs', 'incoming'))).toEqual([])
    expect((await node.store.contents(kept.digest))?.byteLength).toBe(MIB)
    expect(node.store.blobs.stats.bytes).toBe(MIB)
  })

  test('a fetch is refused before it begins, without blaming the peer, and done when there is room', async () => {
    const known = new Map()
    await using honest = await ContentNode.start(known)
    await using node = await ContentNode.start(known, { directory })
    const blob = pattern(4 * MIB, 5)
    const { digest } = await honest.store.publish(blob)
    const options = { network: OPEN_NETWORK_ID, sources: [honest.peerId], signal: never }
    writeFileSync(filler, Buffer.alloc(4 * MIB))
    await expect(node.fetcher.fetch(digest, options)).rejects.toMatchObject(full)
    expect(node.faults).toEqual([])
    expect(node.store.blobs.has(digest)).toBe(false)
    await using passThrough = new PassThrough({ streams: node.peer.streams, log: node.store.log })
    const passed = await passThrough.open(digest, options)
    expect(Buffer.compare(Buffer.concat(await Array.fromAsync(passed.read(0, passed.sizeBytes, never))), blob)).toBe(0)
    await passed.close?.()
    rmSync(filler)
    expect(node.fetcher.fetchedBytes).toBe(0)
    await node.fetcher.fetch(digest, options)
    expect(Buffer.compare((await node.store.contents(digest)) ?? Buffer.of(), blob)).toBe(0)
    expect(node.fetcher.fetchedBytes).toBe(blob.byteLength)
  })
})

function* megabytes(count: number): Iterable<Buffer> {
  for (let at = 0; at < count; at++) yield pattern(MIB, at)
}
