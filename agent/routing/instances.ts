/**
 * Who offers which service in one network: a view of the records of kind `service`, kept in memory, from the construction until disposed.
 *
 * An instance is in it while its publisher is a member, the policy lets that member offer the service to this node, and its lease runs: by the record,
 * and by this node's own clock since it heard of it, so that a dead node is gone within the lease whatever its clock said.
 */
import type { Member } from '../../protocols/membership/certificate.ts'
import type { Decision, Subject } from '../../protocols/membership/policy.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import { instanceCid, SERVICE_KIND, type ServiceBody, serviceIn } from '../../protocols/service/service.ts'
import type { Members } from '../catalog/members.ts'
import type { Change, Records } from '../catalog/records.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Instance } from './services.ts'

/** How late the end of a lease may be noticed by those who wait for it; answers never are. */
const SWEEP_MS = 1_000

export type InstancesOptions = {
  records: Pick<Records, 'list' | 'onChange' | 'now' | 'publisher'>
  members: Pick<Members, 'of' | 'onChange'>
  membership: {
    readonly name: string
    readonly self: Subject
    decide(from: Subject, to: Subject, verb: string): Decision
    onChange(listener: () => void): () => void
  }
  /** Undefined while the peer is not connected, or not measured. */
  rttMs: (peerId: string) => number | undefined
  /** A clock that only goes forward. */
  steadyMs?: () => number
}

type Known = {
  readonly publisher: Uint8Array
  readonly peerId: string
  readonly body: ServiceBody
  readonly id: string
  readonly expires: number
  readonly heardMs: number
  readonly leaseMs: number
}

export class Instances implements Disposable {
  readonly #options: InstancesOptions
  readonly #steadyMs: () => number
  /** By service, then by publisher. */
  readonly #known = new Map<string, Map<string, Known>>()
  /** Whether a publisher may offer a service here; asked anew when policy or members change. */
  readonly #welcome = new Map<string, boolean>()
  readonly #listeners = new Set<() => void>()
  readonly #stop: (() => void)[]
  #isTelling = false

  constructor(options: InstancesOptions) {
    this.#options = options
    this.#steadyMs = options.steadyMs ?? (() => performance.now())
    const { records, members, membership } = options
    for (const record of records.list(SERVICE_KIND)) this.#apply({ ...record, record, cause: 'accepted' })
    const timer = setInterval(() => this.#sweep(), SWEEP_MS).unref()
    this.#stop = [
      records.onChange((changes) => {
        if (changes.map((change) => this.#apply(change)).includes(true)) this.#tell()
      }),
      members.onChange(() => this.#judgeAnew()),
      membership.onChange(() => this.#judgeAnew()),
      () => clearInterval(timer),
    ]
  }

  [Symbol.dispose](): void {
    for (const stop of this.#stop) stop()
    this.#listeners.clear()
  }

  /** How many there are in the network, welcome or not. */
  get count(): number {
    return this.#known.values().reduce((sum, all) => sum + all.size, 0)
  }

  services(): string[] {
    return [...this.#known.keys()]
  }

  /** In no order. */
  of(service: string): Instance[] {
    const now = this.#options.records.now()
    const steadyMs = this.#steadyMs()
    const all = [...(this.#known.get(service)?.values() ?? [])]
    return all.flatMap((known) => {
      const member = isOver(known, now, steadyMs) ? undefined : this.#member(known)
      return member === undefined ? [] : [this.#view(known, member)]
    })
  }

  /** Called soon after anything but a renewal; many changes at once are told once. Returns how to stop that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Whether it is another instance, or in another state, than before. */
  #apply({ kind, name, publisher, record }: Change): boolean {
    if (kind !== SERVICE_KIND) return false
    const key = hexOf(publisher)
    const before = this.#known.get(name)?.get(key)
    const body = record === undefined || record.deleted ? undefined : serviceIn(record)
    if (record === undefined || body === undefined) return this.#drop(name, key)
    const id = instanceCid(body.offer).toString()
    const { issued, expires } = record
    const known: Known = {
      publisher,
      peerId: peerIdOf(publisher),
      body,
      id,
      expires,
      heardMs: this.#steadyMs(),
      leaseMs: expires - issued,
    }
    const all = this.#known.get(name) ?? new Map<string, Known>()
    this.#known.set(name, all)
    all.set(key, known)
    return before?.id !== id || before.body.state !== body.state
  }

  #drop(service: string, key: string): boolean {
    const all = this.#known.get(service)
    const wasThere = all?.delete(key) === true
    if (all?.size === 0) this.#known.delete(service)
    this.#welcome.delete(`${key} ${service}`)
    return wasThere
  }

  /** The publisher as a member who may offer this here. */
  #member({ publisher, body }: Known): Member | undefined {
    const { members, membership, records } = this.#options
    const member = members.of(publisher)
    if (member === undefined) return undefined
    const { service } = body.offer
    const key = `${hexOf(publisher)} ${service}`
    let isWelcome = this.#welcome.get(key)
    if (isWelcome === undefined) {
      const isOwn = Buffer.compare(publisher, records.publisher) === 0
      isWelcome = isOwn || membership.decide(member, membership.self, `service:offer ${service}`).allowed
      this.#welcome.set(key, isWelcome)
    }
    return isWelcome ? member : undefined
  }

  #view({ peerId, body, id }: Known, { name, labels: { zone } }: Member): Instance {
    const { service, proto, port, labels, weight } = body.offer
    const rttMs = this.#options.rttMs(peerId)
    return {
      id,
      network: this.#options.membership.name,
      service,
      peerId,
      node: name,
      proto,
      port,
      labels,
      weight,
      state: body.state,
      ...(zone !== undefined && { zone }),
      ...(rttMs !== undefined && { rttMs }),
    }
  }

  #judgeAnew(): void {
    this.#welcome.clear()
    this.#tell()
  }

  #sweep(): void {
    const now = this.#options.records.now()
    const steadyMs = this.#steadyMs()
    const over = [...this.#known].flatMap(([service, all]) =>
      [...all].filter(([, known]) => isOver(known, now, steadyMs)).map(([key]) => this.#drop(service, key)),
    )
    if (over.length > 0) this.#tell()
  }

  #tell(): void {
    if (this.#isTelling) return
    this.#isTelling = true
    queueMicrotask(() => {
      this.#isTelling = false
      for (const listener of this.#listeners) listener()
    })
  }
}

function isOver({ expires, heardMs, leaseMs }: Known, now: number, steadyMs: number): boolean {
  return expires <= now || steadyMs - heardMs > leaseMs
}
