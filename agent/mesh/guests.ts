/**
 * Who has a token of a member that nobody can dial reaches it through another member, from start() until disposed. A pass stands in the token
 * (protocols/membership/pass.ts): whoever shows it to a member that carries is let in for a minute, to be carried to the one who signed it
 * and for nothing else. There he shows his token, on a connection of the two that the relay cannot read.
 *
 * As relay, it lets in guests of members that may let others in, are connected here themselves, and may use this node as relay.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { decodePass, type Pass } from '../../protocols/membership/pass.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import { RELAY_GUEST_PROTOCOL } from '../../protocols/relay/exchange.ts'
import { AgentError, reasonOf } from '../error.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { withPeer } from './addresses.ts'
import type { Gate } from './gate.ts'
import type { Host } from './host.ts'
import { refusalIn } from './refusals.ts'
import { isRelayed, relayIn } from './relay-transport.ts'
import type { Relays } from './relays.ts'

/** A direct dial that has not come through by then is not waited for. */
const RELAY_AFTER_MS = 300
/** Of one member: who has its token makes as many keys as he likes, and each would hold a connection for a minute. */
const GUESTS_MAX = 8
/** Of one guest: he needs one, and one that is tried again. */
const STREAMS_MAX = 2
/** As multiaddrs have it, behind the relay's own address. */
const CIRCUIT = '/p2p-circuit'

export type GuestsOptions = {
  host: Pick<Host, 'dial' | 'handle' | 'unhandle'>
  gate: Pick<Gate, 'admitted' | 'guestsOf' | 'passes' | 'refresh' | 'useDoor'>
  relays: Pick<Relays, 'admitsGuestOf' | 'carryGuest' | 'reachAsGuest'>
  log: Log
}

/** What a token says of its issuer. */
type Invited = { readonly addresses: readonly Multiaddr[]; readonly pass?: Uint8Array | undefined }

export class Guests implements AsyncDisposable {
  readonly #options: GuestsOptions

  private constructor(options: GuestsOptions) {
    this.#options = options
  }

  static async start(options: GuestsOptions): Promise<Guests> {
    const guests = new Guests(options)
    const { host, gate, relays } = options
    gate.useDoor({
      admits: ({ network, issuer }) =>
        gate.guestsOf(issuer) < GUESTS_MAX && relays.admitsGuestOf(hexOf(network), peerIdOf(issuer)),
    })
    await host.handle(RELAY_GUEST_PROTOCOL, (stream, peerId) => guests.#carry(stream, peerId), {
      maxInboundStreams: STREAMS_MAX,
    })
    return guests
  }

  /**
   * Connects to whoever made a token, by its addresses, or through the members that it names.
   *
   * @throws what the direct dial failed with, or `not-allowed` with what the issuer said
   */
  async reach({ addresses, pass }: Invited, issuer: string, signal: AbortSignal): Promise<void> {
    const over = new AbortController()
    const limited = AbortSignal.any([signal, over.signal])
    const ways = pass === undefined ? [] : addresses.filter(isRelayed)
    const direct = addresses.filter((one) => !isRelayed(one)).map((address) => withPeer(address, issuer))
    const dialled = this.#options.host.dial(direct, limited)
    const isDirect = dialled.then(
      () => true,
      () => false,
    )
    const carried = async () => {
      const isThere = await Promise.race([isDirect, delay(RELAY_AFTER_MS, false, { ref: false })])
      if (!isThere) await this.#reachThroughAny(ways, pass && decodePass(pass), issuer, limited)
    }
    try {
      await Promise.any([dialled, carried()])
    } catch (error) {
      const { errors } = error as AggregateError
      throw errors.find((one) => refusalIn(one) !== undefined) ?? errors[0]
    } finally {
      over.abort()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#options.host.unhandle(RELAY_GUEST_PROTOCOL)
  }

  async #reachThroughAny(
    ways: Multiaddr[],
    pass: Pass | undefined,
    issuer: string,
    signal: AbortSignal,
  ): Promise<void> {
    let last: unknown = new AgentError('not-found', 'nobody carries to the node that made the token')
    for (const way of ways) {
      if (pass === undefined) break
      try {
        return await this.#reachThrough(way, pass, issuer, signal)
      } catch (error) {
        signal.throwIfAborted()
        // The issuer's own word is the last one.
        if (refusalIn(error) !== undefined) throw error
        this.#options.log.debug({ way: way.toString(), reason: reasonOf(error) }, 'guest.failed')
        last = error
      }
    }
    throw last
  }

  async #reachThrough(way: Multiaddr, pass: Pass, issuer: string, signal: AbortSignal): Promise<void> {
    const { gate, host, relays } = this.#options
    const relay = relayIn(way)
    if (relay === undefined) throw new AgentError('usage', `${way.toString()} does not say who carries`)
    gate.passes.set(relay, pass)
    try {
      if (gate.admitted(relay) === undefined) await host.dial([way.decapsulate(CIRCUIT)], signal)
      if (gate.admitted(relay)?.guest === undefined) await gate.refresh(relay, signal)
    } catch (cause) {
      // Its refusal is not the issuer's.
      throw new AgentError('failed', `${relay}, which carries, cannot be asked: ${reasonOf(cause)}`, { cause })
    } finally {
      gate.passes.delete(relay)
    }
    await relays.reachAsGuest(relay, issuer, signal)
  }

  async #carry(stream: Stream, peerId: string): Promise<void> {
    const { gate, relays } = this.#options
    const guest = gate.admitted(peerId)?.guest
    if (guest === undefined) stream.abort(new Error('no guest'))
    else await relays.carryGuest(stream, peerId, hexOf(guest.network), peerIdOf(guest.issuer))
  }
}

/** Where a relay lets in who shows a pass of a member. */
export function guestAddress(relay: Multiaddr, peerId: string): Multiaddr {
  return withPeer(relay, peerId).encapsulate(CIRCUIT)
}
