/**
 * Who is in a network: a member's certificate, the delegation of whoever issued it, and the judgement over both. See spec.md beside
 * this file.
 *
 * The root key of a network is named by the network's id, so a chain brings everything that is needed to judge it: nothing is looked
 * up but what was revoked.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import { networkOf } from './network.ts'
import {
  bytes32,
  encodeStatement,
  type Form,
  fitsName,
  isLabelValue,
  isSigned,
  LIFETIME_MS_MAX,
  labelMap,
  memberName,
  parseStatement,
  SKEW_MS_MAX,
  STATEMENT_BYTES_MAX,
  type Statement,
  type StatementSigner,
  sameBytes,
  timeMs,
} from './statement.ts'
import { NAME_GLOB_PATTERN } from './words.ts'

/** A statement, its delegation, and what surrounds them. */
export const CHAIN_BYTES_MAX = 2 * STATEMENT_BYTES_MAX + 16
/** Names and label values that a delegation lists. */
const LISTED_MAX = 16
/** Chains that are kept as they were read, and once found well signed are not checked again: the same peers come again and again. 4 KB each. */
const CHAINS_KEPT_MAX = 1_024

/** The words for what a chain lacks. They travel, so that the other side can tell its people. */
export type Fault =
  /** Not of this network, or signed by a key that nobody of this network gave a right to. */
  | 'foreign'
  /** Of another key than that of who shows it. */
  | 'not-yours'
  | 'bad-signature'
  /** The issuer gave what it had no right to give. */
  | 'exceeds'
  | 'not-yet-valid'
  | 'expired'
  | 'revoked'
  | 'issuer-revoked'

const lifetime = { issued: timeMs, notBefore: timeMs, notAfter: timeMs }

const certificateFields = z
  .strictObject({
    v: z.literal(1),
    network: bytes32,
    subject: bytes32,
    name: memberName,
    labels: labelMap(isLabelValue),
    ...lifetime,
    issuer: bytes32,
  })
  .refine(hasLifetime, 'not a lifetime')

/** A right that is not known gives nothing here, so later versions may have more. */
const right = z.string().regex(/^[a-z-]{1,32}$/, 'not a right')

const delegationFields = z
  .strictObject({
    v: z.literal(1),
    network: bytes32,
    subject: bytes32,
    may: z.array(right).min(1).max(8),
    names: z.array(z.string().regex(NAME_GLOB_PATTERN, 'not a pattern of names')).max(LISTED_MAX).optional(),
    labels: labelMap(isListOfValues).optional(),
    lifetimeMsMax: timeMs,
    ...lifetime,
    issuer: bytes32,
  })
  .refine(hasLifetime, 'not a lifetime')

export type CertificateFields = z.infer<typeof certificateFields>
export type DelegationFields = z.infer<typeof delegationFields>
type Certificate = Statement<CertificateFields>
export type Delegation = Statement<DelegationFields>
/** What a delegation can give. */
export type Right = 'issue' | 'revoke' | 'policy'

const CERTIFICATE: Form<CertificateFields> = {
  domain: 'undernet/member/1\0',
  schema: certificateFields,
  bytesMax: STATEMENT_BYTES_MAX,
}
const DELEGATION: Form<DelegationFields> = {
  domain: 'undernet/issuer/1\0',
  schema: delegationFields,
  bytesMax: STATEMENT_BYTES_MAX,
}

/** A statement with the delegation of its issuer; without one the issuer is the root key. */
export type Endorsed<T> = {
  readonly statement: Statement<T>
  readonly delegation: Delegation | undefined
  /** Both together, as they travel and are stored. */
  readonly bytes: Uint8Array
}

/** A member's certificate with what makes it one. */
export type Chain = Endorsed<CertificateFields>

/** A member, as a chain that was judged good says. */
export type Member = {
  readonly network: Uint8Array
  /** The node's raw Ed25519 public key. */
  readonly key: Uint8Array
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly issued: number
  readonly notAfter: number
  /** The key that signed the certificate: the root's, or a delegate's. */
  readonly issuer: Uint8Array
  readonly chain: Chain
}

/** What is known to stand against a member; see Revocations. */
export type RevocationCheck = {
  faultOf(member: Pick<Member, 'key' | 'issuer' | 'issued'>): 'revoked' | 'issuer-revoked' | undefined
}

export type JudgedBy = {
  readonly network: Uint8Array
  /** Whose chain it must be: the key that the secure channel proved. */
  readonly subject: Uint8Array
  readonly now: number
  readonly revocations: RevocationCheck
}

export type Refusal = { readonly fault: Fault; readonly why: string }
export type Verdict = { readonly member: Member } | Refusal

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function issueCertificate(
  fields: Omit<CertificateFields, 'v' | 'issuer'>,
  issuer: StatementSigner,
  delegation?: Delegation,
): Chain {
  const certificate = encodeStatement<CertificateFields>(
    CERTIFICATE,
    { v: 1, ...fields, issuer: issuer.publicKey },
    issuer,
  )
  return endorse(certificate, delegation)
}

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function issueDelegation(fields: Omit<DelegationFields, 'v' | 'issuer'>, root: StatementSigner): Delegation {
  return encodeStatement(DELEGATION, { v: 1, ...fields, issuer: root.publicKey }, root)
}

export function endorse<T>(statement: Statement<T>, delegation: Delegation | undefined): Endorsed<T> {
  const parts = delegation === undefined ? [statement.bytes] : [statement.bytes, delegation.bytes]
  return { statement, delegation, bytes: encodeCbor(parts) }
}

/**
 * Reads a statement and its delegation. Signatures and everything that depends on other things are not looked at.
 *
 * @throws {WireError} `too-large`, `malformed`
 */
export function decodeEndorsed<T>(form: Form<T>, bytes: Uint8Array): Endorsed<T> {
  if (bytes.byteLength > form.bytesMax + STATEMENT_BYTES_MAX + 16) throw new WireError('too-large', 'too many bytes')
  const [first, second] = decodeCbor(bytes, z.array(z.instanceof(Uint8Array)).min(1).max(2))
  if (first === undefined) throw new WireError('malformed', 'no statement')
  const statement = parseStatement(form, first)
  return { statement, delegation: second && parseStatement(DELEGATION, second), bytes }
}

/** @throws {WireError} `too-large`, `malformed` */
export function decodeChain(bytes: Uint8Array): Chain {
  if (bytes.byteLength > CHAIN_BYTES_MAX) throw new WireError('too-large', `a chain of ${bytes.byteLength} bytes`)
  const name = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
  const kept = chainsKept.get(name)
  if (kept !== undefined) return kept
  // A copy: what arrived may be part of a much larger buffer.
  const chain = decodeEndorsed(CERTIFICATE, Uint8Array.from(bytes))
  if (chainsKept.size >= CHAINS_KEPT_MAX) chainsKept.clear()
  chainsKept.set(name, chain)
  return chain
}

/** @throws {WireError} `too-large`, `malformed` */
export function decodeDelegation(bytes: Uint8Array): Delegation {
  return parseStatement(DELEGATION, bytes)
}

/**
 * Reads a delegation and checks that the root of this network gave it. Whether it is in its time is not looked at.
 *
 * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
 */
export function verifyDelegation(bytes: Uint8Array, network: Uint8Array): Delegation {
  const delegation = decodeDelegation(bytes)
  if (!sameBytes(delegation.network, network) || !sameBytes(networkOf(delegation.issuer), network))
    throw new WireError('refused', 'the delegation is not by the root key of this network')
  if (!isSigned(DELEGATION, delegation, delegation.issuer))
    throw new WireError('bad-signature', 'the signature of a delegation does not fit')
  return delegation
}

/** Whether the chain makes its subject a member now, and if not, why. Depends on nothing but its arguments. */
export function judgeChain(chain: Chain, by: JudgedBy): Verdict {
  const { statement: certificate, delegation } = chain
  const { subject, name, labels: given, issued, notBefore, notAfter, issuer } = certificate
  if (!sameBytes(certificate.network, by.network)) return no('foreign', 'the certificate is of another network')
  if (!sameBytes(subject, by.subject)) return no('not-yours', `the certificate of "${name}" is of another key`)
  const fault = endorsementFault(CERTIFICATE, chain, 'issue') ?? excessOf(certificate, delegation)
  if (fault !== undefined) return fault
  if (by.now + SKEW_MS_MAX < notBefore)
    return no('not-yet-valid', `the certificate of "${name}" begins at ${iso(notBefore)}, and it is ${iso(by.now)}`)
  if (by.now >= notAfter) return no('expired', `the certificate of "${name}" ended at ${iso(notAfter)}`)
  const member = { network: by.network, key: subject, name, labels: given, issued, notAfter, issuer, chain }
  const revoked = by.revocations.faultOf(member)
  if (revoked === 'revoked') return no(revoked, `the key of "${name}" was revoked`)
  if (revoked !== undefined) return no(revoked, `whoever issued the certificate of "${name}" was revoked`)
  return { member }
}

/** Reads and judges a chain. @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused` */
export function verifyChain(bytes: Uint8Array, by: JudgedBy): Member {
  const verdict = judgeChain(decodeChain(bytes), by)
  if ('member' in verdict) return verdict.member
  throw new WireError(verdict.fault === 'bad-signature' ? 'bad-signature' : 'refused', verdict.why)
}

/**
 * What is wrong with a statement's issuer: it must be the root of the statement's network, or hold a right from it at the time of
 * issue. Both signatures are checked.
 */
export function endorsementFault<T extends { network: Uint8Array; issuer: Uint8Array; issued: number }>(
  form: Form<T>,
  endorsed: Endorsed<T>,
  needed: Right,
): Refusal | undefined {
  const { statement, delegation } = endorsed
  const root = delegation?.issuer ?? statement.issuer
  if (!sameBytes(networkOf(root), statement.network)) return no('foreign', 'not issued by this network')
  if (delegation !== undefined) {
    if (!sameBytes(delegation.network, statement.network)) return no('foreign', 'the delegation is of another network')
    if (!sameBytes(delegation.subject, statement.issuer)) return no('foreign', 'the delegation is of another key')
  }
  if (!wellSigned.has(endorsed)) {
    const good = isSigned(form, statement, statement.issuer) && (!delegation || isSigned(DELEGATION, delegation, root))
    if (!good) return no('bad-signature', 'a signature does not fit')
    wellSigned.add(endorsed)
  }
  if (delegation === undefined) return undefined
  if (!delegation.may.includes(needed)) return no('exceeds', `its issuer has no right to ${needed}`)
  if (statement.issued < delegation.notBefore || statement.issued >= delegation.notAfter)
    return no('exceeds', 'it was issued outside the time of its issuer')
  return undefined
}

/** What a delegate gave and was not given itself. */
function excessOf(certificate: Certificate, delegation: Delegation | undefined): Refusal | undefined {
  if (delegation === undefined) return undefined
  const { names, labels: allowed, lifetimeMsMax } = delegation
  if (certificate.notAfter > delegation.notAfter) return no('exceeds', 'the certificate outlives its issuer')
  if (certificate.notAfter - certificate.issued > lifetimeMsMax)
    return no('exceeds', 'the certificate lives longer than its issuer may give')
  if (names !== undefined && !names.some((pattern) => fitsName(pattern, certificate.name)))
    return no('exceeds', `its issuer may not give the name "${certificate.name}"`)
  for (const [key, value] of Object.entries(certificate.labels)) {
    const values = allowed && Object.hasOwn(allowed, key) ? allowed[key] : undefined
    if (allowed !== undefined && !(values?.includes(value) || values?.includes('*')))
      return no('exceeds', `its issuer may not give the label ${key}=${value}`)
  }
  return undefined
}

/** By all of their bytes. */
const chainsKept = new Map<string, Chain>()
/** What was read and checked; it never changes. */
const wellSigned = new WeakSet<object>()

function no(fault: Fault, why: string): Refusal {
  return { fault, why }
}

function iso(ms: number): string {
  return new Date(Math.min(ms, 8.64e15)).toISOString()
}

/** `*` stands for any value. */
function isListOfValues(value: unknown): value is string[] {
  return Array.isArray(value) && value.length <= LISTED_MAX && value.every((one) => one === '*' || isLabelValue(one))
}

/** Issued before or when it begins; ends after it begins; no longer than anything may be. */
function hasLifetime({
  issued,
  notBefore,
  notAfter,
}: {
  issued: number
  notBefore: number
  notAfter: number
}): boolean {
  return issued <= notBefore && notBefore < notAfter && notAfter - issued <= LIFETIME_MS_MAX
}
