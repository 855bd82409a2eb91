/**
 * An open file of the blob directory as a BlobSource. Each chunk is a buffer of its own, because the stream that it is sent on may hold
 * it for a while. Only what may wait for a disk leaves the thread (opening, reading): looking at an open file and closing it takes 1 us, and a turn of
 * libuv's pool 40.
 */
import { closeSync, fstatSync, open, read } from 'node:fs'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { AgentError } from '../error.ts'
import type { BlobSource } from './content.ts'

type Owner = { onClose(): void; onCorrupt(): void }

export class BlobFile implements BlobSource {
  readonly sizeBytes: number
  readonly #fd: number
  readonly #owner: Owner
  #reading = 0
  #closed = false
  /** What is read when it is closed still goes to its buffer. */
  readonly #quiet = Promise.withResolvers<void>()

  /** @throws ENOENT and the like */
  static async open(path: string, owner: Owner): Promise<BlobFile> {
    const fd = await new Promise<number>((resolve, reject) => {
      open(path, 'r', (error, opened) => (error ? reject(error) : resolve(opened)))
    })
    try {
      return new BlobFile(fd, fstatSync(fd).size, owner)
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  private constructor(fd: number, sizeBytes: number, owner: Owner) {
    this.#fd = fd
    this.sizeBytes = sizeBytes
    this.#owner = owner
  }

  async *read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array> {
    if (offset + length > this.sizeBytes) throw new RangeError('a read beyond the end of the blob')
    for (let at = offset; at < offset + length; ) {
      signal.throwIfAborted()
      const chunk = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, offset + length - at))
      const bytesRead = await this.#readAt(chunk, 0, at)
      at += bytesRead
      yield bytesRead === chunk.byteLength ? chunk : chunk.subarray(0, bytesRead)
    }
  }

  async readInto(buffer: Uint8Array, offset: number): Promise<void> {
    for (let at = 0; at < buffer.byteLength; ) {
      at += await this.#readAt(buffer, at, offset + at)
    }
  }

  reportCorrupt(): void {
    this.#owner.onCorrupt()
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    if (this.#reading === 0) this.#quiet.resolve()
    await this.#quiet.promise
    try {
      closeSync(this.#fd)
    } finally {
      this.#owner.onClose()
    }
  }

  /** Fills the rest of `into` from `from` on, with as much as comes at once. */
  async #readAt(into: Uint8Array, from: number, position: number): Promise<number> {
    if (this.#closed) throw new Error('the blob was closed')
    this.#reading++
    try {
      const count = await new Promise<number>((resolve, reject) => {
        read(this.#fd, into, from, into.byteLength - from, position, (error, bytes) =>
          error ? reject(error) : resolve(bytes),
        )
      })
      if (count === 0) throw this.#tooShort()
      return count
    } finally {
      this.#reading--
      if (this.#closed && this.#reading === 0) this.#quiet.resolve()
    }
  }

  #tooShort(): AgentError {
    this.reportCorrupt()
    return new AgentError('corrupt', 'a blob is shorter on disk than it was')
  }
}
