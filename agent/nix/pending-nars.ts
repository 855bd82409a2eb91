/**
 * NARs that were pushed and whose narinfo has not come yet: blobs under temporary pins, by the network and the name of the file that they
 * were sent as. One that is not asked for goes.
 */
import { createHash, randomUUID } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type BlobStore, TEMPORARY_PIN } from '../content/content.ts'
import { AgentError } from '../error.ts'
import { COMPRESSIONS, type Compression, compressionOfFile, decompressed } from './compression.ts'
import { decodeNix32 } from './nix32.ts'

/** Nix sends the narinfo at once, on each of its 25 connections. */
const UPLOADS_MAX = 1_000
/** A narinfo that has not come by then will not. */
const UPLOAD_MS_MAX = 10 * 60_000
const GZIP_MAGIC = Buffer.from([0x1f, 0x8b])

export type Upload = { digest: Digest; sizeBytes: number; pin: string; sinceMs: number }
export type UploadBlobs = Pick<BlobStore, 'write' | 'pin' | 'sizeOf'> & {
  setPins(reason: string, digests: readonly Digest[]): void
}

export class PendingNars implements Disposable {
  readonly #blobs: UploadBlobs
  /** The oldest first. */
  readonly #all = new Map<string, Upload>()
  #timer: NodeJS.Timeout | undefined

  constructor(blobs: UploadBlobs) {
    this.#blobs = blobs
  }

  /** One that waits for its narinfo. */
  get(network: string, file: string): Upload | undefined {
    return this.#all.get(`${network} ${file}`)
  }

  /**
   * Takes a NAR as a file, `<hash of the file>.nar.xz`.
   *
   * @throws {AgentError} `usage` for a name or compression that is not known, `corrupt` when the file has another hash, `limit`
   */
  async take(network: string, file: string, chunks: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    const { compression, fileHash } = nameOf(file)
    const pin = newPin()
    const hash = createHash('sha256')
    try {
      const { first, all } = await peeked(hashed(chunks, hash))
      // Nix has no suffix for gzip.
      const actual = compression === 'none' && first.subarray(0, 2).equals(GZIP_MAGIC) ? 'gzip' : compression
      const bytes = decompressed(all, actual, signal)
      const { digest, sizeBytes } = await this.#blobs.write(undefined, bytes, signal, { pin })
      if (hash.digest('hex') !== fileHash)
        throw new AgentError('corrupt', `${file} has another hash than its name says`)
      this.#replace(`${network} ${file}`, { digest, sizeBytes, pin, sinceMs: performance.now() })
    } catch (error) {
      this.#release(pin)
      throw error
    }
  }

  /** The NAR of a narinfo. @throws {AgentError} `usage` when it is not here */
  claim(network: string, file: string): Upload {
    const upload = this.get(network, file)
    if (upload) return upload
    // A client does not send what a HEAD says is here.
    const { compression, fileHash } = nameOf(file)
    const sizeBytes = compression === 'none' ? this.#blobs.sizeOf(fileHash) : undefined
    if (sizeBytes === undefined)
      throw new AgentError('usage', `the NAR ${file} was not sent before its narinfo`, { next: 'Push it again.' })
    const kept = { digest: fileHash, sizeBytes, pin: newPin(), sinceMs: performance.now() }
    this.#blobs.pin(fileHash, kept.pin)
    this.#replace(`${network} ${file}`, kept)
    return kept
  }

  /** It is kept for another reason now, or not at all. */
  done(network: string, file: string): void {
    const upload = this.get(network, file)
    if (upload === undefined) return
    this.#all.delete(`${network} ${file}`)
    this.#release(upload.pin)
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    for (const { pin } of this.#all.values()) this.#release(pin)
    this.#all.clear()
  }

  #replace(key: string, upload: Upload): void {
    const before = this.#all.get(key)
    this.#all.delete(key)
    this.#all.set(key, upload)
    if (before) this.#release(before.pin)
    this.#sweep()
  }

  /** Lets those go that waited too long, or are too many; runs by itself while there are any. */
  #sweep(): void {
    clearTimeout(this.#timer)
    for (const [oldest, { pin, sinceMs }] of this.#all) {
      if (this.#all.size <= UPLOADS_MAX && performance.now() - sinceMs < UPLOAD_MS_MAX) break
      this.#all.delete(oldest)
      this.#release(pin)
    }
    if (this.#all.size > 0) this.#timer = setTimeout(() => this.#sweep(), UPLOAD_MS_MAX).unref()
  }

  /** What nobody else keeps goes. */
  #release(pin: string): void {
    this.#blobs.setPins(pin, [])
  }
}

function newPin(): string {
  return `${TEMPORARY_PIN}push/${randomUUID()}`
}

/** @throws {AgentError} `usage` */
function nameOf(file: string): { compression: Compression; fileHash: Digest } {
  const known = compressionOfFile(file)
  const hash = known && decodeNix32(known.stem, 32)
  if (hash) return { compression: known.compression, fileHash: Buffer.from(hash).toString('hex') }
  throw new AgentError('usage', `${file.slice(0, 100)} is not the name of a NAR that this agent takes`, {
    next: `Compressions are ${COMPRESSIONS}: add ?compression=zstd to the URL of the cache.`,
  })
}

async function* hashed(chunks: AsyncIterable<Uint8Array>, hash: ReturnType<typeof createHash>) {
  for await (const chunk of chunks) {
    hash.update(chunk)
    yield chunk
  }
}

/** The first chunk, and all of them. */
async function peeked(chunks: AsyncGenerator<Uint8Array>): Promise<{ first: Buffer; all: AsyncGenerator<Uint8Array> }> {
  const next = await chunks.next()
  const first = next.done ? Buffer.alloc(0) : Buffer.from(next.value)
  async function* all() {
    yield first
    yield* chunks
  }
  return { first, all: all() }
}
