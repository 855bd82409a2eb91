/**
 * What a peer states of a blob before it is asked for pieces: its size, its piece list, and which pieces it has.
 */

import { WireError } from '../../protocols/error.ts'
import type { PieceAsker, PieceHashes } from '../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import type { PieceList } from './content.ts'
import { Deadline } from './deadline.ts'

/** How large a blob of unknown size is thought to be, and how large one may be, when it is about waiting for its list. */
const UNKNOWN_BYTES = 2 ** 32
const LISTING_BYTES_MAX = 2 ** 35
/** A blob that is no larger is likely to be a single piece: it is asked for with its list, and costs one round trip. */
const LIKELY_SMALL_BYTES = 16 * PIECE_BYTES

export type Stated = {
  list: PieceList
  /** Bitmap of what the peer has; undefined when it has all of it. */
  pieces: Uint8Array | undefined
  /** Other peers that asked it for the blob. */
  askers: readonly string[] | undefined
  /** The first piece, not checked, where it was asked for at once. */
  first: Uint8Array | undefined
}

type Terms = {
  /** What the size must be, if that is known. */
  sizeBytes: number | undefined
  sizeBytesMax: number
  /** How long the peer may be silent; and longer, for each GiB that it may have to read. */
  patienceMs: number
  listMsPerGib: number
  /** The list in use, which need not be sent again. */
  known: PieceList | undefined
}

/** @throws {WireError} */
export async function stateList(
  asker: PieceAsker,
  digest: Uint8Array,
  { sizeBytes, sizeBytesMax, patienceMs, listMsPerGib, known }: Terms,
  signal: AbortSignal,
): Promise<Stated> {
  const readBytes = Math.min(sizeBytes ?? UNKNOWN_BYTES, sizeBytesMax, LISTING_BYTES_MAX)
  using deadline = new Deadline(patienceMs + (listMsPerGib * readBytes) / 2 ** 30, signal)
  const bound = { sizeBytesMax: sizeBytes ?? sizeBytesMax }
  const isSmall = known === undefined && (sizeBytes === undefined ? sizeBytesMax : sizeBytes) <= LIKELY_SMALL_BYTES
  const { stated, first }: { stated: PieceHashes; first?: Uint8Array | undefined } =
    isSmall && sizeBytes !== 0
      ? await asker.hashesAndFirst(digest, bound, deadline.signal)
      : { stated: await asker.hashes(digest, { ...bound, known: known?.root }, deadline.signal) }
  if (sizeBytes !== undefined && stated.sizeBytes !== sizeBytes)
    throw new WireError('refused', `it has ${stated.sizeBytes} bytes in place of ${sizeBytes}`)
  const { pieces, askers } = stated
  const isKnown = known && stated.sizeBytes === known.sizeBytes && Buffer.compare(known.root, stated.root) === 0
  if (!isKnown && stated.hashes.byteLength === 0 && stated.sizeBytes > 0)
    throw new WireError('mismatch', 'it stated one root for two sizes')
  return { list: isKnown ? known : stated, pieces, askers, first }
}
