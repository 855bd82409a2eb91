/**
 * Reads manifests: image manifests and indexes of the image specification 1.1, and Docker's, which are the same with other media types.
 * What else is in them is kept as it came, since a manifest is its bytes; only what the registry has to know is read.
 */
import { z } from 'zod'
import { reasonOf } from '../error.ts'
import { OciError } from './errors.ts'
import { type OciDigest, parseDigest } from './names.ts'

/** The specification asks for 4 MB at least. */
export const MANIFEST_BYTES_MAX = 4 * 1024 * 1024
/** Each is looked up when the manifest is pushed. Images have up to 127 layers, indexes an entry for each platform. */
const DESCRIPTORS_MAX = 4_096
/** RFC 6838 allows 127 characters on each side of the slash. */
const MEDIA_TYPE_PATTERN = /^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}\/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$/

export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json'
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json'
const OCI_ARTIFACT = 'application/vnd.oci.artifact.manifest.v1+json'
const DOCKER_MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json'
const DOCKER_LIST = 'application/vnd.docker.distribution.manifest.list.v2+json'
const KINDS: ReadonlyMap<string, 'image' | 'index' | 'artifact'> = new Map([
  [OCI_MANIFEST, 'image'],
  [DOCKER_MANIFEST, 'image'],
  [OCI_INDEX, 'index'],
  [DOCKER_LIST, 'index'],
  [OCI_ARTIFACT, 'artifact'],
])
/** Layers that their owner forbids to give on: they are named, and never pushed. */
const FOREIGN = /^application\/vnd\.(?:docker\.image\.rootfs\.foreign|oci\.image\.layer\.nondistributable)\./

const mediaType = z.string().regex(MEDIA_TYPE_PATTERN, 'not a media type')
const annotations = z.record(z.string(), z.string())
const descriptor = z.object({
  mediaType,
  digest: z.string().transform((text, context) => {
    const digest = parseDigest(text)
    if (digest !== undefined) return digest
    context.addIssue({ code: 'custom', message: 'not a SHA-256 or SHA-512 digest' })
    return z.NEVER
  }),
  size: z.int().min(0),
  urls: z.array(z.string()).nullish(),
})
const descriptors = z.array(descriptor).max(DESCRIPTORS_MAX)
const common = {
  mediaType: mediaType.nullish(),
  artifactType: z.union([mediaType, z.literal('')]).nullish(),
  subject: descriptor.nullish(),
  annotations: annotations.nullish(),
}
/** What makes a manifest one of another kind: clients that read it so would run something else. */
const absent = z.undefined().optional()
const versioned = { ...common, schemaVersion: z.literal(2) }
const image = z.object({ ...versioned, config: descriptor, layers: descriptors, manifests: absent })
const index = z.object({ ...versioned, manifests: descriptors, config: absent, layers: absent })
/** Of release candidates of the image specification 1.1; some clients still send it. */
const artifact = z.object({ ...common, blobs: descriptors.nullish(), manifests: absent, layers: absent })

type Named = z.infer<typeof descriptor>

export type Manifest = {
  readonly mediaType: string
  /** Config and layers. `isForeign`: it need not be here. */
  readonly blobs: readonly { readonly digest: OciDigest; readonly size: number; readonly isForeign: boolean }[]
  /** Of an index. */
  readonly manifests: readonly { readonly digest: OciDigest; readonly size: number }[]
  readonly subject: OciDigest | undefined
  /** As the referrers API has it: an image without one has the media type of its config. */
  readonly artifactType: string | undefined
  readonly annotations: Readonly<Record<string, string>> | undefined
}

/**
 * @param contentType as the client sent it, without parameters
 * @throws {OciError} MANIFEST_INVALID, with status 413 when it is too large
 */
export function readManifest(bytes: Uint8Array, contentType: string | undefined): Manifest {
  if (bytes.byteLength > MANIFEST_BYTES_MAX) throw tooLarge()
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw invalid(`it is no JSON: ${reasonOf(error)}`)
  }
  const type = typeOf(json, contentType)
  const kind = KINDS.get(type)
  if (kind === undefined) throw invalid(`${type} is no media type of a manifest that this registry keeps`)
  if (kind === 'index') {
    const read = checked(index, json)
    return {
      ...partsOf(read, type),
      blobs: [],
      manifests: read.manifests.map(({ digest, size }) => ({ digest, size })),
    }
  }
  if (kind === 'artifact') {
    const read = checked(artifact, json)
    return { ...partsOf(read, type), blobs: (read.blobs ?? []).map(blobOf), manifests: [] }
  }
  const read = checked(image, json)
  const blobs = [read.config, ...read.layers].map(blobOf)
  const artifactType = read.artifactType || read.config.mediaType
  return { ...partsOf(read, type), artifactType, blobs, manifests: [] }
}

export function tooLarge(): OciError {
  return new OciError('MANIFEST_INVALID', `a manifest may have ${MANIFEST_BYTES_MAX} bytes at most`, { status: 413 })
}

/** What the client says and what the manifest says are one, where both say something. */
function typeOf(json: unknown, contentType: string | undefined): string {
  const { mediaType: own, manifests } = (json ?? {}) as { mediaType?: unknown; manifests?: unknown }
  if (typeof own === 'string' && own !== '') {
    if (contentType === undefined || contentType === own || !KINDS.has(contentType)) return own
    throw invalid(`its mediaType is ${own.slice(0, 256)}, and it was sent as ${contentType}`)
  }
  if (contentType !== undefined && KINDS.has(contentType)) return contentType
  if (contentType !== undefined && contentType !== 'application/json' && contentType !== 'application/octet-stream')
    return contentType
  return manifests === undefined ? OCI_MANIFEST : OCI_INDEX
}

function checked<T>(schema: z.ZodType<T>, json: unknown): T {
  const { success, data, error } = schema.safeParse(json)
  if (success) return data
  const [issue] = error.issues
  throw invalid(`${issue?.path.join('.') || 'it'}: ${issue?.message}`)
}

function partsOf(
  { subject, artifactType, annotations: noted }: z.infer<z.ZodObject<typeof common>>,
  type: string,
): Pick<Manifest, 'mediaType' | 'subject' | 'artifactType' | 'annotations'> {
  return {
    mediaType: type,
    subject: subject?.digest,
    artifactType: artifactType || undefined,
    annotations: noted ?? undefined,
  }
}

function blobOf({ digest, size, urls, mediaType: type }: Named): Manifest['blobs'][number] {
  return { digest, size, isForeign: FOREIGN.test(type) || (urls?.length ?? 0) > 0 }
}

function invalid(reason: string): OciError {
  return new OciError('MANIFEST_INVALID', `the manifest is not taken: ${reason}`)
}
