/**
 * The networks of this node as places to publish in, named as people name them. Nothing goes out by a guess: with several networks, one
 * has to be said.
 */
import type { Publications } from '../artifacts/publications.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import { AgentError } from '../error.ts'
import type { Host } from '../mesh/host.ts'
import type { ClosedNetwork } from './closed-network.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import { type Entrance, OPEN_NETWORK_NAME } from './entrance.ts'
import type { OpenNetwork } from './open-network.ts'

export type Place = {
  /** For people. */
  readonly name: string
  /** The network's. */
  readonly id: string
  readonly publications: Publications
  /** Peers that hear at once what is published. */
  connected(): readonly string[]
  /** Why nobody there would see what this node publishes, and what to do. */
  refusal(): { why: string; next: string } | undefined
}

export type PlacesDeps = {
  /** undefined when this node takes no part in it. */
  openNetwork: OpenNetwork | undefined
  closed: ClosedNetworks
  entrance: Pick<Entrance, 'networks'>
  host: Pick<Host, 'connected'>
}

export class Places {
  readonly #deps: PlacesDeps

  constructor(deps: PlacesDeps) {
    this.#deps = deps
  }

  /**
   * Where to publish.
   *
   * @throws {AgentError} `usage` when none is named and there are several, or none; `not-found`; `not-allowed` when nobody would see what
   *   this node publishes there
   */
  toPublish(network: string | undefined): Place {
    const [only, ...others] = this.#named(network)
    if (only === undefined) throw noNetwork()
    if (others.length > 0) {
      const names = [only, ...others].map(({ name }) => name)
      throw new AgentError('usage', `this node is in ${names.length} networks: ${names.join(', ')}`, {
        next: `Say with --network in which to publish. What is in "${OPEN_NETWORK_NAME}" can be read by everybody.`,
      })
    }
    const refusal = only.refusal()
    if (refusal === undefined) return only
    const { why, next } = refusal
    throw new AgentError('not-allowed', `nobody in "${only.name}" would see it: ${why}`, { next })
  }

  /**
   * Where to publish what a program pushes, which says no network unless its user has made it: the closed one of this node, if there is one
   * only. Nothing goes so to everybody.
   *
   * @throws {AgentError} as toPublish
   */
  toPush(network: string | undefined): Place {
    if (network !== undefined) return this.toPublish(network)
    const names = this.#named(undefined).map(({ name }) => name)
    const [only, ...others] = this.#deps.closed.list()
    if (only !== undefined && others.length === 0) return this.toPublish(only.membership.name)
    if (names.length === 0) throw noNetwork()
    const which = only === undefined ? 'in the open network only' : `in ${names.length} networks: ${names.join(', ')}`
    throw new AgentError('usage', `this node is ${which}`, {
      next: `Say in which to publish by the URL of the cache: .../nix/in/${names[0]}. What is in "${OPEN_NETWORK_NAME}" can be read by everybody.`,
    })
  }

  /**
   * Where this node shares something; if nowhere, any place will say so.
   *
   * @throws {AgentError} `usage` when that is in several networks, `not-found`
   */
  sharing(ref: string, network: string | undefined): Place {
    const places = this.#named(network)
    const sharing = places.filter(({ publications }) => publications.has(ref))
    if (sharing.length > 1) {
      throw new AgentError('usage', `this node shares ${ref} in ${sharing.length} networks`, {
        next: `Say in which with --network: ${sharing.map(({ name }) => name).join(' or ')}.`,
      })
    }
    const [place = places[0]] = sharing
    if (place === undefined) throw noNetwork()
    return place
  }

  /** One network, whether anybody there would see something or not. @throws {AgentError} `not-found`, `failed` */
  named(network: string): Place {
    const [place] = this.#named(network)
    if (place === undefined) throw noNetwork()
    return place
  }

  /** The id of the network that somebody named. @throws {AgentError} `not-found` */
  idOf(network: string): string
  idOf(network: string | undefined): string | undefined
  idOf(network: string | undefined): string | undefined {
    const { openNetwork, entrance } = this.#deps
    if (network === undefined) return undefined
    const isOpen = network === OPEN_NETWORK_NAME || network === OPEN_NETWORK_ID
    if (isOpen && openNetwork !== undefined) return OPEN_NETWORK_ID
    return entrance.networks.find(network).id
  }

  #named(network: string | undefined): Place[] {
    const { openNetwork, closed, host } = this.#deps
    const open =
      openNetwork === undefined
        ? []
        : [
            {
              name: OPEN_NETWORK_NAME,
              id: OPEN_NETWORK_ID,
              publications: openNetwork.publications,
              connected: () => host.connected(),
              refusal: () => undefined,
            },
          ]
    const all = [...open, ...closed.list().map(placeOf)]
    if (network === undefined) return all
    const id = this.idOf(network)
    const named = all.filter((one) => one.id === id)
    if (named.length > 0) return named
    throw new AgentError('failed', `the network "${network}" does not run`, { next: '`agent status` says why.' })
  }
}

function placeOf(network: ClosedNetwork): Place {
  return {
    name: network.membership.name,
    id: network.membership.id,
    publications: network.publications,
    connected: () => network.connected(),
    refusal: () => refusalIn(network),
  }
}

function refusalIn(network: ClosedNetwork): ReturnType<Place['refusal']> {
  const fault = network.membership.fault()
  if (fault !== undefined) return { why: fault.why, next: '`agent status` says how this node comes back.' }
  const why = network.publishingRefusal()
  return why === undefined ? undefined : { why, next: 'The policy decides: `agent policy show`.' }
}

function noNetwork(): AgentError {
  return new AgentError('usage', 'this node is in no network, so there is nobody to share with', {
    next: 'Make one with `agent network create NAME`, join one with `agent join`, or start the agent with --open.',
  })
}
