/**
 * The lanes of one source while it is fed from (see feed.ts): they are got while the first pieces come over the stream, then each run is
 * asked for on the one that has the least under way. When one fails, what it had under way is to be asked for again; when none is left,
 * all goes on over the stream.
 */
import { decodeHashesAnswer, encodeRequest } from '../../protocols/pieces/exchange.ts'
import { isSameList } from './claims.ts'
import type { PieceList } from './content.ts'
import type { LaneEnd } from './lane-worker.ts'
import type { Lane } from './lane-workers.ts'
import type { LaneSource } from './lanes.ts'
import type { PartialBlob } from './partial-blob.ts'
import { fromHex } from './piece-lists.ts'
import type { Run } from './piece-picker.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'

/** Less than this is here over the stream before a lane is open. */
export const LANE_BYTES_MIN = 16 * 2 ** 20

export type LaneRunsInit = {
  source: LaneSource
  peerId: string
  partial: Pick<PartialBlob, 'digest' | 'network' | 'fd'>
  list: PieceList
  /** Whether the peer has only a part, which it gives out by the list that it told on the same lane. */
  isFellow: () => boolean
  /** There are lanes now. */
  onOpen: () => void
  onPiece: (index: number, bytes: number, isChecked: boolean) => void
  /** These pieces do not come. */
  onMissing: (runs: Run[]) => void
  /** What went wrong here. */
  onFault: (error: unknown) => void
}

export class LaneRuns {
  readonly #init: LaneRunsInit
  readonly #lanes = new Set<Lane>()
  readonly #leaving = new Set<Promise<void>>()
  #isOpening = false
  #isOver = false

  constructor(init: LaneRunsInit) {
    this.#init = init
  }

  get isOpen(): boolean {
    return this.#lanes.size > 0
  }

  /** Whether every lane has something under way. */
  get isBusy(): boolean {
    return [...this.#lanes].every((lane) => lane.load > 0)
  }

  /** Begins to get lanes. */
  start(): void {
    if (this.#isOpening) return
    this.#isOpening = true
    void this.#open().finally(() => {
      this.#isOpening = false
    })
  }

  /** Asks for the pieces; to be called while lanes are open. */
  get(run: Run, isChecked: boolean): void {
    const { list, partial } = this.#init
    const [first, ...others] = this.#lanes
    if (first === undefined) throw new Error('no lane is open')
    const lane = others.reduce((least, one) => (one.load < least.load ? one : least), first)
    lane.get(this.#request({ op: 'get', ...run }), run, list, partial.fd, isChecked)
    if (!lane.isSpent) return
    // What it owes still comes; the next ones are asked for on another.
    this.#lanes.delete(lane)
    this.#leave(lane.drained.then(() => this.#init.source.give(lane)))
    this.start()
  }

  /** Gives the lanes back. When it resolves, nothing is written to the file any more. */
  async end(): Promise<void> {
    this.#isOver = true
    for (const lane of this.#lanes) this.#giveBack(lane)
    this.#lanes.clear()
    // Those that are still being opened are given back unused, later: nobody is to wait for a firewall.
    await Promise.all(this.#leaving)
  }

  async #open(): Promise<void> {
    const { source, peerId, partial } = this.#init
    const { network, digest } = partial
    const lanes = await source.take({ peerId, network, digest })
    await Promise.all(lanes.map((lane) => this.#begin(lane)))
    if (this.isOpen) this.#init.onOpen()
  }

  async #begin(lane: Lane): Promise<void> {
    if (!this.#isOver && (await this.#isOfUse(lane)) && !this.#isOver && lane.isOpen) {
      const { onPiece } = this.#init
      lane.use({ onPiece, onEnd: (end, missing) => this.#ended(lane, end, missing) })
      this.#lanes.add(lane)
    } else this.#giveBack(lane)
  }

  async #isOfUse(lane: Lane): Promise<boolean> {
    if (!this.#init.isFellow()) return true
    try {
      const answer = await lane.ask(this.#request({ op: 'hashes', from: 0, count: 0 }))
      return isSameList(decodeHashesAnswer(answer, 0), this.#init.list)
    } catch {
      // What it says to the same question on the stream counts.
      return false
    }
  }

  #ended(lane: Lane, { why, reason, code }: LaneEnd, missing: Run[]): void {
    this.#lanes.delete(lane)
    if (why === 'disk') this.#init.onFault(Object.assign(new Error(reason), { code }))
    this.#init.onMissing(missing)
  }

  #giveBack(lane: Lane): void {
    this.#leave(this.#init.source.give(lane))
  }

  #leave(leaving: Promise<void>): void {
    const settled = leaving.finally(() => this.#leaving.delete(settled))
    this.#leaving.add(settled)
  }

  #request(
    what: { op: 'get'; from: number; count: number } | { op: 'hashes'; from: number; count: number },
  ): Uint8Array {
    const { digest, network } = this.#init.partial
    const named = network === OPEN_NETWORK_ID ? {} : { network: fromHex(network) }
    return encodeRequest({ ...what, digest: fromHex(digest), ...named })
  }
}
