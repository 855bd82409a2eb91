/**
 * Lines of a log that is appended to and turned over, for readers that come and go: from the oldest or the newest so many, and then as they
 * come. A reader is a place in a file and nothing else: no open file, no queue. While nobody asks it, it costs nothing; one that is
 * overtaken goes on with the oldest line that is there.
 */
import { closeSync, existsSync, fstatSync, openSync, readSync } from 'node:fs'

/** Read at once. */
const CHUNK_BYTES = 64 * 1024
/** A longer line is not one of ours, and is left out. */
const LINE_BYTES_MAX = 16 * 1024
const NEWLINE = 0x0a

export type Reading = {
  readonly last?: number | undefined
  readonly follow: boolean
  readonly signal: AbortSignal | undefined
}

/** `file` counts from the first one; each turning makes a new one. */
type Place = { file: number; offset: number }

export class NewLines {
  readonly #path: string
  readonly #oldFilesMax: number
  readonly #waiting = new Set<() => void>()
  /** The number of the present file. The ones before it are there from the start. */
  #present: number

  constructor(path: string, oldFilesMax: number) {
    this.#path = path
    this.#oldFilesMax = oldFilesMax
    this.#present = oldFilesMax
  }

  /** Of the present file, 0, or one of the old ones. */
  path(age: number): string {
    return age === 0 ? this.#path : `${this.#path}.${age}`
  }

  /** Something was written. */
  wake(): void {
    for (const resume of this.#waiting) resume()
    this.#waiting.clear()
  }

  /** The files have been renamed. */
  turnedOver(): void {
    this.#present++
  }

  async *read({ last, follow, signal }: Reading): AsyncGenerator<string> {
    const place: Place = last === undefined ? { file: 0, offset: 0 } : this.#placeOfLast(last)
    while (signal?.aborted !== true) {
      const lines = this.#next(place)
      yield* lines
      if (lines.length > 0 || this.#advance(place)) continue
      if (!follow) return
      await this.#more(signal)
    }
  }

  /** The whole lines of the next chunk, and the place after them. */
  #next(place: Place): string[] {
    const oldest = this.#present - this.#oldFilesMax
    if (place.file < oldest) Object.assign(place, { file: oldest, offset: 0 })
    const chunk = this.#chunkAt(place)
    const end = chunk.lastIndexOf(NEWLINE) + 1
    // A chunk without an end of a line is inside of one that is too long: its rest is skipped up to the end, and dropped by its reader.
    const taken = end === 0 && chunk.byteLength > LINE_BYTES_MAX ? chunk.byteLength : end
    place.offset += taken
    const lines = chunk.toString('utf8', 0, end).split('\n').slice(0, -1)
    return end === 0 && taken > 0 ? [''] : lines
  }

  #chunkAt({ file, offset }: Place): Buffer {
    const path = this.path(this.#present - file)
    if (!existsSync(path)) return Buffer.alloc(0)
    const fd = openSync(path, 'r')
    try {
      const chunk = Buffer.alloc(Math.max(0, Math.min(CHUNK_BYTES, fstatSync(fd).size - offset)))
      return chunk.subarray(0, readSync(fd, chunk, 0, chunk.byteLength, offset))
    } finally {
      closeSync(fd)
    }
  }

  /** To the next file, if this one is at its end for good. */
  #advance(place: Place): boolean {
    if (place.file >= this.#present) return false
    Object.assign(place, { file: place.file + 1, offset: 0 })
    return true
  }

  /** Where the newest so many lines begin. */
  #placeOfLast(last: number): Place {
    let missing = last
    for (let age = 0; age <= this.#oldFilesMax; age++) {
      const file = this.#present - age
      if (missing === 0 && age === 0) return { file, offset: this.#sizeOf(file) }
      let offset = this.#sizeOf(file)
      while (offset > 0) {
        const from = Math.max(0, offset - CHUNK_BYTES)
        const chunk = this.#chunkAt({ file, offset: from }).subarray(0, offset - from)
        // The end of a line is also the beginning of the next: one more is looked for than is wanted.
        for (let at = chunk.lastIndexOf(NEWLINE); at >= 0; at = at === 0 ? -1 : chunk.lastIndexOf(NEWLINE, at - 1)) {
          if (missing === 0) return { file, offset: from + at + 1 }
          missing--
        }
        offset = from
      }
      if (missing === 0) return { file, offset: 0 }
    }
    return { file: 0, offset: 0 }
  }

  #sizeOf(file: number): number {
    const path = this.path(this.#present - file)
    if (!existsSync(path)) return 0
    const fd = openSync(path, 'r')
    try {
      return fstatSync(fd).size
    } finally {
      closeSync(fd)
    }
  }

  /** Resolves when there may be more, or the signal says that it is enough. */
  async #more(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const stop = () => resolve()
    this.#waiting.add(stop)
    signal?.addEventListener('abort', stop, { once: true })
    await promise
    signal?.removeEventListener('abort', stop)
    this.#waiting.delete(stop)
  }
}
