/**
 * An open file of the blob directory as a BlobSource. Each chunk is a buffer of its own, because the stream that it is sent on may hold
 * it for a while.
 */
import type { FileHandle } from 'node:fs/promises'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { AgentError } from '../error.ts'
import type { BlobSource } from './content.ts'

type Owner = { onClose(): void; onCorrupt(): void }

export class BlobFile implements BlobSource {
  readonly sizeBytes: number
  readonly #file: FileHandle
  readonly #owner: Owner
  #closed = false

  constructor(file: FileHandle, sizeBytes: number, owner: Owner) {
    this.#file = file
    this.sizeBytes = sizeBytes
    this.#owner = owner
  }

  async *read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array> {
    if (offset + length > this.sizeBytes) throw new RangeError('a read beyond the end of the blob')
    for (let at = offset; at < offset + length; ) {
      signal.throwIfAborted()
      const chunk = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, offset + length - at))
      const { bytesRead } = await this.#file.read(chunk, 0, chunk.byteLength, at)
      if (bytesRead === 0) throw this.#tooShort()
      at += bytesRead
      yield bytesRead === chunk.byteLength ? chunk : chunk.subarray(0, bytesRead)
    }
  }

  async readInto(buffer: Uint8Array, offset: number): Promise<void> {
    for (let at = 0; at < buffer.byteLength; ) {
      const { bytesRead } = await this.#file.read(buffer, at, buffer.byteLength - at, offset + at)
      if (bytesRead === 0) throw this.#tooShort()
      at += bytesRead
    }
  }

  reportCorrupt(): void {
    this.#owner.onCorrupt()
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#file.close()
    this.#owner.onClose()
  }

  #tooShort(): AgentError {
    this.reportCorrupt()
    return new AgentError('corrupt', 'a blob is shorter on disk than it was')
  }
}
