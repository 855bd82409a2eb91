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
} from '../../protocols/records/presence.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Records } from './records.ts'

const LEASE_MS_MIN = 60_000
const LEASE_MS_PER_NODE = 600
/** Two renewals may be lost before anybody thinks that the node is gone. */
const RENEWALS_PER_LEASE = 3

export type PresenceOptions = {
  records: Pick<Records, 'put' | 'remove'>
  body: Omit<PresenceBody, 'addresses'>
  /** In a closed network: where this node can be dialled now, so that members find each other through each other. */
  addresses?: () => readonly string[]
  /** How many nodes are known, this one included or not. */
  nodeCount: () => number
  log: Log
}

export class Presence implements Disposable {
  readonly #options: PresenceOptions
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

  #renew(): void {
    const { records, nodeCount, log } = this.#options
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
    return addresses ? { ...body, addresses: addresses().slice(0, ADDRESSES_MAX) } : body
  }
}
