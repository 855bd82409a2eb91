/**
 * What the rest of the agent sees of content: blobs, which are bytes named by their SHA-256. `Holdings`, `Blobs` and `Fetcher` beside
 * this file implement these types, and a test may put something simpler in their place.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'

/** Reasons of pins that begin like this hold for as long as the agent runs: what was left by one that was killed is gone at the next start. */
export const TEMPORARY_PIN = 'temporary:'

/** An open blob: bytes that can be read at any offset. */
export type BlobSource = {
  readonly sizeBytes: number
  /**
   * The bytes from `offset`, `length` of them, in chunks of at most 256 KiB; throws when they cannot all be had. A chunk that has an
   * ArrayBuffer to itself is the reader's own, who may give its memory back.
   */
  read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array>
  /** Fills the buffer with the bytes from `offset`, for those who read much and can use it again; not every source can. */
  readInto?(buffer: Uint8Array, offset: number): Promise<void>
  /** Gives back what the source holds open. Idempotent. */
  close?(): Promise<void>
  /** Told when the bytes read were not those of the digest; the holder drops the blob, and logs what was lost. */
  reportCorrupt?(): void
}

/** Something that can hand out blobs: the blob directory, the Nix store. */
export type BlobHolder = {
  /** The blob, or undefined when it is not here. The caller closes it. */
  open(digest: Digest): Promise<BlobSource | undefined>
  /**
   * The networks, by their ids in hex, in which the blob may be given to peers: it was published there from here, or came from peers there.
   * None for what is not here, nor for what nobody was meant to get.
   */
  networksOf(digest: Digest): Iterable<string>
}

/** The hashes of a blob's pieces; see protocols/pieces/spec.md for the root. */
export type PieceList = { readonly sizeBytes: number; readonly hashes: Uint8Array; readonly root: Uint8Array }

/** A blob that is being fetched, as far as it is here. */
export type PartSource = {
  readonly list: PieceList
  /** The list as somebody signed it. */
  readonly signed?: Uint8Array | undefined
  readonly generation: number
  has(index: number): boolean
  /** Whether the piece is there and was held against the list that the blob is fetched by; if it was not yet, it is now. */
  check(index: number): Promise<boolean>
  bitmap(): Uint8Array
  read(offset: number, length: number): Promise<Uint8Array>
  /** A piece by the list in use, if it is in memory since it was held against that. */
  fresh(index: number): Uint8Array | undefined
  /** Whoever reads keeps it open, and lets go of it in the end. */
  retain(): void
  release(): Promise<void>
}

export type WriteOptions = {
  /** Keeps the blob until `unpin(digest, reason)`; in the same transaction, so that it is never evictable in between. */
  pin?: string
  /** The network, by its id in hex, in which it may be given out: all of it came from its peers, or a member pushed it for them. */
  network?: string
  /** It can be had again: if nothing keeps it, it is on disk for good a while later only (late-sync.ts). */
  isLate?: boolean
  /** Told the file that the chunks are written to, once it is there: who opens it now can read what was written, also when it is moved. */
  onFile?: (path: string) => void
}

/** The blob directory. */
export type BlobStore = BlobHolder & {
  has(digest: Digest): boolean
  sizeOf(digest: Digest): number | undefined
  /**
   * Stores the chunks. With a digest, they must have it; without, they get theirs. On disk for good when it resolves, unless it may be late.
   *
   * @throws {AgentError} `corrupt` when the digest is another, `limit` when there is no room.
   */
  write(
    digest: Digest | undefined,
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    signal: AbortSignal,
    options?: WriteOptions,
  ): Promise<{ digest: Digest; sizeBytes: number }>
  /** A pinned blob is never evicted. One blob may have several reasons; pinning what is not here yet is allowed. */
  pin(digest: Digest, reason: string): void
  unpin(digest: Digest, reason: string): void
}

/** A peer's lie, told where it was found. */
export type Fault = { peerId: string; digest: Digest; reason: string }

export type FetchOptions = {
  /** For which network it is fetched, by its id in hex: in that one it may be given on. */
  network: string
  /** Peers of the network that may have it, best first; pulled one by one as they are needed. */
  sources: Iterable<string> | AsyncIterable<string>
  signal: AbortSignal
  /** Known from a signed statement: a source that says another size is not asked. */
  sizeBytes?: number
  /** Where the size is not known: more than this is refused. */
  sizeBytesMax?: number
  onProgress?: (doneBytes: number, totalBytes: number) => void
  pin?: string
  /** How much of other blobs waits to be fetched after it, most likely from the same sources. */
  moreBytes?: number
  /** How long a source may say nothing before another is asked, if there is one: short where somebody waits for a small blob. */
  hasteMs?: number
}

export type BlobFetcher = {
  /**
   * Brings the blob into the blob directory; returns at once when it is there. Concurrent fetches of one digest for one network are one;
   * those for other networks wait.
   *
   * @throws {AgentError} `corrupt` naming peers and reasons when a source lied and none was honest, `not-found` when no source has it,
   *   `limit` when there is no room, `cancelled` when the signal fires.
   */
  fetch(digest: Digest, options: FetchOptions): Promise<void>
  /**
   * The same, but returns as soon as the size is known; reads wait for the pieces they need. The last piece is given out only after the
   * whole hash was verified, so whoever reads to the end has read the right bytes. Closing it early leaves the fetch, as its signal does.
   */
  open(digest: Digest, options: FetchOptions): Promise<BlobSource>
}
