/**
 * Which piece list a blob is fetched by, and what came of it: lists are stated by sources, taken into use one at a time, and judged by the
 * hash of the whole. What two lists have in common is kept when one takes the place of the other.
 */

import { WireError } from '../../protocols/error.ts'
import type { PieceHashes } from '../../protocols/pieces/exchange.ts'
import { AgentError } from '../error.ts'
import type { Fetching } from './blob-places.ts'
import type { Blobs } from './blobs.ts'
import type { Source } from './candidates.ts'
import { Claims, isSameList, type Liars } from './claims.ts'
import { PartialBlob } from './partial-blob.ts'
import type { SignedList, Stated } from './statements.ts'
import { Supply } from './supply.ts'

/** A disk that loses what was just written to it is not to be argued with. */
const HOLES_MAX = 3
const FALSE_LIST = 'it stated piece hashes that are not those of the blob'

export type FillingInit = {
  fetching: Fetching
  /** This node's name among those that fetch the blob. */
  self: string
  blobs: Blobs
  /** Another list is in use now. */
  onSupply: (supply: Supply) => void
  onFault: (peerId: string, reason: string) => void
  /** A list that turned out to be false, as somebody signed it. */
  onLie: (proof: SignedList) => void
  signal: AbortSignal
}

export class Filling {
  readonly #init: FillingInit
  readonly #claims = new Claims()
  #partial: PartialBlob | undefined
  #supply: Supply | undefined
  #holes = 0
  #settling: Promise<unknown> = Promise.resolve()

  constructor(init: FillingInit) {
    this.#init = init
  }

  /** What is here of the blob; undefined until a list was taken. */
  get partial(): PartialBlob | undefined {
    return this.#partial
  }

  /** What comes by the list in use; undefined while there is none. */
  get supply(): Supply | undefined {
    return this.#supply
  }

  /**
   * Takes the list into use, unless another one is and peers vouch for it. One call after the other, since each changes what the next one
   * finds.
   *
   * @returns undefined when the source has to wait until the list in use fails.
   * @throws {WireError} when the list is known to be false.
   */
  settle(stated: Stated, source: Source): Promise<Supply | undefined> {
    const settled = this.#settling.then(() => this.#settle(stated, source))
    this.#settling = settled.catch(() => undefined)
    return settled
  }

  /** A source says anew what it has: it may vouch for its list by now. */
  restated(now: PieceHashes, peerId: string): void {
    this.#claims.add(now, peerId, now.pieces !== undefined)
  }

  /**
   * All pieces are there: makes a blob of them, or finds out what is wrong: a list, and then whoever stated it is told of.
   *
   * @throws {AgentError} `corrupt` when the disk loses what is written to it.
   */
  async conclude(supply: Supply): Promise<'whole' | 'wrong' | 'hole'> {
    const verdict = await supply.partial.finish(this.#init.signal)
    if (verdict === 'hole') {
      if (++this.#holes >= HOLES_MAX) throw lossy()
      supply.rewind()
    }
    if (verdict === 'whole') this.#blame(this.#claims.confirm(supply.list), FALSE_LIST)
    if (verdict === 'wrong') {
      this.#blame(this.#claims.refute(supply.list), 'its pieces do not make up the blob')
      supply.end()
      this.#supply = undefined
    }
    return verdict
  }

  #blame({ peerIds, proofs }: Liars, reason: string): void {
    for (const peerId of peerIds) this.#init.onFault(peerId, reason)
    for (const proof of proofs) this.#init.onLie(proof)
  }

  async #settle({ list, pieces, signed }: Stated, { peerId, isLastResort }: Source): Promise<Supply | undefined> {
    const { fetching, self, blobs, onSupply, signal } = this.#init
    // Who has only a part of the blob passes on what he was told.
    const isHearsay = pieces !== undefined
    if (this.#claims.isFalse(list) && signed) this.#blame({ peerIds: [signed.peerId], proofs: [signed] }, FALSE_LIST)
    if (this.#claims.isFalse(list)) throw new WireError(isHearsay ? 'absent' : 'mismatch', FALSE_LIST)
    this.#claims.add(list, peerId, isHearsay, signed)
    const before = this.#supply
    if (before && isSameList(before.list, list)) return before
    const isBetter = !isHearsay && (before === undefined || !this.#claims.isVouchedFor(before.list))
    if (!isLastResort && !isBetter) return undefined
    before?.end()
    if (this.#partial) this.#partial.useList(list)
    else this.#partial = await PartialBlob.open(blobs, fetching, list, signal)
    this.#partial.signed = signed?.bytes
    this.#supply = new Supply(this.#partial, self)
    onSupply(this.#supply)
    return this.#supply
  }
}

function lossy(): AgentError {
  return new AgentError('corrupt', 'the disk does not keep what is written to it', {
    next: 'Check the disk of the state directory.',
  })
}
