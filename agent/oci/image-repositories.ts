/** All repositories of a node: those of networks, and those of upstream registries, by the space that a name is in. */
import type { NetworkRepositories } from './network-repositories.ts'
import type { Repositories, RepositoryName } from './repositories.ts'
import { prefixOf, type UpstreamRepositories } from './upstream-repositories.ts'

export function imageRepositories(networks: NetworkRepositories, upstreams: UpstreamRepositories): Repositories {
  const of = ({ space }: RepositoryName) => (prefixOf(space) === undefined ? networks : upstreams)
  return {
    exists: (name, signal) => of(name).exists(name, signal),
    resolve: (name, reference, signal) => of(name).resolve(name, reference, signal),
    blob: (name, digest, signal) => of(name).blob(name, digest, signal),
    tags: (name, page, signal) => of(name).tags(name, page, signal),
    referrers: (name, digest, query, signal) => of(name).referrers(name, digest, query, signal),
    // Nothing is written to an upstream: the places of a node say so before.
    putManifest: (name, push, signal) => networks.putManifest(name, push, signal),
    deleteTag: (name, tag) => networks.deleteTag(name, tag),
    deleteManifest: (name, digest) => networks.deleteManifest(name, digest),
    deleteBlob: (name, digest) => networks.deleteBlob(name, digest),
    mount: (name, digest, from) => networks.mount(name, digest, from),
  }
}
