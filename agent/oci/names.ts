/**
 * Names, tags and digests of the distribution specification 1.1, parsed from what a client wrote. Nothing else is one: no capital, no dot
 * segment, no percent sign, no control character passes, so that what was parsed is safe in a path, a header and a log.
 */

/** Clients bound host, slash and name at 255; this leaves them `127.0.0.1:65535/`. */
export const NAME_LENGTH_MAX = 239
/** By the specification. */
const TAG_PATTERN = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/
/** Of one component between slashes. Whole names are split first: the specification's expression for a name is slow on hostile ones. */
const COMPONENT_PATTERN = /^[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*$/
const DIGEST_PATTERN = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/

declare const brand: unique symbol
type Branded<Name extends string> = string & { readonly [brand]: Name }

/** `home/team/app`, or a part of it. */
export type RepositoryPath = Branded<'path'>
export type Tag = Branded<'tag'>
/** `sha256:` and 64, or `sha512:` and 128 digits in lower case. */
export type OciDigest = Branded<'digest'>
export type Algorithm = 'sha256' | 'sha512'
export type Reference =
  | { readonly tag: Tag; readonly digest?: never }
  | { readonly digest: OciDigest; readonly tag?: never }

export function parsePath(text: string): RepositoryPath | undefined {
  if (text.length > NAME_LENGTH_MAX) return undefined
  return text.split('/').every((component) => COMPONENT_PATTERN.test(component)) ? (text as RepositoryPath) : undefined
}

export function parseTag(text: string): Tag | undefined {
  return TAG_PATTERN.test(text) ? (text as Tag) : undefined
}

export function parseDigest(text: string): OciDigest | undefined {
  return DIGEST_PATTERN.test(text) ? (text as OciDigest) : undefined
}

/** A digest has a colon, and a tag has none. */
export function parseReference(text: string): Reference | undefined {
  if (text.includes(':')) {
    const digest = parseDigest(text)
    return digest && { digest }
  }
  const tag = parseTag(text)
  return tag && { tag }
}

export function algorithmOf(digest: OciDigest): Algorithm {
  return digest.startsWith('sha256:') ? 'sha256' : 'sha512'
}

/** The digits. */
export function hexOf(digest: OciDigest): string {
  return digest.slice('sha256:'.length)
}

/** The engine's name of a blob, as the specification writes it. */
export function ofSha256(hex: string): OciDigest {
  return `sha256:${hex}` as OciDigest
}

export function ofSha512(hex: string): OciDigest {
  return `sha512:${hex}` as OciDigest
}
