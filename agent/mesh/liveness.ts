/**
 * Notices dead links: a connection on which nothing arrived for SILENT_MS is asked for a sign of life, and aborted when none comes
 * within ANSWER_MS. With the TICK_MS between two looks that is 13 s at most after the last byte, whatever broke: cable, power, a
 * hung process.
 *
 * It asks with yamux's own ping, 12 bytes, where libp2p's connection monitor opens a stream for each (some 1 KB and ten times the
 * CPU); and only one side asks, since the question is a sign of life as well. The answer measures the round trip, which yamux also
 * needs to grow its windows: its own keep-alive is therefore off.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Connection } from '@libp2p/interface'
import type { Log } from '../log.ts'

/** Silence after which a sign of life is asked for. Half a minute of idling costs a link some 600 bytes, TCP headers included. */
const SILENT_MS = 7_000
/** Long enough for a busy machine and a satellite. */
const ANSWER_MS = 4_000
const TICK_MS = 2_000
/** How often the round trip is measured on a link that is never silent. The first one, during the handshakes, is too long. */
const MEASURE_MS = 60_000
/** After a wait that ran out: what arrived while our own event loop was stuck is read before anybody is declared dead. */
const CATCH_UP_MS = 100

/** What a libp2p connection is made of; private in its types, and there in 3.x. */
type Insides = {
  maConn: { addEventListener(type: 'message', listener: () => void): void }
  muxer?: { ping?(): Promise<number>; rttMs?: number; remoteGoAway?: number }
}

type Link = {
  readonly connection: Connection
  heardMs: number
  rttMs: number | undefined
  measuredMs: number
  asking: boolean
  /** Called on the next bytes that arrive. */
  readonly waiting: Set<() => void>
}

export class Liveness implements Disposable {
  readonly #links = new Map<string, Link>()
  readonly #log: Log
  #timer: NodeJS.Timeout | undefined

  constructor(log: Log) {
    this.#log = log
  }

  /** Watches a connection from now until it closes. */
  watch(connection: Connection): void {
    const link: Link = {
      connection,
      heardMs: performance.now(),
      rttMs: undefined,
      measuredMs: Number.NEGATIVE_INFINITY,
      asking: false,
      waiting: new Set(),
    }
    this.#links.set(connection.id, link)
    insidesOf(connection).maConn.addEventListener('message', () => {
      link.heardMs = performance.now()
      for (const heard of link.waiting) heard()
    })
    connection.addEventListener('close', () => this.#forget(connection.id), { once: true })
    this.#timer ??= setInterval(() => this.#look(), TICK_MS).unref()
    void this.#ask(link, ANSWER_MS)
    link.measuredMs = Number.NEGATIVE_INFINITY
  }

  rttMs(connection: Connection): number | undefined {
    return this.#links.get(connection.id)?.rttMs
  }

  /** Whether the peer gives a sign of life on this connection within `waitMs`. Never rejects, never closes anything. */
  async isAlive(connection: Connection, waitMs: number): Promise<boolean> {
    const link = this.#links.get(connection.id)
    if (link === undefined || connection.status !== 'open') return false
    return this.#hears(link, waitMs)
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    this.#links.clear()
  }

  #look(): void {
    const now = performance.now()
    for (const link of this.#links.values()) {
      if (now - link.heardMs >= SILENT_MS) void this.#ask(link, ANSWER_MS)
      else if (now - link.measuredMs >= MEASURE_MS) this.#ping(link)
    }
  }

  async #ask(link: Link, waitMs: number): Promise<void> {
    if (link.asking) return
    link.asking = true
    const alive = await this.#hears(link, waitMs)
    link.asking = false
    if (alive || !this.#links.has(link.connection.id)) return
    this.#log.info(
      { peerId: link.connection.remotePeer.toString(), silentMs: Math.round(performance.now() - link.heardMs) },
      'link.dead',
    )
    link.connection.abort(new Error(`no sign of life for ${SILENT_MS + waitMs} ms`))
  }

  /**
   * Sends a ping and waits for anything to arrive. The ping itself is never cancelled: an answer that nobody waits for any more is a
   * protocol error to yamux, and would close the connection.
   */
  async #hears(link: Link, waitMs: number): Promise<boolean> {
    const answered = new AbortController()
    const hear = () => answered.abort()
    link.waiting.add(hear)
    this.#ping(link)
    try {
      await delay(waitMs, undefined, { signal: answered.signal, ref: false })
      await delay(CATCH_UP_MS, undefined, { signal: answered.signal, ref: false })
      return false
    } catch {
      return true
    } finally {
      link.waiting.delete(hear)
    }
  }

  #ping(link: Link): void {
    const startMs = performance.now()
    link.measuredMs = startMs
    insidesOf(link.connection)
      .muxer?.ping?.()
      .then(
        () => {
          link.rttMs = insidesOf(link.connection).muxer?.rttMs ?? performance.now() - startMs
        },
        () => undefined,
      )
  }

  #forget(id: string): void {
    this.#links.delete(id)
    if (this.#links.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

/** Whether the other end closed the connection in order (yamux's go-away), where a crash or a cut only ends it. */
export function saidGoodbye(connection: Connection): boolean {
  return insidesOf(connection).muxer?.remoteGoAway === 0
}

function insidesOf(connection: Connection): Insides {
  return connection as unknown as Insides
}
