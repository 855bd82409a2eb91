/** NARs on disk: what the writer reads and the reader makes are inverse, from any offset, and hostile bytes are refused. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parseNar, unpackNar } from '../../../protocols/nar/read.ts'
import vectors from '../../../protocols/nar/vectors.json' with { type: 'json' }
import { layoutNar } from '../../../protocols/nar/write.ts'

const nixStore = (() => {
  try {
    execFileSync('nix-store', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    console.warn('nix-store is not installed: NARs are not compared with its own')
    return false
  }
})()

const never = new AbortController().signal
async function narOf(path: string, offset = 0, length?: number): Promise<Buffer> {
  const layout = await layoutNar(path)
  const chunks: Uint8Array[] = []
  for await (const chunk of layout.read(offset, length ?? layout.sizeBytes - offset, never)) chunks.push(chunk)
  return Buffer.concat(chunks)
}

async function* chunked(nar: Uint8Array, sizes: () => number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < nar.byteLength; ) {
    const size = sizes()
    yield nar.subarray(at, at + size)
    at += size
  }
}

const whole = (nar: Uint8Array) => chunked(nar, () => nar.byteLength)

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'nar-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

let count = 0
const fresh = () => join(directory, `at-${count++}`)

/** Everything that a file system can hold and a NAR can say. */
function oddTree(): string {
  const root = fresh()
  mkdirSync(root)
  writeFileSync(join(root, 'empty'), '')
  writeFileSync(join(root, 'run'), '#!/bin/sh\n')
  chmodSync(join(root, 'run'), 0o755)
  writeFileSync(join(root, 'group-run'), 'only the owner counts')
  chmodSync(join(root, 'group-run'), 0o675)
  writeFileSync(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 0x0a])]), 'not UTF-8')
  writeFileSync(join(root, 'ü'), 'UTF-8')
  writeFileSync(join(root, 'n'.repeat(255)), 'longest name')
  writeFileSync(join(root, 'Zebra'), 'upper case sorts first')
  writeFileSync(join(root, 'aB'), '')
  writeFileSync(join(root, 'a'), 'prefix sorts first')
  symlinkSync('/nowhere/at all', join(root, 'dangling'))
  symlinkSync(Buffer.from([0xff, 0x2f, 0xfe]), join(root, 'odd-link'))
  mkdirSync(join(root, 'empty-directory'))
  for (const size of [1, 7, 8, 9, 4095, 65_536, 262_143, 262_144, 262_145, 3_000_001]) {
    writeFileSync(join(root, `size-${size}`), Buffer.alloc(size, `${size} `))
  }
  let deep = join(root, 'deep')
  mkdirSync(deep)
  for (let level = 0; level < 200; level++) {
    deep = join(deep, `${level}`)
    mkdirSync(deep)
  }
  writeFileSync(join(deep, 'bottom'), 'x')
  mkdirSync(join(root, 'many'))
  for (let nth = 0; nth < 500; nth++) writeFileSync(join(root, 'many', `${nth}`), `${nth}`)
  return root
}

describe('writing', () => {
  it.skipIf(!nixStore)('gives the bytes that nix-store --dump gives', async () => {
    const root = oddTree()
    for (const path of [
      root,
      join(root, 'empty'),
      join(root, 'run'),
      join(root, 'dangling'),
      join(root, 'size-3000001'),
    ]) {
      const theirs = execFileSync('nix-store', ['--dump', path], { maxBuffer: 64 << 20 })
      expect((await narOf(path)).equals(theirs), path).toBe(true)
    }
  })

  it('gives any range as the same bytes of the whole', async () => {
    const root = oddTree()
    const nar = await narOf(root)
    const layout = await layoutNar(root)
    expect(layout.sizeBytes).toBe(nar.byteLength)
    await fc.assert(
      fc.asyncProperty(fc.nat(nar.byteLength), fc.nat(600_000), async (offset, wanted) => {
        const length = Math.min(wanted, nar.byteLength - offset)
        const digest = createHash('sha256')
        for await (const chunk of layout.read(offset, length, never)) {
          expect(chunk.byteLength).toBeLessThanOrEqual(262_144)
          digest.update(chunk)
        }
        const expected = createHash('sha256').update(nar.subarray(offset, offset + length))
        expect(digest.digest('hex')).toBe(expected.digest('hex'))
      }),
      { numRuns: 200 },
    )
  })

  it('refuses ranges outside', async () => {
    const layout = await layoutNar(oddTree())
    await expect(layout.read(0, layout.sizeBytes + 1, never).next()).rejects.toThrow(RangeError)
    await expect(layout.read(-1, 1, never).next()).rejects.toThrow(RangeError)
  })

  it('notices a file that grew, shrank, vanished or became a link', async () => {
    const path = fresh()
    writeFileSync(path, 'a'.repeat(100))
    const layout = await layoutNar(path)
    const read = async () => {
      for await (const chunk of layout.read(0, layout.sizeBytes, never)) expect(chunk.byteLength).toBeGreaterThan(0)
    }
    appendFileSync(path, 'b')
    await expect(read()).rejects.toThrow(/changed while it was read/)
    writeFileSync(path, 'a')
    await expect(read()).rejects.toMatchObject({ code: 'mismatch' })
    rmSync(path)
    await expect(read()).rejects.toMatchObject({ code: 'ENOENT' })
    symlinkSync('/etc/passwd', path)
    await expect(read()).rejects.toMatchObject({ code: 'ELOOP' })
  })

  it('refuses what a NAR cannot hold', async () => {
    await expect(layoutNar('/dev/null')).rejects.toMatchObject({ code: 'malformed' })
    await expect(layoutNar(join(directory, 'absent'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('stops when the reader stops or aborts', async () => {
    const path = fresh()
    writeFileSync(path, Buffer.alloc(2_000_000))
    const layout = await layoutNar(path)
    for await (const chunk of layout.read(0, layout.sizeBytes, never)) {
      expect(chunk.byteLength).toBeGreaterThan(0)
      break
    }
    const stop = new AbortController()
    const reading = layout.read(0, layout.sizeBytes, stop.signal)
    await reading.next()
    stop.abort()
    await expect(reading.next()).rejects.toThrow(/abort/)
  })
})

describe('reading', () => {
  it('makes what was written, in chunks of any size', async () => {
    const nar = await narOf(oddTree())
    for (const size of [1000, 65_536, nar.byteLength]) {
      const destination = fresh()
      await unpackNar(
        chunked(nar, () => size),
        destination,
      )
      expect((await narOf(destination)).equals(nar)).toBe(true)
    }
  })

  it('makes a file or a link where the NAR is one, byte by byte', async () => {
    const file = fresh()
    writeFileSync(file, 'x')
    chmodSync(file, 0o755)
    const link = fresh()
    symlinkSync('somewhere', link)
    for (const path of [file, link]) {
      const destination = fresh()
      await unpackNar(
        chunked(await narOf(path), () => 1),
        destination,
      )
      expect((await narOf(destination)).equals(await narOf(path))).toBe(true)
    }
  })

  it('leaves alone what is there, and removes what it made when it fails', async () => {
    const root = oddTree()
    const nar = await narOf(root)
    const destination = fresh()
    mkdirSync(destination)
    writeFileSync(join(destination, 'mine'), 'mine')
    await expect(unpackNar(whole(nar), destination)).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readdirSync(destination)).toEqual(['mine'])
    const cut = fresh()
    await expect(unpackNar(whole(nar.subarray(0, -8)), cut)).rejects.toMatchObject({ code: 'closed' })
    expect(() => lstatSync(cut)).toThrow(/ENOENT/)
    const stop = new AbortController()
    stop.abort()
    await expect(unpackNar(whole(nar), cut, stop.signal)).rejects.toThrow(/abort/)
  })

  it('lets the source go when it refuses', async () => {
    let released = false
    async function* source() {
      try {
        for (;;) yield Buffer.from('garbage that never ends')
      } finally {
        released = true
      }
    }
    await expect(unpackNar(source(), fresh())).rejects.toMatchObject({ code: 'malformed' })
    expect(released).toBe(true)
  })

  it('takes or refuses any bytes without crashing, and takes only what it would write itself', async () => {
    const root = fresh()
    mkdirSync(join(root, 'd'), { recursive: true })
    writeFileSync(join(root, 'd', 'f'), 'some contents')
    symlinkSync('target', join(root, 'l'))
    const nar = await narOf(root)
    const change = fc.record({ at: fc.nat(nar.byteLength - 1), to: fc.nat(255) })
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
        const altered = Buffer.from(nar)
        for (const { at, to } of changes) altered[at] = to
        const destination = fresh()
        try {
          await unpackNar(whole(altered), destination)
        } catch (error) {
          expect(error).toMatchObject({ name: 'WireError' })
          return
        }
        expect((await narOf(destination)).equals(altered)).toBe(true)
      }),
      { numRuns: 500 },
    )
  })
})

describe('test vectors', () => {
  const visitor = { directory() {}, symlink() {}, file() {}, contents() {}, fileEnd() {} }
  it.each(vectors.valid)('takes $name', async ({ hex }) => {
    const nar = Buffer.from(hex, 'hex')
    const destination = fresh()
    await unpackNar(whole(nar), destination)
    expect((await narOf(destination)).equals(nar)).toBe(true)
  })

  it.each(vectors.invalid)('refuses $name', async ({ hex, code }) => {
    await expect(parseNar(whole(Buffer.from(hex, 'hex')), visitor)).rejects.toMatchObject({ code })
  })
})
