/**
 * What this node offers in one network, from the construction until disposed: kept durably, looked after (health.ts), and said in leased records
 * of kind `service`, which are taken back at the end.
 *
 * Offers of the configuration are there while it says so, and are not kept; one that was added by hand comes before them.
 */
import {
  makeServiceBody,
  OFFERS_PER_NODE_MAX,
  SERVICE_KIND,
  type ServiceOffer,
} from '../../protocols/service/service.ts'
import type { Records } from '../catalog/records.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { type Database, durably, migrate } from '../state/database.ts'
import { type Check, checkIn, checkText, HealthCheck } from './health.ts'
import type { InstanceState, Proto } from './services.ts'

/** Of a dead node, this much is the longest that anybody believes it. */
const LEASE_MS_MIN = 15_000
/** All renewals of a network together stay below five in a second. */
const LEASE_MS_PER_INSTANCE = 600
/** Two renewals may be lost. */
const RENEWALS_PER_LEASE = 3

const STEPS = ['CREATE TABLE service_offers (name TEXT PRIMARY KEY, offer TEXT NOT NULL) STRICT;']

/** What somebody offers. */
export type Offering = {
  readonly name: string
  readonly host: string
  readonly port: number
  readonly proto: Proto
  readonly check: Check
  readonly labels: Readonly<Record<string, string>>
  readonly weight: number
  /** Whether the application is told who calls, by the PROXY protocol. */
  readonly proxyProtocol: boolean
}

export type Offer = Offering & {
  readonly isDeclared: boolean
  readonly isDraining: boolean
  readonly sinceMs: number
  readonly state: InstanceState
  /** Why it is ill. */
  readonly why: string | undefined
}

export type OffersOptions = {
  db: Database
  records: Pick<Records, 'put' | 'remove' | 'publisher' | 'now'>
  /** Instances known in the network. */
  instanceCount: () => number
  log: Log
}

type Kept = { offering: Offering; isDeclared: boolean; isDraining: boolean; sinceMs: number; health: HealthCheck }

export class Offers implements Disposable {
  readonly #options: OffersOptions
  readonly #offers = new Map<string, Kept>()
  readonly #listeners = new Set<() => void>()
  #timer: NodeJS.Timeout | undefined

  constructor(options: OffersOptions) {
    this.#options = options
    migrate(options.db, 'services', STEPS)
    for (const stored of this.#stored()) this.#watch(stored)
    this.#renew()
  }

  /** Takes everything back: the others need not wait for the lease. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#listeners.clear()
    for (const [name, { health }] of this.#offers) {
      health[Symbol.dispose]()
      this.#unsay(name)
    }
    this.#offers.clear()
  }

  list(): Offer[] {
    return [...this.#offers.values()].map(viewOf)
  }

  get(name: string): Offer | undefined {
    const kept = this.#offers.get(name)
    return kept && viewOf(kept)
  }

  /** Told when one came, went or changed. Returns how to stop that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Offers it from now on, in place of what had its name. @throws {AgentError} `limit` */
  add(offering: Offering): Offer {
    this.#expectRoom(offering.name)
    const kept = { offering, isDeclared: false, isDraining: false, sinceMs: this.#options.records.now() }
    this.#store(kept)
    return this.#begin(kept)
  }

  /** Takes no new streams, or takes them again. @throws {AgentError} `not-found` */
  drain(name: string, isDraining: boolean): Offer {
    const kept = this.#expect(name)
    const next = { ...kept, isDraining }
    this.#offers.set(name, next)
    if (!next.isDeclared) this.#store(next)
    this.#changed(name)
    return viewOf(next)
  }

  /** @throws {AgentError} `not-found`; `usage` for what the configuration says */
  remove(name: string): Offer {
    const kept = this.#expect(name)
    if (kept.isDeclared) {
      throw new AgentError('usage', `${name} is offered by the configuration`, {
        next: 'Remove it there, and have the agent read it again (SIGHUP).',
      })
    }
    durably(this.#options.db, () => this.#options.db.prepare('DELETE FROM service_offers WHERE name = ?').run(name))
    this.#end(name)
    return viewOf(kept)
  }

  /** What the configuration offers now. */
  declare(offerings: readonly Offering[]): void {
    const names = new Set(offerings.map(({ name }) => name))
    for (const [name, { isDeclared }] of this.#offers) if (isDeclared && !names.has(name)) this.#end(name)
    for (const offering of offerings) {
      const before = this.#offers.get(offering.name)
      const isSame = before !== undefined && JSON.stringify(before.offering) === JSON.stringify(offering)
      if (isSame || before?.isDeclared === false) continue
      this.#expectRoom(offering.name)
      this.#begin({ offering, isDeclared: true, isDraining: false, sinceMs: this.#options.records.now() })
    }
  }

  /** Somebody could not connect to its application. */
  suspect(name: string): void {
    this.#offers.get(name)?.health.suspect()
  }

  #begin(kept: Omit<Kept, 'health'>): Offer {
    const { name } = kept.offering
    this.#offers.get(name)?.health[Symbol.dispose]()
    const watched = this.#watch(kept)
    this.#changed(name)
    return viewOf(watched)
  }

  #watch(kept: Omit<Kept, 'health'>): Kept {
    const { name, host, port, check } = kept.offering
    const onChange = (state: string, why: string | undefined) => {
      this.#options.log.info({ service: name, state, ...(why !== undefined && { why }) }, 'service.health')
      this.#changed(name)
    }
    const watched = { ...kept, health: new HealthCheck({ host, port, check, onChange }) }
    this.#offers.set(name, watched)
    return watched
  }

  #end(name: string): void {
    this.#offers.get(name)?.health[Symbol.dispose]()
    this.#offers.delete(name)
    this.#unsay(name)
    for (const listener of this.#listeners) listener()
  }

  #changed(name: string): void {
    this.#say(name)
    for (const listener of this.#listeners) listener()
  }

  #renew(): void {
    for (const name of this.#offers.keys()) this.#say(name)
    this.#timer = setTimeout(() => this.#renew(), this.#leaseMs() / RENEWALS_PER_LEASE).unref()
  }

  #say(name: string): void {
    const kept = this.#offers.get(name)
    if (kept === undefined) return
    const { records, log } = this.#options
    const body = makeServiceBody(offerOf(kept, records.publisher), viewOf(kept).state)
    try {
      records.put({ kind: SERVICE_KIND, name, body, leaseMs: this.#leaseMs() })
    } catch (error) {
      log.warn({ service: name, reason: reasonOf(error) }, 'service.unsaid')
    }
  }

  #unsay(name: string): void {
    try {
      this.#options.records.remove(SERVICE_KIND, name)
    } catch (error) {
      this.#options.log.debug({ service: name, reason: reasonOf(error) }, 'service.unremoved')
    }
  }

  #leaseMs(): number {
    return Math.max(LEASE_MS_MIN, this.#options.instanceCount() * LEASE_MS_PER_INSTANCE)
  }

  #expectRoom(name: string): void {
    if (this.#offers.has(name) || this.#offers.size < OFFERS_PER_NODE_MAX) return
    throw new AgentError('limit', `this node offers ${this.#offers.size} services in this network already`, {
      next: 'Remove one with `agent service remove`.',
    })
  }

  #expect(name: string): Kept {
    const kept = this.#offers.get(name)
    if (kept !== undefined) return kept
    throw new AgentError('not-found', `this node offers no service ${JSON.stringify(name)}`, {
      next: '`agent service list` shows what it offers.',
    })
  }

  #store({ offering, isDraining, sinceMs }: Omit<Kept, 'health'>): void {
    const { db } = this.#options
    const row = JSON.stringify({ ...offering, check: checkText(offering.check), isDraining, sinceMs })
    durably(db, () =>
      db.prepare('INSERT OR REPLACE INTO service_offers (name, offer) VALUES (?, ?)').run(offering.name, row),
    )
  }

  #stored(): Omit<Kept, 'health'>[] {
    const rows = this.#options.db.prepare('SELECT offer FROM service_offers').all() as { offer: string }[]
    return rows.map(({ offer }) => {
      const { check, isDraining, sinceMs, ...rest } = JSON.parse(offer) as Omit<Offering, 'check'> & StoredFields
      return {
        offering: { ...rest, check: checkIn(check) ?? { kind: 'none' } },
        isDeclared: false,
        isDraining,
        sinceMs,
      }
    })
  }
}

type StoredFields = { check: string; isDraining: boolean; sinceMs: number }

function offerOf({ offering, sinceMs }: Kept, node: Uint8Array): ServiceOffer {
  const { name: service, proto, port, weight, labels } = offering
  return { node, service, proto, port, weight, labels: { ...labels }, since: sinceMs }
}

function viewOf({ offering, health, ...kept }: Kept): Offer {
  const state = kept.isDraining ? 'draining' : health.health
  return { ...offering, ...kept, state, why: health.why }
}
