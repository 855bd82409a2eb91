/**
 * Answers peers that ask for blobs, from start() until disposed. Wire format and limits: protocols/pieces/spec.md.
 *
 * A peer is given what may be given out in the network that it asks in, and told that everything else is absent; every request is judged
 * anew. What is being fetched is given out in the network that it is fetched for, as far as it is here. Every piece is held against the blob's
 * list before it leaves on a stream: a disk that rots makes this node lose the blob, not its good name (lanes: see protocols/lane/spec.md). A peer's fault resets its own stream and is logged at debug; it never reaches the caller of start().
 */
import type { Stream } from '@libp2p/interface'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import { answerPieces, PIECES_PROTOCOL } from '../../protocols/pieces/exchange.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { Askers } from './askers.ts'
import type { BlobHolder, PartSource } from './content.ts'
import { Deadline } from './deadline.ts'
import type { LaneFrames } from './lane-frames.ts'
import type { PieceLists } from './piece-lists.ts'
import { type Outgoing, Shelf, type ShelfInit } from './shelf.ts'
import { Uploads } from './uploads.ts'

/** A stream on which nothing moves for so long is given up. Askers keep one open between blobs for a few seconds only. */
const QUIET_MS_MAX = 60_000
/** Each costs a piece or two of memory while its peer reads slowly. */
const STREAMS_MAX = 128
/** An honest asker has twelve at work, four that it keeps, one for small blobs, and for a moment those that it is closing. */
const STREAMS_PER_PEER_MAX = 24

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
  /** Whether a peer may be given a blob, if this node gives that out in a network, named by its id in hex. */
  mayFetch(peerId: string, network: string, digest: Digest): boolean
  /** What is here of a blob that is being fetched for the network. */
  arriving?: (digest: Digest, network: string) => PartSource | undefined
  /** A peer that may be given what there is in the network asked about a blob. */
  onAsked?: (peerId: string, digest: Digest, network: string) => void
  /** Signs a list that this node states. */
  sign?: ShelfInit['sign']
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
  readonly #askers = new Askers()
  #servedBytes = 0

  static async start(init: PieceServerInit): Promise<PieceServer> {
    const server = new PieceServer(init)
    await init.streams.handle(PIECES_PROTOCOL, (stream, peerId) => server.#admit(new Frames(stream), peerId), {
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

  /** Whether there is anything of the blob for the peer. Takes as long for what is not here. */
  mayGive(peerId: string, digest: Digest, network: string): boolean {
    const mayGet = this.#mayGet(peerId, digest, network)
    return mayGet === 'whole' || (mayGet === 'part' && this.#init.arriving?.(digest, network) !== undefined)
  }

  /** Answers what a peer asks on a lane, as if it was a stream. Resolves when the lane ends. */
  async serveLane(lane: LaneFrames, peerId: string, onSent: (bytes: number) => void): Promise<void> {
    await this.#admit(lane, peerId, onSent)
  }

  async #admit(frames: Frames | LaneFrames, peerId: string, onSent?: (bytes: number) => void): Promise<void> {
    const count = this.#streamsOf.get(peerId) ?? 0
    if (count >= STREAMS_PER_PEER_MAX || this.#serving.size >= STREAMS_MAX || this.#stopping.signal.aborted) {
      frames.abort(new WireError('refused', 'too many streams'))
      return
    }
    this.#streamsOf.set(peerId, count + 1)
    const serving = this.#serve(frames, peerId, onSent).finally(() => {
      this.#serving.delete(serving)
      const left = (this.#streamsOf.get(peerId) ?? 1) - 1
      if (left > 0) this.#streamsOf.set(peerId, left)
      else this.#streamsOf.delete(peerId)
    })
    this.#serving.add(serving)
    await serving
  }

  /** Takes as long for what is not here. */
  #mayGet(peerId: string, digest: Digest, network: string): 'whole' | 'part' | undefined {
    if (!this.#init.mayFetch(peerId, network, digest)) return undefined
    return new Set(this.#init.holdings.networksOf(digest)).has(network) ? 'whole' : 'part'
  }

  /** Somebody who may have what there is in the network begins to fetch. */
  #asked(peerId: string, digest: Digest, network: string): string[] {
    this.#init.onAsked?.(peerId, digest, network)
    return this.#askers.add(peerId, digest, network)
  }

  /** Pieces, each in the peer's turn, and counted as served. */
  async *#give(peerId: string, { digest, from, pieces }: Outgoing, deadline: Deadline): AsyncGenerator<Uint8Array> {
    const { onServed } = this.#init
    let isBegin = from === 0
    const wait = (turn: Promise<() => void>) => deadline.hold(turn)
    for await (const piece of this.#uploads.paced(peerId, pieces, wait, deadline.signal)) {
      // Where it is sent its memory is given back.
      const { byteLength } = piece
      yield piece
      onServed?.(digest, byteLength, isBegin)
      isBegin = false
    }
  }

  /** `onSent` is given for lanes. */
  async #serve(frames: Frames | LaneFrames, peerId: string, onSent?: (bytes: number) => void): Promise<void> {
    const { holdings, lists, arriving = () => undefined, sign, log, quietMsMax = QUIET_MS_MAX } = this.#init
    using deadline = new Deadline(quietMsMax, this.#stopping.signal)
    const mayGet: ShelfInit['mayGet'] = (digest, network) => this.#mayGet(peerId, digest, network)
    const give: ShelfInit['give'] = (pieces) => this.#give(peerId, pieces, deadline)
    const isBusy = () => this.#uploads.isBusy(peerId)
    const asked: ShelfInit['asked'] = (digest, network) => this.#asked(peerId, digest, network)
    const isUnchecked = onSent !== undefined
    await using shelf = new Shelf({
      holdings,
      lists,
      deadline,
      mayGet,
      arriving,
      asked,
      sign,
      give,
      isBusy,
      isUnchecked,
    })
    try {
      await answerPieces(frames, shelf, deadline.signal, (writtenBytes) => {
        this.#servedBytes += writtenBytes
        onSent?.(writtenBytes)
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
