/**
 * Brings blobs to the disk a while after they came, all of that while together: those that can be had again. To wait for the disk with each would have
 * a closure of small paths come as slowly as a disk syncs. Until then a row says under which boot of the machine the blob came, and what a
 * power cut may have taken is dropped at the next start (blob-recovery.ts); a kill takes nothing.
 */
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { syncPath } from '../state/disk.ts'
import type { BlobIndex } from './blob-index.ts'

/** As long as file systems wait with their own journals. */
const DELAY_MS = 5_000
/** When the agent stops, the machine may be about to. */
const LAST_MS_MAX = 5_000

/** Another one with each start of the machine; where it does not say, with each start of the agent. */
export const BOOT = bootOf('/proc/sys/kernel/random/boot_id')

type Init = { index: Pick<BlobIndex, 'synced'>; pathOf: (digest: Digest) => string; log: Log; delayMs?: number }

export class LateSync implements AsyncDisposable {
  readonly #init: Init
  readonly #waiting = new Set<Digest>()
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> | undefined
  /** By performance.now(). */
  #endMs = Number.POSITIVE_INFINITY

  constructor(init: Init) {
    this.#init = init
  }

  add(digest: Digest): void {
    this.#waiting.add(digest)
    this.#timer ??= setTimeout(() => this.#begin(), this.#init.delayMs ?? DELAY_MS).unref()
  }

  /** Goes on until nothing waits, or it takes too long. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#endMs = performance.now() + LAST_MS_MAX
    await this.#running
    clearTimeout(this.#timer)
    await this.#sync()
  }

  #begin(): void {
    this.#running = this.#sync().finally(() => {
      this.#running = undefined
      this.#timer = undefined
      for (const digest of this.#waiting) this.add(digest)
    })
  }

  async #sync(): Promise<void> {
    if (this.#waiting.size === 0) return
    const { index, pathOf, log } = this.#init
    // Those that come meanwhile are the next ones.
    const batch = [...this.#waiting]
    const synced: Digest[] = []
    const directories = new Set<string>()
    try {
      for (const digest of batch) {
        if (performance.now() > this.#endMs) break
        this.#waiting.delete(digest)
        const path = pathOf(digest)
        if (!(await this.#syncFile(path))) continue
        synced.push(digest)
        // With what is in them: the name of the file, and that of its directory, which may be new.
        directories.add(dirname(path)).add(dirname(dirname(path)))
      }
      for (const directory of directories) await this.#syncFile(directory)
      index.synced(synced)
    } catch (error) {
      log.warn({ reason: reasonOf(error), blobs: synced.length }, 'blobs.sync-failed')
    }
  }

  /** A file or a directory. @returns whether it is on the disk now. Of what is not, the row stays, and it is dropped at the next boot. */
  async #syncFile(path: string): Promise<boolean> {
    try {
      await syncPath(path)
      return true
    } catch (error) {
      const isGone = (error as NodeJS.ErrnoException).code === 'ENOENT'
      if (!isGone) this.#init.log.warn({ path, reason: reasonOf(error) }, 'blobs.sync-failed')
      return false
    }
  }
}

function bootOf(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return randomUUID()
  }
}
