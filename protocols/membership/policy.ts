/**
 * Who may do what in a network: the signed policy document, and the one function that decides. See spec.md beside this file.
 *
 * Grants only add: what no grant gives is denied, so a selector or verb of a later version, which matches nothing here, is safe to keep.
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
import { bytes32, encodeStatement, type Form, fitsName, type StatementSigner, sameBytes, timeMs } from './statement.ts'
import {
  LABEL_KEY_PATTERN,
  LABEL_VALUE_PATTERN,
  NAME_GLOB_PATTERN,
  NAME_PATTERN,
  REPOSITORY_GLOB_PATTERN,
  REPOSITORY_PATTERN,
} from './words.ts'

/** With its delegation, and whatever carries it, a policy fits one record. */
export const POLICY_BYTES_MAX = 48 * 1024
export const GRANTS_MAX = 512
export const VERBS_PER_GRANT_MAX = 32

/** Verbs that stand alone, those that name a service, and those that name a repository of images, or several by how they begin. */
const VERBS = ['content:fetch', 'content:publish', 'content:sign', 'relay:use', 'api:read', 'api:admin'] as const
const NAMED_VERBS = ['service:connect', 'service:offer'] as const
const IMAGE_VERBS = ['image:pull', 'image:push', 'image:private'] as const
/** Of what follows a verb in a grant; longer names are granted by their beginning. */
export const VERB_NAME_LENGTH_MAX = 64

/** What is read of any version: a word, and what may follow it. */
const selector = z.string().regex(/^[!-~]{1,128}$/, 'not a selector')
const verb = z.string().regex(/^[a-z]{1,32}:[a-z]{1,32}( [!-~]{1,64})?$/, 'not a verb')

const grant = z.strictObject({
  from: selector,
  to: selector,
  allow: z.array(verb).min(1).max(VERBS_PER_GRANT_MAX),
})
const policyFields = z.strictObject({
  v: z.literal(1),
  network: bytes32,
  /** The higher replaces the lower. */
  version: timeMs.min(1),
  grants: z.array(grant).max(GRANTS_MAX),
  issued: timeMs,
  issuer: bytes32,
})

export type Grant = z.infer<typeof grant>
export type PolicyFields = z.infer<typeof policyFields>
export type Policy = Endorsed<PolicyFields>

const POLICY: Form<PolicyFields> = { domain: 'undernet/policy/1\0', schema: policyFields, bytesMax: POLICY_BYTES_MAX }

/** Of a new network: what a newcomer would expect to work. */
export const DEFAULT_GRANTS: readonly Grant[] = [
  { from: '*', to: '*', allow: ['content:fetch', 'content:publish', 'relay:use', 'image:pull *', 'image:push *'] },
]

/** Of a member, what selectors look at. */
export type Subject = Pick<Member, 'name' | 'labels'>

export type Decision =
  /** `text` is the grant as people write it; `index` its place in the document. */
  | { readonly allowed: true; readonly rule: { readonly index: number; readonly text: string } }
  /** What would have to be there. */
  | { readonly allowed: false; readonly missing: string }

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function issuePolicy(
  fields: Omit<PolicyFields, 'v' | 'issuer'>,
  issuer: StatementSigner,
  delegation?: Delegation,
): Policy {
  return endorse(encodeStatement(POLICY, { v: 1, ...fields, issuer: issuer.publicKey }, issuer), delegation)
}

/**
 * Reads a policy and checks that whoever signed it had the right to when it was issued.
 *
 * @throws {WireError} `too-large`, `malformed`, `bad-signature`, `refused`
 */
export function decodePolicy(
  bytes: Uint8Array,
  network: Uint8Array,
  revocations: { isVoid(statement: { issuer: Uint8Array; issued: number }): boolean },
): Policy {
  const policy = decodeEndorsed(POLICY, bytes)
  if (!sameBytes(policy.statement.network, network)) throw new WireError('refused', 'the policy is of another network')
  const fault = endorsementFault(POLICY, policy, 'policy')
  if (fault !== undefined)
    throw new WireError(fault.fault === 'bad-signature' ? 'bad-signature' : 'refused', `a policy: ${fault.why}`)
  if (policy.delegation !== undefined && revocations.isVoid(policy.statement))
    throw new WireError('refused', 'a policy: its issuer was revoked')
  return policy
}

/** Total order of a network's policies: positive when `a` replaces `b`, 0 when they are the same. */
export function comparePolicies({ statement: a }: Policy, { statement: b }: Policy): number {
  return a.version - b.version || Buffer.compare(a.id, b.id)
}

/**
 * Whether `from` may do `verb` at `to`, and by which grant. The only place where this is decided.
 *
 * `verb` is one that selects nothing: `service:connect web`, not `service:connect *`.
 */
export function decide(
  policy: Pick<PolicyFields, 'grants'> | undefined,
  from: Subject,
  to: Subject,
  verb: string,
): Decision {
  if (policy === undefined)
    return { allowed: false, missing: 'this node has not received the policy of the network yet' }
  const fault = verbFault(verb)
  if (fault !== undefined || verb.endsWith('*'))
    return {
      allowed: false,
      missing: fault ?? `${verb} names no ${verb.startsWith('image:') ? 'repository' : 'service'}`,
    }
  const { grants } = policy
  const index = grants.findIndex((one) => isGiven(one, verb) && selects(one.from, from) && selects(one.to, to))
  const found = grants[index]
  if (found !== undefined) return { allowed: true, rule: { index, text: grantText(found) } }
  return { allowed: false, missing: missingText(grants, from, to, verb) }
}

/** `web1 -> label:zone=a: service:connect db`. */
function grantText({ from, to, allow }: Grant): string {
  return `${from} -> ${to}: ${allow.join(', ')}`
}

/** What is wrong with a verb, for whoever wrote it; undefined when nothing. A `*` may stand for any service, or any repository. */
export function verbFault(verb: string): string | undefined {
  const [word = '', name, ...rest] = verb.split(' ')
  if ((VERBS as readonly string[]).includes(word))
    return name === undefined ? undefined : `${word} takes no name, and has "${name}"`
  if ((IMAGE_VERBS as readonly string[]).includes(word)) {
    if (name === undefined || rest.length > 0) return `${word} takes the name of one repository, PREFIX/* or *`
    return isRepositories(name) ? undefined : `"${name}" cannot be the name of a repository`
  }
  if (!(NAMED_VERBS as readonly string[]).includes(word)) return `"${verb}" is no verb; there are ${verbsText()}`
  if (name === undefined || rest.length > 0) return `${word} takes the name of one service, or *`
  return name === '*' || NAME_PATTERN.test(name) ? undefined : `"${name}" cannot be the name of a service`
}

/** What is wrong with a selector, for whoever wrote it; undefined when nothing. */
export function selectorFault(selector: string): string | undefined {
  if (selector === '*') return undefined
  const [, kind, rest = ''] = /^([a-z]+):(.*)$/.exec(selector) ?? []
  if (kind === 'name') return NAME_GLOB_PATTERN.test(rest) ? undefined : `"${rest}" cannot be a member's name`
  if (kind !== 'label') return `"${selector}" is no selector; there are *, name:NAME, label:KEY=VALUE`
  const [key, value] = labelIn(rest)
  if (!LABEL_KEY_PATTERN.test(key)) return `"${key}" cannot be a label`
  return LABEL_VALUE_PATTERN.test(value) ? undefined : `"${value}" cannot be the value of a label`
}

function verbsText(): string {
  const named = NAMED_VERBS.map((one) => `${one} NAME`)
  return [...VERBS, ...named, ...IMAGE_VERBS.map((one) => `${one} REPOSITORY`)].join(', ')
}

/** A repository, or all whose names begin with what stands before the `*`. The pattern of a name is slow on long ones that are none. */
function isRepositories(name: string): boolean {
  return name.endsWith('*') ? REPOSITORY_GLOB_PATTERN.test(name) : REPOSITORY_PATTERN.test(name)
}

/** A `*` after a space or a slash stands for whatever follows. */
function isGiven({ allow }: Grant, verb: string): boolean {
  return allow.some((one) => one === verb || (/[ /]\*$/.test(one) && verb.startsWith(one.slice(0, -1))))
}

/** A selector that is not known selects nobody. */
function selects(selector: string, { name, labels }: Subject): boolean {
  if (selector === '*') return true
  if (selector.startsWith('name:')) return fitsName(selector.slice(5), name)
  if (!selector.startsWith('label:')) return false
  const [key, value] = labelIn(selector.slice(6))
  return Object.hasOwn(labels, key) && labels[key] === value
}

function labelIn(text: string): [key: string, value: string] {
  const at = text.indexOf('=')
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}

function missingText(grants: readonly Grant[], from: Subject, to: Subject, verb: string): string {
  const wanted = `no grant gives ${verb} from ${subjectText(from)} to ${subjectText(to)}`
  const near = grants.find((one) => isGiven(one, verb))
  if (near !== undefined) {
    const who = selects(near.from, from) ? 'to' : 'from'
    return `${wanted}; the nearest, "${grantText(near)}", is ${who === 'to' ? `to ${near.to}` : `from ${near.from}`}`
  }
  const pair = grants.find((one) => selects(one.from, from) && selects(one.to, to))
  return pair === undefined ? wanted : `${wanted}; "${grantText(pair)}" does not name it`
}

function subjectText({ name, labels }: Subject): string {
  const all = Object.entries(labels).map(([key, value]) => `${key}=${value}`)
  return all.length === 0 ? name : `${name} (${all.join(', ')})`
}
