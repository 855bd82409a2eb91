/**
 * An invitation as a line of text: where the one who invites can be reached, and a secret by which the invited proves that it was meant.
 * See spec.md beside this file.
 *
 * The secret is never sent; who has the token can use it as long as the issuer honours it, and only there.
 */
import { createHash, hkdfSync } from 'node:crypto'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { base32 } from 'multiformats/bases/base32'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import { PASS_BYTES_MAX } from './pass.ts'
import { bytes32, timeMs } from './statement.ts'

const TOKEN_PREFIX = 'un1'
export const TOKEN_ID_BYTES = 8
export const TOKEN_SECRET_BYTES = 16
const TOKEN_ADDRESSES_MAX = 8
/** A DNS name of full length, and a port. */
const TOKEN_ADDRESS_BYTES_MAX = 272
/** Eight of the longest addresses; it still fits a terminal and a QR code is out of the question then. */
export const TOKEN_LENGTH_MAX = 4_096

const CHECKSUM_BYTES = 4

const tokenFields = z.strictObject({
  v: z.literal(1),
  network: bytes32,
  issuer: bytes32,
  addresses: z
    .array(z.instanceof(Uint8Array).refine((one) => one.byteLength <= TOKEN_ADDRESS_BYTES_MAX, 'too long'))
    .max(TOKEN_ADDRESSES_MAX),
  secret: z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength === TOKEN_SECRET_BYTES,
    `not ${TOKEN_SECRET_BYTES} bytes`,
  ),
  expires: timeMs,
  pass: z
    .custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength <= PASS_BYTES_MAX, 'not a pass')
    .optional(),
})

export type Token = {
  readonly network: Uint8Array
  /** Raw node key of the one who made it, who alone honours it. */
  readonly issuer: Uint8Array
  /** Where the issuer listens, without its peer id; or a member that carries to it, with that one's and `/p2p-circuit`. */
  readonly addresses: readonly Multiaddr[]
  readonly secret: Uint8Array
  /** Milliseconds since 1970. */
  readonly expires: number
  /** Lets its holder in at members that carry; see pass.ts. */
  readonly pass?: Uint8Array | undefined
}

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function encodeToken({ network, issuer, addresses, secret, expires, pass }: Token): string {
  const fields = { v: 1, network, issuer, addresses: addresses.map(({ bytes }) => bytes), secret, expires }
  const payload = encodeCbor({ ...fields, ...(pass && { pass }) })
  const text = TOKEN_PREFIX + base32.baseEncode(Buffer.concat([payload, checksum(payload)]))
  try {
    decodeToken(text)
  } catch (cause) {
    throw new RangeError(`not a valid token: ${(cause as Error).message}`, { cause })
  }
  return text
}

/**
 * Reads a token as people paste it: spaces and line breaks around and within it, and capitals, do no harm.
 *
 * @throws {WireError} `too-large`, `malformed`
 */
export function decodeToken(text: string): Token {
  if (text.length > TOKEN_LENGTH_MAX) throw new WireError('too-large', 'too long for a token')
  const letters = text.replaceAll(/\s/g, '').toLowerCase()
  if (!letters.startsWith(TOKEN_PREFIX)) throw new WireError('malformed', `a token begins with ${TOKEN_PREFIX}`)
  const { v: _v, addresses, ...fields } = decodeCbor(payloadOf(letters.slice(TOKEN_PREFIX.length)), tokenFields)
  return { ...fields, addresses: addresses.map(addressOf) }
}

/** What a dialler says to name the token that it holds. Tells nothing of the secret. */
export function tokenId(secret: Uint8Array): Uint8Array {
  return createHash('sha256').update('undernet/token/1/id\0').update(secret).digest().subarray(0, TOKEN_ID_BYTES)
}

/** The key that proves knowledge of the secret. */
export function tokenKey({ network, secret }: Pick<Token, 'network' | 'secret'>): Uint8Array {
  return new Uint8Array(hkdfSync('sha256', secret, network, 'undernet/token/1/proof', 32))
}

function payloadOf(letters: string): Uint8Array {
  let bytes: Uint8Array
  try {
    bytes = base32.baseDecode(letters)
  } catch (cause) {
    throw new WireError('malformed', 'the token has a character that no token has', { cause })
  }
  const payload = bytes.subarray(0, -CHECKSUM_BYTES)
  const isWhole = bytes.byteLength > CHECKSUM_BYTES && base32.baseEncode(bytes) === letters
  if (!isWhole || Buffer.compare(bytes.subarray(-CHECKSUM_BYTES), checksum(payload)) !== 0)
    throw new WireError('malformed', 'the token is damaged: a character was lost or changed')
  return payload
}

function addressOf(bytes: Uint8Array): Multiaddr {
  try {
    const address = multiaddr(bytes)
    // Both forms must be readable: people see one, and the other travels.
    if (Buffer.compare(multiaddr(address.toString()).bytes, bytes) === 0) return address
  } catch (cause) {
    throw new WireError('malformed', 'the token has an address that cannot be read', { cause })
  }
  throw new WireError('malformed', 'the token has an address in a form that nobody writes')
}

function checksum(payload: Uint8Array): Uint8Array {
  return createHash('sha256').update('undernet/token/1/checksum\0').update(payload).digest().subarray(0, CHECKSUM_BYTES)
}
