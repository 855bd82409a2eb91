/**
 * `/undernet/upstream/1`, on a stream of the network: members agree on who of them fetches a blob from outside. Both sides; see spec.md
 * beside this file. When to claim and how long to wait is the caller's.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'

export const UPSTREAM_PROTOCOL = '/undernet/upstream/1'
/** Every request and answer, with room for fields of later versions. */
const MESSAGE_BYTES_MAX = 256
/** An asker claims once, and waits a few times. */
const REQUESTS_MAX = 64

const digest = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')
const requestSchema = z.object({ ask: z.enum(['claim', 'await']), digest })
/** Any request, known here or not: a later version may ask more. */
const anyRequest = z.looseObject({ ask: z.string().max(32) })
const answerSchema = z.union([z.object({ state: z.string().max(32) }), z.object({ error: z.string().max(32) })])

export type UpstreamRequest = z.infer<typeof requestSchema>
export type UpstreamState = 'here' | 'coming' | 'free'

/** Exported for the vectors. */
export const encodeUpstreamRequest = (request: UpstreamRequest): Uint8Array => encodeCbor(request)
export const encodeUpstreamAnswer = (state: UpstreamState): Uint8Array => encodeCbor({ state })

/** @throws {WireError} `malformed` */
export function decodeUpstreamRequest(bytes: Uint8Array): UpstreamRequest | 'unknown' {
  const { ask } = decodeCbor(bytes, anyRequest)
  return ask === 'claim' || ask === 'await' ? decodeCbor(bytes, requestSchema) : 'unknown'
}

/** @throws {WireError} `malformed` */
export function decodeUpstreamAnswer(bytes: Uint8Array): UpstreamState {
  const answer = decodeCbor(bytes, answerSchema)
  return 'state' in answer && (answer.state === 'here' || answer.state === 'coming') ? answer.state : 'free'
}

/** @throws {WireError} `closed`, `malformed`, `too-large` */
export async function askUpstream(
  frames: Frames,
  request: UpstreamRequest,
  signal: AbortSignal,
): Promise<UpstreamState> {
  await frames.write(encodeUpstreamRequest(request), signal)
  const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
  if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
  return decodeUpstreamAnswer(frame)
}

/** Answers until the asker ends the stream. @throws {WireError} `malformed`, `too-large`, `closed` */
export async function answerUpstream(
  frames: Frames,
  stateOf: (request: UpstreamRequest, signal: AbortSignal) => Promise<UpstreamState>,
  signal: AbortSignal,
): Promise<void> {
  for (let nth = 0; nth < REQUESTS_MAX; nth++) {
    const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
    if (!frame) return
    const request = decodeUpstreamRequest(frame)
    const answer =
      request === 'unknown' ? encodeCbor({ error: 'unknown' }) : encodeUpstreamAnswer(await stateOf(request, signal))
    await frames.write(answer, signal)
  }
}
