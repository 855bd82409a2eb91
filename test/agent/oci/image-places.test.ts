/** Which repository a name means, and what programs are told to ask for it. */
import { describe, expect, it } from 'vitest'
import { containerdConf, dockerConf, podmanConf } from '../../../agent/oci/client-conf.ts'
import { ImagePlaces } from '../../../agent/oci/image-places.ts'
import { parsePath, type RepositoryPath } from '../../../agent/oci/names.ts'

const HOME = 'a'.repeat(64)
const registries = new Map([
  ['docker.io', 'docker.io'],
  ['registry.example', 'ghcr'],
  ['ghcr', 'ghcr'],
])
const places = new ImagePlaces({
  networkNamed: (name) => (name === 'home' ? HOME : undefined),
  upstreamNamed: (name) => (registries.has(name) ? { prefix: registries.get(name) ?? '' } : undefined),
  pushFault: (_space, repository) => (repository === 'locked' ? 'no grant' : undefined),
})
const locate = (path: string, ns?: string) => {
  const found = places.locate(parsePath(path) as RepositoryPath, ns)
  return found && `${found.space} ${found.path}`
}

describe('a name', () => {
  it.each([
    ['home/team/app', undefined, `${HOME} team/app`],
    ['ghcr/team/app', undefined, 'upstream:ghcr team/app'],
    ['docker.io/library/app', undefined, 'upstream:docker.io library/app'],
    ['docker.io/app', undefined, 'upstream:docker.io library/app'],
    ['library/app', undefined, 'upstream:docker.io library/app'],
    ['team/app', 'registry.example', 'upstream:ghcr team/app'],
    ['home/app', 'docker.io', 'upstream:docker.io home/app'],
    ['home/app', '127.0.0.1:7478', `${HOME} app`],
    ['home/app', 'localhost:7478', `${HOME} app`],
    ['team/app', 'other.example', undefined],
  ])('%s with ns=%s is %s', (path, ns, expected) => {
    expect(locate(path, ns)).toBe(expected)
  })

  it('is nobody’s where docker.io is not mirrored', () => {
    const none = new ImagePlaces({
      networkNamed: () => undefined,
      upstreamNamed: () => undefined,
      pushFault: () => undefined,
    })
    expect(none.locate(parsePath('library/app') as RepositoryPath, undefined)).toBeUndefined()
  })

  it('of an upstream takes no pushes, and of a network those that the policy lets', () => {
    const fault = (path: string) => {
      const name = places.locate(parsePath(path) as RepositoryPath, undefined)
      return name && places.writeFault(name)
    }
    expect(fault('ghcr/app')).toContain('ghcr is mirrored here')
    expect(fault('home/locked')).toBe('no grant')
    expect(fault('home/app')).toBeUndefined()
  })
})

describe('lines', () => {
  const url = 'http://127.0.0.1:7478'
  const mirrored = [{ prefix: 'docker.io', url: 'https://registry.example' }]

  it('for containerd say the mirror, and where to go without it', () => {
    const { files } = containerdConf(url, mirrored)
    expect(files.map(({ path }) => path)).toEqual([
      '/etc/containerd/config.toml',
      '/etc/containerd/certs.d/docker.io/hosts.toml',
      '/etc/containerd/certs.d/127.0.0.1:7478/hosts.toml',
    ])
    expect(files[1]?.lines).toEqual([
      'server = "https://registry.example"',
      '',
      '[host."http://127.0.0.1:7478"]',
      '  capabilities = ["pull", "resolve"]',
    ])
  })

  it('for podman say a prefix for each upstream', () => {
    const [file] = podmanConf(url, mirrored).files
    expect(file?.lines.join('\n')).toContain(
      '[[registry.mirror]]\nlocation = "127.0.0.1:7478/docker.io"\ninsecure = true',
    )
  })

  it('for docker are JSON, and mirror docker.io only', () => {
    const read = (all: typeof mirrored) => JSON.parse(dockerConf(url, all).files[0]?.lines.join('\n') ?? '') as unknown
    expect(read(mirrored)).toEqual({ 'registry-mirrors': [url], 'insecure-registries': ['127.0.0.1:7478'] })
    expect(read([{ prefix: 'ghcr', url }])).toEqual({ 'insecure-registries': ['127.0.0.1:7478'] })
  })
})
