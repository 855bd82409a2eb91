/**
 * Which peers asked for which blob a short while ago, in which network: those who fetch the same thing at the same time are worth each
 * other's while, and whoever they ask tells them of one another. In memory, and bounded.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { ASKERS_MAX } from '../../protocols/pieces/exchange.ts'

/** Whoever fetches asks again well before. */
const ASKED_MS_MAX = 30_000
/** Blobs; the one that nobody asked for longest is forgotten. */
const BLOBS_MAX = 1_000

export class Askers {
  readonly #of = new Map<string, Map<string, number>>()
  readonly #now: () => number

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** The peer asks for the blob. @returns who else does, the latest first. */
  add(peerId: string, digest: Digest, network: string): string[] {
    const key = `${digest} ${network}`
    const now = this.#now()
    const all = this.#of.get(key) ?? new Map<string, number>()
    this.#of.delete(key)
    this.#of.set(key, all)
    for (const oldest of this.#of.keys()) {
      if (this.#of.size <= BLOBS_MAX) break
      this.#of.delete(oldest)
    }
    all.delete(peerId)
    const others = [...all].filter(([, askedMs]) => now - askedMs < ASKED_MS_MAX)
    all.clear()
    for (const [other, askedMs] of others.slice(-ASKERS_MAX)) all.set(other, askedMs)
    all.set(peerId, now)
    return others
      .slice(-ASKERS_MAX)
      .map(([other]) => other)
      .reverse()
  }
}
