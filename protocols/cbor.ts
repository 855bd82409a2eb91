/**
 * Canonical DAG-CBOR: one value, one encoding. Decoding refuses bytes that are not the canonical form of what they say, so a
 * signature or hash over the bytes is one over the value.
 *
 * Follows https://ipld.io/specs/codecs/dag-cbor/spec/ (strict mode: sorted keys, shortest integers, no floats that are integers).
 */
import * as dagCbor from '@ipld/dag-cbor'
import type { ZodType } from 'zod'
import { WireError } from './error.ts'

/** Encodes plain data (maps, arrays, strings, bytes, integers, booleans, null, CIDs). Throws TypeError on anything else. */
export function encodeCbor(value: unknown): Uint8Array {
  return dagCbor.encode(value)
}

/**
 * Decodes canonical DAG-CBOR and validates it against `schema`.
 *
 * @throws {WireError} `malformed` when the bytes don't parse, are not canonical, or don't fit the schema.
 */
export function decodeCbor<T>(bytes: Uint8Array, schema: ZodType<T>): T {
  let value: unknown
  let canonical: Uint8Array
  try {
    value = dagCbor.decode(bytes)
    canonical = dagCbor.encode(value)
  } catch (cause) {
    throw new WireError('malformed', 'not DAG-CBOR', { cause })
  }
  if (Buffer.compare(bytes, canonical) !== 0) throw new WireError('malformed', 'not canonical DAG-CBOR')
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new WireError('malformed', `${issue?.path.join('.') || 'message'}: ${issue?.message ?? 'does not fit'}`)
}
