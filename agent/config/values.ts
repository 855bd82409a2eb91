/**
 * The kinds of value that configuration keys have: from the text of a flag or a variable, or from TOML, to what the agent uses. Each
 * throws a plain Error whose message ends a sentence that begins with the key's name.
 */
import { isIP, isIPv6 } from 'node:net'
import { homedir } from 'node:os'
import { resolve } from 'node:path'

/**
 * What a value looks like, for those who describe or check it without reading it: the reference and the NixOS module. `read` may be
 * stricter than a pattern, never more generous.
 */
export type Form =
  | { is: 'boolean' }
  | { is: 'integer'; min: number; max: number; off?: true }
  | { is: 'choice'; of: readonly string[] }
  | { is: 'path'; off?: true }
  /** `what` ends the sentence "must be ..."; `orNumber`: a number will do. */
  | { is: 'text'; what: string; pattern: RegExp; orNumber?: true }
  | { is: 'list'; of: Form }

/** How a value is read, and how it is shown again. */
export type Kind<T> = {
  form: Form
  /** `raw` is a string, a boolean, a number or a list of strings; `base` is what relative paths are relative to. */
  read(raw: unknown, base: string): T
  show(value: T): string | number | boolean | string[]
}

export type HttpAddress = { host: string; port: number }
/** A part of 127.0.0.0/8: its first address as a number, and how many bits of it are the same in all. */
export type AddressRange = { base: number; bits: 16 | 24 }

const PORT_MAX = 65_535
const UNITS = new Map([
  ['', 1],
  ['b', 1],
  ['kb', 1e3],
  ['mb', 1e6],
  ['gb', 1e9],
  ['tb', 1e12],
  ['k', 2 ** 10],
  ['m', 2 ** 20],
  ['g', 2 ** 30],
  ['t', 2 ** 40],
  ['kib', 2 ** 10],
  ['mib', 2 ** 20],
  ['gib', 2 ** 30],
  ['tib', 2 ** 40],
])
/** The longest first. */
const DURATION_MS = new Map([
  ['d', 24 * 3_600_000],
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
])
const LISTEN_PATTERN = /^\/(ip4|ip6)\/([^/]+)\/(?:tcp\/(\d+)|udp\/(\d+)\/quic-v1)$/
const DIAL_PATTERN =
  /^\/(ip4|ip6|dns|dns4|dns6)\/([^/]+)\/(?:tcp\/(\d+)|udp\/(\d+)\/quic-v1)(\/p2p\/[1-9A-HJ-NP-Za-km-z]+)?$/
const BASE64_KEY_LENGTH = 44
const KEY_PATTERN = /^[^\s:]+:[0-9A-Za-z+/]+=*$/
const STORE_NAME_PATTERN = /^[0-9a-zA-Z+._?=*-]{1,211}$/
const SIZE_PATTERN = /^\s*\d+(\.\d+)?\s*[a-zA-Z]*\s*$/
const RATE_PATTERN = /^(off|\s*\d+(\.\d+)?\s*[a-zA-Z]*\s*(\/[sS]\s*)?)$/
const DURATION_PATTERN = /^\s*\d+\s*[smhdSMHD]\s*$/
const LOOPBACK_PATTERN = /^(off|(localhost|\[::1\]|127\.\d+\.\d+\.\d+):\d+)$/
const RANGE_PATTERN = /^(auto|127\.\d{1,3}\.\d{1,3}\.0\/(16|24))$/
const URL_PATTERN = /^[hH][tT][tT][pP][sS]?:\S+$/

export const boolean: Kind<boolean> = {
  form: { is: 'boolean' },
  read(raw) {
    if (typeof raw === 'boolean') return raw
    if (/^(true|yes|on|1)$/i.test(String(raw))) return true
    if (/^(false|no|off|0)$/i.test(String(raw))) return false
    throw new Error(`must be true or false, not ${quoted(raw)}`)
  },
  show: (value) => value,
}

export function integer(min: number, max: number): Kind<number> {
  return {
    form: { is: 'integer', min, max },
    read(raw) {
      const value = typeof raw === 'string' && raw.trim() !== '' ? Number(raw) : raw
      if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
      throw new Error(`must be a whole number from ${min} to ${max}, not ${quoted(raw)}`)
    },
    show: (value) => value,
  }
}

/** A port, 0 for any; or `off`. */
export const optionalPort: Kind<number | undefined> = {
  form: { is: 'integer', min: 0, max: PORT_MAX, off: true },
  read(raw, base) {
    if (raw === 'off' || raw === false) return undefined
    try {
      return integer(0, PORT_MAX).read(raw, base)
    } catch {
      throw new Error(`must be a port from 0 to ${PORT_MAX}, or off, not ${quoted(raw)}`)
    }
  },
  show: (value) => value ?? 'off',
}

export function oneOf<const T extends string>(choices: readonly T[]): Kind<T> {
  return {
    form: { is: 'choice', of: choices },
    read(raw) {
      const choice = choices.find((one) => one === raw)
      if (choice === undefined) throw new Error(`must be one of ${choices.join(', ')}, not ${quoted(raw)}`)
      return choice
    },
    show: (value) => value,
  }
}

/** `what` ends the sentence "must be ...". */
export function text(pattern: RegExp, what: string): Kind<string> {
  return {
    form: { is: 'text', what, pattern },
    read(raw) {
      if (typeof raw === 'string' && pattern.test(raw)) return raw
      throw new Error(`must be ${what}, not ${quoted(raw)}`)
    },
    show: (value) => value,
  }
}

/** Absolute afterwards; `~/` is the home directory. */
export const path: Kind<string> = {
  form: { is: 'path' },
  read(raw, base) {
    if (typeof raw !== 'string' || raw === '' || raw.includes('\0'))
      throw new Error(`must be a path, not ${quoted(raw)}`)
    return resolve(base, raw.replace(/^~(?=\/|$)/, homedir()))
  },
  show: (value) => value,
}

/** A path, or `off`. */
export const optionalPath: Kind<string | undefined> = {
  form: { is: 'path', off: true },
  read: (raw, base) => (raw === 'off' || raw === false ? undefined : path.read(raw, base)),
  show: (value) => value ?? 'off',
}

/** Bytes: `20GiB`, `500 MB`, `1073741824`. */
export function size(min: number): Kind<number> {
  return {
    form: { is: 'text', what: 'a size like 20GiB', pattern: SIZE_PATTERN, orNumber: true },
    read(raw) {
      const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(String(raw)) ?? []
      const factor = UNITS.get((unit ?? '?').toLowerCase())
      if (digits === undefined || factor === undefined) throw new Error(`must be a size like 20GiB, not ${quoted(raw)}`)
      const bytes = Math.floor(Number(digits) * factor)
      if (bytes < min || !Number.isSafeInteger(bytes))
        throw new Error(`must be at least ${showSize(min)}, not ${quoted(raw)}`)
      return bytes
    },
    show: showSize,
  }
}

/** Bytes a second: `10MiB`, `10 MB/s`; or `off`. */
export function rate(min: number): Kind<number | undefined> {
  const bytes = size(min)
  return {
    form: { is: 'text', what: 'a size like 10MiB, or off', pattern: RATE_PATTERN, orNumber: true },
    read(raw, base) {
      if (raw === 'off' || raw === false) return undefined
      return bytes.read(typeof raw === 'string' ? raw.replace(/\/s\s*$/i, '') : raw, base)
    },
    show: (value) => (value === undefined ? 'off' : `${showSize(value)}/s`),
  }
}

/** `127.0.0.1:7478`, or `off`. Loopback only: what answers there trusts whoever asks. */
export const http = loopback(7478)
/** As `http`. */
export const proxy = loopback(7479)
/** As `http`; UDP and TCP. */
export const dns = loopback(7453)

function loopback(example: number): Kind<HttpAddress | undefined> {
  return {
    form: { is: 'text', what: `a loopback address like 127.0.0.1:${example}, or off`, pattern: LOOPBACK_PATTERN },
    read: (raw) => readLoopback(raw, example),
    show: (value) => (value ? showHttp(value) : 'off'),
  }
}

/** `127.77.0.0/16`, or a /24; or `auto`. */
export const addressRange: Kind<AddressRange | undefined> = {
  form: { is: 'text', what: 'auto, or a range like 127.77.0.0/16', pattern: RANGE_PATTERN },
  read(raw) {
    if (raw === 'auto') return undefined
    const [, second, third, bits] = /^127\.(\d{1,3})\.(\d{1,3})\.0\/(16|24)$/.exec(String(raw)) ?? []
    const [b, c] = [Number(second), Number(third)]
    // 127.0.x.x is where everything else listens.
    if (bits === undefined || b < 1 || b > 255 || c > 255 || (bits === '16' && c !== 0))
      throw new Error(`must be auto, or a range like 127.77.0.0/16 or 127.77.5.0/24, not ${quoted(raw)}`)
    return { base: 127 * 2 ** 24 + b * 2 ** 16 + c * 2 ** 8, bits: bits === '16' ? 16 : 24 }
  },
  show: (value) => {
    if (value === undefined) return 'auto'
    const [b, c] = [16, 8].map((shift) => Math.floor(value.base / 2 ** shift) % 256)
    return `127.${b}.${c}.0/${value.bits}`
  },
}

function readLoopback(raw: unknown, example: number): HttpAddress | undefined {
  if (raw === 'off' || raw === false) return undefined
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(String(raw)) ?? []
  const host = bracketed ?? plain
  const port = Number(digits)
  if (host === undefined || port > PORT_MAX)
    throw new Error(`must be like 127.0.0.1:${example}, or off, not ${quoted(raw)}`)
  if (host !== 'localhost' && host !== '::1' && !/^127\.\d+\.\d+\.\d+$/.test(host))
    throw new Error(
      `must be a loopback address such as 127.0.0.1:${port}: it serves this machine only, not ${quoted(raw)}`,
    )
  return { host, port }
}

function showHttp({ host, port }: HttpAddress): string {
  return `${isIPv6(host) ? `[${host}]` : host}:${port}`
}

export const listenAddress: Kind<string> = {
  form: { is: 'text', what: 'a multiaddr like /ip4/0.0.0.0/tcp/7477', pattern: LISTEN_PATTERN },
  read(raw) {
    const [, family, host, tcp, udp] = LISTEN_PATTERN.exec(String(raw)) ?? []
    if (isHost(family, host) && Number(tcp ?? udp) <= PORT_MAX) return raw as string
    throw new Error(
      `must be a multiaddr like /ip4/0.0.0.0/tcp/7477 or /ip4/0.0.0.0/udp/7477/quic-v1, not ${quoted(raw)}${inOtherWords(raw)}`,
    )
  },
  show: (value) => value,
}

export const dialAddress: Kind<string> = {
  form: { is: 'text', what: 'a multiaddr like /ip4/192.0.2.1/tcp/7477', pattern: DIAL_PATTERN },
  read(raw) {
    const [, family, host, tcp, udp] = DIAL_PATTERN.exec(String(raw)) ?? []
    const port = Number(tcp ?? udp)
    if (isHost(family, host) && port >= 1 && port <= PORT_MAX) return raw as string
    throw new Error(
      `must be a multiaddr like /ip4/192.0.2.1/tcp/7477 or /dns/node.example/tcp/7477, not ${quoted(raw)}${inOtherWords(raw)}`,
    )
  },
  show: (value) => value,
}

/** Nix's public key: a name, a colon, 32 bytes in base64. */
export const publicKey: Kind<string> = {
  form: { is: 'text', what: 'a public key as in nix.conf, name:base64', pattern: KEY_PATTERN },
  read(raw) {
    const [, base64] = /^[^\s:]+:([0-9A-Za-z+/]+=*)$/.exec(String(raw)) ?? []
    if (base64?.length === BASE64_KEY_LENGTH && Buffer.from(base64, 'base64').byteLength === 32) return raw as string
    throw new Error(`must be a public key as in nix.conf, name:base64, not ${quoted(raw)}`)
  },
  show: (value) => value,
}

/** Of what follows the hash part of a store path, with `*` for any text and `?` for any character. */
export const namePattern: Kind<string> = {
  form: { is: 'text', what: 'the name of a store path without its hash, like *-secrets', pattern: STORE_NAME_PATTERN },
  read(raw) {
    if (STORE_NAME_PATTERN.test(String(raw))) return raw as string
    throw new Error(`must be the name of a store path without its hash, like *-secrets, not ${quoted(raw)}`)
  },
  show: (value) => value,
}

/** A binary cache; `?network=NAME` says in which network what comes from it is shared. Secrets in a URL would be shown. */
export const upstream: Kind<string> = {
  form: { is: 'text', what: 'the URL of a binary cache', pattern: URL_PATTERN },
  read(raw) {
    const url = httpUrl(raw)
    if (url === undefined || url.hash !== '')
      throw new Error(`must be the URL of a binary cache, https://..., not ${quoted(raw)}`)
    if (url.username !== '' || url.password !== '') throw new Error('must have no password in its URL')
    const other = [...url.searchParams.keys()].find((name) => name !== 'network')
    if (other !== undefined) throw new Error(`may have ?network=NAME, and nothing like ${quoted(other)}`)
    return raw as string
  },
  show: (value) => value,
}

/**
 * A registry of images; `?prefix=NAME` is what its repositories begin with here, and `?network=NAME` says in which network what comes from it is shared.
 */
export const registry: Kind<string> = {
  form: { is: 'text', what: 'the URL of a registry', pattern: URL_PATTERN },
  read(raw) {
    const url = httpUrl(raw)
    if (url === undefined || url.hash !== '')
      throw new Error(`must be the URL of a registry, https://..., not ${quoted(raw)}`)
    if (url.username !== '' || url.password !== '')
      throw new Error('must have no password in its URL: log in with `podman login`')
    const other = [...url.searchParams.keys()].find((name) => name !== 'network' && name !== 'prefix')
    if (other !== undefined)
      throw new Error(`may have ?prefix=NAME and ?network=NAME, and nothing like ${quoted(other)}`)
    if (!/^[a-z0-9]+(?:[._-]+[a-z0-9]+)*$/.test(registryPrefix(url)))
      throw new Error(`must have a prefix like docker.io, not ${quoted(registryPrefix(url))}`)
    return raw as string
  },
  show: (value) => value,
}

/** Undefined for what is none, or has blanks in it, which a parser of URLs would pass over. */
function httpUrl(raw: unknown): URL | undefined {
  const text = String(raw)
  return URL_PATTERN.test(text) && URL.canParse(text) ? new URL(text) : undefined
}

/** What repositories of a registry begin with: the name of its host, unless the configuration has another. */
export function registryPrefix(url: URL): string {
  return url.searchParams.get('prefix') ?? url.host.replace(/:/g, '-').replace(/[[\]]/g, '')
}

/** A time like `90s`, `5m`, `1h`, `2d`, in milliseconds. */
export function duration(minMs: number, maxMs: number): Kind<number> {
  return {
    form: { is: 'text', what: 'a time like 90s, 5m, 1h or 2d', pattern: DURATION_PATTERN },
    read(raw) {
      const [, digits, unit = ''] = /^\s*(\d+)\s*([smhd])\s*$/i.exec(String(raw)) ?? []
      const ms = Number(digits) * (DURATION_MS.get(unit.toLowerCase()) ?? Number.NaN)
      if (Number.isSafeInteger(ms) && ms >= minMs && ms <= maxMs) return ms
      throw new Error(
        `must be a time from ${showDuration(minMs)} to ${showDuration(maxMs)}, like 5m, not ${quoted(raw)}`,
      )
    },
    show: showDuration,
  }
}

function showDuration(ms: number): string {
  for (const [unit, unitMs] of DURATION_MS) if (ms >= unitMs && ms % unitMs === 0) return `${ms / unitMs}${unit}`
  return `${ms / 1_000}s`
}

/** In TOML a list; elsewhere one value, or several with commas or spaces between. */
export function list(kind: Kind<string>): Kind<string[]> {
  return {
    form: { is: 'list', of: kind.form },
    read(raw, base) {
      const values = Array.isArray(raw) ? raw : String(raw).split(/[\s,]+/)
      return [...new Set(values.filter((one) => one !== '').map((one) => kind.read(one, base)))]
    },
    show: (value) => value,
  }
}

function isHost(family: string | undefined, host: string | undefined): boolean {
  if (family === undefined || host === undefined) return false
  if (family === 'ip4') return isIP(host) === 4
  if (family === 'ip6') return isIP(host) === 6
  return /^[0-9a-z]([0-9a-z.-]*[0-9a-z])?$/i.test(host)
}

/** People write `host:port`: tell them what that is as a multiaddr. */
function inOtherWords(raw: unknown): string {
  const [, host, port] = /^\[?([^/\s]+?)\]?:(\d+)$/.exec(String(raw)) ?? []
  if (host === undefined) return ''
  const family = { 0: 'dns', 4: 'ip4', 6: 'ip6' }[isIP(host) as 0 | 4 | 6]
  return `; write /${family}/${host}/tcp/${port}`
}

function quoted(raw: unknown): string {
  return JSON.stringify(raw) ?? String(raw)
}

function showSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = UNITS.get(unit.toLowerCase()) as number
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor}${unit}`
  }
  return `${bytes}B`
}
