/**
 * The file of one upload, hashed as it grows. What it holds survives a restart; the state of the hash does not, and is made again by
 * reading the file when the upload goes on.
 *
 * Bytes are written in large steps, one of them under way while the next is received. When they go to the disk is left to the system until
 * the end: told to begin earlier it took longer for all.
 */
import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { AgentError } from '../error.ts'
import { giveBack } from '../give-back.ts'

/** From so much on it is written: the cost of a call is nothing then, and the memory of the last call is still warm. */
const STEP_BYTES = 1024 * 1024
/** Received and not written. On a busy machine the thread that writes waits for its turn, and the sender need not wait for it each time. */
const WAITING_BYTES_MAX = 4 * 1024 * 1024
/** Who sends a byte at a time makes a buffer of each: below what the system takes in one call. */
const WAITING_CHUNKS_MAX = 512

export type Hashes = { readonly sha256: Hash; readonly sha512: Hash | undefined }

export class UploadFile {
  readonly path: string
  readonly #file: FileHandle
  readonly #hashes: Hashes
  #sizeBytes: number
  #hashedBytes: number

  private constructor(path: string, file: FileHandle, hashes: Hashes, sizeBytes: number) {
    this.path = path
    this.#file = file
    this.#hashes = hashes
    this.#sizeBytes = sizeBytes
    this.#hashedBytes = sizeBytes
  }

  /** Goes on where the file ends. `hashes` of all that is in it, when they are known. */
  static async open(
    path: string,
    hashes: Hashes | undefined,
    withSha512: boolean,
    signal: AbortSignal,
  ): Promise<UploadFile> {
    const file = await open(path, hashes === undefined ? 'a+' : 'r+', 0o600)
    try {
      const { size } = await file.stat()
      if (hashes !== undefined) return new UploadFile(path, file, hashes, size)
      const fresh = { sha256: createHash('sha256'), sha512: withSha512 ? createHash('sha512') : undefined }
      for await (const chunk of chunksOf(file, size, signal)) update(fresh, chunk)
      return new UploadFile(path, file, fresh, size)
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** On the disk's side of the write call; what was received and not written is not in it. */
  get sizeBytes(): number {
    return this.#sizeBytes
  }

  /** Of all that is in the file; undefined after a write that failed: what it left is right as far as it goes, and has to be read again. */
  get hashes(): Hashes | undefined {
    return this.#hashedBytes === this.#sizeBytes ? this.#hashes : undefined
  }

  get sha256(): string {
    return this.#hashes.sha256.copy().digest('hex')
  }

  /**
   * Appends what comes, until its end or a failure; what came before a failure of the sender stays. `onBytes` hears of each chunk before it
   * is taken, and may refuse it. The chunks are nobody else's, nor their memory.
   *
   * @throws what the sender, the disk or `onBytes` throw
   */
  async append(chunks: AsyncIterable<Uint8Array>, onBytes: (bytes: number) => void): Promise<void> {
    let waiting: Uint8Array[] = []
    let waitingBytes = 0
    let writing: Promise<void> | undefined
    let failure: unknown
    const drain = async () => {
      while (waitingBytes > 0) {
        const [step, bytes] = [waiting, waitingBytes]
        waiting = []
        waitingBytes = 0
        await this.#write(step, bytes)
        // Left to the garbage collector they cost more than the hash, and on a busy machine three times as long as all the rest.
        for (const chunk of step) giveBack(chunk)
      }
    }
    const begin = () =>
      drain()
        .catch((error: unknown) => {
          failure = error
        })
        .finally(() => {
          writing = undefined
        })
    try {
      for await (const chunk of chunks) {
        onBytes(chunk.byteLength)
        update(this.#hashes, chunk)
        this.#hashedBytes += chunk.byteLength
        waiting.push(chunk)
        waitingBytes += chunk.byteLength
        if (waitingBytes >= STEP_BYTES || waiting.length >= WAITING_CHUNKS_MAX) writing ??= begin()
        if (waitingBytes >= WAITING_BYTES_MAX || waiting.length >= WAITING_CHUNKS_MAX) await writing
        if (failure !== undefined) break
      }
    } finally {
      await writing
      if (failure === undefined) await drain()
    }
    if (failure !== undefined) throw failure as Error
  }

  async close(): Promise<void> {
    await this.#file.close()
  }

  /** The SHA-512 of what is in it, read once more where it was not made on the way. */
  async sha512(signal: AbortSignal): Promise<string> {
    if (this.#hashes.sha512 !== undefined) return this.#hashes.sha512.copy().digest('hex')
    const hash = createHash('sha512')
    for await (const chunk of chunksOf(this.#file, this.#sizeBytes, signal)) hash.update(chunk)
    return hash.digest('hex')
  }

  async #write(step: Uint8Array[], bytes: number): Promise<void> {
    const { bytesWritten } = await this.#file.writev(step, this.#sizeBytes)
    if (bytesWritten < bytes) {
      const rest = Buffer.concat(step).subarray(bytesWritten)
      for (let at = 0; at < rest.byteLength; ) {
        at += (await this.#file.write(rest, at, rest.byteLength - at, this.#sizeBytes + bytesWritten + at)).bytesWritten
      }
    }
    this.#sizeBytes += bytes
  }
}

function update({ sha256, sha512 }: Hashes, chunk: Uint8Array): void {
  sha256.update(chunk)
  sha512?.update(chunk)
}

async function* chunksOf(file: FileHandle, sizeBytes: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(STEP_BYTES, sizeBytes))
  for (let at = 0; at < sizeBytes; ) {
    signal.throwIfAborted()
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.byteLength, sizeBytes - at), at)
    if (bytesRead === 0) throw new AgentError('corrupt', 'an upload is shorter on disk than it was')
    at += bytesRead
    yield buffer.subarray(0, bytesRead)
  }
}
