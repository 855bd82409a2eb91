/**
 * Tunnels that are being opened, some at a time to each peer; the others wait their turn, first come, first served. libp2p refuses what is beyond its
 * limit for a protocol, on both ends, and all streams of a network share one until their header is read: without turns, an application that makes a
 * hundred connections at once would have a third of them fail.
 */
import { AgentError } from '../error.ts'

/** Half of what both ends allow (network-streams.ts, HEADERS_MAX): other streams need room, and the other end may be late in reading headers. */
const AT_ONCE_MAX = 32
/** For a peer: what a member may have open at all is no more. */
const WAITING_MAX = 2_048

type Peer = { opening: number; waiting: Set<() => void> }

export class Openings {
  readonly #peers = new Map<string, Peer>()

  /** Runs `open` when it is its turn. @throws {AgentError} `limit`; the signal's reason; whatever `open` throws */
  async inTurn<T>(peerId: string, signal: AbortSignal, open: () => Promise<T>): Promise<T> {
    const peer = this.#peers.get(peerId) ?? { opening: 0, waiting: new Set() }
    this.#peers.set(peerId, peer)
    if (peer.opening < AT_ONCE_MAX) peer.opening++
    else await turnOf(peer, signal)
    try {
      return await open()
    } finally {
      const [next] = peer.waiting
      if (next !== undefined) {
        // Its place goes to the one that has waited longest.
        peer.waiting.delete(next)
        next()
      } else if (--peer.opening === 0) this.#peers.delete(peerId)
    }
  }
}

/** Resolves when somebody leaves his place to the caller. */
function turnOf({ waiting }: Peer, signal: AbortSignal): Promise<void> {
  if (waiting.size >= WAITING_MAX) throw new AgentError('limit', 'too many streams wait to be opened to one member')
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      waiting.delete(next)
      reject(signal.reason as Error)
    }
    const next = () => {
      signal.removeEventListener('abort', onAbort)
      resolve()
    }
    if (signal.aborted) return onAbort()
    waiting.add(next)
    signal.addEventListener('abort', onAbort, { once: true })
  })
}
