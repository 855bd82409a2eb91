/**
 * What this node signs for a network: certificates of others and its own, delegations, revocations, policies. It can as long as the root
 * key is here, or the root delegated to it.
 *
 * Of each member that it certified it keeps the newest certificate: so that names stay one key's as far as it knows, and so that labels
 * that were given to a member that is away are given when it comes back, and never taken back by an older certificate.
 */
import { WireError } from '../../protocols/error.ts'
import {
  type Chain,
  type Delegation,
  decodeChain,
  issueCertificate,
  issueDelegation,
  judgeChain,
  type Member,
  type Refusal,
  type Right,
} from '../../protocols/membership/certificate.ts'
import { type Grant, issuePolicy, type Policy } from '../../protocols/membership/policy.ts'
import { issueRevocation, type Revocation } from '../../protocols/membership/revocation.ts'
import { hexOf, SKEW_MS_MAX, sameBytes } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'
import { type Database, durably, migrate } from '../state/database.ts'
import { checkLabels, memberNameFor } from './member-names.ts'
import type { Issuing, Membership } from './membership.ts'

/** Of a certificate. It renews at half of it: a machine may be off for six weeks and come back by itself. */
export const LIFETIME_MS = 90 * 24 * 3_600_000
/** Who asks again within this time gets the same certificate again: the answer was lost, or somebody asks for the fun of it. */
const SAME_AGAIN_MS = 10 * 60_000

/** After those of Networks. */
const SCHEMA = [
  `CREATE TABLE issued_certificates (
     network TEXT NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
     subject TEXT NOT NULL,
     name TEXT NOT NULL,
     not_after_ms INTEGER NOT NULL,
     lifetime_ms INTEGER,
     is_owed INTEGER NOT NULL,
     chain BLOB NOT NULL,
     PRIMARY KEY (network, subject)
   ) STRICT;
   CREATE INDEX issued_certificates_by_name ON issued_certificates (network, name);`,
]

/** What is known of a network's members from what they say, beside what was issued here. */
export type Roll = {
  /** The key of the member that is called so. */
  holderOf(name: string): Uint8Array | undefined
  memberOf(key: Uint8Array): Dated | undefined
}

export type Wanted = {
  readonly subject: Uint8Array
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  /** LIFETIME_MS, or as long as the delegation allows. */
  readonly lifetimeMs?: number | undefined
}

export type DelegationWish = {
  readonly may: readonly Right[]
  readonly names?: readonly string[]
  readonly labels?: Readonly<Record<string, readonly string[]>>
  /** Of the certificates that it gives. */
  readonly lifetimeMsMax?: number
  readonly notAfter: number
}

export type RevocationWish = {
  readonly key: Uint8Array
  readonly scope: 'member' | 'issuer'
  readonly issuedAfter?: number | undefined
  readonly reason?: string | undefined
}

type Row = { lifetime_ms: number | null; is_owed: number; chain: Uint8Array }
type Dated = Pick<Member, 'name' | 'labels' | 'issued'>
/** The newest certificate that was issued here. */
type Issued = { readonly chain: Chain; readonly isOwed: boolean; readonly lifetimeMs: number | undefined }

export type IssuerOptions = {
  readonly db: Database
  readonly now?: () => number
  /** Of a network, by its id. */
  readonly roll?: (id: string) => Roll | undefined
}

export class Issuer {
  readonly #db: Database
  readonly #now: () => number
  readonly #roll: (id: string) => Roll | undefined

  constructor({ db, now = Date.now, roll = () => undefined }: IssuerOptions) {
    migrate(db, 'issuing', SCHEMA)
    this.#db = db
    this.#now = now
    this.#roll = roll
  }

  /**
   * A certificate for a new member, or another one for a member.
   *
   * @throws {AgentError} `not-allowed` when this node may not give it, `usage` when nobody could
   */
  issue(membership: Membership, wanted: Wanted): Chain {
    return this.#issue(membership, wanted, false)
  }

  /** Whether it could be issued. @throws {AgentError} as `issue` */
  check(membership: Membership, wanted: Wanted): void {
    way(membership, 'issue')
    const chain = this.#certify(membership, wanted)
    if ('fault' in chain) throw new AgentError('not-allowed', chain.why)
  }

  /**
   * A later certificate for whoever is a member now; or what stands against that. `shown` is the certificate by which it is one; the newest
   * that was issued here if not given. This node itself gets one also when its own has ended: if it may certify others, why not itself.
   */
  renew(membership: Membership, subject: Uint8Array, shown?: Chain): Chain | Refusal {
    const isOwn = sameBytes(subject, membership.self.key)
    const chain = shown ?? (isOwn ? membership.chain : this.#issued(membership.id, subject)?.chain)
    if (chain === undefined) return { fault: 'foreign', why: 'no certificate of this key is known here' }
    const fault = this.#faultOf(membership, chain, subject)
    if (fault !== undefined && !(isOwn && fault.fault === 'expired')) return fault
    const present = chain.statement
    const issued = this.#seen(membership, chain)
    if (issued !== undefined && this.#isFresh(membership, issued.chain, present.issued)) return issued.chain
    const { name, labels } = this.#newest(membership, subject, issued, present) ?? present
    const lifetimeMs = issued?.lifetimeMs
    const later = this.#certify(membership, { subject, name, labels, lifetimeMs }, present.issued)
    if (!('fault' in later)) this.#note(membership, later, { lifetimeMs, isOwed: issued?.isOwed ?? false })
    return later
  }

  /** What a member that is connected should get without asking: the labels that it was given while it was away. */
  owed(membership: Membership, shown: Chain): Chain | undefined {
    if (!this.#seen(membership, shown)?.isOwed || membership.can('issue') === undefined) return undefined
    const chain = this.renew(membership, shown.statement.subject, shown)
    return 'fault' in chain ? undefined : chain
  }

  /**
   * Another certificate for a member, with these labels and no others. Until the member was seen with it, it is owed.
   *
   * @throws {AgentError} as `issue`
   */
  relabel(
    membership: Membership,
    member: Pick<Member, 'key' | 'name'>,
    labels: Readonly<Record<string, string>>,
  ): Chain {
    const lifetimeMs = this.#issued(membership.id, member.key)?.lifetimeMs
    return this.#issue(membership, { subject: member.key, name: member.name, labels, lifetimeMs }, true)
  }

  /**
   * A name that no other member has, as far as this node knows.
   *
   * @throws {AgentError} `not-allowed` when this node may give none
   */
  nameFor(membership: Membership, key: Uint8Array, wished?: string, pattern?: string): string {
    const allowed = membership.can('issue')?.delegation?.names
    return memberNameFor({ key, wished, pattern, allowed, isTaken: (name) => this.#isTaken(membership, key, name) })
  }

  /** The name and labels that a member has or is to have; undefined when nothing is known of the key. */
  known(membership: Membership, key: Uint8Array): Pick<Member, 'name' | 'labels'> | undefined {
    return this.#newest(membership, key, this.#issued(membership.id, key))
  }

  /**
   * Lets another key sign for the network, within limits and for a time.
   *
   * @throws {AgentError} `not-allowed` when the root key is not here or the key was revoked, `usage`
   */
  delegate(membership: Membership, subject: Uint8Array, wish: DelegationWish): Delegation {
    const { signer } = this.#root(membership, 'delegates')
    const { network, revocations } = membership
    const now = this.#now()
    if (revocations.isRevoked(subject) || revocations.isVoid({ issuer: subject, issued: now }))
      throw new AgentError('not-allowed', 'the key was revoked, which is for good')
    // The delegate's clock may be behind this one, and what it signs counts from here on.
    const issued = now - SKEW_MS_MAX
    const { may, names, labels, lifetimeMsMax = LIFETIME_MS, notAfter } = wish
    const delegation = valid('delegation', () =>
      issueDelegation(
        {
          network,
          subject,
          may: [...may],
          ...(names && { names: [...names] }),
          ...(labels && { labels: Object.fromEntries(Object.entries(labels).map(([key, list]) => [key, [...list]])) }),
          lifetimeMsMax,
          issued,
          notBefore: issued,
          notAfter,
        },
        signer,
      ),
    )
    membership.takeDelegation(delegation.bytes)
    return delegation
  }

  /**
   * Puts a key out of the network, or out of issuing, for good.
   *
   * @throws {AgentError} `not-allowed`, `usage`
   */
  revoke(membership: Membership, { key, scope, issuedAfter, reason }: RevocationWish): Revocation {
    if (scope === 'member' && sameBytes(key, membership.self.key))
      throw new AgentError('usage', 'this is the key of this node itself, and revoking is for good', {
        next: 'Leave the network with `agent network leave`; or revoke it from another node.',
      })
    const { signer, delegation } =
      scope === 'issuer' ? this.#root(membership, 'revokes issuers') : way(membership, 'revoke')
    const fields = {
      network: membership.network,
      key,
      scope,
      issued: this.#now(),
      ...(issuedAfter !== undefined && { issuedAfter }),
      ...(reason !== undefined && { reason }),
    }
    const revocation = valid('revocation', () => issueRevocation(fields, signer, delegation))
    membership.takeRevocation(revocation.bytes, { isOwn: true })
    return revocation
  }

  /**
   * Replaces the policy.
   *
   * @throws {AgentError} `not-allowed`, `usage`
   */
  setPolicy(membership: Membership, grants: readonly Grant[]): Policy {
    const { signer, delegation } = way(membership, 'policy')
    const version = (membership.policy?.statement.version ?? 0) + 1
    const fields = { network: membership.network, version, grants: [...grants], issued: this.#now() }
    const policy = valid('policy', () => issuePolicy(fields, signer, delegation))
    membership.takePolicy(policy.bytes)
    return policy
  }

  #issue(membership: Membership, wanted: Wanted, isOwed: boolean): Chain {
    way(membership, 'issue')
    const { subject, lifetimeMs } = wanted
    const known = this.#roll(membership.id)?.memberOf(subject)?.issued ?? 0
    const chain = this.#certify(membership, wanted, known)
    if ('fault' in chain) throw new AgentError('not-allowed', chain.why)
    this.#note(membership, chain, { lifetimeMs, isOwed })
    return chain
  }

  /** By the first of the ways to sign that allows it; `after` is when the certificate that it replaces was issued. */
  #certify(membership: Membership, wanted: Wanted, after = 0): Chain | Refusal {
    const { subject, name, labels, lifetimeMs = LIFETIME_MS } = wanted
    checkLabels(labels)
    if (membership.revocations.isRevoked(subject)) return { fault: 'revoked', why: `the key of "${name}" was revoked` }
    const issued = this.#timeAfter(Math.max(after, this.#issued(membership.id, subject)?.chain.statement.issued ?? 0))
    let refusal: Refusal = { fault: 'exceeds', why: 'this node may not issue certificates' }
    for (const { signer, delegation } of membership.ways('issue')) {
      const notAfter = Math.min(
        issued + Math.min(lifetimeMs, delegation?.lifetimeMsMax ?? Number.POSITIVE_INFINITY),
        delegation?.notAfter ?? Number.POSITIVE_INFINITY,
      )
      if (notAfter <= issued) continue
      const fields = { network: membership.network, subject, name, labels, issued, notBefore: issued, notAfter }
      const chain = valid('certificate', () =>
        issueCertificate({ ...fields, labels: { ...labels } }, signer, delegation),
      )
      const fault = this.#faultOf(membership, chain, subject)
      if (fault === undefined) return chain
      refusal = fault
    }
    return refusal
  }

  /** Now, and later than that, so that the newer one is seen to be so. A time from a clock that was far ahead does not count. */
  #timeAfter(issued: number): number {
    const now = this.#now()
    return issued >= now && issued < now + SKEW_MS_MAX ? issued + 1 : now
  }

  #faultOf({ network, revocations }: Membership, chain: Chain, subject: Uint8Array): Refusal | undefined {
    const verdict = judgeChain(chain, { network, subject, now: this.#now(), revocations })
    return 'fault' in verdict ? verdict : undefined
  }

  /** Whether it was issued just now, after the one that the member shows. */
  #isFresh(membership: Membership, chain: Chain, shownIssued: number): boolean {
    const { issued, notAfter, subject } = chain.statement
    const isRecent = Math.abs(this.#now() - issued) < Math.min(SAME_AGAIN_MS, (notAfter - issued) / 4)
    return isRecent && issued > shownIssued && this.#faultOf(membership, chain, subject) === undefined
  }

  /** What was said of a member last: what it is owed, or else what was issued here, what it says of itself, or what it shows. */
  #newest({ id }: Membership, key: Uint8Array, issued: Issued | undefined, shown?: Dated): Dated | undefined {
    if (issued?.isOwed) return issued.chain.statement
    const all = [issued?.chain.statement, this.#roll(id)?.memberOf(key), shown].filter((one) => one !== undefined)
    return all.reduce<Dated | undefined>((best, one) => (best && best.issued >= one.issued ? best : one), undefined)
  }

  /** What was issued here to the member that shows this certificate. What it shows it is owed no more. */
  #seen(membership: Membership, { statement }: Chain): Issued | undefined {
    const issued = this.#issued(membership.id, statement.subject)
    if (!issued?.isOwed || !isSame(statement, issued.chain.statement)) return issued
    durably(this.#db, () =>
      this.#db
        .prepare('UPDATE issued_certificates SET is_owed = 0 WHERE network = ? AND subject = ?')
        .run(membership.id, hexOf(statement.subject)),
    )
    return { ...issued, isOwed: false }
  }

  #issued(id: string, key: Uint8Array): Issued | undefined {
    const row = this.#db
      .prepare('SELECT * FROM issued_certificates WHERE network = ? AND subject = ?')
      .get(id, hexOf(key)) as Row | undefined
    const chain = row && readable(row.chain)
    if (row === undefined || chain === undefined) return undefined
    return { chain, isOwed: row.is_owed === 1, lifetimeMs: row.lifetime_ms ?? undefined }
  }

  #note({ id }: Membership, chain: Chain, { lifetimeMs, isOwed }: Pick<Issued, 'lifetimeMs' | 'isOwed'>): void {
    const { subject, name, notAfter } = chain.statement
    durably(this.#db, () => {
      this.#db.prepare('DELETE FROM issued_certificates WHERE not_after_ms < ?').run(this.#now() - LIFETIME_MS)
      this.#db
        .prepare('INSERT OR REPLACE INTO issued_certificates VALUES (?, ?, ?, ?, ?, ?, ?)')
        .run(id, hexOf(subject), name, notAfter, lifetimeMs ?? null, isOwed ? 1 : 0, chain.bytes)
    })
  }

  #isTaken({ id, self, revocations }: Membership, key: Uint8Array, name: string): boolean {
    if (self.name === name && !sameBytes(self.key, key)) return true
    const holder = this.#roll(id)?.holderOf(name)
    if (holder !== undefined && !sameBytes(holder, key)) return true
    const rows = this.#db
      .prepare(
        'SELECT subject FROM issued_certificates WHERE network = ? AND name = ? AND subject != ? AND not_after_ms > ?',
      )
      .all(id, name, hexOf(key), this.#now()) as { subject: string }[]
    return rows.some(({ subject }) => !revocations.isRevoked(Buffer.from(subject, 'hex')))
  }

  #root(membership: Membership, does: string): Issuing {
    const found = membership.ways('issue').find(({ delegation }) => delegation === undefined)
    if (found !== undefined) return found
    throw new AgentError(
      'not-allowed',
      `only the root key of "${membership.name}" ${does}, and it is not on this node`,
      {
        next: `Bring it here with \`agent network import-root ${membership.name} FILE\`.`,
      },
    )
  }
}

function way(membership: Membership, right: Right): Issuing {
  const found = membership.can(right)
  if (found !== undefined) return found
  const words = { issue: 'let others in', revoke: 'revoke members', policy: 'set the policy' }
  throw new AgentError('not-allowed', `this node may not ${words[right]} in "${membership.name}"`, {
    next: 'Ask a node that has the root key, to do it or to delegate it to this one: `agent network delegate`.',
  })
}

/** What would be refused by its readers is the wish of somebody here. */
function valid<T>(what: string, make: () => T): T {
  try {
    return make()
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw new AgentError('usage', `there can be no such ${what}: ${reasonOf(cause.cause ?? cause)}`, { cause })
  }
}

/** Undefined for what a later or broken version left. */
function readable(bytes: Uint8Array): Chain | undefined {
  try {
    return decodeChain(bytes)
  } catch (error) {
    if (error instanceof WireError) return undefined
    throw error
  }
}

function isSame(a: Omit<Dated, 'issued'>, b: Omit<Dated, 'issued'>): boolean {
  const labels = Object.entries(a.labels)
  return (
    a.name === b.name &&
    labels.length === Object.keys(b.labels).length &&
    labels.every(([key, value]) => Object.hasOwn(b.labels, key) && b.labels[key] === value)
  )
}
