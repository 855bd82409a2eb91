/**
 * Which store paths a node gives out of its Nix store, said compactly: bodies of records of kind `filter`. See spec.md beside this file.
 *
 * A part is a set that says yes to all that is in it and to one in 4,096 of what is not, in 14 bits a path: paths are spread over as many
 * buckets as there are paths, and 12 bits of each are kept. The same paths make the same bytes, so a part that did not change is not said
 * anew. What changed since is in one small record, exactly.
 */
import { z } from 'zod'
import { WireError } from '../error.ts'

export const FILTER_KIND = 'filter'
/** Name of the record that says what changed since the parts were said. */
export const CHANGES_NAME = 'changes'
/** Parts of one publisher; a power of two. */
export const PARTS_MAX = 64
/** 14 bits each: 56 KiB of a record's 64. */
export const PART_PATHS_MAX = 32_768
/** 6 bytes each, in one record; then the parts are said anew. */
export const CHANGES_MAX = 8_192

/** A path's key is so many first bits of its hash part: a number that JavaScript counts exactly. */
const KEY_DIGITS = 11
/** Of the key: the first 8 bits choose the part, 32 the bucket, and 12 are kept. */
const REST_BITS = 12
const REST = 2 ** REST_BITS
const BUCKET = 2 ** 32
/** What a change names a path by: the first 48 bits of its hash part. */
const PREFIX_BYTES = 6
const PREFIX_DIVISOR = 2 ** 4
/** A position is kept for each so many buckets: 0.02 bytes a path. */
const SAMPLE_BITS = 8
const SIGNER_LENGTH_MAX = 256
const NIX32_DIGITS = '0123456789abcdfghijklmnpqrsvwxyz'

const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array, 'not bytes')

/** Unknown fields are ignored: later versions add some. */
const partBody = z.object({
  v: z.int().min(1),
  part: z
    .int()
    .min(0)
    .max(PARTS_MAX - 1),
  parts: z.int().min(1).max(PARTS_MAX),
  paths: z.int().min(0).max(PART_PATHS_MAX),
  counts: bytes,
  rests: bytes,
})
const changesBody = z.object({
  v: z.int().min(1),
  signer: z.string().max(SIGNER_LENGTH_MAX),
  added: bytes,
  gone: bytes,
})
export type PartBody = z.infer<typeof partBody>
export type ChangesBody = z.infer<typeof changesBody>

/** What a filter knows a path by: the first 52 bits of its hash part (32 digits in base 32, the first the most significant). */
export function filterKey(hashPart: string): number {
  let value = 0
  // Eleven digits are 55 bits: above 2^53 a number is not exact, so the last one is split.
  for (let at = 0; at < KEY_DIGITS - 1; at++) value = value * 32 + Math.max(0, NIX32_DIGITS.indexOf(hashPart[at] ?? ''))
  return value * 4 + (Math.max(0, NIX32_DIGITS.indexOf(hashPart[KEY_DIGITS - 1] ?? '')) >> 3)
}

/** Its first 48 bits. */
export function prefixOfKey(key: number): number {
  return Math.floor(key / PREFIX_DIVISOR)
}

export function partName(part: number): string {
  return `part-${part}`
}

/** Into how many parts a store of so many paths is split, if a part is to have about so many. */
export function partsFor(paths: number, pathsEach: number): number {
  let parts = 1
  while (parts < PARTS_MAX && paths > parts * pathsEach) parts *= 2
  return parts
}

/** The part that a key is in. */
export function partOfKey(key: number, parts: number): number {
  return Math.floor(key / (2 ** 52 / parts))
}

/**
 * The set of these keys, all of which are in the part.
 *
 * @throws {RangeError} for more than PART_PATHS_MAX: the caller's bug.
 */
export function encodePart(part: number, parts: number, keys: readonly number[]): PartBody {
  const paths = keys.length
  if (paths > PART_PATHS_MAX) throw new RangeError(`${paths} paths in one part`)
  const entries = Uint32Array.from(keys, (key) => bucketOf(key, paths) * REST + (key % REST)).sort()
  const counts = new Uint8Array(Math.ceil((2 * paths) / 8))
  const rests = new Uint8Array(Math.ceil((REST_BITS * paths) / 8))
  for (const [at, entry] of entries.entries()) {
    // A one for each entry, behind the zeros that end the buckets before.
    const bit = at + Math.floor(entry / REST)
    counts[bit >> 3] = (counts[bit >> 3] ?? 0) | (0x80 >> (bit & 7))
    setRest(rests, at, entry % REST)
  }
  return { v: 1, part, parts, paths, counts, rests }
}

/** A part that was read. In memory it takes what it takes in its record, and a fiftieth more. */
export class FilterPart {
  readonly part: number
  readonly parts: number
  readonly paths: number
  readonly #counts: Uint8Array
  readonly #rests: Uint8Array
  /** Where each 256th bucket begins in the counts. */
  readonly #samples: Uint32Array

  /** Use `readPart`. */
  constructor({ part, parts, paths, counts, rests }: PartBody) {
    this.part = part
    this.parts = parts
    this.paths = paths
    // Copies: the originals are views of whole records.
    this.#counts = Uint8Array.from(counts)
    this.#rests = Uint8Array.from(rests)
    this.#samples = new Uint32Array(Math.ceil(paths / 2 ** SAMPLE_BITS))
    let zeros = 0
    for (let bit = 0; bit < 2 * paths; bit++) {
      if (isSet(counts, bit) || ++zeros % 2 ** SAMPLE_BITS !== 0 || zeros === paths) continue
      this.#samples[zeros >> SAMPLE_BITS] = bit + 1
    }
  }

  get memoryBytes(): number {
    return this.#counts.byteLength + this.#rests.byteLength + this.#samples.byteLength
  }

  /** Whether the path is in the set; one in 4,096 that is not seems to be. */
  has(key: number): boolean {
    if (this.paths === 0 || partOfKey(key, this.parts) !== this.part) return false
    const bucket = bucketOf(key, this.paths)
    const start = this.#startOf(bucket)
    let end = start
    while (isSet(this.#counts, end)) end++
    return this.#includes(start - bucket, end - bucket, key % REST)
  }

  /** Where a bucket's ones begin. */
  #startOf(bucket: number): number {
    let bit = this.#samples[bucket >> SAMPLE_BITS] ?? 0
    let left = bucket & (2 ** SAMPLE_BITS - 1)
    while (left > 0) {
      const zeros = (bit & 7) === 0 ? (ZEROS[this.#counts[bit >> 3] ?? 0] ?? 0) : 8
      if (zeros < left && (bit & 7) === 0) {
        left -= zeros
        bit += 8
      } else if (!isSet(this.#counts, bit++)) left--
    }
    return bit
  }

  /** Whether one of the entries from `low` to `high`, which are sorted, is this. */
  #includes(low: number, high: number, rest: number): boolean {
    let [from, to] = [low, high]
    while (from < to) {
      const middle = (from + to) >> 1
      const value = restAt(this.#rests, middle)
      if (value === rest) return true
      if (value < rest) from = middle + 1
      else to = middle
    }
    return false
  }
}

/** Reads a part, in its one encoding. @throws {WireError} `malformed` */
export function readPart(body: unknown): FilterPart {
  const { success, data } = partBody.safeParse(body)
  if (!success) throw new WireError('malformed', 'not a part of a filter')
  const { part, parts, paths, counts, rests } = data
  const isPart = (parts & (parts - 1)) === 0 && part < parts
  const areBytes =
    counts.byteLength === Math.ceil((2 * paths) / 8) && rests.byteLength === Math.ceil((REST_BITS * paths) / 8)
  if (!isPart || !areBytes || !isSound(data)) throw new WireError('malformed', 'a part that contradicts itself')
  return new FilterPart(data)
}

/** What changed: prefixes of paths that came and are in no part, and of those that are in one and went. Sorted, each once. */
export function encodeChanges(signer: string, added: Iterable<number>, gone: Iterable<number>): ChangesBody {
  return { v: 1, signer, added: encodePrefixes(added), gone: encodePrefixes(gone) }
}

/** @throws {WireError} `malformed` */
export function readChanges(body: unknown): { signer: string; added: Prefixes; gone: Prefixes } {
  const { success, data } = changesBody.safeParse(body)
  if (!success) throw new WireError('malformed', 'not the changes of a filter')
  const { signer, added, gone } = data
  const areFew = added.byteLength + gone.byteLength <= PREFIX_BYTES * CHANGES_MAX
  if (!areFew || !arePrefixes(added) || !arePrefixes(gone)) throw new WireError('malformed', 'not lists of prefixes')
  return { signer, added: new Prefixes(added), gone: new Prefixes(gone) }
}

/** A sorted list of prefixes. */
export class Prefixes {
  readonly #bytes: Buffer

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes)
  }

  get memoryBytes(): number {
    return this.#bytes.byteLength
  }

  has(prefix: number): boolean {
    let low = 0
    let high = this.#bytes.byteLength / PREFIX_BYTES
    while (low < high) {
      const middle = (low + high) >> 1
      const value = this.#bytes.readUIntBE(middle * PREFIX_BYTES, PREFIX_BYTES)
      if (value === prefix) return true
      if (value < prefix) low = middle + 1
      else high = middle
    }
    return false
  }
}

/** How many zeros a byte has. */
const ZEROS = Uint8Array.from({ length: 256 }, (_, value) => {
  let zeros = 8
  for (let rest = value; rest > 0; rest >>= 1) zeros -= rest & 1
  return zeros
})

/** In which of `paths` buckets a key is. */
function bucketOf(key: number, paths: number): number {
  return Math.floor(((Math.floor(key / REST) % BUCKET) * paths) / BUCKET)
}

function isSet(bits: Uint8Array, at: number): boolean {
  return ((bits[at >> 3] ?? 0) & (0x80 >> (at & 7))) !== 0
}

/** Two of them are three bytes. */
function restAt(rests: Uint8Array, at: number): number {
  const byte = (at * 3) >> 1
  const [first = 0, second = 0] = [rests[byte], rests[byte + 1]]
  return (at & 1) === 0 ? (first << 4) | (second >> 4) : ((first & 15) << 8) | second
}

function setRest(rests: Uint8Array, at: number, rest: number): void {
  const byte = (at * 3) >> 1
  if ((at & 1) === 0) {
    rests[byte] = rest >> 4
    rests[byte + 1] = (rest & 15) << 4
  } else {
    rests[byte] = (rests[byte] ?? 0) | (rest >> 8)
    rests[byte + 1] = rest & 255
  }
}

/** Whether there are as many entries as paths, in as many buckets, sorted within each, and nothing behind them. */
function isSound({ paths, counts, rests }: PartBody): boolean {
  let entries = 0
  let before = -1
  for (let bit = 0; bit < 2 * paths; bit++) {
    if (!isSet(counts, bit)) {
      before = -1
      continue
    }
    if (entries === paths) return false
    const rest = restAt(rests, entries++)
    if (rest < before) return false
    before = rest
  }
  const isEnded = paths === 0 || !isSet(counts, 2 * paths - 1)
  const padding = counts.byteLength * 8 - 2 * paths
  const isClean =
    ((counts.at(-1) ?? 0) & (2 ** padding - 1)) === 0 && (paths % 2 === 0 || ((rests.at(-1) ?? 0) & 15) === 0)
  return entries === paths && isEnded && isClean
}

function encodePrefixes(prefixes: Iterable<number>): Uint8Array {
  const sorted = Float64Array.from(new Set(prefixes)).sort()
  const list = Buffer.alloc(sorted.length * PREFIX_BYTES)
  for (const [at, prefix] of sorted.entries()) list.writeUIntBE(prefix, at * PREFIX_BYTES, PREFIX_BYTES)
  return list
}

function arePrefixes(list: Uint8Array): boolean {
  if (list.byteLength % PREFIX_BYTES !== 0) return false
  for (let at = PREFIX_BYTES; at < list.byteLength; at += PREFIX_BYTES)
    if (Buffer.compare(list.subarray(at - PREFIX_BYTES, at), list.subarray(at, at + PREFIX_BYTES)) >= 0) return false
  return true
}
