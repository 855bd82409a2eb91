/** An ImageApi with known answers: the part of fake-agent.ts that is about images. */
import type { ImageApi } from '../../../agent/api/image-api.ts'
import type { ImageView } from '../../../agent/api/image-contract.ts'

const image: ImageView = {
  name: 'home/team/app:1',
  network: 'home',
  repository: 'team/app',
  tag: '1',
  digest: `sha256:${'ab'.repeat(32)}`,
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  platforms: ['linux/amd64', 'linux/arm64/v8'],
  sizeBytes: 50_000_000,
  labels: { version: '1' },
  publisher: { peerId: '12D3KooWGaxJ77J4NaPP64PC4dzhngAmh89VxzxSuqccn8KqssnG', name: 'pear' },
  own: false,
  updated: '2026-01-01T00:00:00.000Z',
  holders: 3,
  signatures: [
    {
      digest: `sha256:${'cd'.repeat(32)}`,
      artifactType: 'application/vnd.dev.cosign.artifact.sig.v1+json',
      publisher: 'ci',
      verified: true,
      key: 'ci.pub',
    },
  ],
  here: 'part',
}

const upstreamImage: ImageView = {
  ...image,
  name: 'docker.io/library/app:1',
  repository: 'docker.io/library/app',
  signatures: [],
  upstream: { registry: 'docker.io', checked: '2026-01-01T00:00:00.000Z', fresh: false, reason: 'it does not answer' },
}

export function fakeImages(replaced: Partial<ImageApi> = {}): ImageApi {
  return {
    list: () => ({ images: [image, upstreamImage], truncated: false }),
    show: (ref) => ({
      ...(ref.startsWith('docker.io') ? upstreamImage : image),
      heldBy: [{ peerId: image.publisher.peerId, name: 'pear', connected: false }],
    }),
    history: () => ({
      name: image.name,
      moves: [
        { moved: '2026-01-02T00:00:00.000Z', digest: null, publisher: image.publisher, counts: true },
        { moved: '2026-01-01T00:00:00.000Z', digest: image.digest, publisher: image.publisher, counts: false },
      ],
    }),
    remove: () => ({ name: image.name, digest: image.digest }),
    conf: (program) => ({
      program,
      url: 'http://127.0.0.1:7478',
      files: [{ path: '/etc/containers/registries.conf.d/undernet.conf', lines: ['[[registry]]'] }],
      next: 'pull',
    }),
    ...replaced,
  }
}
