/** What answers of bytes are read from. */
type Awaitable<T> = T | Promise<T>

/** Bytes that this node holds, to be read in any range. */
export interface BlobReader {
  readonly sizeBytes: number
  read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array>
  close?(): Awaitable<void>
}
