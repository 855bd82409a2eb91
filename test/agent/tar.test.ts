/** Archives: what is written is read, by this and by tar itself; what is damaged, cut off or made up is refused. */
import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { readTar, type TarFile, writeTar } from '../../agent/tar.ts'

const MADE_MS = Date.UTC(2026, 0, 2, 3, 4, 5)

type Files = [name: string, bytes: Buffer][]

async function written(files: Files): Promise<Buffer> {
  const all = files.map(([name, bytes]): TarFile => ({ name, sizeBytes: bytes.byteLength, bytes: [bytes] }))
  return Buffer.concat(await Array.fromAsync(writeTar(all, MADE_MS)))
}

async function* inChunks(bytes: Buffer, length: number) {
  for (let at = 0; at < bytes.byteLength; at += length) yield bytes.subarray(at, at + length)
}

async function read(archive: AsyncIterable<Uint8Array>): Promise<Files> {
  const files: Files = []
  for await (const { name, bytes } of readTar(archive)) files.push([name, Buffer.concat(await Array.fromAsync(bytes))])
  return files
}

describe('tar', () => {
  it('gives back what went in, however it arrives', async () => {
    const name = fc.stringMatching(/^[A-Za-z0-9._/-]{1,40}$/)
    const content = fc.uint8Array({ maxLength: 2_000 }).map((bytes) => Buffer.from(bytes))
    const files = fc.uniqueArray(fc.tuple(name, content), { selector: ([one]) => one })
    await fc.assert(
      fc.asyncProperty(files, fc.integer({ min: 1, max: 3_000 }), async (made, length) => {
        const archive = await written(made)
        expect(archive.byteLength % 512).toBe(0)
        expect(await read(inChunks(archive, length))).toEqual(made)
      }),
      { numRuns: 50 },
    )
  })

  it('is what tar reads', async () => {
    const archive = await written([
      ['a.txt', Buffer.from('one\n')],
      ['b/c.bin', Buffer.alloc(700, 7)],
    ])
    const listed = execFileSync('tar', ['--list', '--verbose', '--utc', '--numeric-owner'], {
      input: archive,
      encoding: 'utf8',
    })
    expect(listed).toMatch(
      /^-rw------- 0\/0 +4 2026-01-02 03:04 a\.txt\n-rw------- 0\/0 +700 2026-01-02 03:04 b\/c\.bin\n$/,
    )
    expect(execFileSync('tar', ['--extract', '--to-stdout', 'a.txt'], { input: archive, encoding: 'utf8' })).toBe(
      'one\n',
    )
  })

  it('refuses a file that is not as long as it was said to be, and names that tar has not', async () => {
    const file = (name: string, sizeBytes: number) =>
      Array.fromAsync(writeTar([{ name, sizeBytes, bytes: [Buffer.from('abc')] }], 0))
    await expect(file('a', 2)).rejects.toThrow(/not 2 bytes/)
    await expect(file('a', 4)).rejects.toThrow(/not 4 bytes/)
    await expect(file('ä', 3)).rejects.toThrow(/no name/)
    await expect(file('a'.repeat(101), 3)).rejects.toThrow(/no name/)
  })

  it('refuses what ends too early, wherever that is', async () => {
    const archive = await written([
      ['a', Buffer.alloc(600, 1)],
      ['b', Buffer.from('b')],
    ])
    for (const length of [0, 1, 511, 512, 700, 1_111, 1_536, 2_000, 2_559])
      await expect(read(inChunks(archive.subarray(0, length), 100))).rejects.toThrow(/too early/)
  })

  it('refuses damaged headers, and links', async () => {
    const archive = await written([['a', Buffer.from('x')]])
    const changed = Buffer.from(archive)
    changed[3] = 0x61
    await expect(read(inChunks(changed, 512))).rejects.toThrow(/damaged/)
    const link = Buffer.from(archive)
    link[156] = 0x32
    link.write(
      `${link
        .subarray(0, 512)
        .reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte), 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
    )
    await expect(read(inChunks(link, 512))).rejects.toThrow(/no regular file/)
  })

  it('ends with any bytes', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 4_000 }), async (bytes) => {
        await read(inChunks(Buffer.from(bytes), 512)).catch((error: unknown) => expect(error).toBeInstanceOf(Error))
      }),
      { numRuns: 100 },
    )
  })
})
