/**
 * The file system that is installed into: the machine's own, or a directory that will be one (an image). Paths are those that the machine
 * will see; no link inside a directory leads out of it.
 */
import { createHash } from 'node:crypto'
import {
  accessSync,
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fsyncSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { AgentError, reasonOf } from '../error.ts'

/** Configuration files; what is larger is none. */
const FILE_BYTES_MAX = 16 * 1024 * 1024

export type Attributes = { mode: number; uid?: number; gid?: number }

export class Root {
  /** `/`, or the directory. */
  readonly directory: string
  readonly isMachine: boolean

  /** @throws {AgentError} `not-found` */
  constructor(directory = '/') {
    try {
      this.directory = realpathSync(resolve(directory))
    } catch (cause) {
      throw new AgentError('not-found', `there is no directory ${directory}`, { cause, next: 'Make it first.' })
    }
    if (!statSync(this.directory).isDirectory()) throw new AgentError('usage', `${directory} is no directory`)
    this.isMachine = this.directory === '/'
  }

  /** Where a path of the machine is, here. @throws {AgentError} `not-allowed` when a link leads out of the directory */
  at(path: string): string {
    const here = join(this.directory, path)
    if (this.isMachine) return here
    let parent = dirname(here)
    while (lstatSync(parent, { throwIfNoEntry: false }) === undefined) parent = dirname(parent)
    const real = realpathSync(parent)
    if (real === this.directory || real.startsWith(`${this.directory}/`)) return here
    throw new AgentError('not-allowed', `${parent} leads out of ${this.directory}, to ${real}`, {
      next: 'Make the link relative, or a directory.',
    })
  }

  /** Of what is at the path itself, links not followed. */
  stat(path: string): Stats | undefined {
    return lstatSync(this.at(path), { throwIfNoEntry: false })
  }

  /** The bytes of a file; undefined when there is none. @throws {AgentError} `taken` when it is something else, `not-allowed` */
  read(path: string): Buffer | undefined {
    const file = this.#target(path)
    const stats = statSync(file, { throwIfNoEntry: false })
    if (stats === undefined) return undefined
    if (!stats.isFile()) throw new AgentError('taken', `${file} is no file`, { next: 'Move it away.' })
    if (stats.size > FILE_BYTES_MAX) throw new AgentError('limit', `${file} is too large to be a configuration file`)
    try {
      return readFileSync(file)
    } catch (cause) {
      throw new AgentError('not-allowed', `${file} cannot be read: ${reasonOf(cause)}`, { cause, next: AS_ROOT })
    }
  }

  /** Mode and owner of a file, whatever leads to it. */
  attributes(path: string): Required<Attributes> {
    const { mode, uid, gid } = statSync(this.#target(path))
    return { mode: mode & 0o7777, uid, gid }
  }

  /** Puts a file in its place at once, so that it is never half there; where a link leads to a file, that file. */
  write(path: string, bytes: Buffer, { mode, uid, gid }: Attributes): void {
    const file = this.#target(path)
    const temporary = temporaryOf(file)
    rmSync(temporary, { force: true })
    // By the open file and not by its name: the directory may be somebody else's.
    const opened = openSync(temporary, 'wx', 0o600)
    try {
      writeFileSync(opened, bytes)
      if (uid !== undefined && gid !== undefined && process.geteuid?.() === 0) fchownSync(opened, uid, gid)
      fchmodSync(opened, mode)
      fsyncSync(opened)
    } finally {
      closeSync(opened)
    }
    renameSync(temporary, file)
  }

  /** What a write that was cut off has left. */
  sweep(path: string): void {
    rmSync(temporaryOf(this.#target(path)), { force: true })
  }

  /** Of a directory that was just made, whatever the umask. */
  makeReadable(path: string): void {
    chmodSync(this.at(path), 0o755)
  }

  link(path: string, target: string): void {
    const temporary = temporaryOf(this.at(path))
    rmSync(temporary, { force: true })
    symlinkSync(target, temporary)
    renameSync(temporary, this.at(path))
  }

  linkTarget(path: string): string | undefined {
    return this.stat(path)?.isSymbolicLink() ? readlinkSync(this.at(path)) : undefined
  }

  /** Why nothing can be written at a path; undefined when something can. */
  fault(path: string): string | undefined {
    let parent = dirname(this.stat(path)?.isSymbolicLink() ? this.at(path) : this.#target(path))
    while (!statSync(parent, { throwIfNoEntry: false })) parent = dirname(parent)
    try {
      accessSync(parent, constants.W_OK)
      return undefined
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EROFS') return `${parent} is on a file system that is read-only`
      return `this user may not write to ${parent}`
    }
  }

  /** Where a file really is: one that is reached by a link is what is meant. In a directory, links lead where the machine will be. */
  #target(path: string): string {
    const here = this.at(path)
    if (!lstatSync(here, { throwIfNoEntry: false })?.isSymbolicLink()) return here
    try {
      if (this.isMachine) return realpathSync(here)
    } catch {
      // It leads nowhere.
    }
    throw new AgentError('taken', `${here} is a link that cannot be followed`, { next: 'Put a file in its place.' })
  }
}

export const AS_ROOT = 'Run it as root: with sudo in front.'

export function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

function temporaryOf(file: string): string {
  return join(dirname(file), `.${basename(file)}.undernet-new`)
}
