/**
 * Archives of regular files, as tar has them (POSIX ustar), written and read as streams: enough for what the agent makes itself. What it reads may
 * come from anybody: one entry is read after the other, nothing is written by its name here, and what is no plain file with a plain name is refused.
 */

const BLOCK_BYTES = 512
/** ustar has a hundred bytes for a name. */
const NAME_LENGTH_MAX = 100
/** Of one file: eleven octal digits. */
const FILE_BYTES_MAX = 8 ** 11 - 1
/** Nobody's backup or report has more; a reader of hostile archives must end. */
const ENTRIES_MAX = 10_000

export type TarFile = { name: string; sizeBytes: number; bytes: AsyncIterable<Uint8Array> | Iterable<Uint8Array> }

/** `madeMs` is the time of all files: milliseconds since 1970. @throws {RangeError} for a name or a size that tar does not have */
export async function* writeTar(
  files: AsyncIterable<TarFile> | Iterable<TarFile>,
  madeMs: number,
): AsyncGenerator<Uint8Array> {
  for await (const { name, sizeBytes, bytes } of files) {
    yield header(name, sizeBytes, madeMs)
    let left = sizeBytes
    for await (const chunk of bytes) {
      left -= chunk.byteLength
      if (left < 0) break
      yield chunk
    }
    if (left !== 0) throw new RangeError(`${name} is not ${sizeBytes} bytes long`)
    yield new Uint8Array(padding(sizeBytes))
  }
  yield new Uint8Array(2 * BLOCK_BYTES)
}

/** Each file's bytes have to be read to their end before the next one. @throws {Error} that says what is wrong with the archive */
export async function* readTar(archive: AsyncIterable<Uint8Array>): AsyncGenerator<TarFile> {
  const source = new Source(archive)
  for (let entries = 0; ; entries++) {
    if (entries > ENTRIES_MAX) throw new Error('it has too many files')
    const block = await source.take(BLOCK_BYTES)
    if (block.every((byte) => byte === 0)) return await source.end()
    const { name, sizeBytes } = readHeader(block)
    let isRead = false
    async function* bytes() {
      for (let left = sizeBytes; left > 0; ) {
        const chunk = await source.some(left)
        left -= chunk.byteLength
        yield chunk
      }
      await source.take(padding(sizeBytes))
      isRead = true
    }
    yield { name, sizeBytes, bytes: bytes() }
    if (!isRead) throw new Error('a file of it was not read')
  }
}

function header(name: string, sizeBytes: number, madeMs: number): Uint8Array {
  if (!/^[\x21-\x7e]+$/.test(name) || name.length > NAME_LENGTH_MAX) throw new RangeError(`tar has no name ${name}`)
  if (sizeBytes > FILE_BYTES_MAX) throw new RangeError(`${name} is too large for tar`)
  const block = Buffer.alloc(BLOCK_BYTES)
  const octal = (value: number, at: number, length: number) =>
    block.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, 'latin1')
  block.write(name, 0, 'latin1')
  octal(0o600, 100, 8)
  octal(0, 108, 8)
  octal(0, 116, 8)
  octal(sizeBytes, 124, 12)
  octal(Math.floor(madeMs / 1_000), 136, 12)
  block.write('        0', 148, 'latin1')
  block.write('ustar\x0000', 257, 'latin1')
  block.write(`${checksum(block).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

function readHeader(block: Buffer): { name: string; sizeBytes: number } {
  const text = (at: number, length: number) => block.toString('latin1', at, at + length).replace(/[\0 ].*$/s, '')
  const said = text(148, 8)
  if (!/^[0-7]{1,7}$/.test(said) || Number.parseInt(said, 8) !== checksum(block))
    throw new Error('a header of it is damaged')
  const [name, size, type] = [text(0, NAME_LENGTH_MAX), text(124, 12), block.toString('latin1', 156, 157)]
  if (!/^[0-7]{1,11}$/.test(size) || !/^[\x21-\x7e]+$/.test(name))
    throw new Error('a header of it is not as tar has it')
  if (type !== '0' && type !== '\0') throw new Error(`${name} is no regular file`)
  return { name, sizeBytes: Number.parseInt(size, 8) }
}

/** Of a header, its own place taken as spaces. */
function checksum(block: Buffer): number {
  return block.reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 0x20 : byte), 0)
}

function padding(sizeBytes: number): number {
  return (BLOCK_BYTES - (sizeBytes % BLOCK_BYTES)) % BLOCK_BYTES
}

/** Bytes in the lengths that are asked for. */
class Source {
  readonly #chunks: AsyncIterator<Uint8Array>
  #left: Buffer = Buffer.alloc(0)

  constructor(archive: AsyncIterable<Uint8Array>) {
    this.#chunks = archive[Symbol.asyncIterator]()
  }

  async take(length: number): Promise<Buffer> {
    const parts: Buffer[] = []
    for (let missing = length; missing > 0; ) {
      const part = await this.some(missing)
      parts.push(part)
      missing -= part.byteLength
    }
    return Buffer.concat(parts)
  }

  /** Reads on: what is wrong with the end is wrong with all. */
  async end(): Promise<void> {
    while ((await this.#chunks.next()).done !== true) {
      // The end of an archive is zeros, as many as its writer likes.
    }
  }

  /** At least one byte, and as many as `most`. */
  async some(most: number): Promise<Buffer> {
    while (this.#left.byteLength === 0) {
      const { value, done } = await this.#chunks.next()
      if (done === true) throw new Error('it ends too early')
      this.#left = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    }
    const part = this.#left.subarray(0, most)
    this.#left = this.#left.subarray(part.byteLength)
    return part
  }
}
