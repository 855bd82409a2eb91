/**
 * `/undernet/relay/1`, on a stream of the network: a member carries bytes between two others that cannot reach each other. The words before
 * the bytes; see spec.md beside this file. Who is carried, and how many, is the relay's business.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'

export const RELAY_PROTOCOL = '/undernet/relay/1'
/** The same from a guest (spec.md), on a stream of the connection: he is in no network yet. */
export const RELAY_GUEST_PROTOCOL = '/undernet/relay/1/guest'
/** Every request and answer, with room for fields of later versions. */
export const RELAY_WORD_BYTES_MAX = 256

const peer = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')
const requestSchema = z.object({ ask: z.enum(['to', 'from']), peer })
const anyRequest = z.looseObject({ ask: z.string().max(32) })
const REFUSALS = ['absent', 'busy', 'refused', 'unknown'] as const
const answerSchema = z.union([z.object({ ok: z.literal(true) }), z.object({ error: z.string().max(32) })])

/** `to`: carry me to this peer. `from`: here is this peer, who asked to be carried to you. */
export type RelayRequest = z.infer<typeof requestSchema>
type RelayRefusal = (typeof REFUSALS)[number]
export type RelayAnswer = 'ok' | RelayRefusal

export const encodeRelayRequest = (request: RelayRequest): Uint8Array => encodeCbor(request)
export const encodeRelayAnswer = (answer: RelayAnswer): Uint8Array =>
  encodeCbor(answer === 'ok' ? { ok: true } : { error: answer })

/** @throws {WireError} `malformed` */
export function decodeRelayRequest(bytes: Uint8Array): RelayRequest | 'unknown' {
  const { ask } = decodeCbor(bytes, anyRequest)
  return ask === 'to' || ask === 'from' ? decodeCbor(bytes, requestSchema) : 'unknown'
}

/** A refusal of a later version is `refused`. @throws {WireError} `malformed` */
export function decodeRelayAnswer(bytes: Uint8Array): RelayAnswer {
  const answer = decodeCbor(bytes, answerSchema)
  if ('ok' in answer) return 'ok'
  return REFUSALS.find((one) => one === answer.error) ?? 'refused'
}
