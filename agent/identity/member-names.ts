/**
 * What members are called: host names made DNS labels, patterns filled, and names that are taken told apart by the key's hash.
 */
import { createHash } from 'node:crypto'
import { base32 } from 'multiformats/bases/base32'
import { fitsName } from '../../protocols/membership/statement.ts'
import { LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, LABELS_MAX, NAME_PATTERN } from '../../protocols/membership/words.ts'
import { AgentError } from '../error.ts'

/** Of who brings no name that can be one. */
const DEFAULT_PATTERN = 'node-*'
/** Of a DNS label. */
const NAME_LENGTH_MAX = 63
/** Five letters tell 33 million keys apart; the longer ones are for those that were made to look alike. */
const HASH_LENGTHS = [5, 10, 20, 40]
/** A host name has at most 253 characters; of longer texts the rest is not looked at. */
const WISH_LENGTH_MAX = 256

export type NameWish = {
  /** The member's raw key. */
  readonly key: Uint8Array
  /** What it would like to be called. Any text. */
  readonly wished?: string | undefined
  /** What the invitation says: a name, or a pattern with one `*`. */
  readonly pattern?: string | undefined
  /** Patterns of the names that this issuer may give; any if there are none. */
  readonly allowed?: readonly string[] | undefined
  /** Whether another key has the name. */
  readonly isTaken: (name: string) => boolean
}

/**
 * A name for a member. The invitation's decides; else the member's own wish, if it can be a name; and if the issuer may give neither, one
 * of those that it may give.
 *
 * @throws {AgentError} `not-allowed` when the issuer may give none of them
 */
export function memberNameFor({ key, wished, pattern, allowed, isTaken }: NameWish): string {
  const isGivable = (name: string) =>
    NAME_PATTERN.test(name) && (allowed?.some((one) => fitsName(one, name)) ?? true) && !isTaken(name)
  const wishes = pattern === undefined ? [wished && nameOf(wished), ...(allowed ?? []), DEFAULT_PATTERN] : [pattern]
  for (const wish of wishes) {
    if (wish === undefined || wish === '') continue
    for (const name of candidates(wish, hashOf(key))) if (isGivable(name)) return name
  }
  throw new AgentError('not-allowed', `this node may give no name like ${pattern ?? wished ?? DEFAULT_PATTERN}`)
}

/** The DNS label in a host name or another text; undefined when there is none in it. */
export function nameOf(text: string): string | undefined {
  const [host = ''] = text.slice(0, WISH_LENGTH_MAX).toLowerCase().split('.')
  const label = host
    .replaceAll(/[^a-z0-9-]+/g, '-')
    .slice(0, NAME_LENGTH_MAX)
    .replaceAll(/^-+|-+$/g, '')
  return NAME_PATTERN.test(label) ? label : undefined
}

/** @throws {AgentError} `usage` when they cannot be a member's labels */
export function checkLabels(labels: Readonly<Record<string, string>>): void {
  const entries = Object.entries(labels)
  if (entries.length > LABELS_MAX) throw new AgentError('usage', `a member has at most ${LABELS_MAX} labels`)
  for (const [key, value] of entries) {
    const isKey = LABEL_KEY_PATTERN.test(key)
    if (isKey && LABEL_VALUE_PATTERN.test(value)) continue
    const what = isKey
      ? `"${value.slice(0, 80)}" cannot be the value of a label`
      : `"${key.slice(0, 80)}" cannot be a label`
    throw new AgentError('usage', what, {
      next: 'A label is KEY=VALUE: letters, digits, dots and hyphens; keys in small letters, at most 32, values at most 63.',
    })
  }
}

/** A pattern filled with the hash; a name as it is, and with the hash behind it. Longer hashes if the shorter are taken. */
function* candidates(wish: string, hash: string): Generator<string> {
  const [before = '', after] = wish.split('*')
  if (after === undefined) yield before
  for (const length of HASH_LENGTHS) {
    const part = hash.slice(0, length)
    const room = NAME_LENGTH_MAX - part.length
    if (after !== undefined) yield `${before.slice(0, Math.max(0, room - after.length))}${part}${after.slice(0, room)}`
    else yield `${before.slice(0, room - 1)}-${part}`
  }
}

/** Lower-case base32. */
function hashOf(key: Uint8Array): string {
  return base32.baseEncode(createHash('sha256').update(key).digest())
}
