/**
 * The connections of the host, as one for each peer: there is one, except while a direct one stands beside one that a relay carries. Then the
 * direct one is taken for what begins, and the relayed one ends when nothing uses it any more.
 */
import { once } from 'node:events'
import type { Connection, Libp2p, PeerId } from '@libp2p/interface'
import type { Liveness } from './liveness.ts'
import { isRelayed, relayIn } from './relay-transport.ts'

/** A direct connection that has lasted this long has proven itself. */
const PROVEN_MS = 10_000

/** libp2p gives streams half a second when it closes a connection in order. */
const CLOSING_MS_MAX = 1_000

/** The connection with a peer: the direct one, where there is one. */
export type Link = {
  readonly peerId: string
  /** The other end's address. */
  readonly address: string
  readonly direction: Connection['direction']
  /** Unix time. */
  readonly connectedMs: number
  /** Undefined until measured once. */
  readonly rttMs: number | undefined
  readonly path: 'direct' | 'relay'
  /** Who carries it. */
  readonly relay: string | undefined
  /** Whether a stream is open on it other than those that every connection has. */
  readonly busy: boolean
}

export class Connections {
  readonly #node: Pick<Libp2p, 'getConnections' | 'getPeers'>
  readonly #liveness: Pick<Liveness, 'rttMs'>

  constructor(node: Pick<Libp2p, 'getConnections' | 'getPeers'>, liveness: Pick<Liveness, 'rttMs'>) {
    this.#node = node
    this.#liveness = liveness
  }

  /** The one to use; undefined when there is none. */
  open(peer: PeerId): Connection | undefined {
    const open = this.#node.getConnections(peer).filter(({ status }) => status === 'open')
    return open.find(({ remoteAddr }) => !isRelayed(remoteAddr)) ?? open[0]
  }

  isDirect(peer: PeerId): boolean {
    const open = this.open(peer)
    return open !== undefined && !isRelayed(open.remoteAddr)
  }

  /** One for each peer. */
  links(): Link[] {
    const best = this.#node.getPeers().map((peer) => this.open(peer))
    return best.flatMap((connection) => (connection === undefined ? [] : [this.#linkOf(connection)]))
  }

  /** Closes relayed connections that nothing uses, of peers to which a direct one has proven itself. */
  dropSpare(): void {
    for (const connection of this.#node.getConnections()) {
      if (!isRelayed(connection.remoteAddr) || connection.status !== 'open' || isBusy(connection)) continue
      const direct = this.open(connection.remotePeer)
      if (direct === undefined || isRelayed(direct.remoteAddr)) continue
      if (Date.now() - direct.timeline.open < PROVEN_MS) continue
      void connection.close().catch((error: unknown) => connection.abort(error as Error))
    }
  }

  #linkOf(connection: Connection): Link {
    const relay = relayIn(connection.remoteAddr)
    return {
      peerId: connection.remotePeer.toString(),
      address: connection.remoteAddr.toString(),
      direction: connection.direction,
      connectedMs: connection.timeline.open,
      rttMs: this.#liveness.rttMs(connection),
      path: relay === undefined ? 'direct' : 'relay',
      relay,
      busy: isBusy(connection),
    }
  }
}

/** Whether something is going on that somebody wanted. */
export function isBusy(connection: Connection): boolean {
  return connection.streams.some(({ protocol }) => protocol !== '' && !isBackground(protocol))
}

/** Streams that every connection has, or that come and go by themselves; those of a network are named behind its own protocol. */
function isBackground(protocol: string): boolean {
  return /^(\/undernet\/network\/1)?\/(meshsub|ipfs)\//.test(protocol) || protocol.startsWith('/undernet/kad/')
}

/** Whether a stream could not be opened because the connection is going; if so, it is gone when this resolves. */
export async function isGone(connection: Connection, cause: unknown, signal: AbortSignal): Promise<boolean> {
  if (connection.status !== 'open' && connection.status !== 'closing') return true
  // While its muxer closes in order, a connection still calls itself open.
  const isClosing =
    connection.status === 'closing' || (cause instanceof Error && cause.name === 'ConnectionClosedError')
  if (!isClosing) return false
  try {
    await once(connection, 'close', { signal: AbortSignal.any([signal, AbortSignal.timeout(CLOSING_MS_MAX)]) })
    return true
  } catch {
    return connection.status !== 'open' && !signal.aborted
  }
}
