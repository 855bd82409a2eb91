/**
 * Peers who give out their Nix stores, as the local Nix needs them: who may have a path, by the filters in their records, and what the first of
 * them says that is to be believed. Nobody is asked about what no filter has.
 */
import type { Holder } from '../catalog/filters.ts'
import { AgentError } from '../error.ts'
import type { Teller } from './path-faults.ts'
import type { StorePath, StorePaths } from './store-paths.ts'

/** Asked at the same time about one path: a filter may be wrong, and a peer slow. */
const ASKED_AT_ONCE = 2
/** Of more the first will do. */
const HOLDERS_MAX = 64

type Init = {
  /** Of all networks; in memory. */
  holders: (hashPart: string) => readonly Holder[]
  paths: Pick<StorePaths, 'ask' | 'isShunned'>
  isConnected: (peerId: string) => boolean
  /** Whether a cache key, `name:base64`, is trusted. */
  isTrusted: (signer: string) => boolean
}

export class StorePeers {
  readonly #init: Init

  constructor(init: Init) {
    this.#init = init
  }

  /** Who may have the path, the likeliest first to be believed and to be quick. Who was silent a moment ago is left out. */
  holders(hashPart: string): Holder[] {
    const { holders, paths, isConnected, isTrusted } = this.#init
    const found = holders(hashPart).filter(({ peerId, network }) => !paths.isShunned(peerId, network))
    if (found.length < 2) return [...found]
    const rank = ({ peerId, signer }: Holder) => (isConnected(peerId) ? 0 : 2) + (isTrusted(signer) ? 0 : 1)
    const ranked = found.map((holder) => ({ holder, rank: rank(holder) })).sort((one, other) => one.rank - other.rank)
    return ranked.map(({ holder }) => holder).slice(0, HOLDERS_MAX)
  }

  /**
   * The first thing said of the path that `judge` makes something of.
   *
   * @throws {AgentError} `not-found` when nobody says any such thing by the time that the signal fires
   */
  async find<T>(
    hashPart: string,
    judge: (teller: Teller, said: StorePath) => T | undefined,
    signal: AbortSignal,
  ): Promise<T> {
    const waiting = this.holders(hashPart)
    const askOn = async (): Promise<T> => {
      for (let next = waiting.shift(); next !== undefined && !signal.aborted; next = waiting.shift()) {
        const { peerId, network, signer } = next
        const said = await this.#init.paths.ask(peerId, network, hashPart, signal).catch(() => undefined)
        const made = said && judge({ peerId, network, signer, about: 'store' }, said)
        if (made !== undefined) return made
      }
      throw new AgentError('not-found', 'not in any store')
    }
    return await Promise.any(Array.from({ length: ASKED_AT_ONCE }, askOn))
  }
}
