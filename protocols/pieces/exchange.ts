/**
 * `/undernet/pieces/1`: who has which blob, its piece hashes, its pieces. Asker and answerer; see spec.md beside this file.
 *
 * The dialler sends request frames, as many as it likes, and the listener answers them in order; pieces follow their answer's frame as
 * raw bytes. Nothing here checks content: pieces are to be held against the list, the list against the whole hash, by the caller.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import { FRAME_BYTES_MAX, type Frames } from '../frame.ts'
import { LIST_STATEMENT_BYTES_MAX } from './list-statement.ts'
import { BLOB_BYTES_MAX, HASH_BYTES, merkleRoot, PIECE_BYTES, pieceCount, rangeBytes } from './tree.ts'

export const PIECES_PROTOCOL = '/undernet/pieces/1'
/** Digests in one question: a closure's NARs in a few round trips. */
const HAVE_DIGESTS_MAX = 64
/** Piece hashes in one answer: 256 KiB of them, for 2 GiB of blob. */
export const HASHES_MAX = 8_192
/** Pieces in one answer: 4 MiB, after which an asker that changed its mind has been heard. */
export const GET_PIECES_MAX = 16
/** Peers that one answer names. */
export const ASKERS_MAX = 16
/** A peer id as text is shorter. */
const PEER_ID_CHARS_MAX = 128
/** The largest request is 64 digests of 34 bytes, and a network. */
const REQUEST_BYTES_MAX = 4 * 1024

const bytesUpTo = (bytesMax: number) =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength <= bytesMax, 'not bytes, or too many')
const bytes32 = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.byteLength === HASH_BYTES,
  'not 32 bytes',
)
const index = z.int().min(0).max(pieceCount(BLOB_BYTES_MAX))
const sizeBytes = z.int().min(0).max(BLOB_BYTES_MAX)

/** In which network the asker asks; the open one when it says none. */
const inNetwork = bytes32.exactOptional()
const requestSchema = z.discriminatedUnion('op', [
  z.object({ op: z.literal('have'), digests: z.array(bytes32).min(1).max(HAVE_DIGESTS_MAX), network: inNetwork }),
  z.object({
    op: z.literal('hashes'),
    digest: bytes32,
    from: index,
    count: z.int().min(0).max(HASHES_MAX),
    network: inNetwork,
  }),
  z.object({
    op: z.literal('get'),
    digest: bytes32,
    from: index,
    count: z.int().min(1).max(GET_PIECES_MAX),
    network: inNetwork,
  }),
])
/** Any request, known here or not: a later version may ask more. */
const anyRequest = z.looseObject({ op: z.string().max(32) })

/** What an answerer of this version can say no with, as its asker repeats it. */
const REFUSALS = {
  absent: 'it does not have it',
  range: 'it says that the blob ends before the pieces asked for',
  busy: 'it is busy',
  unknown: 'it does not know the question',
} as const
/** A later version may have more codes: they are repeated as they are. */
const refused = z.object({ error: z.string().regex(/^[a-z-]{1,32}$/) })
const bitmap = bytesUpTo(pieceCount(BLOB_BYTES_MAX) / 8)
const holding = z.object({
  sizeBytes,
  /** All of them, or a bitmap: bit 0x80 of byte 0 is piece 0. */
  pieces: z.union([z.literal('all'), bitmap]),
})
const haveAnswer = z.object({ have: z.array(holding.nullable()).max(HAVE_DIGESTS_MAX) })
const hashesAnswer = z.object({
  sizeBytes,
  root: bytes32,
  hashes: bytesUpTo(HASHES_MAX * HASH_BYTES),
  /** Of a peer that has only these: it fetches by the list, and does not vouch for it. */
  pieces: bitmap.exactOptional(),
  /** Peers that asked the answerer for the blob a short while ago. */
  askers: z.array(z.string().min(1).max(PEER_ID_CHARS_MAX)).max(ASKERS_MAX).exactOptional(),
  /** The list as somebody signed it: list-statement.ts. Not checked here. */
  signed: bytesUpTo(LIST_STATEMENT_BYTES_MAX).exactOptional(),
})
const getAnswer = z.object({ lengthBytes: z.int().min(1) })

export type PieceRequest = z.infer<typeof requestSchema>
export type Refused = { error: keyof typeof REFUSALS }
/** What a peer says it has of a blob. */
export type Holding = z.infer<typeof holding>
/** Size, root and some piece hashes of a blob, as a peer states them. */
export type PieceHashes = z.infer<typeof hashesAnswer>

/** Exported for the vectors. */
export const encodeRequest = (request: PieceRequest): Uint8Array => encodeCbor(request)

/** @throws {WireError} `malformed` */
export function decodeRequest(bytes: Uint8Array): PieceRequest | 'unknown' {
  const { op } = decodeCbor(bytes, anyRequest)
  if (op !== 'have' && op !== 'hashes' && op !== 'get') return 'unknown'
  return decodeCbor(bytes, requestSchema)
}

export class PieceAsker {
  readonly #frames: Frames
  readonly #network: { network?: Uint8Array }

  /** Asks in a closed network, if one is given. */
  constructor(frames: Frames, network?: Uint8Array) {
    this.#frames = frames
    this.#network = network === undefined ? {} : { network }
  }

  /** One entry for each digest: null where the peer has nothing of it. */
  async have(digests: Uint8Array[], signal: AbortSignal): Promise<(Holding | null)[]> {
    await this.#ask({ op: 'have', digests }, signal)
    const { have } = decodeAnswer(await this.#read(signal), haveAnswer)
    if (have.length !== digests.length) throw new WireError('malformed', 'an answer for another number of digests')
    for (const one of have) {
      if (one && one.pieces !== 'all' && one.pieces.byteLength !== Math.ceil(pieceCount(one.sizeBytes) / 8))
        throw new WireError('malformed', 'a bitmap of another length than the blob needs')
    }
    return have
  }

  /**
   * The whole list of a small blob's piece hashes, and its first piece, in one round trip; no piece where it has none of that, or the blob
   * has no bytes.
   *
   * @throws {WireError} as `hashes`.
   */
  async hashesAndFirst(
    digest: Uint8Array,
    { sizeBytesMax }: { sizeBytesMax: number },
    signal: AbortSignal,
  ): Promise<{ stated: PieceHashes; first: Uint8Array | undefined }> {
    await this.#ask({ op: 'hashes', digest, from: 0, count: HASHES_MAX }, signal)
    await this.#ask({ op: 'get', digest, from: 0, count: 1 }, signal)
    const list = await this.#readSomeHashes(HASHES_MAX, signal).catch((error: unknown) => refusalOr(error))
    const lengthBytes = await this.readGet(signal).catch((error: unknown) => refusalOr(error))
    const expectedBytes = list instanceof WireError ? PIECE_BYTES : rangeBytes(list.sizeBytes, 0, 1)
    let first: Uint8Array | undefined
    if (typeof lengthBytes === 'number') {
      const isExpected = list instanceof WireError ? lengthBytes <= expectedBytes : lengthBytes === expectedBytes
      if (!isExpected) throw new WireError('malformed', `it has ${lengthBytes} bytes in place of ${expectedBytes}`)
      first = await this.#frames.readBytes(lengthBytes, signal)
    }
    if (list instanceof WireError) throw list
    return { stated: await this.#restOf(list, digest, sizeBytesMax, signal), first }
  }

  /** Asks anew what a holder of a part has, without waiting; `readPieces` then reads the answer, in the order of asking. */
  async askPieces(digest: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#ask({ op: 'hashes', digest, from: 0, count: 0 }, signal)
  }

  /** The answer to the oldest `askPieces` not yet answered: size, root and, unless it has all of them, the pieces. */
  readPieces(signal: AbortSignal): Promise<PieceHashes> {
    return this.#readSomeHashes(0, signal)
  }

  /**
   * The whole list of a blob's piece hashes, checked against the root that the peer states; or, when that root is `known`, no list.
   *
   * @throws {WireError} `refused` when the blob is larger than `sizeBytesMax`; `mismatch` when list and root don't fit.
   */
  async hashes(
    digest: Uint8Array,
    { sizeBytesMax, known }: { sizeBytesMax: number; known?: Uint8Array | undefined },
    signal: AbortSignal,
  ): Promise<PieceHashes> {
    const first = await this.#someHashes(digest, 0, known ? 0 : HASHES_MAX, signal)
    if (known && Buffer.compare(known, first.root) === 0 && first.sizeBytes <= sizeBytesMax) return first
    return await this.#restOf(first, digest, sizeBytesMax, signal)
  }

  /** What is missing of a list that a first answer began, and the check of it all. */
  async #restOf(
    first: PieceHashes,
    digest: Uint8Array,
    sizeBytesMax: number,
    signal: AbortSignal,
  ): Promise<PieceHashes> {
    if (first.sizeBytes > sizeBytesMax)
      throw new WireError('refused', `it has ${first.sizeBytes} bytes, more than the ${sizeBytesMax} that are wanted`)
    const count = pieceCount(first.sizeBytes)
    const parts = [first.hashes]
    for (let have = first.hashes.byteLength / HASH_BYTES; have < count; ) {
      const next = await this.#someHashes(digest, have, Math.min(HASHES_MAX, count - have), signal)
      if (next.sizeBytes !== first.sizeBytes || Buffer.compare(next.root, first.root) !== 0)
        throw new WireError('mismatch', 'a piece list that changed while it was read')
      if (next.hashes.byteLength === 0) throw new WireError('malformed', 'a piece list with an end missing')
      parts.push(next.hashes)
      have += next.hashes.byteLength / HASH_BYTES
    }
    const hashes = Buffer.concat(parts)
    if (hashes.byteLength !== count * HASH_BYTES) throw new WireError('malformed', 'a piece list of another length')
    if (Buffer.compare(merkleRoot(hashes), first.root) !== 0)
      throw new WireError('mismatch', 'a piece list whose root is not the one that was stated')
    return { ...first, hashes }
  }

  /** Asks for pieces without waiting; `readGet` then reads the answers in the order of asking. */
  async askGet(digest: Uint8Array, from: number, count: number, signal: AbortSignal): Promise<void> {
    await this.#ask({ op: 'get', digest, from, count }, signal)
  }

  /** The answer to the oldest `askGet` not yet answered: how many bytes of pieces follow, for `readInto` to read. */
  async readGet(signal: AbortSignal): Promise<number> {
    return decodeGetAnswer(await this.#read(signal))
  }

  readInto(target: Uint8Array, signal: AbortSignal): Promise<void> {
    return this.#frames.readInto(target, signal)
  }

  async #someHashes(digest: Uint8Array, from: number, count: number, signal: AbortSignal): Promise<PieceHashes> {
    await this.#ask({ op: 'hashes', digest, from, count }, signal)
    return await this.#readSomeHashes(count, signal)
  }

  async #readSomeHashes(count: number, signal: AbortSignal): Promise<PieceHashes> {
    return decodeHashesAnswer(await this.#read(signal), count)
  }

  async #ask(request: PieceRequest, signal: AbortSignal): Promise<void> {
    await this.#frames.write(encodeRequest({ ...request, ...this.#network }), signal)
  }

  async #read(signal: AbortSignal): Promise<Uint8Array> {
    const bytes = await this.#frames.read(signal, FRAME_BYTES_MAX)
    if (!bytes) throw new WireError('closed', 'the peer closed the stream before it answered')
    return bytes
  }
}

/** The peer said no, and the stream goes on. */
export function isRefusal(error: unknown): error is WireError {
  return error instanceof WireError && (error.code === 'absent' || error.code === 'refused' || error.code === 'busy')
}

/** What stands before the pieces of a `get`: how many bytes they are. */
export const encodeGetAnswer = (lengthBytes: number): Uint8Array => encodeCbor({ lengthBytes })

/** @throws {WireError} `absent` or `refused` when the peer says no, `malformed` */
export function decodeGetAnswer(bytes: Uint8Array): number {
  return decodeAnswer(bytes, getAnswer).lengthBytes
}

/** The answer to a question for `count` hashes. @throws {WireError} as `decodeGetAnswer` */
export function decodeHashesAnswer(bytes: Uint8Array, count: number): PieceHashes {
  const answer = decodeAnswer(bytes, hashesAnswer)
  if (answer.pieces && answer.pieces.byteLength !== Math.ceil(pieceCount(answer.sizeBytes) / 8))
    throw new WireError('malformed', 'a bitmap of another length than the blob needs')
  if (answer.hashes.byteLength % HASH_BYTES !== 0 || answer.hashes.byteLength > count * HASH_BYTES)
    throw new WireError('malformed', 'a piece list of another length')
  return answer
}

function decodeAnswer<T extends object>(bytes: Uint8Array, schema: z.ZodType<T>): T {
  const answer = decodeCbor<T | z.infer<typeof refused>>(bytes, z.union([refused, schema]))
  if (!('error' in answer)) return answer
  const { error } = answer as z.infer<typeof refused>
  const words = Object.hasOwn(REFUSALS, error) ? REFUSALS[error as keyof typeof REFUSALS] : `it refused: ${error}`
  throw new WireError(error === 'absent' || error === 'busy' ? error : 'refused', words)
}

/** A refusal leaves the stream in order: the next answer can be read. */
function refusalOr(error: unknown): WireError {
  if (isRefusal(error)) return error
  throw error
}

/**
 * What an answerer must be able to do. Pieces come in any chunks, `lengthBytes` in all. `network` is the closed network that the request
 * names; undefined is the open one.
 */
export type PieceHolder = {
  have(digest: Uint8Array, signal: AbortSignal, network: Uint8Array | undefined): Promise<Holding | null>
  hashes(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Uint8Array | undefined,
  ): Promise<PieceHashes | Refused>
  get(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Uint8Array | undefined,
  ): Promise<{ lengthBytes: number; chunks: AsyncIterable<Uint8Array> } | Refused>
}

/**
 * Answers requests until the peer ends its side. A failure in the middle of pieces is thrown, and the caller resets the stream: short of
 * that there is no way to tell the peer.
 *
 * @param onProgress called for every request and every chunk written, so that the caller can tell a stream that stands still.
 * @throws {WireError}
 */
export async function answerPieces(
  frames: Pick<Frames, 'read' | 'write' | 'writeBytes'>,
  holder: PieceHolder,
  signal: AbortSignal,
  onProgress: (writtenBytes: number) => void,
): Promise<void> {
  for (;;) {
    const bytes = await frames.read(signal, REQUEST_BYTES_MAX)
    if (!bytes) return
    onProgress(0)
    const request = decodeRequest(bytes)
    if (request === 'unknown') {
      await frames.write(encodeCbor({ error: 'unknown' }), signal)
    } else if (request.op === 'have') {
      await frames.write(encodeCbor({ have: await haveAll(request, holder, signal) }), signal)
    } else if (request.op === 'hashes') {
      const { digest, from, count, network } = request
      await frames.write(encodeCbor(await holder.hashes(digest, from, count, signal, network)), signal)
    } else {
      const { digest, from, count, network } = request
      const answer = await holder.get(digest, from, count, signal, network)
      if ('error' in answer) {
        await frames.write(encodeCbor(answer), signal)
        continue
      }
      await frames.write(encodeGetAnswer(answer.lengthBytes), signal)
      for await (const chunk of answer.chunks) {
        const { byteLength } = chunk
        await frames.writeBytes(chunk, signal)
        onProgress(byteLength)
      }
    }
  }
}

/** Bitmaps of large blobs could fill more than a frame: what no longer fits is answered null, and is to be asked for alone. */
async function haveAll(
  { digests, network }: Extract<PieceRequest, { op: 'have' }>,
  holder: PieceHolder,
  signal: AbortSignal,
): Promise<(Holding | null)[]> {
  const answers: (Holding | null)[] = []
  let roomBytes = FRAME_BYTES_MAX - HAVE_DIGESTS_MAX * 64
  for (const digest of digests) {
    const one = await holder.have(digest, signal, network)
    if (one && one.pieces !== 'all') roomBytes -= one.pieces.byteLength
    answers.push(roomBytes < 0 ? null : one)
  }
  return answers
}

/** The part of a blob that a `get` asks for, in bytes; undefined when it begins or ends behind the blob's end. */
export function getRange(
  blobBytes: number,
  from: number,
  count: number,
): { offset: number; lengthBytes: number } | undefined {
  if (from + count > pieceCount(blobBytes)) return undefined
  return { offset: from * PIECE_BYTES, lengthBytes: rangeBytes(blobBytes, from, count) }
}
