/**
 * `/undernet/punch/1`, on a stream of the network between two members that a relay connects: how they make holes in their routers, and which of
 * them comes through. See spec.md beside this file. Opens no socket; what is tried, and how often, is the puncher's business.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'

export const PUNCH_PROTOCOL = '/undernet/punch/1'
/** Every message, with room for fields of later versions. */
export const PUNCH_WORD_BYTES_MAX = 256
/** Of a datagram that opens a way, or looks for one: it shows who sent it. */
export const PUNCH_TAG_BYTES = 16
/** Sockets that the side behind a symmetric router opens towards the other. */
export const PUNCH_SOCKETS_MAX = 256
/** Ports that the other side tries, of some 64,000: with so many sockets one is met with a probability of 0.9997. */
export const PUNCH_PROBES_MAX = 2_048
/** Ports below are not given out by routers. */
export const PUNCH_PORT_MIN = 1_024

const PORT_MAX = 65_535
const ADDRESS_BYTES = 4
const REFUSALS = ['off', 'busy', 'no-udp', 'unknown'] as const
const FAILURES = ['missed', 'failed'] as const

const bytesOf = (count: number) =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === count, `not ${count} bytes`)
const word = z.object({ error: z.string().regex(/^[a-z-]{1,32}$/) })
const port = z.int().min(1).max(PORT_MAX)
const common = { address: bytesOf(ADDRESS_BYTES), tag: bytesOf(PUNCH_TAG_BYTES) }
const offer = z.discriminatedUnion('router', [
  z.object({ router: z.literal('fixed'), port, quicPort: port.exactOptional(), ...common }),
  z.object({ router: z.literal('symmetric'), ...common }),
])
const step = z.object({ step: z.enum(['ready', 'done']) })

/** What a side says of itself: where it is seen, if its router shows it in one place, and by what its datagrams are known. */
export type PunchOffer = z.infer<typeof offer>
export type PunchRefusal = (typeof REFUSALS)[number]
export type PunchStep = z.infer<typeof step>['step']
type PunchFailure = (typeof FAILURES)[number]
/** Who waits at its port, and who comes: `many` where the latter has to look for a way first. */
export type PunchPlan = { role: 'dial' | 'listen'; many: boolean } | 'relay'

export function encodePunchOffer(said: PunchOffer | PunchRefusal): Uint8Array {
  return encodeCbor(typeof said === 'string' ? { error: said } : said)
}

/** A refusal of a later version is `off`. @throws {WireError} `malformed` */
export function decodePunchOffer(bytes: Uint8Array): PunchOffer | PunchRefusal {
  const said = decodeCbor<z.infer<typeof offer> | z.infer<typeof word>>(bytes, z.union([word, offer]))
  return 'error' in said ? (REFUSALS.find((one) => one === said.error) ?? 'off') : said
}

export function encodePunchStep(said: PunchStep | PunchFailure): Uint8Array {
  return encodeCbor(said === 'ready' || said === 'done' ? { step: said } : { error: said })
}

/** A failure of a later version is `failed`. @throws {WireError} `malformed` */
export function decodePunchStep(bytes: Uint8Array): PunchStep | PunchFailure {
  const said = decodeCbor<z.infer<typeof step> | z.infer<typeof word>>(bytes, z.union([word, step]))
  return 'error' in said ? (FAILURES.find((one) => one === said.error) ?? 'failed') : said.step
}

/** What one side does, of what both said; `isOpener` of the stream. Both ends come to plans that fit. */
export function planOf(own: PunchOffer['router'], other: PunchOffer['router'], isOpener: boolean): PunchPlan {
  if (own === 'symmetric' && other === 'symmetric') return 'relay'
  if (own === 'symmetric') return { role: 'dial', many: true }
  if (other === 'symmetric') return { role: 'listen', many: true }
  return { role: isOpener ? 'dial' : 'listen', many: false }
}
