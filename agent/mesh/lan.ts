/**
 * Finds agents on the same LAN by multicast DNS, under a service name of our own.
 *
 * Every answer on a LAN reaches everybody, so N nodes that ask every 10 s (libp2p's default) cost N x N answers: 5 idle nodes some
 * 5 MB an hour. A node that arrives asks at once, hears everybody, and is heard by everybody, since its own question makes it answer
 * as well; so asking a few times on arrival and rarely afterwards finds the same peers. `ask()` starts such a series again: when the
 * addresses change, or no peer is left. Answers are at least ANSWER_EVERY_MS apart (RFC 6762, section 6).
 *
 * libp2p answers with private addresses only: a LAN of public addresses needs a bootstrap.
 */
import type { PeerDiscovery } from '@libp2p/interface'
import { type MulticastDNSComponents, mdns } from '@libp2p/mdns'
import type { Multiaddr } from '@multiformats/multiaddr'

const SERVICE = '_undernet._udp.local'
/** After the question that libp2p asks at start: a lost packet, and a switch port that takes a second to forward. */
const SERIES_MS = [1_000, 3_000, 9_000]
/** Between series: finds a peer whose questions and our answers were all lost. */
const ASK_EVERY_MS = 10 * 60_000
const ANSWER_EVERY_MS = 1_000

export type Sighting = { peerId: string; addresses: Multiaddr[] }

/** The parts of libp2p's service that its type does not show (12.x). */
type Service = PeerDiscovery & {
  mdns?: { query(query: { questions: { name: string; type: 'PTR' }[] }): void }
  _onMdnsQuery: (query: Query) => void
}
type Query = { questions?: { name: string }[] }

export class Lan implements Disposable {
  readonly #heard: (sighting: Sighting) => void
  #service: Service | undefined
  #series: NodeJS.Timeout[] = []
  #answeredMs = Number.NEGATIVE_INFINITY
  #answerLater: NodeJS.Timeout | undefined

  constructor(heard: (sighting: Sighting) => void) {
    this.#heard = heard
  }

  /** For libp2p's `peerDiscovery`. */
  discovery(): (components: MulticastDNSComponents) => PeerDiscovery {
    return (components) => {
      const service = mdns({ serviceTag: SERVICE, interval: ASK_EVERY_MS })(components) as Service
      service.addEventListener('peer', ({ detail }) => {
        this.#heard({ peerId: detail.id.toString(), addresses: detail.multiaddrs })
      })
      const answer = service._onMdnsQuery
      service._onMdnsQuery = (query) => {
        if (query.questions?.[0]?.name === SERVICE) this.#answer(() => answer(query))
      }
      this.#service = service
      return service
    }
  }

  /** Asks now, and a few times more. */
  ask(): void {
    this.#stopSeries()
    this.#query()
    this.#series = SERIES_MS.map((ms) => setTimeout(() => this.#query(), ms).unref())
  }

  [Symbol.dispose](): void {
    this.#stopSeries()
    clearTimeout(this.#answerLater)
    this.#service = undefined
  }

  #query(): void {
    this.#service?.mdns?.query({ questions: [{ name: SERVICE, type: 'PTR' }] })
  }

  /** At once, or when the last answer is old enough; questions in between share that answer. */
  #answer(answer: () => void): void {
    if (this.#answerLater !== undefined) return
    const waitMs = this.#answeredMs + ANSWER_EVERY_MS - performance.now()
    const now = () => {
      this.#answerLater = undefined
      this.#answeredMs = performance.now()
      answer()
    }
    if (waitMs <= 0) now()
    else this.#answerLater = setTimeout(now, waitMs).unref()
  }

  #stopSeries(): void {
    for (const timer of this.#series) clearTimeout(timer)
    this.#series = []
  }
}
