/**
 * A signed record: a small statement by a key about something, good until it expires or until the same key says something newer. See
 * spec.md beside this file, and protocols/spec.md for the encoding and the rules of signing.
 *
 * Reading is in two steps, so that a store can drop what it already knows before it pays for a signature check: `parseRecord` and
 * `verifyRecord`. `decodeRecord` does both. Nothing here looks at a clock except `timeFault`.
 */
import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'

/** A record is gossiped whole. This holds an artifact's path prefixes (60,000 bytes) and its description, and no content. */
export const RECORD_BYTES_MAX = 64 * 1024
/** A record that nobody renews is gone after this; what is to stay longer is renewed. */
export const LEASE_MS_MAX = 90 * 24 * 3_600_000
/** How far ahead of a reader's clock a writer's may be. Within it, a later time of issue does no harm. */
export const ISSUED_AHEAD_MS_MAX = 10 * 60_000
/**
 * What a store keeps of one publisher: the newest, by `compareRank`, that fit. Part of the protocol, since nodes that kept different
 * amounts would never agree.
 */
export const PUBLISHER_RECORDS_MAX = 1_024
export const PUBLISHER_SIZE_BYTES_MAX = 4 * 1024 * 1024
const KIND_PATTERN = /^[a-z0-9-]{1,32}$/
/** Printable ASCII without the space: safe in a terminal, a URL once escaped, and a log. */
const RECORD_NAME_PATTERN = /^[!-~]{1,128}$/

/** The network that everybody may be in. */
export const OPEN_NETWORK: Uint8Array = createHash('sha256').update('undernet open network').digest()

const VERSION = 1
const DOMAIN = Buffer.from('undernet/record/1\0')
const SIGNATURE_BYTES = 64
/** Keys are kept parsed, since the same publishers come again and again; making one costs a fifth of a verification. */
const KEYS_KEPT_MAX = 1_024
/** The 12 bytes that make a raw Ed25519 key a SubjectPublicKeyInfo (RFC 8410). */
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')

const bytes32 = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')
const timeMs = z.int().min(0).max(Number.MAX_SAFE_INTEGER)

/** Fields of a later version that are not known here are ignored, and kept: what is passed on is the bytes. */
const envelope = z.object({
  v: z.int().min(VERSION),
  network: bytes32,
  kind: z.string().regex(KIND_PATTERN, 'not a kind'),
  name: z.string().regex(RECORD_NAME_PATTERN, 'not a name'),
  publisher: bytes32,
  seq: timeMs,
  issued: timeMs,
  expires: timeMs,
  body: z.unknown().optional(),
  deleted: z.literal(true).optional(),
})

/** What a publisher says; `encodeRecord` adds the version, the publisher and the signature. */
export type RecordFields = {
  network: Uint8Array
  kind: string
  name: string
  /** One counter for all records of a publisher. Of two records with one key the higher wins. */
  seq: number
  /** Milliseconds since 1970. */
  issued: number
  expires: number
} & ({ body: unknown } | { deleted: true })

export type SignedRecord = {
  /** SHA-256 of what was signed: the record's identity, whatever its signature's bytes. */
  readonly id: Uint8Array
  /** As it travels and is stored. */
  readonly bytes: Uint8Array
  readonly network: Uint8Array
  readonly kind: string
  readonly name: string
  readonly publisher: Uint8Array
  readonly seq: number
  readonly issued: number
  readonly expires: number
  /** True for a statement that there is nothing of this key any more. */
  readonly deleted: boolean
  /** As it was decoded, not validated; undefined in a deletion. */
  readonly body: unknown
}

export type RecordSigner = { readonly publicKey: Uint8Array; sign(bytes: Uint8Array): Uint8Array }

/** Signs a record. @throws {RangeError} when the fields break a rule that readers enforce: the caller's bug. */
export function encodeRecord(fields: RecordFields, signer: RecordSigner): SignedRecord {
  const payload = encodeCbor({ v: VERSION, publisher: signer.publicKey, ...fields })
  const record = Buffer.concat([signer.sign(Buffer.concat([DOMAIN, payload])), payload])
  try {
    return parseRecord(record)
  } catch (cause) {
    throw new RangeError(`not a valid record: ${(cause as Error).message}`, { cause })
  }
}

/**
 * Reads a record and checks everything but the signature and the clock.
 *
 * @throws {WireError} `too-large`, `malformed`
 */
export function parseRecord(bytes: Uint8Array): SignedRecord {
  if (bytes.byteLength > RECORD_BYTES_MAX)
    throw new WireError('too-large', `a record of ${bytes.byteLength} bytes; the limit is ${RECORD_BYTES_MAX}`)
  if (bytes.byteLength <= SIGNATURE_BYTES) throw new WireError('malformed', 'shorter than a signature')
  const payload = bytes.subarray(SIGNATURE_BYTES)
  const { v: _version, deleted = false, body, ...fields } = decodeCbor(payload, envelope)
  if (deleted === (body !== undefined)) throw new WireError('malformed', 'a record has a body, or it is a deletion')
  if (fields.expires <= fields.issued) throw new WireError('malformed', 'expires before it was issued')
  if (fields.expires - fields.issued > LEASE_MS_MAX) throw new WireError('malformed', 'a lease over 90 days')
  const id = createHash('sha256').update(DOMAIN).update(payload).digest()
  return { id, bytes, ...fields, deleted, body }
}

/** @throws {WireError} `bad-signature` when the publisher did not sign the record. */
export function verifyRecord({ bytes, publisher }: SignedRecord): void {
  const signature = bytes.subarray(0, SIGNATURE_BYTES)
  const signed = Buffer.concat([DOMAIN, bytes.subarray(SIGNATURE_BYTES)])
  let good = false
  try {
    good = verify(null, signed, publicKeyOf(publisher), signature)
  } catch {
    // Not a point of the curve: nobody can have signed.
  }
  if (!good) throw new WireError('bad-signature', 'the record is not signed by its publisher')
}

/**
 * Reads a record and checks everything but the clock.
 *
 * @throws {WireError} `too-large`, `malformed`, `bad-signature`
 */
export function decodeRecord(bytes: Uint8Array): SignedRecord {
  const record = parseRecord(bytes)
  verifyRecord(record)
  return record
}

/** What the clock has against a record; undefined when nothing. */
export function timeFault(
  record: Pick<SignedRecord, 'issued' | 'expires'>,
  now: number,
): 'expired' | 'future' | undefined {
  if (record.expires <= now) return 'expired'
  if (record.issued > now + ISSUED_AHEAD_MS_MAX) return 'future'
  return undefined
}

export type Rank = Pick<SignedRecord, 'seq' | 'id'>

/** Total order of a publisher's records: by seq, then by id. Positive when `a` is the newer, 0 when they are the same record. */
export function compareRank(a: Rank, b: Rank): number {
  return a.seq - b.seq || Buffer.compare(a.id, b.id)
}

/** Length of a key's tag. Two keys of one publisher with one tag take 2^32 work, and hide only one of them from the other. */
export const TAG_BYTES = 8

/** A short name of a record's key, by which two nodes see that one record replaces another without sending either. */
export function keyTag(kind: string, name: string): Uint8Array {
  return createHash('sha256').update(`${kind}\0${name}`).digest().subarray(0, TAG_BYTES)
}

function publicKeyOf(raw: Uint8Array): KeyObject {
  const name = Buffer.from(raw).toString('latin1')
  let key = keysKept.get(name)
  if (!key) {
    key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' })
    if (keysKept.size >= KEYS_KEPT_MAX) keysKept.clear()
    keysKept.set(name, key)
  }
  return key
}

const keysKept = new Map<string, KeyObject>()
