/**
 * Revocations: who is out of a network, named by key, for good. See spec.md beside this file.
 *
 * A set of them means the same in whatever order they came. Only the root's word on an issuer voids what that issuer revoked, so that
 * no two revocations can each undo the other.
 */
import { z } from 'zod'
import { WireError } from '../error.ts'
import {
  type Delegation,
  decodeEndorsed,
  type Endorsed,
  endorse,
  endorsementFault,
  type Member,
} from './certificate.ts'
import {
  bytes32,
  encodeStatement,
  type Form,
  hexOf,
  STATEMENT_BYTES_MAX,
  type StatementSigner,
  sameBytes,
  timeMs,
} from './statement.ts'
import { reasonFault } from './words.ts'

/** What one delegate can fill of every member's memory: some 10 MB. The root is not limited: it is the network. */
export const REVOCATIONS_PER_DELEGATE_MAX = 16_384

const revocationFields = z
  .strictObject({
    v: z.literal(1),
    network: bytes32,
    /** Whose. */
    key: bytes32,
    /** As what: its own membership, or its right to issue and what it issued. */
    scope: z.enum(['member', 'issuer']),
    /** What an issuer issued until then stays good. */
    issuedAfter: timeMs.optional(),
    /** For people; printable. */
    reason: z
      .string()
      .refine((text) => reasonFault(text) === undefined, { error: ({ input }) => reasonFault(input as string) ?? '' })
      .optional(),
    issued: timeMs,
    issuer: bytes32,
  })
  .refine(({ scope, issuedAfter }) => scope === 'issuer' || issuedAfter === undefined, 'issuedAfter is for issuers')

export type RevocationFields = z.infer<typeof revocationFields>
export type Revocation = Endorsed<RevocationFields>

const REVOCATION: Form<RevocationFields> = {
  domain: 'undernet/revocation/1\0',
  schema: revocationFields,
  bytesMax: STATEMENT_BYTES_MAX,
}

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function issueRevocation(
  fields: Omit<RevocationFields, 'v' | 'issuer'>,
  issuer: StatementSigner,
  delegation?: Delegation,
): Revocation {
  return endorse(encodeStatement(REVOCATION, { v: 1, ...fields, issuer: issuer.publicKey }, issuer), delegation)
}

/**
 * Reads a revocation and checks that whoever signed it may revoke that in this network. It stays good when the delegation ends.
 *
 * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
 */
export function decodeRevocation(bytes: Uint8Array, network: Uint8Array): Revocation {
  const revocation = decodeEndorsed(REVOCATION, bytes)
  if (!sameBytes(revocation.statement.network, network))
    throw new WireError('refused', 'the revocation is of another network')
  const fault = endorsementFault(REVOCATION, revocation, 'revoke')
  if (fault !== undefined)
    throw new WireError(fault.fault === 'bad-signature' ? 'bad-signature' : 'refused', `a revocation: ${fault.why}`)
  if (revocation.delegation !== undefined && revocation.statement.scope === 'issuer')
    throw new WireError('refused', 'only the root key revokes an issuer')
  return revocation
}

/** All revocations of one network that this node knows. */
export class Revocations {
  readonly network: Uint8Array
  readonly #all = new Map<string, Revocation>()
  readonly #ofMembers = new Map<string, Revocation[]>()
  readonly #ofIssuers = new Map<string, Revocation[]>()
  readonly #perDelegate = new Map<string, number>()

  constructor(network: Uint8Array) {
    this.network = network
  }

  /**
   * Adds what somebody handed in; false when it was known.
   *
   * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
   */
  add(bytes: Uint8Array): boolean {
    const revocation = decodeRevocation(bytes, this.network)
    const { statement, delegation } = revocation
    const id = hexOf(statement.id)
    if (this.#all.has(id)) return false
    const issuer = hexOf(statement.issuer)
    const count = (this.#perDelegate.get(issuer) ?? 0) + 1
    if (delegation !== undefined && count > REVOCATIONS_PER_DELEGATE_MAX)
      throw new WireError('too-large', `more than ${REVOCATIONS_PER_DELEGATE_MAX} revocations by one issuer`)
    this.#perDelegate.set(issuer, count)
    this.#all.set(id, revocation)
    const byKey = statement.scope === 'member' ? this.#ofMembers : this.#ofIssuers
    const key = hexOf(statement.key)
    byKey.set(key, [...(byKey.get(key) ?? []), revocation])
    return true
  }

  /** What was said, also what a revoked issuer said in vain. */
  list(): Revocation[] {
    return [...this.#all.values()]
  }

  /** Whether the key may be no member, whatever certificate it shows. */
  isRevoked(key: Uint8Array): boolean {
    return this.#inForce(key).length > 0
  }

  /** What stands against a member: its own key, its issuer, or when its issuer's key was revoked as a member before it issued. */
  faultOf(member: Pick<Member, 'key' | 'issuer' | 'issued'>): 'revoked' | 'issuer-revoked' | undefined {
    if (this.isRevoked(member.key)) return 'revoked'
    if (this.#isVoid(member.issuer, member.issued)) return 'issuer-revoked'
    const isLate = this.#inForce(member.issuer).some(({ statement }) => member.issued > statement.issued)
    return isLate ? 'issuer-revoked' : undefined
  }

  /** Whether the root took back what this issuer signed at that time. */
  isVoid(statement: { issuer: Uint8Array; issued: number }): boolean {
    return this.#isVoid(statement.issuer, statement.issued)
  }

  #isVoid(issuer: Uint8Array, issued: number): boolean {
    const against = this.#ofIssuers.get(hexOf(issuer)) ?? []
    return against.some(({ statement: { issuedAfter } }) => issuedAfter === undefined || issued > issuedAfter)
  }

  /** Revocations of a member's key, without those whose issuer the root took them back from. */
  #inForce(key: Uint8Array): Revocation[] {
    const against = this.#ofMembers.get(hexOf(key)) ?? []
    return against.filter(({ statement, delegation }) => delegation === undefined || !this.isVoid(statement))
  }
}
