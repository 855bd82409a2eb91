/**
 * The registry of images of a node, put together: what is on this node, what networks and upstream registries have, who may have what, and the routes.
 */
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { type Digest, fileCid } from '../../protocols/artifact/artifact.ts'
import type { Warning } from '../api/contract.ts'
import type { ImageTags } from '../catalog/image-tags.ts'
import type { Config } from '../config/keys.ts'
import { registryPrefix } from '../config/values.ts'
import { OPEN_NETWORK_ID, PUBLICATION_PIN, publicationOf } from '../content/publication-key.ts'
import { reasonOf } from '../error.ts'
import { callerFault, ownRules } from '../http/caller.ts'
import type { Log } from '../log.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'
import type { SharedFetches } from '../nix/shared-fetches.ts'
import { Arrivals } from '../oci/arrivals.ts'
import { FetchedManifests, wholeOf } from '../oci/fetched-manifests.ts'
import { ImagePlaces } from '../oci/image-places.ts'
import { imageRepositories } from '../oci/image-repositories.ts'
import { LocalRepositories } from '../oci/local-repositories.ts'
import { readManifest } from '../oci/manifests.ts'
import { type OciDigest, parsePath, parseTag } from '../oci/names.ts'
import { type ImageNetwork, NetworkRepositories } from '../oci/network-repositories.ts'
import { Parts } from '../oci/parts.ts'
import { authFiles, RegistryAuth } from '../oci/registry-auth.ts'
import type { Repositories, RepositoryName } from '../oci/repositories.ts'
import { registerOciRoutes } from '../oci/routes.ts'
import { Uploads } from '../oci/uploads.ts'
import { UpstreamAnswers } from '../oci/upstream-answers.ts'
import { UpstreamRegistry } from '../oci/upstream-registry.ts'
import { prefixOf, type Upstream, UpstreamRepositories } from '../oci/upstream-repositories.ts'
import type { Database } from '../state/database.ts'
import type { StateDirectory } from '../state/directory.ts'
import type { ClosedNetwork } from './closed-network.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Content } from './content.ts'
import { type Entrance, OPEN_NETWORK_NAME } from './entrance.ts'
import type { OpenNetwork } from './open-network.ts'

/** A holder that the DHT has not named by then does not help whoever waits. */
const PROVIDERS_MS_MAX = 5_000

type Values = Pick<Config, 'registries' | 'registryFreshMs' | 'registryAuthFile'>

type OciDeps = {
  /** Replaced by a reload. */
  values: () => Values
  state: Pick<StateDirectory, 'file'>
  db: Database
  content: Content
  shared: Pick<SharedFetches, 'claim' | 'distrust'>
  entrance: Pick<Entrance, 'networks' | 'mayFetch'>
  /** This node's peer id. */
  self: string
  /** Peers that are connected, members or not. */
  connected: () => readonly string[]
  log: Log
}

/** What starts after the registry, since it runs what the registry serves in them. */
type Networks = { openNetwork: OpenNetwork | undefined; closed: ClosedNetworks }

type RegistryOf = { registry: UpstreamRegistry; network: string | undefined }

export class NodeOci {
  readonly local: LocalRepositories
  readonly repositories: Repositories
  readonly upstreams: UpstreamRepositories
  readonly places: ImagePlaces
  readonly arrivals: Arrivals
  readonly parts: Parts
  readonly #deps: OciDeps
  readonly #uploads: Uploads
  readonly #inNetworks: NetworkRepositories
  #networks: Networks | undefined
  #registries: readonly RegistryOf[] = []

  /** Parts that stop are left to the stack. */
  static start(deps: OciDeps, stack: AsyncDisposableStack): NodeOci {
    return new NodeOci(deps, stack)
  }

  private constructor(deps: OciDeps, stack: AsyncDisposableStack) {
    const { db, state, content, shared, self, log } = deps
    const { blobs, holdings, fetcher, passThrough, uploads } = content
    this.#deps = deps
    const local = stack.use(new LocalRepositories({ db, blobs }))
    this.local = local
    this.#uploads = stack.use(
      Uploads.open({ directory: join(state.file('blobs'), 'uploads'), db, blobs, repositories: this.local, log }),
    )
    const parts = new Parts(db)
    this.parts = parts
    const fetched = new FetchedManifests({ local, parts, blobs, fetcher })
    const mayFetch = (peerId: string, network: string, digest: Digest) => this.mayGive(peerId, network, digest)
    this.arrivals = stack.use(new Arrivals({ self, blobs, holdings, shared, mayFetch, uploads, log }))
    const networkOf = (space: string) => this.network(space)
    const networks = new NetworkRepositories({ local, parts, fetched, blobs, fetcher, passThrough, networkOf })
    this.upstreams = new UpstreamRepositories({
      self,
      local,
      parts,
      fetched,
      answers: new UpstreamAnswers(db),
      arrivals: this.arrivals,
      blobs,
      fetcher,
      passThrough,
      upstreamOf: (prefix) => this.#upstreamOf(prefix),
      freshMs: () => deps.values().registryFreshMs,
      log,
    })
    this.#inNetworks = networks
    this.repositories = imageRepositories(networks, this.upstreams)
    this.places = new ImagePlaces({
      networkNamed: (name) => this.idOf(name),
      upstreamNamed: (name) => this.#registryNamed(name),
      pushFault: (space, repository) => this.#pushFault(space, repository),
    })
    this.configure()
  }

  /** From now on there are networks. */
  connect(networks: Networks): void {
    this.#networks = networks
    const { openNetwork } = networks
    for (const { body } of openNetwork?.images.own() ?? []) openNetwork?.providers.provide(cidText(hex(body.blob)))
    for (const { membership, images } of networks.closed.list())
      for (const { repository, tag } of images.ownDeletions()) this.#settle(membership.id, repository, tag)
  }

  /** Takes a configuration that was read again. */
  configure(): void {
    const { values, log } = this.#deps
    const auth = new RegistryAuth(authFiles(values().registryAuthFile), log)
    this.#registries = values().registries.map((configured) => {
      const url = new URL(configured)
      const network = url.searchParams.get('network') ?? undefined
      const prefix = registryPrefix(url)
      url.search = ''
      return { registry: new UpstreamRegistry({ url: url.href, prefix, auth, log }), network }
    })
  }

  /** Registries upstream, in the order of the configuration. */
  registries(): { prefix: string; url: string; resting: string | undefined }[] {
    return this.#registries.map(({ registry: { prefix, url, resting } }) => ({ prefix, url, resting }))
  }

  /** The id of the network in which what comes from an upstream is shared. */
  networkOfUpstream(prefix: string): string | undefined {
    return this.#upstreamOf(prefix)?.network?.id
  }

  /** How much of an image is on this node. */
  async hereOf(name: RepositoryName, digest: OciDigest, signal: AbortSignal): Promise<'all' | 'part' | 'none'> {
    const { blobs } = this.#deps.content
    const held = await this.local.resolve(name, { digest })
    if (held === undefined) return 'none'
    const manifest = readManifest(await wholeOf(await held.open(signal), held.sizeBytes, signal), held.mediaType)
    const parts = manifest.blobs.filter(({ isForeign }) => !isForeign)
    const isHere = parts.every((part) => {
      const blob = this.local.blobNamed(part.digest)
      return blob !== undefined && blobs.has(blob)
    })
    if (!isHere) return 'part'
    for (const { digest: child } of manifest.manifests)
      if ((await this.hereOf(name, child, signal)) !== 'all') return 'part'
    return 'all'
  }

  /** What it answers on loopback. */
  register(app: FastifyInstance, isShared: boolean): void {
    const rules = ownRules(isShared)
    const { repositories, places, log } = { ...this.#deps, repositories: this.repositories, places: this.places }
    const uploads = this.#uploads
    registerOciRoutes(app, { repositories, uploads, places, refusal: (socket) => callerFault(socket, rules), log })
  }

  /** Runs among the members of a network. */
  async serve(id: string, scope: NetworkScope, images: ImageTags): Promise<AsyncDisposable> {
    await using stack = new AsyncDisposableStack()
    stack.use(await this.arrivals.serve(id, scope))
    // Not in the middle of what is being said.
    stack.defer(images.onChange((repository, tag) => void setImmediate(() => this.#settle(id, repository, tag))))
    return stack.move()
  }

  /** Registries that are left alone at the moment. */
  warnings(): Warning[] {
    return this.registries().flatMap(({ prefix, resting }) =>
      resting === undefined
        ? []
        : [
            {
              code: 'registry.resting',
              message: `the registry ${prefix} is not asked at the moment: ${resting}`,
              next: 'What it said last is served meanwhile, and it is tried again. Take it out of `registries` if it is gone.',
            },
          ],
    )
  }

  /** This node left it. */
  forgetNetwork(id: string): void {
    this.#uploads.forgetSpace(id)
    this.local.forgetSpace(id)
    this.parts.forgetSpace(id)
  }

  /**
   * Whether a peer may have a blob of this node in a network: by the repositories that it is in here; and what is in none, or is published otherwise as
   * well, as other content.
   */
  mayGive(peerId: string, network: string, digest: Digest): boolean {
    const { entrance, content } = this.#deps
    const places = network === OPEN_NETWORK_ID ? [] : this.parts.placesOf(digest)
    const verbs = places.flatMap(({ space, path, isPrivate }) => {
      const repository = this.#repositoryIn(network, space, path)
      return repository === undefined ? [] : [`image:${isPrivate ? 'private' : 'pull'} ${repository}`]
    })
    if (verbs.length === 0) return entrance.mayFetch(peerId, network)
    const isArtifact = content.blobs.index.pins(digest).some((pin) => isPublishedIn(pin, network))
    return entrance.mayFetch(peerId, network, isArtifact ? ['content:fetch', ...verbs] : verbs)
  }

  /** As repositories see it. */
  network(id: string): ImageNetwork | undefined {
    const { openNetwork, closed } = this.#networks ?? {}
    const running = closed?.get(id)
    if (running) return this.#closedNetwork(running)
    if (id !== OPEN_NETWORK_ID || openNetwork === undefined) return undefined
    const { images: tags, providers } = openNetwork
    const { self, connected } = this.#deps
    return {
      id,
      tags,
      sources: async function* (near, blob, signal) {
        const seen = new Set([self])
        const limited = AbortSignal.any([signal, AbortSignal.timeout(PROVIDERS_MS_MAX)])
        for (const peerId of [...near, ...connected()]) {
          if (seen.has(peerId)) continue
          seen.add(peerId)
          yield peerId
        }
        try {
          for await (const peerId of providers.find(cidText(blob), limited)) if (!seen.has(peerId)) yield peerId
        } catch (error) {
          if (signal.aborted || !limited.aborted) throw error
        }
      },
      provide: (blob) => providers.provide(cidText(blob)),
      // Everybody is nobody in particular.
      lends: () => false,
    }
  }

  /** The id of a network by what people here call it. */
  idOf(name: string): string | undefined {
    if (name === OPEN_NETWORK_NAME) return this.#networks?.openNetwork === undefined ? undefined : OPEN_NETWORK_ID
    return this.#deps.entrance.networks.list().find((membership) => membership.name === name)?.id
  }

  /** What people here call a network. */
  nameOf(id: string): string {
    if (id === OPEN_NETWORK_ID) return OPEN_NETWORK_NAME
    return this.#deps.entrance.networks.get(id)?.name ?? id
  }

  /** Never fails: what is not put right now is when something is said of the tag again. */
  #settle(network: string, repository: string, text: string | undefined): void {
    const [path, tag] = [parsePath(repository), parseTag(text ?? '')]
    if (path === undefined || tag === undefined || this.network(network) === undefined) return
    const name = { space: network, path, text: `${this.nameOf(network)}/${path}` }
    this.#inNetworks
      .settle(name, tag)
      .catch((error: unknown) =>
        this.#deps.log.warn({ image: name.text, tag, reason: reasonOf(error) }, 'image.unsettled'),
      )
  }

  #closedNetwork(network: ClosedNetwork): ImageNetwork {
    const { self } = this.#deps
    const { membership, members } = network
    return {
      id: membership.id,
      tags: network.images,
      sources: async function* (near) {
        yield* new Set([...near, ...network.connected()].filter((peerId) => peerId !== self))
      },
      lends: (repository) =>
        members
          .list()
          .some(
            (member) =>
              member.peerId !== self &&
              membership.decide(member, membership.self, `image:private ${repository}`).allowed,
          ),
    }
  }

  /** What a repository on this node is called in a network, if it is in that. */
  #repositoryIn(network: string, space: string, path: string): string | undefined {
    if (space === network) return path
    const prefix = prefixOf(space)
    return prefix !== undefined && this.#upstreamOf(prefix)?.network?.id === network ? `${prefix}/${path}` : undefined
  }

  #registryNamed(nameOrHost: string): UpstreamRegistry | undefined {
    const all = this.#registries.map(({ registry }) => registry)
    return all.find(({ prefix }) => prefix === nameOrHost) ?? all.find(({ host }) => host === nameOrHost)
  }

  #upstreamOf(prefix: string): Upstream | undefined {
    const found = this.#registries.find(({ registry }) => registry.prefix === prefix)
    if (found === undefined) return undefined
    const id = this.#sharedIn(found.network)
    return { registry: found.registry, network: id === undefined ? undefined : this.network(id) }
  }

  /** In the network that is named, or in the only closed one; never by a guess. What everybody would get is said nowhere, and given by its hash. */
  #sharedIn(name: string | undefined): string | undefined {
    if (name !== undefined) return this.idOf(name)
    const [only, ...others] = this.#networks?.closed.list() ?? []
    return others.length === 0 ? only?.membership.id : undefined
  }

  #pushFault(space: string, repository: string): string | undefined {
    const { openNetwork, closed } = this.#networks ?? {}
    if (space === OPEN_NETWORK_ID)
      return openNetwork === undefined ? 'this node is not in the open network' : this.#ownFault(repository)
    const network = closed?.get(space)
    if (network === undefined) return 'the network does not run here: `agent status` says why'
    return network.membership.fault()?.why ?? network.publishingRefusal(`image:push ${repository}`)
  }

  /** In the open network another's repository cannot be pushed to. */
  #ownFault(repository: string): string | undefined {
    const tags = this.#networks?.openNetwork?.images
    if (tags === undefined || tags.callOf(repository) === tags.placeOfOwn(repository).named) return undefined
    return `${repository} is another node's: in the open network a repository is its publisher's`
  }
}

function isPublishedIn(pin: string, network: string): boolean {
  return pin.startsWith(PUBLICATION_PIN) && publicationOf(pin.slice(PUBLICATION_PIN.length)).network === network
}

function cidText(blob: Digest): string {
  return fileCid(blob).toString()
}

function hex(bytes: Uint8Array): Digest {
  return Buffer.from(bytes).toString('hex')
}
