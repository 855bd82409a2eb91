/**
 * Layouts of NARs of store paths, kept in memory while they are used, bounded: with one any range of a NAR is read from the store's own
 * files. The least recently used go first.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { layoutNar, type NarLayout } from '../../protocols/nar/write.ts'

/**
 * A layout takes a few hundred bytes a file: this holds those of a large closure that several peers fetch at once. What is published and the
 * store that is given out have one each.
 */
const LAYOUT_BYTES_MAX = 32 * 1024 * 1024

export class NarLayouts {
  /** By digest, the one used last at the end. */
  readonly #layouts = new Map<Digest, { made: Promise<NarLayout>; memoryBytes: number }>()
  #bytes = 0

  /** Of the path, whose NAR has the digest as far as is known. */
  async of(digest: Digest, path: string): Promise<NarLayout> {
    const known = this.#layouts.get(digest)
    const entry = known ?? { made: layoutNar(path), memoryBytes: 0 }
    this.#layouts.delete(digest)
    this.#layouts.set(digest, entry)
    const layout = await entry.made
    if (!known && this.#layouts.get(digest) === entry) this.#account(entry, layout.memoryBytes)
    return layout
  }

  forget(digest: Digest): void {
    this.#bytes -= this.#layouts.get(digest)?.memoryBytes ?? 0
    this.#layouts.delete(digest)
  }

  clear(): void {
    this.#layouts.clear()
    this.#bytes = 0
  }

  /** Counts a layout, and lets go of those unused for longest. */
  #account(entry: { memoryBytes: number }, memoryBytes: number): void {
    entry.memoryBytes = memoryBytes
    this.#bytes += memoryBytes
    for (const [oldest, other] of this.#layouts) {
      if (this.#bytes <= LAYOUT_BYTES_MAX) break
      if (other !== entry) this.forget(oldest)
    }
  }
}
