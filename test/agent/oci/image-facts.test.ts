/** What people look for an image by, whatever is in its manifest. */
import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import { boundedLabels, factsOf } from '../../../agent/oci/image-facts.ts'
import { OCI_INDEX, OCI_MANIFEST } from '../../../agent/oci/manifests.ts'
import { type OciDigest, ofSha256 } from '../../../agent/oci/names.ts'
import { referrersIn } from '../../../agent/oci/upstream-referrers.ts'
import { LABELS_LENGTH_MAX, LABELS_MAX } from '../../../protocols/oci-tag/oci-tag.ts'

const CONFIG = 'application/vnd.oci.image.config.v1+json'
const LAYER = 'application/vnd.oci.image.layer.v1.tar+gzip'
const held = new Map<OciDigest, Uint8Array>()
const read = async (digest: OciDigest) => held.get(digest)

function put(value: unknown, mediaType: string) {
  const bytes = Buffer.from(JSON.stringify(value))
  const digest = ofSha256(createHash('sha256').update(bytes).digest('hex'))
  held.set(digest, bytes)
  return { mediaType, digest, size: bytes.byteLength, bytes }
}

function image(architecture: string, layerBytes: number, labels: Record<string, string> = {}) {
  const { bytes: _config, ...config } = put({ os: 'linux', architecture, config: { Labels: labels } }, CONFIG)
  const layer = { mediaType: LAYER, digest: `sha256:${architecture.length.toString(16).repeat(64)}`, size: layerBytes }
  return put({ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [layer] }, OCI_MANIFEST)
}

describe('facts', () => {
  it('of an image are in its config', async () => {
    const { bytes, size } = image('amd64', 1_000, { version: '1' })
    const facts = await factsOf(bytes, OCI_MANIFEST, read)
    expect(facts).toMatchObject({
      platforms: ['linux/amd64'],
      labels: { version: '1' },
      artifactType: undefined,
      subject: undefined,
    })
    expect(facts.imageBytes).toBeGreaterThan(1_000 + size)
  })

  it('of an index are those of its images, and attestations are no platforms', async () => {
    const [one, two] = [image('amd64', 1_000), image('riscv64', 2_000)]
    const entry = ({ bytes: _bytes, ...rest }: typeof one, platform: object) => ({ ...rest, platform })
    const index = {
      schemaVersion: 2,
      mediaType: OCI_INDEX,
      manifests: [
        entry(one, { os: 'linux', architecture: 'amd64' }),
        entry(two, { os: 'linux', architecture: 'riscv64', variant: 'v1' }),
        { ...entry(one, { os: 'unknown', architecture: 'unknown' }), digest: `sha256:${'f'.repeat(64)}` },
      ],
    }
    const { bytes } = put(index, OCI_INDEX)
    const facts = await factsOf(bytes, OCI_INDEX, read)
    expect(facts.platforms.sort()).toEqual(['linux/amd64', 'linux/riscv64', 'linux/riscv64/v1'])
    expect(facts.imageBytes).toBeGreaterThan(3_000)
  })

  it('are what can be read, whatever the config is', async () => {
    await fc.assert(
      fc.asyncProperty(fc.jsonValue(), async (value) => {
        const { bytes: _bytes, ...config } = put(value, CONFIG)
        const { bytes } = put({ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [] }, OCI_MANIFEST)
        try {
          expect((await factsOf(bytes, OCI_MANIFEST, read)).platforms.length).toBeLessThan(2)
        } catch (error) {
          expect(error).toBeInstanceOf(AgentError)
        }
      }),
    )
  })

  it('have labels that fit a record', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ maxLength: 200 }), fc.string({ maxLength: 800 })), (all) => {
        const kept = Object.entries(boundedLabels(new Map(Object.entries(all))))
        expect(kept.length).toBeLessThanOrEqual(LABELS_MAX)
        expect(kept.reduce((sum, [key, value]) => sum + key.length + value.length, 0)).toBeLessThanOrEqual(
          LABELS_LENGTH_MAX,
        )
      }),
    )
  })
})

describe('referrers of a registry', () => {
  it('are the descriptors among what it answers', () => {
    const good = { mediaType: OCI_MANIFEST, digest: `sha256:${'0'.repeat(64)}`, size: 1, artifactType: 'application/x' }
    const answer = { manifests: [good, { ...good, digest: 'sha256:x' }, { ...good, size: -1 }, 7] }
    expect(referrersIn(Buffer.from(JSON.stringify(answer)))).toEqual([good])
    fc.assert(fc.property(fc.uint8Array(), (bytes) => Array.isArray(referrersIn(bytes))))
    expect(referrersIn(undefined)).toEqual([])
  })
})
