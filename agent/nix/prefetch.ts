/**
 * Fetches NARs ahead of the local Nix, which asks for a closure's narinfos first and then for one NAR at a time. Its narinfos it asks for from
 * the root on, and its NARs from the leaves: so what was wanted last is fetched first. What is fetched so and not asked for is bounded: Nix
 * also asks for narinfos when it only wants to know.
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
  readonly #large = new Line(LARGE_AT_ONCE)
  readonly #small = new Line(SMALL_AT_ONCE)
  readonly #ahead = new Map<Digest, Ahead>()
  readonly #running = new Map<Digest, Promise<void>>()
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

  /** Fetches it before what was wanted earlier and has not begun, when there is room; unless it does not fit at all. */
  want(digest: Digest, sizeBytes: number): void {
    if (this.#stopped || this.#ahead.has(digest) || sizeBytes > AHEAD_BYTES_MAX / 2) return
    this.#lineOf(sizeBytes).push(digest, sizeBytes)
    this.#fill()
  }

  /** Somebody waits for it himself now. To be called when his own fetch has begun, so that it goes on if this one was under way. */
  claim(digest: Digest): void {
    this.#large.delete(digest)
    this.#small.delete(digest)
    this.#forget(digest)
    this.#fill()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    for (const digest of this.#ahead.keys()) this.#forget(digest)
    await Promise.all(this.#running.values())
  }

  #fill(): void {
    for (const [digest, { since }] of this.#ahead) {
      if (this.#now() - since < AHEAD_MS_MAX) break
      this.#forget(digest)
    }
    for (const line of [this.#small, this.#large]) {
      for (let next = line.next; next && line.running < line.runningMax; next = line.next) {
        if (this.#aheadBytes + next.sizeBytes > AHEAD_BYTES_MAX) return
        line.delete(next.digest)
        this.#start(next.digest, next.sizeBytes)
      }
    }
  }

  #lineOf(sizeBytes: number): Line {
    return sizeBytes < PIECE_BYTES ? this.#small : this.#large
  }

  #start(digest: Digest, sizeBytes: number): void {
    if (this.#running.has(digest)) return
    const stop = new AbortController()
    this.#ahead.set(digest, { sizeBytes, since: this.#now(), stop })
    this.#aheadBytes += sizeBytes
    const line = this.#lineOf(sizeBytes)
    line.running++
    const running = this.#fetch(digest, stop.signal)
      .catch(() => this.#forget(digest))
      .finally(() => {
        this.#running.delete(digest)
        line.running--
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

/** Those that wait, the newest first, and how many of their kind are being fetched. */
class Line {
  readonly runningMax: number
  running = 0
  readonly #sizes = new Map<Digest, number>()
  /** With some that do not wait any more. */
  #order: Digest[] = []

  constructor(runningMax: number) {
    this.runningMax = runningMax
  }

  /** Who waits already keeps his place. */
  push(digest: Digest, sizeBytes: number): void {
    if (this.#sizes.has(digest)) return
    this.#sizes.set(digest, sizeBytes)
    this.#order.push(digest)
    if (this.#order.length <= QUEUE_MAX) return
    this.#order = this.#order.filter((one) => this.#sizes.has(one))
    for (const oldest of this.#order.splice(0, this.#order.length - QUEUE_MAX)) this.#sizes.delete(oldest)
  }

  delete(digest: Digest): void {
    this.#sizes.delete(digest)
  }

  get next(): { digest: Digest; sizeBytes: number } | undefined {
    for (let digest = this.#order.at(-1); digest !== undefined; digest = this.#order.at(-1)) {
      const sizeBytes = this.#sizes.get(digest)
      if (sizeBytes !== undefined) return { digest, sizeBytes }
      this.#order.pop()
    }
    return undefined
  }
}
