/**
 * Dials a peer directly: TCP first, and QUIC beside it where that takes long or fails, as browsers do with two families of addresses. One
 * connection comes of it: what loses is given up, or refused as a second one (admission.ts).
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Libp2p, PeerId } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { byReach, hostIn, withPeer } from './addresses.ts'
import { duplicateOf } from './admission.ts'
import { isQuic } from './quic.ts'
import { refusalIn } from './refusals.ts'
import { dialBeside, type Services } from './stack.ts'

/** For a dial whose caller set no narrower limit: several addresses, at DIAL_ADDRESS_MS each. */
const DIAL_MS_MAX = 10_000
/** TCP carries bulk faster, and a dead peer shows at once: it gets this much of a start, enough for its round trips across an ocean. */
const QUIC_AFTER_MS = 400
/** Dialled beside each other. */
const QUIC_ADDRESSES_MAX = 4

export type DiallerOptions = {
  node: Libp2p<Services>
  /** Whether this node can dial QUIC. */
  hasQuic: boolean
  isDirect: (peer: PeerId) => boolean
  log: Log
}

export class Dialler {
  readonly #options: DiallerOptions

  constructor(options: DiallerOptions) {
    this.#options = options
  }

  /** Dials one peer by its addresses, and resolves with its peer id, also when it was connected before. */
  async dial(addresses: readonly Multiaddr[], outer: AbortSignal): Promise<string> {
    const { node, hasQuic } = this.#options
    const signal = within(DIAL_MS_MAX, outer)
    const quic = hasQuic ? addresses.filter(isQuic) : []
    const others = addresses.filter((address) => !isQuic(address))
    try {
      if (quic.length > 0 && others.length > 0) return await this.#race(others, quic, signal)
      const connection = await node.dial([...addresses], { signal })
      return connection.remotePeer.toString()
    } catch (error) {
      const peerId = duplicateOf(error)
      const isThere = peerId !== undefined && node.getPeers().some((peer) => peer.toString() === peerId)
      if (isThere) return peerId
      throw error
    }
  }

  /** The addresses that the peer was last seen with, then those that the DHT knows. */
  async dialKnown(peer: PeerId, signal: AbortSignal): Promise<void> {
    const { node, isDirect } = this.#options
    const limited = within(DIAL_MS_MAX, signal)
    try {
      const isKnown = await node.peerStore.has(peer)
      const known = isKnown ? (await node.peerStore.get(peer)).addresses.map(({ multiaddr }) => multiaddr) : []
      if (known.some(isQuic))
        await this.dial(
          known.map((address) => withPeer(address, peer.toString())),
          limited,
        )
      else await node.dial(peer, { signal: limited })
    } catch (error) {
      signal.throwIfAborted()
      await this.#dialByDht(peer, signal)
      if (!isDirect(peer)) throw error
    }
  }

  /**
   * Connects by QUIC with a peer at an address, so that it sees where this node dials from; whatever comes of it: where there is a connection,
   * this one is refused as a second.
   */
  async touch(peer: PeerId, host: string, signal: AbortSignal): Promise<void> {
    const { node, hasQuic, log } = this.#options
    if (!hasQuic || !(await node.peerStore.has(peer))) return
    const { addresses } = await node.peerStore.get(peer)
    const known = addresses.map(({ multiaddr }) => multiaddr).find((one) => isQuic(one) && hostIn(one) === host)
    if (known === undefined) return
    try {
      await dialBeside(node, withPeer(known, peer.toString()), signal)
    } catch (error) {
      log.debug({ peerId: peer.toString(), reason: reasonOf(error) }, 'quic.touched')
    }
  }

  /** For a peer that moved. */
  async #dialByDht(peer: PeerId, signal: AbortSignal): Promise<void> {
    const { node, isDirect, log } = this.#options
    if (node.services.dht === undefined || isDirect(peer)) return
    const limited = within(DIAL_MS_MAX, signal)
    try {
      const { multiaddrs } = await node.peerRouting.findPeer(peer, { signal: limited, useCache: false })
      await this.dial(
        multiaddrs.map((address) => withPeer(address, peer.toString())),
        limited,
      )
    } catch (error) {
      log.debug({ peerId: peer.toString(), reason: reasonOf(error) }, 'peer.unreachable')
    }
  }

  async #race(others: readonly Multiaddr[], quic: readonly Multiaddr[], outer: AbortSignal): Promise<string> {
    const { node } = this.#options
    const over = new AbortController()
    const signal = AbortSignal.any([outer, over.signal])
    const first = node.dial([...others], { signal }).then(({ remotePeer }) => remotePeer.toString())
    const second = async () => {
      await Promise.race([first.catch(() => undefined), delay(QUIC_AFTER_MS, undefined, { signal, ref: false })])
      signal.throwIfAborted()
      return await this.#dialQuic(quic, signal)
    }
    try {
      return await Promise.any([first, second()])
    } catch (error) {
      // That the peer does not want this node says more than a port that is closed.
      throw refusalIn(error) ?? (duplicateOf(error) === undefined ? (error as AggregateError).errors[0] : error)
    } finally {
      over.abort()
      first.catch(() => undefined)
    }
  }

  /** Past libp2p's queue of dials, which would join the one by TCP that is under way. */
  async #dialQuic(addresses: readonly Multiaddr[], signal: AbortSignal): Promise<string> {
    const { node } = this.#options
    const sort = byReach()
    const sorted = addresses
      .map((multiaddr) => ({ multiaddr, isCertified: false }))
      .sort(sort)
      .slice(0, QUIC_ADDRESSES_MAX)
    const dialled = sorted.map(async ({ multiaddr }) => {
      const connection = await dialBeside(node, multiaddr, signal)
      // As libp2p does where it dials: next time it is known to work.
      await node.peerStore.merge(connection.remotePeer, { multiaddrs: [connection.remoteAddr] })
      return connection.remotePeer.toString()
    })
    return await Promise.any(dialled)
  }
}

function within(ms: number, signal: AbortSignal): AbortSignal {
  return AbortSignal.any([signal, AbortSignal.timeout(ms)])
}
