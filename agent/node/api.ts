/**
 * What the local API does: each method puts together what the parts know, in the words of the contract (agent/api/contract.ts).
 */
import { randomUUID } from 'node:crypto'
import { type ArtifactBody, type NixArtifactBody, PATH_PREFIX_BYTES } from '../../protocols/artifact/artifact.ts'
import type { AgentApi } from '../api/agent-api.ts'
import type { BlobReader } from '../api/blob-reader.ts'
import type {
  ArtifactDetail,
  ArtifactView,
  ConfigView,
  FetchResult,
  NixConfView,
  PeerView,
  PingResult,
  PublishRequest,
  PublishResult,
  SearchResult,
  Status,
  TrustedKeyView,
  UploadRequest,
  Warning,
} from '../api/contract.ts'
import type { NetworkView } from '../api/membership-contract.ts'
import type { NamesApi } from '../api/names-api.ts'
import type { NetcheckApi } from '../api/netcheck-api.ts'
import type { UpkeepApi } from '../api/upkeep-api.ts'
import type { BringDeps } from '../artifacts/bring.ts'
import type { Publications } from '../artifacts/publications.ts'
import { storeUpload } from '../artifacts/upload.ts'
import type { Artifact } from '../catalog/artifacts.ts'
import type { Catalogs } from '../catalog/catalogs.ts'
import type { LoadedConfig } from '../config/config.ts'
import { TEMPORARY_PIN } from '../content/content.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Host } from '../mesh/host.ts'
import type { Keeper } from '../mesh/keeper.ts'
import { publishStorePath } from '../nix/closure.ts'
import type { CacheKey, PublicKey } from '../nix/signing.ts'
import type { Substituter } from '../nix/substituter.ts'
import type { TrustedKeys } from '../nix/trust.ts'
import type { Upstreams } from '../nix/upstreams.ts'
import { VERSION } from '../version.ts'
import { NodeImages, type NodeImagesDeps } from './api-images.ts'
import { NodeMembership } from './api-membership.ts'
import { NodeRoom } from './api-room.ts'
import { NodeServices } from './api-routing.ts'
import { bring } from './bringing.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Content } from './content.ts'
import { type Entrance, OPEN_NETWORK_NAME } from './entrance.ts'
import type { Joining } from './joining.ts'
import type { OpenNetwork } from './open-network.ts'
import type { Places } from './places.ts'
import type { Reach } from './reach.ts'
import type { NodeRouting } from './routing.ts'
import { NodeShare } from './sharing.ts'

const PING_MS_MAX = 10_000
/** What Nix asks for when nothing else is configured; the agent's cache stands before it. */
const NEGATIVE_TTL_LINE = 'narinfo-cache-negative-ttl = 0'

const NEVER = new AbortController().signal

export type Parts = Pick<NodeImagesDeps, 'oci' | 'holders' | 'signatures'> & {
  /** Replaced by a reload. */
  current: { readonly config: LoadedConfig }
  host: Host
  reach: Reach
  keeper: Keeper
  /** undefined when this node takes no part in it. */
  openNetwork: OpenNetwork | undefined
  closed: ClosedNetworks
  catalogs: Catalogs
  entrance: Entrance
  joining: Joining
  places: Places
  routing: NodeRouting
  names: NamesApi
  upkeep: UpkeepApi
  netcheck: NetcheckApi
  content: Content
  cacheKey: CacheKey
  trust: TrustedKeys
  substituter: Substituter
  upstreams: Pick<Upstreams, 'fetchedBytes'>
  /** Keys of members who may sign in a network. */
  signersIn: (network: string) => readonly PublicKey[]
  /** `http://127.0.0.1:7478`; undefined when off. */
  httpUrl: string | undefined
  /** Peers that may hold an artifact, the publishers first. */
  sources: BringDeps['sources']
  warnings: () => Warning[]
  startedMs: number
  log: Log
}

export class NodeApi implements AgentApi {
  readonly membership: NodeMembership
  readonly room: NodeRoom
  readonly sharing: NodeShare
  readonly routing: NodeServices
  readonly names: NamesApi
  readonly netcheck: NetcheckApi
  readonly images: NodeImages
  readonly upkeep: UpkeepApi
  readonly #parts: Parts
  readonly #places: Places

  constructor(parts: Parts) {
    this.#parts = parts
    this.#places = parts.places
    this.names = parts.names
    this.upkeep = parts.upkeep
    this.netcheck = parts.netcheck
    this.room = new NodeRoom({
      ...parts,
      networks: parts.entrance.networks,
      idOf: (network) => this.#places.idOf(network),
    })
    this.sharing = new NodeShare(parts.content.sharing, parts.places, parts.log)
    this.routing = new NodeServices({
      ...parts,
      self: parts.host.peerId,
      nameOf: (network) => network && parts.entrance.networks.find(network).name,
      ping: (peerId, signal) => parts.host.ping(peerId, signal),
    })
    this.images = new NodeImages({
      ...parts,
      self: parts.host.peerId,
      networks: (named) => this.#networkIds(named),
      connected: (id) => (id === OPEN_NETWORK_ID ? parts.host.connected() : (parts.closed.get(id)?.connected() ?? [])),
      nameOf: (peerId) => (peerId === parts.host.peerId ? parts.current.config.values.name : this.#nameOf(peerId)),
    })
    const { networks, issuer, invitations, audit, gate } = parts.entrance
    this.membership = new NodeMembership({
      ...parts,
      name: parts.current.config.values.name,
      networks,
      issuer,
      invitations,
      audit,
      gate,
      open: () => this.#openView(),
      shareOf: (id) => parts.content.sharing.shares.modeOf(id),
    })
  }

  status(): Status {
    const { current, host, catalogs, content, substituter, upstreams, httpUrl } = this.#parts
    const { blobs, fetcher, pieces, laneServer, published } = content
    const { hits, misses } = substituter.counts
    const { networks, open } = this.membership.networks()
    return {
      version: VERSION,
      peerId: host.peerId,
      name: current.config.values.name,
      uptimeSeconds: Math.round((performance.now() - this.#parts.startedMs) / 1_000),
      listen: host.addresses(),
      http: httpUrl ?? null,
      networks: [...(open === null ? [] : [open]), ...networks.map(summaryOf)],
      peers: this.peers(),
      artifacts: catalogs.count(),
      content: {
        pathsShared: content.sharing.pathCount ?? published.pathCount,
        ...blobs.stats,
        hits,
        misses,
        fetchedBytes: fetcher.fetchedBytes + upstreams.fetchedBytes + this.#parts.oci.arrivals.fetchedBytes,
        servedBytes: pieces.servedBytes,
        lanes: {
          port: laneServer?.port ?? null,
          fetchedBytes: fetcher.laneBytes,
          servedBytes: laneServer?.sentBytes ?? 0,
        },
      },
      services: this.routing.services().services,
      instances: this.routing.instances(),
      warnings: this.#parts.warnings(),
    }
  }

  peers(): PeerView[] {
    const now = Date.now()
    return this.#parts.keeper.peers().map(({ peerId, address, path, relay, direction, rttMs, connectedMs }) => ({
      peerId,
      name: this.#nameOf(peerId),
      address,
      path,
      relay: relay === undefined ? null : { peerId: relay, name: this.#nameOf(relay) },
      direction: direction === 'inbound' ? 'in' : 'out',
      rttMs: rttMs === undefined ? null : rttMs,
      connectedSeconds: Math.max(0, Math.round((now - connectedMs) / 1_000)),
      networks: this.#parts.entrance.sharedWith(peerId),
    }))
  }

  async ping(peer: string, signal: AbortSignal): Promise<PingResult> {
    const { host } = this.#parts
    const target = peer.startsWith('/') ? peer : (this.#nearestOf(peer) ?? this.#peerNamed(peer))
    const limited = AbortSignal.any([signal, AbortSignal.timeout(PING_MS_MAX)])
    try {
      const { peerId, rttMs, address } = await host.ping(target, limited)
      const { path } = this.#parts.routing.linkOf(peerId)
      return { peerId, name: this.#nameOf(peerId), address, path, rttMs }
    } catch (cause) {
      signal.throwIfAborted()
      if (cause instanceof AgentError) throw cause
      throw new AgentError('failed', `${peer} does not answer: ${reasonOf(cause)}`, {
        cause,
        next: 'Is its agent running, and the port open? `agent peers` shows who is connected.',
      })
    }
  }

  async publishStorePath(request: PublishRequest, signal: AbortSignal): Promise<PublishResult> {
    const { content, cacheKey } = this.#parts
    const { blobs, store } = content
    return await this.#published(request.network, async (pin) => {
      const { storePath, name, description } = request
      const made = await publishStorePath(
        storePath,
        { name, description, pin, signal },
        { store, key: cacheKey, blobs },
      )
      return { ...made, blobs: [made.blobs.manifest, made.blobs.signatures] }
    })
  }

  async publishUpload(
    { type, name, description = '', network }: UploadRequest,
    bytes: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<PublishResult> {
    return await this.#published(network, async (pin) => {
      const stored = await storeUpload({ type, name, description }, bytes, this.#parts.content.blobs, pin, signal)
      return { name, ...stored }
    })
  }

  unpublish(ref: string, network?: string): ArtifactView {
    const place = this.#places.sharing(ref, network)
    const [withdrawn] = place.publications.withdraw(ref)
    return this.#view(withdrawn as Artifact)
  }

  async search(words: string, limit: number, network?: string, signal = NEVER): Promise<SearchResult> {
    const { artifacts, truncated } = this.#parts.catalogs.search(words, limit, this.#places.idOf(network))
    const found = await this.images.list(words, limit, network, signal)
    const views = artifacts.map((one) => this.#view(one))
    return { artifacts: views, truncated, images: found.images, imagesTruncated: found.truncated }
  }

  async artifact(ref: string, network?: string): Promise<ArtifactDetail> {
    const { catalogs, host } = this.#parts
    const entry = catalogs.resolve(ref, this.#places.idOf(network))
    const { body } = entry
    const connected = new Set(host.connected())
    return {
      ...this.#view(entry),
      holders: catalogs
        .holders(body.cid.toString(), entry.network)
        .map((peerId) => ({ peerId, name: this.#nameOf(peerId), connected: connected.has(peerId) })),
      ...(body.type === 'nix' && (await this.#trustIn({ ...entry, body }))),
    }
  }

  async #trustIn(entry: Artifact & { body: NixArtifactBody }) {
    const { trust, signersIn, substituter } = this.#parts
    const { signer } = entry.body
    const signerTrusted = trust.has(signer) || signersIn(entry.network).some(({ text }) => text === signer)
    const refused = entry.isOwn ? undefined : await substituter.refusal(entry)
    return { signer, signerTrusted, ...(refused !== undefined && { refused }) }
  }

  async fetch(
    ref: string,
    onProgress: BringDeps['onProgress'],
    signal: AbortSignal,
    network?: string,
  ): Promise<FetchResult> {
    try {
      return await this.#fetch(ref, onProgress, signal, this.#places.idOf(network))
    } catch (error) {
      // Who asked is told, too; what peers did to this node belongs into its log.
      if (!signal.aborted) this.#parts.log.warn({ ref, reason: reasonOf(error) }, 'artifact.unfetched')
      throw error
    }
  }

  async #fetch(
    ref: string,
    onProgress: BringDeps['onProgress'],
    signal: AbortSignal,
    wanted: string | undefined,
  ): Promise<FetchResult> {
    const { cid, entry, brought } = await bring({ ref, network: wanted }, this.#parts, { onProgress }, signal)
    const { type, root, parts } = brought
    if (entry) return { artifact: this.#view(entry), parts }
    const sizeBytes = parts.reduce((sum, part) => sum + part.sizeBytes, 0)
    const said = { cid: cid.toString(), name: cid.toString(), type, description: '', sizeBytes }
    return { artifact: { ...said, ...(root !== undefined && { root, pathCount: parts.length }) }, parts }
  }

  async blob(digest: string): Promise<BlobReader | undefined> {
    return await this.#parts.content.holdings.open(digest)
  }

  trustedKeys(): TrustedKeyView[] {
    return this.#parts.trust.list()
  }

  trust(key: string): TrustedKeyView {
    return this.#parts.trust.add(key)
  }

  distrust(key: string): TrustedKeyView {
    return this.#parts.trust.remove(key)
  }

  nixConf(): NixConfView {
    const { httpUrl, cacheKey } = this.#parts
    if (httpUrl === undefined) {
      throw new AgentError('failed', 'the binary cache is off (http = off), so Nix has nothing to use', {
        next: 'Start the agent with --http 127.0.0.1:7478.',
      })
    }
    const url = `${httpUrl}/nix`
    const publicKey = cacheKey.publicKey.text
    const lines = [`extra-substituters = ${url}`, `extra-trusted-public-keys = ${publicKey}`, NEGATIVE_TTL_LINE]
    return { url, publicKey, lines }
  }

  config(): ConfigView {
    const { entries, file } = this.#parts.current.config
    return { file: file ?? null, entries: [...entries] }
  }

  /** Makes an artifact under a temporary pin, publishes it, and lets the pin go whatever happens. */
  async #published(
    network: string | undefined,
    make: (pin: string) => Promise<Parameters<Publications['publish']>[0]>,
  ): Promise<PublishResult> {
    const { blobs } = this.#parts.content
    const place = this.#places.toPublish(network)
    const pin = `${TEMPORARY_PIN}${randomUUID()}`
    try {
      const entry = place.publications.publish(await make(pin))
      return { artifact: this.#view(entry), announcedTo: place.connected().length }
    } finally {
      blobs.setPins(pin, [])
    }
  }

  /** Of the networks of this node, or of the one that is named. */
  #networkIds(named: string | undefined): string[] {
    const id = this.#places.idOf(named)
    if (id !== undefined) return [id]
    const { openNetwork, closed } = this.#parts
    const all = closed.list().map(({ membership }) => membership.id)
    return openNetwork === undefined ? all : [...all, OPEN_NETWORK_ID]
  }

  #openView(): NetworkView | undefined {
    const { openNetwork } = this.#parts
    if (openNetwork === undefined) return undefined
    const nodes = openNetwork.nodes.list().length
    return {
      id: OPEN_NETWORK_ID,
      name: OPEN_NETWORK_NAME,
      kind: 'open',
      nodes,
      share: this.#parts.content.sharing.shares.modeOf(OPEN_NETWORK_ID),
    }
  }

  #view({ name, network, body, peerId, isOwn, issued, expires }: Artifact): ArtifactView {
    const known = this.#parts.entrance.networks.get(network)?.name
    return {
      cid: body.cid.toString(),
      network: network === OPEN_NETWORK_ID ? OPEN_NETWORK_NAME : (known ?? network),
      name,
      type: body.type,
      description: body.description,
      sizeBytes: body.sizeBytes,
      publisher: { peerId, name: this.#nameOf(peerId) },
      own: isOwn,
      issued: new Date(issued).toISOString(),
      expires: new Date(expires).toISOString(),
      ...nixFields(body),
    }
  }

  /** What a member is called in a network comes before what a node calls itself. */
  #nameOf(peerId: string): string | null {
    const { openNetwork, closed } = this.#parts
    const member = closed
      .list()
      .map(({ members }) => members.get(peerId)?.name)
      .find((name) => name !== undefined)
    return member ?? openNetwork?.nodes.get(peerId)?.name ?? null
  }

  /** The node of a service's nearest instance, if it is the name of one and of no node. */
  #nearestOf(name: string): string | undefined {
    const { closed, routing, host } = this.#parts
    if (closed.list().some(({ members }) => members.byName(name).length > 0)) return undefined
    const found = routing.services.resolve(name)
    if (found === undefined) return undefined
    const { network, service, node } = found
    const others = routing.dialer.candidates({ network, service, ...(node !== undefined && { node }) })
    const [nearest] = others.filter(({ peerId }) => peerId !== host.peerId)
    if (nearest !== undefined) return nearest.peerId
    throw new AgentError('usage', `${name} is on this node only`)
  }

  /** @throws {AgentError} `not-found`, or `usage` when several nodes have the name. */
  #peerNamed(nameOrId: string): string {
    const { openNetwork, closed } = this.#parts
    const members = closed.list().flatMap((network) => network.members.list())
    const all = [...members, ...(openNetwork?.nodes.list() ?? [])]
    const named = new Set(all.flatMap(({ name, peerId }) => (name === nameOrId || peerId === nameOrId ? [peerId] : [])))
    const [only, ...others] = named
    if (only === undefined) {
      if (/^[1-9A-HJ-NP-Za-km-z]{40,}$/.test(nameOrId)) return nameOrId
      throw new AgentError('not-found', `no node named ${JSON.stringify(nameOrId)} is known`, {
        next: '`agent peers` lists those that are connected; a peer id or a multiaddr will do, too.',
      })
    }
    if (others.length === 0) return only
    throw new AgentError('usage', `${named.size} nodes are named ${nameOrId}`, {
      next: `Give the peer id: ${[...named].join(' or ')}.`,
    })
  }
}

/** As `agent status` has it. */
function summaryOf({ id, name, kind, nodes, member, members, share }: NetworkView): NetworkView {
  const given = share && { share }
  return { id, name, kind, nodes, ...given, ...(member && { member }), ...(members !== undefined && { members }) }
}

function nixFields(body: ArtifactBody): Pick<ArtifactView, 'root' | 'pathCount'> {
  return body.type === 'nix' ? { root: body.root, pathCount: body.paths.byteLength / PATH_PREFIX_BYTES } : {}
}
