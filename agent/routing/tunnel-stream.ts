/**
 * A stream of the mesh as a Duplex of Node: first a few frames, then the application's bytes, with back-pressure, half-closes and resets
 * carried both ways.
 *
 * What the library does that others get wrong: data that is paused is still there when it says that the peer closed, so only its `end` ends the
 * reading; and a stream whose connection went away ends, too, though the peer never said so, which is a reset here and no end.
 */
import { Duplex } from 'node:stream'
import type { Stream, StreamMessageEvent } from '@libp2p/interface'
import { varint } from 'multiformats'
import { onDrained } from '../../protocols/drained.ts'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame } from '../../protocols/frame.ts'

/** Read ahead of whoever takes it; then the peer is slowed down. */
const READ_AHEAD_BYTES = 256 * 1024
/** Handed to the stream and not taken over by it yet. */
const WRITE_AHEAD_BYTES = 256 * 1024
/** What yamux may let a peer send after the pause, at its largest window: the library resets the stream above its limit. */
const PAUSED_BYTES_MAX = 17 * 1024 * 1024
/** A varint of a length below 2^14 or so never needs more: no frame here is longer. */
const PREFIX_BYTES_MAX = 2
/**
 * With yamux's header of 12 this fills one Noise message of 65,519 exactly. A socket reads 65,536 at a time, and the 29 that are left would each time be
 * a message of their own, which costs nearly as much: so they wait for what comes next, or for the end of the turn.
 */
export const MESSAGE_BYTES = 65_507

const NOTHING = new Uint8Array(0)

/** What waits to become a message. */
type Rest = { buffer: Uint8Array; usedBytes: number }
type Head = { bytes: Uint8Array; wake: () => void; fail: (error: Error) => void }

export class TunnelStream extends Duplex {
  /** Of the application, since the frames. */
  sentBytes = 0
  receivedBytes = 0
  /** When something last went either way, by performance.now(). */
  activeMs = performance.now()
  readonly #stream: Stream
  /** While frames are read. */
  #head: Head | undefined = { bytes: new Uint8Array(0), wake: () => undefined, fail: () => undefined }
  #isPaused = false
  /** What `resume` lets through is being taken. */
  #isResuming = false
  #isFull = false
  /** The peer said its end, which may still be behind data that waits. */
  #isPeerDone = false
  /** This side's end is being said. */
  #isEnding = false
  #failure: Error | undefined
  #rest: Rest | undefined
  #flushing: NodeJS.Immediate | undefined

  constructor(stream: Stream) {
    super({ readableHighWaterMark: READ_AHEAD_BYTES, writableHighWaterMark: WRITE_AHEAD_BYTES })
    this.#stream = stream
    stream.maxReadBufferLength = PAUSED_BYTES_MAX
    // Without a listener an error of a stream that nobody uses yet would end the process.
    this.on('error', () => undefined)
    this.#isPeerDone = stream.status === 'open' && stream.remoteWriteStatus === 'closed'
    stream.addEventListener('message', ({ data }) => this.#arrived(data))
    stream.addEventListener('remoteCloseWrite', () => {
      this.#isPeerDone = true
    })
    stream.addEventListener('end', () => this.#ended())
    stream.addEventListener('close', ({ error }) => this.#closed(error))
    if (stream.status !== 'open') this.#closed(undefined)
    else if (stream.readableEnded) this.#ended()
  }

  /** Whether both sides can still speak. */
  get isOpen(): boolean {
    const { status, remoteWriteStatus } = this.#stream
    return !this.destroyed && this.#failure === undefined && status === 'open' && remoteWriteStatus !== 'closed'
  }

  /** Held for the application by this stream: received and not taken, or taken of it and not sent. */
  get heldBytes(): number {
    return this.readableLength + this.writableLength + this.#stream.readBufferLength + this.#stream.writeBufferLength
  }

  /** The next frame's payload, before the application's bytes. @throws {WireError} `closed`, `too-large`, `malformed` */
  async readFrame(bytesMax: number, signal: AbortSignal): Promise<Uint8Array> {
    const head = this.#head
    if (head === undefined) throw new Error('frames come before the bytes')
    for (;;) {
      signal.throwIfAborted()
      const frame = takeFrame(head, bytesMax)
      if (frame !== undefined) return frame
      if (this.#failure !== undefined) throw new WireError('closed', 'the stream was reset', { cause: this.#failure })
      if (this.#stream.readableEnded) throw new WireError('closed', 'the stream ended before its first bytes')
      await new Promise<void>((resolve, reject) => {
        const onAbort = () => reject(signal.reason as Error)
        signal.addEventListener('abort', onAbort, { once: true })
        const settle = (act: () => void) => () => {
          signal.removeEventListener('abort', onAbort)
          act()
        }
        head.wake = settle(resolve)
      })
    }
  }

  /** A frame, while frames are spoken: small, and not waited for. */
  writeFrame(payload: Uint8Array): void {
    if (this.#stream.status === 'open' && this.#stream.writeStatus === 'writable')
      this.#stream.send(encodeFrame(payload))
  }

  /** From now on what comes is the application's. */
  begin(): void {
    const rest = this.#head?.bytes ?? new Uint8Array(0)
    this.#head = undefined
    if (rest.byteLength > 0) this.#take(rest)
    if (this.#failure !== undefined) this.destroy(this.#failure)
    else if (this.#stream.readableEnded) this.#ended()
  }

  override _read(): void {
    if (!this.#isPaused || this.#isResuming) return
    // A pause from inside resume() would be undone by its second half, which opens the window.
    this.#isResuming = true
    this.#isFull = false
    try {
      this.#stream.resume()
      this.#isPaused = this.#isFull
      if (this.#isPaused) this.#stream.pause()
    } catch {
      // It is closing: what was to be read has been told of by its events.
    }
    this.#isResuming = false
  }

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error | null) => void): void {
    this.#send(this.#packed([chunk]), done)
  }

  override _writev(chunks: { chunk: Uint8Array }[], done: (error?: Error | null) => void): void {
    this.#send(this.#packed(chunks.map(({ chunk }) => chunk)), done)
  }

  /** Ends this side; the peer reads what was sent, then an end. */
  override _final(done: (error?: Error | null) => void): void {
    this.#isEnding = true
    this.#flush()
    void this.#end(done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    clearImmediate(this.#flushing)
    this.#rest = undefined
    this.#stream.abort(error ?? new Error('the tunnel is over'))
    done(error)
  }

  async #end(done: (error?: Error | null) => void): Promise<void> {
    let failure: Error | undefined
    try {
      await this.#stream.close()
    } catch (cause) {
      // The library also rejects with the event of the closing.
      failure = this.#failure ?? resetError(cause)
    }
    done(failure)
  }

  /** Messages to send now, full ones as long as there is enough. */
  #packed(chunks: readonly Uint8Array[]): Uint8Array[] {
    clearImmediate(this.#flushing)
    const messages: Uint8Array[] = []
    let rest = this.#rest
    this.#rest = undefined
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.byteLength; ) {
        const isWhole = rest === undefined && chunk.byteLength - at >= MESSAGE_BYTES
        const length = Math.min(chunk.byteLength - at, MESSAGE_BYTES - (rest?.usedBytes ?? 0))
        const part = chunk.subarray(at, at + length)
        at += length
        if (isWhole) messages.push(part)
        else rest = joined(rest, part)
        if (rest?.usedBytes !== MESSAGE_BYTES) continue
        messages.push(rest.buffer)
        rest = undefined
      }
    }
    if (rest !== undefined && messages.length > 0) {
      // A copy: whoever wrote it may use it again.
      this.#rest = joined(rest, NOTHING)
      this.#flushing = setImmediate(() => this.#flush())
    } else if (rest !== undefined) messages.push(rest.buffer.subarray(0, rest.usedBytes))
    return messages
  }

  /** Sends what waited for more. */
  #flush(): void {
    clearImmediate(this.#flushing)
    const rest = this.#rest
    this.#rest = undefined
    if (rest !== undefined) this.#send([rest.buffer.subarray(0, rest.usedBytes)], () => undefined)
  }

  #send(messages: readonly Uint8Array[], done: (error?: Error | null) => void): void {
    this.activeMs = performance.now()
    let isRoom = true
    try {
      for (const message of messages) {
        this.sentBytes += message.byteLength
        isRoom = this.#stream.send(message)
      }
    } catch (error) {
      done(this.#failure ?? resetError(error))
      return
    }
    if (isRoom) {
      done()
      return
    }
    const settle = (error?: Error) => {
      stopWaiting()
      this.#stream.removeEventListener('close', onClose)
      done(error)
    }
    const onClose = () => settle(this.#failure ?? resetError())
    const stopWaiting = onDrained(this.#stream, () => settle())
    this.#stream.addEventListener('close', onClose, { once: true })
  }

  #arrived(data: StreamMessageEvent['data']): void {
    const head = this.#head
    if (head === undefined) {
      if (data instanceof Uint8Array) this.#take(data)
      else for (const chunk of data) this.#take(chunk)
      return
    }
    head.bytes = Buffer.concat([head.bytes, data.subarray()])
    if (head.bytes.byteLength > READ_AHEAD_BYTES) this.#pause()
    head.wake()
  }

  #take(chunk: Uint8Array): void {
    this.receivedBytes += chunk.byteLength
    this.activeMs = performance.now()
    // A Buffer, and no copy: what Readable would make of a Uint8Array anyway.
    if (!this.push(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))) this.#pause()
  }

  #pause(): void {
    if (this.#isResuming) this.#isFull = true
    if (this.#isPaused) return
    this.#isPaused = true
    try {
      this.#stream.pause()
    } catch {
      // It is closing: there is nothing to slow down.
    }
  }

  /** Also told of when the stream was reset, and when its connection went away in order. */
  #ended(): void {
    if (this.#head !== undefined) {
      this.#head.wake()
      return
    }
    if (this.#stream.status === 'aborted' || this.#stream.status === 'reset') return
    if (this.#isPeerDone) this.push(null)
    else this.#fail(resetError())
  }

  #closed(error: Error | undefined): void {
    const { status } = this.#stream
    const isReset = error !== undefined || status === 'aborted' || status === 'reset'
    if (isReset || !this.#isPeerDone || !this.#isEnding) this.#fail(resetError(error))
    this.#head?.wake()
  }

  #fail(error: Error): void {
    this.#failure ??= error
    if (this.#head === undefined) this.destroy(this.#failure)
  }
}

/** As a socket has it. */
function resetError(cause?: unknown): Error {
  return Object.assign(new Error('the connection was reset', { cause }), { code: 'ECONNRESET' })
}

/** A part behind what waits; by itself it is not copied. */
function joined(rest: Rest | undefined, part: Uint8Array): Rest {
  if (rest === undefined) return { buffer: part, usedBytes: part.byteLength }
  const isOwn = rest.buffer.byteLength === MESSAGE_BYTES
  const buffer = isOwn ? rest.buffer : Buffer.allocUnsafeSlow(MESSAGE_BYTES)
  if (!isOwn) buffer.set(rest.buffer.subarray(0, rest.usedBytes))
  buffer.set(part, rest.usedBytes)
  return { buffer, usedBytes: rest.usedBytes + part.byteLength }
}

/** The first frame; undefined while it is not whole. */
function takeFrame(head: Head, bytesMax: number): Uint8Array | undefined {
  const prefix = head.bytes.subarray(0, PREFIX_BYTES_MAX)
  const last = prefix.findIndex((byte) => byte < 0x80)
  if (last < 0 && prefix.byteLength < PREFIX_BYTES_MAX) return undefined
  if (last < 0) throw new WireError('too-large', `a frame over ${bytesMax} bytes`)
  if (last > 0 && prefix[last] === 0) throw new WireError('malformed', 'a frame length that is not minimal')
  const [length] = varint.decode(prefix.subarray(0, last + 1))
  if (length > bytesMax) throw new WireError('too-large', `a frame of ${length} bytes; the limit is ${bytesMax}`)
  const end = last + 1 + length
  if (head.bytes.byteLength < end) return undefined
  const frame = head.bytes.slice(last + 1, end)
  head.bytes = head.bytes.subarray(end)
  return frame
}
