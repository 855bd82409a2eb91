/**
 * One closed network as this node is in it: its secret, this node's certificate, who is out, who may do what, and what this node may sign.
 *
 * Whatever is taken in was verified, and is stored before it is acknowledged; what is stored is loaded at the start, and what a later or
 * broken version left there is skipped with a line in the log. The secret is reachable by its name only: not in JSON, not in a log, not
 * in what a debugger prints.
 */
import { inspect } from 'node:util'
import { WireError } from '../../protocols/error.ts'
import {
  type Chain,
  type Delegation,
  judgeChain,
  type Member,
  type Refusal,
  type Right,
  verifyDelegation,
} from '../../protocols/membership/certificate.ts'
import {
  comparePolicies,
  type Decision,
  decide,
  decodePolicy,
  type Policy,
  type Subject,
} from '../../protocols/membership/policy.ts'
import { decodeRevocation, Revocations } from '../../protocols/membership/revocation.ts'
import { hexOf, type StatementSigner, sameBytes } from '../../protocols/membership/statement.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { NetworkRows, StatementKind } from './network-rows.ts'

/**
 * The newest policy of each issuer is kept, so that there is one to go back to when an issuer is revoked. Few may set policies; of more
 * than these, the oldest go.
 */
const POLICIES_KEPT_MAX = 16
/** Of all subjects. The root makes them by hand. */
const DELEGATIONS_KEPT_MAX = 1_024

/** How this node may sign: with the root key, or with its own and the delegation of that. */
export type Issuing = { readonly signer: StatementSigner; readonly delegation: Delegation | undefined }

export type MembershipChange = 'revocations' | 'policy' | 'certificate' | 'rights'

export type MembershipOptions = {
  readonly id: string
  readonly name: string
  readonly secret: Uint8Array
  readonly chain: Chain
  /** This node's. */
  readonly key: StatementSigner
  readonly root: { signer(): StatementSigner | undefined; isExported(): boolean }
  readonly rows: Pick<NetworkRows, 'setChain' | 'statements' | 'putStatement' | 'dropStatement'>
  readonly now: () => number
  readonly log: Log
}

export class Membership {
  readonly id: string
  readonly network: Uint8Array
  /** This node's name for the network; a DNS label. */
  readonly name: string
  readonly revocations: Revocations
  readonly #options: MembershipOptions
  /** Revocations that are in the database, by id. */
  readonly #stored = new Set<string>()
  /** By issuer. */
  readonly #policies = new Map<string, Policy>()
  readonly #delegations = new Map<string, Delegation>()
  readonly #listeners = new Set<(what: MembershipChange) => void>()
  #chain: Chain
  #policy: Policy | undefined

  constructor(options: MembershipOptions) {
    const { id, name, chain } = options
    this.id = id
    this.network = Uint8Array.from(Buffer.from(id, 'hex'))
    this.name = name
    this.#options = options
    this.#chain = chain
    this.revocations = new Revocations(this.network)
    this.#load('revocation', (bytes) => {
      this.revocations.add(bytes)
      this.#stored.add(hexOf(decodeRevocation(bytes, this.network).statement.id))
    })
    this.#load('delegation', (bytes) => {
      const delegation = verifyDelegation(bytes, this.network)
      this.#delegations.set(hexOf(delegation.id), delegation)
    })
    // Revocations are known by now. A policy that one of them voids may be needed again when the root takes that back; none is dropped.
    this.#load('policy', (bytes) => {
      const policy = decodePolicy(bytes, this.network, NOTHING_VOID)
      this.#policies.set(hexOf(policy.statement.issuer), policy)
    })
    this.#policy = this.#newestPolicy()
  }

  /** Known to all members, and to all former ones. */
  get secret(): Uint8Array {
    return this.#options.secret
  }

  /** This node's own. */
  get chain(): Chain {
    return this.#chain
  }

  /** This node as its certificate says, also when that has ended. */
  get self(): Member {
    const { name, labels, issued, notAfter, issuer, subject } = this.#chain.statement
    return { network: this.network, key: subject, name, labels, issued, notAfter, issuer, chain: this.#chain }
  }

  /** In force; undefined until one has come. */
  get policy(): Policy | undefined {
    return this.#policy
  }

  /** `here` when it is nowhere else, as far as this node knows. */
  get rootKey(): 'here' | 'exported' | 'absent' {
    const { root } = this.#options
    if (root.signer() === undefined) return 'absent'
    return root.isExported() ? 'exported' : 'here'
  }

  /** Why this node is no member right now. */
  fault(now = this.#options.now()): Refusal | undefined {
    const { network, revocations } = this
    const verdict = judgeChain(this.#chain, { network, subject: this.#options.key.publicKey, now, revocations })
    return 'fault' in verdict ? verdict : undefined
  }

  /** How this node may sign what needs the right; undefined when it may not. */
  can(right: Right): Issuing | undefined {
    return this.ways(right)[0]
  }

  /** All ways in which this node may sign that: the root first, then the delegation that lasts longest. */
  ways(right: Right): Issuing[] {
    const { key, root, now } = this.#options
    const signer = root.signer()
    const ways: Issuing[] = signer === undefined ? [] : [{ signer, delegation: undefined }]
    const issued = now()
    const issuer = key.publicKey
    if (this.revocations.isVoid({ issuer, issued }) || this.revocations.isRevoked(issuer)) return ways
    const good = [...this.#delegations.values()].filter(
      ({ subject, may, notBefore, notAfter }) =>
        sameBytes(subject, issuer) && may.includes(right) && notBefore <= issued && issued < notAfter,
    )
    good.sort((a, b) => b.notAfter - a.notAfter)
    return [...ways, ...good.map((delegation) => ({ signer: key, delegation }))]
  }

  /** Delegations of this network that this node has: its own, and those that it gave. */
  delegations(): Delegation[] {
    return [...this.#delegations.values()]
  }

  /** Whether a member may do something at another; the only place above the wire where this is asked. */
  decide(from: Subject, to: Subject, verb: string): Decision {
    return decide(this.#policy?.statement, from, to, verb)
  }

  /**
   * Takes in a revocation, from a peer or from here; false when it was known.
   *
   * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
   */
  takeRevocation(received: Uint8Array, { isOwn = false } = {}): boolean {
    const { statement } = decodeRevocation(received, this.network)
    const key = hexOf(statement.id)
    if (this.#stored.has(key)) return false
    // A copy: what arrived may be part of a much larger buffer.
    const bytes = Uint8Array.from(received)
    // In force at once, also when it cannot be stored: whoever sends it sends it again then.
    this.revocations.add(bytes)
    this.#options.rows.putStatement(this.id, { kind: 'revocation', key, bytes }, isOwn)
    this.#stored.add(key)
    this.#tell('revocations')
    this.#settlePolicy()
    return true
  }

  /**
   * Takes in a policy, from a peer or from here; false when it does not replace the one in force.
   *
   * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
   */
  takePolicy(bytes: Uint8Array): boolean {
    const policy = decodePolicy(Uint8Array.from(bytes), this.network, this.revocations)
    if (this.#policy !== undefined && comparePolicies(policy, this.#policy) <= 0) return false
    const issuer = hexOf(policy.statement.issuer)
    this.#options.rows.putStatement(this.id, { kind: 'policy', key: issuer, bytes: policy.bytes }, true)
    this.#policies.set(issuer, policy)
    this.#boundPolicies()
    this.#settlePolicy()
    return true
  }

  /**
   * Takes in a delegation by the root: of this node's key, which may sign from then on, or of another's; false when it was known.
   *
   * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
   */
  takeDelegation(bytes: Uint8Array): boolean {
    const delegation = verifyDelegation(Uint8Array.from(bytes), this.network)
    const key = hexOf(delegation.id)
    if (this.#delegations.has(key)) return false
    if (this.#delegations.size >= DELEGATIONS_KEPT_MAX) this.#dropEndedDelegations()
    if (this.#delegations.size >= DELEGATIONS_KEPT_MAX)
      throw new WireError('too-large', `more than ${DELEGATIONS_KEPT_MAX} delegations`)
    this.#options.rows.putStatement(this.id, { kind: 'delegation', key, bytes: delegation.bytes }, true)
    this.#delegations.set(key, delegation)
    this.#tell('rights')
    return true
  }

  /**
   * Takes in a new certificate of this node; false when it does not replace the one that it has. One that was issued earlier never
   * replaces a good one, so nobody can give back what was taken.
   *
   * @throws {WireError} `bad-signature`, `refused`
   */
  takeChain(chain: Chain): boolean {
    const { network, revocations } = this
    const { now, key, rows } = this.#options
    const verdict = judgeChain(chain, { network, subject: key.publicKey, now: now(), revocations })
    if ('fault' in verdict)
      throw new WireError(verdict.fault === 'bad-signature' ? 'bad-signature' : 'refused', verdict.why)
    if (sameBytes(chain.bytes, this.#chain.bytes)) return false
    if (chain.statement.issued <= this.#chain.statement.issued && this.fault() === undefined) return false
    rows.setChain(this.id, chain.bytes)
    this.#chain = chain
    this.#tell('certificate')
    return true
  }

  /** Tells the listener of every change until the returned function is called. */
  onChange(listener: (what: MembershipChange) => void): () => void {
    const own = (what: MembershipChange) => listener(what)
    this.#listeners.add(own)
    return () => void this.#listeners.delete(own)
  }

  /** The root key came, was exported, or went. */
  rootChanged(): void {
    this.#tell('rights')
  }

  toJSON(): { id: string; name: string } {
    return { id: this.id, name: this.name }
  }

  [inspect.custom](): string {
    return `Membership(${this.name} ${this.id.slice(0, 8)})`
  }

  /** The policy in force may be another one now. */
  #settlePolicy(): void {
    const policy = this.#newestPolicy()
    if (policy === this.#policy) return
    this.#policy = policy
    this.#tell('policy')
  }

  #newestPolicy(): Policy | undefined {
    return [...this.#policies.values()]
      .filter(({ statement, delegation }) => delegation === undefined || !this.revocations.isVoid(statement))
      .sort(comparePolicies)
      .at(-1)
  }

  #boundPolicies(): void {
    const delegates = [...this.#policies.values()].filter(({ delegation }) => delegation !== undefined)
    for (const { statement } of delegates.sort(comparePolicies).slice(0, -POLICIES_KEPT_MAX)) {
      const issuer = hexOf(statement.issuer)
      this.#options.rows.dropStatement(this.id, 'policy', issuer)
      this.#policies.delete(issuer)
    }
  }

  #dropEndedDelegations(): void {
    for (const [key, { notAfter }] of this.#delegations) {
      if (notAfter > this.#options.now()) continue
      this.#options.rows.dropStatement(this.id, 'delegation', key)
      this.#delegations.delete(key)
    }
  }

  #load(kind: StatementKind, take: (bytes: Uint8Array) => void): void {
    for (const bytes of this.#options.rows.statements(this.id, kind)) {
      try {
        take(bytes)
      } catch (error) {
        if (!(error instanceof WireError)) throw error
        this.#options.log.error({ network: this.id, kind, reason: reasonOf(error) }, 'statement.unreadable')
      }
    }
  }

  #tell(what: MembershipChange): void {
    for (const listener of this.#listeners) listener(what)
  }
}

/** A policy is judged again whenever something is revoked, not when it is read. */
const NOTHING_VOID = { isVoid: () => false }
