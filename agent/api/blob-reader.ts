/** What answers of bytes are read from. */
type Awaitable<T> = T | Promise<T>

/** Bytes that this node holds, to be read in any range. */
export interface BlobReader {
  readonly sizeBytes: number
  read(offset: number, length: number, signal: AbortSignal): AsyncIterable<Uint8Array>
  /** For those who read much and can use the buffer again; not every source can. */
  readInto?(buffer: Uint8Array, offset: number): Promise<void>
  close?(): Awaitable<void>
}
