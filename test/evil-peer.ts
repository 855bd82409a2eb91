/**
 * A peer that lies, made of the agent's own parts: its handshake, its records and its manifests are real, so that it is believed as far as
 * an attacker would be; then it answers for blobs what the test wants. Runs in the test's process.
 */
import type { Stream } from '@libp2p/interface'
import { ARTIFACT_KIND } from '../agent/catalog/artifacts.ts'
import { Presence } from '../agent/catalog/presence.ts'
import { Records } from '../agent/catalog/records.ts'
import { Replicator } from '../agent/catalog/replicator.ts'
import { ephemeralNodeKey, type NodeKey } from '../agent/identity/node-key.ts'
import type { Log } from '../agent/log.ts'
import { parseAddress } from '../agent/mesh/addresses.ts'
import { type PubSub, Topic } from '../agent/mesh/gossip.ts'
import { Host } from '../agent/mesh/host.ts'
import { publishStorePath } from '../agent/nix/closure.ts'
import { NixStore } from '../agent/nix/nix-store.ts'
import { CacheKey } from '../agent/nix/signing.ts'
import { openDatabase } from '../agent/state/database.ts'
import {
  type ArtifactBody,
  type ClosureManifest,
  type Digest,
  decodeSignatures,
  encodeManifest,
  encodeSignatures,
  manifestCid,
} from '../protocols/artifact/artifact.ts'
import { Frames } from '../protocols/frame.ts'
import { layoutNar } from '../protocols/nar/write.ts'
import { answerPieces, getRange, PIECES_PROTOCOL, type PieceHolder } from '../protocols/pieces/exchange.ts'
import { HASH_BYTES, merkleRoot, PIECE_BYTES, PieceHasher } from '../protocols/pieces/tree.ts'
import { OPEN_NETWORK } from '../protocols/records/record.ts'
import { openGate } from './open-gate.ts'

const LEASE_MS = 3_600_000 * 24
const DIAL_MS_MAX = 10_000
const STREAMS_MAX = 64
const never = new AbortController().signal
const silent: Log = { debug() {}, info() {}, warn() {}, error() {} }

export type EvilOptions = {
  /** An agent's address. */
  bootstrap: string
  name?: string
  /** What it signs store paths with. */
  cacheKey?: CacheKey
}

export class EvilPeer implements AsyncDisposable {
  readonly key: NodeKey
  readonly cacheKey: CacheKey
  readonly host: Host
  /** The open network's. */
  readonly pubsub: PubSub
  readonly records: Records
  /** Of each blob that was asked for, how often. */
  readonly asked = new Map<Digest, number>()
  readonly #blobs = new Map<Digest, Uint8Array>()
  readonly #lies = new Map<Digest, PieceHolder>()
  #generalLie: PieceHolder | undefined
  readonly #stack: AsyncDisposableStack

  private constructor(
    parts: Pick<EvilPeer, 'key' | 'cacheKey' | 'host' | 'pubsub' | 'records'>,
    stack: AsyncDisposableStack,
  ) {
    this.key = parts.key
    this.cacheKey = parts.cacheKey
    this.host = parts.host
    this.pubsub = parts.pubsub
    this.records = parts.records
    this.#stack = stack
  }

  /** Resolves when it is connected; its name is known to the agent soon after. */
  static async start({ bootstrap, name = 'evil', cacheKey }: EvilOptions): Promise<EvilPeer> {
    await using stack = new AsyncDisposableStack()
    const key = ephemeralNodeKey()
    const gate = stack.use(openGate(key))
    const listen = ['/ip4/127.0.0.1/tcp/0']
    const host = stack.use(await Host.start({ key, gate, open: true, listen, mdns: false, log: silent }))
    const { pubsub } = host
    if (pubsub === undefined) throw new Error('a host of the open network has gossip')
    const records = stack.use(
      new Records(openDatabase(':memory:'), { network: OPEN_NETWORK, signer: key, log: silent }),
    )
    const topic = `undernet/records/${Buffer.from(OPEN_NETWORK).toString('hex')}`
    const gossip = stack.use(Topic.join(pubsub, topic, silent))
    stack.use(await Replicator.start({ records, gossip, peers: host, log: silent }))
    const capabilities = { system: 'x86_64-linux', cpus: 1, memoryBytes: 0 }
    stack.use(
      Presence.start({ records, body: { name, version: '6.6.6', capabilities }, nodeCount: () => 1, log: silent }),
    )
    const parts = { key, cacheKey: cacheKey ?? CacheKey.ephemeral(name), host, pubsub, records }
    const evil = new EvilPeer(parts, stack.move())
    await host.handle(PIECES_PROTOCOL, (stream) => evil.#answer(stream), { maxInboundStreams: STREAMS_MAX })
    await host.dial([parseAddress(bootstrap)], AbortSignal.timeout(DIAL_MS_MAX))
    return evil
  }

  get peerId(): string {
    return this.host.peerId
  }

  /** Holds the blob, and answers for it honestly. */
  hold(bytes: Uint8Array): Digest {
    const { digest } = hashesOf(bytes)
    this.#blobs.set(digest, bytes)
    return digest
  }

  /** Answers so for the blob from now on; a holder's functions are told the digest. */
  lie(digest: Digest, holder: PieceHolder): void {
    this.#lies.set(digest, holder)
  }

  /** Answers so for every blob. */
  lieAboutAll(holder: PieceHolder): void {
    this.#generalLie = holder
  }

  /** Says that it shares the artifact, as an honest node would. */
  announce(name: string, body: ArtifactBody): void {
    this.records.put({ kind: ARTIFACT_KIND, name, body, leaseMs: LEASE_MS })
  }

  /**
   * Publishes a path of the machine's store, and holds its NARs; `restate` changes what the manifest says, and the signatures stay those of
   * the truth. Gives back the NARs by store path.
   */
  async publish(
    storePath: string,
    name: string,
    restate: (manifest: ClosureManifest) => ClosureManifest = (manifest) => manifest,
    forge: (signatures: string[][]) => string[][] = (signatures) => signatures,
  ): Promise<Map<string, { digest: Digest; bytes: Uint8Array }>> {
    const written: Uint8Array[] = []
    const blobs = {
      write: async (_digest: unknown, chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>) => {
        const bytes = Buffer.concat(await Array.fromAsync(chunks as AsyncIterable<Uint8Array>))
        written.push(bytes)
        return { digest: this.hold(bytes), sizeBytes: bytes.byteLength }
      },
    }
    const deps = { store: NixStore.ofMachine(), key: this.cacheKey, blobs }
    const { body, manifest } = await publishStorePath(storePath, { name, pin: '', signal: never }, deps)
    const nars = new Map<string, { digest: Digest; bytes: Uint8Array }>()
    for (const { path } of manifest.paths) {
      const layout = await layoutNar(path)
      const bytes = Buffer.concat(await Array.fromAsync(layout.read(0, layout.sizeBytes, never)))
      nars.set(path, { digest: this.hold(bytes), bytes })
    }
    const stated = encodeManifest(restate(structuredClone(manifest)))
    this.hold(stated)
    const signatures = encodeSignatures(forge(decodeSignatures(written[1] ?? new Uint8Array())))
    this.hold(signatures)
    this.announce(name, { ...body, cid: manifestCid(stated), signatures: manifestCid(signatures) })
    return nars
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }

  async #answer(stream: Stream): Promise<void> {
    const frames = new Frames(stream)
    const holderOf = (digest: Uint8Array): PieceHolder | undefined => {
      const name = Buffer.from(digest).toString('hex')
      this.asked.set(name, (this.asked.get(name) ?? 0) + 1)
      const bytes = this.#blobs.get(name)
      return this.#lies.get(name) ?? this.#generalLie ?? (bytes && holderOfBytes(bytes))
    }
    const absent = { error: 'absent' } as const
    const holder: PieceHolder = {
      have: async (digest, ...rest) => (await holderOf(digest)?.have(digest, ...rest)) ?? null,
      hashes: async (digest, ...rest) => (await holderOf(digest)?.hashes(digest, ...rest)) ?? absent,
      get: async (digest, ...rest) => (await holderOf(digest)?.get(digest, ...rest)) ?? absent,
    }
    await answerPieces(frames, holder, never, () => undefined)
    await frames.close()
  }
}

/** Sends these bytes, and states the piece hashes of those: without the second, of the same. */
export function holderOfBytes(sent: Uint8Array, stated: Uint8Array = sent): PieceHolder {
  const { hashes } = hashesOf(stated)
  const sizeBytes = stated.byteLength
  return {
    have: async () => ({ sizeBytes, pieces: 'all' }),
    hashes: async (_digest, from, count) => ({
      sizeBytes,
      root: merkleRoot(hashes),
      hashes: hashes.subarray(from * HASH_BYTES, (from + count) * HASH_BYTES),
    }),
    get: async (_digest, from, count) => {
      const range = getRange(sizeBytes, from, count)
      if (!range) return { error: 'range' }
      const { offset, lengthBytes } = range
      return { lengthBytes, chunks: chunksOf(sent.subarray(offset, offset + lengthBytes)) }
    },
  }
}

/** Takes every question and answers none. */
export const hanging: PieceHolder = {
  have: () => new Promise(() => undefined),
  hashes: () => new Promise(() => undefined),
  get: () => new Promise(() => undefined),
}

/** The same bytes with one bit changed, in the last piece: all the others are sent before the lie shows. */
export function altered(bytes: Uint8Array): Uint8Array {
  const copy = Uint8Array.from(bytes)
  const at = Math.max(bytes.byteLength - Math.ceil((bytes.byteLength % PIECE_BYTES || PIECE_BYTES) / 2), 0)
  copy[at] = (copy[at] ?? 0) ^ 0x10
  return copy
}

async function* chunksOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

function hashesOf(bytes: Uint8Array): { digest: Digest; hashes: Uint8Array } {
  const hasher = new PieceHasher()
  hasher.update(bytes)
  return hasher.finish()
}
