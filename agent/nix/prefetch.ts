/**
 * Fetches NARs ahead of the local Nix, which asks for a closure's narinfos first and then for one NAR at a time. What is fetched so and
 * not asked for is bounded: Nix also asks for narinfos when it only wants to know.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'

/** More would take bandwidth from the one that Nix waits for. Of small ones many fit in a round trip. */
const LARGE_AT_ONCE = 4
const SMALL_AT_ONCE = 32
/** A closure has at most so many paths worth waiting in line. */
const QUEUE_MAX = 10_000
/** Fetched or being fetched, and not asked for yet. */
const AHEAD_BYTES_MAX = 512 * 1024 * 1024
/** Whoever has not asked by then did not want it: the room is for others. */
const AHEAD_MS_MAX = 120_000

type Ahead = { sizeBytes: number; since: number; stop: AbortController }

export class Prefetch implements AsyncDisposable {
  readonly #fetch: (digest: Digest, signal: AbortSignal) => Promise<void>
  readonly #now: () => number
  readonly #queue = new Map<Digest, number>()
  readonly #ahead = new Map<Digest, Ahead>()
  readonly #running = new Map<Digest, Promise<void>>()
  #largeRunning = 0
  #aheadBytes = 0
  #stopped = false

  /** `fetch` rejects when it fails, which is not heard here: the request for the NAR meets the same fault, and says so. */
  constructor(
    fetch: (digest: Digest, signal: AbortSignal) => Promise<void>,
    now: () => number = () => performance.now(),
  ) {
    this.#fetch = fetch
    this.#now = now
  }

  /** Fetches it when there is room, unless it does not fit at all. */
  want(digest: Digest, sizeBytes: number): void {
    if (this.#stopped || this.#ahead.has(digest) || this.#queue.size >= QUEUE_MAX) return
    if (sizeBytes > AHEAD_BYTES_MAX / 2) return
    this.#queue.set(digest, sizeBytes)
    this.#fill()
  }

  /** Somebody waits for it himself now. To be called when his own fetch has begun, so that it goes on if this one was under way. */
  claim(digest: Digest): void {
    this.#queue.delete(digest)
    this.#forget(digest)
    this.#fill()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    this.#queue.clear()
    for (const digest of this.#ahead.keys()) this.#forget(digest)
    await Promise.all(this.#running.values())
  }

  #fill(): void {
    for (const [digest, { since }] of this.#ahead) {
      if (this.#now() - since < AHEAD_MS_MAX) break
      this.#forget(digest)
    }
    for (const [digest, sizeBytes] of this.#queue) {
      const isFull = this.#running.size - this.#largeRunning >= SMALL_AT_ONCE
      if (isFull && this.#largeRunning >= LARGE_AT_ONCE) return
      if (isSmall(sizeBytes) ? isFull : this.#largeRunning >= LARGE_AT_ONCE) continue
      if (this.#aheadBytes + sizeBytes > AHEAD_BYTES_MAX) return
      this.#queue.delete(digest)
      this.#start(digest, sizeBytes)
    }
  }

  #start(digest: Digest, sizeBytes: number): void {
    if (this.#running.has(digest)) return
    const stop = new AbortController()
    this.#ahead.set(digest, { sizeBytes, since: this.#now(), stop })
    this.#aheadBytes += sizeBytes
    if (!isSmall(sizeBytes)) this.#largeRunning++
    const running = this.#fetch(digest, stop.signal)
      .catch(() => this.#forget(digest))
      .finally(() => {
        this.#running.delete(digest)
        if (!isSmall(sizeBytes)) this.#largeRunning--
        if (!this.#stopped) this.#fill()
      })
    this.#running.set(digest, running)
  }

  #forget(digest: Digest): void {
    const ahead = this.#ahead.get(digest)
    if (!ahead) return
    this.#ahead.delete(digest)
    this.#aheadBytes -= ahead.sizeBytes
    ahead.stop.abort()
  }
}

function isSmall(sizeBytes: number): boolean {
  return sizeBytes < PIECE_BYTES
}
