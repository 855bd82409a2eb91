/** A publisher and a receiver of store paths, wired as the composition root does, with peers in memory between them. */
import { type FastifyInstance, fastify } from 'fastify'
import type { Holder } from '../../../agent/catalog/filters.ts'
import { Holdings } from '../../../agent/content/holdings.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { publishStorePath } from '../../../agent/nix/closure.ts'
import { Closures } from '../../../agent/nix/closures.ts'
import { HeldPaths } from '../../../agent/nix/held-paths.ts'
import { NarSource } from '../../../agent/nix/nar-source.ts'
import type { NixStore } from '../../../agent/nix/nix-store.ts'
import type { Candidate, PathFault } from '../../../agent/nix/path-faults.ts'
import { registerNixRoutes } from '../../../agent/nix/routes.ts'
import { SideFiles } from '../../../agent/nix/side-files.ts'
import { CacheKey, type PublicKey } from '../../../agent/nix/signing.ts'
import type { StorePaths } from '../../../agent/nix/store-paths.ts'
import { StorePeers } from '../../../agent/nix/store-peers.ts'
import { Substituter } from '../../../agent/nix/substituter.ts'
import { TrustedKeys } from '../../../agent/nix/trust.ts'
import { Upstreams, type UpstreamsInit } from '../../../agent/nix/upstreams.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import {
  type ClosureManifest,
  encodeManifest,
  encodeSignatures,
  manifestCid,
  type NixArtifactBody,
  PATH_PREFIX_BYTES,
  pathPrefix,
} from '../../../protocols/artifact/artifact.ts'
import { MemoryBlobs, MemoryPeers, memoryLog } from './peers.ts'

const signal = new AbortController().signal

/** With the prefixes, which the view of the records keeps apart. */
type Published = Candidate & { body: NixArtifactBody }

/** Another node, which published `root` from its store. */
export async function publisher(
  peerId: string,
  store: NixStore,
  root: string,
  key = CacheKey.ephemeral(peerId),
  network = OPEN_NETWORK_ID,
) {
  const blobs = new MemoryBlobs()
  const source = new NarSource({ db: openDatabase(':memory:'), store, log: memoryLog() })
  const { name, body, manifest } = await publishStorePath(root, { pin: 'test', signal }, { store, key, blobs })
  source.publish(name, manifest)
  const candidate: Published = { peerId, name, body, network }
  return { peerId, key, candidate, manifest, blobs, source, holds: new Holdings([blobs, source]) }
}
export type Publisher = Awaited<ReturnType<typeof publisher>>

/** What the publisher says from now on, instead of the truth: signed, or with the signatures that it had. */
export async function restate(
  of: Publisher,
  change: (manifest: ClosureManifest) => ClosureManifest,
  signatures?: string[][],
): Promise<void> {
  const bytes = encodeManifest(change(structuredClone(of.manifest)))
  await of.blobs.write(undefined, [bytes], signal)
  of.candidate.body.cid = manifestCid(bytes)
  if (!signatures) return
  const signatureBytes = encodeSignatures(signatures)
  await of.blobs.write(undefined, [signatureBytes], signal)
  of.candidate.body.signatures = manifestCid(signatureBytes)
}

type ReceiverOptions = { wholeBytesMax?: number; logDirectory?: string; isFull?: () => Promise<never> } & Partial<
  Pick<UpstreamsInit, 'urls' | 'networkOf' | 'shared' | 'limits' | 'now'>
>

/** This node: its binary cache, and what it knows of the others. */
export class Receiver implements AsyncDisposable {
  readonly key = CacheKey.ephemeral('receiver')
  readonly log = memoryLog()
  readonly blobs = new MemoryBlobs()
  readonly peers = new MemoryPeers(this.blobs)
  readonly published: NarSource
  readonly held: HeldPaths
  readonly trust: TrustedKeys
  readonly faults: PathFault[] = []
  readonly fetched: { path: string; failure: string | undefined }[] = []
  readonly candidates: Published[] = []
  /** How far ahead the substituter's clock is. */
  aheadMs = 0
  /** Peers that have artifacts without having published them, by network. */
  readonly holders = new Map<string, string[]>()
  /** Peers who give out their stores, and what they say. */
  storesOf: (hashPart: string) => Holder[] = () => []
  askStore: StorePaths['ask'] = async () => undefined
  readonly #stores = new StorePeers({
    holders: (hashPart) => this.storesOf(hashPart),
    paths: { ask: (...all) => this.askStore(...all), isShunned: () => false },
    isConnected: () => true,
    isTrusted: () => false,
  })
  /** Keys of members who may sign, by network. */
  readonly signers = new Map<string, PublicKey[]>()
  readonly upstreams: Upstreams
  readonly server: FastifyInstance = fastify()
  readonly closures: Closures
  readonly passThrough: MemoryPeers
  readonly substituter: Substituter
  readonly store: NixStore

  /** With `isFull` nothing can be kept: what that rejects with is what every fetch ends with. */
  constructor(store: NixStore, { isFull, ...options }: ReceiverOptions = {}) {
    this.store = store
    this.passThrough = new MemoryPeers(new MemoryBlobs(), this.peers.peers)
    if (isFull !== undefined) this.peers.fetch = isFull
    this.closures = new Closures({ blobs: this.blobs, fetcher: this.peers, passThrough: this.passThrough })
    const db = openDatabase(':memory:')
    this.published = new NarSource({ db, store, log: this.log })
    this.held = new HeldPaths(db, store.directory)
    this.trust = new TrustedKeys(db, this.key.publicKey, [])
    const { urls = [], networkOf = () => undefined, limits, now } = options
    this.upstreams = new Upstreams({
      urls,
      blobs: this.blobs,
      held: this.held,
      trust: this.trust,
      storeDirectory: store.directory,
      networkOf,
      shared: options.shared ?? { once: (_digest, _sizeBytes, _network, fetch) => fetch() },
      log: this.log,
      ...(limits && { limits }),
      ...(now && { now }),
    })
    this.substituter = this.#substituter(options)
    const { substituter, log } = this
    const sideFiles = new SideFiles({ db, blobs: this.blobs, logDirectory: options.logDirectory ?? '/nonexistent' })
    registerNixRoutes(this.server, { substituter, sideFiles, storeDirectory: store.directory, log })
  }

  #substituter({ wholeBytesMax }: ReceiverOptions): Substituter {
    return new Substituter({
      store: this.store,
      published: this.published,
      closures: this.closures,
      key: this.key,
      trust: this.trust,
      blobs: this.blobs,
      held: this.held,
      fetcher: this.peers,
      passThrough: this.passThrough,
      candidates: (hashPart) => this.candidates.filter(({ body }) => hasPrefix(body.paths, hashPart)),
      stores: this.#stores,
      upstreams: this.upstreams,
      signersIn: (network) => this.signers.get(network) ?? [],
      sources: (_cid, network) => this.holders.get(network) ?? [],
      onFault: (fault) => this.faults.push(fault),
      onFetched: (path, failure) => void this.fetched.push({ path, failure }),
      log: this.log,
      now: () => performance.now() + this.aheadMs,
      ...(wholeBytesMax !== undefined && { wholeBytesMax }),
    })
  }

  /** Hears of what a publisher publishes. */
  meet(other: Publisher, misbehaves: { lies?: (digest: string) => boolean; hangs?: boolean } = {}): void {
    this.candidates.push(other.candidate)
    this.peers.peers.set(other.peerId, { holds: other.holds, ...misbehaves })
  }

  /** Publishes a path of the own store. */
  async publish(root: string): Promise<void> {
    const deps = { store: this.store, key: this.key, blobs: this.blobs }
    const { name, manifest } = await publishStorePath(root, { pin: 'test', signal }, deps)
    this.published.publish(name, manifest)
  }

  /** Listens on loopback, for a real client; the URL of the cache. */
  async listen(): Promise<string> {
    return `${await this.server.listen({ host: '127.0.0.1', port: 0 })}/nix`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close()
    await this.substituter[Symbol.asyncDispose]()
    await this.upstreams[Symbol.asyncDispose]()
    await this.closures[Symbol.asyncDispose]()
  }
}

function hasPrefix(paths: Uint8Array, hashPart: string): boolean {
  const wanted = Buffer.from(pathPrefix(hashPart))
  for (let at = 0; at < paths.byteLength; at += PATH_PREFIX_BYTES) {
    if (wanted.equals(paths.subarray(at, at + PATH_PREFIX_BYTES))) return true
  }
  return false
}
