/**
 * One blob that arrives in order, as far as it is here: what writes it says how far it is, and readers wait for what they want. The last byte is
 * read only after the whole was verified. It ends a while after nobody reads it any more.
 */
import { closeSync, openSync, read } from 'node:fs'
import { promisify } from 'node:util'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobSource } from '../content/content.ts'
import { AgentError } from '../error.ts'

/** A client that was cut off comes back, and goes on reading what arrived meanwhile. */
const UNREAD_MS_MAX = 30_000
const CHUNK_BYTES = 256 * 1024
/** A reader waits for so much, or the end: each part costs a turn of the event loop, and what arrives from a network comes in crumbs. */
const PART_BYTES_MIN = 128 * 1024
/** What came last is in memory, too: readers that keep up, as all do but those who come late, need no file for it. */
const RECENT_BYTES_MAX = 2 * 1024 * 1024
const readAt = promisify(read)

export type ArrivalInit = { digest: Digest; sizeBytes: number; stopping: AbortSignal; unreadMs?: number }

export class Arrival {
  readonly digest: Digest
  readonly sizeBytes: number
  /** Fires when it is to end: nobody wants it, or the agent stops. */
  readonly signal: AbortSignal
  /** Resolves when it is over, however. */
  readonly ended: Promise<void>
  /** Members who are given it from here. */
  readonly followers = new Set<string>()
  /** Whether it comes from a member, and not from outside. */
  isFollowing = false
  readonly #stop = new AbortController()
  readonly #end: () => void
  readonly #begun = Promise.withResolvers<string | undefined>()
  readonly #unreadMs: number
  /** Readers who wait, and how far it has to be for them. */
  readonly #waiting = new Map<() => void, number>()
  /** Chunks as they came, one after the other, the last of which ends at #writtenBytes. */
  readonly #recent: Uint8Array[] = []
  #recentBytes = 0
  #file: number | undefined
  #writtenBytes = 0
  #isWhole = false
  #failure: Error | undefined
  #readers = 0
  #timer: NodeJS.Timeout | undefined

  constructor({ digest, sizeBytes, stopping, unreadMs = UNREAD_MS_MAX }: ArrivalInit) {
    this.digest = digest
    this.sizeBytes = sizeBytes
    this.#unreadMs = unreadMs
    this.signal = AbortSignal.any([stopping, this.#stop.signal])
    const { promise, resolve } = Promise.withResolvers<void>()
    this.ended = promise
    this.#end = resolve
    this.#begun.promise.catch(() => undefined)
  }

  /** Does the work that brings it; that says who has it when it is not to come here. Never rejects. */
  async run(work: () => Promise<string | undefined>): Promise<void> {
    try {
      const holder = await work()
      if (holder === undefined) this.#isWhole = true
      else this.#failure = new AgentError('not-found', 'it comes in another way')
      this.#begun.resolve(holder)
    } catch (error) {
      this.#failure = error as Error
      this.#begun.reject(error)
    }
    clearTimeout(this.#timer)
    this.#tell()
    this.#close()
    this.#end()
  }

  /** The file that it is written to, whose bytes are read from now on. */
  opens(path: string): void {
    this.#file = openSync(path, 'r')
    this.#begun.resolve(undefined)
  }

  /** A chunk, which nobody changes any more, is in the file; with it so many bytes. */
  wrote(chunk: Uint8Array, bytes: number): void {
    this.#writtenBytes = bytes
    this.#recent.push(chunk)
    this.#recentBytes += chunk.byteLength
    while (this.#recentBytes > RECENT_BYTES_MAX) this.#recentBytes -= this.#recent.shift()?.byteLength ?? 0
    for (const [wake, wanted] of this.#waiting) if (bytes >= wanted) wake()
  }

  /** Resolves when it can be read, or with who has all of it. Rejects when it cannot be had. */
  async begun(signal: AbortSignal): Promise<string | undefined> {
    const { promise: gone, reject } = Promise.withResolvers<never>()
    const leave = () => reject(signal.reason as Error)
    signal.addEventListener('abort', leave, { once: true })
    try {
      signal.throwIfAborted()
      return await Promise.race([this.#begun.promise, gone])
    } finally {
      signal.removeEventListener('abort', leave)
    }
  }

  /** As long as one of these is open it goes on. */
  reader(): BlobSource & { close(): Promise<void> } {
    this.#readers++
    clearTimeout(this.#timer)
    let isOpen = true
    const close = async () => {
      if (!isOpen) return
      isOpen = false
      if (--this.#readers > 0) return
      this.#close()
      const stop = () => this.#stop.abort(new AgentError('cancelled', 'nobody waits for it any more'))
      this.#timer = setTimeout(stop, this.#unreadMs).unref()
    }
    return { sizeBytes: this.sizeBytes, read: (offset, length, signal) => this.#read(offset, length, signal), close }
  }

  async *#read(offset: number, length: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const end = offset + length
    if (end > this.sizeBytes) throw new RangeError('a read beyond the end of the blob')
    const tell = () => this.#tell()
    signal.addEventListener('abort', tell, { once: true })
    try {
      for (let at = offset; at < end; ) {
        const until = Math.min(await this.#readable(at, end, signal), end)
        const count = Math.min(CHUNK_BYTES, until - at)
        const chunk = this.#remembered(at, count) ?? (await this.#readFile(at, count))
        at += chunk.byteLength
        yield chunk
      }
    } finally {
      signal.removeEventListener('abort', tell)
    }
  }

  /** Undefined when it came too long ago. */
  #remembered(at: number, count: number): Uint8Array | undefined {
    let start = this.#writtenBytes - this.#recentBytes
    if (at < start) return undefined
    const parts: Uint8Array[] = []
    for (const chunk of this.#recent) {
      const part = chunk.subarray(Math.max(0, at - start), Math.max(0, at + count - start))
      if (part.byteLength > 0) parts.push(part)
      start += chunk.byteLength
      if (start >= at + count) break
    }
    return parts.length === 1 ? parts[0] : Buffer.concat(parts)
  }

  async #readFile(at: number, count: number): Promise<Uint8Array> {
    if (this.#file === undefined) throw this.#failure ?? new AgentError('failed', 'it is not there any more')
    const chunk = Buffer.allocUnsafeSlow(count)
    const { bytesRead } = await readAt(this.#file, chunk, 0, count, at)
    if (bytesRead === 0) throw new AgentError('corrupt', 'a blob that arrives is shorter on disk than it was')
    return bytesRead === count ? chunk : chunk.subarray(0, bytesRead)
  }

  /** How far it can be read, once that is well beyond `at`, or as far as anybody may read now. */
  async #readable(at: number, end: number, signal: AbortSignal): Promise<number> {
    const wanted = Math.min(at + PART_BYTES_MIN, end, this.sizeBytes - 1)
    for (;;) {
      signal.throwIfAborted()
      if (this.#failure) throw this.#failure
      if (this.#isWhole) return this.sizeBytes
      const bytes = Math.min(this.#writtenBytes, this.sizeBytes - 1)
      if (bytes > at && bytes >= wanted) return bytes
      const { promise, resolve } = Promise.withResolvers<void>()
      // The last byte is there for nobody before the whole was verified.
      this.#waiting.set(resolve, at >= wanted ? Number.POSITIVE_INFINITY : wanted)
      await promise
      this.#waiting.delete(resolve)
    }
  }

  #tell(): void {
    for (const wake of this.#waiting.keys()) wake()
  }

  /** When it has ended and nobody reads: the file has been moved, or removed. */
  #close(): void {
    const isOver = this.#isWhole || this.#failure !== undefined
    if (!isOver || this.#readers > 0 || this.#file === undefined) return
    closeSync(this.#file)
    this.#file = undefined
  }
}
