/**
 * A policy as people write it: a TOML or JSON file of grants, read with errors that say where.
 *
 *     [[grants]]
 *     from = "label:zone=a"
 *     to = "name:db*"
 *     allow = ["service:connect pg"]
 */
import { parse, TomlError } from 'smol-toml'
import { WireError } from '../error.ts'
import {
  GRANTS_MAX,
  type Grant,
  POLICY_BYTES_MAX,
  selectorFault,
  VERB_NAME_LENGTH_MAX,
  VERBS_PER_GRANT_MAX,
  verbFault,
} from './policy.ts'

/** Comments and line breaks included, that do not travel. */
const POLICY_TEXT_LENGTH_MAX = 4 * POLICY_BYTES_MAX

/**
 * The grants in a file, TOML, or JSON if it begins with a brace.
 *
 * @throws {WireError} `too-large`; `malformed`, with every fault that was found on a line of its own
 */
export function parsePolicy(text: string): Grant[] {
  if (text.length > POLICY_TEXT_LENGTH_MAX) throw new WireError('too-large', 'too long for a policy')
  const isJson = text.trimStart().startsWith('{')
  const document = isJson ? parseJson(text) : parseToml(text)
  const lines = isJson ? [] : headerLines(text)
  const faults: string[] = []
  for (const key of Object.keys(document).filter((one) => one !== 'grants'))
    faults.push(`"${key}" is nothing that a policy has; there is only grants`)
  const list = document.grants ?? []
  if (!Array.isArray(list)) throw new WireError('malformed', 'grants: must be a list of tables: [[grants]]')
  if (list.length > GRANTS_MAX) throw new WireError('malformed', `grants: more than ${GRANTS_MAX}`)
  const grants = list.map((one: unknown, index) => {
    const line = lines[index]
    const place = line === undefined ? `grants[${index}]` : `line ${line}: grants[${index}]`
    return readGrant(one, (what, why) => faults.push(`${place}${what}: ${why}`))
  })
  if (faults.length > 0) throw new WireError('malformed', faults.join('\n'))
  return grants
}

/** The grants as a file that parsePolicy reads. */
export function formatPolicy(grants: readonly Grant[]): string {
  const tables = grants.map(({ from, to, allow }) =>
    ['[[grants]]', `from = ${quote(from)}`, `to = ${quote(to)}`, `allow = [${allow.map(quote).join(', ')}]`].join('\n'),
  )
  return ['# What no grant gives is denied.', ...tables].join('\n\n').concat('\n')
}

type Fault = (what: string, why: string) => void

function readGrant(value: unknown, fault: Fault): Grant {
  const fields: Record<string, unknown> = isTable(value) ? value : {}
  if (!isTable(value)) fault('', 'must be a table with from, to and allow')
  else
    for (const key of Object.keys(fields).filter((one) => !['from', 'to', 'allow'].includes(one)))
      fault(`.${key}`, 'is nothing that a grant has; there are from, to and allow')
  const from = readSelector(fields.from, '.from', fault)
  const to = readSelector(fields.to, '.to', fault)
  return { from, to, allow: readVerbs(fields.allow, fault) }
}

function readSelector(value: unknown, what: string, fault: Fault): string {
  const text = typeof value === 'string' ? value : ''
  const why = value === undefined ? 'is missing' : typeof value === 'string' ? selectorFault(text) : 'must be a text'
  if (why !== undefined) fault(what, why)
  return text
}

function readVerbs(value: unknown, fault: Fault): string[] {
  if (!Array.isArray(value) || value.length === 0) {
    fault('.allow', value === undefined ? 'is missing' : 'must be a list of verbs')
    return []
  }
  if (value.length > VERBS_PER_GRANT_MAX) fault('.allow', `more than ${VERBS_PER_GRANT_MAX} verbs`)
  return value.map((one: unknown, index) => {
    const text = typeof one === 'string' ? one : ''
    const why = typeof one === 'string' ? (verbFault(text) ?? lengthFault(text)) : 'must be a text'
    if (why !== undefined) fault(`.allow[${index}]`, why)
    return text
  })
}

function lengthFault(verb: string): string | undefined {
  const { length } = verb.slice(verb.indexOf(' ') + 1)
  if (length <= VERB_NAME_LENGTH_MAX) return undefined
  return `names more than ${VERB_NAME_LENGTH_MAX} characters: give a beginning of them, and *`
}

function parseToml(text: string): Record<string, unknown> {
  try {
    return parse(text)
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause
    const [what = cause.message] = cause.message.split('\n')
    throw new WireError('malformed', `line ${cause.line}, column ${cause.column}: ${what}`, { cause })
  }
}

function parseJson(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text)
    if (isTable(value)) return value
  } catch (cause) {
    throw new WireError('malformed', `not JSON: ${(cause as Error).message}`, { cause })
  }
  throw new WireError('malformed', 'not an object')
}

/** Line numbers of the tables, in order; nothing for a file that writes its grants in another way. */
function headerLines(text: string): number[] {
  const lines = text.split('\n')
  return lines.flatMap((line, at) => (/^\s*\[\[\s*"?grants"?\s*\]\]/.test(line) ? [at + 1] : []))
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function quote(text: string): string {
  return JSON.stringify(text)
}
