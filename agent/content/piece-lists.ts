/**
 * The piece hashes of blobs that this node serves: made while a blob is written or fetched, or by reading it once when a peer first
 * asks, and kept in the state database up to a bound. Reading checks the whole hash too, so a list is never made of wrong bytes.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { HASH_BYTES, merkleRoot, PIECE_BYTES, PieceHasher } from '../../protocols/pieces/tree.ts'
import { AgentError } from '../error.ts'
import { type Database, migrate } from '../state/database.ts'
import type { BlobSource, PieceList } from './content.ts'
import { Slots } from './slots.ts'

/** Lists take 1/8192 of what they describe: this is for 512 GiB of blobs. */
const LISTS_BYTES_MAX = 64 * 1024 * 1024
/** Blobs read at once to make their lists: one that is being read for a peer must not starve the transfers. */
const READING_MAX = 2

const SCHEMA = [
  `
  CREATE TABLE piece_lists (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, list_bytes INTEGER NOT NULL, hashes BLOB NOT NULL
  ) STRICT;
  `,
]

export class PieceLists {
  readonly #sql
  readonly #reading = new Map<Digest, Promise<PieceList>>()
  readonly #slots = new Slots(READING_MAX)
  readonly #bytesMax: number
  #bytes: number

  constructor(db: Database, bytesMax = LISTS_BYTES_MAX) {
    migrate(db, 'piece-lists', SCHEMA)
    this.#bytesMax = bytesMax
    this.#sql = {
      get: db.prepare('SELECT size_bytes AS sizeBytes, hashes FROM piece_lists WHERE digest = ?'),
      put: db.prepare('INSERT OR IGNORE INTO piece_lists VALUES (?, ?, ?, ?)'),
      // The oldest row goes first. A list that is still wanted is made again, at the price of one reading.
      dropOldest: db.prepare(
        'DELETE FROM piece_lists WHERE rowid = (SELECT min(rowid) FROM piece_lists) RETURNING list_bytes AS bytes',
      ),
      total: db.prepare('SELECT coalesce(sum(list_bytes), 0) AS bytes FROM piece_lists'),
    }
    this.#bytes = (this.#sql.total.get() as { bytes: number }).bytes
  }

  /** The list if it is at hand. A blob of one piece needs none: its hash is the blob's. */
  get(digest: Digest, sizeBytes: number): PieceList | undefined {
    if (sizeBytes <= PIECE_BYTES) return listOf(sizeBytes, sizeBytes === 0 ? new Uint8Array(0) : fromHex(digest))
    const row = this.#sql.get.get(digest) as { sizeBytes: number; hashes: Uint8Array } | undefined
    return row && row.sizeBytes === sizeBytes ? listOf(sizeBytes, row.hashes) : undefined
  }

  put(digest: Digest, sizeBytes: number, hashes: Uint8Array): void {
    if (hashes.byteLength <= HASH_BYTES || hashes.byteLength > this.#bytesMax) return
    const { changes } = this.#sql.put.run(digest, sizeBytes, hashes.byteLength, hashes)
    if (changes === 0) return
    this.#bytes += hashes.byteLength
    while (this.#bytes > this.#bytesMax) {
      const dropped = this.#sql.dropOldest.get() as { bytes: number } | undefined
      if (!dropped) break
      this.#bytes -= dropped.bytes
    }
  }

  /**
   * The list, made by reading the blob when it is not at hand.
   *
   * @throws {AgentError} `corrupt` when the blob is not what its digest says; its holder was told.
   */
  async of(digest: Digest, source: BlobSource, signal: AbortSignal): Promise<PieceList> {
    for (;;) {
      signal.throwIfAborted()
      const known = this.get(digest, source.sizeBytes)
      if (known) return known
      const reading = this.#reading.get(digest)
      if (!reading) break
      // Whoever reads may be gone before the end; then it is our turn.
      await reading.catch(() => undefined)
    }
    const reading = this.#read(digest, source, signal).finally(() => this.#reading.delete(digest))
    this.#reading.set(digest, reading)
    return reading
  }

  async #read(digest: Digest, source: BlobSource, signal: AbortSignal): Promise<PieceList> {
    const hasher = new PieceHasher()
    const free = await this.#slots.take(signal)
    try {
      for await (const chunk of source.read(0, source.sizeBytes, signal)) hasher.update(chunk)
    } finally {
      free()
    }
    const { digest: found, sizeBytes, hashes } = hasher.finish()
    if (found !== digest) {
      source.reportCorrupt?.()
      throw new AgentError('corrupt', `what is kept as ${digest} has another hash now`)
    }
    this.put(digest, sizeBytes, hashes)
    return listOf(sizeBytes, hashes)
  }
}

export function listOf(sizeBytes: number, hashes: Uint8Array): PieceList {
  return { sizeBytes, hashes, root: merkleRoot(hashes) }
}

export function fromHex(digest: Digest): Uint8Array {
  return Buffer.from(digest, 'hex')
}
