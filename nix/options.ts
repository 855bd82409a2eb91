/**
 * What the NixOS module is made of, as JSON, for module.nix to read: an option for each key of the configuration, from
 * agent/config/keys.ts, and the settings of the unit, from agent/service/unit.ts. So neither can say anything else than the agent does.
 */
import { KEYS } from '../agent/config/keys.ts'
import type { Environment } from '../agent/config/paths.ts'
import type { Form, Kind } from '../agent/config/values.ts'
import { unitSections } from '../agent/service/unit.ts'

/** As systemd gives it to the service. */
const SERVICE_STATE = '/var/lib/undernet'
const SERVICE: Environment = { STATE_DIRECTORY: SERVICE_STATE, RUNTIME_DIRECTORY: '/run/undernet' }
/** Put in by the module, which knows where they are. */
const PROGRAM = '@agent@'
const KILL = '@kill@'
/** Of NixOS 25.05, and there is no older one with Node 24. */
const SYSTEMD_VERSION = 257

/** A pattern is a POSIX extended regular expression here, for the whole text. */
type NixType = Exclude<Form, { pattern: RegExp } | { is: 'list' }> | NixText | { is: 'list'; of: NixType }
type NixText = { is: 'text'; what: string; pattern: string; orNumber?: true }
type Setting = { type: NixType; help: string; default?: unknown; defaultText: string; reloads: boolean }

/** By key, as in the file. */
export function optionsJson(): string {
  const options = [...KEYS].map(([key, { kind, help, reloads, inWords }]): [string, Setting] => {
    // What differs from machine to machine is nothing to reckon with.
    const byDefault = inWords === undefined && { default: defaultValue(key) }
    return [key, { type: nixType(kind.form), help, ...byDefault, defaultText: defaultInWords(key), reloads }]
  })
  return json(Object.fromEntries(options))
}

/** By section and setting; one that is there several times is a list. */
export function unitJson(): string {
  const sections = unitSections({ program: [PROGRAM], kill: KILL, systemdVersion: SYSTEMD_VERSION })
  return json(
    Object.fromEntries(
      sections.map(({ section, settings }) => {
        const byKey = Object.groupBy(settings, ({ key }) => key)
        const values = Object.entries(byKey).map(([key, all = []]) => {
          const texts = all.map(({ value }) => value)
          return [key, texts.length === 1 ? texts[0] : texts]
        })
        return [section, Object.fromEntries(values)]
      }),
    ),
  )
}

/** What a key is worth when nobody says, as Markdown. */
export function defaultInWords(key: string): string {
  const words = KEYS.get(key)?.inWords
  if (words !== undefined) return words
  const value = defaultValue(key)
  if (!Array.isArray(value)) return `\`${value}\``
  return value.length === 0 ? 'none' : value.map((one) => `\`${one}\``).join(', ')
}

/** As a person would write it. */
function defaultValue(key: string): string | number | boolean | string[] {
  const { kind, byDefault } = KEYS.get(key) ?? {}
  if (kind === undefined || byDefault === undefined) throw new Error(`there is no key ${key}`)
  return (kind as Kind<unknown>).show(kind.read(byDefault(SERVICE, SERVICE_STATE), '/'))
}

function nixType(form: Form): NixType {
  if (form.is === 'list') return { is: 'list', of: nixType(form.of) }
  if (form.is === 'text') return { ...form, pattern: posixPattern(form.pattern) }
  return form
}

/** Any other sign stands for itself, and may not be escaped. */
const POSIX_ESCAPED = /[.[()*+?{|^$\\]/
const POSIX_CLASSES: Record<string, string> = { d: '0-9', s: '[:space:]' }

/**
 * A pattern of JavaScript as a POSIX extended one, which Nix has. Only what means the same in both is let through.
 *
 * @throws {Error} for a pattern that has something else, or does not match whole texts
 */
export function posixPattern({ source, flags }: RegExp): string {
  const refuse = (what: string) => new Error(`/${source}/${flags}: ${what} is not the same in Nix`)
  if (!source.startsWith('^') || !source.endsWith('$') || source.endsWith('\\$')) throw refuse('a part of a text')
  if (flags.replace('s', '') !== '') throw refuse(`the flag ${flags}`)
  let posix = ''
  let inBrackets = false
  const body = source.slice(1, -1)
  for (const [token] of body.matchAll(/\\.|\(\?:?|./gs)) {
    if (inBrackets) {
      if (token.startsWith('\\') && POSIX_CLASSES[token.slice(1)] === undefined) throw refuse(`${token} in brackets`)
      posix += token.startsWith('\\') ? POSIX_CLASSES[token.slice(1)] : token
      if (token === ']') inBrackets = false
    } else if (token === '(?:') posix += '('
    else if (token === '(?') throw refuse('a group of that kind')
    else if (token === '[') {
      posix += token
      inBrackets = true
    } else if (!token.startsWith('\\')) posix += token
    else if (token === '\\S') posix += '[^[:space:]]'
    else if (POSIX_CLASSES[token.slice(1)] !== undefined) posix += `[${POSIX_CLASSES[token.slice(1)]}]`
    else if (/[A-Za-z0-9]/.test(token.slice(1))) throw refuse(token)
    else posix += POSIX_ESCAPED.test(token.slice(1)) ? token : token.slice(1)
  }
  return posix
}

function json(value: object): string {
  return `${JSON.stringify(value, undefined, 2)}\n`
}
