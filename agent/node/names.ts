/**
 * Names of services as loopback addresses, put together: the range of this agent is claimed when somebody first wants an address, so an agent
 * of whom nobody does takes none, and the lack of one is a warning rather than the end.
 */
import type { Warning } from '../api/contract.ts'
import type { NameList } from '../api/names-contract.ts'
import type { Config } from '../config/keys.ts'
import { AgentError } from '../error.ts'
import type { Log } from '../log.ts'
import { ClaimedRange, isClaimed, reverseZone, showRange } from '../routing/address-range.ts'
import { NameAddresses } from '../routing/name-addresses.ts'
import { type Held, NameListeners } from '../routing/name-listeners.ts'
import type { Database } from '../state/database.ts'
import { rangeWarnings } from './part-warnings.ts'
import type { NodeRouting } from './routing.ts'

/** Where an application listens that this machine reaches as itself. */
const OWN_HOSTS = ['127.0.0.1', 'localhost', '0.0.0.0', '::', '::1']

type Init = {
  db: Database
  routing: Pick<NodeRouting, 'services' | 'dialer' | 'get'>
  config: Pick<Config, 'addresses'>
  /** This node's peer id. */
  self: string
  log: Log
}
type Running = { range: ClaimedRange; addresses: NameAddresses; listeners: NameListeners }

export class NodeNames implements AsyncDisposable {
  readonly #init: Init
  #starting: Promise<Running> | undefined
  #running: Running | undefined
  /** Why there are none. */
  #fault: AgentError | undefined
  #isOver = false

  constructor(init: Init) {
    this.#init = init
  }

  /** Names that were in use when the agent stopped are there again. */
  async resume(): Promise<void> {
    if (isClaimed(this.#init.db) || this.#init.config.addresses !== undefined) await this.#start()
  }

  /** The address of a name, listened on from then on; undefined when no member offers it. */
  async hold(name: string): Promise<Held | undefined> {
    const running = await this.#start()
    return running === undefined
      ? { fault: this.#fault?.message ?? 'the agent stops' }
      : await running.listeners.hold(name)
  }

  nameAt(address: string): string | undefined {
    return this.#running?.addresses.nameAt(address)
  }

  get reverseZone(): string | undefined {
    return this.#running && reverseZone(this.#running.range.range)
  }

  list(): NameList {
    const running = this.#running
    return {
      range: running === undefined ? null : showRange(running.range.range),
      names: running?.listeners.list() ?? [],
    }
  }

  warnings(): Warning[] {
    const faults = this.#running?.listeners.faults() ?? []
    return [
      ...rangeWarnings(this.#fault),
      ...faults.map(({ code, reason }) => ({ code: `names.port-${code}`, message: reason, next: NEXT[code] })),
    ]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true
    const running = await this.#starting?.catch(() => undefined)
    await running?.listeners[Symbol.asyncDispose]()
    await running?.range[Symbol.asyncDispose]()
  }

  /** Undefined when there can be none: see the warnings. A range that was chosen by hand and is taken is tried for again. */
  async #start(): Promise<Running | undefined> {
    if (this.#isOver) return undefined
    this.#starting ??= this.#claim()
    try {
      this.#running = await this.#starting
      this.#fault = undefined
      return this.#running
    } catch (error) {
      if (!(error instanceof AgentError)) throw error
      this.#starting = undefined
      this.#fault = error
      return undefined
    }
  }

  async #claim(): Promise<Running> {
    const { db, routing, config, self, log } = this.#init
    const range = await ClaimedRange.claim(db, self, config.addresses)
    const addresses = new NameAddresses(db, range.range)
    const ownHost = (network: string, service: string, port: number) => {
      const offer = routing.get(network)?.offers.get(service)
      if (offer === undefined || offer.port !== port || offer.proxyProtocol) return undefined
      return OWN_HOSTS.includes(offer.host) ? '127.0.0.1' : undefined
    }
    const { services, dialer } = routing
    return { range, addresses, listeners: NameListeners.start({ addresses, services, dialer, ownHost, log }) }
  }
}

const NEXT = {
  used: 'Let that program listen on one address only (127.0.0.1, say), or reach the service through the proxy or `agent forward`.',
  privileged:
    'Give the service a port from 1024 on, let the agent have CAP_NET_BIND_SERVICE, or use the proxy or `agent forward`.',
  failed: 'Reach the service through the proxy or `agent forward`.',
} as const
