/**
 * One connection per peer. Both sides may dial at the same moment, and a peer that restarted dials while its old connection still
 * looks open here; libp2p would keep both, and gossip breaks when one of two is closed later. So each new connection is judged before
 * it exists for anybody (in the connection gater's awaited hooks, between muxer and Connection), by a rule that both ends apply alike
 * and that never leaves two, or none:
 *
 * 1. No open connection to the peer: admitted.
 * 2. The new one was dialled by the smaller peer id and the open one by the larger: the new one replaces it, on both ends. Neither end
 *    ever refuses such a connection, so it stands.
 * 3. Both were dialled by the same end, the open one is QUIC and has just come to be, and the new one is TCP: the new one replaces it. That
 *    end dialled both ways at once (dialler.ts), and TCP is what it preferred.
 * 4. Otherwise the open one stays if it gives a sign of life within PROOF_MS, and is replaced if it does not (the peer restarted, or
 *    lost the link before we noticed).
 *
 * "Replaces" means: the old one is aborted and everybody has been told before the new one opens.
 *
 * Who comes as far as this has said hello already (gate.ts, in the hooks before these): a stranger can neither replace anybody nor make
 * us look whether somebody lives.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Connection, ConnectionGater, MultiaddrConnection, PeerId } from '@libp2p/interface'
import type { Log } from '../log.ts'
import { isQuic } from './quic.ts'
import { isRelayed } from './relay-transport.ts'

/** A live peer answers in a round trip; a link slower than this is not worth waiting for at connecting time. */
const PROOF_MS = 1_500
/** Two dials at once end within this of each other. */
const YOUNG_MS = 5_000
/** libp2p tells its topologies (gossip, DHT) of a closed connection some turns of the event loop later. */
const SETTLE_MS = 20
/** Name of the error that a dial fails with when its peer is connected already. */
const DUPLICATE = 'DuplicateConnection'

type Direction = Connection['direction']

/** What Admission needs to know of the host it guards; the host exists only after its gater. */
export type Guarded = {
  connections(peer: PeerId): Connection[]
  isAlive(connection: Connection, waitMs: number): Promise<boolean>
}

export class Admission {
  readonly #self: string
  readonly #log: Log
  /** Peer id -> the judgement in progress; the next one for the same peer waits for it. */
  readonly #judging = new Map<string, Promise<boolean>>()
  #host: Guarded | undefined

  constructor(self: string, log: Log) {
    this.#self = self
    this.#log = log
  }

  guard(host: Guarded): void {
    this.#host = host
  }

  /** The hooks for libp2p's `connectionGater`. */
  gater(): Pick<ConnectionGater, 'denyInboundUpgradedConnection' | 'denyOutboundUpgradedConnection'> {
    return {
      denyInboundUpgradedConnection: async (peer, raw) => !(await this.#inTurn(peer, raw, 'inbound')),
      denyOutboundUpgradedConnection: async (peer, raw) => {
        if (await this.#inTurn(peer, raw, 'outbound')) return false
        throw duplicate(peer, raw)
      },
    }
  }

  async #inTurn(peer: PeerId, raw: MultiaddrConnection, direction: Direction): Promise<boolean> {
    const id = peer.toString()
    const before = this.#judging.get(id)
    const verdict = (async () => {
      // The one before becomes a connection some microtasks after its verdict: a whole turn of the event loop later it is there.
      if (before !== undefined) await before.then(() => delay(0))
      return this.#judge(peer, raw, direction)
    })()
    this.#judging.set(id, verdict)
    try {
      return await verdict
    } finally {
      if (this.#judging.get(id) === verdict) setImmediate(() => this.#forget(id, verdict))
    }
  }

  #forget(id: string, verdict: Promise<boolean>): void {
    if (this.#judging.get(id) === verdict) this.#judging.delete(id)
  }

  async #judge(peer: PeerId, raw: MultiaddrConnection, direction: Direction): Promise<boolean> {
    const host = this.#host
    if (host === undefined) return false
    for (const open of host.connections(peer)) {
      if (open.status !== 'open') continue
      // A direct one stands beside what a relay carries, until it has proven itself (host.ts); a relayed one never beside a direct one.
      if (isRelayed(open.remoteAddr) && !isRelayed(raw.remoteAddr)) continue
      const wins =
        isRelayed(open.remoteAddr) === isRelayed(raw.remoteAddr) &&
        (direction === open.direction
          ? isQuic(open.remoteAddr) && !isQuic(raw.remoteAddr) && Date.now() - open.timeline.open < YOUNG_MS
          : this.#isPrimary(peer, direction))
      if (!wins && (await host.isAlive(open, PROOF_MS))) {
        this.#log.debug({ peerId: peer.toString(), direction }, 'connection.duplicate')
        return false
      }
      this.#log.debug({ peerId: peer.toString(), direction }, 'connection.replaced')
      open.abort(new Error('replaced by a newer connection of the same peer'))
      await delay(SETTLE_MS)
    }
    return true
  }

  /** Whether a connection of this direction was dialled by the smaller of the two peer ids. */
  #isPrimary(peer: PeerId, direction: Direction): boolean {
    return isFirstToDial(this.#self, peer.toString()) === (direction === 'outbound')
  }
}

/** Of two peers that hear of each other at the same moment, whether `self` is the one to dial at once. */
export function isFirstToDial(self: string, peer: string): boolean {
  return self < peer
}

/** The peer that a failed dial turned out to be connected to already. */
export function duplicateOf(error: unknown): string | undefined {
  if (error instanceof AggregateError) return error.errors.map(duplicateOf).find((peer) => peer !== undefined)
  return error instanceof Error && error.name === DUPLICATE ? (error.cause as string) : undefined
}

function duplicate(peer: PeerId, raw: MultiaddrConnection): Error {
  const error = new Error(`already connected to ${peer.toString()}, not by ${raw.remoteAddr.toString()} too`, {
    cause: peer.toString(),
  })
  error.name = DUPLICATE
  return error
}
