/** Labels and members' names as people write them: `zone=a`, `ci-*`. Checked here, so that a mistake is told with what was typed. */
import {
  LABEL_KEY_PATTERN,
  LABEL_VALUE_PATTERN,
  LABELS_MAX,
  NAME_GLOB_PATTERN,
  NAME_PATTERN,
} from '../../protocols/membership/words.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'

/** For commander: gathers a repeatable option. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value]
}

/** @throws {AgentError} `usage` */
export function readLabels(words: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {}
  for (const word of words) {
    const [key, value] = labelIn(word)
    if (Object.hasOwn(labels, key)) throw new AgentError('usage', `the label ${key} is given twice`)
    if (!LABEL_VALUE_PATTERN.test(value)) throw badValue(word)
    labels[key] = value
  }
  return checkedCount(labels)
}

/** What a delegate may give: a key may come several times, and `*` stands for any value. @throws {AgentError} `usage` */
export function readLabelLists(words: readonly string[]): Record<string, string[]> {
  const lists: Record<string, string[]> = {}
  for (const word of words) {
    const [key, value] = labelIn(word)
    if (value !== '*' && !LABEL_VALUE_PATTERN.test(value)) throw badValue(word)
    lists[key] = [...(Object.hasOwn(lists, key) ? (lists[key] ?? []) : []), value]
  }
  return checkedCount(lists)
}

/** @throws {AgentError} `usage` */
export function readLabelKey(key: string): string {
  if (LABEL_KEY_PATTERN.test(key)) return key
  throw new AgentError('usage', `${JSON.stringify(key)} cannot be a label`, {
    next: 'A label is a word of a-z, 0-9, . and -, at most 32.',
  })
}

/** The name of a network or a member. @throws {AgentError} `usage` */
export function readName(name: string, what: string): string {
  if (NAME_PATTERN.test(name)) return name
  throw badName(name, what, 'A name is of a-z, 0-9 and -, at most 63, and begins and ends with a letter or digit.')
}

/** A name, or a pattern of names. @throws {AgentError} `usage` */
export function readNamePattern(name: string, what: string): string {
  if (name.includes('*') ? NAME_GLOB_PATTERN.test(name) : NAME_PATTERN.test(name)) return name
  throw badName(name, what, 'It is of a-z, 0-9 and -, at most 63, with at most one * for anything.')
}

/** `zone=a, role=db`; `none` stands for none. */
export function labelsText(labels: Readonly<Record<string, string>>, none = ''): string {
  const all = Object.entries(labels).map(([key, value]) => `${key}=${value}`)
  return all.length === 0 ? none : printable(all.join(', '))
}

function labelIn(word: string): [key: string, value: string] {
  const at = word.indexOf('=')
  if (at < 0) throw new AgentError('usage', `${JSON.stringify(word)} is no label`, { next: 'Write it as KEY=VALUE.' })
  return [readLabelKey(word.slice(0, at)), word.slice(at + 1)]
}

function checkedCount<T extends object>(labels: T): T {
  if (Object.keys(labels).length > LABELS_MAX) throw new AgentError('usage', `more than ${LABELS_MAX} labels`)
  return labels
}

function badValue(word: string): AgentError {
  return new AgentError('usage', `${JSON.stringify(word)}: this cannot be the value of a label`, {
    next: 'A value is of letters, digits and ._-, at most 63, and begins with a letter or digit.',
  })
}

function badName(name: string, what: string, next: string): AgentError {
  return new AgentError('usage', `${what} cannot be ${JSON.stringify(name)}`, { next })
}
