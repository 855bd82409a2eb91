/** Nix's base 32, against what Nix itself prints. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { decodeNix32, encodeNix32 } from '../../../agent/nix/nix32.ts'

it('encodes as nix-hash --to-base32 does', () => {
  const hash = Buffer.from('ea5ae6fe88ada6676107527b2680dc20437ee0ff5a7c276db270c7e465153b50', 'hex')
  expect(encodeNix32(hash)).toBe('0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa')
  expect(encodeNix32(new Uint8Array(20))).toBe('0'.repeat(32))
})

it('decodes what it encodes, for any bytes', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 70 }), (bytes) => {
      expect(decodeNix32(encodeNix32(bytes), bytes.byteLength)).toEqual(bytes)
    }),
  )
})

it('takes only the one encoding of some bytes', () => {
  fc.assert(
    fc.property(
      fc.string({
        minLength: 52,
        maxLength: 52,
        unit: fc.constantFrom(...Array.from('0123456789abcdfghijklmnpqrsvwxyzeotuA ')),
      }),
      (text) => {
        const bytes = decodeNix32(text, 32)
        if (bytes) expect(encodeNix32(bytes)).toBe(text)
      },
    ),
  )
  expect(decodeNix32('z'.repeat(52), 32)).toBeUndefined()
  expect(decodeNix32('e'.repeat(32), 20)).toBeUndefined()
  expect(decodeNix32('0'.repeat(31), 20)).toBeUndefined()
})
