/**
 * Uploads that have begun and are not blobs yet: a row and, once there are bytes, a file each, so that they survive a restart and can go
 * on. They take room of the quota like blobs, and end by becoming one, by being cancelled, or by being left alone for a day.
 *
 *   <directory>/<id>   what came of one
 *
 * Anybody who may push may begin as many as he likes and leave them: an empty one is a row, the longest untouched go when there are too
 * many, and those that nobody touched for an hour go when their room is needed.
 */
import { randomUUID } from 'node:crypto'
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { Blobs } from '../content/blobs.ts'
import { type BlobStore, TEMPORARY_PIN } from '../content/content.ts'
import { AgentError } from '../error.ts'
import type { Log } from '../log.ts'
import { type Database, migrate } from '../state/database.ts'
import { diskError } from '../state/disk.ts'
import type { ChunkRange } from './chunk-range.ts'
import { OciError } from './errors.ts'
import type { LocalRepositories } from './local-repositories.ts'
import { type Algorithm, algorithmOf, type OciDigest, ofSha256, ofSha512, type RepositoryPath } from './names.ts'
import type { RepositoryName } from './repositories.ts'
import { type Hashes, UploadFile } from './upload-file.ts'

/** A hundred pushes of ten layers at once. Each keeps the state of a hash in memory, less than 1 KiB. */
const UPLOADS_MAX = 1_000
/** Who has not gone on by then will not: the specification wants unfinished uploads to end some time. */
const UNTOUCHED_MS_MAX = 24 * 60 * 60_000
/** Left alone for so long, and its room is needed: it goes earlier. */
const IDLE_MS_MIN = 60 * 60_000
const SWEEP_MS = 60 * 60_000

const SCHEMA = [
  `
  CREATE TABLE oci_uploads (
    id TEXT PRIMARY KEY, space TEXT NOT NULL, path TEXT NOT NULL, algorithm TEXT NOT NULL, touched_ms INTEGER NOT NULL,
    has_bytes INTEGER NOT NULL DEFAULT 0
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX oci_uploads_touched ON oci_uploads (has_bytes, touched_ms);
  `,
]

type Row = { id: string; space: string; path: RepositoryPath; algorithm: Algorithm; touchedMs: number }
/**
 * Of an upload that has bytes: `sizeBytes` with those that are being written, `file` while a request sends to it, `hashes` undefined when
 * they have to be made of the file.
 */
type State = { sizeBytes: number; hashes: Hashes | undefined; isBusy: boolean; file: UploadFile | undefined }
/** What a request sends: `range` and `lengthBytes` as far as its headers say them. */
export type Chunk = {
  bytes: AsyncIterable<Uint8Array>
  range: ChunkRange | undefined
  lengthBytes: number | undefined
}

export type UploadBlobs = Pick<BlobStore, 'has' | 'pin' | 'unpin'> & Pick<Blobs, 'adopt' | 'takeRoom' | 'giveRoom'>

type Init = {
  /** On the file system of the blob directory. */
  directory: string
  db: Database
  blobs: UploadBlobs
  repositories: Pick<LocalRepositories, 'addBlob' | 'nameBlob'>
  log: Log
  now?: () => number
}

export class Uploads implements Disposable {
  readonly #directory: string
  readonly #blobs: UploadBlobs
  readonly #repositories: Init['repositories']
  readonly #log: Log
  readonly #now: () => number
  readonly #sql
  /** Those with bytes. */
  readonly #states = new Map<string, State>()
  readonly #sweeping: NodeJS.Timeout

  /** Goes on with what an earlier process left. */
  static open(init: Init): Uploads {
    return new Uploads(init)
  }

  private constructor({ directory, db, blobs, repositories, log, now = Date.now }: Init) {
    migrate(db, 'oci-uploads', SCHEMA)
    this.#directory = directory
    this.#blobs = blobs
    this.#repositories = repositories
    this.#log = log
    this.#now = now
    const columns = 'id, space, path, algorithm, touched_ms AS touchedMs'
    this.#sql = {
      add: db.prepare('INSERT INTO oci_uploads (id, space, path, algorithm, touched_ms) VALUES (?, ?, ?, ?, ?)'),
      get: db.prepare(`SELECT ${columns} FROM oci_uploads WHERE id = ?`),
      touch: db.prepare('UPDATE oci_uploads SET touched_ms = ?, has_bytes = max(has_bytes, ?) WHERE id = ?'),
      drop: db.prepare('DELETE FROM oci_uploads WHERE id = ?'),
      count: db.prepare('SELECT count(*) AS count FROM oci_uploads'),
      ids: db.prepare('SELECT id FROM oci_uploads'),
      inSpace: db.prepare('SELECT id FROM oci_uploads WHERE space = ?'),
      oldest: db.prepare('SELECT id FROM oci_uploads ORDER BY has_bytes, touched_ms'),
      untouched: db.prepare('SELECT id FROM oci_uploads WHERE touched_ms < ? AND has_bytes >= ?'),
    }
    this.#recover()
    this.sweep()
    this.#sweeping = setInterval(() => this.sweep(), SWEEP_MS).unref()
  }

  /** How many are open, and how many bytes came of them. */
  get stats(): { open: number; bytes: number } {
    const { count } = this.#sql.count.get() as { count: number }
    return { open: count, bytes: [...this.#states.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) }
  }

  /** Begins one, and returns its id. `algorithm` is that of the digest which it will end with, as far as the client says. */
  begin({ space, path }: RepositoryName, algorithm: Algorithm): string {
    if (this.stats.open >= UPLOADS_MAX) this.#dropOldest()
    const id = randomUUID()
    this.#sql.add.run(id, space, path, algorithm, this.#now())
    return id
  }

  /** How much of it is here, and stays when this process is killed. @throws {OciError} BLOB_UPLOAD_UNKNOWN */
  sizeOf(name: RepositoryName, id: string): number {
    this.#rowOf(name, id)
    const state = this.#states.get(id)
    return state?.file?.sizeBytes ?? state?.sizeBytes ?? 0
  }

  /**
   * Takes a chunk, and returns how much is here then. What came of one that breaks off stays.
   *
   * @throws {OciError} BLOB_UPLOAD_UNKNOWN; BLOB_UPLOAD_INVALID with status 416 when it is not the next; SIZE_INVALID
   * @throws {AgentError} `limit` when there is no room: the upload is over
   */
  async append(name: RepositoryName, id: string, chunk: Chunk, signal: AbortSignal): Promise<number> {
    return await this.#using(name, id, signal, async (file) => {
      await this.#take(id, file, chunk)
      return file.sizeBytes
    })
  }

  /**
   * Makes it a blob of the repository, on disk for good when it resolves.
   *
   * @throws as append; {OciError} DIGEST_INVALID when its digest is another: the upload is over
   */
  async finish(
    name: RepositoryName,
    id: string,
    digest: OciDigest,
    chunk: Chunk | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#using(name, id, signal, async (file) => {
      if (chunk !== undefined) await this.#take(id, file, chunk)
      const blob = file.sha256
      const found = algorithmOf(digest) === 'sha256' ? ofSha256(blob) : ofSha512(await file.sha512(signal))
      if (found !== digest) {
        this.#drop(id)
        throw new OciError('DIGEST_INVALID', `the ${file.sizeBytes} bytes have the digest ${found}, not ${digest}`)
      }
      await this.#adopt(name, id, file, { blob, digest })
    })
  }

  /** @throws {OciError} BLOB_UPLOAD_UNKNOWN */
  cancel(name: RepositoryName, id: string): void {
    this.#rowOf(name, id)
    this.#refuseBusy(id)
    this.#drop(id)
  }

  /** Ends it, if it is there. */
  discard(id: string): void {
    this.#drop(id)
  }

  /** This node left the network. */
  forgetSpace(space: string): void {
    for (const { id } of this.#sql.inSpace.all(space) as { id: string }[]) this.#drop(id)
  }

  /** Ends those that nobody touched for a day. */
  sweep(): void {
    const dropped = this.#dropUntouched(UNTOUCHED_MS_MAX)
    if (dropped > 0) this.#log.info({ uploads: dropped }, 'uploads.expired')
  }

  [Symbol.dispose](): void {
    clearInterval(this.#sweeping)
  }

  async #using<T>(
    name: RepositoryName,
    id: string,
    signal: AbortSignal,
    work: (file: UploadFile) => Promise<T>,
  ): Promise<T> {
    const { algorithm } = this.#rowOf(name, id)
    this.#refuseBusy(id)
    const state = this.#states.get(id) ?? { sizeBytes: 0, hashes: undefined, isBusy: false, file: undefined }
    this.#states.set(id, state)
    state.isBusy = true
    let file: UploadFile | undefined
    try {
      this.#sql.touch.run(this.#now(), 1, id)
      file = await UploadFile.open(this.#pathOf(id), state.hashes, algorithm === 'sha512', signal)
      state.file = file
      return await work(file)
    } catch (cause) {
      const error = diskError(cause, this.#directory)
      if (error instanceof AgentError && error.code === 'limit') this.#drop(id)
      throw error
    } finally {
      state.isBusy = false
      state.file = undefined
      // Of one that was dropped meanwhile the room was given back.
      if (file !== undefined && this.#states.get(id) === state) {
        this.#blobs.giveRoom(state.sizeBytes - file.sizeBytes)
        state.sizeBytes = file.sizeBytes
        state.hashes = file.hashes
        this.#sql.touch.run(this.#now(), 1, id)
      }
      await file?.close()
    }
  }

  async #take(id: string, file: UploadFile, { bytes, range, lengthBytes }: Chunk): Promise<void> {
    const state = this.#states.get(id)
    if (state === undefined) throw unknown(id)
    if (range !== undefined && range.offset !== file.sizeBytes) {
      const message = `the chunk begins at byte ${range.offset}, and ${file.sizeBytes} are here`
      throw new OciError('BLOB_UPLOAD_INVALID', message, { status: 416 })
    }
    const declared = range?.length ?? lengthBytes
    if (range !== undefined && lengthBytes !== undefined && lengthBytes !== range.length)
      throw wrongSize(lengthBytes, range.length)
    let received = 0
    await file.append(bytes, (more) => {
      if (this.#states.get(id) !== state) throw unknown(id)
      if (declared !== undefined && received + more > declared) throw wrongSize(received + more, declared)
      this.#takeRoom(more, state.sizeBytes + more)
      received += more
      state.sizeBytes += more
    })
    if (declared !== undefined && received < declared) throw wrongSize(received, declared)
  }

  #takeRoom(bytes: number, uploadBytes: number): void {
    try {
      this.#blobs.takeRoom(bytes, uploadBytes)
    } catch (error) {
      if (this.#dropUntouched(IDLE_MS_MIN, true) === 0) throw error
      this.#blobs.takeRoom(bytes, uploadBytes)
    }
  }

  async #adopt(
    name: RepositoryName,
    id: string,
    file: UploadFile,
    { blob, digest }: { blob: Digest; digest: OciDigest },
  ): Promise<void> {
    const pin = `${TEMPORARY_PIN}upload/${id}`
    const { sizeBytes } = file
    this.#blobs.pin(blob, pin)
    try {
      if (!this.#blobs.has(blob)) await this.#blobs.adopt(file.path, { digest: blob, sizeBytes }, { pin })
      this.#repositories.addBlob(name, blob, true, () => {
        this.#repositories.nameBlob(digest, blob)
        this.#sql.drop.run(id)
      })
      this.#forget(id)
    } finally {
      this.#blobs.unpin(blob, pin)
    }
  }

  #rowOf({ space, path }: RepositoryName, id: string): Row {
    const row = this.#sql.get.get(id) as Row | undefined
    if (row === undefined || row.space !== space || row.path !== path) throw unknown(id)
    return row
  }

  #refuseBusy(id: string): void {
    if (!this.#states.get(id)?.isBusy) return
    throw new OciError('BLOB_UPLOAD_INVALID', 'another request is sending to this upload', { status: 416 })
  }

  #drop(id: string): void {
    this.#sql.drop.run(id)
    this.#forget(id)
  }

  /** Its row is gone. */
  #forget(id: string): void {
    this.#blobs.giveRoom(this.#states.get(id)?.sizeBytes ?? 0)
    this.#states.delete(id)
    rmSync(this.#pathOf(id), { force: true })
  }

  #dropUntouched(ms: number, withBytes = false): number {
    const all = this.#sql.untouched.all(this.#now() - ms, Number(withBytes)) as { id: string }[]
    const idle = all.filter(({ id }) => !this.#states.get(id)?.isBusy)
    for (const { id } of idle) this.#drop(id)
    return idle.length
  }

  /** The longest untouched, empty ones first. */
  #dropOldest(): void {
    for (const row of this.#sql.oldest.iterate()) {
      const { id } = row as { id: string }
      if (this.#states.get(id)?.isBusy) continue
      this.#drop(id)
      return
    }
  }

  #pathOf(id: string): string {
    return join(this.#directory, id)
  }

  /** A file without a row was a blob already, or cancelled; a row without a file has no bytes yet. */
  #recover(): void {
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
    const ids = new Set((this.#sql.ids.all() as { id: string }[]).map(({ id }) => id))
    for (const name of readdirSync(this.#directory)) {
      const path = join(this.#directory, name)
      if (!ids.has(name)) {
        rmSync(path, { force: true })
        continue
      }
      const { size: sizeBytes } = statSync(path)
      this.#blobs.giveRoom(-sizeBytes)
      this.#states.set(name, { sizeBytes, hashes: undefined, isBusy: false, file: undefined })
    }
  }
}

function unknown(id: string): OciError {
  return new OciError('BLOB_UPLOAD_UNKNOWN', `there is no upload ${id.slice(0, 100)} in this repository`)
}

function wrongSize(bytes: number, declaredBytes: number): OciError {
  return new OciError('SIZE_INVALID', `${bytes} bytes came where ${declaredBytes} were announced`)
}
