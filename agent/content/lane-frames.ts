/**
 * The serving end of a lane as something to read requests from and to write answers to, as Frames (protocols/frame.ts) is of a stream.
 * What is read ahead and what waits to be sent are bounded.
 */
import type { TLSSocket } from 'node:tls'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame, FRAME_BYTES_MAX } from '../../protocols/frame.ts'
import { giveBack } from '../give-back.ts'

/** Requests are small, and an honest asker has a few dozen under way. */
const READ_AHEAD_BYTES = 64 * 1024
/** Handed to the socket before one waits for it: the next piece, while the one before leaves. */
const WRITE_AHEAD_BYTES = 256 * 1024
const PREFIX_BYTES_MAX = 4
const NOTHING = Buffer.alloc(0)

export class LaneFrames {
  readonly #socket: TLSSocket
  #buffered: Buffer = NOTHING
  #isEnded = false
  #wake: (() => void) | undefined
  #sentBytes = 0

  constructor(socket: TLSSocket) {
    this.#socket = socket
    socket.on('data', (chunk: Buffer) => {
      this.#buffered = this.#buffered.byteLength === 0 ? chunk : Buffer.concat([this.#buffered, chunk])
      if (this.#buffered.byteLength > READ_AHEAD_BYTES) socket.pause()
      this.#wake?.()
    })
    // Why is of no interest: the asker goes on elsewhere.
    socket.on('error', () => undefined)
    for (const event of ['end', 'close'] as const)
      socket.on(event, () => {
        this.#isEnded = true
        this.#wake?.()
      })
  }

  get sentBytes(): number {
    return this.#sentBytes
  }

  /** The next frame's payload; undefined when the other end is done. @throws {WireError} */
  async read(signal: AbortSignal, bytesMax = FRAME_BYTES_MAX): Promise<Uint8Array | undefined> {
    for (;;) {
      const payload = this.#next(bytesMax)
      if (payload !== undefined) return payload
      if (this.#isEnded) {
        if (this.#buffered.byteLength === 0) return undefined
        throw new WireError('closed', 'the lane ended in the middle of a request')
      }
      this.#socket.resume()
      await this.#until(signal)
    }
  }

  async write(payload: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.writeBytes(encodeFrame(payload), signal)
  }

  /** The bytes are gone afterwards, if nothing else is in the same memory. @throws {WireError} `closed` */
  async writeBytes(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (this.#socket.destroyed) throw new WireError('closed', 'the peer closed the lane')
    this.#sentBytes += bytes.byteLength
    this.#socket.write(bytes, () => giveBack(bytes))
    while (this.#socket.writableLength > WRITE_AHEAD_BYTES) {
      if (this.#socket.destroyed) throw new WireError('closed', 'the peer closed the lane')
      await this.#until(signal, 'drain')
    }
  }

  async close(): Promise<void> {
    this.#socket.end()
  }

  abort(): void {
    this.#socket.destroy()
  }

  /** Takes a whole frame from what is buffered, if there is one. */
  #next(bytesMax: number): Uint8Array | undefined {
    let length = 0
    for (let at = 0; at < PREFIX_BYTES_MAX; at++) {
      const byte = this.#buffered[at]
      if (byte === undefined) return undefined
      length |= (byte & 0x7f) << (7 * at)
      if (byte >= 0x80) continue
      if (byte === 0 && at > 0) throw new WireError('malformed', 'a frame length that is not minimal')
      if (length > bytesMax) throw new WireError('too-large', `a frame of ${length} bytes; the limit is ${bytesMax}`)
      const end = at + 1 + length
      if (this.#buffered.byteLength < end) return undefined
      const payload = this.#buffered.subarray(at + 1, end)
      this.#buffered = this.#buffered.subarray(end)
      return payload
    }
    throw new WireError('too-large', 'a frame length over four bytes')
  }

  /** Until something came, the lane ended, or what was written left. */
  #until(signal: AbortSignal, event?: 'drain'): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason as Error)
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        this.#wake = undefined
        signal.removeEventListener('abort', onAbort)
        if (event) this.#socket.off(event, onWake)
        act()
      }
      const onAbort = () => settle(() => reject(signal.reason as Error))
      const onWake = () => settle(resolve)
      signal.addEventListener('abort', onAbort, { once: true })
      if (event) this.#socket.once(event, onWake)
      this.#wake = onWake
    })
  }
}
