/**
 * Frames on a libp2p stream: an unsigned varint length, then that many bytes; and between frames, where a protocol says so, raw
 * bytes of a length known from the frame before. See protocols/spec.md.
 *
 * Reads pull from the stream's iterator, so a slow reader slows the sender; writes wait for the stream's drain event. Every wait
 * takes an AbortSignal and ends when it fires.
 */
import type { Stream } from '@libp2p/interface'
import { varint } from 'multiformats'
import { Uint8ArrayList } from 'uint8arraylist'
import { WireError } from './error.ts'

/** Default bound of one frame. Large content travels raw, in pieces, never in a frame. */
export const FRAME_BYTES_MAX = 1024 * 1024
/** A varint of a length below 2^28 never needs more. */
const PREFIX_BYTES_MAX = 4
/** Raw bytes are handed to the stream in slices of this size, so that back-pressure has somewhere to act. */
const WRITE_BYTES = 64 * 1024

type Duplex = Pick<Stream, 'send' | 'addEventListener' | 'removeEventListener' | 'close' | 'abort' | 'status'> &
  AsyncIterable<Uint8Array | Uint8ArrayList>

/** Encodes one frame: varint length, then `payload`. */
export function encodeFrame(payload: Uint8Array): Uint8Array {
  const prefix = varint.encodingLength(payload.byteLength)
  const frame = new Uint8Array(prefix + payload.byteLength)
  varint.encodeTo(payload.byteLength, frame)
  frame.set(payload, prefix)
  return frame
}

export class Frames {
  readonly #stream: Duplex
  readonly #chunks: AsyncIterator<Uint8Array | Uint8ArrayList>
  readonly #buffered = new Uint8ArrayList()
  #ended = false

  constructor(stream: Duplex) {
    this.#stream = stream
    this.#chunks = stream[Symbol.asyncIterator]()
  }

  /**
   * The next frame's payload, or undefined when the peer ended cleanly between frames.
   *
   * @throws {WireError} `too-large`, `malformed`, `closed`
   */
  async read(signal: AbortSignal, bytesMax = FRAME_BYTES_MAX): Promise<Uint8Array | undefined> {
    const length = await this.#readPrefix(signal)
    if (length === undefined) return undefined
    if (length > bytesMax) throw new WireError('too-large', `a frame of ${length} bytes; the limit is ${bytesMax}`)
    return this.readBytes(length, signal)
  }

  /** Exactly `count` bytes, which the caller has bounded. @throws {WireError} `closed` */
  async readBytes(count: number, signal: AbortSignal): Promise<Uint8Array> {
    while (this.#buffered.byteLength < count) {
      if (!(await this.#pull(signal))) throw new WireError('closed', 'the stream ended in the middle of a message')
    }
    if (count === 0) return new Uint8Array(0)
    const bytes = this.#buffered.slice(0, count)
    this.#buffered.consume(count)
    return bytes
  }

  /** Writes one frame, and waits while the peer is slower than we are. */
  async write(payload: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.writeBytes(encodeFrame(payload), signal)
  }

  /** Writes raw bytes, whose length the peer knows from a frame before. */
  async writeBytes(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    for (let at = 0; at < bytes.byteLength; at += WRITE_BYTES) {
      signal.throwIfAborted()
      if (this.#stream.status !== 'open') throw new WireError('closed', 'the peer closed the stream')
      if (!this.#stream.send(bytes.subarray(at, at + WRITE_BYTES))) await drained(this.#stream, signal)
    }
  }

  /** Ends our side; the peer reads what was sent, then a clean end. */
  async close(signal?: AbortSignal): Promise<void> {
    await this.#stream.close(signal ? { signal } : {})
  }

  /** Resets the stream: what waits on either side fails. */
  abort(reason: Error): void {
    this.#stream.abort(reason)
  }

  async #readPrefix(signal: AbortSignal): Promise<number | undefined> {
    for (;;) {
      const have = Math.min(this.#buffered.byteLength, PREFIX_BYTES_MAX)
      for (let at = 0; at < have; at++) {
        if (this.#buffered.get(at) >= 0x80) continue
        const [length, size] = varint.decode(this.#buffered.slice(0, at + 1))
        if (varint.encodingLength(length) !== size)
          throw new WireError('malformed', 'a frame length that is not minimal')
        this.#buffered.consume(size)
        return length
      }
      if (have === PREFIX_BYTES_MAX) throw new WireError('too-large', 'a frame length over four bytes')
      if (await this.#pull(signal)) continue
      if (have > 0) throw new WireError('closed', 'the stream ended in the middle of a frame length')
      return undefined
    }
  }

  async #pull(signal: AbortSignal): Promise<boolean> {
    if (this.#ended) return false
    const next = await abortable(this.#chunks.next(), signal)
    if (next.done) {
      this.#ended = true
      return false
    }
    this.#buffered.append(next.value)
    return true
  }
}

/** Resolves on the stream's next drain; rejects when it closes or the signal fires. */
function drained(stream: Duplex, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      stream.removeEventListener('drain', onDrain)
      stream.removeEventListener('close', onClose)
      signal.removeEventListener('abort', onAbort)
      act()
    }
    const onDrain = () => settle(resolve)
    const onClose = () => settle(() => reject(new WireError('closed', 'the peer closed the stream')))
    const onAbort = () => settle(() => reject(signal.reason as Error))
    stream.addEventListener('drain', onDrain, { once: true })
    stream.addEventListener('close', onClose, { once: true })
    signal.addEventListener('abort', onAbort, { once: true })
  })
}

function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) return Promise.reject(signal.reason as Error)
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
