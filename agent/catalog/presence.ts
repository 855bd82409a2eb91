/**
 * Says that this node is there, from start() until disposed, and then that it left. Who does not say so for the length of a lease is gone.
 *
 * The lease grows with the network, so that all renewals of a network together stay below five in a second: at 100 nodes it is a
 * minute, at 1,000 ten.
 */
import {
  ADDRESSES_MAX,
  PRESENCE_KIND,
  PRESENCE_NAME,
  type PresenceBody,
  presenceBody,
  RELAYS_MAX,
} from '../../protocols/records/presence.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Records } from './records.ts'

const LEASE_MS_MIN = 60_000
const LEASE_MS_PER_NODE = 600
/** Two renewals may be lost before anybody thinks that the node is gone. */
const RENEWALS_PER_LEASE = 3
/** A member that comes and goes does not make this node talk more often. */
const SAID_MS_MIN = 2_000

export type PresenceOptions = {
  records: Pick<Records, 'put' | 'remove'>
  body: Omit<PresenceBody, 'addresses' | 'relays'>
  /** In a closed network: where this node can be dialled now, so that members find each other through each other. */
  addresses?: () => readonly string[]
  /** In a closed network: node keys of members through whom this node can be reached now. */
  relays?: () => readonly Uint8Array[]
  /** How many nodes are known, this one included or not. */
  nodeCount: () => number
  log: Log
}

export class Presence implements Disposable {
  readonly #options: PresenceOptions
  #saidMs = Number.NEGATIVE_INFINITY
  /** What was said last. */
  #relays: readonly Uint8Array[] = []
  #timer: NodeJS.Timeout | undefined

  private constructor(options: PresenceOptions) {
    this.#options = options
  }

  /** @throws {AgentError} `usage` when the body cannot be said, such as a name that is too long. */
  static start(options: PresenceOptions): Presence {
    const { error } = presenceBody.safeParse(options.body)
    if (error)
      throw new AgentError('usage', `the node's ${error.issues[0]?.path.join('.')}: ${error.issues[0]?.message}`)
    const presence = new Presence(options)
    presence.#renew()
    return presence
  }

  /** Says goodbye, to whoever hears it: the others find out at the end of the lease in any case. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    try {
      this.#options.records.remove(PRESENCE_KIND, PRESENCE_NAME)
    } catch (error) {
      this.#options.log.debug({ reason: reasonOf(error) }, 'presence.unremoved')
    }
  }

  /**
   * Says at once through whom this node can be reached, when none of those that it named is left. Else that can wait for the next renewal:
   * in a large network somebody comes or goes all the time.
   */
  relaysChanged(): void {
    const now = this.#options.relays?.() ?? []
    const isLeft = this.#relays.some((one) => now.some((other) => Buffer.compare(one, other) === 0))
    if (!isLeft && now.length > 0) this.addressesChanged()
  }

  /** Says at once where this node can be dialled now. */
  addressesChanged(): void {
    clearTimeout(this.#timer)
    const waitMs = this.#saidMs + SAID_MS_MIN - performance.now()
    if (waitMs <= 0) this.#renew()
    else this.#timer = setTimeout(() => this.#renew(), waitMs).unref()
  }

  #renew(): void {
    const { records, nodeCount, log } = this.#options
    this.#saidMs = performance.now()
    const leaseMs = Math.max(LEASE_MS_MIN, nodeCount() * LEASE_MS_PER_NODE)
    try {
      records.put({ kind: PRESENCE_KIND, name: PRESENCE_NAME, body: this.#body(), leaseMs })
    } catch (error) {
      log.warn({ reason: reasonOf(error) }, 'presence.unrenewed')
    }
    this.#timer = setTimeout(() => this.#renew(), leaseMs / RENEWALS_PER_LEASE).unref()
  }

  #body(): PresenceBody {
    const { body, addresses } = this.#options
    const { relays = () => [] } = this.#options
    const named = relays().slice(0, RELAYS_MAX)
    this.#relays = named
    return {
      ...body,
      ...(addresses && { addresses: addresses().slice(0, ADDRESSES_MAX) }),
      ...(named.length > 0 && { relays: named }),
    }
  }
}
