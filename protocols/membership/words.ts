/**
 * The words of membership: what names, labels and patterns of names may look like (spec.md beside this file). Apart from the statements
 * that hold them, and importing nothing, so that whoever only checks what was typed need not load those.
 */

/** Of a revocation's reason. */
const REASON_BYTES_MAX = 200
/** Control characters, line breaks, and what changes the direction of writing. */
const UNPRINTABLE = /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/u

/** A label of a DNS name: what a member is called, and so its name in DNS. */
export const NAME_PATTERN = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/
export const LABEL_KEY_PATTERN = /^[a-z0-9][a-z0-9.-]{0,31}$/
export const LABEL_VALUE_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/
/** A name, or the part of one on either side of a single `*`. */
export const NAME_GLOB_PATTERN = /^(?=.{1,63}$)[a-z0-9-]*\*?[a-z0-9-]*$/
/** A repository of images: components between slashes, as the OCI distribution specification has them. */
export const REPOSITORY_PATTERN =
  /^(?=.{1,239}$)[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*$/
/** All of them, or all below some components. */
export const REPOSITORY_GLOB_PATTERN = /^(?=.{1,239}$)(?:[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*\/)*\*$/
/** Of a certificate. */
export const LABELS_MAX = 16

/** What is wrong with the reason of a revocation; undefined when nothing. */
export function reasonFault(reason: string): string | undefined {
  if (Buffer.byteLength(reason) > REASON_BYTES_MAX) return `over ${REASON_BYTES_MAX} bytes`
  return UNPRINTABLE.test(reason) ? 'not printable' : undefined
}
