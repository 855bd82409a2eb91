/**
 * What `agent publish PATH` means by its path: a store path, which the agent serves from the Nix store; or a file or folder, whose bytes
 * are sent to it, since the agent may be another user's process that could not read them.
 */
import { createReadStream } from 'node:fs'
import { realpath, stat } from 'node:fs/promises'
import { basename, relative, resolve } from 'node:path'
import { layoutNar } from '../../protocols/nar/write.ts'
import { AgentError } from '../error.ts'

const READ_BYTES = 256 * 1024
/** As protocols/artifact allows. */
const NAME_LENGTH_MAX = 128

export type Source =
  | { kind: 'store path'; path: string }
  | {
      kind: 'file' | 'folder'
      /** From the path, with only characters that a name may have. */
      name: string
      /** undefined for standard input. */
      sizeBytes: number | undefined
      bytes: AsyncIterable<Uint8Array>
    }

/** @throws {AgentError} `usage` for what is neither; errors of the file system as they are. */
export async function sourceOf(path: string, signal: AbortSignal, env = process.env): Promise<Source> {
  if (path === '-') return { kind: 'file', name: 'stdin', sizeBytes: undefined, bytes: process.stdin }
  const real = await realpath(path)
  if (isStorePath(real, env.NIX_STORE_DIR || '/nix/store')) return { kind: 'store path', path: real }
  const name = nameOf(resolve(path))
  const stats = await stat(real)
  if (stats.isFile()) {
    const bytes = createReadStream(real, { highWaterMark: READ_BYTES, signal })
    return { kind: 'file', name, sizeBytes: stats.size, bytes }
  }
  if (!stats.isDirectory()) {
    throw new AgentError('usage', `${path} is neither a file nor a folder`, {
      next: 'Pipe its bytes instead: agent publish - --name NAME',
    })
  }
  const layout = await layoutNar(real, signal)
  return { kind: 'folder', name, sizeBytes: layout.sizeBytes, bytes: layout.read(0, layout.sizeBytes, signal) }
}

/** The path itself, not something inside it: that is a file or folder like any other. */
function isStorePath(path: string, store: string): boolean {
  return /^[0-9a-df-np-sv-z]{32}-[^/]+$/.test(relative(store, path))
}

function nameOf(path: string): string {
  const name = basename(path)
    .replace(/[^0-9A-Za-z+\-._?=]+/g, '-')
    .replace(/^\.+/, '')
    .slice(0, NAME_LENGTH_MAX)
  return name === '' ? 'unnamed' : name
}
