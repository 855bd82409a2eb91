/**
 * `/undernet/tunnel/1`, on a stream of a network: what is said before a stream belongs to a service's application and who called it. Both
 * sides' messages; see spec.md beside this file. What is done with the bytes afterwards is the caller's.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { NAME_PATTERN } from '../membership/words.ts'

export const TUNNEL_PROTOCOL = '/undernet/tunnel/1'
/** A name, and room for fields of later versions. */
export const REQUEST_BYTES_MAX = 512
/** A refusal quotes a grant. */
export const ANSWER_BYTES_MAX = 4_096
/** The largest payload of UDP over IPv4. */
export const DATAGRAM_BYTES_MAX = 65_507
/** Of one member to another: a gateway has thousands of clients behind it. */
export const TUNNELS_PER_PEER_MAX = 2_048
/** Of a reason, before it is cut: what is left fits an answer in any script. */
const WHY_LENGTH_MAX = 1_000

const carrier = z.enum(['tcp', 'udp'])
const requestSchema = z.object({
  service: z.string().regex(NAME_PATTERN, 'not the name of a service'),
  carrier,
})
const answerSchema = z.object({
  /** Absent when the stream is open. */
  error: z.string().max(32).optional(),
  why: z.string().max(WHY_LENGTH_MAX).optional(),
})

/** Why there is no tunnel. A word of a later version is as `failed`. */
export const TUNNEL_ERRORS = ['refused', 'absent', 'draining', 'unreachable', 'limit', 'failed'] as const

export type Carrier = z.infer<typeof carrier>
export type TunnelRequest = z.infer<typeof requestSchema>
export type TunnelError = (typeof TUNNEL_ERRORS)[number]
export type TunnelAnswer = { error?: undefined } | { error: TunnelError; why: string }

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function encodeTunnelRequest(request: TunnelRequest): Uint8Array {
  const parsed = requestSchema.safeParse(request)
  if (!parsed.success) throw new RangeError(`not a request: ${parsed.error.message}`)
  return encodeCbor(parsed.data)
}

/** @throws {WireError} `malformed` */
export function decodeTunnelRequest(bytes: Uint8Array): TunnelRequest {
  return decodeCbor(bytes, requestSchema)
}

export function encodeTunnelAnswer(answer: TunnelAnswer): Uint8Array {
  if (answer.error === undefined) return encodeCbor({})
  return encodeCbor({ error: answer.error, why: answer.why.slice(0, WHY_LENGTH_MAX) })
}

/** @throws {WireError} `malformed` */
export function decodeTunnelAnswer(bytes: Uint8Array): TunnelAnswer {
  const { error, why = '' } = decodeCbor(bytes, answerSchema)
  if (error === undefined) return {}
  return { error: TUNNEL_ERRORS.find((one) => one === error) ?? 'failed', why }
}
