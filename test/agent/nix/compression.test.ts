/** NARs of others, decompressed; here without the program `xz`, as on a machine that has none. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import fc from 'fast-check'
import { beforeAll, describe, expect, it } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import { type Compression, decompressed } from '../../../agent/nix/compression.ts'

const signal = AbortSignal.timeout(60_000)
const text = Buffer.concat([Buffer.alloc(200_000, 'a'), randomBytes(100_000)])
const xz = execFileSync('xz', ['-c'], { input: text })
beforeAll(() => {
  process.env.PATH = '/nonexistent'
})

async function* cut(bytes: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += length) yield bytes.subarray(at, at + length)
}

async function read(chunks: AsyncIterable<Uint8Array>, compression: Compression): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for await (const part of decompressed(chunks, compression, signal)) parts.push(Buffer.from(part))
  return Buffer.concat(parts)
}

const FILES: [Compression, Buffer][] = [
  ['none', text],
  ['gzip', gzipSync(text)],
  ['zstd', zstdCompressSync(text)],
  ['xz', xz],
]

describe.each(FILES)('%s', (compression, file) => {
  it('is read in whatever pieces it comes', async () => {
    for (const length of [1_000, 65_536, file.byteLength])
      expect((await read(cut(file, length), compression)).equals(text)).toBe(true)
  })

  it('is read several at a time', async () => {
    const all = await Promise.all(Array.from({ length: 4 }, () => read(cut(file, 10_000), compression)))
    for (const one of all) expect(one.equals(text)).toBe(true)
  })

  it('passes on what went wrong with its source', async () => {
    async function* broken() {
      yield file.subarray(0, 5_000)
      throw new AgentError('failed', 'the line was cut')
    }
    await expect(read(broken(), compression)).rejects.toThrow('the line was cut')
  })

  // Of none there is nothing that it is not.
  const refuses = compression === 'none' ? undefined : it
  refuses?.('is refused when it is none, and the next is read all the same', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 300 }), async (bytes) => {
        await expect(read(cut(bytes, 100), compression)).rejects.toThrow(/not compressed with/)
      }),
      { numRuns: 20 },
    )
    await expect(read(cut(file.subarray(0, file.byteLength / 2), 10_000), compression)).rejects.toThrow()
    expect((await read(cut(file, 10_000), compression)).equals(text)).toBe(true)
  })

  it('lets go of a source that its reader leaves', async () => {
    for await (const _ of decompressed(cut(file, 1_000), compression, signal)) break
    expect((await read(cut(file, 10_000), compression)).equals(text)).toBe(true)
  })
})
