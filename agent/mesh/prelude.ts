/**
 * Frames at the beginning of a byte stream that afterwards belongs to somebody else: what is said on a secure channel before its muxer.
 * Bytes beyond the frames that were read are handed on unread, and nobody else hears anything before that.
 */
import type { MessageStream, StreamCloseEvent, StreamMessageEvent } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame } from '../../protocols/frame.ts'

/** A varint of a length below 2^21 never needs more: no frame here comes near that. */
const PREFIX_BYTES_MAX = 3
/** Read ahead: the largest frame and what a hasty peer sends behind it. Then the peer is slowed down. */
const READ_AHEAD_BYTES = 64 * 1024

/** Holds an honest peer's message, most times. */
const FIRST_BYTES = 1_024

type Channel = Pick<
  MessageStream,
  'send' | 'pause' | 'resume' | 'unshift' | 'status' | 'addEventListener' | 'removeEventListener'
>

export class Prelude {
  readonly #channel: Channel
  /** How many frames were written. */
  written = 0
  /** What arrived and was not read, from #start to #end; it grows by doubling, since a peer may send single bytes. */
  #buffer: Uint8Array = new Uint8Array(FIRST_BYTES)
  #start = 0
  #end = 0
  #isPaused = false
  #closed: Error | undefined
  #wake: (() => void) | undefined

  /** From now on everything that the channel receives comes here, and nowhere else. */
  constructor(channel: Channel) {
    this.#channel = channel
    channel.addEventListener('message', this.#onMessage)
    channel.addEventListener('close', this.#onClose)
  }

  /** The next frame's payload. @throws {WireError} `closed`, `too-large`, `malformed` */
  async read(signal: AbortSignal, bytesMax = READ_AHEAD_BYTES): Promise<Uint8Array> {
    for (;;) {
      signal.throwIfAborted()
      const frame = this.#take(bytesMax)
      if (frame !== undefined) return frame
      if (this.#closed !== undefined) throw new WireError('closed', 'the connection ended', { cause: this.#closed })
      await this.#woken(signal)
    }
  }

  /** Writes a frame. Few and small ones are written here: whether the channel is full is not looked at. */
  async write(payload: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (this.#channel.status !== 'open') throw new WireError('closed', 'the connection ended')
    this.written++
    this.#channel.send(encodeFrame(payload))
  }

  /** What comes now, and what came already and was not read, is for whoever listens next. */
  release(): void {
    this.#channel.removeEventListener('message', this.#onMessage)
    this.#channel.removeEventListener('close', this.#onClose)
    if (this.#channel.status !== 'open') return
    if (this.#end > this.#start) this.#channel.unshift(this.#buffer.subarray(this.#start, this.#end))
    this.#start = this.#end
    if (this.#isPaused) this.#channel.resume()
  }

  readonly #onMessage = (event: StreamMessageEvent): void => {
    event.stopImmediatePropagation()
    this.#append(event.data.subarray())
    if (this.#end - this.#start > READ_AHEAD_BYTES && !this.#isPaused) {
      this.#isPaused = true
      this.#channel.pause()
    }
    this.#wake?.()
  }

  readonly #onClose = ({ error }: StreamCloseEvent): void => {
    this.#closed = error ?? new Error('closed by the peer')
    this.#wake?.()
  }

  #append(data: Uint8Array): void {
    const waiting = this.#buffer.subarray(this.#start, this.#end)
    const needed = waiting.byteLength + data.byteLength
    if (this.#end + data.byteLength > this.#buffer.byteLength) {
      this.#buffer = new Uint8Array(Math.max(needed, this.#buffer.byteLength * 2))
      this.#buffer.set(waiting)
      this.#start = 0
      this.#end = waiting.byteLength
    }
    this.#buffer.set(data, this.#end)
    this.#end += data.byteLength
  }

  /** The first frame of the buffer; undefined while it is not whole. */
  #take(bytesMax: number): Uint8Array | undefined {
    const waiting = this.#buffer.subarray(this.#start, this.#end)
    const prefix = waiting.subarray(0, PREFIX_BYTES_MAX)
    const last = prefix.findIndex((byte) => byte < 0x80)
    if (last < 0 && prefix.byteLength < PREFIX_BYTES_MAX) return undefined
    if (last < 0) throw new WireError('too-large', 'a frame length over three bytes')
    if (last > 0 && prefix[last] === 0) throw new WireError('malformed', 'a frame length that is not minimal')
    const length = prefix.subarray(0, last + 1).reduce((sum, byte, at) => sum + (byte & 0x7f) * 2 ** (7 * at), 0)
    if (length > bytesMax) throw new WireError('too-large', `a frame of ${length} bytes; the limit is ${bytesMax}`)
    if (waiting.byteLength < last + 1 + length) return undefined
    this.#start += last + 1 + length
    return waiting.slice(last + 1, last + 1 + length)
  }

  #woken(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        this.#wake = undefined
        signal.removeEventListener('abort', onAbort)
        act()
      }
      const onAbort = () => settle(() => reject(signal.reason as Error))
      signal.addEventListener('abort', onAbort, { once: true })
      this.#wake = () => settle(resolve)
    })
  }
}
