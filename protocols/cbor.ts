/**
 * Canonical DAG-CBOR: one value, one encoding. Decoding refuses bytes that are not the canonical form of what they say, so a
 * signature or hash over the bytes is one over the value. See protocols/spec.md.
 *
 * Follows https://ipld.io/specs/codecs/dag-cbor/spec/ (strict mode: sorted keys, shortest integers) and forbids two things more: floats
 * that are integers, and deep nesting.
 */
import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import type { ZodType } from 'zod'
import { WireError } from './error.ts'

/** Readers differ in how deep they can recurse; nothing here needs more than a few levels. */
const DEPTH_MAX = 32

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
  if (isDeeper(value, DEPTH_MAX)) throw new WireError('malformed', `nested deeper than ${DEPTH_MAX} levels`)
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new WireError('malformed', `${issue?.path.join('.') || 'message'}: ${issue?.message ?? 'does not fit'}`)
}

/** Whether maps and arrays are nested more than `levels` deep. */
function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array || CID.asCID(value)) return false
  if (levels === 0) return true
  for (const inner of Array.isArray(value) ? value : Object.values(value)) if (isDeeper(inner, levels - 1)) return true
  return false
}
