/**
 * Streams of a network: `/undernet/network/1`, by which members speak any protocol to each other without telling anybody else of what
 * networks there are. See spec.md beside this file.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { bytes32 } from './statement.ts'

/** One name for all networks and protocols: it is what identify shows to strangers. */
export const NETWORK_PROTOCOL = '/undernet/network/1'
/** A network's id, the longest name of a protocol, and what surrounds them. */
export const HEADER_BYTES_MAX = 256

const header = z.object({
  network: bytes32,
  protocol: z.string().regex(/^\/[!-~]{1,127}$/, 'not the name of a protocol'),
})

/** What the opener of a stream says first. */
export type StreamHeader = z.infer<typeof header>

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function encodeHeader(fields: StreamHeader): Uint8Array {
  const parsed = header.safeParse(fields)
  if (!parsed.success) throw new RangeError(`not a header: ${parsed.error.message}`)
  return encodeCbor(parsed.data)
}

/** @throws {WireError} `malformed` */
export function decodeHeader(bytes: Uint8Array): StreamHeader {
  return decodeCbor(bytes, header)
}
