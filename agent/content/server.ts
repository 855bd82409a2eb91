/**
 * Answers peers that ask for blobs, from start() until disposed. Wire format and limits: protocols/pieces/spec.md.
 *
 * A peer is given what may be given out in the network that it asks in, and told that everything else is absent; every request is judged
 * anew. Every piece is held against the blob's list before it leaves: a disk that rots makes this node lose the blob, not its good name. A peer's
 * fault resets its own stream and is logged at debug; it never reaches the caller of start().
 */
import type { Stream } from '@libp2p/interface'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import {
  answerPieces,
  getRange,
  type Holding,
  PIECES_PROTOCOL,
  type PieceHashes,
  type PieceHolder,
  type Refused,
} from '../../protocols/pieces/exchange.ts'
import { HASH_BYTES, isPiece, pieceBytes } from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { BlobHolder, BlobSource } from './content.ts'
import { Deadline } from './deadline.ts'
import type { PieceList, PieceLists } from './piece-lists.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'
import { Uploads } from './uploads.ts'

/** A stream on which nothing moves for so long is given up. Askers keep one open between blobs for a few seconds only. */
const QUIET_MS_MAX = 60_000
/** Each costs a piece or two of memory while its peer reads slowly. */
const STREAMS_MAX = 128
/** An honest asker uses one for each blob that it fetches at a time. */
const STREAMS_PER_PEER_MAX = 16

type ServerStreams = {
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type PieceServerInit = {
  streams: ServerStreams
  holdings: BlobHolder
  lists: PieceLists
  /** Whether a peer may be given what this node gives out in a network, named by its id in hex. */
  mayFetch(peerId: string, network: string): boolean
  log: Log
  quietMsMax?: number
  /** Shared with whatever else sends pieces to peers. */
  uploads?: Uploads
  /** Bytes of a blob that a peer was given; `isBegin` when the blob's first were among them. */
  onServed?: (digest: Digest, bytes: number, isBegin: boolean) => void
}

export class PieceServer implements AsyncDisposable {
  readonly #init: PieceServerInit
  readonly #uploads: Uploads
  readonly #stopping = new AbortController()
  readonly #streamsOf = new Map<string, number>()
  readonly #serving = new Set<Promise<void>>()
  #servedBytes = 0

  static async start(init: PieceServerInit): Promise<PieceServer> {
    const server = new PieceServer(init)
    await init.streams.handle(PIECES_PROTOCOL, (stream, peerId) => server.#accept(stream, peerId), {
      maxInboundStreams: STREAMS_PER_PEER_MAX,
    })
    return server
  }

  private constructor(init: PieceServerInit) {
    this.#init = init
    this.#uploads = init.uploads ?? new Uploads()
  }

  /** Bytes of pieces sent since the start. */
  get servedBytes(): number {
    return this.#servedBytes
  }

  /** Stops taking streams, then aborts those in flight. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#init.streams.unhandle(PIECES_PROTOCOL)
    this.#stopping.abort(new WireError('closed', 'this node is stopping'))
    await Promise.all(this.#serving)
  }

  async #accept(stream: Stream, peerId: string): Promise<void> {
    const count = this.#streamsOf.get(peerId) ?? 0
    if (count >= STREAMS_PER_PEER_MAX || this.#serving.size >= STREAMS_MAX || this.#stopping.signal.aborted) {
      stream.abort(new WireError('refused', 'too many streams'))
      return
    }
    this.#streamsOf.set(peerId, count + 1)
    const serving = this.#serve(stream, peerId).finally(() => {
      this.#serving.delete(serving)
      const left = (this.#streamsOf.get(peerId) ?? 1) - 1
      if (left > 0) this.#streamsOf.set(peerId, left)
      else this.#streamsOf.delete(peerId)
    })
    this.#serving.add(serving)
    await serving
  }

  /** Takes as long for what is not here. */
  #mayGet(peerId: string, digest: Digest, network: string): boolean {
    if (!this.#init.mayFetch(peerId, network)) return false
    return new Set(this.#init.holdings.networksOf(digest)).has(network)
  }

  /** Pieces, each in the peer's turn, and counted as served. */
  async *#give(peerId: string, { digest, from, pieces }: Outgoing, deadline: Deadline): AsyncGenerator<Uint8Array> {
    const { onServed } = this.#init
    let isBegin = from === 0
    const wait = (turn: Promise<() => void>) => deadline.hold(turn)
    for await (const piece of this.#uploads.paced(peerId, pieces, wait, deadline.signal)) {
      yield piece
      onServed?.(digest, piece.byteLength, isBegin)
      isBegin = false
    }
  }

  async #serve(stream: Stream, peerId: string): Promise<void> {
    const { holdings, lists, log, quietMsMax = QUIET_MS_MAX } = this.#init
    const frames = new Frames(stream)
    using deadline = new Deadline(quietMsMax, this.#stopping.signal)
    const mayGet: ShelfInit['mayGet'] = (digest, network) => this.#mayGet(peerId, digest, network)
    const give: ShelfInit['give'] = (pieces) => this.#give(peerId, pieces, deadline)
    const isBusy = () => this.#uploads.isBusy(peerId)
    await using shelf = new Shelf({ holdings, lists, deadline, mayGet, give, isBusy })
    try {
      await answerPieces(frames, shelf, deadline.signal, (writtenBytes) => {
        this.#servedBytes += writtenBytes
        deadline.wind()
      })
      await frames.close(deadline.signal)
    } catch (error) {
      frames.abort(error instanceof Error ? error : new Error(reasonOf(error)))
      const level = error instanceof AgentError ? 'warn' : 'debug'
      log[level]({ peerId, reason: reasonOf(error) }, 'pieces.answer.failed')
    }
  }
}

/** A run of a blob's pieces, on its way out. */
type Outgoing = { digest: Digest; from: number; pieces: AsyncIterable<Uint8Array> }

/** As a request has it. */
type Network = Uint8Array | undefined

type ShelfInit = {
  holdings: BlobHolder
  lists: PieceLists
  deadline: Deadline
  mayGet: (digest: Digest, network: string) => boolean
  /** Gives pieces out in turn with those for other peers. */
  give: (outgoing: Outgoing) => AsyncIterable<Uint8Array>
  /** Whether the peer had to wait too long for its turn. */
  isBusy: () => boolean
}

/** What one stream asks about: the blob it asked for last stays open, since the next question is most likely about it. */
class Shelf implements PieceHolder, AsyncDisposable {
  readonly #init: ShelfInit
  #open: { digest: Digest; source: BlobSource; list?: PieceList } | undefined

  constructor(init: ShelfInit) {
    this.#init = init
  }

  async have(digest: Uint8Array, _signal: AbortSignal, network: Network): Promise<Holding | null> {
    const open = await this.#take(digest, network)
    return open ? { sizeBytes: open.source.sizeBytes, pieces: 'all' } : null
  }

  async hashes(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Network,
  ): Promise<PieceHashes | Refused> {
    const listed = await this.#takeListed(digest, network, signal)
    if ('error' in listed) return listed
    const { sizeBytes, root, hashes } = listed.list
    return { sizeBytes, root, hashes: hashes.subarray(from * HASH_BYTES, (from + count) * HASH_BYTES) }
  }

  async get(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Network,
  ): Promise<{ lengthBytes: number; chunks: AsyncIterable<Uint8Array> } | Refused> {
    const listed = await this.#takeListed(digest, network, signal)
    if ('error' in listed) return listed
    const range = getRange(listed.list.sizeBytes, from, count)
    if (!range) return { error: 'range' }
    if (this.#init.isBusy()) return { error: 'busy' }
    const pieces = soundPieces(listed.source, listed.list, from, count, signal)
    return { lengthBytes: range.lengthBytes, chunks: this.#init.give({ digest: hex(digest), from, pieces }) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const open = this.#open
    this.#open = undefined
    await open?.source.close?.()
  }

  async #takeListed(
    digest: Uint8Array,
    network: Network,
    signal: AbortSignal,
  ): Promise<{ source: BlobSource; list: PieceList } | Refused> {
    const open = await this.#take(digest, network)
    if (!open) return { error: 'absent' }
    const { lists, deadline } = this.#init
    open.list ??= await deadline.hold(lists.of(open.digest, open.source, signal))
    return { source: open.source, list: open.list }
  }

  async #take(
    bytes: Uint8Array,
    network: Network,
  ): Promise<{ digest: Digest; source: BlobSource; list?: PieceList } | undefined> {
    const digest = hex(bytes)
    // Before anything is opened: how long that takes would tell that it is here.
    const mayGet = this.#init.mayGet(digest, network === undefined ? OPEN_NETWORK_ID : hex(network))
    if (mayGet && this.#open?.digest === digest) return this.#open
    await this[Symbol.asyncDispose]()
    if (!mayGet) return undefined
    const source = await this.#init.holdings.open(digest)
    if (source) this.#open = { digest, source }
    return this.#open
  }
}

/** Pieces as their source has them, each given out only when its hash is right. */
async function* soundPieces(
  source: BlobSource,
  list: PieceList,
  from: number,
  count: number,
  signal: AbortSignal,
): AsyncIterable<Uint8Array> {
  let index = from
  let chunks: Uint8Array[] = []
  let bytes = 0
  const range = getRange(list.sizeBytes, from, count)
  if (!range) return
  for await (const chunk of source.read(range.offset, range.lengthBytes, signal)) {
    for (let rest = chunk; rest.byteLength > 0; ) {
      const wanted = pieceBytes(list.sizeBytes, index)
      const part = rest.subarray(0, wanted - bytes)
      rest = rest.subarray(part.byteLength)
      chunks.push(part)
      bytes += part.byteLength
      if (bytes < wanted) continue
      const piece = chunks.length === 1 ? part : Buffer.concat(chunks)
      if (!isPiece(piece, list.hashes, index)) {
        source.reportCorrupt?.()
        throw new AgentError('corrupt', `piece ${index} has another hash now than when it was listed`)
      }
      yield piece
      index++
      chunks = []
      bytes = 0
    }
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
