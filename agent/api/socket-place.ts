/**
 * The place of a unix socket in the file system. A socket that a killed agent left behind is replaced; one on which somebody answers,
 * and a file that is no socket, are left alone.
 *
 * The socket is bound under a temporary name, given its permissions, and then renamed: at no moment is there one that too many may
 * connect to, or a place without one.
 */
import { chmodSync, lstatSync, mkdirSync, renameSync, rmSync, type Stats } from 'node:fs'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { AgentError, reasonOf } from '../error.ts'

const TEMPORARY_SUFFIX = '.new'
/** sun_path of Linux holds 108 bytes with its NUL; a longer path would be cut silently, to another one. */
const PATH_BYTES_MAX = 107 - TEMPORARY_SUFFIX.length
/** A local listener accepts at once, unless its process hangs; then it is there all the same. */
const ANSWER_MS_MAX = 1_000

export class SocketPlace implements Disposable {
  readonly path: string
  /** Where to bind. */
  readonly temporaryPath: string
  #inode: number | undefined

  private constructor(path: string) {
    this.path = path
    this.temporaryPath = `${path}${TEMPORARY_SUFFIX}`
  }

  /**
   * Makes the directory, and sees to it that nobody listens at `path`.
   *
   * @throws {AgentError} `taken`, `usage`, `not-allowed`
   */
  static async claim(path: string): Promise<SocketPlace> {
    if (Buffer.byteLength(path) > PATH_BYTES_MAX) {
      throw new AgentError('usage', `the socket path ${path} is longer than ${PATH_BYTES_MAX} bytes`, {
        next: 'Give --socket a shorter path.',
      })
    }
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
      const there = statOf(path)
      if (there && !there.isSocket()) {
        throw new AgentError('taken', `${path} exists and is not a socket`, {
          next: 'Move that file away, or give --socket another path.',
        })
      }
      if (there && (await answers(path))) {
        throw new AgentError('taken', `another agent answers on ${path}`, {
          next: 'Stop it, or start this one with another --socket (and --state, --listen, --http).',
        })
      }
      const place = new SocketPlace(path)
      rmSync(place.temporaryPath, { force: true })
      return place
    } catch (cause) {
      if (cause instanceof AgentError) throw cause
      throw new AgentError('not-allowed', `no socket can be made at ${path}: ${reasonOf(cause)}`, {
        cause,
        next: 'Give --socket a path in a directory that this user can write to.',
      })
    }
  }

  /** Puts what was bound at the temporary path in its place, in the stead of a stale one. */
  publish(mode: number): void {
    chmodSync(this.temporaryPath, mode)
    this.#inode = lstatSync(this.temporaryPath).ino
    renameSync(this.temporaryPath, this.path)
  }

  /** Removes the socket, unless another agent's has taken its place. */
  [Symbol.dispose](): void {
    rmSync(this.temporaryPath, { force: true })
    if (this.#inode !== undefined && statOf(this.path)?.ino === this.#inode) rmSync(this.path, { force: true })
  }
}

function statOf(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false })
}

/** Whether somebody listens; a listener that is too busy to accept counts. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path, timeout: ANSWER_MS_MAX })
    const settle = (answer: boolean) => {
      socket.destroy()
      resolve(answer)
    }
    socket.once('connect', () => settle(true))
    socket.once('timeout', () => settle(true))
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EACCES') reject(error)
      else settle(error.code === 'EAGAIN')
    })
  })
}
