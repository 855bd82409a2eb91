/**
 * Streams to peers on which blobs are asked for. One that has answered all it was asked is kept for a few seconds: a closure is many
 * small blobs, and opening a stream for each would cost a round trip more than the blob.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import { PIECES_PROTOCOL, PieceAsker } from '../../protocols/pieces/exchange.ts'
import { reasonOf } from '../error.ts'
import { Deadline } from './deadline.ts'
import type { LaneSource } from './lanes.ts'
import { fromHex } from './piece-lists.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'

/** Far below the time after which a server gives up a quiet stream. */
const IDLE_MS_MAX = 5_000
/** Of one peer in one network. */
const IDLE_MAX = 4
/**
 * A stream that is reset before anything was said on it says nothing of the peer: it may have been opened on a connection that is being
 * replaced, or when there was no room for a moment.
 */
const OPEN_TRIES_MAX = 2
/** A peer that does not end its side when we ended ours is reset. */
const CLOSE_MS_MAX = 2_000

export type OpenStreams = {
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
}

export type PieceSession = {
  readonly peerId: string
  /** In which the asker asks. */
  readonly network: string
  readonly asker: PieceAsker
  readonly frames: Frames
  /** For what is large: other ways to the same peer. */
  readonly lanes: LaneSource | undefined
  /** Kept from an earlier blob: the peer may have closed it meanwhile. */
  readonly isUsed: boolean
}

/** How work on a session ended: whether every question was answered, and what the peer did not do. */
export type Done = { isOrderly: boolean; failure?: WireError }

/** Who is asked, and in which network. */
type Asked = Pick<PieceSession, 'peerId' | 'network'>
type Idle = PieceSession & { readonly stream: Stream; readonly timer: NodeJS.Timeout }

export class PieceSessions implements AsyncDisposable {
  readonly #streams: OpenStreams
  readonly #lanes: LaneSource | undefined
  readonly #idle = new Map<string, Idle[]>()
  readonly #streamOf = new WeakMap<PieceSession, Stream>()
  readonly #closing = new Set<Promise<void>>()

  constructor(streams: OpenStreams, lanes?: LaneSource) {
    this.#streams = streams
    this.#lanes = lanes
  }

  /** @throws {WireError} `closed` when the peer cannot be reached. */
  async take(of: Asked, signal: AbortSignal, { fresh = false } = {}): Promise<PieceSession> {
    const { peerId, network } = of
    for (let idle = fresh ? undefined : this.#pop(of); idle; idle = this.#pop(of)) {
      clearTimeout(idle.timer)
      if (idle.stream.status === 'open') return idle
    }
    const stream = await this.#openStream(peerId, signal)
    const frames = new Frames(stream)
    const asker = network === OPEN_NETWORK_ID ? new PieceAsker(frames) : new PieceAsker(frames, fromHex(network))
    const session = { peerId, network, frames, asker, lanes: this.#lanes, isUsed: false }
    this.#streamOf.set(session, stream)
    return session
  }

  /**
   * Does the work on a session, which is kept for later if the work says that every question was answered. On another one, once, when the
   * stream turns out to be closed: one kept from an earlier blob may be, and where both sides dialled at once the connection under it is
   * replaced by the other one, which says nothing of the peer.
   *
   * @throws {WireError} `closed` when the peer cannot be reached in `openMs`; what the work throws, or says.
   */
  async use(
    of: Asked,
    { openMs, signal }: { openMs: number; signal: AbortSignal },
    work: (session: PieceSession) => Promise<Done>,
  ): Promise<void> {
    for (const fresh of [false, true]) {
      const session = await this.open(of, { openMs, signal, fresh })
      let done: Done | undefined
      try {
        done = await work(session)
      } catch (error) {
        if (fresh || signal.aborted || !(error instanceof WireError) || error.code !== 'closed') throw error
        continue
      } finally {
        if (done?.isOrderly) this.give(session)
        else session.frames.abort(new WireError('closed', 'nothing more is wanted'))
      }
      if (done.failure) throw done.failure
      return
    }
  }

  /** As `take`, within a time. */
  async open(
    of: Asked,
    { openMs, signal, fresh = false }: { openMs: number; signal: AbortSignal; fresh?: boolean },
  ): Promise<PieceSession> {
    using deadline = new Deadline(openMs, signal)
    try {
      return await this.take(of, deadline.signal, { fresh })
    } catch (error) {
      // Not silence: more patience would not help.
      if (error instanceof WireError && error.code === 'timeout') throw new WireError('closed', 'it cannot be reached')
      throw error
    }
  }

  /** Takes back a session on which every question was answered. One that failed is not given back, but its frames aborted. */
  give(session: PieceSession): void {
    const stream = this.#streamOf.get(session)
    if (!stream) return
    const list = this.#idle.get(keyOf(session)) ?? []
    if (list.length >= IDLE_MAX || stream.status !== 'open') {
      this.#close(session.frames)
      return
    }
    const timer = setTimeout(() => {
      this.#remove(idle)
      this.#close(idle.frames)
    }, IDLE_MS_MAX)
    const idle = { ...session, isUsed: true, stream, timer }
    this.#streamOf.set(idle, stream)
    this.#idle.set(keyOf(session), [...list, idle])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const idle of [...this.#idle.values()].flat()) {
      clearTimeout(idle.timer)
      this.#close(idle.frames)
    }
    this.#idle.clear()
    await Promise.all(this.#closing)
  }

  async #openStream(peerId: string, signal: AbortSignal): Promise<Stream> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#streams.openStream(peerId, PIECES_PROTOCOL, signal)
      } catch (cause) {
        if (signal.aborted) throw signal.reason as Error
        const wasReset = cause instanceof Error && cause.name === 'StreamResetError'
        if (wasReset && tries < OPEN_TRIES_MAX) continue
        throw new WireError('closed', `it cannot be reached (${reasonOf(cause)})`, { cause })
      }
    }
  }

  #pop(of: Asked): Idle | undefined {
    const idle = this.#idle.get(keyOf(of))?.at(-1)
    if (idle) this.#remove(idle)
    return idle
  }

  #remove(idle: Idle): void {
    const rest = (this.#idle.get(keyOf(idle)) ?? []).filter((one) => one !== idle)
    if (rest.length > 0) this.#idle.set(keyOf(idle), rest)
    else this.#idle.delete(keyOf(idle))
  }

  #close(frames: Frames): void {
    const closing = close(frames).finally(() => this.#closing.delete(closing))
    this.#closing.add(closing)
  }
}

function keyOf({ peerId, network }: Asked): string {
  return `${peerId} ${network}`
}

/** Ends our side and waits for the peer's end. */
async function close(frames: Frames): Promise<void> {
  const signal = AbortSignal.timeout(CLOSE_MS_MAX)
  try {
    await frames.close(signal)
    if ((await frames.read(signal, 0)) !== undefined)
      throw new WireError('malformed', 'an answer that nobody asked for')
  } catch (error) {
    frames.abort(error instanceof Error ? error : new Error(reasonOf(error)))
  }
}
