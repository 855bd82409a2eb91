/**
 * How a blob is cut: pieces of 256 KiB, each with its SHA-256, under a Merkle tree as BitTorrent v2 builds it (BEP 52: leaves padded with
 * zero hashes to a power of two). Pure; see spec.md.
 *
 * A blob is named by the SHA-256 of all its bytes, so a piece list proves nothing by itself: it says which bytes to expect from whoever
 * gave it, and stands or falls with the whole hash.
 */
import { createHash, type Hash, hash } from 'node:crypto'

export const PIECE_BYTES = 256 * 1024
export const HASH_BYTES = 32
/** 256 GiB: the list of a blob's piece hashes is then 32 MiB, which a node can still hold in memory. */
export const BLOB_BYTES_MAX = 2 ** 38

export function pieceCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / PIECE_BYTES)
}

/** Length of one piece: all but the last are full. */
export function pieceBytes(sizeBytes: number, index: number): number {
  return Math.max(0, Math.min(PIECE_BYTES, sizeBytes - index * PIECE_BYTES))
}

/** Length of `count` pieces from `from` on. */
export function rangeBytes(sizeBytes: number, from: number, count: number): number {
  return Math.max(0, Math.min(sizeBytes, (from + count) * PIECE_BYTES) - from * PIECE_BYTES)
}

export function pieceHash(hashes: Uint8Array, index: number): Uint8Array {
  return hashes.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES)
}

/** Root over concatenated piece hashes. Of one hash it is that hash; of none, zeros. */
export function merkleRoot(hashes: Uint8Array): Uint8Array {
  let level = hashes
  let padding: Uint8Array = new Uint8Array(HASH_BYTES)
  if (level.byteLength === 0) return padding
  while (level.byteLength > HASH_BYTES) {
    const parents = Math.ceil(level.byteLength / HASH_BYTES / 2)
    const above = new Uint8Array(parents * HASH_BYTES)
    for (let at = 0; at < parents; at++) {
      const pair = level.subarray(at * 2 * HASH_BYTES, (at + 1) * 2 * HASH_BYTES)
      above.set(sha256(pair.byteLength === HASH_BYTES ? Buffer.concat([pair, padding]) : pair), at * HASH_BYTES)
    }
    padding = sha256(Buffer.concat([padding, padding]))
    level = above
  }
  return level.slice()
}

/** One piece's hash is the one that the list gives. */
export function isPiece(bytes: Uint8Array, hashes: Uint8Array, index: number): boolean {
  return Buffer.compare(sha256(bytes), pieceHash(hashes, index)) === 0
}

/** Hashes a blob as it goes by: the whole, and each piece. */
export class PieceHasher {
  readonly #whole = createHash('sha256')
  readonly #hashes: Uint8Array[] = []
  #piece: Hash | undefined
  #sizeBytes = 0

  get sizeBytes(): number {
    return this.#sizeBytes
  }

  update(chunk: Uint8Array): void {
    this.#whole.update(chunk)
    for (let at = 0; at < chunk.byteLength; ) {
      const room = PIECE_BYTES - (this.#sizeBytes % PIECE_BYTES)
      const part = chunk.subarray(at, at + room)
      this.#sizeBytes += part.byteLength
      at += part.byteLength
      if (part.byteLength === PIECE_BYTES) {
        this.#hashes.push(sha256(part))
        continue
      }
      this.#piece ??= createHash('sha256')
      this.#piece.update(part)
      if (part.byteLength === room) this.#endPiece()
    }
  }

  finish(): { digest: string; sizeBytes: number; hashes: Uint8Array } {
    this.#endPiece()
    return { digest: this.#whole.digest('hex'), sizeBytes: this.#sizeBytes, hashes: Buffer.concat(this.#hashes) }
  }

  #endPiece(): void {
    if (this.#piece) this.#hashes.push(this.#piece.digest())
    this.#piece = undefined
  }
}

function sha256(bytes: Uint8Array): Uint8Array {
  return hash('sha256', bytes, 'buffer')
}
