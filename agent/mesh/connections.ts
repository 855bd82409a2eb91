/**
 * The connections of the host, as one for each peer: there is one, except while a direct one stands beside one that a relay carries. Then the
 * direct one is taken for what begins, and the relayed one ends when nothing uses it any more.
 */
import { once } from 'node:events'
import type { Connection, Libp2p, PeerId } from '@libp2p/interface'
import { isOurs } from './addresses.ts'
import type { Liveness } from './liveness.ts'
import { isRelayed, relayIn } from './relay-transport.ts'

/** A direct connection that has lasted this long has proven itself; and one through a hole, which routers may yet close. */
const PROVEN_MS = 10_000
const PUNCHED_PROVEN_MS = 30_000
/** A round trip, on a machine that has just found a new network or woken up. */
const ALIVE_MS = 1_500

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
  readonly path: 'direct' | 'punched' | 'relay'
  /** Who carries it. */
  readonly relay: string | undefined
  /** Whether a stream is open on it other than those that every connection has. */
  readonly busy: boolean
}

export class Connections {
  readonly #node: Pick<Libp2p, 'getConnections' | 'getPeers'>
  readonly #liveness: Pick<Liveness, 'rttMs' | 'isAlive'>
  /** Whether it goes through a hole in routers. */
  readonly #isPunched: (connection: Connection) => boolean

  constructor(
    node: Pick<Libp2p, 'getConnections' | 'getPeers'>,
    liveness: Pick<Liveness, 'rttMs' | 'isAlive'>,
    isPunched: (connection: Connection) => boolean,
  ) {
    this.#node = node
    this.#liveness = liveness
    this.#isPunched = isPunched
  }

  /** The one to use, the plainest there is; undefined when there is none. */
  open(peer: PeerId): Connection | undefined {
    const open = this.#node.getConnections(peer).filter(({ status }) => status === 'open')
    const direct = open.filter(({ remoteAddr }) => !isRelayed(remoteAddr))
    return direct.find((one) => !this.#isPunched(one)) ?? direct[0] ?? open[0]
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
      const provenMs = this.#isPunched(direct) ? PUNCHED_PROVEN_MS : PROVEN_MS
      if (Date.now() - direct.timeline.open < provenMs) continue
      void connection.close().catch((error: unknown) => connection.abort(error as Error))
    }
  }

  /** Ends those that give no sign of life now: their packets go nowhere, or come from an address that this machine has no more. */
  dropDead(): void {
    for (const connection of this.#node.getConnections()) {
      const local = localAddressOf(connection)
      if (local !== undefined && !isOurs(local)) {
        connection.abort(new Error(`this machine is not at ${local} any more`))
        continue
      }
      void this.#liveness.isAlive(connection, ALIVE_MS).then((isAlive) => {
        if (!isAlive) connection.abort(new Error('no sign of life after this machine moved'))
      })
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
      path: relay !== undefined ? 'relay' : this.#isPunched(connection) ? 'punched' : 'direct',
      relay,
      busy: isBusy(connection),
    }
  }
}

/** The end of its TCP socket that is here: private in libp2p's types, and there in 3.x. */
function localAddressOf(connection: Connection): string | undefined {
  return (connection as unknown as { maConn?: { socket?: { localAddress?: string } } }).maConn?.socket?.localAddress
}

/** Whether something is going on that somebody wanted. */
function isBusy(connection: Connection): boolean {
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
