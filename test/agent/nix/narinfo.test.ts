/** The texts of a binary cache, and what requests for it may say. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { digestOfNarFile, formatNarinfo } from '../../../agent/nix/narinfo.ts'
import { encodeNix32 } from '../../../agent/nix/nix32.ts'

it('writes a narinfo as Nix reads it', () => {
  const path = `/nix/store/${'a'.repeat(32)}-hello`
  const narHash = 'ea5ae6fe88ada6676107527b2680dc20437ee0ff5a7c276db270c7e465153b50'
  const hash = '0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa'
  const narinfo = { path, narHash, narSize: 120, references: [path, `/nix/store/${'b'.repeat(32)}-x`] }
  expect(formatNarinfo({ ...narinfo, signatures: ['a:1', 'b:2'], ca: 'text:sha256:x' })).toBe(
    `StorePath: ${path}
URL: nar/${hash}.nar?of=${'a'.repeat(32)}
Compression: none
FileHash: sha256:${hash}
FileSize: 120
NarHash: sha256:${hash}
NarSize: 120
References: ${'a'.repeat(32)}-hello ${'b'.repeat(32)}-x
Sig: a:1
Sig: b:2
CA: text:sha256:x
`,
  )
  expect(formatNarinfo({ ...narinfo, references: [], signatures: [] })).toMatch(/References: \n$/)
  const deriver = `/nix/store/${'c'.repeat(32)}-hello.drv`
  expect(formatNarinfo({ ...narinfo, signatures: ['a:1'], deriver })).toContain(
    `References: ${'a'.repeat(32)}-hello ${'b'.repeat(32)}-x\nDeriver: ${'c'.repeat(32)}-hello.drv\nSig: a:1\n`,
  )
})

it('knows a NAR by its file name, and no other file', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), (bytes) => {
      expect(digestOfNarFile(`${encodeNix32(bytes)}.nar`)).toBe(Buffer.from(bytes).toString('hex'))
    }),
  )
  fc.assert(fc.property(fc.string(), (name) => digestOfNarFile(name) === undefined))
  for (const name of ['.nar', `${'0'.repeat(52)}.nar.xz`, `${'z'.repeat(52)}.nar`, `../${'0'.repeat(52)}.nar`]) {
    expect(digestOfNarFile(name)).toBeUndefined()
  }
})
