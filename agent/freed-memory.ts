/**
 * Gives memory that the process freed back to the machine, for the daemon. What passes through an agent are buffers of 64 and 256 KiB, which
 * glibc keeps for itself when they were freed: after 5 GiB the process had 60 MB more than before, of which nothing was used. Its
 * malloc_trim() finds the pages that nothing is on. Other C libraries do not have it and do not need it.
 *
 * Looked at now and then; nothing is loaded, and nothing done, as long as the process has not grown.
 */
import type { Log } from './log.ts'

/** Soon enough for whoever looks, and rare enough to cost nothing beside a transfer. */
const LOOK_MS = 5_000
/** Less is not worth the search, and an agent's own needs vary by as much. */
const GROWN_BYTES_MIN = 24 * 1024 * 1024
/** A search that gave back less than this was in vain, and the next one waits twice as long, but for so many looks at most. */
const WORTH_BYTES = 8 * 1024 * 1024
const PAUSE_MAX = 8

type Trim = () => Promise<void>

export type FreedMemoryInit = {
  log: Log
  /** What the process has of the machine's memory. */
  rssBytes?: () => number
  /** How to give back what it does not use; undefined where that cannot be. */
  loadTrim?: () => Promise<Trim | undefined>
  lookMs?: number
}

export class FreedMemory implements Disposable {
  readonly #init: FreedMemoryInit
  readonly #rssBytes: () => number
  readonly #timer: NodeJS.Timeout
  #leastBytes: number
  #trim: Promise<Trim | undefined> | undefined
  #isBusy = false
  /** Looks from one search to the next, and how many there were since. */
  #pause = 1
  #looks = 0

  constructor(init: FreedMemoryInit) {
    this.#init = init
    this.#rssBytes = init.rssBytes ?? (() => process.memoryUsage.rss())
    this.#leastBytes = this.#rssBytes()
    this.#timer = setInterval(() => void this.#look(), init.lookMs ?? LOOK_MS).unref()
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }

  async #look(): Promise<void> {
    const before = this.#rssBytes()
    this.#leastBytes = Math.min(this.#leastBytes, before)
    if (this.#isBusy || before - this.#leastBytes < GROWN_BYTES_MIN || ++this.#looks < this.#pause) return
    this.#isBusy = true
    this.#looks = 0
    try {
      this.#trim ??= (this.#init.loadTrim ?? loadMallocTrim)()
      const trim = await this.#trim
      if (trim === undefined) return this[Symbol.dispose]()
      await trim()
      const after = this.#rssBytes()
      this.#pause = before - after < WORTH_BYTES ? Math.min(this.#pause * 2, PAUSE_MAX) : 1
      this.#init.log.debug({ before, after }, 'memory.returned')
    } finally {
      this.#isBusy = false
    }
  }
}

/** In a thread of its own: it takes milliseconds. */
async function loadMallocTrim(): Promise<Trim | undefined> {
  try {
    const { default: koffi } = await import('koffi')
    const mallocTrim = koffi.load(null).func('int malloc_trim(size_t pad)')
    return () => new Promise((resolve) => mallocTrim.async(0, () => resolve()))
  } catch {
    return undefined
  }
}
