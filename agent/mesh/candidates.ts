/**
 * Peers that could be dialled: heard of on the LAN, remembered, or named by the DHT or by fellow members of a network; with when to try
 * each next. Knows no network and
 * no clock of its own, so that its rules can be tested: back-off with jitter, who goes first, and a bound on how many are kept.
 */
import type { Multiaddr } from '@multiformats/multiaddr'
import { isFirstToDial } from './admission.ts'

/** Far more than a node keeps connected; a stranger who makes up peers pushes out the ones that failed. */
const CANDIDATES_MAX = 1_000
const ADDRESSES_MAX = 16
const BACKOFF_FIRST_MS = 1_000
/** Beyond this a peer that came back should have dialled us. */
const BACKOFF_MAX_MS = 5 * 60_000
/** For a node with no peer at all, which has nobody who could find it. */
const BACKOFF_ALONE_MAX_MS = 15_000
/**
 * Two peers hear of each other at the same moment (mDNS). The larger peer id leaves the other this long, so that one of them dials and
 * not both.
 */
const SECOND_MS = 1_500
/** A connection that lasted this long was a good one, and is dialled again at once when it breaks. Longer than the keeper's GRACE_MS. */
const LASTED_MS = 60_000
const REDIAL_MS = 500

export type Source = 'lan' | 'network' | 'book' | 'dht'
const ORDER: readonly Source[] = ['lan', 'network', 'book', 'dht']

export type Candidate = {
  readonly peerId: string
  addresses: Multiaddr[]
  source: Source
  failures: number
  /** Not dialled before this time. */
  dueMs: number
  heardMs: number
}

export class Candidates {
  readonly #self: string
  readonly #random: () => number
  readonly #known = new Map<string, Candidate>()

  constructor(self: string, random: () => number = Math.random) {
    this.#self = self
    this.#random = random
  }

  get size(): number {
    return this.#known.size
  }

  /** Notes a peer and its addresses. What is on the LAN now is alive, and a member that says a new address has moved: their back-off ends. */
  hear(peerId: string, addresses: readonly Multiaddr[], source: Source, nowMs: number): void {
    if (peerId === this.#self || addresses.length === 0) return
    const politeMs = nowMs + (isFirstToDial(this.#self, peerId) ? 0 : SECOND_MS + this.#random() * REDIAL_MS)
    const known = this.#known.get(peerId)
    if (known === undefined) {
      if (this.#known.size >= CANDIDATES_MAX) this.#dropWorst()
      this.#known.set(peerId, {
        peerId,
        addresses: addresses.slice(0, ADDRESSES_MAX),
        source,
        failures: 0,
        dueMs: politeMs,
        heardMs: nowMs,
      })
      return
    }
    const hasMoved = source === 'network' && addresses.some((one) => !known.addresses.some((old) => old.equals(one)))
    known.addresses = merge(addresses, known.addresses)
    known.heardMs = nowMs
    if (ORDER.indexOf(source) <= ORDER.indexOf(known.source)) known.source = source
    if (source === 'lan' || hasMoved) {
      known.failures = Math.min(known.failures, 1)
      known.dueMs = Math.min(known.dueMs, politeMs)
    }
  }

  /** The peers to dial now, best first: nearest source, fewest failures, then at random. */
  due(nowMs: number, alone: boolean, skip: (peerId: string) => boolean): Candidate[] {
    const ready = [...this.#known.values()].filter(
      (candidate) => !skip(candidate.peerId) && (candidate.dueMs <= nowMs || (alone && this.#isLate(candidate, nowMs))),
    )
    return ready
      .map((candidate) => ({ candidate, rank: this.#rank(candidate) }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ candidate }) => candidate)
  }

  failed(peerId: string, nowMs: number): void {
    const known = this.#known.get(peerId)
    if (known === undefined) return
    known.failures++
    known.heardMs = nowMs
    known.dueMs = nowMs + backoffMs(known.failures, BACKOFF_MAX_MS, this.#random)
  }

  /** The connection closed after `lastedMs`. A short one counts as a failure: the peer has no room, or keeps crashing. */
  lost(peerId: string, lastedMs: number, nowMs: number): void {
    const known = this.#known.get(peerId)
    if (known === undefined) return
    if (lastedMs < LASTED_MS) {
      this.failed(peerId, nowMs)
      return
    }
    known.failures = 0
    known.dueMs = nowMs + REDIAL_MS * (1 + this.#random())
  }

  /** Leaves a peer alone for a while. */
  dismiss(peerId: string, untilMs: number): void {
    const known = this.#known.get(peerId)
    if (known !== undefined) known.dueMs = untilMs
  }

  /** Everybody may be tried again, spread over a few seconds: our own network changed. */
  forgive(nowMs: number): void {
    for (const known of this.#known.values()) {
      known.failures = 0
      known.dueMs = Math.min(known.dueMs, nowMs + this.#random() * 3_000)
    }
  }

  #rank(candidate: Candidate): number {
    return ORDER.indexOf(candidate.source) * 100 + Math.min(candidate.failures, 90) + this.#random()
  }

  #isLate(candidate: Candidate, nowMs: number): boolean {
    return nowMs - candidate.heardMs > BACKOFF_ALONE_MAX_MS
  }

  #dropWorst(): void {
    let worst: Candidate | undefined
    for (const one of this.#known.values()) {
      if (worst === undefined || one.failures > worst.failures) worst = one
      else if (one.failures === worst.failures && one.heardMs < worst.heardMs) worst = one
    }
    if (worst !== undefined) this.#known.delete(worst.peerId)
  }
}

/** Doubles from one second to `maxMs`, then between a half and all of it, so that many who wait do not come back together. */
export function backoffMs(failures: number, maxMs: number, random: () => number): number {
  const fullMs = Math.min(maxMs, BACKOFF_FIRST_MS * 2 ** Math.min(failures - 1, 30))
  return fullMs * (0.5 + random() / 2)
}

/** The new ones first; each once. */
function merge(fresh: readonly Multiaddr[], old: readonly Multiaddr[]): Multiaddr[] {
  const all = new Map([...fresh, ...old].map((address) => [address.toString(), address]))
  return [...all.values()].slice(0, ADDRESSES_MAX)
}
