/**
 * The streams of one QUIC connection, for libp2p. Its first stream is the hello's (protocols/hello/spec.md); no other is opened or taken before
 * libp2p has a connection of it, which is after the hello. A stranger that sends much before that is cut.
 */
import { setTimeout as delay } from 'node:timers/promises'
import {
  type AbortOptions,
  ConnectionClosedError,
  type CreateStreamOptions,
  type MultiaddrConnection,
  StreamMessageEvent,
  type StreamMuxer,
  type StreamMuxerEvents,
  TypedEventEmitter,
} from '@libp2p/interface'
import { type NativeStream, QuicStream } from './quic-stream.ts'
import { isRoom } from './stream-room.ts'

/** Before the hello is over: its messages have 35 KB each at most, and what an honest peer sends behind them fits beside. */
const UNPROVEN_BYTES_MAX = 256 * 1024
/** How often that is looked at. */
const UNPROVEN_LOOK_MS = 50
/** How often it is looked whether something came, while that is waited for. */
const HEARD_LOOK_MS = 50
/** The native code counts whole milliseconds. */
const RTT_LEAST_MS = 0.5
/** After the streams of a connection were ended, for what was sent last to arrive: QUIC's own close cuts it off. */
const FAREWELL_MS_MAX = 500

/** Of the package's native code. */
export type NativeConnection = {
  inboundStream(): Promise<NativeStream>
  outboundStream(): Promise<NativeStream>
  rtt(): number
  stats(): NativeStats
}
type NativeStats = {
  udpRxDatagrams: number | bigint
  udpRxBytes: number | bigint
  frameRxConnectionClose: number | bigint
}

const NOTHING = new Uint8Array()

export class QuicMuxer extends TypedEventEmitter<StreamMuxerEvents> implements StreamMuxer<QuicStream> {
  readonly protocol = '/quic-v1'
  streams: QuicStream[] = []
  status: 'open' | 'closing' | 'closed' = 'open'
  readonly #native: NativeConnection
  readonly #raw: MultiaddrConnection
  readonly #over = new AbortController()
  /** Until libp2p listens for streams. */
  #watching: NodeJS.Timeout | undefined

  constructor(native: NativeConnection, raw: MultiaddrConnection) {
    super()
    this.#native = native
    this.#raw = raw
    raw.addEventListener('close', () => this.abort(new ConnectionClosedError('the connection was closed')), {
      once: true,
    })
    this.#watching = setInterval(() => this.#boundUnproven(), UNPROVEN_LOOK_MS).unref()
  }

  /** The hello's stream: the first one that the dialler opens. */
  async first(signal: AbortSignal): Promise<QuicStream> {
    const { direction } = this.#raw
    const native = direction === 'outbound' ? this.#native.outboundStream() : this.#native.inboundStream()
    return this.#add(await this.#within(native, signal), direction)
  }

  async createStream(options?: CreateStreamOptions): Promise<QuicStream> {
    if (this.status !== 'open') throw new Error('the connection is closing')
    // Waits where the peer takes no more streams now.
    const native = await this.#within(this.#native.outboundStream(), options?.signal)
    return this.#add(native, 'outbound')
  }

  // biome-ignore lint/suspicious/noExplicitAny: as it is overloaded in the class
  override addEventListener(...args: [any, any, any?]): void {
    super.addEventListener(...args)
    if (args[0] !== 'stream' || this.#watching === undefined) return
    clearInterval(this.#watching)
    this.#watching = undefined
    void this.#accept()
  }

  /** For Liveness: as QUIC measures it. */
  get rttMs(): number {
    return Math.max(RTT_LEAST_MS, this.#native.rtt())
  }

  /** For Liveness: resolves with the round trip when something has come, which QUIC's keep-alive sees to. */
  async ping(): Promise<number> {
    const before = Number(this.#native.stats().udpRxDatagrams)
    for (;;) {
      await delay(HEARD_LOOK_MS, undefined, { signal: this.#over.signal, ref: false })
      if (Number(this.#native.stats().udpRxDatagrams) === before) continue
      this.#heard()
      return this.rttMs
    }
  }

  /** For Liveness: 0 when the other end closed the connection in order. */
  get remoteGoAway(): 0 | undefined {
    return Number(this.#native.stats().frameRxConnectionClose) > 0 ? 0 : undefined
  }

  async close(options?: AbortOptions): Promise<void> {
    if (this.status !== 'open') return
    this.status = 'closing'
    try {
      await Promise.all(this.streams.map((stream) => stream.close(options)))
      const farewellMs = Math.min(FAREWELL_MS_MAX, 20 + 2 * this.#native.rtt())
      await delay(farewellMs, undefined, { signal: AbortSignal.any([this.#over.signal, ...signalsOf(options)]) })
    } catch {
      // Whoever does not end in time is reset.
    }
    this.abort(new ConnectionClosedError('the connection was closed'))
  }

  abort(error: Error): void {
    if (this.status === 'closed') return
    this.status = 'closed'
    clearInterval(this.#watching)
    this.#over.abort(error)
    for (const stream of this.streams.splice(0)) stream.abort(error)
  }

  async #accept(): Promise<void> {
    try {
      for (;;) {
        const native = await this.#within(this.#native.inboundStream())
        const isTaken = isRoom(this.streams)
        const stream = this.#add(native, 'inbound')
        if (isTaken) this.safeDispatchEvent('stream', { detail: stream })
        else stream.abort(new Error('too many streams'))
      }
    } catch {
      // The connection is over, and its own close says why.
    }
  }

  #add(native: NativeStream, direction: 'inbound' | 'outbound'): QuicStream {
    const stream = new QuicStream({ native, direction, log: this.#raw.log, heard: () => this.#heard() })
    this.streams.push(stream)
    const forget = () => {
      this.streams = this.streams.filter((one) => one !== stream)
    }
    stream.addEventListener('close', forget, { once: true })
    return stream
  }

  /** What comes too late for the signal, or for this connection, is given back. */
  async #within(opening: Promise<NativeStream>, signal?: AbortSignal | null): Promise<NativeStream> {
    const ended = AbortSignal.any([this.#over.signal, ...(signal ? [signal] : [])])
    const gone = Promise.withResolvers<never>()
    const onAbort = () => gone.reject(ended.reason as Error)
    if (ended.aborted) onAbort()
    ended.addEventListener('abort', onAbort, { once: true })
    try {
      return await Promise.race([gone.promise, opening])
    } catch (error) {
      opening.then(
        (late) => Promise.all([late.resetWrite(), late.stopRead()]),
        () => undefined,
      )
      throw error
    } finally {
      ended.removeEventListener('abort', onAbort)
    }
  }

  /** As bytes do on other connections: whoever watches this one sees that something came. */
  #heard(): void {
    this.#raw.dispatchEvent(new StreamMessageEvent(NOTHING))
  }

  #boundUnproven(): void {
    if (Number(this.#native.stats().udpRxBytes) > UNPROVEN_BYTES_MAX)
      this.#raw.abort(new Error('too much was sent before the hello'))
  }
}

function signalsOf(options: AbortOptions | undefined): AbortSignal[] {
  return options?.signal ? [options.signal] : []
}
