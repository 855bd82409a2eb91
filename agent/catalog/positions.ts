/**
 * Digests of what the catalog holds, by publisher and by bucket of publishers, so that two nodes see in one message whether they agree.
 * Kept in memory and made again when asked for after a change. The same set of records gives the same digests on every node.
 */
import { createHash } from 'node:crypto'
import { BUCKETS, DIGEST_BYTES, type PublisherDigest } from '../../protocols/records/exchange.ts'

type Entry = { publisher: Uint8Array; count: number; digest: Uint8Array | undefined }

export class Positions {
  readonly #liveIds: (publisher: Uint8Array) => Uint8Array[]
  readonly #buckets: Map<string, Entry>[] = Array.from({ length: BUCKETS }, () => new Map())
  readonly #digests: (Uint8Array | undefined)[] = Array.from({ length: BUCKETS })

  /** `liveIds` are the ids of a publisher's records that have not expired, in any order. */
  constructor(liveIds: (publisher: Uint8Array) => Uint8Array[]) {
    this.#liveIds = liveIds
  }

  /** To be called whenever a publisher's set of live records may have changed. */
  changed(publisher: Uint8Array): void {
    const bucket = publisher[0] ?? 0
    this.#digests[bucket] = undefined
    this.#buckets[bucket]?.set(nameOf(publisher), { publisher, count: 0, digest: undefined })
  }

  /** One digest for each value of the first byte of a publisher's key, concatenated. Zeros for an empty bucket. */
  bucketDigests(): Uint8Array {
    return Buffer.concat(Array.from({ length: BUCKETS }, (_, bucket) => this.#bucketDigest(bucket)))
  }

  /** The publishers of these buckets that have live records, sorted. */
  publishers(buckets: Iterable<number>): PublisherDigest[] {
    return [...new Set(buckets)].sort((a, b) => a - b).flatMap((bucket) => this.#bucket(bucket))
  }

  #bucketDigest(bucket: number): Uint8Array {
    const known = this.#digests[bucket]
    if (known) return known
    const list = this.#bucket(bucket)
    const digest =
      list.length === 0 ? Buffer.alloc(DIGEST_BYTES) : digestOf(list.flatMap((one) => [one.publisher, one.digest]))
    this.#digests[bucket] = digest
    return digest
  }

  #bucket(bucket: number): PublisherDigest[] {
    const entries = this.#buckets[bucket]
    if (!entries) return []
    const list: PublisherDigest[] = []
    for (const [name, entry] of entries) {
      if (!entry.digest) this.#count(entry)
      if (entry.count === 0) entries.delete(name)
      else if (entry.digest) list.push({ publisher: entry.publisher, count: entry.count, digest: entry.digest })
    }
    return list.sort((a, b) => Buffer.compare(a.publisher, b.publisher))
  }

  #count(entry: Entry): void {
    const ids = this.#liveIds(entry.publisher).sort((a, b) => Buffer.compare(a, b))
    entry.count = ids.length
    entry.digest = digestOf(ids)
  }
}

function digestOf(parts: Uint8Array[]): Uint8Array {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest().subarray(0, DIGEST_BYTES)
}

function nameOf(publisher: Uint8Array): string {
  return Buffer.from(publisher).toString('latin1')
}
