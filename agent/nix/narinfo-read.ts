/**
 * Reads a narinfo that somebody else wrote: a binary cache upstream, or a client that pushes. Follows Nix's nar-info.cc, and is stricter
 * where Nix is lax: a field that says who or what the path is may come once only, and every name in it is checked.
 *
 * Nothing here is believed: signatures are judged, and bytes held against hashes, by the caller.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError } from '../error.ts'
import { type Compression, compressionNamed } from './compression.ts'
import { decodeNix32 } from './nix32.ts'
import { isSignature, type SignedFacts } from './signing.ts'

/** A path with a thousand references and eight signatures fits. */
export const NARINFO_BYTES_MAX = 256 * 1024
/** More than any package has; each is a base name. */
const REFERENCES_MAX = 4_096
/** A closure's signatures hold as many of one path. */
const SIGNATURES_MAX = 8
/** Of a NAR, as of any blob. */
const SIZE_BYTES_MAX = 2 ** 40
const URL_LENGTH_MAX = 1_024
/** Hash part, dash, name: as in a manifest. */
const BASE_NAME_PATTERN = /^[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+\-._?=]{1,211}$/
const CONTENT_ADDRESS_PATTERN = /^[a-z0-9:+/=.-]{1,256}$/i
/** What may be given once. */
const SINGLE = new Set([
  'StorePath',
  'URL',
  'Compression',
  'FileHash',
  'FileSize',
  'NarHash',
  'NarSize',
  'References',
  'Deriver',
  'CA',
])

/** A narinfo as it was written: its facts, and where its NAR is. */
export type ForeignNarinfo = SignedFacts & {
  signatures: readonly string[]
  ca: string | undefined
  /** Full path of the derivation. */
  deriver: string | undefined
  /** Relative to the cache, or absolute. */
  url: string
  compression: Compression
}

/**
 * @param directory the store that the path must be in, `/nix/store`
 * @throws {AgentError} `corrupt`, with what is wrong; `failed` for a compression that is not read here
 */
export function parseNarinfo(text: string, directory: string): ForeignNarinfo {
  const { single, signatures } = fieldsOf(text)
  const need = (name: string) => single.get(name) ?? fail(`it has no ${name}`)
  const path = need('StorePath')
  if (!path.startsWith(`${directory}/`) || !BASE_NAME_PATTERN.test(path.slice(directory.length + 1)))
    fail(`${shown(path)} is no path of ${directory}`)
  const inStore = (name: string) =>
    BASE_NAME_PATTERN.test(name) ? `${directory}/${name}` : fail(`${shown(name)} is no name of a store path`)
  const names = (single.get('References') ?? '').split(' ').filter((name) => name !== '')
  if (names.length > REFERENCES_MAX) fail(`it has ${names.length} references`)
  const references = [...new Set(names.map(inStore))].sort()
  const deriver = single.get('Deriver')
  const ca = single.get('CA')
  if (ca !== undefined && ca !== '' && !CONTENT_ADDRESS_PATTERN.test(ca)) fail(`${shown(ca)} is no content address`)
  return {
    path,
    narHash: hashOf(need('NarHash')),
    narSize: sizeOf(need('NarSize')),
    references,
    signatures,
    ca: ca === '' ? undefined : ca,
    deriver: deriver === undefined || deriver === '' || deriver === 'unknown-deriver' ? undefined : inStore(deriver),
    url: urlOf(need('URL')),
    // As Nix has it: no line means bzip2.
    compression: compressionOf(single.get('Compression') ?? 'bzip2'),
  }
}

/** `sha256:` and nix32 or hexadecimal, or SRI. @throws {AgentError} `corrupt` */
function hashOf(text: string): Digest {
  const [, value = ''] = /^sha256[:-](.+)$/.exec(text) ?? []
  if (text[6] === '-') {
    const bytes = Buffer.from(value, 'base64')
    if (bytes.byteLength === 32 && bytes.toString('base64') === value) return bytes.toString('hex')
  } else {
    if (/^[0-9a-f]{64}$/.test(value)) return value
    const bytes = decodeNix32(value, 32)
    if (bytes) return Buffer.from(bytes).toString('hex')
  }
  return fail(`${shown(text)} is no SHA-256`)
}

function fieldsOf(text: string): { single: Map<string, string>; signatures: string[] } {
  if (text.length > NARINFO_BYTES_MAX) fail('it is too long')
  if (!text.endsWith('\n')) fail('it was cut off')
  const single = new Map<string, string>()
  const signatures: string[] = []
  for (const line of text.slice(0, -1).split('\n')) {
    const colon = line.indexOf(': ')
    // An empty value may have lost its space.
    const name = colon < 0 && line.endsWith(':') ? line.slice(0, -1) : line.slice(0, Math.max(0, colon))
    const value = colon < 0 ? '' : line.slice(colon + 2)
    if (name === '') fail(`${shown(line)} is no line of a narinfo`)
    if (name === 'Sig') signatures.push(value)
    else if (SINGLE.has(name)) {
      if (single.has(name)) fail(`it has ${name} twice`)
      single.set(name, value)
    }
  }
  return { single, signatures: [...new Set(signatures)].filter(isSignature).slice(0, SIGNATURES_MAX) }
}

function sizeOf(text: string): number {
  const size = /^\d{1,15}$/.test(text) ? Number(text) : 0
  return size > 0 && size <= SIZE_BYTES_MAX ? size : fail(`${shown(text)} is no size of a NAR`)
}

function urlOf(text: string): string {
  return text.length <= URL_LENGTH_MAX && /^[!-~]+$/.test(text) ? text : fail(`${shown(text)} is no URL`)
}

function compressionOf(name: string): Compression {
  const compression = compressionNamed(name)
  if (compression !== undefined) return compression
  throw new AgentError('failed', `its NAR is compressed with ${shown(name)}, which this agent does not read`)
}

function fail(what: string): never {
  throw new AgentError('corrupt', `no sound narinfo: ${what}`)
}

/** Text of a stranger, in a message. */
function shown(text: string): string {
  return JSON.stringify(text.slice(0, 120))
}
