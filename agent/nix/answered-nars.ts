/**
 * NARs whose narinfos were answered: what Nix asks for next is among them; and which of them came just now. Bounded; the oldest are
 * forgotten, and found anew when they are asked for all the same.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'

const ANSWERED_MAX = 20_000
/** What was verified on arrival so long ago is most likely still in memory as it was: to read it all again is of no use yet. */
const FRESH_MS = 5 * 60_000
const FRESH_MAX = 20_000

/** `network` is that of the peer who was believed; undefined for a cache upstream. */
export type Answered = { path: string; sizeBytes: number; hashPart: string; network: string | undefined }
/** `moreBytes` is how much of others is to be fetched after it. */
export type Wanted = Answered & { moreBytes?: number }

export class AnsweredNars {
  /** The one answered for last at the end. */
  readonly #all = new Map<Digest, Answered>()
  /** When they came, and were right; the last at the end. */
  readonly #cameMs = new Map<Digest, number>()
  readonly #now: () => number

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  get(digest: Digest): Answered | undefined {
    return this.#all.get(digest)
  }

  set(digest: Digest, answered: Answered): void {
    this.#all.delete(digest)
    this.#all.set(digest, answered)
    if (this.#all.size <= ANSWERED_MAX) return
    for (const oldest of this.#all.keys()) {
      this.#all.delete(oldest)
      break
    }
  }

  /** It was brought here just now, and verified. */
  came(digest: Digest): void {
    this.#cameMs.delete(digest)
    this.#cameMs.set(digest, this.#now())
    for (const [oldest, atMs] of this.#cameMs) {
      if (this.#cameMs.size <= FRESH_MAX && this.#now() - atMs < FRESH_MS) return
      this.#cameMs.delete(oldest)
    }
  }

  isFresh(digest: Digest): boolean {
    return this.#now() - (this.#cameMs.get(digest) ?? Number.NEGATIVE_INFINITY) < FRESH_MS
  }
}
