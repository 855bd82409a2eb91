/** The file of an upload: what is in it and its hash are one, however the bytes come and whatever fails. */
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { type Hashes, UploadFile } from '../../../agent/oci/upload-file.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'

const MIB = 1024 * 1024
const { signal } = new AbortController()
const directory = mkdtempSync(join(tmpdir(), 'undernet-upload-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
let files = 0
const fresh = () => join(directory, String(files++))

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const sha512 = (bytes: Uint8Array) => createHash('sha512').update(bytes).digest('hex')
/** Copies: whoever appends them has their memory, too. */
async function* chunksOf(chunks: readonly Uint8Array[], then?: Error) {
  for (const chunk of chunks) yield chunk.slice()
  if (then) throw then
}

describe('the file of an upload', () => {
  it('holds what came, in one request or many, with the hash kept or made again', async () => {
    const requests = fc.array(fc.array(fc.uint8Array({ maxLength: 3_000 }), { maxLength: 5 }), { maxLength: 4 })
    await fc.assert(
      fc.asyncProperty(requests, fc.boolean(), fc.boolean(), async (all, isKept, withSha512) => {
        const path = fresh()
        let hashes: Hashes | undefined
        for (const chunks of all) {
          const file = await UploadFile.open(path, hashes, withSha512, signal)
          await file.append(chunksOf(chunks), () => {})
          hashes = isKept ? file.hashes : undefined
          await file.close()
        }
        const whole = Buffer.concat(all.flat())
        const file = await UploadFile.open(path, hashes, withSha512, signal)
        expect([file.sizeBytes, file.sha256, await file.sha512(signal)]).toEqual([
          whole.byteLength,
          sha256(whole),
          sha512(whole),
        ])
        await file.close()
        expect(readFileSync(path).equals(whole)).toBe(true)
      }),
      { numRuns: 40 },
    )
  })

  it('takes large chunks, and thousands of tiny ones', async () => {
    const large = pattern(5 * MIB + 3)
    const tiny = Array.from({ length: 5_000 }, (_, at) => Buffer.from([at % 256]))
    const path = fresh()
    const file = await UploadFile.open(path, undefined, false, signal)
    await file.append(chunksOf([large.subarray(0, 3 * MIB), large.subarray(3 * MIB)]), () => {})
    await file.append(chunksOf(tiny), () => {})
    const whole = Buffer.concat([large, ...tiny])
    expect([file.sizeBytes, file.sha256]).toEqual([whole.byteLength, sha256(whole)])
    await file.close()
    expect(readFileSync(path).equals(whole)).toBe(true)
  })

  it('keeps what came before a sender broke off, or was refused', async () => {
    const path = fresh()
    const file = await UploadFile.open(path, undefined, false, signal)
    const gone = new Error('gone')
    await expect(file.append(chunksOf([pattern(10, 1)], gone), () => {})).rejects.toThrow('gone')
    const refuse = (bytes: number) => {
      if (bytes > 10) throw new Error('no room')
    }
    await expect(file.append(chunksOf([pattern(10, 2), pattern(11, 3)]), refuse)).rejects.toThrow('no room')
    const whole = Buffer.concat([pattern(10, 1), pattern(10, 2)])
    expect([file.sizeBytes, file.sha256]).toEqual([20, sha256(whole)])
    expect(file.hashes).toBeDefined()
    await file.close()
    expect(readFileSync(path).equals(whole)).toBe(true)
  })

  it('forgets its hash when the disk fails', async () => {
    const file = await UploadFile.open('/dev/full', undefined, false, signal)
    await expect(file.append(chunksOf([pattern(10)]), () => {})).rejects.toMatchObject({ code: 'ENOSPC' })
    expect([file.sizeBytes, file.hashes]).toEqual([0, undefined])
    await file.close()
  })
})
