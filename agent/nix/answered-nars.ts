/**
 * NARs whose narinfos were answered: what Nix asks for next is among them. Bounded; the oldest are forgotten, and found anew when they are asked
 * for all the same.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'

const ANSWERED_MAX = 20_000

/** `network` is that of the peer who was believed; undefined for a cache upstream. */
export type Answered = { path: string; sizeBytes: number; hashPart: string; network: string | undefined }

export class AnsweredNars {
  /** The one answered for last at the end. */
  readonly #all = new Map<Digest, Answered>()

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
}
