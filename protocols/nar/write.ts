/**
 * Writes a path on disk as a NAR, byte for byte as `nix-store --dump` does, from any offset.
 *
 * A layout holds every byte that is not file contents, and where each file's contents go: a few hundred bytes a file. With it a range
 * is answered by reading that range only. Making one looks at names, types, sizes and links; contents are read when they are asked for,
 * so a file that changes in between is an error if its size differs, and is otherwise found out by whoever checks the hash.
 *
 * Format: spec.md. Uses Node's builtins only: the command line loads this too.
 */
import { closeSync, constants, fstatSync, open, read, type Stats } from 'node:fs'
import { lstat, readdir, readlink } from 'node:fs/promises'
import { resolve } from 'node:path'
import { WireError } from '../error.ts'
import { NAR_MAGIC } from './read.ts'

/** What read() hands out at a time: large enough to hide the cost of a call, small enough to keep many readers in memory. */
const CHUNK_BYTES = 256 * 1024
/** Small files are opened this many at a time; libuv's pool has four threads, and the rest wait in its queue. */
const READS_AT_ONCE = 8
/** As many `lstat`s of one directory are under way. */
const STATS_AT_ONCE = 32
/** A link or pipe that takes a file's place after the layout was made is not followed, and does not block. */
const OPEN_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

type FilePart = {
  /** Offset of the contents in the NAR. */
  readonly start: number
  readonly sizeBytes: number
  /** File contents in the NAR before `start`; `start` less this is the place in the literals. */
  readonly contentsBefore: number
  /** The path, one character a byte (latin1): names need not be UTF-8, and a string is smaller than a Buffer. */
  readonly path: string
}

export class NarLayout {
  readonly sizeBytes: number
  readonly #files: readonly FilePart[]
  readonly #literals: Buffer

  /** Use `layoutNar`. */
  constructor(files: readonly FilePart[], literals: Buffer) {
    const last = files.at(-1)
    this.sizeBytes = literals.byteLength + (last ? last.contentsBefore + last.sizeBytes : 0)
    this.#files = files
    this.#literals = literals
  }

  /** About what the layout itself takes in memory, for whoever keeps several. */
  get memoryBytes(): number {
    return this.#literals.byteLength + this.#files.reduce((sum, { path }) => sum + path.length + 64, 0)
  }

  /**
   * The bytes [offset, offset + length) of the NAR, in chunks of at most 256 KiB. The next chunk is read while the last one is used.
   *
   * @throws {WireError} `mismatch` when a file is not of the size that it was; ENOENT and the like when it is not there any more.
   */
  async *read(offset: number, length: number, signal: AbortSignal): AsyncGenerator<Uint8Array, void, void> {
    if (offset < 0 || length < 0 || offset + length > this.sizeBytes) {
      throw new RangeError(`bytes ${offset}+${length} of a NAR of ${this.sizeBytes}`)
    }
    using files = new OpenFiles()
    const end = offset + length
    let next: Promise<Buffer> | undefined
    const start = (at: number) => {
      const filled = this.#fill(at, Math.min(CHUNK_BYTES, end - at), files)
      // Handled when it is awaited; until then a failure must not count as unhandled.
      filled.catch(() => {})
      return filled
    }
    try {
      for (let at = offset; at < end; ) {
        signal.throwIfAborted()
        const chunk = await (next ?? start(at))
        at += chunk.byteLength
        next = at < end ? start(at) : undefined
        yield chunk
      }
    } finally {
      await next?.catch(() => {})
    }
  }

  /** One chunk: the literals at once, the file parts a few at a time. */
  async #fill(offset: number, length: number, files: OpenFiles): Promise<Buffer> {
    const chunk = Buffer.allocUnsafe(length)
    let reads: Promise<void>[] = []
    try {
      let at = offset
      let nth = this.#fileBefore(at)
      while (at < offset + length) {
        const file = this.#files[nth]
        const inFile = file ? at - file.start : 0
        if (file && inFile < file.sizeBytes) {
          const count = Math.min(file.sizeBytes - inFile, offset + length - at)
          const into = chunk.subarray(at - offset, at - offset + count)
          reads.push(files.read(file, inFile, into))
          at += count
          if (reads.length >= READS_AT_ONCE) {
            await Promise.all(reads)
            reads = []
          }
          continue
        }
        const literalAt = at - (file ? file.contentsBefore + file.sizeBytes : 0)
        const until = this.#files[nth + 1]?.start ?? this.sizeBytes
        const count = Math.min(until, offset + length) - at
        this.#literals.copy(chunk, at - offset, literalAt, literalAt + count)
        at += count
        if (at === until) nth++
      }
      await Promise.all(reads)
    } finally {
      // The buffer and the files must not be let go while a read is under way.
      await Promise.allSettled(reads)
    }
    return chunk
  }

  /** Index of the last file whose contents start at or before `offset`; -1 if there is none. */
  #fileBefore(offset: number): number {
    let low = 0
    let high = this.#files.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#files[middle]?.start ?? 0) <= offset) low = middle + 1
      else high = middle
    }
    return low - 1
  }
}

/**
 * Looks at `path` and lays out its NAR.
 *
 * @throws {WireError} `malformed` when something below is neither file, directory nor symbolic link; the errors of lstat, readdir and
 * readlink as they are.
 */
export async function layoutNar(path: string, signal?: AbortSignal): Promise<NarLayout> {
  const drawing = new Drawing(signal)
  drawing.strings(NAR_MAGIC)
  const root = Buffer.from(resolve(path))
  await drawing.node(root, await lstat(root))
  return drawing.finish()
}

/** A layout in the making. */
class Drawing {
  readonly #signal: AbortSignal | undefined
  readonly #files: FilePart[] = []
  #literals = Buffer.allocUnsafe(4096)
  #used = 0
  #contents = 0

  constructor(signal: AbortSignal | undefined) {
    this.#signal = signal
  }

  finish(): NarLayout {
    return new NarLayout(this.#files, Buffer.from(this.#literals.subarray(0, this.#used)))
  }

  async node(path: Buffer, stats: Stats): Promise<void> {
    this.#signal?.throwIfAborted()
    this.strings('(', 'type')
    if (stats.isFile()) this.#file(path, stats)
    else if (stats.isSymbolicLink()) {
      this.strings('symlink', 'target', await readlink(path, { encoding: 'buffer' }))
    } else if (stats.isDirectory()) await this.#directory(path)
    else throw new WireError('malformed', `${path.toString()} is neither a file, a directory nor a symbolic link`)
    this.strings(')')
  }

  #file(path: Buffer, stats: Stats): void {
    this.strings('regular')
    if ((stats.mode & constants.S_IXUSR) !== 0) this.strings('executable', '')
    this.strings('contents')
    this.#length(stats.size)
    if (stats.size > 0) {
      const start = this.#used + this.#contents
      this.#files.push({
        start,
        sizeBytes: stats.size,
        contentsBefore: this.#contents,
        path: path.toString('latin1'),
      })
      this.#contents += stats.size
    }
    this.#pad(stats.size)
  }

  async #directory(path: Buffer): Promise<void> {
    this.strings('directory')
    const names = await readdir(path, { encoding: 'buffer' })
    names.sort((one, other) => Buffer.compare(one, other))
    for (let at = 0; at < names.length; at += STATS_AT_ONCE) {
      const batch = names.slice(at, at + STATS_AT_ONCE)
      const paths = batch.map((name) => Buffer.concat([path, SLASH, name]))
      const stats = await Promise.all(paths.map((each) => lstat(each)))
      for (const [nth, name] of batch.entries()) {
        this.strings('entry', '(', 'name', name, 'node')
        await this.node(paths[nth] as Buffer, stats[nth] as Stats)
        this.strings(')')
      }
    }
  }

  strings(...values: (string | Buffer)[]): void {
    for (const value of values) {
      const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value
      this.#length(bytes.byteLength)
      this.#reserve(bytes.byteLength)
      this.#used += bytes.copy(this.#literals, this.#used)
      this.#pad(bytes.byteLength)
    }
  }

  #length(value: number): void {
    this.#reserve(8)
    this.#used = this.#literals.writeBigUInt64LE(BigInt(value), this.#used)
  }

  #pad(length: number): void {
    const count = (8 - (length % 8)) % 8
    this.#reserve(count)
    this.#literals.fill(0, this.#used, this.#used + count)
    this.#used += count
  }

  #reserve(count: number): void {
    if (this.#used + count <= this.#literals.byteLength) return
    const larger = Buffer.allocUnsafe(Math.max(this.#literals.byteLength * 2, this.#used + count))
    this.#literals.copy(larger, 0, 0, this.#used)
    this.#literals = larger
  }
}

const SLASH = Buffer.from('/')

/**
 * Opens files for one reader; keeps the one that the next chunk goes on with. Of each small file only what may wait for a disk leaves
 * the thread (opening, reading): looking at an open file and closing it does not, and a turn of libuv's pool costs more than they do.
 */
class OpenFiles implements Disposable {
  #kept: { path: string; fd: number } | undefined

  /** Fills `into` from `offset` of the file. Parts of one file come in order, one chunk after the other. */
  async read(file: FilePart, offset: number, into: Uint8Array): Promise<void> {
    const goesOn = offset + into.byteLength < file.sizeBytes
    const fd = await this.#take(file)
    let kept = false
    try {
      for (let done = 0; done < into.byteLength; ) {
        const count = await readAt(fd, into, done, offset + done)
        if (count === 0) throw changed(file)
        done += count
      }
      if (goesOn) {
        this.#kept = { path: file.path, fd }
        kept = true
      }
    } finally {
      if (!kept) closeSync(fd)
    }
  }

  async #take(file: FilePart): Promise<number> {
    if (this.#kept?.path === file.path) {
      const { fd } = this.#kept
      this.#kept = undefined
      return fd
    }
    const fd = await openFile(file.path)
    try {
      const stats = fstatSync(fd)
      if (!stats.isFile() || stats.size !== file.sizeBytes) throw changed(file)
      return fd
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  [Symbol.dispose](): void {
    if (this.#kept) closeSync(this.#kept.fd)
    this.#kept = undefined
  }
}

function openFile(path: string): Promise<number> {
  return new Promise((resolve, reject) => {
    open(Buffer.from(path, 'latin1'), OPEN_FLAGS, (error, fd) => (error ? reject(error) : resolve(fd)))
  })
}

/** Fills the rest of `into` from `from` on, with as much as comes at once. */
function readAt(fd: number, into: Uint8Array, from: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    read(fd, into, from, into.byteLength - from, position, (error, count) => (error ? reject(error) : resolve(count)))
  })
}

function changed({ path, sizeBytes }: FilePart): WireError {
  const name = Buffer.from(path, 'latin1').toString()
  return new WireError('mismatch', `${name} changed while it was read: it is not ${sizeBytes} bytes any more`)
}
