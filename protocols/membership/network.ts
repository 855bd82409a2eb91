/**
 * A network's id, and what is derived from its secret: names and keys that tell nothing to those who are not in it. See spec.md
 * beside this file.
 *
 * The secret is known to every member, and to every former member. It hides; it authorises nothing.
 */
import { createHash, createHmac, hkdfSync } from 'node:crypto'
import { hexOf } from './statement.ts'

export const SECRET_BYTES = 32
/** How long one meeting key is in use. A DHT's provider record lives about as long. */
const MEETING_PERIOD_MS = 24 * 3_600_000
/** Near a change of the period both keys are in use, so that two clocks that differ by this still meet. */
const MEETING_OVERLAP_MS = 3_600_000

const OPAQUE_BYTES = 20
/** Each hello needs one for every network; making it costs more than the rest of a tag. */
const KEYS_KEPT_MAX = 256

/** What a member needs of a network to derive anything. */
export type NetworkSecret = { readonly network: Uint8Array; readonly secret: Uint8Array }

/** The network whose root key this is. */
export function networkOf(rootKey: Uint8Array): Uint8Array {
  return createHash('sha256').update(rootKey).digest()
}

/** 32 bytes for one purpose (HKDF-SHA256: the secret, salted with the network's id). */
export function deriveKey({ network, secret }: NetworkSecret, purpose: string): Uint8Array {
  const name = `${hexOf(network)} ${hexOf(secret)} ${purpose}`
  let key = keysKept.get(name)
  if (key === undefined) {
    key = new Uint8Array(hkdfSync('sha256', secret, network, `undernet/network/1/${purpose}`, 32))
    if (keysKept.size >= KEYS_KEPT_MAX) keysKept.clear()
    keysKept.set(name, key)
  }
  return key
}

/** A name for a topic or protocol of the network that strangers may see: lower-case hexadecimal. */
export function opaqueName(network: NetworkSecret, purpose: string): string {
  return Buffer.from(deriveKey(network, `name/${purpose}`)).toString('hex', 0, OPAQUE_BYTES)
}

/**
 * The keys under which members find each other at this time: the period's, and near its ends the neighbour's too. Who knows one
 * cannot tell another from it.
 */
export function meetingKeys(network: NetworkSecret, now: number): Uint8Array[] {
  const key = deriveKey(network, 'meeting')
  const periods = new Set(
    [now, now - MEETING_OVERLAP_MS, now + MEETING_OVERLAP_MS].map((at) => Math.floor(at / MEETING_PERIOD_MS)),
  )
  return [...periods].map((period) => {
    const counter = Buffer.alloc(8)
    counter.writeBigUInt64BE(BigInt(Math.max(0, period)))
    return createHmac('sha256', key).update(counter).digest()
  })
}

const keysKept = new Map<string, Uint8Array>()
