/**
 * Peers and a blob directory in memory, for tests of the Nix front-end: what each peer holds, and how it misbehaves.
 */
import { createHash } from 'node:crypto'
import type {
  BlobFetcher,
  BlobHolder,
  BlobSource,
  BlobStore,
  Fault,
  FetchOptions,
} from '../../../agent/content/content.ts'
import { AgentError } from '../../../agent/error.ts'
import type { Log } from '../../../agent/log.ts'
import type { Digest } from '../../../protocols/artifact/artifact.ts'

export const sha256 = (bytes: Uint8Array): Digest => createHash('sha256').update(bytes).digest('hex')

/** A log that remembers its event names. */
export function memoryLog(): Log & { events: { event: string; fields: Record<string, unknown> }[] } {
  const events: { event: string; fields: Record<string, unknown> }[] = []
  const write = (fields: unknown, event?: string) => {
    events.push({ event: event ?? '', fields: fields as Record<string, unknown> })
  }
  return { events, debug: write, info: write, warn: write, error: write } as Log & { events: typeof events }
}

export class MemoryBlobs implements BlobStore {
  readonly blobs = new Map<Digest, Buffer>()
  readonly pins: string[] = []
  open(digest: Digest): Promise<BlobSource | undefined> {
    const bytes = this.blobs.get(digest)
    if (!bytes) return Promise.resolve(undefined)
    return Promise.resolve({ ...sourceOf(bytes), reportCorrupt: () => void this.blobs.delete(digest) })
  }
  networksOf(): string[] {
    return []
  }
  has(digest: Digest): boolean {
    return this.blobs.has(digest)
  }
  sizeOf(digest: Digest): number | undefined {
    return this.blobs.get(digest)?.byteLength
  }
  async write(
    digest: Digest | undefined,
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    _signal: AbortSignal,
    options?: { pin?: string },
  ): Promise<{ digest: Digest; sizeBytes: number }> {
    const parts: Uint8Array[] = []
    for await (const chunk of chunks) parts.push(chunk)
    const bytes = Buffer.concat(parts)
    const actual = sha256(bytes)
    if (digest !== undefined && digest !== actual) throw new AgentError('corrupt', 'another digest')
    this.blobs.set(actual, bytes)
    if (options?.pin !== undefined) this.pin(actual, options.pin)
    return { digest: actual, sizeBytes: bytes.byteLength }
  }
  pin(digest: Digest, reason: string): void {
    this.pins.push(`${digest} ${reason}`)
  }
  unpin(digest: Digest, reason: string): void {
    this.pins.splice(this.pins.indexOf(`${digest} ${reason}`), 1)
  }
}

export type Peer = {
  holds: Pick<BlobHolder, 'open'>
  /** Sends other bytes than it should. */
  lies?: (digest: Digest) => boolean
  /** Never answers. */
  hangs?: boolean
}

export class MemoryPeers implements BlobFetcher {
  readonly peers: Map<string, Peer>
  readonly faults: Fault[] = []
  /** Every request that reached a peer. */
  readonly asked: { peerId: string; digest: Digest; network: string }[] = []
  /** Fetches whose signal fired. */
  cancelled = 0
  readonly #blobs: MemoryBlobs

  constructor(blobs: MemoryBlobs, peers = new Map<string, Peer>()) {
    this.#blobs = blobs
    this.peers = peers
  }

  async fetch(digest: Digest, { network, sources, signal }: FetchOptions): Promise<void> {
    if (this.#blobs.has(digest)) return
    const lies: string[] = []
    for await (const peerId of sources) {
      const peer = this.peers.get(peerId)
      this.asked.push({ peerId, digest, network })
      if (peer?.hangs) await this.#hang(signal)
      const source = await peer?.holds.open(digest)
      if (!source) continue
      const bytes = await readAll(source)
      if (peer?.lies?.(digest)) bytes[bytes.byteLength >> 1] = (bytes[bytes.byteLength >> 1] ?? 0) ^ 1
      if (sha256(bytes) === digest) {
        this.#blobs.blobs.set(digest, bytes)
        return
      }
      const reason = 'it sent bytes with another hash'
      lies.push(`${peerId}: ${reason}`)
      this.faults.push({ peerId, digest, reason })
    }
    throw lies.length > 0
      ? new AgentError('corrupt', lies.join('; '))
      : new AgentError('not-found', `no peer has ${digest}`)
  }

  async open(digest: Digest, options: FetchOptions): Promise<BlobSource> {
    await this.fetch(digest, options)
    return (await this.#blobs.open(digest)) as BlobSource
  }

  #hang(signal: AbortSignal): Promise<never> {
    return new Promise((_resolve, reject) => {
      const onAbort = () => {
        this.cancelled++
        reject(signal.reason as Error)
      }
      if (signal.aborted) onAbort()
      else signal.addEventListener('abort', onAbort, { once: true })
    })
  }
}

function sourceOf(bytes: Buffer): BlobSource {
  return {
    sizeBytes: bytes.byteLength,
    async *read(offset, length) {
      for (let at = offset; at < offset + length; at += 65_536) {
        yield bytes.subarray(at, Math.min(at + 65_536, offset + length))
      }
    },
  }
}

export async function readAll(source: BlobSource): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for await (const chunk of source.read(0, source.sizeBytes, new AbortController().signal)) chunks.push(chunk)
  return Buffer.concat(chunks)
}
