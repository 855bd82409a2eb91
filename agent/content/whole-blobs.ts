/**
 * Blobs that are fetched as a whole from one source, with nothing to check them by but their digest, and nothing of them kept when that source fails. Small
 * ones, of less than a piece, come over the stream to it, many in one round trip (small-blobs.ts). Those of a few pieces come over a lane, where one is
 * open: a closure is hundreds of them, and to ask for the list of each, and to write down which of its pieces came, costs more than its bytes do.
 */
import { hash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { WireError } from '../../protocols/error.ts'
import { encodeRequest, GET_PIECES_MAX } from '../../protocols/pieces/exchange.ts'
import { PIECE_BYTES, pieceCount } from '../../protocols/pieces/tree.ts'
import { writeFault } from '../state/disk.ts'
import type { Blobs } from './blobs.ts'
import type { Lane } from './lane-workers.ts'
import type { LaneSource, LaneWant } from './lanes.ts'
import { untilAborted } from './outcomes.ts'
import { fromHex } from './piece-lists.ts'
import type { PieceSessions } from './piece-sessions.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'
import { type SmallBlob, SmallBlobs } from './small-blobs.ts'

/** One request: 4 MiB, which is fetched again when the source fails in the middle of it. */
const WHOLE_BYTES_MAX = GET_PIECES_MAX * PIECE_BYTES
/** Longer than lanes take to be opened on a busy machine. A firewall that drops what is sent to their port keeps nobody waiting for more than this. */
const OPENING_MS_MAX = 250

export type WholeBlobsInit = { blobs: Blobs; sessions: PieceSessions; lanes: LaneSource | undefined; openMs: number }

/** How long the peer may be silent, lanes know. `moreBytes` is how much of other blobs waits behind it. */
type LaneBlob = Omit<SmallBlob, 'patienceMs'> & { moreBytes: number }

export class WholeBlobs implements AsyncDisposable {
  readonly #blobs: Blobs
  readonly #lanes: LaneSource | undefined
  readonly #small: SmallBlobs
  /** By peer, until its lanes are open or not to be had; what is waited for is shorter. */
  readonly #opening = new Map<string, Promise<void>>()

  constructor({ blobs, sessions, lanes, openMs }: WholeBlobsInit) {
    this.#blobs = blobs
    this.#lanes = lanes
    this.#small = new SmallBlobs(sessions, openMs)
  }

  /** Less than a piece, because a whole piece may also be the first of a larger blob whose size was signed wrongly, which is not its holder's fault. */
  static isSmall(sizeBytes: number | undefined): boolean {
    return sizeBytes !== undefined && sizeBytes > 0 && sizeBytes < PIECE_BYTES
  }

  /**
   * A small blob, into the blob directory.
   *
   * @throws {WireError} what the peer did wrong.
   */
  async fetchSmall(blob: SmallBlob, signal: AbortSignal): Promise<void> {
    const { digest, network } = blob
    const bytes = await this.#small.get(blob, signal)
    if (hash('sha256', bytes) !== digest) throw new WireError('mismatch', 'piece 0 has another hash than it said')
    await this.#blobs.write(digest, [bytes], signal, { network, isLate: true })
  }

  /**
   * A blob of a few pieces, into the blob directory, over a lane that is open; or is opened, if what waits behind it makes that worth its while.
   *
   * @returns false when it has to come by pieces: since it is too large for this, some of it is here, there is no lane, or the peer does not give it so. Who is to
   *   blame for that is then found out.
   * @throws {AgentError} what went wrong on this side.
   */
  async fetchOverLane(blob: LaneBlob, signal: AbortSignal): Promise<boolean> {
    const { network, digest, sizeBytes } = blob
    if (sizeBytes < PIECE_BYTES || sizeBytes > WHOLE_BYTES_MAX) return false
    if (this.#blobs.index.partial(digest) !== undefined) return false
    const lanes = await this.#lanesFor(blob, signal)
    const [first, ...others] = lanes
    if (first === undefined) return false
    const lane = others.reduce((least, one) => (one.load < least.load ? one : least), first)
    const request = requestOf(blob)
    try {
      await this.#blobs.takeIn(blob, { network, signal }, (path) => lane.take(request, { path, digest, sizeBytes }))
      return true
    } catch (error) {
      if (error instanceof WireError) return false
      throw writeFault(error, this.#blobs.pathOf(digest))
    } finally {
      for (const one of lanes) void this.#lanes?.give(one, undefined)
    }
  }

  async #lanesFor({ peerId, network, digest, sizeBytes, moreBytes }: LaneBlob, signal: AbortSignal): Promise<Lane[]> {
    const lanes = this.#lanes
    if (lanes === undefined) return []
    if (moreBytes > 0 && !lanes.hasOpen(peerId)) {
      const want = { peerId, network, digest, bytes: 0, moreBytes: sizeBytes + moreBytes }
      await untilAborted(this.#opening.get(peerId) ?? this.#open(lanes, want), signal)
    }
    return lanes.takeOpen(peerId)
  }

  /** For all blobs together that are wanted of the peer meanwhile, so that a firewall is waited for once. */
  #open(lanes: LaneSource, want: LaneWant): Promise<void> {
    const opened = lanes.open(want).finally(() => this.#opening.delete(want.peerId))
    const waiting = Promise.race([opened, delay(OPENING_MS_MAX, undefined, { ref: false })])
    this.#opening.set(want.peerId, waiting)
    return waiting
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#small[Symbol.asyncDispose]()
  }
}

function requestOf({ digest, network, sizeBytes }: LaneBlob): Uint8Array {
  const named = network === OPEN_NETWORK_ID ? {} : { network: fromHex(network) }
  return encodeRequest({ op: 'get', digest: fromHex(digest), from: 0, count: pieceCount(sizeBytes), ...named })
}
