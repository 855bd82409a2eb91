/**
 * Pieces on their way to the disk, and the buffers for those to come: what is read from a source waits when the disk is slower.
 */
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import type { PartialBlob } from './partial-blob.ts'

/** Pieces of one source that wait for the disk; then the network waits, too. */
const BUFFERS = 8

export class PieceWrites {
  readonly #partial: PartialBlob
  readonly #onWritten: (index: number, bytes: number) => void
  readonly #free: Uint8Array[] = []
  readonly #running = new Set<Promise<void>>()
  #failure: { error: unknown } | undefined

  constructor(partial: PartialBlob, onWritten: (index: number, bytes: number) => void) {
    this.#partial = partial
    this.#onWritten = onWritten
  }

  /** A buffer of the length, when there is one. */
  async buffer(length: number): Promise<Uint8Array> {
    while (this.#running.size >= BUFFERS) await Promise.race(this.#running)
    this.throwIfFailed()
    const buffer = length === PIECE_BYTES ? this.#free.pop() : undefined
    return buffer ?? Buffer.allocUnsafeSlow(length)
  }

  begin(index: number, piece: Uint8Array): void {
    const writing = this.#write(index, piece).finally(() => this.#running.delete(writing))
    this.#running.add(writing)
  }

  async settle(): Promise<void> {
    await Promise.all(this.#running)
  }

  /** Writing elsewhere failed, which ends this, too. */
  fail(error: unknown): void {
    this.#failure ??= { error }
  }

  throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error
  }

  async #write(index: number, piece: Uint8Array): Promise<void> {
    try {
      const free = await this.#partial.write(index, piece)
      this.#onWritten(index, piece.byteLength)
      if (free?.byteLength === PIECE_BYTES) this.#free.push(free)
    } catch (error) {
      this.#failure ??= { error }
    }
  }
}
