/**
 * Blobs smaller than a piece, whose digest is all that they need to be checked by: asked for and had in one round trip, and many of them
 * in one, too, since a closure is mostly small paths. All that are wanted of one peer in one network go over one stream, one after the
 * other without waiting for answers.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { isRefusal } from '../../protocols/pieces/exchange.ts'
import { AgentError, reasonOf } from '../error.ts'
import { Deadline } from './deadline.ts'
import { fromHex } from './piece-lists.ts'
import type { PieceSession, PieceSessions } from './piece-sessions.ts'

/** Asked for and not here: with the next, what a line holds of small blobs over some tenth of a second. */
const ASKED_MAX = 64
const ASKED_BYTES_MAX = 4 * 1024 * 1024
/** A stream kept from before may be closed, and the connection under it replaced: once more, over a new one. */
const TRIES_MAX = 2

export type SmallBlob = {
  peerId: string
  network: string
  digest: Digest
  sizeBytes: number
  /** How long the peer may be silent. */
  patienceMs: number
}

type Wanted = SmallBlob & {
  /** Streams that ended when it was first in line. */
  tries: number
  isLeft: boolean
  resolve: (bytes: Uint8Array) => void
  reject: (error: Error) => void
}

export class SmallBlobs implements AsyncDisposable {
  readonly #sessions: PieceSessions
  readonly #openMs: number
  readonly #lines = new Map<string, Line>()
  readonly #stopping = new AbortController()

  constructor(sessions: PieceSessions, openMs: number) {
    this.#sessions = sessions
    this.#openMs = openMs
  }

  /**
   * The bytes, as the peer gives them: nothing is checked but their number.
   *
   * @throws {WireError} what the peer did wrong.
   */
  get(blob: SmallBlob, signal: AbortSignal): Promise<Uint8Array> {
    if (signal.aborted) return Promise.reject(signal.reason as Error)
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        signal.removeEventListener('abort', onAbort)
        act()
      }
      const wanted: Wanted = {
        ...blob,
        tries: 0,
        isLeft: false,
        resolve: (bytes) => settle(() => resolve(bytes)),
        reject: (error) => settle(() => reject(error)),
      }
      const onAbort = () => {
        wanted.isLeft = true
        reject(signal.reason as Error)
      }
      signal.addEventListener('abort', onAbort, { once: true })
      this.#lineOf(blob).want(wanted)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.all([...this.#lines.values()].map((line) => line.ended))
  }

  #lineOf({ peerId, network }: SmallBlob): Line {
    const key = `${peerId} ${network}`
    const known = this.#lines.get(key)
    if (known) return known
    const line = new Line({ peerId, network }, this.#sessions, this.#openMs, this.#stopping.signal, () =>
      this.#lines.delete(key),
    )
    this.#lines.set(key, line)
    return line
  }
}

/** What is wanted of one peer in one network; it ends when nothing is. */
class Line {
  readonly #of: { peerId: string; network: string }
  readonly #sessions: PieceSessions
  readonly #openMs: number
  readonly #stopping: AbortSignal
  readonly #onEnd: () => void
  readonly #queue: Wanted[] = []
  readonly #asked: Wanted[] = []
  #askedBytes = 0
  #running: Promise<void> | undefined

  constructor(
    of: { peerId: string; network: string },
    sessions: PieceSessions,
    openMs: number,
    stopping: AbortSignal,
    onEnd: () => void,
  ) {
    this.#of = of
    this.#sessions = sessions
    this.#openMs = openMs
    this.#stopping = stopping
    this.#onEnd = onEnd
  }

  get ended(): Promise<void> {
    return this.#running ?? Promise.resolve()
  }

  want(wanted: Wanted): void {
    this.#queue.push(wanted)
    this.#running ??= this.#run()
  }

  async #run(): Promise<void> {
    let isFresh = false
    while (this.#queue.length > 0) {
      let session: PieceSession | undefined
      try {
        session = await this.#sessions.open(this.#of, { openMs: this.#openMs, signal: this.#stopping, fresh: isFresh })
        await this.#work(session)
        this.#sessions.give(session)
        isFresh = false
      } catch (error) {
        const failure = error instanceof Error ? error : new Error(reasonOf(error))
        session?.frames.abort(failure)
        this.#fail(failure, session === undefined)
        isFresh = true
      }
    }
    this.#onEnd()
  }

  async #work(session: PieceSession): Promise<void> {
    using deadline = new Deadline(this.#queue[0]?.patienceMs ?? 0, this.#stopping)
    for (;;) {
      await this.#ask(session, deadline.signal)
      const [wanted] = this.#asked
      if (!wanted) return
      deadline.allow(wanted.patienceMs)
      let lengthBytes: number | Error
      try {
        lengthBytes = await session.asker.readGet(deadline.signal)
      } catch (error) {
        // The stream goes on after an answer that says no.
        if (!isRefusal(error)) throw error
        lengthBytes = error
      }
      if (typeof lengthBytes !== 'number') {
        this.#done()
        wanted.reject(lengthBytes)
        continue
      }
      if (lengthBytes !== wanted.sizeBytes)
        throw new WireError('refused', `it has ${lengthBytes} bytes in place of ${wanted.sizeBytes}`)
      const bytes = new Uint8Array(lengthBytes)
      await session.asker.readInto(bytes, deadline.signal)
      this.#done()
      wanted.resolve(bytes)
    }
  }

  async #ask({ asker }: PieceSession, signal: AbortSignal): Promise<void> {
    while (this.#asked.length < ASKED_MAX && this.#askedBytes < ASKED_BYTES_MAX) {
      const wanted = this.#queue.shift()
      if (!wanted) return
      if (wanted.isLeft) continue
      this.#asked.push(wanted)
      this.#askedBytes += wanted.sizeBytes
      await asker.askGet(fromHex(wanted.digest), 0, 1, signal)
    }
  }

  /**
   * The stream is of no more use. The first in line is told why, or asked for once more, after the others: it may have nothing to do with it.
   * Who only waited behind it is asked for again, unless the peer is silent or cannot be reached.
   */
  #fail(error: Error, isUnreachable: boolean): void {
    const isSilent = error instanceof WireError && error.code === 'timeout'
    const isCut = error instanceof WireError && error.code === 'closed'
    const isHopeless = isUnreachable || isSilent || this.#stopping.aborted
    const [first, ...others] = [...this.#asked.splice(0), ...this.#queue.splice(0)]
    this.#askedBytes = 0
    for (const wanted of others) {
      if (isHopeless) wanted.reject(error)
      else this.#queue.push(wanted)
    }
    if (first && isCut && !isHopeless && ++first.tries < TRIES_MAX) this.#queue.push(first)
    else first?.reject(error)
  }

  #done(): void {
    this.#askedBytes -= this.#asked.shift()?.sizeBytes ?? 0
  }
}
