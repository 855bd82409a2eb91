/**
 * What people look for an image by, read from its manifest and what that names: for which platforms it is, how large, with which labels. What
 * cannot be read is left out: the manifest was taken as it is, and nothing of this decides anything.
 */
import { z } from 'zod'
import {
  ALIASES_MAX,
  LABEL_KEY_LENGTH_MAX,
  LABEL_VALUE_LENGTH_MAX,
  LABELS_LENGTH_MAX,
  LABELS_MAX,
  PLATFORMS_MAX,
} from '../../protocols/oci-tag/oci-tag.ts'
import { type Manifest, readManifest } from './manifests.ts'
import { type OciDigest, parseDigest } from './names.ts'

/** Of a config: the history of an image with hundreds of steps is in it. */
const CONFIG_BYTES_MAX = 1024 * 1024

const text = z.string().nullish()
const platformShape = z.object({ os: text, architecture: text, variant: text })
const configShape = platformShape.extend({
  config: z.object({ Labels: z.record(z.string(), z.string()).nullish() }).nullish(),
})
const indexShape = z.object({ manifests: z.array(z.object({ digest: z.string(), platform: platformShape.nullish() })) })
const imageShape = z.object({ config: z.object({ digest: z.string(), mediaType: z.string() }) })

export type ImageFacts = {
  platforms: string[]
  labels: Record<string, string>
  /** Of the manifest and all that it names, each once, as far as that is known. */
  imageBytes: number
  artifactType: string | undefined
  subject: OciDigest | undefined
  /** By SHA-512. */
  longDigests: OciDigest[]
}

/** Reads a part of the image that is here; undefined for one that is not, or is larger. */
export type ReadPart = (digest: OciDigest, bytesMax: number) => Promise<Uint8Array | undefined>

export async function factsOf(bytes: Uint8Array, mediaType: string, read: ReadPart): Promise<ImageFacts> {
  const manifest = readManifest(bytes, mediaType)
  const sizes = new Map<OciDigest, number>()
  const platforms = new Set<string>()
  const labels = new Map(Object.entries(manifest.annotations ?? {}))
  const named = new Map(platformsIn(bytes))
  const add = async (one: Manifest, own: Uint8Array): Promise<void> => {
    for (const { digest, size } of [...one.blobs, ...one.manifests]) sizes.set(digest, size)
    const config = await configOf(own, read)
    if (config === undefined) return
    const platform = platformText(config)
    if (platform !== undefined) platforms.add(platform)
    for (const [key, value] of Object.entries(config.config?.Labels ?? {})) labels.set(key, value)
  }
  await add(manifest, bytes)
  for (const { digest } of manifest.manifests.slice(0, PLATFORMS_MAX)) {
    const platform = named.get(digest)
    if (platform !== undefined) platforms.add(platform)
    const child = await read(digest, CONFIG_BYTES_MAX)
    const one = child && readOrNothing(child)
    if (child && one) await add(one, child)
  }
  const digests = [...sizes.keys()].filter((digest) => digest.startsWith('sha512:'))
  return {
    platforms: [...platforms].slice(0, PLATFORMS_MAX),
    labels: boundedLabels(labels),
    imageBytes: [...sizes.values()].reduce((sum, size) => sum + size, bytes.byteLength),
    artifactType: isImage(manifest) ? undefined : manifest.artifactType,
    subject: manifest.subject,
    longDigests: digests.slice(0, ALIASES_MAX),
  }
}

/** As many as fit, in the order of their keys. */
export function boundedLabels(all: ReadonlyMap<string, string>): Record<string, string> {
  let left = LABELS_LENGTH_MAX
  const kept: [string, string][] = []
  for (const [key, value] of [...all].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const length = key.length + value.length
    const isBad = key === '' || key.length > LABEL_KEY_LENGTH_MAX || value.length > LABEL_VALUE_LENGTH_MAX
    if (isBad || length > left || kept.length >= LABELS_MAX || !isText(key + value)) continue
    kept.push([key, value])
    left -= length
  }
  return Object.fromEntries(kept)
}

function isImage({ artifactType }: Manifest): boolean {
  return (
    artifactType === undefined ||
    /^application\/vnd\.(oci|docker)\..*(image|container)\.(config|image)/.test(artifactType)
  )
}

async function configOf(bytes: Uint8Array, read: ReadPart): Promise<z.infer<typeof configShape> | undefined> {
  const named = imageShape.safeParse(jsonOf(bytes)).data?.config
  const digest =
    named && /image\.(config|v1)|container\.image/.test(named.mediaType) ? parseDigest(named.digest) : undefined
  const config = digest && (await read(digest, CONFIG_BYTES_MAX))
  return config && configShape.safeParse(jsonOf(config)).data
}

function platformsIn(bytes: Uint8Array): [OciDigest, string][] {
  const { manifests = [] } = indexShape.safeParse(jsonOf(bytes)).data ?? {}
  return manifests.flatMap(({ digest, platform }) => {
    const [parsed, shown] = [parseDigest(digest), platform && platformText(platform)]
    return parsed !== undefined && shown ? [[parsed, shown] as [OciDigest, string]] : []
  })
}

/** `unknown/unknown` is what builders call attestations. */
function platformText({ os, architecture, variant }: z.infer<typeof platformShape>): string | undefined {
  if (!os || !architecture || os === 'unknown') return undefined
  const shown = [os, architecture, ...(variant ? [variant] : [])].join('/')
  return /^[a-z0-9._-]{1,32}(?:\/[a-z0-9._-]{1,32}){1,2}$/.test(shown) ? shown : undefined
}

function readOrNothing(bytes: Uint8Array): Manifest | undefined {
  try {
    return readManifest(bytes, undefined)
  } catch {
    return undefined
  }
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch {
    return undefined
  }
}

/** Half a character of UTF-16 has no encoding. */
function isText(value: string): boolean {
  return value.isWellFormed()
}
