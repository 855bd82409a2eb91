/**
 * Keys with which members of closed networks sign store paths, and which the policy lets this node believe: those that a member names in
 * what it publishes or gives out of its store, while `content:sign` is given from it to this node. A member that is revoked, or loses the grant, is believed no more
 * from then on.
 */

import { type PublicKey, parsePublicKey } from '../nix/signing.ts'
import type { ClosedNetworks } from './closed-networks.ts'

/** Asked for each path of a closure, while members and policies change seldom. */
const FRESH_MS = 1_000
/** An agent has one cache key. Some more, since keys are replaced. */
const KEYS_PER_MEMBER_MAX = 4
/** Parsed keys that are kept. */
const PARSED_MAX = 10_000

export class MemberSigners {
  readonly #closed: Pick<ClosedNetworks, 'get'>
  readonly #now: () => number
  readonly #fresh = new Map<string, { keys: readonly PublicKey[]; sinceMs: number }>()
  /** By their text; undefined for what is no key. */
  readonly #parsed = new Map<string, PublicKey | undefined>()

  constructor(closed: Pick<ClosedNetworks, 'get'>, now: () => number = () => performance.now()) {
    this.#closed = closed
    this.#now = now
  }

  /** Of a network by its id. Nobody's in the open network, where there is no policy. */
  in(network: string): readonly PublicKey[] {
    const known = this.#fresh.get(network)
    if (known && this.#now() - known.sinceMs < FRESH_MS) return known.keys
    const keys = this.#keysIn(network)
    this.#fresh.set(network, { keys, sinceMs: this.#now() })
    return keys
  }

  #keysIn(network: string): PublicKey[] {
    const running = this.#closed.get(network)
    if (running === undefined) return []
    const { artifacts, filters, members, membership } = running
    const keys = new Map<string, PublicKey>()
    for (const { publisher, signers } of [...artifacts.signers(), ...filters.signers()]) {
      const member = members.of(publisher)
      if (member === undefined || !membership.decide(member, membership.self, 'content:sign').allowed) continue
      for (const text of signers.slice(0, KEYS_PER_MEMBER_MAX)) {
        const key = this.#parse(text)
        if (key) keys.set(key.text, key)
      }
    }
    return [...keys.values()]
  }

  /** What a member says is its key may be none. */
  #parse(text: string): PublicKey | undefined {
    if (this.#parsed.has(text)) return this.#parsed.get(text)
    if (this.#parsed.size >= PARSED_MAX) this.#parsed.clear()
    const key = parsed(text)
    this.#parsed.set(text, key)
    return key
  }
}

function parsed(text: string): PublicKey | undefined {
  try {
    return parsePublicKey(text)
  } catch {
    return undefined
  }
}
