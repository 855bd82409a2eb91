/**
 * The statements of a network that members compare: by ids in 256 buckets, with a digest of each (protocols/membership/spec.md,
 * "Statements").
 */
import { createHash } from 'node:crypto'
import {
  IDS_PAGE_MAX,
  STATEMENT_BUCKETS,
  STATEMENT_DIGEST_BYTES,
  type Stated,
} from '../../protocols/membership/exchange.ts'
import { hexOf } from '../../protocols/membership/statement.ts'

/** A statement with its id. */
export type Held = Stated & { id: Uint8Array }

export class StatementIndex {
  /** By id. */
  readonly #all = new Map<string, Stated>()
  /** Of all of their bytes: what is offered again need not be verified again. */
  readonly #hashes = new Set<string>()
  /** Ids of each bucket; in order once they were looked at. */
  readonly #buckets: Uint8Array[][] = Array.from({ length: STATEMENT_BUCKETS }, () => [])
  /** Those that are in order have a digest. */
  readonly #digests: (Uint8Array | undefined)[] = []

  /** Takes over those that are not here yet, and answers them. */
  update(statements: Iterable<Held>): Stated[] {
    const fresh: Stated[] = []
    for (const { id, kind, bytes } of statements) {
      const name = hexOf(id)
      if (this.#all.has(name)) continue
      const one = { kind, bytes }
      this.#all.set(name, one)
      this.#hashes.add(hashOf(bytes))
      const bucket = id[0] ?? 0
      this.#buckets[bucket]?.push(id)
      this.#digests[bucket] = undefined
      fresh.push(one)
    }
    return fresh
  }

  has(id: Uint8Array): boolean {
    return this.#all.has(hexOf(id))
  }

  /** Whether exactly these bytes are here. */
  holds(bytes: Uint8Array): boolean {
    return this.#hashes.has(hashOf(bytes))
  }

  get(id: Uint8Array): Stated | undefined {
    return this.#all.get(hexOf(id))
  }

  /** Of all buckets, one behind the other. */
  digests(): Uint8Array {
    return Buffer.concat(this.#buckets.map((_, bucket) => this.#digestOf(bucket)))
  }

  /** Ids in these buckets, which are in order themselves, above `after`: the first IDS_PAGE_MAX of them. */
  ids(buckets: Uint8Array, after: Uint8Array | undefined): Uint8Array[] {
    const found: Uint8Array[] = []
    for (const bucket of buckets) {
      if (after !== undefined && bucket < (after[0] ?? 0)) continue
      for (const id of this.#ordered(bucket)) {
        if (after !== undefined && Buffer.compare(id, after) <= 0) continue
        if (found.length >= IDS_PAGE_MAX) return found
        found.push(id)
      }
    }
    return found
  }

  #ordered(bucket: number): readonly Uint8Array[] {
    this.#digestOf(bucket)
    return this.#buckets[bucket] ?? []
  }

  #digestOf(bucket: number): Uint8Array {
    const known = this.#digests[bucket]
    if (known !== undefined) return known
    const hash = createHash('sha256')
    for (const id of this.#buckets[bucket]?.sort((a, b) => Buffer.compare(a, b)) ?? []) hash.update(id)
    const digest = hash.digest().subarray(0, STATEMENT_DIGEST_BYTES)
    this.#digests[bucket] = digest
    return digest
  }
}

function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('base64')
}
