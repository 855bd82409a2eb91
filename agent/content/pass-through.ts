/**
 * Brings a blob that cannot be kept (the quota is full of what is pinned, or the disk is full) to the one who reads it, without writing
 * anything: verified as a whole in memory where it is small, otherwise as it arrives.
 *
 * A large one is read from its beginning, each piece held against the list of the peer that gives it; the last is given out only when the
 * hash of all is right, so whoever has read to the end has read the right bytes. A peer that fails is followed by the next one that states
 * the same list. Nothing that was brought so can be given to others.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import {
  BLOB_BYTES_MAX,
  isPiece,
  PIECE_BYTES,
  pieceBytes,
  pieceCount,
  rangeBytes,
} from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { BlobSource, Fault, FetchOptions, PieceList } from './content.ts'
import { Deadline } from './deadline.ts'
import { fromHex } from './piece-lists.ts'
import { type OpenStreams, type PieceSession, PieceSessions } from './piece-sessions.ts'
import { Slots } from './slots.ts'

/** Held in memory until it is read. */
const WHOLE_BYTES_MAX = 8 * 1024 * 1024
/** At once, each with a blob in memory, or a window of pieces. */
const AT_ONCE_MAX = 8
/** In one request; two are under way. */
const GET_PIECES = 4
/** A peer that says nothing for so long gives way to the next. */
const QUIET_MS_MAX = 20_000
/** As the peer may have to read the whole blob before it can list its pieces. */
const LIST_MS_MAX = 60_000
/** Named in an error. */
const REASONS_MAX = 5

export type PassThroughInit = {
  streams: OpenStreams
  log: Log
  onFault?: (fault: Fault) => void
  now?: () => number
}

/** A peer that has the blob, and states this list of its pieces. */
type Listed = { session: PieceSession; list: PieceList }

export class PassThrough implements AsyncDisposable {
  readonly #init: PassThroughInit
  readonly #sessions: PieceSessions
  readonly #slots = new Slots(AT_ONCE_MAX)
  #count = 0
  #lastMs: number | undefined

  constructor(init: PassThroughInit) {
    this.#init = init
    this.#sessions = new PieceSessions(init.streams)
  }

  /** How many blobs were brought so since the start, and when last. */
  get stats(): { count: number; lastMs: number | undefined } {
    return { count: this.#count, lastMs: this.#lastMs }
  }

  /**
   * The blob, to be read once from its beginning or from anywhere; to be closed.
   *
   * @throws {AgentError} as BlobFetcher.fetch.
   */
  async open(digest: Digest, options: FetchOptions): Promise<BlobSource> {
    const free = await this.#slots.take(options.signal)
    const peers = new Peers(digest, options, this.#sessions, this.#init)
    try {
      for (;;) {
        const listed = await peers.next()
        if (listed === undefined) throw peers.failure()
        const blob = new UnkeptBlob(digest, listed, peers, free)
        const { sizeBytes } = blob
        const source = sizeBytes <= WHOLE_BYTES_MAX ? await inMemory(blob, options.signal, free) : blob
        // A lie about a small one costs a try; with a large one it comes out at the end.
        if (source === undefined) continue
        this.#note(digest, sizeBytes)
        return source
      }
    } catch (error) {
      free()
      throw error
    }
  }

  /**
   * The same for a blob that comes from outside the mesh, of which `read` gives what follows an offset.
   *
   * @throws {AgentError} `cancelled`; reads throw what `read` throws, and `corrupt` instead of giving the last byte of another blob
   */
  async openFrom(
    { digest, sizeBytes }: { digest: Digest; sizeBytes: number },
    read: (from: number, signal: AbortSignal) => AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<BlobSource> {
    const free = await this.#slots.take(signal)
    this.#note(digest, sizeBytes)
    return {
      sizeBytes,
      read: (offset, length, until) => verified(read(0, until), { digest, sizeBytes, offset, length }),
      close: async () => free(),
    }
  }

  #note(digest: Digest, sizeBytes: number): void {
    this.#count++
    this.#lastMs = (this.#init.now ?? Date.now)()
    this.#init.log.info({ digest, sizeBytes }, 'blob.unkept')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sessions[Symbol.asyncDispose]()
  }
}

/**
 * A part of what comes, which is read from its beginning and hashed: the last byte only when all is what it should be. A part from the middle is held
 * against nothing: whoever asks for parts puts them together, and knows the hash.
 */
async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  { digest, sizeBytes, offset, length }: { digest: Digest; sizeBytes: number; offset: number; length: number },
): AsyncGenerator<Uint8Array> {
  const hash = createHash('sha256')
  const end = offset + length
  let at = 0
  let last: Uint8Array | undefined
  for await (const chunk of chunks) {
    hash.update(chunk)
    const wanted = chunk.subarray(Math.max(0, offset - at), Math.max(0, Math.min(end, sizeBytes - 1) - at))
    if (at + chunk.byteLength >= sizeBytes) last = chunk.subarray(Math.max(0, sizeBytes - 1 - at))
    at += chunk.byteLength
    if (at > sizeBytes) break
    if (wanted.byteLength > 0) yield wanted
    if (at >= end && end < sizeBytes) return
  }
  if (at < sizeBytes) throw new AgentError('failed', `${digest} ended after ${at} of ${sizeBytes} bytes`)
  if (at > sizeBytes || hash.digest('hex') !== digest)
    throw new AgentError('corrupt', `what came in place of ${digest} has another hash`)
  if (last !== undefined && end === sizeBytes) yield last.subarray(0, length)
}

/** undefined when it is not what it should be. */
async function inMemory(blob: UnkeptBlob, signal: AbortSignal, free: () => void): Promise<BlobSource | undefined> {
  let bytes: Buffer
  try {
    bytes = Buffer.concat(await Array.fromAsync(blob.read(0, blob.sizeBytes, signal)))
  } catch (error) {
    if (error instanceof AgentError && error.code === 'corrupt' && !signal.aborted) return undefined
    throw error
  }
  return {
    sizeBytes: bytes.byteLength,
    async *read(offset, length) {
      for (let at = offset; at < offset + length; at += PIECE_BYTES)
        yield bytes.subarray(at, Math.min(at + PIECE_BYTES, offset + length))
    },
    close: async () => free(),
  }
}

/** The sources, one after the other. */
class Peers {
  readonly #digest: Digest
  readonly #options: FetchOptions
  readonly #sessions: PieceSessions
  readonly #init: PassThroughInit
  readonly #iterator: AsyncIterator<string> | Iterator<string>
  readonly #reasons: { peerId: string; reason: string; lied: boolean }[] = []

  constructor(digest: Digest, options: FetchOptions, sessions: PieceSessions, init: PassThroughInit) {
    this.#digest = digest
    this.#options = options
    this.#sessions = sessions
    this.#init = init
    const { sources } = options
    this.#iterator = Symbol.asyncIterator in sources ? sources[Symbol.asyncIterator]() : sources[Symbol.iterator]()
  }

  /** The next that has the blob and, if one is given, states this list; undefined when there is none. */
  async next(list?: PieceList): Promise<Listed | undefined> {
    const { signal } = this.#options
    for (;;) {
      signal.throwIfAborted()
      const { done, value: peerId } = await this.#iterator.next()
      if (done === true) return undefined
      try {
        const listed = await this.#ask(peerId)
        if (list === undefined || Buffer.compare(listed.list.root, list.root) === 0) return listed
        this.#sessions.give(listed.session)
      } catch (error) {
        if (signal.aborted) throw signal.reason
        this.failed(peerId, error)
      }
    }
  }

  async #ask(peerId: string, how?: { fresh: boolean }): Promise<Listed> {
    const { network, sizeBytes, sizeBytesMax = BLOB_BYTES_MAX, signal } = this.#options
    using deadline = new Deadline(LIST_MS_MAX, signal)
    const session = await this.#sessions.take({ peerId, network }, deadline.signal, how)
    try {
      const limit = { sizeBytesMax: sizeBytes ?? sizeBytesMax }
      const list = await session.asker.hashes(fromHex(this.#digest), limit, deadline.signal)
      if (sizeBytes !== undefined && list.sizeBytes !== sizeBytes)
        throw new WireError('refused', `it has ${list.sizeBytes} bytes in place of ${sizeBytes}`)
      // It fetches the blob itself: it cannot answer for its list, and may lack the next piece.
      if (list.pieces !== undefined) throw new WireError('absent', 'it has only a part yet')
      return { session, list }
    } catch (error) {
      const code = error instanceof WireError ? error.code : undefined
      if (code === 'absent' || code === 'refused' || code === 'busy') this.#sessions.give(session)
      else session.frames.abort(asError(error))
      // A stream that was kept may have been closed since, which says nothing of the peer.
      if (code === 'closed' && session.isUsed && !signal.aborted) return await this.#ask(peerId, { fresh: true })
      throw error
    }
  }

  failed(peerId: string, error: unknown): void {
    const reason = reasonOf(error)
    const lied = error instanceof WireError && (error.code === 'mismatch' || error.code === 'malformed')
    this.#reasons.push({ peerId, reason, lied })
    if (!lied) return
    this.#init.log.warn({ peerId, digest: this.#digest, reason }, 'blob.fault')
    this.#init.onFault?.({ peerId, digest: this.#digest, reason })
  }

  failure(): AgentError {
    const code = this.#reasons.some(({ lied }) => lied) ? 'corrupt' : 'not-found'
    const told = this.#reasons.slice(0, REASONS_MAX).map(({ peerId, reason }) => `${peerId}: ${reason}`)
    return new AgentError(code, `no peer could give ${this.#digest}: ${told.join('; ') || 'none is known to have it'}`)
  }

  give(session: PieceSession): void {
    this.#sessions.give(session)
  }
}

class UnkeptBlob implements BlobSource {
  readonly sizeBytes: number
  readonly #digest: Digest
  readonly #list: PieceList
  readonly #peers: Peers
  readonly #free: () => void
  readonly #closing = new AbortController()
  /** Who gives the pieces now; undefined once it has failed, or has given all. */
  #listed: Listed | undefined
  /** Who stated the list. */
  readonly #claimants = new Set<string>()

  constructor(digest: Digest, listed: Listed, peers: Peers, free: () => void) {
    this.#digest = digest
    this.#listed = listed
    this.#list = listed.list
    this.sizeBytes = listed.list.sizeBytes
    this.#peers = peers
    this.#free = free
  }

  async *read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array> {
    const end = offset + length
    if (end > this.sizeBytes) throw new RangeError('a read beyond the end of the blob')
    const hash = createHash('sha256')
    let at = 0
    for await (const piece of this.#pieces(AbortSignal.any([signal, this.#closing.signal]))) {
      hash.update(piece)
      const isLast = at + piece.byteLength === this.sizeBytes
      if (isLast && hash.digest('hex') !== this.#digest) throw this.#refuted()
      const wanted = piece.subarray(Math.max(0, offset - at), Math.max(0, end - at))
      at += piece.byteLength
      if (wanted.byteLength > 0) yield wanted
      // At the very end the pieces end by themselves, and the stream can be used again.
      if (at >= end && !isLast) break
    }
  }

  async close(): Promise<void> {
    this.#closing.abort(new AgentError('cancelled', 'nobody reads it any more'))
    this.#listed?.session.frames.abort(new Error('nobody reads it any more'))
    this.#listed = undefined
    this.#free()
  }

  /** All of them in order, from whoever has them. */
  async *#pieces(signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const count = pieceCount(this.sizeBytes)
    for (let next = 0; next < count; ) {
      const listed = this.#listed ?? (await this.#peers.next(this.#list))
      this.#listed = listed
      if (listed === undefined) throw this.#peers.failure()
      const { peerId } = listed.session
      this.#claimants.add(peerId)
      try {
        for await (const piece of piecesFrom(listed, fromHex(this.#digest), next, signal)) {
          next++
          // Whoever stops here leaves a stream with answers on it: close() resets it.
          yield piece
        }
        this.#peers.give(listed.session)
      } catch (error) {
        listed.session.frames.abort(asError(error))
        if (signal.aborted || !(error instanceof WireError)) throw error
        this.#peers.failed(peerId, error)
      }
      this.#listed = undefined
    }
  }

  #refuted(): AgentError {
    for (const peerId of this.#claimants)
      this.#peers.failed(peerId, new WireError('mismatch', 'its pieces do not make up the blob'))
    return this.#peers.failure()
  }
}

/** Pieces from an index on, each held against the list; two requests under way. */
async function* piecesFrom(
  { session: { asker }, list }: Listed,
  digest: Uint8Array,
  from: number,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const count = pieceCount(list.sizeBytes)
  using deadline = new Deadline(QUIET_MS_MAX, signal)
  const runAt = (start: number) => Math.min(GET_PIECES, count - start)
  await asker.askGet(digest, from, runAt(from), deadline.signal)
  for (let start = from; start < count; start += GET_PIECES) {
    const ahead = start + GET_PIECES
    if (ahead < count) await asker.askGet(digest, ahead, runAt(ahead), deadline.signal)
    if ((await asker.readGet(deadline.signal)) !== rangeBytes(list.sizeBytes, start, runAt(start)))
      throw new WireError('malformed', 'it has another number of bytes than it said')
    for (let index = start; index < start + runAt(start); index++) {
      const piece = new Uint8Array(pieceBytes(list.sizeBytes, index))
      await asker.readInto(piece, deadline.signal)
      if (!isPiece(piece, list.hashes, index))
        throw new WireError('mismatch', `piece ${index} has another hash than it said`)
      // Whoever reads may be slow, which is not the peer's fault.
      deadline.allow(2 ** 30)
      yield piece
      deadline.allow(QUIET_MS_MAX)
    }
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(reasonOf(error))
}
