/**
 * Brings delegations to the members that they are for, from start() until disposed: the node where the root key was says those that it gave
 * as records of the network, so that they arrive also when the two are never there at the same time; and each member takes in its own.
 *
 * Records carry them and nothing more: what makes a delegation good is the root's signature. Specification: protocols/records/spec.md.
 */
import type { Delegation } from '../../protocols/membership/certificate.ts'
import { hexOf, sameBytes } from '../../protocols/membership/statement.ts'
import { DELEGATION_KIND, type DelegationBody, delegationIn } from '../../protocols/records/delegation.ts'
import { LEASE_MS_MAX, type SignedRecord } from '../../protocols/records/record.ts'
import type { Records } from '../catalog/records.ts'
import { reasonOf } from '../error.ts'
import type { Membership } from '../identity/membership.ts'
import type { Log } from '../log.ts'

/** Against leases of months. */
const CHECK_MS = 6 * 3_600_000

export type DelegationsOptions = {
  membership: Pick<Membership, 'network' | 'self' | 'revocations' | 'delegations' | 'takeDelegation' | 'onChange'>
  records: Pick<Records, 'publisher' | 'now' | 'get' | 'list' | 'put' | 'onChange'>
  log: Log
}

export class Delegations implements Disposable {
  readonly #options: DelegationsOptions
  readonly #stop: (() => void)[]
  readonly #timer: NodeJS.Timeout

  private constructor(options: DelegationsOptions) {
    const { records, membership } = options
    this.#options = options
    this.#stop = [
      records.onChange((changes) => {
        for (const { kind, record } of changes) if (kind === DELEGATION_KIND && record) this.#take(record)
      }),
      membership.onChange((what) => {
        if (what === 'rights') this.#say()
      }),
    ]
    this.#timer = setInterval(() => this.#say(), CHECK_MS).unref()
  }

  static start(options: DelegationsOptions): Delegations {
    const delegations = new Delegations(options)
    for (const record of options.records.list(DELEGATION_KIND)) delegations.#take(record)
    delegations.#say()
    return delegations
  }

  /** What was said stays. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    for (const stop of this.#stop) stop()
  }

  /** In, if it is for this node: others are no business of it. */
  #take(record: SignedRecord): void {
    const { membership, log } = this.#options
    if (record.deleted) return
    const delegation = delegationIn(record.body, membership.network)
    if (delegation === undefined || !sameBytes(delegation.subject, membership.self.key)) return
    try {
      if (membership.takeDelegation(delegation.bytes)) log.info({ may: delegation.may }, 'delegation.taken')
    } catch (error) {
      // A full disk, most likely: it is taken at the next start.
      log.warn({ reason: reasonOf(error) }, 'delegation.untaken')
    }
  }

  /** Says what was given to others from here, also when the root key went since, and is not said for long enough. */
  #say(): void {
    const { membership, records, log } = this.#options
    const now = records.now()
    for (const delegation of membership.delegations()) {
      const name = hexOf(delegation.id)
      if (!this.#isWanted(delegation, name, now)) continue
      const body: DelegationBody = { v: 1, delegation: delegation.bytes }
      try {
        records.put({ kind: DELEGATION_KIND, name, body, leaseMs: Math.min(delegation.notAfter - now, LEASE_MS_MAX) })
      } catch (error) {
        log.warn({ reason: reasonOf(error) }, 'delegation.unsaid')
      }
    }
  }

  #isWanted({ subject, notAfter }: Delegation, name: string, now: number): boolean {
    const { membership, records } = this.#options
    if (notAfter <= now || sameBytes(subject, membership.self.key)) return false
    const { revocations } = membership
    if (revocations.isVoid({ issuer: subject, issued: now }) || revocations.isRevoked(subject)) return false
    const said = records.get(records.publisher, DELEGATION_KIND, name)
    return said === undefined || said.expires < Math.min(notAfter, now + LEASE_MS_MAX / 2)
  }
}
