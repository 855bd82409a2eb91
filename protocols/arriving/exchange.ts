/**
 * `/undernet/arriving/1`, on a stream of the network: the bytes of a blob in order, also while the one who is asked still receives them from
 * outside. Both sides; see spec.md beside this file. What may be given to whom, and whom to ask, is the caller's.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'

export const ARRIVING_PROTOCOL = '/undernet/arriving/1'
/** Every request and answer, with room for fields of later versions. */
const MESSAGE_BYTES_MAX = 1_024
/** Others that receive it, told to who has to ask elsewhere. */
export const FOLLOWERS_MAX = 8
/** Bytes read at once: what the receiver writes in one go. */
const CHUNK_BYTES = 256 * 1024

const bytes32 = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')
const requestSchema = z.object({ digest: bytes32, from: z.int().min(0).max(Number.MAX_SAFE_INTEGER) })
const answerSchema = z.union([
  z.object({ sizeBytes: z.int().min(0).max(Number.MAX_SAFE_INTEGER) }),
  z.object({ error: z.string().max(32), followers: z.array(bytes32).max(FOLLOWERS_MAX).optional() }),
])

export type ArrivingRequest = z.infer<typeof requestSchema>
/** `followers` are node keys of those who receive it from the one who is busy. */
export type ArrivingAnswer = { sizeBytes: number } | { error: string; followers?: Uint8Array[] | undefined }

export const encodeArrivingRequest = (request: ArrivingRequest): Uint8Array => encodeCbor(request)
/** @throws {WireError} `malformed` */
export const decodeArrivingRequest = (bytes: Uint8Array): ArrivingRequest => decodeCbor(bytes, requestSchema)
export const encodeArrivingAnswer = (answer: ArrivingAnswer): Uint8Array => encodeCbor(answer)
/** @throws {WireError} `malformed` */
export const decodeArrivingAnswer = (bytes: Uint8Array): ArrivingAnswer => decodeCbor(bytes, answerSchema)

/**
 * Asks for a blob from an offset on.
 *
 * @throws {WireError} `closed`, `malformed`, `too-large`; `mismatch` for another size than is expected
 */
export async function askArriving(
  frames: Frames,
  request: ArrivingRequest,
  sizeBytes: number,
  signal: AbortSignal,
): Promise<{ bytes: AsyncGenerator<Uint8Array> } | { error: string; followers: Uint8Array[] }> {
  await frames.write(encodeArrivingRequest(request), signal)
  const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
  if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
  const answer = decodeArrivingAnswer(frame)
  if ('error' in answer) return { error: answer.error, followers: answer.followers ?? [] }
  if (answer.sizeBytes !== sizeBytes)
    throw new WireError('mismatch', `a blob of ${answer.sizeBytes} bytes in place of ${sizeBytes}`)
  return { bytes: rawBytes(frames, sizeBytes - request.from, signal) }
}

/**
 * Answers the one request of a stream. `give` says what is there, and its bytes from the offset on, exactly those up to the size.
 *
 * @throws {WireError} `malformed`, `too-large`, `closed`
 */
export async function answerArriving(
  frames: Frames,
  give: (
    request: ArrivingRequest,
  ) => Promise<{ sizeBytes: number; bytes: AsyncIterable<Uint8Array> } | Extract<ArrivingAnswer, { error: string }>>,
  signal: AbortSignal,
): Promise<void> {
  const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
  if (!frame) return
  const given = await give(decodeArrivingRequest(frame))
  if ('error' in given) return await frames.write(encodeArrivingAnswer(given), signal)
  await frames.write(encodeArrivingAnswer({ sizeBytes: given.sizeBytes }), signal)
  for await (const chunk of given.bytes) await frames.writeBytes(chunk, signal)
}

async function* rawBytes(frames: Frames, count: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  for (let left = count; left > 0; ) {
    const chunk = await frames.readBytes(Math.min(left, CHUNK_BYTES), signal)
    left -= chunk.byteLength
    yield chunk
  }
}
