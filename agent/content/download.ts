/**
 * Brings the missing pieces of a blob from one peer: several requests under way, so that the line is never idle for a round trip; each
 * piece held against the list on arrival; written while the next one arrives.
 */
import { WireError } from '../../protocols/error.ts'
import type { PieceAsker } from '../../protocols/pieces/exchange.ts'
import { isPiece, PIECE_BYTES, pieceBytes, rangeBytes } from '../../protocols/pieces/tree.ts'
import type { Deadline } from './deadline.ts'
import type { PartialBlob } from './partial-blob.ts'

/** In one request. */
const GET_PIECES = 4
/** Asked for and not yet here: 8 MiB, which fills a line of 600 Mbit/s over 100 ms. */
const WINDOW_PIECES = 32
/** Pieces that wait for the disk; then the network waits too. */
const BUFFERS = 8

export type DownloadOptions = {
  /** Whether the size is what this peer said, or somebody else did: who is wrong when its answer has another length depends on it. */
  isStated: boolean
  deadline: Deadline
  /** The peer has begun to answer. */
  onAnswer: () => void
  onPiece: (bytes: number) => void
}

/**
 * Resolves when the peer has sent every piece that was missing.
 *
 * @throws {WireError} what the peer did wrong: `mismatch` and `malformed` are lies, the others may happen to anybody.
 * @throws {AgentError} what went wrong here.
 */
export async function download(
  asker: PieceAsker,
  digest: Uint8Array,
  partial: PartialBlob,
  { isStated, deadline, onAnswer, onPiece }: DownloadOptions,
): Promise<void> {
  const { sizeBytes, hashes } = partial.list
  const writes = new Writes(partial, onPiece)
  const asked: { from: number; count: number }[] = []
  let askedPieces = 0
  let next = 0
  try {
    for (;;) {
      while (askedPieces + GET_PIECES <= WINDOW_PIECES) {
        const run = partial.nextMissing(next, GET_PIECES)
        if (!run) break
        await asker.askGet(digest, run.from, run.count, deadline.signal)
        asked.push(run)
        askedPieces += run.count
        next = run.from + run.count
      }
      const run = asked.shift()
      if (!run) break
      askedPieces -= run.count
      const expectedBytes = rangeBytes(sizeBytes, run.from, run.count)
      const announcedBytes = await asker.readGet(deadline.signal)
      onAnswer()
      if (announcedBytes !== expectedBytes)
        throw new WireError(
          isStated ? 'malformed' : 'refused',
          `it has ${announcedBytes} bytes in place of ${expectedBytes}`,
        )
      for (let index = run.from; index < run.from + run.count; index++) {
        const piece = await deadline.hold(writes.buffer(pieceBytes(sizeBytes, index)))
        await asker.readInto(piece, deadline.signal)
        deadline.wind()
        if (!isPiece(piece, hashes, index))
          throw new WireError('mismatch', `piece ${index} has another hash than it said`)
        writes.begin(index, piece)
      }
    }
  } finally {
    await writes.settle()
  }
  writes.throwIfFailed()
}

/** Pieces on their way to the disk, and the buffers for those to come. */
class Writes {
  readonly #partial: PartialBlob
  readonly #onPiece: (bytes: number) => void
  readonly #free: Buffer[] = []
  readonly #running = new Set<Promise<void>>()
  #failure: { error: unknown } | undefined

  constructor(partial: PartialBlob, onPiece: (bytes: number) => void) {
    this.#partial = partial
    this.#onPiece = onPiece
  }

  /** A buffer of the length, when there is one. */
  async buffer(length: number): Promise<Buffer> {
    while (this.#running.size >= BUFFERS) await Promise.race(this.#running)
    this.throwIfFailed()
    const buffer = length === PIECE_BYTES ? this.#free.pop() : undefined
    return buffer ?? Buffer.allocUnsafeSlow(length)
  }

  begin(index: number, piece: Buffer): void {
    const writing = this.#write(index, piece).finally(() => this.#running.delete(writing))
    this.#running.add(writing)
  }

  async settle(): Promise<void> {
    await Promise.all(this.#running)
  }

  throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error
  }

  async #write(index: number, piece: Buffer): Promise<void> {
    try {
      await this.#partial.write(index, piece)
      this.#onPiece(piece.byteLength)
      if (piece.byteLength === PIECE_BYTES) this.#free.push(piece)
    } catch (error) {
      this.#failure ??= { error }
    }
  }
}
