/**
 * What is remembered of single peers while the agent runs: how much they gossip, whether they broke the rules, whether they take
 * anything, and what their clocks say. Bounded: of many peers the ones heard of longest ago are forgotten.
 */

/** Gossiped records that one peer may pass on: in a second on average, and at once. Above, they wait for a comparison. */
const GOSSIP_PER_SECOND = 50
const GOSSIP_BURST = 2_000
/** A peer that broke the rules is left alone for this long. */
const PAUSE_MS = 5 * 60_000
/** A peer that took nothing of what it was offered is offered nothing for this long: its clock is off, or its store is full. */
const DEAF_MS = 10 * 60_000
/** What a peer's clock said longer ago counts no more: ours may have been set since. */
const CLOCK_MS = 10 * 60_000
const PEERS_MAX = 1_024

type Peer = {
  tokens: number
  tokensAt: number
  pausedUntil: number
  deafUntil: number
  clock: { offsetMs: number; at: number } | undefined
}

export class PeerLimits {
  readonly #now: () => number
  readonly #peers = new Map<string, Peer>()

  constructor(now: () => number) {
    this.#now = now
  }

  /** Whether one more gossiped record of this peer is worth looking at. */
  takeGossip(peerId: string): boolean {
    const peer = this.#peer(peerId)
    const now = this.#now()
    const elapsedMs = Math.max(0, now - peer.tokensAt)
    peer.tokens = Math.min(GOSSIP_BURST, peer.tokens + (elapsedMs / 1_000) * GOSSIP_PER_SECOND)
    peer.tokensAt = now
    if (peer.tokens < 1) return false
    peer.tokens--
    return true
  }

  pause(peerId: string): void {
    this.#peer(peerId).pausedUntil = this.#now() + PAUSE_MS
  }

  isPaused(peerId: string): boolean {
    return isWithin(this.#peers.get(peerId)?.pausedUntil, this.#now(), PAUSE_MS)
  }

  noteDeaf(peerId: string): void {
    this.#peer(peerId).deafUntil = this.#now() + DEAF_MS
  }

  isDeaf(peerId: string): boolean {
    return isWithin(this.#peers.get(peerId)?.deafUntil, this.#now(), DEAF_MS)
  }

  noteClock(peerId: string, offsetMs: number): void {
    this.#peer(peerId).clock = { offsetMs, at: this.#now() }
  }

  /** Median over the peers whose clocks are known. */
  clockOffsetMs(): number | undefined {
    const now = this.#now()
    const offsets = [...this.#peers.values()].flatMap(({ clock }) =>
      clock && Math.abs(now - clock.at) <= CLOCK_MS ? [clock.offsetMs] : [],
    )
    offsets.sort((a, b) => a - b)
    const [low, high] = [offsets[(offsets.length - 1) >> 1], offsets[offsets.length >> 1]]
    // Two peers that disagree: the one that agrees with us is more likely right than either alone.
    return low !== undefined && high !== undefined && Math.abs(low) < Math.abs(high) ? low : high
  }

  #peer(peerId: string): Peer {
    const known = this.#peers.get(peerId)
    const peer = known ?? {
      tokens: GOSSIP_BURST,
      tokensAt: this.#now(),
      pausedUntil: 0,
      deafUntil: 0,
      clock: undefined,
    }
    if (!known && this.#peers.size >= PEERS_MAX) {
      const [oldest] = this.#peers.keys()
      if (oldest !== undefined) this.#peers.delete(oldest)
    }
    this.#peers.set(peerId, peer)
    return peer
  }
}

/** A moment ahead, but not so far that the clock must have jumped since. */
function isWithin(until: number | undefined, now: number, spanMs: number): boolean {
  return until !== undefined && until > now && until <= now + spanMs
}
