/**
 * A transfer without an end: takes one blob of an agent over and over, slowly, so that it is in the middle of something whenever it is
 * looked at. It keeps to none of an agent's rules, and notes what it was given.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { reasonOf } from '../../agent/error.ts'
import { Frames } from '../../protocols/frame.ts'
import { GET_PIECES_MAX, PIECES_PROTOCOL, PieceAsker } from '../../protocols/pieces/exchange.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import type { Attacker } from './attacker.ts'

/** Of what is pulled: one request's worth of pieces at least. */
export const PULLED_BYTES = 2 * GET_PIECES_MAX * PIECE_BYTES
const READ_BYTES = 128 * 1024
/** Between two reads: some 10 MB/s, and a request takes half a second. */
const PAUSE_MS = 12
/** What gives nothing for so long has ended as well. */
const QUIET_MS_MAX = 30_000

export class Puller {
  /** Resolves with the reason when there is no more. */
  readonly ended: Promise<string>
  bytes = 0
  /** When the last request was sent that was begun to be answered with content. */
  lastServedAskedMs = 0

  constructor(from: Attacker, address: string, { digest, network }: { digest: Uint8Array; network: Uint8Array }) {
    this.ended = this.#run(from, address, digest, network).catch(reasonOf)
  }

  async #run(from: Attacker, address: string, digest: Uint8Array, network: Uint8Array): Promise<never> {
    const asker = new PieceAsker(new Frames(await from.open(address, PIECES_PROTOCOL)), network)
    const target = new Uint8Array(READ_BYTES)
    for (let nth = 0; ; nth++) {
      const askedMs = Date.now()
      const signal = AbortSignal.timeout(QUIET_MS_MAX)
      await asker.askGet(digest, (nth % 2) * GET_PIECES_MAX, GET_PIECES_MAX, signal)
      const lengthBytes = await asker.readGet(signal)
      this.lastServedAskedMs = askedMs
      for (let at = 0; at < lengthBytes; at += READ_BYTES) {
        await asker.readInto(target.subarray(0, Math.min(READ_BYTES, lengthBytes - at)), signal)
        this.bytes += READ_BYTES
        await delay(PAUSE_MS)
      }
    }
  }
}
