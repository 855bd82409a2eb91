/**
 * What a peer states of a blob before it is asked for pieces: its size, its piece list, and which pieces it has.
 */

import { publicKeyFromRaw } from '@libp2p/crypto/keys'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { WireError } from '../../protocols/error.ts'
import type { PieceAsker, PieceHashes } from '../../protocols/pieces/exchange.ts'
import { isAbout, readList } from '../../protocols/pieces/list-statement.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { reasonOf } from '../error.ts'
import type { PieceList } from './content.ts'
import { Deadline } from './deadline.ts'
import { fromHex } from './piece-lists.ts'

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
  /** The list as somebody signed it. */
  signed: SignedList | undefined
  /** The first piece, not checked, where it was asked for at once. */
  first: Uint8Array | undefined
}

/** A statement, by whom, and its bytes, which prove that. */
export type SignedList = { peerId: string; bytes: Uint8Array }

/** Who is asked, and in which network: its id in hex. */
type Asked = { peerId: string; network: string }

type Terms = Asked & {
  /** What the size must be, if that is known. */
  sizeBytes: number | undefined
  sizeBytesMax: number
  /** How long the peer may be silent; and longer, for each GiB that it may have to read. */
  patienceMs: number
  listMsPerGib: number
  /** The list in use, which need not be sent again. */
  known: PieceList | undefined
  /** All pieces come another way: none is asked for with the list. */
  isListOnly: boolean
}

/** @throws {WireError} */
export async function stateList(
  asker: PieceAsker,
  digest: Uint8Array,
  { sizeBytes, sizeBytesMax, patienceMs, listMsPerGib, known, isListOnly, ...asked }: Terms,
  signal: AbortSignal,
): Promise<Stated> {
  const readBytes = Math.min(sizeBytes ?? UNKNOWN_BYTES, sizeBytesMax, LISTING_BYTES_MAX)
  using deadline = new Deadline(patienceMs + (listMsPerGib * readBytes) / 2 ** 30, signal)
  const bound = { sizeBytesMax: sizeBytes ?? sizeBytesMax }
  const isSmall = known === undefined && (sizeBytes === undefined ? sizeBytesMax : sizeBytes) <= LIKELY_SMALL_BYTES
  const { stated, first }: { stated: PieceHashes; first?: Uint8Array | undefined } =
    isSmall && sizeBytes !== 0 && !isListOnly
      ? await asker.hashesAndFirst(digest, bound, deadline.signal)
      : { stated: await asker.hashes(digest, { ...bound, known: known?.root }, deadline.signal) }
  if (sizeBytes !== undefined && stated.sizeBytes !== sizeBytes)
    throw new WireError('refused', `it has ${stated.sizeBytes} bytes in place of ${sizeBytes}`)
  const { pieces, askers } = stated
  const isKnown = known && stated.sizeBytes === known.sizeBytes && Buffer.compare(known.root, stated.root) === 0
  if (!isKnown && stated.hashes.byteLength === 0 && stated.sizeBytes > 0)
    throw new WireError('mismatch', 'it stated one root for two sizes')
  const signed = stated.signed && signedBy(stated.signed, { ...stated, digest }, asked)
  return { list: isKnown ? known : stated, pieces, askers, signed, first }
}

/** @throws {WireError} `mismatch` when it is not the statement that it should be: whoever passes it on did not look, or made it up. */
function signedBy(
  bytes: Uint8Array,
  { digest, sizeBytes, root, pieces }: PieceHashes & { digest: Uint8Array },
  { peerId, network }: Asked,
): SignedList {
  try {
    const statement = readList(bytes)
    if (!isAbout(statement, { network: fromHex(network), digest, sizeBytes, root })) throw new Error('of another list')
    const signer = peerIdFromPublicKey(publicKeyFromRaw(statement.signer)).toString()
    if (pieces === undefined && signer !== peerId) throw new Error('of another node')
    return { peerId: signer, bytes }
  } catch (cause) {
    throw new WireError('mismatch', `the statement of its piece list is wrong: ${reasonOf(cause)}`, { cause })
  }
}
