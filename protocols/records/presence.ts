/**
 * What a node says of itself while it runs: the body of a record of kind `presence`, whose name is always `node`. See spec.md beside
 * this file.
 */
import { z } from 'zod'

export const PRESENCE_KIND = 'presence'
export const PRESENCE_NAME = 'node'

/** A node on several networks has a handful of addresses. */
export const ADDRESSES_MAX = 8
/** Members through whom a node can be reached: the others are there for when one dies. */
export const RELAYS_MAX = 4
/** Long enough for a name of DNS and a path over a relay. */
const ADDRESS_LENGTH_MAX = 512

/** For a terminal: no control characters, no line breaks, nothing that changes the direction of text. */
const shown = (lengthMax: number) =>
  z
    .string()
    .min(1)
    .max(lengthMax)
    .regex(/^[^\p{C}\p{Zl}\p{Zp}]+$/u, 'has characters that cannot be shown')

/** Unknown fields are ignored: later versions add some. */
export const presenceBody = z.object({
  /** What its owner calls the node. Not unique, not proven. */
  name: shown(64),
  /** Of the agent. */
  version: shown(64),
  capabilities: z.object({
    /** As Nix writes it: `x86_64-linux`. */
    system: shown(64),
    cpus: z.int().min(1).max(65_536),
    memoryBytes: z.int().min(0).max(Number.MAX_SAFE_INTEGER),
  }),
  /** Where it can be dialled, in closed networks; read by `addressesIn`, since one that is wrong is no reason not to show the node. */
  addresses: z.unknown().optional(),
  /** Members of the closed network that carry to it; read by `relaysIn`. */
  relays: z.unknown().optional(),
})
export type PresenceBody = z.infer<typeof presenceBody>

/** The addresses that a node says of itself, as they stand there: whether they are multiaddrs is for who dials them to see. */
export function addressesIn({ addresses }: Pick<PresenceBody, 'addresses'>): string[] {
  if (!Array.isArray(addresses)) return []
  return addresses
    .slice(0, ADDRESSES_MAX)
    .filter((one): one is string => typeof one === 'string' && one.length <= ADDRESS_LENGTH_MAX)
}

/** The node keys of whom a node names as its relays, as they stand there. */
export function relaysIn({ relays }: Pick<PresenceBody, 'relays'>): Uint8Array[] {
  if (!Array.isArray(relays)) return []
  return relays
    .slice(0, RELAYS_MAX)
    .filter((one): one is Uint8Array => one instanceof Uint8Array && one.byteLength === 32)
}
