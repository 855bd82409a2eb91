/** Peers that answer the pieces protocol wrongly, each in its own way. */
import type { Stream } from '@libp2p/interface'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import {
  answerPieces,
  decodeRequest,
  getRange,
  PIECES_PROTOCOL,
  type PieceHolder,
} from '../../../protocols/pieces/exchange.ts'
import { merkleRoot, PIECE_BYTES, rangeBytes } from '../../../protocols/pieces/tree.ts'
import { digestOf, never, type Peer } from './peers.ts'

/** Whatever it is asked for, a holder of `sent` answers with these bytes, and states this list. */
export function liar(sent: Uint8Array, hashes = digestOf(sent).hashes, sizeBytes = sent.byteLength): PieceHolder {
  return {
    have: async () => ({ sizeBytes, pieces: 'all' }),
    hashes: async (_digest, from, count) => ({
      sizeBytes,
      root: merkleRoot(hashes),
      hashes: hashes.subarray(from * 32, (from + count) * 32),
    }),
    get: async (_digest, from, count) => {
      const range = getRange(sizeBytes, from, count)
      if (!range) return { error: 'range' }
      // Where it is sent its memory is given back.
      const bytes = new Uint8Array(sent.subarray(range.offset, range.offset + range.lengthBytes))
      return {
        lengthBytes: range.lengthBytes,
        chunks: (async function* () {
          yield bytes
        })(),
      }
    },
  }
}

/** The same bytes with one bit of one piece changed. */
export function altered(bytes: Uint8Array, piece: number): Uint8Array {
  const copy = Uint8Array.from(bytes)
  const at = Math.min(piece * PIECE_BYTES + 77, copy.byteLength - 1)
  copy[at] = (copy[at] ?? 0) ^ 0x10
  return copy
}

/** Answers honestly until `gets` requests for pieces were answered, then does `next`. */
export function until(gets: number, honest: PieceHolder, next: PieceHolder['get']): PieceHolder {
  let answered = 0
  return { ...honest, get: (...request) => (answered++ < gets ? honest.get(...request) : next(...request)) }
}

export async function serve(peer: Peer, holder: PieceHolder): Promise<void> {
  await serveRaw(peer, async (stream) => {
    await answerPieces(new Frames(stream), holder, never, () => undefined).catch((error: Error) => stream.abort(error))
    await stream.close().catch(() => undefined)
  })
}

export async function serveRaw(peer: Peer, handler: (stream: Stream) => Promise<void>): Promise<void> {
  await peer.streams.handle(PIECES_PROTOCOL, handler, { maxInboundStreams: 100 })
}

/** Answers the list honestly, and then `raw` in place of each answer to a get. */
export async function serveGetRaw(
  peer: Peer,
  bytes: Uint8Array,
  raw: (stream: Stream, lengthBytes: number) => void,
): Promise<void> {
  const { hashes } = digestOf(bytes)
  await serveRaw(peer, async (stream) => {
    const frames = new Frames(stream)
    for (;;) {
      const frame = await frames.read(never).catch(() => undefined)
      if (!frame) return
      const request = decodeRequest(frame)
      if (request === 'unknown' || request.op === 'have') return
      if (request.op === 'hashes') {
        const asked = hashes.subarray(request.from * 32, (request.from + request.count) * 32)
        const list = { sizeBytes: bytes.byteLength, root: merkleRoot(hashes), hashes: asked }
        stream.send(encodeFrame(encodeCbor(list)))
      } else raw(stream, rangeBytes(bytes.byteLength, request.from, request.count))
    }
  })
}
