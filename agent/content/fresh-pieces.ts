/**
 * Pieces that arrived a moment ago, in memory, of all blobs that are being fetched: fellows ask for a piece as soon as it is here, and the
 * whole hash wants those that came out of turn. Reading them back costs more than sending them, and what was held against its list on
 * arrival and did not leave memory since need not be held against it again. Its memory is used again and again: what the garbage collector has
to free by the megabyte makes it work more than the pieces do.
 */
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'

/** A second or so of what a fast line brings. */
const BYTES_MAX = 24 * 1024 * 1024

export class FreshPieces {
  readonly #bytesMax: number
  /** By blob and piece, the oldest first. */
  readonly #pieces = new Map<string, Uint8Array>()
  #bytes = 0

  constructor(bytesMax = BYTES_MAX) {
    this.#bytesMax = bytesMax
  }

  /** `blob` names the blob as it is being fetched. @returns memory of a piece that had to go, to be used again. */
  put(blob: string, index: number, bytes: Uint8Array): Uint8Array | undefined {
    const key = keyOf(blob, index)
    this.#remove(key)
    this.#pieces.set(key, bytes)
    this.#bytes += bytes.byteLength
    let free: Uint8Array | undefined
    for (const oldest of this.#pieces.keys()) {
      if (this.#bytes <= this.#bytesMax) break
      const gone = this.#remove(oldest)
      if (gone?.byteLength === PIECE_BYTES) free = gone
    }
    return free
  }

  /** To be done with before anything else happens: the memory is used again. */
  peek(blob: string, index: number): Uint8Array | undefined {
    return this.#pieces.get(keyOf(blob, index))
  }

  /** Another list is in use for the blob, or it is not being fetched any more. */
  drop(blob: string): void {
    const prefix = keyOf(blob, '')
    for (const key of this.#pieces.keys()) if (key.startsWith(prefix)) this.#remove(key)
  }

  #remove(key: string): Uint8Array | undefined {
    const fresh = this.#pieces.get(key)
    if (!fresh) return undefined
    this.#pieces.delete(key)
    this.#bytes -= fresh.byteLength
    return fresh
  }
}

function keyOf(blob: string, index: number | ''): string {
  return `${blob} ${index}`
}
