/**
 * A signed statement of a network: what all of them have in common, and the words they are made of. Certificates, delegations,
 * revocations and policies are statements. See spec.md beside this file.
 *
 * A statement is read strictly: a field or version that is not known is refused, since a rule that a reader does not know may be one
 * that narrows what the statement gives.
 */
import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto'
import { type ZodType, z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import { LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, LABELS_MAX, NAME_PATTERN } from './words.ts'

/** Of a certificate, a delegation or a revocation. Room for sixteen labels; sixteen networks' proofs still make one small message. */
export const STATEMENT_BYTES_MAX = 1_024
/** Statements that last were made by somebody who can make another; this also catches seconds taken for milliseconds. */
export const LIFETIME_MS_MAX = 10 * 366 * 24 * 3_600_000
/** How far a reader's clock may be behind the writer's. There is no such mercy at the end of a lifetime. */
export const SKEW_MS_MAX = 10 * 60_000

const SIGNATURE_BYTES = 64
/** Keys are kept parsed, since the same ones come again and again; making one costs a fifth of a verification. */
const KEYS_KEPT_MAX = 1_024
/** The 12 bytes that make a raw Ed25519 key a SubjectPublicKeyInfo (RFC 8410). */
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')

export const bytes32: ZodType<Uint8Array> = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.byteLength === 32,
  'not 32 bytes',
)
export const timeMs = z.int().min(0).max(Number.MAX_SAFE_INTEGER)
export const memberName = z.string().regex(NAME_PATTERN, 'not a name')

/**
 * A map of labels whose values pass. (z.record leaves out a key that is called __proto__, so what was signed would not be what is read.)
 */
export function labelMap<T>(isValue: (value: unknown) => value is T): ZodType<Record<string, T>> {
  return z.custom<Record<string, T>>((map) => {
    if (typeof map !== 'object' || map === null || Array.isArray(map) || map instanceof Uint8Array) return false
    const entries = Object.entries(map)
    return (
      entries.length <= LABELS_MAX && entries.every(([key, value]) => LABEL_KEY_PATTERN.test(key) && isValue(value))
    )
  }, `not a map of at most ${LABELS_MAX} labels`)
}

export function isLabelValue(value: unknown): value is string {
  return typeof value === 'string' && LABEL_VALUE_PATTERN.test(value)
}

export type StatementSigner = { readonly publicKey: Uint8Array; sign(bytes: Uint8Array): Uint8Array }

/** A statement as it was read: its fields, and what it was read from. Nobody has looked at the signature yet. */
export type Statement<T> = T & {
  /** SHA-256 of what was signed: the same statement under another signature has the same id. */
  readonly id: Uint8Array
  /** As it travels and is stored: the signature, then the canonical encoding. */
  readonly bytes: Uint8Array
}

/** What a kind of statement is: the words before the signed bytes, its fields, its limit. */
export type Form<T> = { readonly domain: string; readonly schema: ZodType<T>; readonly bytesMax: number }

/** Signs a statement. @throws {RangeError} when readers would refuse it: the caller's bug. */
export function encodeStatement<T>(form: Form<T>, fields: T, signer: StatementSigner): Statement<T> {
  const payload = encodeCbor(withoutUndefined(fields as object))
  const signed = Buffer.concat([Buffer.from(form.domain), payload])
  try {
    return parseStatement(form, Buffer.concat([signer.sign(signed), payload]))
  } catch (cause) {
    throw new RangeError(`not a valid statement: ${(cause as Error).message}`, { cause })
  }
}

/**
 * Reads a statement and checks everything but the signature.
 *
 * @throws {WireError} `too-large`, `malformed`
 */
export function parseStatement<T>(form: Form<T>, bytes: Uint8Array): Statement<T> {
  if (bytes.byteLength > form.bytesMax)
    throw new WireError('too-large', `a statement of ${bytes.byteLength} bytes; the limit is ${form.bytesMax}`)
  if (bytes.byteLength <= SIGNATURE_BYTES) throw new WireError('malformed', 'shorter than a signature')
  const payload = bytes.subarray(SIGNATURE_BYTES)
  const fields = decodeCbor(payload, form.schema)
  const id = createHash('sha256').update(form.domain).update(payload).digest()
  return { ...fields, id, bytes }
}

/** Whether the key signed the statement. */
export function isSigned(
  form: Pick<Form<unknown>, 'domain'>,
  { bytes }: { bytes: Uint8Array },
  key: Uint8Array,
): boolean {
  const signed = Buffer.concat([Buffer.from(form.domain), bytes.subarray(SIGNATURE_BYTES)])
  return verifySignature(signed, bytes.subarray(0, SIGNATURE_BYTES), key)
}

/** Ed25519 with a raw key; false also for a key that is no point of the curve. */
export function verifySignature(signed: Uint8Array, signature: Uint8Array, key: Uint8Array): boolean {
  try {
    return verify(null, signed, publicKeyOf(key), signature)
  } catch {
    return false
  }
}

/** Whether a name fits a pattern with at most one `*`, which stands for anything, and nothing. */
export function fitsName(pattern: string, name: string): boolean {
  const star = pattern.indexOf('*')
  if (star < 0) return pattern === name
  const [before, after] = [pattern.slice(0, star), pattern.slice(star + 1)]
  return name.length >= before.length + after.length && name.startsWith(before) && name.endsWith(after)
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0
}

/** Bytes as a key of a Map. */
export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')
}

/** The encoding has no undefined: what is optional and absent is not there. */
function withoutUndefined(fields: object): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}

function publicKeyOf(raw: Uint8Array): KeyObject {
  const name = hexOf(raw)
  let key = keysKept.get(name)
  if (!key) {
    key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' })
    if (keysKept.size >= KEYS_KEPT_MAX) keysKept.clear()
    keysKept.set(name, key)
  }
  return key
}

const keysKept = new Map<string, KeyObject>()
