/**
 * Frames on a libp2p stream: an unsigned varint length, then that many bytes; and between frames, where a protocol says so, raw
 * bytes of a length known from the frame before. See protocols/spec.md.
 *
 * A slow reader slows the sender: what is read ahead is bounded, and then the stream is paused (its own iterator would never do that).
 * Writes wait until the stream has drained. Every wait takes an AbortSignal and ends when it fires.
 */
import type { Stream } from '@libp2p/interface'
import { varint } from 'multiformats'
import { onDrained } from './drained.ts'
import { WireError } from './error.ts'

/** Default bound of one frame. Large content travels raw, in pieces, never in a frame. */
export const FRAME_BYTES_MAX = 1024 * 1024
/** A varint of a length below 2^28 never needs more. */
const PREFIX_BYTES_MAX = 4
/**
 * Raw bytes are handed to the stream in slices of this size, so that back-pressure has somewhere to act. With yamux's header of 12 a
 * slice fills one Noise message of 65,519 exactly; 64 KiB would make a second, tiny one of each.
 */
const WRITE_BYTES = 65_507
/** Read ahead of whoever asks; then the stream is paused. Enough for the reader to never wait while it works on a piece. */
const READ_AHEAD_BYTES = 512 * 1024
/** What yamux may let a peer send after the pause, when it has grown the window to its largest: libp2p resets the stream above this. */
const PAUSED_BYTES_MAX = 17 * 1024 * 1024

/** Chunks below this that wait to be read are gathered, or a peer that sends single bytes would make us hold half a million objects. */
const SMALL_BYTES = 4 * 1024
const GATHERED_BYTES = 16 * 1024

type Duplex = Pick<
  Stream,
  | 'send'
  | 'pause'
  | 'resume'
  | 'addEventListener'
  | 'removeEventListener'
  | 'close'
  | 'abort'
  | 'status'
  | 'readableEnded'
  | 'maxReadBufferLength'
  | 'writeBufferLength'
>

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
  /** What arrived and was not read: chunks, and how much of the first one was read. */
  readonly #chunks: Uint8Array[] = []
  #head = 0
  /** What small chunks are copied into; the last of the chunks is a view of it. */
  #gathering: { buffer: Uint8Array; usedBytes: number } | undefined
  #bufferedBytes = 0
  #paused = false
  #failure: Error | undefined
  #wake: (() => void) | undefined

  /** From now on everything that the stream receives is read through this object. */
  constructor(stream: Duplex) {
    this.#stream = stream
    stream.maxReadBufferLength = PAUSED_BYTES_MAX
    stream.addEventListener('message', ({ data }) => this.#arrived(data))
    stream.addEventListener('end', () => this.#wake?.())
    stream.addEventListener('close', ({ error }) => {
      this.#failure = error
      this.#wake?.()
    })
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
    const bytes = new Uint8Array(count)
    await this.readInto(bytes, signal)
    return bytes
  }

  /** Fills `target`, in one copy. @throws {WireError} `closed` */
  async readInto(target: Uint8Array, signal: AbortSignal): Promise<void> {
    for (let at = 0; at < target.byteLength; ) {
      if (this.#bufferedBytes === 0 && !(await this.#pull(signal)))
        throw new WireError('closed', 'the stream ended in the middle of a message')
      at += this.#take(target, at)
    }
  }

  /** Writes one frame, and waits while the peer is slower than we are. */
  async write(payload: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.writeBytes(encodeFrame(payload), signal)
  }

  /** Writes raw bytes, whose length the peer knows from a frame before. The bytes must not be changed afterwards. */
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
    let length = 0
    const byte = new Uint8Array(1)
    for (let size = 0; size < PREFIX_BYTES_MAX; size++) {
      if (this.#bufferedBytes === 0 && !(await this.#pull(signal))) {
        if (size > 0) throw new WireError('closed', 'the stream ended in the middle of a frame length')
        return undefined
      }
      this.#take(byte, 0)
      const [value = 0] = byte
      length |= (value & 0x7f) << (7 * size)
      if (value >= 0x80) continue
      if (value === 0 && size > 0) throw new WireError('malformed', 'a frame length that is not minimal')
      return length
    }
    throw new WireError('too-large', 'a frame length over four bytes')
  }

  #arrived(data: Uint8Array | Iterable<Uint8Array>): void {
    for (const chunk of data instanceof Uint8Array ? [data] : data) {
      this.#append(chunk)
      this.#bufferedBytes += chunk.byteLength
    }
    if (!this.#paused && this.#bufferedBytes >= READ_AHEAD_BYTES) {
      this.#paused = true
      this.#stream.pause()
    }
    this.#wake?.()
  }

  #append(chunk: Uint8Array): void {
    const isGathered = chunk.byteLength < SMALL_BYTES && this.#chunks.length > 0
    if (!isGathered) {
      this.#gathering = undefined
      this.#chunks.push(chunk)
      return
    }
    if (!this.#gathering || this.#gathering.usedBytes + chunk.byteLength > GATHERED_BYTES) {
      this.#gathering = { buffer: new Uint8Array(GATHERED_BYTES), usedBytes: 0 }
      this.#chunks.push(chunk)
    }
    const { buffer, usedBytes } = this.#gathering
    buffer.set(chunk, usedBytes)
    this.#gathering.usedBytes += chunk.byteLength
    this.#chunks[this.#chunks.length - 1] = buffer.subarray(0, this.#gathering.usedBytes)
  }

  /** Copies buffered bytes to `target` from `at` on, as many as there are and fit; says how many. */
  #take(target: Uint8Array, at: number): number {
    let taken = 0
    while (at + taken < target.byteLength) {
      const [chunk] = this.#chunks
      if (!chunk) break
      const count = Math.min(chunk.byteLength - this.#head, target.byteLength - at - taken)
      target.set(chunk.subarray(this.#head, this.#head + count), at + taken)
      taken += count
      this.#head += count
      if (this.#head < chunk.byteLength) break
      this.#chunks.shift()
      this.#head = 0
      if (this.#chunks.length === 0) this.#gathering = undefined
    }
    this.#bufferedBytes -= taken
    if (this.#paused && this.#bufferedBytes < READ_AHEAD_BYTES / 2) this.#resume()
    return taken
  }

  /** Waits until something is buffered; false when nothing will be. */
  async #pull(signal: AbortSignal): Promise<boolean> {
    for (;;) {
      if (this.#paused) this.#resume()
      if (this.#bufferedBytes > 0) return true
      // The status tells of a reset that came before anybody listened.
      if (this.#failure || this.#stream.status === 'reset' || this.#stream.status === 'aborted')
        throw new WireError('closed', 'the stream was reset', { cause: this.#failure })
      if (this.#stream.readableEnded) return false
      await this.#woken(signal)
    }
  }

  /** Takes over what the stream held while it was paused, and lets the peer send again unless that was too much already. */
  #resume(): void {
    try {
      // Still marked as paused: a pause from inside resume() would be undone by its second half, which opens the window.
      this.#stream.resume()
      this.#paused = this.#bufferedBytes >= READ_AHEAD_BYTES
      if (this.#paused) this.#stream.pause()
    } catch {
      // It closed meanwhile: there is nothing to let through, and #pull sees the end.
      this.#paused = false
    }
  }

  #woken(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason as Error)
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

/** Resolves when what was sent has left the stream; rejects when it closes or the signal fires. */
function drained(stream: Duplex, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.reject(signal.reason as Error)
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      stopWaiting()
      stream.removeEventListener('close', onClose)
      signal.removeEventListener('abort', onAbort)
      act()
    }
    const onClose = () => settle(() => reject(new WireError('closed', 'the peer closed the stream')))
    const onAbort = () => settle(() => reject(signal.reason as Error))
    const stopWaiting = onDrained(stream, () => settle(resolve))
    stream.addEventListener('close', onClose, { once: true })
    signal.addEventListener('abort', onAbort, { once: true })
  })
}
