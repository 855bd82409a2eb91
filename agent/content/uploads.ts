/**
 * Who may send pieces now: fair shares of this node's upload among the peers that ask at once, and a bound on all of it.
 *
 * A piece is sent in a turn. Turns go round by bytes, not by streams: of the peers that wait, the one that was given the fewest has the next
 * (start-time fair queueing, Goyal et al. 1996), so sixteen streams get a peer no more than one. A peer that was away is owed nothing
 * for it. While others want something, a peer has one piece under way at a time; alone, as many as it has streams.
 *
 * With a rate, turns begin no faster than it allows; the debt of one piece is the largest that it is ever ahead. A newcomer who would have
 * to wait too long is told that this node is busy, so that it asks another. Peers that are slow to take what they are given keep
 * their slot for a moment only: waiting for them costs the others nothing.
 */

import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'

/** Peers that are sent to at once; each costs a piece of memory, and a part of the line. */
const SLOTS_MAX = 32
/** A turn that has not ended by then waits for its peer, not for this node: its slot is free again. */
const SLOT_MS_MAX = 1_000
/** Turns that wait, over all peers: as many as there are streams. */
const WAITING_MAX = 128
/** What a peer that comes may have to wait for each of its pieces. Askers give a source about 20 s for one. */
const WAIT_MS_MAX = 8_000
/** A peer whose last turn ended just now is still there: it reads its next piece from the disk. */
const PRESENT_MS = 100
/** What such a peer may get behind the others meanwhile, and catch up on. */
const OWED_BYTES_MAX = 4 * PIECE_BYTES
/** Time for which nothing was sent is not made up for beyond this. */
const BURST_MS = 250

type Turn = { bytes: number; begin: (end: () => void) => void }
type PeerQueue = {
  waiting: Set<Turn>
  /** Turns that have begun and not ended. */
  sending: Set<{ bytes: number; sinceMs: number }>
  /** What it was given, on the clock of all that is given. */
  givenBytes: number
  endedMs: number
}

export type UploadsInit = {
  /** Bytes a second; undefined for no bound. */
  rateBytes?: number | undefined
  now?: () => number
  /** Calls back after so long; returns how to stop that. */
  after?: (ms: number, work: () => void) => () => void
}

export class Uploads implements Disposable {
  readonly #now: () => number
  readonly #after: NonNullable<UploadsInit['after']>
  readonly #peers = new Map<string, PeerQueue>()
  #rateBytes: number | undefined
  /** What may be sent at #filledMs; below 0 while more was sent than the rate allows. */
  #budgetBytes = 0
  #filledMs: number
  /** How much the peer served last had been given when its turn began. */
  #clockBytes = 0
  #waitingCount = 0
  #stopTimer: (() => void) | undefined
  /** A turn of the event loop is waited for. */
  #isNextTurn = false

  constructor({ rateBytes, now = () => performance.now(), after = timer }: UploadsInit = {}) {
    this.#now = now
    this.#after = after
    this.#rateBytes = rateBytes
    this.#filledMs = now()
  }

  /** Bytes a second, from now on; undefined for no bound. */
  setRate(rateBytes: number | undefined): void {
    this.#fill()
    this.#rateBytes = rateBytes
    this.#budgetBytes = Math.min(this.#budgetBytes, 0)
    this.#begin()
  }

  /** Whether a peer that is not being served yet should rather ask another. */
  isBusy(peerId: string): boolean {
    if (this.#waitingCount >= WAITING_MAX) return true
    if (this.#rateBytes === undefined || this.#isPresent(this.#peers.get(peerId), this.#now())) return false
    const wantedBytes = (this.#present().length + 1) * PIECE_BYTES
    return (wantedBytes * 1_000) / this.#rateBytes > WAIT_MS_MAX
  }

  /** Resolves when it is the peer's turn to be sent so many bytes, with how to end the turn. */
  turn(peerId: string, bytes: number, signal: AbortSignal): Promise<() => void> {
    if (signal.aborted) return Promise.reject(signal.reason as Error)
    return new Promise((resolve, reject) => {
      const peer = this.#peerOf(peerId)
      const onAbort = () => {
        this.#remove(peer, turn)
        reject(signal.reason as Error)
      }
      const turn: Turn = {
        bytes,
        begin: (end) => {
          signal.removeEventListener('abort', onAbort)
          resolve(end)
        },
      }
      signal.addEventListener('abort', onAbort, { once: true })
      const owedBytesMax = this.#isPresent(peer, this.#now()) ? OWED_BYTES_MAX : 0
      peer.givenBytes = Math.max(peer.givenBytes, this.#clockBytes - owedBytesMax)
      peer.waiting.add(turn)
      this.#waitingCount++
      this.#begin()
    })
  }

  /**
   * Gives chunks out as it is the peer's turn, each in a turn that ends when the next one is asked for. The next one is made ready meanwhile:
   * else a peer with one stream would miss its turn whenever it reads from the disk, and the others had its share.
   */
  async *paced(
    peerId: string,
    chunks: AsyncIterable<Uint8Array>,
    wait: (turn: Promise<() => void>) => Promise<() => void>,
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array> {
    const iterator = chunks[Symbol.asyncIterator]()
    let coming = settledLater(iterator.next())
    try {
      for (let next = await coming; next.done !== true; next = await coming) {
        const end = await wait(this.turn(peerId, next.value.byteLength, signal))
        coming = settledLater(iterator.next())
        try {
          yield next.value
        } finally {
          end()
        }
      }
    } finally {
      await iterator.return?.()
    }
  }

  [Symbol.dispose](): void {
    this.#stopTimer?.()
  }

  #peerOf(peerId: string): PeerQueue {
    const known = this.#peers.get(peerId)
    if (known) return known
    this.#forgetOthers()
    const peer: PeerQueue = {
      waiting: new Set(),
      sending: new Set(),
      givenBytes: this.#clockBytes,
      endedMs: Number.NEGATIVE_INFINITY,
    }
    this.#peers.set(peerId, peer)
    return peer
  }

  /** A peer that is ahead of the others stays remembered: coming back under the same name must not make it forgotten. */
  #forgetOthers(): void {
    const now = this.#now()
    for (const [peerId, peer] of this.#peers)
      if (!this.#isPresent(peer, now) && peer.givenBytes <= this.#clockBytes) this.#peers.delete(peerId)
  }

  #remove(peer: PeerQueue, turn: Turn): void {
    if (peer.waiting.delete(turn)) this.#waitingCount--
  }

  #isPresent(peer: PeerQueue | undefined, now: number): boolean {
    if (peer === undefined) return false
    return peer.waiting.size > 0 || peer.sending.size > 0 || now - peer.endedMs < PRESENT_MS
  }

  #present(): PeerQueue[] {
    const now = this.#now()
    return [...this.#peers.values()].filter((peer) => this.#isPresent(peer, now))
  }

  /**
   * Begins the turns that may begin now, and comes back when the next one may. While peers compete it is one in each turn of the event loop:
   * what the others' connections have to say is heard in between, else the one with the most streams would be done with many before.
   */
  #begin(): void {
    if (this.#isNextTurn) return
    this.#stopTimer?.()
    this.#stopTimer = undefined
    while (this.#waitingCount > 0) {
      this.#fill()
      const waitMs = this.#delayMs()
      const next = waitMs > 0 ? undefined : this.#next()
      if (next === undefined) {
        // Nobody may, until a turn ends or a slot is taken back.
        const laterMs = waitMs > 0 ? waitMs : SLOT_MS_MAX / 10
        this.#stopTimer = this.#after(laterMs, () => this.#begin())
        return
      }
      this.#beginOne(next.peer)
      if (!next.isAlone) {
        this.#isNextTurn = true
        this.#stopTimer = this.#after(0, () => {
          this.#isNextTurn = false
          this.#begin()
        })
        return
      }
    }
  }

  #beginOne(peer: PeerQueue): void {
    const [turn] = peer.waiting
    if (turn === undefined) return
    this.#remove(peer, turn)
    this.#clockBytes = Math.max(this.#clockBytes, peer.givenBytes)
    peer.givenBytes += turn.bytes
    if (this.#rateBytes !== undefined) this.#budgetBytes -= turn.bytes
    const sending = { bytes: turn.bytes, sinceMs: this.#now() }
    peer.sending.add(sending)
    turn.begin(() => {
      if (!peer.sending.delete(sending)) return
      peer.endedMs = this.#now()
      this.#begin()
    })
  }

  /** The peer that was given the fewest of those that may have a turn; undefined when none may. */
  #next(): { peer: PeerQueue; isAlone: boolean } | undefined {
    const now = this.#now()
    const present = this.#present()
    const bytesMax = present.length > 1 ? PIECE_BYTES : Number.POSITIVE_INFINITY
    let taken = 0
    let best: PeerQueue | undefined
    for (const peer of present) {
      let sendingBytes = 0
      for (const { bytes, sinceMs } of peer.sending) {
        if (now - sinceMs >= SLOT_MS_MAX) continue
        sendingBytes += bytes
        taken++
      }
      const [turn] = peer.waiting
      const mayBegin = turn !== undefined && (sendingBytes === 0 || sendingBytes + turn.bytes <= bytesMax)
      if (mayBegin && (best === undefined || peer.givenBytes < best.givenBytes)) best = peer
    }
    return best !== undefined && taken < SLOTS_MAX ? { peer: best, isAlone: present.length === 1 } : undefined
  }

  /** Until the rate allows another turn. */
  #delayMs(): number {
    if (this.#rateBytes === undefined || this.#budgetBytes >= 0) return 0
    return Math.max(1, Math.ceil((-this.#budgetBytes * 1_000) / this.#rateBytes))
  }

  #fill(): void {
    const now = this.#now()
    const rate = this.#rateBytes
    if (rate !== undefined)
      this.#budgetBytes = Math.min(
        this.#budgetBytes + ((now - this.#filledMs) * rate) / 1_000,
        (BURST_MS * rate) / 1_000,
      )
    this.#filledMs = now
  }
}

/** Whoever waits for it hears of a failure; nobody may come to do so. */
function settledLater<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined)
  return promise
}

function timer(ms: number, work: () => void): () => void {
  if (ms === 0) {
    const immediate = setImmediate(work)
    return () => clearImmediate(immediate)
  }
  const timeout = setTimeout(work, ms)
  return () => clearTimeout(timeout)
}
