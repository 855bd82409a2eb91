/** OpenSSL's own functions do what node:crypto does: whatever the parts, and nothing that was changed is opened. */
import { createCipheriv } from 'node:crypto'
import fc from 'fast-check'
import { beforeAll, describe, expect, test } from 'vitest'
import { type EvpCipher, loadEvpCipher } from '../../../agent/mesh/evp-cipher.ts'

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length })
const parts = fc.array(fc.uint8Array({ maxLength: 3_000, size: 'max' }), { maxLength: 5 })

function sealedByNode(key: Uint8Array, nonce: Uint8Array, text: Uint8Array): Buffer {
  const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 })
  return Buffer.concat([cipher.update(text), cipher.final(), cipher.getAuthTag()])
}

describe('the cipher of OpenSSL', () => {
  let cipher: EvpCipher
  beforeAll(async () => {
    const loaded = await loadEvpCipher()
    if (loaded === undefined) throw new Error('this Node does not show OpenSSL to others')
    cipher = loaded
  })
  const open = (key: Uint8Array, nonce: Uint8Array, sealed: Uint8Array) =>
    cipher.open(key, nonce, [sealed.subarray(0, -16)], sealed.byteLength - 16, sealed.subarray(-16))

  test('seals as node:crypto does, and opens that again, in any parts', () => {
    fc.assert(
      fc.property(bytes(32), bytes(12), parts, fc.nat(), (key, nonce, pieces, at) => {
        const text = Buffer.concat(pieces)
        const sealed = cipher.seal(key, nonce, pieces, text.byteLength)
        expect(Buffer.compare(sealed, sealedByNode(key, nonce, text))).toBe(0)
        const cut = at % (text.byteLength + 1)
        const body = [sealed.subarray(0, cut), sealed.subarray(cut, text.byteLength)]
        expect(Buffer.compare(cipher.open(key, nonce, body, text.byteLength, sealed.subarray(-16)), text)).toBe(0)
      }),
    )
  })

  test('opens nothing that was changed, cut short, or sealed with another key or nonce', () => {
    const flip = (part: Uint8Array, at: number) =>
      part.map((byte, index) => (index === at % part.byteLength ? byte ^ 1 : byte))
    fc.assert(
      fc.property(bytes(32), bytes(12), fc.uint8Array({ maxLength: 500 }), fc.nat(), (key, nonce, text, at) => {
        const sealed = sealedByNode(key, nonce, text)
        expect(() => open(key, nonce, flip(sealed, at))).toThrow()
        expect(() => open(key, nonce, sealed.subarray(0, at % sealed.byteLength))).toThrow()
        expect(() => open(key, flip(nonce, at), sealed)).toThrow()
        expect(() => open(flip(key, at), nonce, sealed)).toThrow()
      }),
    )
  })

  test('reads and writes nothing beyond what it is given', () => {
    const [key, nonce, text] = [Buffer.alloc(32, 1), Buffer.alloc(12, 2), Buffer.alloc(100, 3)]
    const sealed = sealedByNode(key, nonce, text)
    expect(() => cipher.seal(key.subarray(1), nonce, [text], 100)).toThrow(/no key/)
    expect(() => cipher.seal(key, nonce.subarray(1), [text], 100)).toThrow(/no nonce/)
    expect(() => cipher.seal(key, nonce, [text], 99)).toThrow(/more bytes/)
    expect(() => cipher.seal(key, nonce, [text], 101)).toThrow(/fewer bytes/)
    expect(() => cipher.open(key, nonce, [sealed], 100, sealed.subarray(100))).toThrow(/more bytes/)
    expect(() => cipher.open(key, nonce, [], 100, sealed.subarray(100))).toThrow(/fewer bytes/)
    expect(() => cipher.open(key, nonce, [sealed.subarray(0, 100)], 100, sealed.subarray(101))).toThrow(/tag/)
  })

  test('has no memory of what failed before', () => {
    const [key, nonce, text] = [Buffer.alloc(32, 1), Buffer.alloc(12, 2), Buffer.alloc(100, 3)]
    expect(() => open(key, nonce, Buffer.alloc(60))).toThrow()
    expect(() => cipher.seal(key, nonce, [text], 101)).toThrow()
    expect(Buffer.compare(cipher.seal(key, nonce, [text], 100), sealedByNode(key, nonce, text))).toBe(0)
  })
})
