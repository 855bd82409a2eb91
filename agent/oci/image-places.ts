/**
 * Which repository a client means: `<network>/<repository>`, `<prefix>/<repository>` of an upstream registry, `?ns=` as containerd asks its mirrors, or a name that
 * begins with neither, as docker asks its.
 */
import { parsePath, type RepositoryPath } from './names.ts'
import type { Places, RepositoryName } from './repositories.ts'
import { prefixOf, upstreamSpace } from './upstream-repositories.ts'

/** What docker's `registry-mirrors` mirror, and nothing else. */
const DOCKER_PREFIX = 'docker.io'
/** Where it keeps what is asked for by one word. */
const DOCKER_LIBRARY = 'library'

export type ImagePlacesInit = {
  /** The id of the network that people here call so. */
  networkNamed: (name: string) => string | undefined
  /** The upstream of that prefix, or of that host. */
  upstreamNamed: (nameOrHost: string) => { prefix: string } | undefined
  /** Why this node's pushes to a repository would not count. */
  pushFault: (space: string, repository: string) => string | undefined
}

export class ImagePlaces implements Places {
  readonly #init: ImagePlacesInit

  constructor(init: ImagePlacesInit) {
    this.#init = init
  }

  locate(path: RepositoryPath, ns: string | undefined): RepositoryName | undefined {
    const { networkNamed, upstreamNamed } = this.#init
    // Some clients name the very host that they ask.
    if (ns !== undefined && !isLoopback(ns)) {
      const upstream = upstreamNamed(ns)
      return upstream && ofUpstream(upstream.prefix, path, `${ns}/${path}`)
    }
    const slash = path.indexOf('/')
    const [first, rest] = slash < 0 ? [path, undefined] : [path.slice(0, slash), parsePath(path.slice(slash + 1))]
    const network = rest === undefined ? undefined : networkNamed(first)
    if (rest !== undefined && network !== undefined) return { space: network, path: rest, text: path }
    const upstream = rest === undefined ? undefined : upstreamNamed(first)
    if (rest !== undefined && upstream) return ofUpstream(upstream.prefix, rest, path)
    const docker = upstreamNamed(DOCKER_PREFIX)
    return docker && ofUpstream(docker.prefix, path, path)
  }

  writeFault({ space, path }: RepositoryName): string | undefined {
    const prefix = prefixOf(space)
    if (prefix !== undefined)
      return `${prefix} is mirrored here, and nothing is pushed to it: push to a network of this node, as NETWORK/${path}`
    return this.#init.pushFault(space, path)
  }
}

function ofUpstream(prefix: string, path: RepositoryPath, text: string): RepositoryName {
  const isShort = prefix === DOCKER_PREFIX && !path.includes('/')
  return { space: upstreamSpace(prefix), path: isShort ? (`${DOCKER_LIBRARY}/${path}` as RepositoryPath) : path, text }
}

function isLoopback(ns: string): boolean {
  return /^(?:localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3})(?::\d+)?$/.test(ns)
}
