/**
 * What a store has room for: of one publisher, as the protocol says (protocols/records/spec.md), and altogether, as this node says.
 *
 * In a closed network a publisher's member record is always taken, and the others have the room that is left: without it there would be
 * nothing of that publisher, and what it says too much would take away its membership.
 */
import { MEMBER_KIND, MEMBER_NAME } from '../../protocols/records/member.ts'
import {
  compareRank,
  PUBLISHER_RECORDS_MAX,
  PUBLISHER_SIZE_BYTES_MAX,
  type SignedRecord,
} from '../../protocols/records/record.ts'
import type { Row } from './shelf.ts'
import type { Shelves, Total } from './shelves.ts'

/**
 * Bounds of the whole store. In the open network anybody can make keys, so strangers can reach them: from then on records of publishers
 * that are new here are refused, and those of known ones that would make the store larger.
 */
const PUBLISHERS_MAX = 10_000
const TOTAL_SIZE_BYTES_MAX = 256 * 1024 * 1024
/** Kept free for this node's own member record: a chain of 2 KiB, and what surrounds it. */
const MEMBER_RECORD_BYTES = 4 * 1024

export class Bounds {
  readonly #shelves: Shelves
  readonly #own: Uint8Array
  readonly #isClosed: boolean

  constructor(shelves: Shelves, own: Uint8Array, isClosed: boolean) {
    this.#shelves = shelves
    this.#own = own
    this.#isClosed = isClosed
  }

  /** Why a record would not be kept although nothing is newer; `held` is what it would replace. */
  refusalOf(record: SignedRecord, held: Row | undefined): 'full' | 'bounds' | undefined {
    const { publisher } = record
    const size = record.bytes.byteLength
    const growth = size - (held?.size ?? 0)
    const { count, bytes } = this.#shelves.total(publisher)
    if (Buffer.compare(publisher, this.#own) !== 0) {
      if (count === 0 && this.#shelves.publisherCount >= PUBLISHERS_MAX) return 'full'
      if (growth > 0 && this.#shelves.totalBytes + growth > TOTAL_SIZE_BYTES_MAX) return 'full'
    }
    if (this.#isSpared(record) || fits(count + (held ? 0 : 1), bytes + growth)) return undefined
    const above = this.#shelves.above(publisher, record)
    const spared = this.#sparedOf(publisher)
    if (spared && compareRank(spared, record) < 0) {
      above.count += 1
      above.bytes += spared.size
    }
    return fits(above.count + 1, above.bytes + size) ? undefined : 'bounds'
  }

  /** What is to go next of what a publisher has; undefined when it fits. */
  surplusOf(publisher: Uint8Array): Row | undefined {
    const { count, bytes } = this.#shelves.total(publisher)
    if (fits(count, bytes)) return undefined
    return this.#shelves.lowest(publisher, this.#isClosed ? MEMBER : undefined)
  }

  /** What this node says already, if others would not keep the record beside it. */
  excessOf(record: SignedRecord, held: Row | undefined): Total | undefined {
    const total = this.#shelves.total(record.publisher)
    const growth = record.bytes.byteLength - (held?.size ?? 0)
    if (growth <= 0 || this.#isSpared(record)) return undefined
    const isReserved = this.#isClosed && this.#sparedOf(record.publisher) === undefined
    const count = total.count + (held ? 0 : 1) + (isReserved ? 1 : 0)
    const bytes = total.bytes + growth + (isReserved ? MEMBER_RECORD_BYTES : 0)
    return fits(count, bytes) ? undefined : total
  }

  #isSpared({ kind, name }: { kind: string; name: string }): boolean {
    return this.#isClosed && kind === MEMBER.kind && name === MEMBER.name
  }

  #sparedOf(publisher: Uint8Array): Row | undefined {
    return this.#isClosed ? this.#shelves.at({ publisher, ...MEMBER }) : undefined
  }
}

const MEMBER = { kind: MEMBER_KIND, name: MEMBER_NAME }

function fits(count: number, bytes: number): boolean {
  return count <= PUBLISHER_RECORDS_MAX && bytes <= PUBLISHER_SIZE_BYTES_MAX
}
