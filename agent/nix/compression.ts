/**
 * NARs as others send them: decompressed as they come. What Node has itself (gzip, brotli, zstd) runs in its thread pool; xz, which it
 * has not, in the program `xz` where that is installed, else in WebAssembly on the main thread, several times slower and one at a time.
 *
 * Says nothing about the bytes but that they were well compressed: whoever reads them holds them against their hash.
 */
import { spawn } from 'node:child_process'
import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { createBrotliDecompress, createGunzip, createZstdDecompress } from 'node:zlib'
import { AgentError, reasonOf } from '../error.ts'

export type Compression = 'none' | 'gzip' | 'br' | 'zstd' | 'xz'

/** As a narinfo's `Compression` and HTTP's Content-Encoding have it, and as it ends the name of a NAR file. */
const METHODS: readonly { compression: Compression; names: readonly string[]; suffix: string }[] = [
  { compression: 'none', names: ['none', 'identity', ''], suffix: '.nar' },
  { compression: 'gzip', names: ['gzip', 'x-gzip'], suffix: '.nar.gz' },
  { compression: 'br', names: ['br'], suffix: '.nar.br' },
  { compression: 'zstd', names: ['zstd'], suffix: '.nar.zst' },
  { compression: 'xz', names: ['xz'], suffix: '.nar.xz' },
]
/** What this agent reads, for messages. */
export const COMPRESSIONS: string = METHODS.map(({ compression }) => compression).join(', ')
/** Of what `xz` says when it fails; it goes into an error message. */
const COMPLAINT_LENGTH_MAX = 200

/** undefined for one that is not read here: bzip2, lz4, lzip. */
export function compressionNamed(name: string): Compression | undefined {
  return METHODS.find(({ names }) => names.includes(name.toLowerCase()))?.compression
}

/** Of a NAR file by its name, and what stands before the suffix. */
export function compressionOfFile(file: string): { stem: string; compression: Compression } | undefined {
  const found = METHODS.findLast(({ suffix }) => file.endsWith(suffix))
  return found && { stem: file.slice(0, -found.suffix.length), compression: found.compression }
}

/**
 * The bytes before they were compressed.
 *
 * @throws {AgentError} `corrupt` while it is read, for bytes that are not so compressed; whatever reading `chunks` throws
 */
export async function* decompressed(
  chunks: AsyncIterable<Uint8Array>,
  compression: Compression,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  if (compression === 'none') {
    yield* chunks
    return
  }
  // What goes wrong before the decompressor is not its fault.
  let failure: unknown
  const source = Readable.from(
    watched(chunks, (error) => (failure ??= error)),
    { objectMode: false },
  )
  try {
    if (compression === 'xz') yield* unxz(source, signal)
    else yield* through(source, DECOMPRESSORS[compression](), signal)
  } catch (cause) {
    if (failure !== undefined) throw failure as Error
    signal.throwIfAborted()
    if (cause instanceof AgentError) throw cause
    throw new AgentError('corrupt', `the bytes are not compressed with ${compression}: ${reasonOf(cause)}`, { cause })
  } finally {
    source.destroy()
  }
}

const DECOMPRESSORS = { gzip: createGunzip, br: createBrotliDecompress, zstd: createZstdDecompress }

async function* watched(chunks: AsyncIterable<Uint8Array>, onError: (error: unknown) => void) {
  try {
    yield* chunks
  } catch (error) {
    onError(error)
    throw error
  }
}

async function* through(
  source: Readable,
  decompressor: NodeJS.ReadWriteStream & Readable,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  source.once('error', (error) => decompressor.destroy(error))
  const onAbort = () => decompressor.destroy(signal.reason as Error)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    yield* source.pipe(decompressor) as AsyncIterable<Uint8Array>
  } finally {
    signal.removeEventListener('abort', onAbort)
    decompressor.destroy()
  }
}

/** Whether there is a program `xz`; undefined until the first use. */
let hasProgram: boolean | undefined

async function* unxz(source: Readable, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  hasProgram ??= await canRun('xz')
  if (hasProgram) yield* throughProgram(source, signal)
  else yield* throughWasm(source)
}

function canRun(program: string): Promise<boolean> {
  return new Promise((resolve) => {
    const child = spawn(program, ['--version'], { stdio: 'ignore' })
    child.once('error', () => resolve(false))
    child.once('exit', (code) => resolve(code === 0))
  })
}

async function* throughProgram(source: Readable, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const child = spawn('xz', ['--decompress', '--stdout', '--single-stream'], { stdio: ['pipe', 'pipe', 'pipe'] })
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const failed = new Promise<never>((_, reject) => child.once('error', reject))
  failed.catch(() => undefined)
  let complaint = ''
  child.stderr.on('data', (bytes: Buffer) => {
    complaint = `${complaint}${bytes.toString()}`.slice(0, COMPLAINT_LENGTH_MAX)
  })
  // It ends early when it has had enough, or complains: its exit says which.
  child.stdin.on('error', () => undefined)
  const kill = () => void child.kill('SIGKILL')
  source.once('error', kill)
  signal.addEventListener('abort', kill, { once: true })
  try {
    source.pipe(child.stdin)
    yield* child.stdout as AsyncIterable<Uint8Array>
    const code = await Promise.race([ended, failed])
    if (code !== 0) throw new Error(complaint.trim() || 'xz ended early')
  } finally {
    signal.removeEventListener('abort', kill)
    kill()
  }
}

async function* throughWasm(source: Readable): AsyncGenerator<Uint8Array> {
  const { XzReadableStream } = await import('xz-decompress')
  const bytes = Readable.toWeb(source) as ReadableStream<Uint8Array>
  yield* new XzReadableStream(bytes as never) as unknown as AsyncIterable<Uint8Array>
}
