/**
 * What a node offers to the members of a network: the body of a record of kind `service`, whose name is the service's. See spec.md beside
 * this file.
 *
 * An offer is a live instance, and has a content address of its own: what changes from minute to minute (its state) is not part of it.
 */
import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { z } from 'zod'
import { encodeCbor } from '../cbor.ts'
import { LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, LABELS_MAX, NAME_PATTERN } from '../membership/words.ts'

export const SERVICE_KIND = 'service'
/** A share among equals; a thousand steps are finer than anybody can tell. */
const WEIGHT_MAX = 1_000
/** Multicodec numbers of DAG-CBOR and SHA-256. */
const DAG_CBOR = 0x71
const SHA2_256 = 0x12
/** For a tenth of a second's worth of a network's renewals; a node that offers more should be several. */
export const OFFERS_PER_NODE_MAX = 64

const PROTOS = ['tcp', 'udp', 'http'] as const
/** `unknown` until it was looked at. */
const STATES = ['healthy', 'ill', 'draining', 'unknown'] as const

const labels = z
  .record(z.string().regex(LABEL_KEY_PATTERN, 'not a label'), z.string().regex(LABEL_VALUE_PATTERN, 'not a value'))
  .refine((all) => Object.keys(all).length <= LABELS_MAX, `more than ${LABELS_MAX} labels`)

/** Unknown fields are part of the offer, and of its address. */
const offer = z.looseObject({
  /** The publisher's key: so that two nodes never make the same instance. */
  node: z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes'),
  service: z.string().regex(NAME_PATTERN, 'not the name of a service'),
  proto: z.enum(PROTOS),
  /** Where the application listens, for those who need a number; it is dialled by its own node only. */
  port: z.int().min(1).max(65_535),
  weight: z.int().min(0).max(WEIGHT_MAX),
  labels,
  /** When it was first offered so, in milliseconds since 1970. */
  since: z.int().min(0).max(Number.MAX_SAFE_INTEGER),
})

/** Unknown fields are ignored: later versions add some. A state that is not known is `unknown`. */
const serviceBody = z.object({
  v: z.int().min(1),
  offer,
  state: z
    .string()
    .max(32)
    .transform((word) => STATES.find((one) => one === word) ?? 'unknown'),
})

export type ServiceOffer = z.infer<typeof offer>
export type ServiceBody = z.infer<typeof serviceBody>

/** What a record says, or undefined when it is no offer of its publisher under its name. */
export function serviceIn(record: { name: string; publisher: Uint8Array; body: unknown }): ServiceBody | undefined {
  const body = serviceBody.safeParse(record.body).data
  const isOwn = body !== undefined && Buffer.compare(body.offer.node, record.publisher) === 0
  return isOwn && body.offer.service === record.name ? body : undefined
}

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function makeServiceBody(offered: ServiceOffer, state: ServiceBody['state']): ServiceBody {
  const parsed = serviceBody.safeParse({ v: 1, offer: offered, state })
  if (!parsed.success) throw new RangeError(`not an offer: ${parsed.error.message}`)
  return parsed.data
}

/** The instance's content address. */
export function instanceCid(offered: ServiceOffer): CID {
  const digest = createHash('sha256').update(encodeCbor(offered)).digest()
  return CID.createV1(DAG_CBOR, Digest.create(SHA2_256, digest))
}
