/**
 * Reads a NAR as it streams in, and unpacks one on disk. The bytes come from strangers: everything that the specification does not
 * require byte for byte is refused, so one tree has one NAR, and no name can lead out of the destination.
 *
 * Format and limits: spec.md. Uses Node's builtins only: the command line loads this too.
 */
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rm, symlink } from 'node:fs/promises'
import { resolve } from 'node:path'
import { WireError } from '../error.ts'

/** Opens every NAR. */
export const NAR_MAGIC = 'nix-archive-1'
/** Of the names from the root joined by `/`: Linux's PATH_MAX, less the terminating NUL. Bounds how deep directories nest, too. */
const PATH_BYTES_MAX = 4_095
/** Linux's NAME_MAX. */
const NAME_BYTES_MAX = 255
/** As PATH_BYTES_MAX. */
const TARGET_BYTES_MAX = 4_095
/** The longest word of the grammar is the magic. */
const WORD_BYTES_MAX = 16

/** What parseNar tells of, in the order of the NAR. Paths are names joined by `/`; the root's is empty. What it returns is waited for. */
export type NarVisitor = {
  directory(path: Buffer): Promise<void> | void
  symlink(path: Buffer, target: Buffer): Promise<void> | void
  /** Then come contents(), any number of times, and fileEnd(). */
  file(path: Buffer, file: { executable: boolean; sizeBytes: number }): Promise<void> | void
  /** Part of the contents of the file begun last. Valid until what this returns is settled. */
  contents(bytes: Uint8Array): Promise<void> | void
  fileEnd(): Promise<void> | void
}

/**
 * Walks a NAR from its first byte to its last.
 *
 * @throws {WireError} `malformed` for bytes that are not exactly one NAR, `closed` when they end too early; and whatever the visitor or
 * the source throws.
 */
export async function parseNar(chunks: AsyncIterable<Uint8Array>, visitor: NarVisitor): Promise<void> {
  await using words = new Words(chunks)
  await words.expect(NAR_MAGIC)
  /** The directories that are open, outermost first. */
  const open: { path: Buffer; last: Buffer | undefined }[] = []
  let path: Buffer = Buffer.alloc(0)
  for (;;) {
    const isDirectory = await parseNode(words, path, visitor)
    if (isDirectory) open.push({ path, last: undefined })
    // A node that is not a directory has ended: so has its entry, and maybe the directories around it.
    if (!isDirectory && open.length > 0) await words.expect(')')
    let word = open.length > 0 ? await words.word() : undefined
    while (word === ')') {
      open.pop()
      if (open.length > 0) {
        await words.expect(')')
        word = await words.word()
      } else word = undefined
    }
    const directory = open.at(-1)
    if (!directory) break
    if (word !== 'entry') throw malformed(`expected an entry, found ${JSON.stringify(word)}`)
    const name = await parseName(words, directory.last)
    directory.last = name
    path = directory.path.byteLength > 0 ? Buffer.concat([directory.path, SLASH, name]) : name
    if (path.byteLength > PATH_BYTES_MAX) throw malformed(`a path of more than ${PATH_BYTES_MAX} bytes`)
  }
  await words.end()
}

/** Parses a node; of a directory only the beginning. */
async function parseNode(words: Words, path: Buffer, visitor: NarVisitor): Promise<boolean> {
  await words.expect('(')
  await words.expect('type')
  const type = await words.word()
  if (type === 'directory') {
    await visitor.directory(path)
    return true
  }
  if (type === 'symlink') {
    await words.expect('target')
    const target = await words.string(TARGET_BYTES_MAX, 'target')
    if (target.byteLength === 0 || target.includes(0)) throw malformed('a symbolic link to nothing')
    await visitor.symlink(path, target)
  } else if (type === 'regular') {
    let word = await words.word()
    const executable = word === 'executable'
    if (executable) {
      await words.expect('')
      word = await words.word()
    }
    if (word !== 'contents') throw malformed(`expected the contents, found ${JSON.stringify(word)}`)
    const sizeBytes = await words.length()
    await visitor.file(path, { executable, sizeBytes })
    await words.bytes(sizeBytes, visitor)
    await visitor.fileEnd()
  } else throw malformed(`unknown type ${JSON.stringify(type)}`)
  await words.expect(')')
  return false
}

async function parseName(words: Words, last: Buffer | undefined): Promise<Buffer> {
  await words.expect('(')
  await words.expect('name')
  const name = await words.string(NAME_BYTES_MAX, 'name')
  const text = name.toString('latin1')
  if (text === '' || text === '.' || text === '..' || text.includes('/') || text.includes('\0')) {
    throw malformed(`the name ${JSON.stringify(text)} is not allowed`)
  }
  if (last && Buffer.compare(last, name) >= 0) throw malformed(`the name ${JSON.stringify(text)} is out of order`)
  await words.expect('node')
  return name
}

/**
 * Unpacks a NAR to `destination`, which must not exist while its parent must. Everything is created exclusively, so nothing that was
 * there is written to or through. After a failure what was made is removed.
 *
 * @throws {WireError} as parseNar; and the errors of the file system as they are.
 */
export async function unpackNar(
  chunks: AsyncIterable<Uint8Array>,
  destination: string,
  signal?: AbortSignal,
): Promise<void> {
  const root = Buffer.from(resolve(destination))
  await using unpacking = new Unpacking(root, signal)
  await parseNar(chunks, unpacking)
  unpacking.done()
}

class Unpacking implements NarVisitor, AsyncDisposable {
  readonly #root: Buffer
  readonly #signal: AbortSignal | undefined
  #file: FileHandle | undefined
  #made = false
  #done = false

  constructor(root: Buffer, signal: AbortSignal | undefined) {
    this.#root = root
    this.#signal = signal
  }

  async directory(path: Buffer): Promise<void> {
    this.#signal?.throwIfAborted()
    await mkdir(this.#place(path))
    this.#made = true
  }

  async symlink(path: Buffer, target: Buffer): Promise<void> {
    this.#signal?.throwIfAborted()
    await symlink(target, this.#place(path))
    this.#made = true
  }

  async file(path: Buffer, { executable }: { executable: boolean }): Promise<void> {
    this.#signal?.throwIfAborted()
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    this.#file = await open(this.#place(path), flags, executable ? 0o777 : 0o666)
    this.#made = true
  }

  async contents(bytes: Uint8Array): Promise<void> {
    this.#signal?.throwIfAborted()
    for (let done = 0; done < bytes.byteLength; ) {
      const { bytesWritten } = (await this.#file?.write(bytes, done)) ?? { bytesWritten: bytes.byteLength }
      done += bytesWritten
    }
  }

  async fileEnd(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.close()
  }

  done(): void {
    this.#done = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.fileEnd()
    if (this.#made && !this.#done) await rm(this.#root, { recursive: true, force: true })
  }

  #place(path: Buffer): Buffer {
    return path.byteLength > 0 ? Buffer.concat([this.#root, SLASH, path]) : this.#root
  }
}

const SLASH = Buffer.from('/')

/** The words of the grammar, pulled from the chunks as they are needed. */
class Words implements AsyncDisposable {
  readonly #chunks: AsyncIterator<Uint8Array>
  #buffer: Buffer = Buffer.alloc(0)
  #at = 0

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]()
  }

  async expect(word: string): Promise<void> {
    const found = await this.word()
    if (found !== word) throw malformed(`expected ${JSON.stringify(word)}, found ${JSON.stringify(found)}`)
  }

  async word(): Promise<string> {
    return (await this.string(WORD_BYTES_MAX, 'word')).toString('latin1')
  }

  /** A copy of the next string, which may be kept. */
  async string(bytesMax: number, what: string): Promise<Buffer> {
    const length = await this.length()
    if (length > bytesMax) throw malformed(`a ${what} of ${length} bytes; the limit is ${bytesMax}`)
    const padded = length + padding(length)
    if (this.#buffer.byteLength - this.#at < padded) await this.#pull(padded)
    const value = Buffer.from(this.#buffer.subarray(this.#at, this.#at + length))
    this.#checkZeros(this.#at + length, padded - length)
    this.#at += padded
    return value
  }

  async length(): Promise<number> {
    if (this.#buffer.byteLength - this.#at < 8) await this.#pull(8)
    const length = this.#buffer.readBigUInt64LE(this.#at)
    if (length > Number.MAX_SAFE_INTEGER) throw malformed(`a length of ${length} bytes`)
    this.#at += 8
    return Number(length)
  }

  /** Hands `count` bytes to the visitor, as they come. */
  async bytes(count: number, visitor: NarVisitor): Promise<void> {
    for (let left = count; left > 0; ) {
      if (this.#at === this.#buffer.byteLength) await this.#pull(1)
      const part = this.#buffer.subarray(this.#at, this.#at + left)
      this.#at += part.byteLength
      left -= part.byteLength
      await visitor.contents(part)
    }
    const zeros = padding(count)
    if (this.#buffer.byteLength - this.#at < zeros) await this.#pull(zeros)
    this.#checkZeros(this.#at, zeros)
    this.#at += zeros
  }

  /** Nothing may follow. */
  async end(): Promise<void> {
    for (let left = this.#buffer.byteLength - this.#at; left === 0; ) {
      const next = await this.#chunks.next()
      if (next.done) return
      left = next.value.byteLength
    }
    throw malformed('bytes after the end')
  }

  /** Lets the source go when parsing stops before its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#chunks.return?.()
  }

  #checkZeros(at: number, count: number): void {
    for (let nth = 0; nth < count; nth++) {
      if (this.#buffer[at + nth] !== 0) throw malformed('padding that is not zero')
    }
  }

  /** Waits until `count` bytes, which the caller has bounded, are buffered. */
  async #pull(count: number): Promise<void> {
    const parts = [this.#buffer.subarray(this.#at)]
    let have = parts[0]?.byteLength ?? 0
    while (have < count) {
      const next = await this.#chunks.next()
      if (next.done) throw new WireError('closed', 'the NAR ends too early')
      parts.push(Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength))
      have += next.value.byteLength
    }
    this.#buffer = have === parts.at(-1)?.byteLength ? (parts.at(-1) as Buffer) : Buffer.concat(parts)
    this.#at = 0
  }
}

function padding(length: number): number {
  return (8 - (length % 8)) % 8
}

function malformed(reason: string): WireError {
  return new WireError('malformed', `not a NAR: ${reason}`)
}
