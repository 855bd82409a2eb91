/**
 * What a node says of a tag of an image repository, or of a manifest that belongs to another one: the body of an `oci-tag` record, and which
 * of several statements about one tag counts. See spec.md beside this file.
 *
 * A statement holds what people look for an image by, and what it takes to fetch it: the manifest's digest in the engine's hash. The rest is in the
 * manifest itself.
 */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import { REPOSITORY_PATTERN } from '../membership/words.ts'
import { ISSUED_AHEAD_MS_MAX } from '../records/record.ts'

export const OCI_TAG_KIND = 'oci-tag'

/** By the distribution specification. */
const TAG_PATTERN = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/
const DIGEST_PATTERN = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/
/** RFC 6838, each part at most 127. */
const MEDIA_TYPE_PATTERN = /^[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}\/[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}$/
/** `linux/arm64/v8`; `unknown/unknown` is what builders call an attestation. */
const PLATFORM_PATTERN = /^[a-z0-9._-]{1,32}\/[a-z0-9._-]{1,32}(?:\/[a-z0-9._-]{1,32})?$/
/** Manifests are held in memory; the specification asks for at least this. */
const OCI_MANIFEST_BYTES_MAX = 4 * 1024 * 1024
/** An image for more platforms shows the first of them. */
export const PLATFORMS_MAX = 32
/** What does not fit of an image's labels is left out, the last keys first. */
export const LABELS_MAX = 24
export const LABEL_KEY_LENGTH_MAX = 128
export const LABEL_VALUE_LENGTH_MAX = 512
/** Of keys and values together, so that a publisher's many tags fit what others keep of it. */
export const LABELS_LENGTH_MAX = 2_048
/** Blobs that a manifest names by SHA-512. */
export const ALIASES_MAX = 64
/** Of a record's name. */
const NAME_LENGTH_MAX = 128

const sha256 = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')
const count = z.int().min(0).max(Number.MAX_SAFE_INTEGER)
const ociDigest = z.string().regex(DIGEST_PATTERN, 'not a digest')
const mediaType = z.string().regex(MEDIA_TYPE_PATTERN, 'not a media type')
/** Keys and values are shown: by whom is his care. They are bounded here. */
const labels = z
  .record(z.string().min(1).max(LABEL_KEY_LENGTH_MAX), z.string().max(LABEL_VALUE_LENGTH_MAX))
  .refine((all) => Object.keys(all).length <= LABELS_MAX, 'too many')
  .refine((all) => lengthOf(all) <= LABELS_LENGTH_MAX, 'too long together')

const place = {
  /** Without the network's name. */
  repository: z.string().regex(REPOSITORY_PATTERN, 'not a repository'),
  /** Not there for a manifest that has no tag, and belongs to another one: a signature. */
  tag: z.string().regex(TAG_PATTERN, 'not a tag').optional(),
  /** When the tag was put where it is, in milliseconds since 1970: the latest counts. A record is renewed, and this stays. */
  moved: count,
}

const present = z.object({
  ...place,
  gone: z.undefined().optional(),
  /** Of the manifest, as clients write it. */
  digest: ociDigest,
  /** SHA-256 of the manifest: the blob that it is fetched as. */
  blob: sha256,
  sizeBytes: z.int().min(1).max(OCI_MANIFEST_BYTES_MAX),
  mediaType,
  /** Of what is no image. */
  artifactType: mediaType.optional(),
  /** The digest of the manifest that it belongs to. */
  subject: ociDigest.optional(),
  /** Of all blobs that it is made of, each once, manifests included. */
  imageBytes: count,
  platforms: z.array(z.string().regex(PLATFORM_PATTERN, 'not a platform')).max(PLATFORMS_MAX),
  /** Labels of an image, annotations of another manifest, as far as they fit. */
  labels,
  /** What blobs that its manifests name by SHA-512 are called here. */
  aliases: z
    .array(z.object({ digest: ociDigest, blob: sha256 }))
    .max(ALIASES_MAX)
    .optional(),
  /** What a registry outside answered at `moved`, and not what a member pushed. */
  upstream: z.literal(true).optional(),
  /** It was fetched with credentials, and is given by `image:private` only. */
  private: z.literal(true).optional(),
})
/** The tag is no more, whoever put it there before. */
const absent = z.object({ ...place, tag: z.string().regex(TAG_PATTERN, 'not a tag'), gone: z.literal(true) })

/** Body of a record of kind `oci-tag`. Unknown fields are ignored: later versions add some. */
export const ociTagBody = z
  .union([absent, present])
  .refine(
    (body) => body.gone === true || body.tag !== undefined || body.subject !== undefined,
    'neither tag nor subject',
  )
  .refine(
    (body) => body.gone === true || body.digest.startsWith('sha512:') || body.digest.slice(7) === hex(body.blob),
    'another blob than the digest says',
  )
export type OciTagBody = z.infer<typeof ociTagBody>
export type OciManifestBody = Extract<OciTagBody, { digest: string }>

/**
 * What the record of a statement is called, so that a publisher makes one about each tag: `repository:tag`, or `repository@digest` without a
 * tag; what is longer than a record's name may be, the SHA-256 of that in hexadecimal.
 */
export function ociTagName(of: { repository: string; tag?: string | undefined; digest?: string | undefined }): string {
  const text = of.tag === undefined ? `${of.repository}@${of.digest ?? ''}` : `${of.repository}:${of.tag}`
  return text.length <= NAME_LENGTH_MAX ? text : createHash('sha256').update(text).digest('hex')
}

/** Of a statement about a tag, what decides whether it counts. */
export type Move = { moved: number; publisher: Uint8Array }

/** Positive when `a` counts and `b` does not: the tag was put there later, or in the same millisecond by the greater key. */
export function compareMoves(a: Move, b: Move): number {
  return a.moved - b.moved || Buffer.compare(a.publisher, b.publisher)
}

/** A statement from too far ahead does not count until then, or whoever makes it would have the tag for good. */
export function countsBy({ moved }: Pick<Move, 'moved'>, now: number): boolean {
  return moved <= now + ISSUED_AHEAD_MS_MAX
}

function lengthOf(all: Readonly<Record<string, string>>): number {
  return Object.entries(all).reduce((sum, [key, value]) => sum + key.length + value.length, 0)
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
