/**
 * The lanes of one source while it is fed from (see feed.ts): they are got while the first pieces come over the stream, then each run is
 * asked for on the one that has the least under way. When one fails, what it had under way is to be asked for again; when none is left,
 * all goes on over the stream.
 */
import { decodeHashesAnswer, encodeRequest } from '../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { isSameList } from './claims.ts'
import type { PieceList } from './content.ts'
import type { LaneEnd } from './lane-worker.ts'
import type { Lane, LaneUser } from './lane-workers.ts'
import type { LaneSource } from './lanes.ts'
import type { PartialBlob } from './partial-blob.ts'
import { fromHex } from './piece-lists.ts'
import type { Run } from './piece-picker.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'

/** Of less, the stream has brought a piece by the time that the list is here; and the rest is hardly worth a thread's while. */
export const LANE_BYTES_MIN = 2 * PIECE_BYTES

export type LaneRunsInit = {
  source: LaneSource
  peerId: string
  partial: Pick<PartialBlob, 'digest' | 'network' | 'fd' | 'missing'>
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
  readonly #lanes = new Map<Lane, LaneUser>()
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
    return [...this.#lanes].every(([lane, user]) => lane.owes(user))
  }

  /** Takes the lanes that are open; where there are none, begins to get some. */
  start(): void {
    if (this.#isOpening) return
    const { source, peerId, isFellow, onOpen } = this.#init
    const open = source.takeOpen(peerId)
    if (open.length > 0 && !isFellow()) {
      for (const lane of open) this.#use(lane)
      onOpen()
      return
    }
    this.#isOpening = true
    void this.#open(open).finally(() => {
      this.#isOpening = false
    })
  }

  /** Asks for the pieces; to be called while lanes are open. */
  get(run: Run, isChecked: boolean): void {
    const { list, partial } = this.#init
    const [first, ...others] = this.#lanes
    if (first === undefined) throw new Error('no lane is open')
    const [lane, user] = others.reduce((least, one) => (one[0].load < least[0].load ? one : least), first)
    lane.get(user, this.#request({ op: 'get', ...run }), { run, list, fd: partial.fd, isChecked })
    if (!lane.isSpent) return
    // What it owes still comes; the next ones are asked for on another.
    this.#lanes.delete(lane)
    this.#leave(lane.drained.then(() => this.#init.source.give(lane, user)))
    this.start()
  }

  /** Gives the lanes back. When it resolves, nothing is written to the file any more. */
  async end(): Promise<void> {
    this.#isOver = true
    for (const [lane, user] of this.#lanes) this.#giveBack(lane, user)
    this.#lanes.clear()
    // Those that are still being opened are given back unused, later: nobody is to wait for a firewall.
    await Promise.all(this.#leaving)
  }

  async #open(open: Lane[]): Promise<void> {
    const { source, peerId, partial } = this.#init
    const { network, digest } = partial
    const want = { peerId, network, digest, bytes: partial.missing * PIECE_BYTES }
    let lanes = open
    if (lanes.length === 0) {
      await source.open(want)
      lanes = source.takeOpen(peerId)
    }
    await Promise.all(lanes.map((lane) => this.#begin(lane)))
    if (this.isOpen) this.#init.onOpen()
  }

  async #begin(lane: Lane): Promise<void> {
    if (!this.#isOver && (await this.#isOfUse(lane)) && !this.#isOver && lane.isOpen) this.#use(lane)
    else this.#giveBack(lane)
  }

  #use(lane: Lane): void {
    const { onPiece } = this.#init
    const user: LaneUser = { onPiece, onEnd: (end, missing) => this.#ended(lane, end, missing) }
    lane.join(user)
    this.#lanes.set(lane, user)
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

  #giveBack(lane: Lane, user?: LaneUser): void {
    this.#leave(this.#init.source.give(lane, user))
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
