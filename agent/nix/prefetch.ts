/**
 * Fetches NARs ahead of the local Nix, which asks for a closure's narinfos first and then for a few NARs at a time, in an order that is known. What is
 * fetched so and not asked for is bounded: Nix also asks for narinfos when it only wants to know.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { type Kind, RealiseOrder, type WantedNar } from './realise-order.ts'

/** More would take bandwidth from the one that Nix waits for. Of small ones many fit in a round trip. */
const AT_ONCE = { small: 32, large: 4 } as const
const KINDS: readonly Kind[] = ['small', 'large']
/**
 * Fetched or being fetched, and not asked for yet: at first so much, since Nix may only look; and as much more as it takes, up to the latter, until it
 * has taken nothing for a while.
 */
const AHEAD_BYTES = { first: 64 * 1024 * 1024, max: 512 * 1024 * 1024 } as const
/** Whoever has not asked by then did not want it: the room is for others. And whoever asks then may be another one. */
const AHEAD_MS_MAX = 120_000

/** `moreBytes` is how much waits behind it. */
type Fetch = (digest: Digest, moreBytes: number, signal: AbortSignal) => Promise<void>
type Ahead = { sizeBytes: number; since: number; stop: AbortController; isHere: boolean }

export class Prefetch implements AsyncDisposable {
  readonly #fetch: Fetch
  readonly #now: () => number
  readonly #waiting = new RealiseOrder()
  readonly #runningOf = { small: 0, large: 0 }
  readonly #ahead = new Map<Digest, Ahead>()
  readonly #running = new Map<Digest, Promise<void>>()
  #aheadBytes = 0
  #roomBytes: number = AHEAD_BYTES.first
  #takenMs = Number.NEGATIVE_INFINITY
  #stopped = false

  /** `fetch` rejects when it fails, which is not heard here: the request for the NAR meets the same fault, and says so. */
  constructor(fetch: Fetch, now: () => number = () => performance.now()) {
    this.#fetch = fetch
    this.#now = now
  }

  /** Fetches it when its turn comes and there is room; one that is larger than the room, when nothing else is ahead. */
  want(nar: WantedNar): void {
    if (this.#stopped || this.#ahead.has(nar.narHash)) return
    this.#waiting.add(kindOf(nar.narSize), nar)
    this.#fill()
  }

  /** Somebody waits for it himself now. To be called when his own fetch has begun, so that it goes on if this one was under way. */
  claim(digest: Digest, sizeBytes: number): void {
    this.#roomBytes = Math.min(this.#roomBytes + sizeBytes, AHEAD_BYTES.max)
    this.#takenMs = this.#now()
    this.#waiting.delete(digest)
    this.#forget(digest)
    this.#fill()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    for (const digest of this.#ahead.keys()) this.#forget(digest)
    await Promise.all(this.#running.values())
  }

  #fill(): void {
    if (this.#now() - this.#takenMs >= AHEAD_MS_MAX) this.#roomBytes = AHEAD_BYTES.first
    for (const [digest, { since }] of this.#ahead) {
      if (this.#now() - since < AHEAD_MS_MAX) break
      this.#forget(digest)
    }
    for (const kind of KINDS) {
      while (this.#runningOf[kind] < AT_ONCE[kind]) {
        const next = this.#waiting.first(kind)
        if (next === undefined) break
        if (this.#aheadBytes > 0 && this.#aheadBytes + next.narSize > this.#roomBytes) return
        this.#waiting.delete(next.narHash)
        this.#start(next.narHash, next.narSize)
      }
    }
  }

  #start(digest: Digest, sizeBytes: number): void {
    if (this.#running.has(digest)) return
    const ahead = { sizeBytes, since: this.#now(), stop: new AbortController(), isHere: false }
    this.#ahead.set(digest, ahead)
    this.#aheadBytes += sizeBytes
    const kind = kindOf(sizeBytes)
    this.#runningOf[kind]++
    const running = this.#fetch(digest, this.#waiting.bytes, ahead.stop.signal)
      .then(
        () => {
          ahead.isHere = true
        },
        () => this.#forget(digest),
      )
      .finally(() => {
        this.#running.delete(digest)
        this.#runningOf[kind]--
        if (!this.#stopped) this.#fill()
      })
    this.#running.set(digest, running)
  }

  #forget(digest: Digest): void {
    const ahead = this.#ahead.get(digest)
    if (!ahead) return
    this.#ahead.delete(digest)
    this.#aheadBytes -= ahead.sizeBytes
    if (!ahead.isHere) ahead.stop.abort()
  }
}

function kindOf(sizeBytes: number): Kind {
  return sizeBytes < PIECE_BYTES ? 'small' : 'large'
}
