/**
 * A blob while it is being fetched: a file with holes, the piece list that it is fetched by, and which pieces are there.
 *
 * It survives kill -9 and power cuts, since nothing is written down that the file does not say by itself: what an earlier run left is
 * read and held against the list. A piece list is itself only what some peer said: the file becomes a blob when the hash of the whole
 * is right, and is worth nothing when it is not.
 */
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { isPiece, PIECE_BYTES, pieceBytes, pieceCount, pieceHash } from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import { diskError } from '../state/disk.ts'
import type { Blobs, Fetching } from './blobs.ts'
import type { PieceList } from './piece-lists.ts'

export class PartialBlob {
  readonly digest: Digest
  readonly network: string
  readonly #blobs: Blobs
  readonly #file: FileHandle
  #list: PieceList
  /** One byte a piece: 1 when it is in the file and was held against the list. */
  #have: Uint8Array
  #doneBytes = 0
  /** Hash of the pieces before #hashedCount, which run ahead of nothing: pieces that come out of order are read back for it. */
  #whole = createHash('sha256')
  #hashedCount = 0
  #generation = 0
  #users = 1

  /** Takes the room, opens or makes the file, and checks what an earlier run left in it. */
  static async open(blobs: Blobs, fetching: Fetching, list: PieceList, signal: AbortSignal): Promise<PartialBlob> {
    blobs.beginPartial(fetching.digest)
    let file: FileHandle | undefined
    try {
      blobs.keepPartial(fetching, list.sizeBytes)
      file = await open(blobs.partialPathOf(fetching), constants.O_RDWR | constants.O_CREAT, 0o600)
      const partial = new PartialBlob(blobs, fetching, list, file)
      await partial.#resume(signal)
      return partial
    } catch (error) {
      await file?.close()
      blobs.endPartial(fetching.digest)
      throw ours(error, blobs.partialPathOf(fetching))
    }
  }

  private constructor(blobs: Blobs, { digest, network }: Fetching, list: PieceList, file: FileHandle) {
    this.digest = digest
    this.network = network
    this.#blobs = blobs
    this.#list = list
    this.#file = file
    this.#have = new Uint8Array(pieceCount(list.sizeBytes))
  }

  get list(): PieceList {
    return this.#list
  }

  get doneBytes(): number {
    return this.#doneBytes
  }

  /** Changes when pieces that were there turn out to be wrong: whoever read them must begin again. */
  get generation(): number {
    return this.#generation
  }

  has(index: number): boolean {
    return this.#have[index] === 1
  }

  get isFull(): boolean {
    return this.#doneBytes === this.#list.sizeBytes
  }

  /** The next run of missing pieces at or after `from`, at most `countMax` long; undefined when there is none. */
  nextMissing(from: number, countMax: number): { from: number; count: number } | undefined {
    const start = this.#have.indexOf(0, from)
    if (start === -1) return undefined
    let end = start + 1
    while (end < this.#have.length && end < start + countMax && this.#have[end] === 0) end++
    return { from: start, count: end - start }
  }

  /** Stores a piece that the caller held against the list. `bytes` may be used again when it resolves. */
  async write(index: number, bytes: Uint8Array): Promise<void> {
    if (index === this.#hashedCount) {
      this.#whole.update(bytes)
      this.#hashedCount++
    }
    try {
      for (let at = 0; at < bytes.byteLength; ) {
        const { bytesWritten } = await this.#file.write(bytes, at, bytes.byteLength - at, index * PIECE_BYTES + at)
        at += bytesWritten
      }
      this.#mark(index, bytes.byteLength)
    } catch (error) {
      throw this.#ours(error)
    }
  }

  /** Bytes of pieces that are there. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = Buffer.allocUnsafeSlow(length)
    for (let at = 0; at < length; ) {
      const { bytesRead } = await this.#file.read(bytes, at, length - at, offset + at)
      if (bytesRead === 0) throw new Error('a piece that was written is not in the file')
      at += bytesRead
    }
    return bytes
  }

  /** Goes on by another piece list: what the two have in common stays. */
  useList(list: PieceList): void {
    const before = this.#list
    const had = this.#have
    if (list.sizeBytes !== before.sizeBytes) this.#generation++
    this.#list = list
    this.#have = new Uint8Array(pieceCount(list.sizeBytes))
    this.#doneBytes = 0
    for (const index of had.keys()) {
      if (had[index] === 1 && isSame(index, before, list)) this.#mark(index, pieceBytes(list.sizeBytes, index))
      else if (had[index] === 1) this.#generation++
    }
    this.#whole = createHash('sha256')
    this.#hashedCount = 0
    this.#blobs.keepPartial(this, list.sizeBytes)
  }

  /**
   * All pieces are there: checks the whole hash, and makes it a blob. `wrong` when the hash is another, so that the piece list is a lie:
   * every piece is dropped then. `hole` when the disk did not keep a piece.
   */
  async finish(signal: AbortSignal): Promise<'whole' | 'wrong' | 'hole'> {
    try {
      while (this.#hashedCount < this.#have.length) {
        signal.throwIfAborted()
        if (!(await this.#readBack(this.#hashedCount))) return 'hole'
      }
      if (this.#whole.digest('hex') !== this.digest) {
        this.#dropAll()
        return 'wrong'
      }
      // A longer list may have been tried before this one.
      await this.#file.truncate(this.#list.sizeBytes)
      await this.#file.datasync()
      this.#blobs.lists.put(this.digest, this.#list.sizeBytes, this.#list.hashes)
      const blob = { digest: this.digest, sizeBytes: this.#list.sizeBytes }
      await this.#blobs.adopt(this.#blobs.partialPathOf(this), blob, { network: this.network })
      return 'whole'
    } catch (error) {
      throw this.#ours(error)
    }
  }

  /** Ends the fetching, for now: what is there stays for the next time. */
  async leave(): Promise<void> {
    try {
      if (this.#doneBytes === 0 && !this.#blobs.has(this.digest)) this.#blobs.dropPartial(this)
    } finally {
      this.#blobs.endPartial(this.digest)
      await this.release()
    }
  }

  /** A reader keeps the file open beyond the end of the fetching. */
  retain(): void {
    this.#users++
  }

  async release(): Promise<void> {
    if (--this.#users === 0) await this.#file.close()
  }

  async #resume(signal: AbortSignal): Promise<void> {
    const { size } = await this.#file.stat()
    const count = Math.min(pieceCount(size), this.#have.length)
    for (let index = 0; index < count; index++) {
      signal.throwIfAborted()
      this.#mark(index, pieceBytes(this.#list.sizeBytes, index))
      await this.#readBack(index)
    }
  }

  /** Holds a piece in the file against the list, and takes it into the whole hash if it is its turn. A wrong one is no longer there. */
  async #readBack(index: number): Promise<boolean> {
    const length = pieceBytes(this.#list.sizeBytes, index)
    const bytes = await this.read(index * PIECE_BYTES, length).catch(() => new Uint8Array(0))
    if (!isPiece(bytes, this.#list.hashes, index)) {
      this.#have[index] = 0
      this.#doneBytes -= length
      return false
    }
    if (index === this.#hashedCount) {
      this.#whole.update(bytes)
      this.#hashedCount++
    }
    return true
  }

  #ours(error: unknown): AgentError {
    return ours(error, this.#blobs.partialPathOf(this))
  }

  #mark(index: number, length: number): void {
    if (this.#have[index] === 1) return
    this.#have[index] = 1
    this.#doneBytes += length
  }

  #dropAll(): void {
    this.#have.fill(0)
    this.#doneBytes = 0
    this.#generation++
    this.#whole = createHash('sha256')
    this.#hashedCount = 0
  }
}

/** What fails on this side is never a peer's fault: it is told apart by its class. */
function ours(error: unknown, path: string): AgentError {
  const told = diskError(error, dirname(path))
  if (told instanceof AgentError) return told
  return new AgentError('failed', `${path} cannot be written: ${reasonOf(error)}`, { cause: error })
}

/** Whether piece `index` has the same bytes by both lists. */
function isSame(index: number, a: Omit<PieceList, 'root'>, b: Omit<PieceList, 'root'>): boolean {
  return (
    pieceBytes(a.sizeBytes, index) === pieceBytes(b.sizeBytes, index) &&
    Buffer.compare(pieceHash(a.hashes, index), pieceHash(b.hashes, index)) === 0
  )
}
