/**
 * Which connections can be used: those on which the peer has told its protocols. libp2p asks for them when a connection opens, once, for 5 s, and says
 * nothing when no answer came: a machine that was busy just then would stay connected, and unknown, for good. So it is asked again here,
 * and where it never answers the connection is ended, since a new one may do better.
 */
import type { AbortOptions, Connection } from '@libp2p/interface'
import type { Log } from '../log.ts'

/** From the opening, or an answer that did not come: libp2p's own time, and some more. */
const WAIT_MS = 7_000
/** For one answer: whoever did not answer in 5 s may be slow. */
const ASK_MS_MAX = 15_000
/** Beside libp2p's own. */
const TRIES_MAX = 3

type Init = {
  ask: (connection: Connection, options: AbortOptions) => Promise<unknown>
  log: Log
  waitMs?: number
}

export class Identifying implements Disposable {
  readonly #init: Init
  readonly #told = new WeakSet<Connection>()
  readonly #timers = new Map<Connection, NodeJS.Timeout>()
  readonly #stopping = new AbortController()

  constructor(init: Init) {
    this.#init = init
  }

  has(connection: Connection): boolean {
    return this.#told.has(connection)
  }

  /** It has told its protocols. */
  add(connection: Connection): void {
    this.#told.add(connection)
    this.#forget(connection)
  }

  /** The connection was opened. */
  watch(connection: Connection, tries = 0): void {
    if (this.#stopping.signal.aborted || this.has(connection)) return
    const timer = setTimeout(() => void this.#ask(connection, tries), this.#init.waitMs ?? WAIT_MS).unref()
    this.#timers.set(connection, timer)
  }

  [Symbol.dispose](): void {
    this.#stopping.abort()
    for (const connection of this.#timers.keys()) this.#forget(connection)
  }

  async #ask(connection: Connection, tries: number): Promise<void> {
    this.#timers.delete(connection)
    if (connection.status !== 'open') return
    const peerId = connection.remotePeer.toString()
    if (tries >= TRIES_MAX) {
      this.#init.log.debug({ peerId }, 'peer.unidentified')
      connection.abort(new Error('the peer did not tell its protocols'))
      return
    }
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ASK_MS_MAX)])
    try {
      // It is told of as any answer is.
      await this.#init.ask(connection, { signal })
    } catch {
      this.watch(connection, tries + 1)
    }
  }

  #forget(connection: Connection): void {
    clearTimeout(this.#timers.get(connection))
    this.#timers.delete(connection)
  }
}
