/**
 * Which artifacts may answer for a store path: the prefixes of all paths of all Nix artifacts, in memory. Most questions are about paths
 * that nobody here has, and are answered by one bit.
 */
import { PATH_PREFIX_BYTES } from '../../protocols/artifact/artifact.ts'

/** One bit for each value of a prefix's first bits: 1 MiB, of which a million paths set a ninth. */
const FILTER_BITS = 23
const FILTER_DIVISOR = 2 ** (8 * PATH_PREFIX_BYTES - FILTER_BITS)

export class PathIndex<Artifact> {
  readonly #lists = new Map<string, { artifact: Artifact; prefixes: Buffer }>()
  readonly #filter = new Uint8Array(2 ** (FILTER_BITS - 3))
  /** Prefixes that are listed, and prefixes whose bits are still set although they are not. */
  #listed = 0
  #stale = 0

  /** `prefixes` as in an artifact record: sorted, concatenated. Replaces what `key` had. */
  set(key: string, artifact: Artifact, prefixes: Uint8Array): void {
    this.delete(key)
    // A copy: the original is a view of a whole record.
    const copy = Buffer.from(prefixes)
    this.#lists.set(key, { artifact, prefixes: copy })
    this.#listed += copy.byteLength / PATH_PREFIX_BYTES
    this.#setBits(copy)
  }

  delete(key: string): void {
    const list = this.#lists.get(key)
    if (!list) return
    this.#lists.delete(key)
    const count = list.prefixes.byteLength / PATH_PREFIX_BYTES
    this.#listed -= count
    this.#stale += count
    if (this.#stale <= this.#listed) return
    this.#stale = 0
    this.#filter.fill(0)
    for (const { prefixes } of this.#lists.values()) this.#setBits(prefixes)
  }

  /** The artifacts that list the prefix. */
  find(prefix: Uint8Array): Artifact[] {
    const wanted = Buffer.from(prefix).readUIntBE(0, PATH_PREFIX_BYTES)
    const bit = Math.floor(wanted / FILTER_DIVISOR)
    if (((this.#filter[bit >> 3] ?? 0) & (1 << (bit & 7))) === 0) return []
    return [...this.#lists.values()]
      .filter(({ prefixes }) => includes(prefixes, wanted))
      .map(({ artifact }) => artifact)
  }

  #setBits(prefixes: Buffer): void {
    for (let at = 0; at < prefixes.byteLength; at += PATH_PREFIX_BYTES) {
      const bit = Math.floor(prefixes.readUIntBE(at, PATH_PREFIX_BYTES) / FILTER_DIVISOR)
      this.#filter[bit >> 3] = (this.#filter[bit >> 3] ?? 0) | (1 << (bit & 7))
    }
  }
}

function includes(prefixes: Buffer, wanted: number): boolean {
  let low = 0
  let high = prefixes.byteLength / PATH_PREFIX_BYTES
  while (low < high) {
    const middle = (low + high) >> 1
    const value = prefixes.readUIntBE(middle * PATH_PREFIX_BYTES, PATH_PREFIX_BYTES)
    if (value === wanted) return true
    if (value < wanted) low = middle + 1
    else high = middle
  }
  return false
}
