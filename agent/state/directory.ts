/**
 * The state directory: made with mode 0700, and held by one agent at a time.
 *
 * The hold is a lock of the operating system (SQLite's reserved lock on `lock`), so it ends with the process, however that ends:
 * there is no stale lock to clear after a kill -9 or a power cut.
 */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { AgentError, reasonOf } from '../error.ts'
import { diskError } from './disk.ts'

/** In a state directory while a backup is put into it: neither what was there nor what comes is whole. */
export const RESTORING = 'restoring'

type Holder = { pid: number; since: string }

export class StateDirectory implements Disposable {
  readonly path: string
  readonly #lock: DatabaseSync

  private constructor(path: string, lock: DatabaseSync) {
    this.path = path
    this.#lock = lock
  }

  /**
   * Makes the directory if needed, closes it to others, and takes hold of it until disposed.
   *
   * @throws {AgentError} `taken` when another agent holds it, `not-allowed` when it cannot be used, `limit` when its disk is full; `failed` when a
   *   backup was being put into it and that has not ended, unless it is opened for that.
   */
  static open(path: string, { evenRestoring = false } = {}): StateDirectory {
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 })
      if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o700)
    } catch (cause) {
      throw unusable(path, cause)
    }
    const directory = new StateDirectory(path, hold(path))
    if (evenRestoring || !existsSync(directory.file(RESTORING))) return directory
    directory[Symbol.dispose]()
    throw new AgentError('failed', `a backup was being restored into ${path}, and that was not ended`, {
      next: 'Run `agent restore` again with the same file: it goes on from there.',
    })
  }

  /** The path of a file in it. */
  file(name: string): string {
    return join(this.path, name)
  }

  [Symbol.dispose](): void {
    this.#lock.close()
  }
}

/** Beside the agent's own database, each closed network has one, in the directory of their keys. */
const NETWORKS_DIRECTORY = 'networks'

/** Files of a state directory that end so, by their names in it: its databases, or what belongs to them. */
export function databaseFiles(path: string, suffix = '.db'): string[] {
  return ['', NETWORKS_DIRECTORY].flatMap((place) => {
    if (!existsSync(join(path, place))) return []
    const names = readdirSync(join(path, place)).filter((name) => name.endsWith(suffix))
    return names.map((name) => join(place, name))
  })
}

function hold(path: string): DatabaseSync {
  let lock: DatabaseSync | undefined
  try {
    lock = new DatabaseSync(join(path, 'lock'), { timeout: 0 })
    lock.exec('BEGIN IMMEDIATE')
    const holder: Holder = { pid: process.pid, since: new Date().toISOString() }
    writeFileSync(join(path, 'holder.json'), JSON.stringify(holder), { mode: 0o600 })
    return lock
  } catch (cause) {
    lock?.close()
    if (!/locked|busy/.test(reasonOf(cause))) throw unusable(path, cause)
    throw new AgentError('taken', `another agent uses the state in ${path}${whoHolds(path)}`, {
      cause,
      next: 'Stop it first, or give this one a state of its own with --state DIR.',
    })
  }
}

/** ` (process 1234, since ...)`; empty when the other agent has not written it yet. */
function whoHolds(path: string): string {
  try {
    const { pid, since } = JSON.parse(readFileSync(join(path, 'holder.json'), 'utf8')) as Holder
    return ` (process ${Number(pid)}, since ${String(since)})`
  } catch {
    return ''
  }
}

function unusable(path: string, cause: unknown): AgentError {
  const told = diskError(cause, path)
  if (told instanceof AgentError) return told
  return new AgentError('not-allowed', `the state directory ${path} cannot be used: ${reasonOf(cause)}`, {
    cause,
    next: 'Choose another with --state DIR, or start the agent as a user who may write there.',
  })
}
