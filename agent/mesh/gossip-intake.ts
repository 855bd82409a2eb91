/**
 * How gossipsub takes in what peers send. By itself it takes as much as comes, as fast as it comes: thousands of messages in one turn of
 * the event loop, while the user's commands and Nix wait; and from a stream that breaks its rules it stops reading, but leaves it open, so
 * that its peer can go on sending, gigabytes of it, to nobody.
 *
 * Here each peer's stream is paused while its last RPC is worked on, so a peer that is faster than we are is slowed down, and what waits is
 * bounded; the work itself lets others have their turn (`Turns`); and a stream that breaks the rules is reset.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { GossipSub } from '@libp2p/gossipsub'
import type { PeerId, Stream } from '@libp2p/interface'

/** Work on messages before others have their turn. */
const TURN_MS_MAX = 10
/** What yamux may let a peer send after the pause: libp2p resets the stream above this. */
const PAUSED_BYTES_MAX = 17 * 1024 * 1024

/** Public in the class, though not in its interface (17.x). */
type Insides = {
  streamsInbound: Map<string, { rawStream: Stream }>
  /** Reads one peer's RPCs until the stream ends. */
  pipePeerReadStream(peerId: PeerId, rpcs: AsyncIterable<Rpc>): Promise<void>
  /** Called when what came on a peer's stream could not be read. */
  handlePeerReadStreamError(error: Error, peerId: PeerId): void
}
type Rpc = { subarray(): Uint8Array }

/** To be called once, before it starts. Its options must have `awaitRpcHandler` and `awaitRpcMessageHandler`. */
export function guardIntake(pubsub: GossipSub): void {
  const insides = pubsub as unknown as Insides
  const streamOf = (peerId: PeerId) => insides.streamsInbound.get(peerId.toString())?.rawStream
  const read = insides.pipePeerReadStream.bind(pubsub)
  insides.pipePeerReadStream = (peerId, rpcs) => {
    const stream = streamOf(peerId)
    return read(peerId, stream ? oneByOne(rpcs, stream) : rpcs)
  }
  const leave = insides.handlePeerReadStreamError.bind(pubsub)
  insides.handlePeerReadStreamError = (error, peerId) => {
    streamOf(peerId)?.abort(error)
    leave(error, peerId)
  }
}

/** Hands on one RPC at a time, the stream being paused until it was worked on. */
async function* oneByOne(rpcs: AsyncIterable<Rpc>, stream: Stream): AsyncGenerator<Rpc> {
  stream.maxReadBufferLength = PAUSED_BYTES_MAX
  for await (const rpc of rpcs) {
    setPaused(stream, true)
    yield rpc
    setPaused(stream, false)
  }
}

function setPaused(stream: Stream, isPaused: boolean): void {
  try {
    if (isPaused) stream.pause()
    else stream.resume()
  } catch {
    // It closed meanwhile.
  }
}

/**
 * Lets the event loop have its turn whenever work that calls `take` has gone on for a while in this one. Work that comes after a pause
 * begins at once: on a busy machine a turn of the event loop is long.
 */
export class Turns {
  /** Since when there was work in this turn; undefined when there was none. */
  #sinceMs: number | undefined
  #next: Promise<void> | undefined

  async take(): Promise<void> {
    while (this.#sinceMs !== undefined && performance.now() - this.#sinceMs > TURN_MS_MAX) await this.#next
    if (this.#sinceMs !== undefined) return
    this.#sinceMs = performance.now()
    this.#next = this.#end()
  }

  async #end(): Promise<void> {
    await nextTurn()
    this.#sinceMs = undefined
  }
}
