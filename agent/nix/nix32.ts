/**
 * Nix's own base 32: digits without e, o, t, u; the value as one little-endian number, its most significant digit first.
 * 20 bytes make the 32 characters of a store path's hash part, 32 bytes the 52 of a SHA-256.
 */

const DIGITS = '0123456789abcdfghijklmnpqrsvwxyz'

/** The hash part of a store path: 32 characters. */
export const HASH_PART_PATTERN = /^[0-9a-df-np-sv-z]{32}$/

export function encodeNix32(bytes: Uint8Array): string {
  const length = Math.ceil((bytes.byteLength * 8) / 5)
  let text = ''
  for (let digit = length - 1; digit >= 0; digit--) {
    const bit = digit * 5
    const at = bit >>> 3
    const pair = (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8)
    text += DIGITS[(pair >>> (bit & 7)) & 31]
  }
  return text
}

/** The `byteLength` bytes of `text`; undefined when it is not exactly their encoding. */
export function decodeNix32(text: string, byteLength: number): Uint8Array | undefined {
  if (text.length !== Math.ceil((byteLength * 8) / 5)) return undefined
  const bytes = new Uint8Array(byteLength)
  for (let nth = 0; nth < text.length; nth++) {
    const value = DIGITS.indexOf(text[text.length - 1 - nth] ?? '')
    if (value < 0) return undefined
    const bit = nth * 5
    const at = bit >>> 3
    const shifted = value << (bit & 7)
    bytes[at] = (bytes[at] ?? 0) | (shifted & 0xff)
    const carry = shifted >>> 8
    if (at + 1 < byteLength) bytes[at + 1] = carry
    else if (carry !== 0) return undefined
  }
  return bytes
}
