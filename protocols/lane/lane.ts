/**
 * `/undernet/lane/1`: how a node gets a lane from another, a TLS connection of its own that carries pieces faster than a stream can.
 * Asker and answerer of the handing over; see spec.md beside this file. Opens no connection.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'

export const LANE_PROTOCOL = '/undernet/lane/1'
/** Of one request: two keep two cores busy, and a blob's fetch uses no more. */
const LANES_PER_REQUEST_MAX = 4
/** An offer that was not taken by then is void. */
export const OFFER_MS_MAX = 10_000
/** Then another lane is due, with another key: far below what AES-GCM allows one key (RFC 8446, 5.5). */
export const LANE_BYTES_MAX = 64 * 2 ** 30
/** Suites with SHA-256, which goes with a pre-shared key of 32 bytes. */
export const LANE_SUITES = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256'
export const LANE_GROUP = 'X25519'

const ID_BYTES = 16
const KEY_BYTES = 32
/** A digest and a network, and what surrounds them. */
const REQUEST_BYTES_MAX = 256
/** Four lanes of some 70 bytes. */
const ANSWER_BYTES_MAX = 1_024
const PORT_MAX = 65_535

const bytesOf = (count: number) =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === count, `not ${count} bytes`)

const requestSchema = z.object({
  digest: bytesOf(32),
  count: z.int().min(1).max(LANES_PER_REQUEST_MAX),
  network: bytesOf(32).exactOptional(),
})
const offersSchema = z.object({
  port: z.int().min(1).max(PORT_MAX),
  expiresMs: z.int().min(1).max(OFFER_MS_MAX),
  lanes: z
    .array(z.object({ id: bytesOf(ID_BYTES), key: bytesOf(KEY_BYTES) }))
    .min(1)
    .max(LANES_PER_REQUEST_MAX),
})
/** A later version may have more codes: they are repeated as they are. */
const refusedSchema = z.object({ error: z.string().regex(/^[a-z-]{1,32}$/) })

/** For which blob lanes are wanted, and in which network; the open one when it names none. */
export type LaneRequest = z.infer<typeof requestSchema>
export type LaneOffers = z.infer<typeof offersSchema>
/** `absent`: no pieces of that blob for this peer. `busy`: there are enough lanes, for it or in all. */
export type LaneRefusal = { error: 'absent' | 'busy' }

/** As the lane's opener names it in the TLS handshake. */
export function identityOf(id: Uint8Array): string {
  return Buffer.from(id).toString('hex')
}

/** Exported for the vectors. */
export const encodeLaneRequest = (request: LaneRequest): Uint8Array => encodeCbor(request)

/** @throws {WireError} `malformed` */
export function decodeLaneRequest(bytes: Uint8Array): LaneRequest {
  return decodeCbor(bytes, requestSchema)
}

export function encodeLaneAnswer(answer: LaneOffers | LaneRefusal): Uint8Array {
  return encodeCbor(answer)
}

/** @throws {WireError} `malformed`; `absent` or `refused` when the peer says no */
export function decodeLaneAnswer(bytes: Uint8Array): LaneOffers {
  const answer = decodeCbor<LaneOffers | z.infer<typeof refusedSchema>>(bytes, z.union([refusedSchema, offersSchema]))
  if (!('error' in answer)) return answer
  if (answer.error === 'absent') throw new WireError('absent', 'it has no pieces of it for us')
  throw new WireError('refused', answer.error === 'busy' ? 'it has enough lanes' : `it refused: ${answer.error}`)
}

/** Asks for lanes, on a stream that stays open for as long as they are wanted. @throws {WireError} */
export async function askLanes(
  frames: Pick<Frames, 'read' | 'write'>,
  request: LaneRequest,
  signal: AbortSignal,
): Promise<LaneOffers> {
  await frames.write(encodeLaneRequest(request), signal)
  const bytes = await frames.read(signal, ANSWER_BYTES_MAX)
  if (!bytes) throw new WireError('closed', 'the peer closed the stream before it answered')
  const offers = decodeLaneAnswer(bytes)
  if (offers.lanes.length > request.count) throw new WireError('malformed', 'more lanes than were asked for')
  return offers
}

/** Answers requests until the peer ends its side. @throws {WireError} */
export async function answerLanes(
  frames: Pick<Frames, 'read' | 'write'>,
  offer: (request: LaneRequest) => LaneOffers | LaneRefusal | Promise<LaneOffers | LaneRefusal>,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    const bytes = await frames.read(signal, REQUEST_BYTES_MAX)
    if (!bytes) return
    await frames.write(encodeLaneAnswer(await offer(decodeLaneRequest(bytes))), signal)
  }
}
