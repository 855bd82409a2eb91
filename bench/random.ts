/**
 * Random numbers that are the same for the same seed, so that a run can be repeated. Bytes come from AES in counter mode: fast enough for
 * files of a gigabyte, and nothing that a disk or a network could compress.
 */
import { createCipheriv, createHash } from 'node:crypto'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'

const POOL_BYTES = 64 * 1024
/** Of zeros that are encrypted at a time. */
const BLOCK_BYTES = 1024 * 1024
/** Of a file that are written at a time. */
const WRITE_BYTES = 4 * 1024 * 1024

export class Random {
  readonly #cipher
  #pool = Buffer.alloc(0)
  #used = 0

  constructor(seed: number) {
    const key = Buffer.alloc(16)
    key.writeDoubleLE(seed)
    this.#cipher = createCipheriv('aes-128-ctr', key, Buffer.alloc(16))
  }

  bytes(count: number): Buffer {
    if (count <= POOL_BYTES / 16) return Buffer.from(this.#take(count))
    const bytes = Buffer.allocUnsafe(count)
    const zeros = Buffer.alloc(Math.min(count, BLOCK_BYTES))
    for (let at = 0; at < count; at += zeros.byteLength)
      this.#cipher.update(zeros.subarray(0, count - at)).copy(bytes, at)
    return bytes
  }

  /** A whole number from 0 to below `limit`, which is at most 2^32. */
  below(limit: number): number {
    return Math.floor((this.#take(4).readUInt32LE() / 2 ** 32) * limit)
  }

  /** True once in `times`. */
  oneIn(times: number): boolean {
    return this.below(times) === 0
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T
  }

  #take(count: number): Buffer {
    if (this.#used + count > this.#pool.byteLength) {
      this.#pool = this.#cipher.update(Buffer.alloc(POOL_BYTES))
      this.#used = 0
    }
    const taken = this.#pool.subarray(this.#used, this.#used + count)
    this.#used += count
    return taken
  }
}

/** Writes a file that nothing on its way can compress. @returns its SHA-256. */
export async function writeRandomFile(path: string, sizeBytes: number, seed: number): Promise<string> {
  const random = new Random(seed)
  const hash = createHash('sha256')
  const out = createWriteStream(path)
  for (let at = 0; at < sizeBytes; at += WRITE_BYTES) {
    const block = random.bytes(Math.min(WRITE_BYTES, sizeBytes - at))
    hash.update(block)
    if (!out.write(block)) await once(out, 'drain')
  }
  out.end()
  await once(out, 'close')
  return hash.digest('hex')
}
