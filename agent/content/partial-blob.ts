/**
 * A blob while it is being fetched: a file with holes, the piece list that it is fetched by, and which pieces are there.
 *
 * It survives kill -9 and power cuts: which pieces are there is written down after they were synced, and what came after that is read and
 * held against the list. What is written down is believed until the hash of the whole is wrong; then every piece is held against the list.
 * A piece list is itself only what some peer said: the file becomes a blob when the hash of the whole is right. When it is not, what it
 * has in common with the next list is kept.
 */

import { hash } from 'node:crypto'
import { constants, fstatSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { isPiece, PIECE_BYTES, pieceBytes, pieceCount, pieceHash } from '../../protocols/pieces/tree.ts'
import type { AgentError } from '../error.ts'
import { writeFault } from '../state/disk.ts'
import type { Fetching } from './blob-places.ts'
import type { Blobs } from './blobs.ts'
import type { PartSource, PieceList } from './content.ts'
import { offers } from './piece-picker.ts'
import { type Hasher, WholeHash } from './whole-hash.ts'

/** What is lost by a power cut, or read again after a kill. Syncing more often would keep the disk from its work. */
const SAVE_MS = 5_000
/** Of a large blob sooner: the disk writes while the rest comes, and the last sync has little to wait for. */
const SAVE_BYTES = 64 * 1024 * 1024
/** A piece is in the file, and was held against the list; or it was not, and the hash of the whole is to say whether it is right. */
const CHECKED = 1
const UNCHECKED = 2
const ZEROS = Buffer.alloc(PIECE_BYTES)
const ZEROS_HASH = hash('sha256', ZEROS, 'buffer')

export class PartialBlob implements PartSource {
  readonly digest: Digest
  readonly network: string
  /** The list in use as somebody signed it, to be passed on with it. */
  signed: Uint8Array | undefined
  readonly #blobs: Blobs
  readonly #file: FileHandle
  readonly #name: string
  #list: PieceList
  /** One byte a piece: CHECKED, UNCHECKED or 0. */
  #have: Uint8Array
  #doneBytes = 0
  readonly #whole: WholeHash
  #generation = 0
  /** The file, when it was opened, or by another list that was tried. */
  #wasLonger = false
  #users = 1
  /** Fellows ask for what arrives. */
  #isShared = false
  /** The hash of the whole was wrong: from now on every piece is held against the list. */
  #isStrict = false
  #saving: Promise<void> | undefined
  #savedMs = performance.now()
  #savedBytes = 0
  #missing: number

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
      throw writeFault(error, blobs.partialPathOf(fetching))
    }
  }

  private constructor(blobs: Blobs, { digest, network }: Fetching, list: PieceList, file: FileHandle) {
    this.digest = digest
    this.network = network
    this.#blobs = blobs
    this.#list = list
    this.#file = file
    this.#name = `${digest} ${network}`
    this.#have = new Uint8Array(pieceCount(list.sizeBytes))
    this.#missing = this.#have.length
    this.#whole = new WholeHash({
      has: (index) => this.has(index),
      peek: (index) => blobs.fresh.peek(this.#name, index),
      fill: (bytes, offset) => this.#fill(bytes, offset),
      lose: (index) => this.#lose(index),
      shape: () => this.#list,
    })
  }

  get list(): PieceList {
    return this.#list
  }

  get pieceCount(): number {
    return this.#have.length
  }

  get doneBytes(): number {
    return this.#doneBytes
  }

  /** Changes when pieces that were there turn out to be wrong: whoever read them must begin again. */
  get generation(): number {
    return this.#generation
  }

  has(index: number): boolean {
    return (this.#have[index] ?? 0) !== 0
  }

  /**
   * Whether pieces may come in that nobody has held against the list: nobody reads what arrives, and the hash of the whole has yet to be
   * wrong. It tells as much, and when it does, each is held against the list.
   */
  get isTrusting(): boolean {
    return this.#users === 1 && !this.#isShared && !this.#isStrict
  }

  /** Whether the piece is there and as listed: to be asked before it is given to anybody. */
  async check(index: number): Promise<boolean> {
    if (this.#have[index] !== UNCHECKED) return this.has(index)
    const list = this.#list
    const isSound = await this.#isSound(index)
    if (this.#list !== list) return false
    if (isSound) this.#have[index] = CHECKED
    else this.#lose(index)
    return isSound
  }

  get isFull(): boolean {
    return this.#missing === 0
  }

  /** Number of pieces that are not there. */
  get missing(): number {
    return this.#missing
  }

  /** What is there, as the protocol says it: bit 0x80 of byte 0 is piece 0. */
  bitmap(isThere = (state: number) => state !== 0): Uint8Array {
    const bitmap = new Uint8Array(Math.ceil(this.#have.length / 8))
    for (const [at, state] of this.#have.entries())
      if (isThere(state)) bitmap[at >> 3] = (bitmap[at >> 3] ?? 0) | (0x80 >> (at & 7))
    return bitmap
  }

  /**
   * Stores a piece that the caller held against the list, and keeps its memory. Resolves with memory of another one that nobody needs any
   * more, if there is some.
   */
  async write(index: number, bytes: Uint8Array): Promise<Uint8Array | undefined> {
    const list = this.#list
    if (this.has(index)) return bytes
    const isInTurn = this.#whole.take(index, bytes)
    try {
      for (let at = 0; at < bytes.byteLength; ) {
        const { bytesWritten } = await this.#file.write(bytes, at, bytes.byteLength - at, index * PIECE_BYTES + at)
        at += bytesWritten
      }
    } catch (error) {
      throw this.faultOf(error)
    }
    if (!this.#isOfUse(index, list)) return bytes
    // What nobody will want soon is not kept: memory that was just used is quicker to use again.
    const free = isInTurn && !this.#isShared ? bytes : this.#blobs.fresh.put(this.#name, index, bytes)
    this.#take(index, CHECKED)
    return free
  }

  /** For whoever writes pieces to the file by itself, and then says so: as long as the fetching goes on. */
  get fd(): number {
    return this.#file.fd
  }

  /** Leaves the hash of the whole to a thread, while there is one: pieces come to the file without coming by here. */
  hashBy(make: () => Hasher | undefined): void {
    this.#whole.useThread(make)
  }

  /** A piece of `list` is in the file, held against that or not. */
  arrived(index: number, list: PieceList, isChecked: boolean): void {
    if (this.#isOfUse(index, list)) this.#take(index, isChecked ? CHECKED : UNCHECKED)
  }

  /** A copy of a piece that is still in memory since it was held against the list in use; for fellows, who ask for such. */
  fresh(index: number): Uint8Array | undefined {
    this.#isShared = true
    const fresh = this.#have[index] === CHECKED ? this.#blobs.fresh.peek(this.#name, index) : undefined
    if (fresh === undefined) return undefined
    const copy = Buffer.allocUnsafeSlow(fresh.byteLength)
    copy.set(fresh)
    return copy
  }

  /** What a failed write to the file means. */
  faultOf(error: unknown): AgentError {
    return writeFault(error, this.#blobs.partialPathOf(this))
  }

  /** Bytes of pieces that are there. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = Buffer.allocUnsafeSlow(length)
    await this.#fill(bytes, offset)
    return bytes
  }

  /** Goes on by another piece list: what the two have in common stays. */
  useList(list: PieceList): void {
    const before = this.#list
    const had = this.#have
    if (list.sizeBytes !== before.sizeBytes) this.#generation++
    this.#wasLonger ||= before.sizeBytes > list.sizeBytes
    this.#blobs.fresh.drop(this.#name)
    this.signed = undefined
    this.#list = list
    this.#have = new Uint8Array(pieceCount(list.sizeBytes))
    this.#missing = this.#have.length
    this.#doneBytes = 0
    this.#savedBytes = 0
    for (const index of had.keys()) {
      const state = had[index] ?? 0
      if (state === 0) continue
      if (isSame(index, before, list)) this.#mark(index, pieceBytes(list.sizeBytes, index), state)
      else this.#generation++
    }
    this.#whole.restart()
    this.#blobs.keepPartial(this, list.sizeBytes)
  }

  /**
   * All pieces are there: checks the whole hash, and makes it a blob. `wrong` when the hash is another although every piece is as listed, so
   * that the list is a lie. `hole` when the disk did not keep a piece.
   */
  async finish(signal: AbortSignal): Promise<'whole' | 'wrong' | 'hole'> {
    try {
      await this.#saving
      const digest = await this.#whole.digest(signal)
      if (digest === undefined) return 'hole'
      if (digest !== this.digest) return (await this.#findHoles(signal)) ? 'hole' : 'wrong'
      if (this.#wasLonger) await this.#file.truncate(this.#list.sizeBytes)
      // What came within moments, and can be had so again, need not wait for the disk.
      const isLate = this.#savedBytes === 0
      this.#blobs.lists.put(this.digest, this.#list.sizeBytes, this.#list.hashes)
      const blob = { digest: this.digest, sizeBytes: this.#list.sizeBytes }
      await this.#blobs.adopt(this.#blobs.partialPathOf(this), blob, { network: this.network, isLate })
      return 'whole'
    } catch (error) {
      throw this.faultOf(error)
    }
  }

  /** Ends the fetching, for now: what is there stays for the next time. */
  async leave(): Promise<void> {
    try {
      if (this.#doneBytes === 0 && !this.#blobs.has(this.digest)) this.#blobs.dropPartial(this)
    } finally {
      this.#blobs.endPartial(this.digest)
      this.#blobs.fresh.drop(this.#name)
      this.#whole.end()
      await this.#whole.settled
      await this.#saving
      if (!this.#blobs.has(this.digest)) await this.#save()
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
    const { progress } = this.#blobs.index
    const { size } = fstatSync(this.#file.fd)
    this.#wasLonger = size > this.#list.sizeBytes
    const count = Math.min(pieceCount(size), this.#have.length)
    const saved = count === 0 ? undefined : progress.get(this.digest)
    if (saved === undefined) progress.drop(this.digest)
    const isOurs =
      saved !== undefined && saved.network === this.network && Buffer.compare(saved.root, this.#list.root) === 0
    for (let index = 0; index < count; index++) {
      signal.throwIfAborted()
      const length = pieceBytes(this.#list.sizeBytes, index)
      const isThere = index * PIECE_BYTES + length <= size
      if (isThere && ((isOurs && offers(saved.pieces, index)) || (await this.#isSound(index))))
        this.#mark(index, length, CHECKED)
    }
    this.#whole.catchUp()
  }

  /** Whether a piece in the file is as listed. Holes are read as zeros, which need no hashing. */
  async #isSound(index: number): Promise<boolean> {
    const length = pieceBytes(this.#list.sizeBytes, index)
    const bytes = await this.read(index * PIECE_BYTES, length).catch(() => undefined)
    if (bytes === undefined) return false
    if (length === PIECE_BYTES && ZEROS.equals(bytes))
      return Buffer.compare(ZEROS_HASH, pieceHash(this.#list.hashes, index)) === 0
    return isPiece(bytes, this.#list.hashes, index)
  }

  /** Whether a piece that was held against `list` is one of the list that is in use now. */
  #isOfUse(index: number, list: PieceList): boolean {
    return list === this.#list || isSame(index, list, this.#list)
  }

  /** A piece is in the file. */
  #take(index: number, state: number): void {
    this.#mark(index, pieceBytes(this.#list.sizeBytes, index), state)
    this.#whole.catchUp()
    const isDue = this.#doneBytes - this.#savedBytes >= SAVE_BYTES || performance.now() - this.#savedMs > SAVE_MS
    if (isDue) this.#saving ??= this.#save()
  }

  async #fill(bytes: Uint8Array, offset: number): Promise<void> {
    for (let at = 0; at < bytes.byteLength; ) {
      const { bytesRead } = await this.#file.read(bytes, at, bytes.byteLength - at, offset + at)
      if (bytesRead === 0) throw new Error('a piece that was written is not in the file')
      at += bytesRead
    }
  }

  /** Holds every piece against the list; true when some are not as listed, which are no longer there then. */
  async #findHoles(signal: AbortSignal): Promise<boolean> {
    this.#isStrict = true
    for (let index = 0; index < this.#have.length; index++) {
      signal.throwIfAborted()
      if (await this.#isSound(index)) this.#have[index] = CHECKED
      else this.#lose(index)
    }
    return !this.isFull
  }

  /** Writes down which pieces are there, once they are there for good. */
  async #save(): Promise<void> {
    const [pieces, { root }] = [this.bitmap((state) => state === CHECKED), this.#list]
    this.#savedMs = performance.now()
    this.#savedBytes = this.#doneBytes
    try {
      await this.#file.datasync()
      this.#blobs.index.progress.put(this.digest, { network: this.network, root, pieces })
    } catch {
      // A disk that is full costs a restart the reading of what is here.
    } finally {
      this.#saving = undefined
    }
  }

  #mark(index: number, length: number, state: number): void {
    if (this.has(index)) return
    this.#have[index] = state
    this.#missing--
    this.#doneBytes += length
  }

  #lose(index: number): void {
    if (!this.has(index)) return
    this.#have[index] = 0
    this.#missing++
    this.#doneBytes -= pieceBytes(this.#list.sizeBytes, index)
    this.#generation++
    this.#whole.restart()
  }
}

/** Whether piece `index` has the same bytes by both lists. */
function isSame(index: number, a: Omit<PieceList, 'root'>, b: Omit<PieceList, 'root'>): boolean {
  return (
    pieceBytes(a.sizeBytes, index) === pieceBytes(b.sizeBytes, index) &&
    Buffer.compare(pieceHash(a.hashes, index), pieceHash(b.hashes, index)) === 0
  )
}
