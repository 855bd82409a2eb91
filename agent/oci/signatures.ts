/**
 * Signatures of images, as cosign makes them: manifests that belong to the image (referrers), or that have the tag `sha256-HEX.sig` beside it, whose layers are
 * payloads ("simple signing") with the signature as an annotation. Checked by the keys of the configuration; who signs by other means is named, and not
 * believed.
 *
 * https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
 */
import { createPublicKey, type KeyObject, verify } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { z } from 'zod'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { wholeOf } from './fetched-manifests.ts'
import { hexOf, type OciDigest, parseDigest, parseTag } from './names.ts'
import type { Repositories, RepositoryName } from './repositories.ts'

/** Looked at of one image. */
const SIGNATURES_MAX = 16
const LAYERS_MAX = 16
const PAYLOAD_BYTES_MAX = 64 * 1024
const MANIFEST_BYTES_MAX = 256 * 1024
/** What was found out is remembered: bytes of a digest do not change. */
const VERDICTS_MAX = 10_000

const COSIGN_TYPE = 'application/vnd.dev.cosign.artifact.sig.v1+json'
const PAYLOAD_TYPE = 'application/vnd.dev.cosign.simplesigning.v1+json'
const SIGNATURE_ANNOTATION = 'dev.cosignproject.cosign/signature'
/** Cosign's, the bundles of sigstore, notation's. */
const SIGNATURE_TYPES =
  /^application\/vnd\.(?:dev\.cosign\.artifact\.sig|dev\.sigstore\.bundle|cncf\.notary\.signature)/

const manifestShape = z.object({
  layers: z
    .array(
      z.object({ mediaType: z.string(), digest: z.string(), annotations: z.record(z.string(), z.string()).optional() }),
    )
    .max(1_024),
})
const payloadShape = z.object({
  critical: z.object({ type: z.string(), image: z.object({ 'docker-manifest-digest': z.string() }) }),
})

export type SignatureKey = { name: string; key: KeyObject }
/** `verified` is undefined where it cannot be told: no key is configured, or the signature is not here. */
export type FoundSignature = {
  digest: OciDigest
  artifactType: string
  verified: boolean | undefined
  key: string | undefined
}

/** @throws {AgentError} `usage` for a file that is no public key. */
export function readKeys(files: readonly string[]): SignatureKey[] {
  return files.map((file) => {
    try {
      return { name: basename(file), key: createPublicKey(readFileSync(file)) }
    } catch (cause) {
      throw new AgentError('usage', `image_keys: ${file} is no public key: ${reasonOf(cause)}`, {
        cause,
        next: 'Give the .pub file that `cosign generate-key-pair` wrote.',
      })
    }
  })
}

export class Signatures {
  readonly #keys: readonly SignatureKey[]
  readonly #repositories: Pick<Repositories, 'resolve' | 'blob' | 'referrers'>
  readonly #log: Log
  readonly #verdicts = new Map<string, string | false>()

  constructor(
    keys: readonly SignatureKey[],
    repositories: Pick<Repositories, 'resolve' | 'blob' | 'referrers'>,
    log: Log,
  ) {
    this.#keys = keys
    this.#repositories = repositories
    this.#log = log
  }

  /** Those of an image; each held against the keys while the signal lasts. */
  async of(name: RepositoryName, image: OciDigest, signal: AbortSignal): Promise<FoundSignature[]> {
    const found = await this.#find(name, image, signal)
    return await Promise.all(found.slice(0, SIGNATURES_MAX).map((one) => this.#judge(name, image, one, signal)))
  }

  async #find(
    name: RepositoryName,
    image: OciDigest,
    signal: AbortSignal,
  ): Promise<{ digest: OciDigest; artifactType: string }[]> {
    const query = { artifactType: undefined, last: undefined }
    const { descriptors } = await this.#repositories.referrers(name, image, query, signal)
    const belonging = descriptors.flatMap(({ digest, artifactType = '' }) =>
      SIGNATURE_TYPES.test(artifactType) ? [{ digest, artifactType }] : [],
    )
    const tag = parseTag(`sha256-${hexOf(image)}.sig`)
    const tagged = tag && (await this.#quietly(() => this.#repositories.resolve(name, { tag }, signal)))
    const all = [...belonging, ...(tagged ? [{ digest: tagged.digest, artifactType: COSIGN_TYPE }] : [])]
    return [...new Map(all.map((one) => [one.digest, one])).values()]
  }

  async #judge(
    name: RepositoryName,
    image: OciDigest,
    found: { digest: OciDigest; artifactType: string },
    signal: AbortSignal,
  ): Promise<FoundSignature> {
    if (this.#keys.length === 0) return { ...found, verified: undefined, key: undefined }
    const known = `${found.digest} ${image}`
    let verdict = this.#verdicts.get(known)
    if (verdict === undefined) {
      verdict = await this.#quietly(() => this.#check(name, image, found.digest, signal))
      if (this.#verdicts.size >= VERDICTS_MAX) this.#verdicts.clear()
      if (verdict !== undefined) this.#verdicts.set(known, verdict)
    }
    return { ...found, verified: verdict === undefined ? undefined : verdict !== false, key: verdict || undefined }
  }

  /** The name of the key that it is by; false when it is by none of them, or of something else. */
  async #check(
    name: RepositoryName,
    image: OciDigest,
    digest: OciDigest,
    signal: AbortSignal,
  ): Promise<string | false> {
    const manifest = await this.#repositories.resolve(name, { digest }, signal)
    if (manifest === undefined || manifest.sizeBytes > MANIFEST_BYTES_MAX)
      throw new AgentError('not-found', 'the signature is not here')
    const bytes = await wholeOf(await manifest.open(signal), manifest.sizeBytes, signal)
    const { layers } = manifestShape.parse(JSON.parse(Buffer.from(bytes).toString('utf8')))
    for (const { mediaType, digest: named, annotations } of layers.slice(0, LAYERS_MAX)) {
      const signature = annotations?.[SIGNATURE_ANNOTATION]
      const part = parseDigest(named)
      if (mediaType !== PAYLOAD_TYPE || signature === undefined || part === undefined) continue
      const held = await this.#repositories.blob(name, part, signal)
      if (held === undefined || held.sizeBytes > PAYLOAD_BYTES_MAX) continue
      const payload = await wholeOf(await held.open(signal), held.sizeBytes, signal)
      const key = isOf(payload, image) ? this.#keyOf(payload, Buffer.from(signature, 'base64')) : undefined
      if (key !== undefined) return key
    }
    return false
  }

  #keyOf(payload: Uint8Array, signature: Uint8Array): string | undefined {
    return this.#keys.find(({ key }) => {
      const algorithm = key.asymmetricKeyType === 'ed25519' ? null : 'sha256'
      try {
        return verify(algorithm, payload, key, signature)
      } catch {
        return false
      }
    })?.name
  }

  /** What cannot be had, or read, says nothing. */
  async #quietly<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work()
    } catch (error) {
      this.#log.debug({ reason: reasonOf(error) }, 'signature.unread')
      return undefined
    }
  }
}

/** Whether a payload says that it is of this image, and not of another one. */
function isOf(payload: Uint8Array, image: OciDigest): boolean {
  try {
    const { critical } = payloadShape.parse(JSON.parse(Buffer.from(payload).toString('utf8')))
    return critical.image['docker-manifest-digest'] === image && critical.type === 'cosign container image signature'
  } catch {
    return false
  }
}
