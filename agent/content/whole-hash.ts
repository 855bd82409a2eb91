/**
 * The hash of a whole blob, made while its pieces arrive in any order: of each piece when its turn has come. What came in turn is taken from
 * memory, the rest read back from the file. A thread does that where there is one, so that the main thread has nothing to do with bytes
 * that did not come by it.
 */
import { createHash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { PIECE_BYTES, pieceCount, rangeBytes } from '../../protocols/pieces/tree.ts'
import type { PieceList } from './content.ts'

/** What is read in one go, into memory that is used again. */
const READ_BACK_PIECES = 4
/** Pieces in memory that are hashed in a row, in about 2 ms: then others have their turn. */
const HASHED_MAX = 16
/** Of one order to a thread: 4 MiB, some 5 ms in which its lanes wait. */
const ORDERED_PIECES_MAX = 16

/** The file with the pieces, as far as they are here. */
export type HashedFile = {
  /** Of the list in use, which may be replaced. */
  shape(): PieceList
  has(index: number): boolean
  /** A piece that is still in memory. */
  peek(index: number): Uint8Array | undefined
  fill(bytes: Uint8Array, offset: number): Promise<void>
  /** The file does not have the piece after all. */
  lose(index: number): void
}

/** Hashes one file in a thread, from its beginning to its end. */
export type Hasher = {
  /** Takes the next bytes of the file. @returns whether that could be done. */
  update(offset: number, length: number): Promise<boolean>
  /** Of all that was taken; undefined when the thread is gone. */
  digest(): Promise<string | undefined>
  end(): void
}

export class WholeHash {
  readonly #file: HashedFile
  #hash = createHash('sha256')
  #makeHasher: (() => Hasher | undefined) | undefined
  #hasher: Hasher | undefined
  /** Pieces before it are in the hash. */
  #count = 0
  /** Changes when it begins anew. */
  #epoch = 0
  #running: Promise<void> | undefined
  #back: Uint8Array | undefined

  constructor(file: HashedFile) {
    this.#file = file
  }

  /** Resolves when nothing is being read for it. */
  get settled(): Promise<void> {
    return this.#running ?? Promise.resolve()
  }

  /** Leaves it to a thread from now on, as long as there is one. */
  useThread(make: () => Hasher | undefined): void {
    if (this.#makeHasher !== undefined) return
    this.#makeHasher = make
    this.restart()
    this.catchUp()
  }

  /** Takes a piece that is on its way to the file, if it is its turn. @returns whether it was. */
  take(index: number, bytes: Uint8Array): boolean {
    if (index !== this.#count || this.#running !== undefined || this.#makeHasher !== undefined) return false
    this.#hash.update(bytes)
    this.#count++
    return true
  }

  /** Pieces came into the file: begins to take those whose turn it is. */
  catchUp(): void {
    if (this.#running !== undefined || !this.#file.has(this.#count)) return
    this.#running = this.#catchUp().finally(() => {
      this.#running = undefined
    })
  }

  restart(): void {
    this.end()
    this.#hash = createHash('sha256')
    this.#count = 0
    this.#epoch++
  }

  /** Of all pieces, which are all there; undefined when one of them cannot be read, which is not there any more then. */
  async digest(signal: AbortSignal): Promise<string | undefined> {
    for (;;) {
      await this.#running
      while (this.#count < pieceCount(this.#file.shape().sizeBytes)) {
        signal.throwIfAborted()
        const index = this.#count
        if (!(await this.#next()) && !this.#file.has(index)) return undefined
      }
      const hasher = this.#thread()
      const digest = hasher === undefined ? this.#hash.digest('hex') : await hasher.digest()
      if (digest === undefined) this.#leaveThread()
      this.restart()
      if (digest !== undefined) return digest
    }
  }

  end(): void {
    this.#hasher?.end()
    this.#hasher = undefined
  }

  async #catchUp(): Promise<void> {
    const epoch = this.#epoch
    let taken = 0
    while (this.#epoch === epoch && this.#file.has(this.#count)) {
      const before = this.#count
      if (!(await this.#next())) return
      taken += this.#count - before
      if (taken < HASHED_MAX) continue
      taken = 0
      await setImmediate()
    }
  }

  /** Takes the next pieces. @returns whether they could be read. */
  async #next(): Promise<boolean> {
    const hasher = this.#thread()
    if (hasher !== undefined) return await this.#order(hasher)
    const [epoch, index] = [this.#epoch, this.#count]
    const bytes = this.#file.peek(index) ?? (await this.#readBack(index))
    if (this.#epoch !== epoch) return false
    if (bytes === undefined) {
      this.#file.lose(index)
      return false
    }
    this.#hash.update(bytes)
    this.#count += Math.ceil(bytes.byteLength / PIECE_BYTES)
    return true
  }

  async #order(hasher: Hasher): Promise<boolean> {
    const [epoch, from] = [this.#epoch, this.#count]
    const count = this.#ready(from, ORDERED_PIECES_MAX)
    const isDone = await hasher.update(from * PIECE_BYTES, rangeBytes(this.#file.shape().sizeBytes, from, count))
    if (this.#epoch !== epoch) return false
    // What it could not read, this thread cannot read either, and says which piece it is.
    if (isDone) this.#count += count
    else this.#leaveThread()
    return true
  }

  #thread(): Hasher | undefined {
    this.#hasher ??= this.#makeHasher?.()
    if (this.#hasher === undefined) this.#makeHasher = undefined
    return this.#hasher
  }

  #leaveThread(): void {
    this.#makeHasher = undefined
    this.restart()
  }

  /** The piece, and what is there of those behind it; until it is called again. Undefined when the piece cannot be read. */
  async #readBack(index: number): Promise<Uint8Array | undefined> {
    this.#back ??= Buffer.allocUnsafeSlow(READ_BACK_PIECES * PIECE_BYTES)
    for (const count of new Set([this.#ready(index, READ_BACK_PIECES), 1])) {
      const bytes = this.#back.subarray(0, rangeBytes(this.#file.shape().sizeBytes, index, count))
      try {
        await this.#file.fill(bytes, index * PIECE_BYTES)
        return bytes
      } catch {
        // Of several, another one may be what is missing.
      }
    }
    return undefined
  }

  /** How many pieces are there from this one on. */
  #ready(from: number, countMax: number): number {
    let count = 1
    while (count < countMax && this.#file.has(from + count)) count++
    return count
  }
}
