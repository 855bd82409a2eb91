/**
 * The blob directory: bytes named by their SHA-256, within a quota.
 *
 *   <directory>/ab/abcd...   a blob; its row in the state database says that it is whole
 *   <directory>/partial/     blobs being fetched, by digest and network; they survive a restart
 *   <directory>/incoming/    blobs being written; removed at start. Uploads of images, in uploads/, are oci/uploads.ts's
 *
 * A blob is whole on disk (written, synced, renamed) before its row is; what can be had again is synced later, and another row says so until then
 * (late-sync.ts). When room is needed, what was not used for longest goes; what
 * is pinned, open or being fetched stays. Sizes are counted, not measured: the quota is about content, not about file system blocks.
 *
 * To whom a blob may be given is asked of it by `networksOf`. Nothing but publishing a blob here, or having fetched it from peers of a
 * network, adds one: that a blob is here, and somebody asks for it, is no reason to let others of his network have it.
 */
import { mkdirSync, rmSync } from 'node:fs'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { BLOB_BYTES_MAX, PieceHasher } from '../../protocols/pieces/tree.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { diskError, freeBytesOf, sizeText, syncPath } from '../state/disk.ts'
import { BlobFile } from './blob-file.ts'
import type { BlobIndex, BlobRow, Evictable } from './blob-index.ts'
import { blobPath, type Fetching, INCOMING, partialPath } from './blob-places.ts'
import { recoverBlobs } from './blob-recovery.ts'
import type { BlobSource, BlobStore, WriteOptions } from './content.ts'
import { FreshPieces } from './fresh-pieces.ts'
import { BOOT, LateSync } from './late-sync.ts'
import { untilAborted } from './outcomes.ts'
import type { PieceLists } from './piece-lists.ts'

/** Last use is for eviction only: it is written down this coarsely, so that reading costs no write. */
const USED_MS_STEP = 10 * 60_000
/** Left free for the database and what else has to be written. */
const DISK_SPARE_BYTES = 1024 * 1024

export type BlobsInit = {
  directory: string
  index: BlobIndex
  lists: Pick<PieceLists, 'put'>
  quotaBytes: number
  log: Log
  now?: () => number
  /** Of the disk; undefined where it does not say. */
  freeBytes?: () => number | undefined
}

export class Blobs implements BlobStore, AsyncDisposable {
  readonly index: BlobIndex
  readonly lists: Pick<PieceLists, 'put'>
  readonly fresh = new FreshPieces()
  readonly #directory: string
  readonly #log: Log
  readonly #now: () => number
  readonly #freeBytes: () => number | undefined
  readonly #openCounts = new Map<Digest, number>()
  /** Digests whose partial file a fetch is working on. */
  readonly #fetching = new Set<Digest>()
  readonly #late: LateSync
  #quotaBytes: number
  #blobs: number
  #bytes: number
  #partialBytes: number
  #writingBytes = 0
  #nextIncoming = 0

  /** Opens the directory and puts right what a crash left behind. */
  static open(init: BlobsInit): Blobs {
    return new Blobs(init)
  }

  private constructor({ directory, index, lists, quotaBytes, log, now = Date.now, freeBytes }: BlobsInit) {
    this.#directory = directory
    this.index = index
    this.lists = lists
    this.#quotaBytes = quotaBytes
    this.#log = log
    this.#now = now
    this.#freeBytes = freeBytes ?? (() => freeBytesOf(directory))
    this.#late = new LateSync({ index, pathOf: (digest) => this.pathOf(digest), log })
    for (const digest of recoverBlobs({ directory, index, log, now })) this.#late.add(digest)
    const { blobs, bytes } = index.totals()
    this.#blobs = blobs
    this.#bytes = bytes
    this.#partialBytes = index.partialBytes()
  }

  /** Resolves when what came last is on the disk. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#late[Symbol.asyncDispose]()
  }

  get stats(): { blobs: number; bytes: number; quotaBytes: number } {
    return { blobs: this.#blobs, bytes: this.#bytes, quotaBytes: this.#quotaBytes }
  }

  /** A smaller quota takes effect when room is needed next. */
  setQuota(quotaBytes: number): void {
    this.#quotaBytes = quotaBytes
  }

  has(digest: Digest): boolean {
    return this.index.get(digest) !== undefined
  }

  sizeOf(digest: Digest): number | undefined {
    return this.index.get(digest)?.sizeBytes
  }

  networksOf(digest: Digest): Set<string> {
    return this.index.networksOf(digest)
  }

  async open(digest: Digest): Promise<BlobSource | undefined> {
    const row = this.index.get(digest)
    if (!row) return undefined
    const release = this.hold(digest)
    try {
      const file = await this.#openFile(row, release)
      if (file === undefined) release()
      else this.#touch(row)
      return file
    } catch (error) {
      release()
      throw error
    }
  }

  /** Somebody reads it, and it is not evicted until they let go. The way to do so may be called again. */
  hold(digest: Digest): () => void {
    this.#openCounts.set(digest, (this.#openCounts.get(digest) ?? 0) + 1)
    let isHeld = true
    return () => {
      if (!isHeld) return
      isHeld = false
      const count = (this.#openCounts.get(digest) ?? 1) - 1
      if (count > 0) this.#openCounts.set(digest, count)
      else this.#openCounts.delete(digest)
    }
  }

  /** Somebody reads it, or it is being fetched. */
  isInUse(digest: Digest): boolean {
    return this.#openCounts.has(digest) || this.#fetching.has(digest)
  }

  async write(
    expected: Digest | undefined,
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    signal: AbortSignal,
    options: WriteOptions = {},
  ): Promise<{ digest: Digest; sizeBytes: number }> {
    const path = this.#incoming()
    const hasher = new PieceHasher()
    let file: FileHandle | undefined
    try {
      file = await open(path, 'wx', 0o600)
      options.onFile?.(path)
      for await (const chunk of chunks) {
        signal.throwIfAborted()
        this.takeRoom(chunk.byteLength, hasher.sizeBytes + chunk.byteLength)
        hasher.update(chunk)
        await writeAll(file, chunk)
      }
      signal.throwIfAborted()
      const { digest, sizeBytes, hashes } = hasher.finish()
      if (expected !== undefined && digest !== expected)
        throw new AgentError('corrupt', `the bytes have the hash ${digest}, not ${expected} as they should`)
      this.lists.put(digest, sizeBytes, hashes)
      await this.adopt(path, { digest, sizeBytes }, options)
      return { digest, sizeBytes }
    } catch (cause) {
      rmSync(path, { force: true })
      throw diskError(cause, this.#directory)
    } finally {
      this.giveRoom(hasher.sizeBytes)
      await file?.close()
    }
  }

  /**
   * Has somebody else write a blob, which can be had again, into a new file, and hold it against the digest. What is written is dropped when
   * `write` fails, or the signal fires before it is done.
   */
  async takeIn(
    { digest, sizeBytes }: { digest: Digest; sizeBytes: number },
    { network, signal }: { network: string; signal: AbortSignal },
    write: (path: string) => Promise<void>,
  ): Promise<void> {
    this.takeRoom(sizeBytes, sizeBytes)
    const path = this.#incoming()
    let writing: Promise<void> | undefined
    try {
      this.makeDiskRoom(sizeBytes)
      writing = write(path)
      await untilAborted(writing, signal)
      await this.adopt(path, { digest, sizeBytes }, { network, isLate: true })
    } catch (cause) {
      // Once nobody writes to it; what cannot be removed is at the next start.
      void Promise.allSettled([writing]).then(() => rm(path, { force: true }).catch(() => undefined))
      throw diskError(cause, this.#directory)
    } finally {
      this.giveRoom(sizeBytes)
    }
  }

  pin(digest: Digest, reason: string): void {
    this.index.pin(digest, reason)
  }

  unpin(digest: Digest, reason: string): void {
    this.index.unpin(digest, reason)
  }

  /**
   * Keeps these blobs for a reason, and no others for the same reason. A blob that loses so the last reason to be kept, and that was fetched
   * for no network, is removed, not left to be evicted.
   */
  setPins(reason: string, digests: readonly Digest[]): void {
    for (const { digest, sizeBytes } of this.index.setPins(reason, digests)) this.#remove(digest, sizeBytes)
  }

  /** This node left the network: what is here only because of it goes. To be called when no fetch for the network runs any more. */
  forgetNetwork(network: string): void {
    for (const one of this.index.partials()) if (one.network === network) this.dropPartial(one)
    for (const { digest, sizeBytes } of this.index.forgetNetwork(network)) this.#remove(digest, sizeBytes)
  }

  pinReasons(prefix: string): string[] {
    return this.index.pinReasons(prefix)
  }

  pathOf(digest: Digest): string {
    return blobPath(this.#directory, digest)
  }

  partialPathOf(fetching: Fetching): string {
    return partialPath(this.#directory, fetching)
  }

  /** Moves a whole file to its place. The row comes last. Its options are those of `write`. */
  async adopt(
    path: string,
    { digest, sizeBytes }: { digest: Digest; sizeBytes: number },
    { isLate: canWait = false, ...why }: Pick<WriteOptions, 'pin' | 'network' | 'isLate'>,
  ): Promise<void> {
    // What is kept for a reason may not be had again.
    const isLate = canWait && why.pin === undefined && this.index.pins(digest).length === 0
    if (!isLate) await syncPath(path)
    const place = this.pathOf(digest)
    mkdirSync(dirname(place), { recursive: true, mode: 0o700 })
    await rename(path, place)
    // The name of the file, and that of its directory, which may be new.
    if (!isLate) for (const directory of [dirname(place), this.#directory]) await syncPath(directory)
    const isNew = !this.has(digest)
    const partialBytes = this.index.partial(digest)?.sizeBytes ?? 0
    this.index.put({ digest, sizeBytes, usedMs: this.#now() }, { ...why, unsyncedBoot: isLate ? BOOT : undefined })
    if (isLate) this.#late.add(digest)
    this.#partialBytes -= partialBytes
    if (!isNew) return
    this.#blobs++
    this.#bytes += sizeBytes
  }

  /** A fetch works on the partial file: it is not evictable until `endPartial`. */
  beginPartial(digest: Digest): void {
    this.#fetching.add(digest)
  }

  /**
   * Takes the room for a blob that is being fetched, all of it, until it is adopted, dropped or evicted. What was fetched of it for another
   * network is thrown away: a peer can state a blob's list without having its pieces, so a blob made of pieces from two networks could be
   * given out in neither. File names say the network, too, since after a power cut a row may be older than the file.
   */
  keepPartial({ digest, network }: Fetching, sizeBytes: number): void {
    const before = this.index.partial(digest)
    if (before !== undefined && before.network !== network) this.dropPartial(before)
    const heldBytes = this.index.partial(digest)?.sizeBytes ?? 0
    this.makeRoom(sizeBytes - heldBytes, sizeBytes)
    this.makeDiskRoom(sizeBytes - heldBytes)
    this.index.putPartial({ digest, sizeBytes, network }, this.#now())
    this.#partialBytes += sizeBytes - heldBytes
  }

  /** The fetch is over, for now or for good. */
  endPartial(digest: Digest): void {
    this.#fetching.delete(digest)
  }

  dropPartial({ digest, network }: Fetching): void {
    this.#partialBytes -= this.index.partial(digest)?.sizeBytes ?? 0
    this.index.dropPartial(digest)
    rmSync(this.partialPathOf({ digest, network }), { force: true })
  }

  /**
   * Evicts until `bytes` more fit the quota.
   *
   * @throws {AgentError} `limit` when they cannot be made to fit; nothing was evicted then.
   */
  makeRoom(bytes: number, blobBytes: number): void {
    if (blobBytes > BLOB_BYTES_MAX) throw new AgentError('limit', `a blob of more than ${sizeText(BLOB_BYTES_MAX)}`)
    const excess = this.excessBytes + bytes
    if (excess <= 0 || bytes <= 0) return
    const leaving = this.#toFree(excess)
    if (leaving === undefined) throw this.#noRoom(blobBytes)
    for (const one of leaving) this.evict(one)
  }

  /**
   * Takes room for bytes that become a blob, or a part of one, once they are all here; until `giveRoom`.
   *
   * @throws {AgentError} `limit` as makeRoom
   */
  takeRoom(bytes: number, blobBytes: number): void {
    this.makeRoom(bytes, blobBytes)
    this.#writingBytes += bytes
  }

  /** They are a blob now, or gone. Less than nothing counts what an earlier process took room for. */
  giveRoom(bytes: number): void {
    this.#writingBytes -= bytes
  }

  /**
   * What others have filled the disk with is no part of the quota: told before anything is fetched, since whoever waits for it may then have
   * it without it being kept.
   */
  makeDiskRoom(bytes: number): void {
    const freeBytes = bytes > 0 ? this.#freeBytes() : undefined
    if (freeBytes === undefined || freeBytes >= bytes + DISK_SPARE_BYTES) return
    const leaving = this.#toFree(bytes + DISK_SPARE_BYTES - freeBytes)
    if (leaving === undefined)
      throw diskError(Object.assign(new Error('no space'), { code: 'ENOSPC' }), this.#directory)
    for (const one of leaving) this.evict(one)
  }

  /** How much more is here than the quota allows; below 0 what may still come. */
  get excessBytes(): number {
    return this.#bytes + this.#partialBytes + this.#writingBytes - this.#quotaBytes
  }

  /** What may go now, the longest unused first. Not while it is gone through is any of it to be evicted. */
  *evictable(): Iterable<Evictable> {
    for (const one of this.index.evictable()) if (this.#mayGo(one)) yield one
  }

  /** False when it may not go any more, or is gone. */
  evict({ digest, sizeBytes, partialOf }: Pick<Evictable, 'digest' | 'sizeBytes' | 'partialOf'>): boolean {
    const isHere = partialOf === undefined ? this.has(digest) : this.index.partial(digest)?.network === partialOf
    if (!isHere || !this.#mayGo({ digest, partialOf })) return false
    if (partialOf !== undefined) this.dropPartial({ digest, network: partialOf })
    else if (this.index.pins(digest).length > 0) return false
    else this.#remove(digest, sizeBytes)
    this.#log.debug({ digest, sizeBytes, partial: partialOf !== undefined }, 'blob.evicted')
    return true
  }

  #incoming(): string {
    return join(this.#directory, INCOMING, `${process.pid}-${this.#nextIncoming++}`)
  }

  /** Whether the whole, or the part that is being fetched, is used by nobody. */
  #mayGo({ digest, partialOf }: Pick<Evictable, 'digest' | 'partialOf'>): boolean {
    return partialOf === undefined ? !this.#openCounts.has(digest) : !this.#fetching.has(digest)
  }

  /** The longest unused that are so many bytes in all; undefined when there are not as many. */
  #toFree(bytes: number): Evictable[] | undefined {
    const leaving: Evictable[] = []
    let missing = bytes
    for (const one of this.evictable()) {
      if (missing <= 0) break
      leaving.push(one)
      missing -= one.sizeBytes
    }
    return missing <= 0 ? leaving : undefined
  }

  #noRoom(blobBytes: number): AgentError {
    const pinnedBytes = this.index.pinnedBytes()
    return new AgentError(
      'limit',
      `no room for ${sizeText(blobBytes)}: the quota is ${sizeText(this.#quotaBytes)}, of which ${sizeText(pinnedBytes)} is published or kept`,
      {
        next: 'Raise `quota` in the configuration, or let go of some: `agent pins`, `agent unpin`, `agent unpublish`.',
      },
    )
  }

  #touch({ digest, usedMs }: { digest: Digest; usedMs: number }): void {
    const now = this.#now()
    if (Math.abs(now - usedMs) < USED_MS_STEP) return
    try {
      this.index.touch(digest, now)
    } catch (error) {
      // A full disk must not keep anybody from reading.
      this.#log.debug({ digest, reason: reasonOf(error) }, 'blob.use.unrecorded')
    }
  }

  async #openFile({ digest, sizeBytes }: BlobRow, onClose: () => void): Promise<BlobFile | undefined> {
    const onCorrupt = () => this.#lose(digest, 'its bytes have another hash')
    let file: BlobFile
    try {
      file = await BlobFile.open(this.pathOf(digest), { onClose, onCorrupt })
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw diskError(cause, this.#directory)
      this.#lose(digest, 'its file is gone')
      return undefined
    }
    if (file.sizeBytes === sizeBytes) return file
    await file.close()
    this.#lose(digest, `its file has ${file.sizeBytes} bytes in place of ${sizeBytes}`)
    return undefined
  }

  /** What the disk no longer holds as it was written is dropped; peers may still have it. */
  #lose(digest: Digest, reason: string): void {
    const row = this.index.get(digest)
    if (!row) return
    this.#log.warn({ digest, reason, pins: this.index.pins(digest) }, 'blob.lost')
    this.#remove(digest, row.sizeBytes)
  }

  #remove(digest: Digest, sizeBytes: number): void {
    this.index.drop(digest)
    this.#blobs--
    this.#bytes -= sizeBytes
    rmSync(this.pathOf(digest), { force: true })
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) at += (await file.write(bytes, at)).bytesWritten
}
