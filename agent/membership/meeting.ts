/**
 * Members of a closed network who know no address of each other meet in the DHT: each announces itself under a key that only members can
 * compute and that changes with time (protocols/membership/spec.md), and looks for the others there, from start() until disposed.
 *
 * Who is found is a hint: former members know the keys as well, and anybody can announce anything. The hello decides when they are
 * dialled; their addresses are in the peer store by then, since the DHT's answers carry them.
 */
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { create as createDigest } from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import { meetingKeys, type NetworkSecret } from '../../protocols/membership/network.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Providers } from '../mesh/providers.ts'

/** The DHT has its first peers soon after the start, if it gets any; then less and less often while nobody is met ... */
const LOOKUP_FIRST_MS = 2_000
const LOOKUP_MAX_MS = 10 * 60_000
/** ... and this often with a member connected: members tell of each other, and only two halves that lost each other need it. */
const LOOKUP_CONNECTED_MS = 30 * 60_000
/** A lookup in a network of thousands takes seconds; what it has not found by then it does not find. */
const LOOKUP_MS_MAX = 20_000
/** Told of in one lookup, since each is dialled. Who knows the key can fill it with others; the next lookup asks others in turn. */
const FOUND_MAX = 32
/** How often the keys are looked at: they overlap by an hour. */
const KEYS_MS = 60_000

export type MeetingOptions = {
  membership: NetworkSecret & {
    /** Why this node is no member now: then nobody is to meet it. */
    fault(now?: number): unknown
  }
  providers: Pick<Providers, 'provide' | 'withdraw' | 'find'>
  /** Told of who may be a member; the same one may be told of again. */
  hear: (peerId: string) => void
  /** How many members are connected. */
  connectedCount: () => number
  log: Log
  now?: () => number
  /** From 0 to 1, for jitter: members that start together should not look together for ever. */
  random?: () => number
}

export class Meeting implements AsyncDisposable {
  readonly #options: MeetingOptions
  readonly #now: () => number
  readonly #random: () => number
  readonly #stopping = new AbortController()
  #announced = new Set<string>()
  #looking: Promise<void> | undefined
  #waitMs = LOOKUP_FIRST_MS
  #lookDueMs: number
  #timer: NodeJS.Timeout | undefined

  private constructor(options: MeetingOptions) {
    this.#options = options
    this.#now = options.now ?? Date.now
    this.#random = options.random ?? Math.random
    this.#lookDueMs = this.#now() + LOOKUP_FIRST_MS
  }

  static start(options: MeetingOptions): Meeting {
    const meeting = new Meeting(options)
    meeting.#tick()
    return meeting
  }

  /** Announces itself no longer; what the DHT was told fades by itself, as the keys do. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer)
    this.#stopping.abort()
    this.#announce([])
    await this.#looking
  }

  #tick(): void {
    const { membership, connectedCount } = this.#options
    const now = this.#now()
    const keys = membership.fault(now) === undefined ? meetingKeys(membership, now).map(cidOf) : []
    this.#announce(keys)
    // The last member went: look at once, as at the start.
    if (connectedCount() === 0 && this.#waitMs === LOOKUP_CONNECTED_MS) this.#lookAfter(now, LOOKUP_FIRST_MS)
    // A clock that was set back must not make it wait for ever.
    const isDue = now >= this.#lookDueMs || this.#lookDueMs > now + 2 * LOOKUP_CONNECTED_MS
    if (isDue && this.#looking === undefined && keys.length > 0) this.#look(keys)
    const waitMs = Math.min(Math.max(this.#lookDueMs - now, LOOKUP_FIRST_MS), KEYS_MS)
    this.#timer = setTimeout(() => this.#tick(), waitMs).unref()
  }

  #announce(keys: readonly string[]): void {
    const { providers, log } = this.#options
    for (const cid of this.#announced) if (!keys.includes(cid)) providers.withdraw(cid)
    const announced = new Set([...this.#announced].filter((cid) => keys.includes(cid)))
    for (const cid of keys) {
      if (announced.has(cid)) continue
      try {
        providers.provide(cid)
        announced.add(cid)
      } catch (error) {
        // This node announces as much as it may: tried again with the next look at the keys.
        log.warn({ reason: reasonOf(error) }, 'meeting.unannounced')
      }
    }
    this.#announced = announced
  }

  #look(keys: readonly string[]): void {
    const { connectedCount, log } = this.#options
    const next = Math.min(this.#waitMs * 2, LOOKUP_MAX_MS)
    this.#lookAfter(this.#now(), connectedCount() > 0 ? LOOKUP_CONNECTED_MS : next)
    this.#looking = this.#lookUp(keys)
      .catch((error: unknown) => log.debug({ reason: reasonOf(error) }, 'meeting.failed'))
      .finally(() => {
        this.#looking = undefined
      })
  }

  async #lookUp(keys: readonly string[]): Promise<void> {
    const { providers, hear, log } = this.#options
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(LOOKUP_MS_MAX)])
    const heard = new Set<string>()
    for (const cid of keys) {
      for await (const peerId of providers.find(cid, signal)) {
        if (heard.has(peerId)) continue
        heard.add(peerId)
        hear(peerId)
        if (heard.size >= FOUND_MAX) return
      }
    }
    if (heard.size > 0) log.debug({ count: heard.size }, 'meeting.heard')
  }

  #lookAfter(now: number, waitMs: number): void {
    this.#waitMs = waitMs
    this.#lookDueMs = now + waitMs * (0.75 + this.#random() / 2)
  }
}

/** The content id that stands for a meeting key: as if the key were the SHA-256 of something. */
function cidOf(key: Uint8Array): string {
  return CID.createV1(raw.code, createDigest(sha256.code, key)).toString()
}
