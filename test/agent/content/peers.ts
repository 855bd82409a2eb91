/** Real libp2p nodes on loopback, and content stores on temporary directories, for the tests of content. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import type { Multiaddr } from '@multiformats/multiaddr'
import { createLibp2p, type Libp2p } from 'libp2p'
import { pino } from 'pino'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { Blobs } from '../../../agent/content/blobs.ts'
import type { Fault, PieceList } from '../../../agent/content/content.ts'
import { Fetcher } from '../../../agent/content/fetcher.ts'
import { Holdings } from '../../../agent/content/holdings.ts'
import type { JobLimits } from '../../../agent/content/job-limits.ts'
import { LaneServer } from '../../../agent/content/lane-server.ts'
import { Lanes } from '../../../agent/content/lanes.ts'
import type { Lie } from '../../../agent/content/lies.ts'
import { fromHex, PieceLists } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID, PUBLICATION_PIN, publicationKey } from '../../../agent/content/publication-key.ts'
import { PieceServer, type PieceServerInit } from '../../../agent/content/server.ts'
import type { Uploads } from '../../../agent/content/uploads.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import type { Log } from '../../../agent/log.ts'
import { roomed } from '../../../agent/mesh/stream-room.ts'
import { type Database, openDatabase } from '../../../agent/state/database.ts'
import { signList } from '../../../protocols/pieces/list-statement.ts'
import { PieceHasher } from '../../../protocols/pieces/tree.ts'

export const never = new AbortController().signal

/** A log that a test can look at. */
export function recordingLog(): { log: Log; entries: { level: number; msg: string; [field: string]: unknown }[] } {
  const entries: { level: number; msg: string }[] = []
  const log = pino({ level: 'debug', base: null }, { write: (line: string) => entries.push(JSON.parse(line)) })
  return { log, entries }
}

export class Peer implements AsyncDisposable {
  readonly node: Libp2p
  readonly key: NodeKey
  readonly #known: Map<string, Multiaddr[]>

  private constructor(node: Libp2p, key: NodeKey, known: Map<string, Multiaddr[]>) {
    this.node = node
    this.key = key
    this.#known = known
    known.set(node.peerId.toString(), node.getMultiaddrs())
  }

  /** Peers made with one map know each other's addresses. */
  static async start(known: Map<string, Multiaddr[]>): Promise<Peer> {
    const key = ephemeralNodeKey()
    const node = await createLibp2p({
      privateKey: key.libp2pKey,
      addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [roomed(yamux())],
      connectionManager: { inboundConnectionThreshold: 1_000 },
    })
    return new Peer(node, key, known)
  }

  /** As an agent signs the lists that it states. */
  readonly sign = (digest: string, network: string, { sizeBytes, root }: Pick<PieceList, 'sizeBytes' | 'root'>) =>
    signList({ network: fromHex(network), digest: fromHex(digest), sizeBytes, root, issued: Date.now() }, this.key)

  get peerId(): string {
    return this.node.peerId.toString()
  }

  readonly streams = {
    openStream: async (peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> => {
      const addresses = this.#known.get(peerId)
      if (!addresses) throw new Error(`no address of ${peerId}`)
      return await this.node.dialProtocol(addresses, protocol, { signal })
    },
    handle: async (
      protocol: string,
      handler: (stream: Stream, peerId: string) => Promise<void> | void,
      options: { maxInboundStreams: number },
    ): Promise<void> => {
      await this.node.handle(protocol, (stream, { remotePeer }) => handler(stream, remotePeer.toString()), options)
    },
    unhandle: (protocol: string): Promise<void> => this.node.unhandle(protocol),
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node.stop()
  }
}

export type StoreOptions = { quotaBytes?: number; directory?: string; now?: () => number }

/** A blob directory with its database; removed with the object, unless it was made elsewhere. */
export class Store implements Disposable {
  readonly directory: string
  readonly db: Database
  readonly index: BlobIndex
  readonly lists: PieceLists
  readonly blobs: Blobs
  readonly entries: ReturnType<typeof recordingLog>['entries']
  readonly log: Log
  #isKept: boolean

  constructor({ quotaBytes = 2 ** 30, directory, now }: StoreOptions = {}) {
    this.#isKept = directory !== undefined
    this.directory = directory ?? mkdtempSync(join(tmpdir(), 'undernet-content-'))
    const { log, entries } = recordingLog()
    this.log = log
    this.entries = entries
    this.db = openDatabase(join(this.directory, 'state.db'))
    this.index = new BlobIndex(this.db)
    this.lists = new PieceLists(this.db)
    this.blobs = Blobs.open({
      directory: join(this.directory, 'blobs'),
      index: this.index,
      lists: this.lists,
      quotaBytes,
      log,
      ...(now ? { now } : {}),
    })
  }

  /** As after a kill: nothing is closed in order, and what was on disk is opened again. */
  reopened(options: StoreOptions = {}): Store {
    this.db.close()
    const after = new Store({ ...options, directory: this.directory })
    after.#isKept = this.#isKept
    this.#isKept = true
    return after
  }

  /** Writes the bytes, and keeps them as something that is published in the network. */
  async publish(
    bytes: Uint8Array,
    network = OPEN_NETWORK_ID,
    name = digestOf(bytes).digest,
  ): Promise<{ digest: string; sizeBytes: number }> {
    const pin = `${PUBLICATION_PIN}${publicationKey(network, name)}`
    return await this.blobs.write(undefined, [bytes], never, { pin })
  }

  async contents(digest: string): Promise<Buffer | undefined> {
    const source = await this.blobs.open(digest)
    if (!source) return undefined
    try {
      return Buffer.concat(await Array.fromAsync(source.read(0, source.sizeBytes, never)))
    } finally {
      await source.close?.()
    }
  }

  [Symbol.dispose](): void {
    if (this.db.isOpen) this.db.close()
    if (!this.#isKept) rmSync(this.directory, { recursive: true, force: true })
  }
}

export type NodeOptions = StoreOptions & {
  limits?: Partial<JobLimits>
  mayFetch?: PieceServerInit['mayFetch']
  /** Whether it gives and uses lanes, and under which address it looks for those of others. */
  lanes?: { hostOf?: () => string; offerMs?: number; pieceMs?: number }
  uploads?: Uploads
}

/** A node that serves and fetches. */
export class ContentNode implements AsyncDisposable {
  readonly peer: Peer
  readonly store: Store
  readonly lanes: Lanes | undefined
  server!: PieceServer
  laneServer: LaneServer | undefined
  readonly fetcher: Fetcher
  readonly faults: Fault[] = []
  readonly lies: Lie[] = []

  private constructor(peer: Peer, store: Store, { limits = {}, lanes }: NodeOptions) {
    this.peer = peer
    this.store = store
    const hostOf = lanes?.hostOf ?? (() => '127.0.0.1')
    this.lanes =
      lanes &&
      new Lanes({
        streams: peer.streams,
        hostOf,
        log: store.log,
        ...(lanes.pieceMs !== undefined && { pieceMs: lanes.pieceMs }),
      })
    this.fetcher = new Fetcher({
      blobs: store.blobs,
      streams: peer.streams,
      self: peer.peerId,
      ...(this.lanes && { lanes: this.lanes }),
      mayAsk: () => true,
      log: store.log,
      onFault: (fault) => this.faults.push(fault),
      onLie: (lie) => this.lies.push(lie),
      limits,
    })
  }

  static async start(known: Map<string, Multiaddr[]>, options: NodeOptions = {}): Promise<ContentNode> {
    const { mayFetch = () => true, lanes, uploads } = options
    const peer = await Peer.start(known)
    const store = new Store(options)
    const node = new ContentNode(peer, store, options)
    node.server = await PieceServer.start({
      streams: peer.streams,
      holdings: new Holdings([store.blobs]),
      lists: store.lists,
      mayFetch,
      arriving: (digest, network) => node.fetcher.arriving(digest, network),
      onAsked: (peerId, digest, network) => node.fetcher.heard(peerId, digest, network),
      sign: peer.sign,
      log: store.log,
      ...(uploads && { uploads }),
    })
    if (lanes) {
      const { streams } = peer
      const { offerMs } = lanes
      const init = { streams, pieces: node.server, hosts: ['127.0.0.1'], port: 0, log: store.log }
      node.laneServer = await LaneServer.start({ ...init, ...(offerMs !== undefined && { offerMs }) })
    }
    return node
  }

  get peerId(): string {
    return this.peer.peerId
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.fetcher[Symbol.asyncDispose]()
    await this.lanes?.[Symbol.asyncDispose]()
    await this.laneServer?.[Symbol.asyncDispose]()
    await this.server[Symbol.asyncDispose]()
    await this.peer[Symbol.asyncDispose]()
    this.store[Symbol.dispose]()
  }
}

export function digestOf(bytes: Uint8Array): { digest: string; hashes: Uint8Array } {
  const hasher = new PieceHasher()
  hasher.update(bytes)
  return hasher.finish()
}

/** Resolves when `condition` holds. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2))
}
