/**
 * Puts a fetched part where it belongs: written beside its place under a temporary name while its hash is checked, and moved there only
 * when it is right. Nothing that exists is overwritten or written through; what is there already and identical is left as it is.
 */
import { createHash, type Hash, randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream, type Stats } from 'node:fs'
import { link, lstat, mkdir, rename, rm, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { pipe } from 'it-pipe'
import { unpackNar } from '../../protocols/nar/read.ts'
import { layoutNar } from '../../protocols/nar/write.ts'
import type { Part } from '../api/contract.ts'
import { AgentError } from '../error.ts'

/** As protocols/artifact and Nix have them; checked again here, where a name becomes a path. */
const NAME_PATTERN = /^[0-9a-zA-Z+\-_?=][0-9a-zA-Z+\-._?=]{0,127}$/
const STORE_PATH_PATTERN = /^\/[^\0]*\/([0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+\-._?=]{1,211})$/

/** Written in one go, while the next ones are received and hashed. */
const WRITE_BYTES = 1024 * 1024

export type Destination = { name: string; directory: string }
export type Placed = { path: string /** false when it was there, identical. */; isNew: boolean }

/**
 * `open` begins the download; it is not called for what is already there.
 *
 * @throws {AgentError} `taken` when something else is in its place, `corrupt` when the bytes are not those of the digest.
 */
export async function place(
  part: Part,
  { name, directory }: Destination,
  open: () => AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<Placed> {
  const path = join(resolve(directory), relativePathOf(part, name))
  const there = await statOf(path)
  if (there) {
    if (await isIdentical(path, there, part, signal)) return { path, isNew: false }
    throw taken(path)
  }
  const parent = dirname(path)
  await mkdir(parent, { recursive: true })
  const temporary = join(parent, `.${randomBytes(6).toString('hex')}.partial`)
  const hash = createHash('sha256')
  try {
    const write = part.kind === 'file' ? writeFile : unpackNar
    await pipe(open(), hashing(hash), (bytes) => write(bytes, temporary, signal))
    if (hash.digest('hex') !== part.digest) {
      throw new AgentError('corrupt', `what the agent sent for ${path} is not what it was asked for`, {
        next: 'Nothing was kept. Run the command again; if it stays so, check the agent’s disk with `agent doctor`.',
      })
    }
    await move(temporary, path, part.kind)
  } catch (error) {
    await rm(temporary, { recursive: true, force: true })
    throw error
  }
  return { path, isNew: true }
}

/** Below the directory that the user named. Names and paths were chosen by a peer. */
function relativePathOf(part: Part, name: string): string {
  if (part.path !== undefined) {
    const [, base] = STORE_PATH_PATTERN.exec(part.path) ?? []
    if (base !== undefined) return join('nix', 'store', base)
  } else if (NAME_PATTERN.test(name)) return name
  throw new AgentError('corrupt', `an artifact that would be written to ${JSON.stringify(part.path ?? name)}`, {
    next: 'Its publisher made a name that no file should have; nothing was written.',
  })
}

async function writeFile(bytes: AsyncIterable<Uint8Array>, path: string, signal: AbortSignal): Promise<void> {
  await pipeline(bytes, createWriteStream(path, { flags: 'wx', highWaterMark: WRITE_BYTES }), { signal })
}

/** Never replaces: link and rename fail when, since we looked, something came to be there. */
async function move(from: string, to: string, kind: Part['kind']): Promise<void> {
  try {
    if (kind === 'file') {
      await link(from, to)
      await unlink(from)
    } else if (await statOf(to)) throw taken(to)
    else await rename(from, to)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST' || code === 'ENOTEMPTY') throw taken(to)
    // File systems without hard links.
    if (code !== 'EPERM' && code !== 'ENOTSUP') throw error
    if (await statOf(to)) throw taken(to)
    await rename(from, to)
  }
}

async function isIdentical(path: string, stats: Stats, part: Part, signal: AbortSignal): Promise<boolean> {
  const hash = createHash('sha256')
  if (part.kind === 'file') {
    if (!stats.isFile() || stats.size !== part.sizeBytes) return false
    for await (const chunk of createReadStream(path, { signal })) hash.update(chunk)
  } else {
    const layout = await layoutNar(path, signal)
    if (layout.sizeBytes !== part.sizeBytes) return false
    for await (const chunk of layout.read(0, layout.sizeBytes, signal)) hash.update(chunk)
  }
  return hash.digest('hex') === part.digest
}

/** Passes bytes on, and into the hash. */
function hashing(hash: Hash) {
  return async function* (bytes: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, void> {
    for await (const chunk of bytes) {
      hash.update(chunk)
      yield chunk
    }
  }
}

async function statOf(path: string): Promise<Stats | undefined> {
  try {
    return await lstat(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function taken(path: string): AgentError {
  return new AgentError('taken', `${path} exists and is something else`, {
    next: 'Nothing is overwritten: move it away, or choose another directory with --to.',
  })
}
