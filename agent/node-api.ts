/**
 * What the local API does: each method puts together what the parts know, in the words of the contract (agent/api/contract.ts).
 */
import { randomUUID } from 'node:crypto'
import { type ArtifactBody, PATH_PREFIX_BYTES } from '../protocols/artifact/artifact.ts'
import { OPEN_NETWORK } from '../protocols/records/record.ts'
import type { AgentApi, BlobReader } from './api/agent-api.ts'
import type { MembershipApi } from './api/membership-api.ts'
import type {
  ArtifactDetail,
  ArtifactView,
  Check,
  ConfigView,
  DoctorResult,
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
} from './api/contract.ts'
import { type BringDeps, bringArtifact, cidIn } from './artifacts/bring.ts'
import type { Publications } from './artifacts/publications.ts'
import { storeUpload } from './artifacts/upload.ts'
import type { Artifact, Artifacts } from './catalog/artifacts.ts'
import type { Nodes } from './catalog/nodes.ts'
import type { LoadedConfig } from './config.ts'
import type { Blobs } from './content/blobs.ts'
import { type BlobHolder, TEMPORARY_PIN } from './content/content.ts'
import type { Fetcher } from './content/fetcher.ts'
import { OPEN_NETWORK_ID } from './content/publication-key.ts'
import type { PieceServer } from './content/server.ts'
import { AgentError, reasonOf } from './error.ts'
import type { Log } from './log.ts'
import type { Host } from './mesh/host.ts'
import type { Keeper } from './mesh/keeper.ts'
import { publishStorePath } from './nix/closure.ts'
import type { NarSource } from './nix/nar-source.ts'
import type { NixStore } from './nix/nix-store.ts'
import type { CacheKey } from './nix/signing.ts'
import type { Substituter } from './nix/substituter.ts'
import type { TrustedKeys } from './nix/trust.ts'
import { VERSION } from './version.ts'

const PING_MS_MAX = 10_000
const OPEN_NETWORK_NAME = 'open'
/** What Nix asks for when nothing else is configured; the agent's cache stands before it. */
const NEGATIVE_TTL_LINE = 'narinfo-cache-negative-ttl = 0'

export type Parts = {
  /** Replaced by a reload. */
  current: { readonly config: LoadedConfig }
  host: Host
  keeper: Keeper
  nodes: Nodes
  artifacts: Artifacts
  publications: Publications
  blobs: Blobs
  holdings: BlobHolder
  fetcher: Fetcher
  pieces: PieceServer
  store: NixStore
  published: NarSource
  cacheKey: CacheKey
  trust: TrustedKeys
  substituter: Substituter
  /** `http://127.0.0.1:7478`; undefined when off. */
  httpUrl: string | undefined
  /** Peers that may hold an artifact, the publishers first. */
  sources: BringDeps['sources']
  warnings: () => Warning[]
  startedMs: number
  log: Log
}

export class NodeApi implements AgentApi {
  readonly membership = new Proxy({} as MembershipApi, { get: () => unwired })
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  status(): Status {
    const { current, host, nodes, artifacts, blobs, fetcher, pieces, published, substituter, httpUrl } = this.#parts
    const { hits, misses } = substituter.counts
    const counts = artifacts.count()
    return {
      version: VERSION,
      peerId: host.peerId,
      name: current.config.values.name,
      uptimeSeconds: Math.round((performance.now() - this.#parts.startedMs) / 1_000),
      listen: host.addresses(),
      http: httpUrl ?? null,
      networks: [
        {
          id: Buffer.from(OPEN_NETWORK).toString('hex'),
          name: OPEN_NETWORK_NAME,
          kind: 'open',
          nodes: nodes.list().length,
        },
      ],
      peers: this.peers(),
      artifacts: { own: counts.own, known: counts.known },
      content: {
        pathsShared: published.pathCount,
        ...blobs.stats,
        hits,
        misses,
        fetchedBytes: fetcher.fetchedBytes,
        servedBytes: pieces.servedBytes,
      },
      services: [],
      instances: [],
      warnings: this.#parts.warnings(),
    }
  }

  peers(): PeerView[] {
    const now = Date.now()
    return this.#parts.keeper.peers().map(({ peerId, address, path, direction, rttMs, connectedMs }) => ({
      peerId,
      name: this.#nameOf(peerId),
      address,
      path,
      direction: direction === 'inbound' ? 'in' : 'out',
      rttMs: rttMs === undefined ? null : rttMs,
      connectedSeconds: Math.max(0, Math.round((now - connectedMs) / 1_000)),
      networks: [OPEN_NETWORK_NAME],
    }))
  }

  async ping(peer: string, signal: AbortSignal): Promise<PingResult> {
    const { host } = this.#parts
    const target = peer.startsWith('/') ? peer : this.#peerNamed(peer)
    const limited = AbortSignal.any([signal, AbortSignal.timeout(PING_MS_MAX)])
    try {
      const { peerId, rttMs, address } = await host.ping(target, limited)
      return { peerId, name: this.#nameOf(peerId), address, rttMs }
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
    const { blobs, store, cacheKey } = this.#parts
    refuseClosed(request.network)
    return await this.#published(async (pin) => {
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
    refuseClosed(network)
    return await this.#published(async (pin) => {
      const stored = await storeUpload({ type, name, description }, bytes, this.#parts.blobs, pin, signal)
      return { name, ...stored }
    })
  }

  unpublish(ref: string, network?: string): ArtifactView {
    refuseClosed(network)
    const [withdrawn] = this.#parts.publications.withdraw(ref)
    return this.#view(withdrawn as Artifact)
  }

  search(words: string, limit: number, network?: string): SearchResult {
    refuseClosed(network)
    const { artifacts, truncated } = this.#parts.artifacts.search(words, limit)
    return { artifacts: artifacts.map((one) => this.#view(one)), truncated }
  }

  artifact(ref: string, network?: string): ArtifactDetail {
    refuseClosed(network)
    const { artifacts, host, trust } = this.#parts
    const entry = artifacts.resolve(ref)
    const { body } = entry
    const connected = new Set(host.connected())
    return {
      ...this.#view(entry),
      holders: artifacts
        .holders(body.cid.toString())
        .map((peerId) => ({ peerId, name: this.#nameOf(peerId), connected: connected.has(peerId) })),
      ...(body.type === 'nix' && { signer: body.signer, signerTrusted: trust.has(body.signer) }),
    }
  }

  async fetch(
    ref: string,
    onProgress: BringDeps['onProgress'],
    signal: AbortSignal,
    network?: string,
  ): Promise<FetchResult> {
    refuseClosed(network)
    try {
      return await this.#fetch(ref, onProgress, signal)
    } catch (error) {
      // Who asked is told, too; what peers did to this node belongs into its log.
      if (!signal.aborted) this.#parts.log.warn({ ref, reason: reasonOf(error) }, 'artifact.unfetched')
      throw error
    }
  }

  async #fetch(ref: string, onProgress: BringDeps['onProgress'], signal: AbortSignal): Promise<FetchResult> {
    const { artifacts, blobs, holdings, fetcher, sources, substituter } = this.#parts
    const network = OPEN_NETWORK_ID
    const deps = { blobs, holdings, fetcher, network, sources, onProgress }
    const cid = cidIn(ref)
    // Content named by its hash needs nobody's word for it: neither a record, nor a signature.
    if (cid !== undefined && artifacts.holders(cid.toString()).length === 0) {
      const { type, root, parts } = await bringArtifact(cid, deps, signal)
      const sizeBytes = parts.reduce((sum, part) => sum + part.sizeBytes, 0)
      const said = { cid: cid.toString(), name: cid.toString(), type, description: '', sizeBytes }
      return { artifact: { ...said, ...(root !== undefined && { root, pathCount: parts.length }) }, parts }
    }
    const entry = artifacts.resolve(ref)
    if (cid === undefined && entry.body.type === 'nix' && !entry.isOwn) await substituter.vouch(entry.body, network, signal)
    const { parts } = await bringArtifact(entry.body.cid, deps, signal)
    return { artifact: this.#view(entry), parts }
  }

  async blob(digest: string): Promise<BlobReader | undefined> {
    return await this.#parts.holdings.open(digest)
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

  async doctor(): Promise<DoctorResult> {
    const { keeper, store } = this.#parts
    const warnings = this.#parts
      .warnings()
      .map(({ code, message, next }): Check => ({ name: code.split('.')[0] ?? code, state: 'warning', message, next }))
    const peerCount = keeper.peers().length
    const checks: Check[] = [
      { name: 'peers', state: peerCount > 0 ? 'ok' : 'warning', message: `${peerCount} connected` },
      {
        name: 'nix',
        state: 'ok',
        message: store.isInstalled
          ? 'the Nix store can be read'
          : 'no Nix store on this machine; files and folders work',
      },
    ]
    return { checks: [...checks, ...warnings] }
  }

  /** Makes an artifact under a temporary pin, publishes it, and lets the pin go whatever happens. */
  async #published(make: (pin: string) => Promise<Parameters<Publications['publish']>[0]>): Promise<PublishResult> {
    const { blobs, publications, host } = this.#parts
    const pin = `${TEMPORARY_PIN}${randomUUID()}`
    try {
      const entry = publications.publish(await make(pin))
      return { artifact: this.#view(entry), announcedTo: host.connected().length }
    } finally {
      blobs.setPins(pin, [])
    }
  }

  #view({ name, body, peerId, isOwn, issued, expires }: Artifact): ArtifactView {
    return {
      cid: body.cid.toString(),
      network: OPEN_NETWORK_NAME,
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

  #nameOf(peerId: string): string | null {
    return this.#parts.nodes.get(peerId)?.name ?? null
  }

  /** @throws {AgentError} `not-found`, or `usage` when several nodes have the name. */
  #peerNamed(nameOrId: string): string {
    const named = this.#parts.nodes.list().filter(({ name, peerId }) => name === nameOrId || peerId === nameOrId)
    const [only, ...others] = named
    if (only === undefined) {
      if (/^[1-9A-HJ-NP-Za-km-z]{40,}$/.test(nameOrId)) return nameOrId
      throw new AgentError('not-found', `no node named ${JSON.stringify(nameOrId)} is known`, {
        next: '`agent peers` lists those that are connected; a peer id or a multiaddr will do, too.',
      })
    }
    if (others.length === 0) return only.peerId
    throw new AgentError('usage', `${named.length} nodes are named ${nameOrId}`, {
      next: `Give the peer id: ${named.map(({ peerId }) => peerId).join(' or ')}.`,
    })
  }
}

function nixFields(body: ArtifactBody): Pick<ArtifactView, 'root' | 'pathCount'> {
  return body.type === 'nix' ? { root: body.root, pathCount: body.paths.byteLength / PATH_PREFIX_BYTES } : {}
}

/** What is meant for one network goes to no other. */
function refuseClosed(network: string | undefined): void {
  if (network !== undefined && network !== OPEN_NETWORK_NAME)
    throw new AgentError('not-found', `this node is in no network named ${JSON.stringify(network)}`)
}

function unwired(): never {
  throw new AgentError('failed', 'this agent has no closed networks yet')
}
