/**
 * Takes out of a text what others should not see: secrets always; ids and names become pseudonyms that are the same wherever they occur in one report;
 * of addresses only the beginning stays. What looks like a key is taken for one: a report with a hole is better than one with a secret.
 */
import { isIPv6 } from 'node:net'

/** What begins a marker, which stands for a pseudonym while others are looked for. No text has it: see `text`. */
const MARK = '\u0000'
/** Shorter names are words of other texts, too. Where they are all of a value they are replaced all the same. */
const NAME_LENGTH_MIN = 3

const SECRETS: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [A-Z0-9 ]+-----[\s\S]*?(?:-----END [A-Z0-9 ]+-----|$)/g, '[key]'],
  [/\bAGE-SECRET-KEY-[0-9A-Z]+/gi, '[key]'],
  // Invitations: protocols/membership.
  [/\bun1[a-z2-7][a-z2-7-]{16,}/gi, '[token]'],
  [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/@"'\\]+@/gi, '$1[login]@'],
  [/\b(authorization|cookie)((?:\\?["'])?\s*[:=]\s*(?:\\?["'])?)[^"'\r\n\\]+/gi, '$1$2[secret]'],
  [/\b(basic|bearer) +[A-Za-z0-9._~+/=-]{6,}/gi, '$1 [secret]'],
  [
    /((?:pass(?:word|phrase|wd)?|secret|token|api[_-]?key|credential)[\w-]{0,40}(?:\\?["'])?\s*[:=]\s*)(\\?"[^"\\]*\\?"|\\?'[^'\\]*\\?'|[^\s,;&"'\\]+)/gi,
    '$1[secret]',
  ],
]
const IDS: readonly (readonly [kind: string, RegExp])[] = [
  ['peer', /\b(?:12D3KooW[1-9A-HJ-NP-Za-km-z]{40,48}|Qm[1-9A-HJ-NP-Za-km-z]{44})\b/g],
  ['cid', /\bbaf[a-z2-7]{50,}\b/g],
  ['hash', /\b[0-9a-f]{32,}\b/gi],
  ['key', /(?<![\w+/-])[A-Za-z0-9+/]{20,}={1,2}/g],
  ['key', /(?<![\w+/-])[A-Za-z0-9+/_-]{40,}={0,2}/g],
]
/** What is no key, though it is as long: words with lines between them, as names of metrics; and paths, which have few capitals. */
const WORDS = /^(?:libp2p|[a-z]+)(?:[_-][a-z]+)+$/
const PATH = /^[a-z0-9_/-]*\/[a-z0-9_/-]*$/

export type Named = { kind: 'node' | 'network' | 'service'; name: string }

export class Redaction {
  readonly #withNames: boolean
  /** By what they stand for. */
  readonly #pseudonyms = new Map<string, string>()
  readonly #counts = new Map<string, number>()
  readonly #names = new Map<string, string>()
  readonly #namesPattern: RegExp | undefined

  /** `home` is the user's home directory. */
  constructor({ names, withNames, home }: { names: readonly Named[]; withNames: boolean; home?: string }) {
    this.#withNames = withNames
    if (home !== undefined && home.length > 1) this.#names.set(home, '~')
    if (!withNames)
      for (const { kind, name } of names) if (!this.#names.has(name)) this.#names.set(name, this.#next(kind))
    const long = [...this.#names.keys()].filter((name) => name.length >= NAME_LENGTH_MIN)
    const alternatives = long.sort((a, b) => b.length - a.length).map((name) => RegExp.escape(name))
    if (alternatives.length > 0)
      this.#namesPattern = new RegExp(`(?<![A-Za-z0-9])(?:${alternatives.join('|')})(?![A-Za-z0-9])`, 'g')
  }

  text(text: string): string {
    let rest = text.replaceAll(MARK, '')
    const kept: string[] = []
    const keep = (shown: string) => `${MARK}${kept.push(shown) - 1}${MARK}`
    for (const [pattern, shown] of SECRETS) rest = rest.replace(pattern, shown)
    for (const [kind, pattern] of IDS)
      rest = rest.replace(pattern, (id) => {
        if (WORDS.test(id) || PATH.test(id)) return id
        const isName = kind === 'peer' || kind === 'cid'
        return keep(isName && this.#withNames ? id : this.#pseudonym(kind, id))
      })
    rest = shortAddresses(rest)
    if (this.#namesPattern !== undefined)
      rest = rest.replace(this.#namesPattern, (name) => keep(this.#names.get(name) ?? ''))
    return rest.replace(new RegExp(`${MARK}(\\d+)${MARK}`, 'g'), (_, at: string) => kept[Number(at)] ?? '')
  }

  /** Each text in it, and values that are a name. Keys stay: they are ours. */
  json(value: unknown): unknown {
    if (typeof value === 'string') return this.#names.get(value) ?? this.text(value)
    if (Array.isArray(value)) return value.map((item) => this.json(item))
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, SECRET_KEY.test(key) ? '[secret]' : this.json(item)]),
    )
  }

  #pseudonym(kind: string, id: string): string {
    const known = this.#pseudonyms.get(id)
    if (known !== undefined) return known
    const made = this.#next(kind)
    this.#pseudonyms.set(id, made)
    return made
  }

  #next(kind: string): string {
    const count = (this.#counts.get(kind) ?? 0) + 1
    this.#counts.set(kind, count)
    return `${kind}-${count}`
  }
}

/** Of a field that is a secret whatever is in it. */
const SECRET_KEY = /pass(word|phrase)|secret|token$|api_?key/i

/** Loopback says nothing of anybody. */
function shortAddresses(text: string): string {
  return text
    .replace(/(?<![\d.])(\d{1,3})\.(\d{1,3})\.\d{1,3}\.\d{1,3}(?![\d.])/g, (address, a: string, b: string) =>
      a === '127' || address === '0.0.0.0' ? address : `${a}.${b}.x.x`,
    )
    .replace(/(?<![\w.])[0-9a-f]*:[0-9a-f:.]*:[0-9a-f.]*/gi, (candidate) => {
      if (!isIPv6(candidate) || candidate === '::1' || candidate === '::') return candidate
      return `${candidate.split(':').slice(0, 2).join(':').replace(/:$/, '')}::x`
    })
}
