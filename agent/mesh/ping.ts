/**
 * Asks a peer for a sign of life on a stream: https://github.com/libp2p/specs/blob/master/ping/ping.md. libp2p's own service answers it, but
 * would ask by direct connections only.
 */
import { randomBytes } from 'node:crypto'
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'

export const PING_PROTOCOL = '/ipfs/ping/1.0.0'
const PING_BYTES = 32

/** One round trip, in milliseconds. The stream is over then. @throws {WireError} `closed`, `malformed` */
export async function pingOn(stream: Stream, signal: AbortSignal): Promise<number> {
  try {
    const frames = new Frames(stream)
    const sent = randomBytes(PING_BYTES)
    const startMs = performance.now()
    await frames.writeBytes(sent, signal)
    const back = await frames.readBytes(PING_BYTES, signal)
    const rttMs = performance.now() - startMs
    if (!sent.equals(back)) throw new WireError('malformed', 'the peer answered a ping with something else')
    void stream.close().catch(() => undefined)
    return rttMs
  } catch (error) {
    stream.abort(error as Error)
    throw error
  }
}
