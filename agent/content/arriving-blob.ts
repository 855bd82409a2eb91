/**
 * A blob that is read while it is being fetched: reads wait for their pieces.
 *
 * Pieces were held against a list that only the whole hash can prove, so the last piece is given out after that proof. If pieces that
 * were there turn out to be wrong before that, reads fail: whoever read them has to begin again.
 */
import { PIECE_BYTES, pieceBytes } from '../../protocols/pieces/tree.ts'
import { AgentError } from '../error.ts'
import type { BlobSource } from './content.ts'
import type { FetchJob } from './fetch-job.ts'
import type { PartialBlob } from './partial-blob.ts'

export class ArrivingBlob implements BlobSource {
  readonly sizeBytes: number
  readonly #job: FetchJob
  readonly #partial: PartialBlob
  readonly #generation: number
  readonly #signal: AbortSignal
  readonly #leave: () => void
  #closed = false

  /** `signal` ends every read; `leave` is called on closing. */
  constructor(job: FetchJob, partial: PartialBlob, signal: AbortSignal, leave: () => void) {
    partial.retain()
    this.#job = job
    this.#partial = partial
    this.#generation = partial.generation
    this.sizeBytes = partial.list.sizeBytes
    this.#signal = signal
    this.#leave = leave
    signal.addEventListener('abort', leave, { once: true })
  }

  async *read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array> {
    const end = offset + length
    if (end > this.sizeBytes) throw new RangeError('a read beyond the end of the blob')
    const both = AbortSignal.any([signal, this.#signal])
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / PIECE_BYTES)
      await this.#job.piece(index, both)
      const count = Math.min(end, index * PIECE_BYTES + pieceBytes(this.sizeBytes, index)) - at
      const bytes = await this.#partial.read(at, count)
      // Looked at after reading: what was read before a change must not be given out either.
      if (this.#partial.generation !== this.#generation)
        throw new AgentError('corrupt', `the beginning of ${this.#partial.digest} was wrong: ${this.#job.reasons()}`, {
          next: 'Try again: other peers are asked.',
        })
      at += count
      yield bytes
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#signal.removeEventListener('abort', this.#leave)
    this.#leave()
    await this.#partial.release()
  }
}
