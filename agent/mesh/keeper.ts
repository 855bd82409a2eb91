/**
 * Keeps this node in the mesh: dials bootstraps, what the LAN and the DHT tell of, and who was known before, until enough peers are
 * connected; tells which; lets the surplus go.
 *
 * Up to `maxPeers` connections stay. The node dials by itself until half of that, and takes those who dial it up to all of it, so that
 * in a large network everybody finds room; a small one is simply a full mesh. Surplus connections are closed in order, after a while:
 * whoever arrives at a bootstrap has learnt of others by then. Bootstraps and connections in use are not closed by us; a bootstrap that
 * lets us go, since it has others to look after, is left in peace while there are enough other peers.
 *
 * Some are wanted however many others there are: fellow members of a network of which too few are connected. They are dialled first,
 * and not let go.
 */
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { withPeer } from './addresses.ts'
import { Bootstraps, type BootstrapView } from './bootstraps.ts'
import { Candidates } from './candidates.ts'
import type { Link } from './connections.ts'
import type { Direction, Found, Host } from './host.ts'
import type { PeerBook } from './peer-book.ts'

const TICK_MS = 1_000
/** The share of maxPeers that the node dials for itself; the rest is room for those who dial it. */
const DIALLED_SHARE = 0.5
/** More than this keeps no mesh better together: gossip uses six, and what is asked of others connects to them when it is asked. */
const DIALLED_MAX = 8
/** Each costs 10 ms of CPU on both ends; the queue of peers can wait. */
const DIALS_MAX = 4
const DIAL_MS_MAX = 10_000
/** A surplus connection younger than this stays: the peer is still looking around. Shorter than what the other end calls lasting. */
const GRACE_MS = 30_000
/** Closed in one tick: both ends may have a surplus, and should not both act on the same one. */
const TRIMMED_PER_TICK_MAX = 2
/** A peer that we let go, or that let us go, is not dialled again for this long ... */
const DISMISSED_MS = 10 * 60_000
/** ... while at least so many others are connected: with fewer, it may have been a restart. */
const PEERS_ENOUGH = 4
/** Remembered peers taken up at start; the rest come in by the DHT. */
const REMEMBERED_MAX = 64
/** While peers are wanted: how soon after a new one it is asked for others, and how rarely when nobody new turns up. */
const ASK_FIRST_MS = 500
const ASK_MAX_MS = 30 * 60_000
/** The first time we look for our neighbours in the DHT, and how often after that: it connects to up to twenty of them for a while. */
const NEIGHBOURS_FIRST_MS = 60_000
const NEIGHBOURS_EVERY_MS = 60 * 60_000
/** With fewer peers known, every lookup meets most of them anyway. */
const NEIGHBOURS_AMONG = 40
const LOOKUP_MS_MAX = 10_000
/** Between two looks at our own addresses: a laptop that moved is back within this. */
const ADDRESSES_MS = 10_000

export type KeptHost = Pick<
  Host,
  | 'peerId'
  | 'addresses'
  | 'addressesOf'
  | 'dial'
  | 'reach'
  | 'dropSpare'
  | 'hangUp'
  | 'isConnected'
  | 'isDirect'
  | 'links'
  | 'askPeers'
  | 'findNeighbours'
  | 'onFound'
  | 'onPeer'
  | 'onPeerGone'
  | 'refreshAddresses'
>

export type KeeperOptions = {
  host: KeptHost
  book: PeerBook
  bootstrap: readonly string[]
  maxPeers: number
  /** Whether a peer is wanted however many others are connected. It is asked also of those that are. */
  wants?: (peerId: string) => boolean
  log: Log
  random?: () => number
}

export class Keeper implements AsyncDisposable {
  readonly #host: KeptHost
  readonly #book: PeerBook
  readonly #log: Log
  readonly #maxPeers: number
  readonly #wants: (peerId: string) => boolean
  readonly #random: () => number
  readonly #candidates: Candidates
  readonly #bootstraps: Bootstraps
  readonly #stopping = new AbortController()
  readonly #dialling = new Set<string>()
  readonly #since = new Map<string, number>()
  readonly #unlisten: (() => void)[] = []
  /** Work begun by a tick and not awaited by it. */
  readonly #work = new Set<Promise<void>>()
  #timer: NodeJS.Timeout | undefined
  #askMs = ASK_FIRST_MS
  #askDueMs = Number.POSITIVE_INFINITY
  #neighboursDueMs: number
  #addresses: string
  #addressesDueMs: number

  private constructor(options: KeeperOptions) {
    this.#host = options.host
    this.#book = options.book
    this.#log = options.log
    this.#maxPeers = options.maxPeers
    this.#wants = options.wants ?? (() => false)
    this.#random = options.random ?? Math.random
    this.#candidates = new Candidates(this.#host.peerId, this.#random)
    this.#bootstraps = new Bootstraps(this.#host, this.#log, this.#random)
    this.#addresses = this.#host.addresses().join()
    this.#addressesDueMs = Date.now() + ADDRESSES_MS
    this.#neighboursDueMs = Date.now() + NEIGHBOURS_FIRST_MS * (0.5 + this.#random())
  }

  /** Begins at once; does not wait for a peer. @throws {AgentError} `usage` for a bootstrap that is not a multiaddr. */
  static start(options: KeeperOptions): Keeper {
    const keeper = new Keeper(options)
    keeper.#bootstraps.set(options.bootstrap)
    keeper.#recall()
    keeper.#unlisten.push(
      keeper.#host.onFound((found) => keeper.#found(found)),
      keeper.#host.onPeer((peerId, direction) => keeper.#connected(peerId, direction)),
      keeper.#host.onPeerGone((peerId, letGo) => keeper.#gone(peerId, letGo)),
    )
    for (const { peerId, direction } of keeper.#host.links()) keeper.#connected(peerId, direction)
    keeper.#timer = setInterval(() => keeper.#tick(), TICK_MS)
    keeper.#tick()
    return keeper
  }

  /** Connected peers, longest connected first. */
  peers(): Link[] {
    return this.#host.links().sort((a, b) => a.connectedMs - b.connectedMs)
  }

  bootstraps(): BootstrapView[] {
    return this.#bootstraps.views()
  }

  /** Replaces the bootstraps, as a reload of the configuration does. @throws {AgentError} `usage` */
  setBootstrap(addresses: readonly string[]): void {
    this.#bootstraps.set(addresses)
    this.#tick()
  }

  /** Notes where a fellow member of a network is said to be; without addresses, where the host last saw it. */
  hear(peerId: string, addresses: readonly Multiaddr[]): void {
    this.#begin(this.#hear(peerId, addresses))
  }

  async #hear(peerId: string, addresses: readonly Multiaddr[]): Promise<void> {
    const known = addresses.length > 0 ? addresses : await this.#host.addressesOf(peerId)
    this.#candidates.hear(peerId, known, 'network', Date.now())
    this.#tick()
  }

  /** Stops dialling, and waits for the dials in flight. Connections stay until the host is disposed. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    for (const unlisten of this.#unlisten) unlisten()
    this.#stopping.abort()
    for (const { peerId } of this.#host.links()) await this.#remember(peerId)
    await Promise.all(this.#work)
  }

  #recall(): void {
    const now = Date.now()
    for (const { peerId, addresses } of this.#book.recent(REMEMBERED_MAX)) {
      this.#candidates.hear(peerId, addresses.map(multiaddr), 'book', now)
    }
  }

  #found({ peerId, addresses, by }: Found): void {
    this.#candidates.hear(peerId, addresses, by, Date.now())
    this.#tick()
  }

  #connected(peerId: string, direction: Direction): void {
    this.#since.set(peerId, Date.now())
    this.#log.info({ peerId, direction }, 'peer.connected')
    this.#begin(this.#remember(peerId))
    if (this.#host.links().length >= this.#wanted) return
    this.#askMs = ASK_FIRST_MS
    this.#askDueMs = Math.min(this.#askDueMs, Date.now() + ASK_FIRST_MS)
  }

  #gone(peerId: string, letGo: boolean): void {
    const now = Date.now()
    const sinceMs = this.#since.get(peerId)
    // Connections that never got as far as telling their protocols are not worth a line: strangers make those.
    if (sinceMs === undefined) return
    this.#since.delete(peerId)
    this.#log.info({ peerId, seconds: Math.round((now - sinceMs) / 1_000) }, 'peer.gone')
    this.#candidates.lost(peerId, now - sinceMs, now)
    if (letGo && this.#host.links().length >= PEERS_ENOUGH) {
      const untilMs = now + DISMISSED_MS * (0.5 + this.#random())
      this.#candidates.dismiss(peerId, untilMs)
      this.#bootstraps.rest(peerId, untilMs)
    }
    this.#tick()
  }

  get #wanted(): number {
    return Math.min(DIALLED_MAX, Math.ceil(this.#maxPeers * DIALLED_SHARE))
  }

  #tick(): void {
    if (this.#stopping.signal.aborted) return
    const now = Date.now()
    const links = this.#host.links()
    if (now >= this.#addressesDueMs) this.#watchAddresses(now)
    this.#begin(this.#bootstraps.tend(now, links.length >= PEERS_ENOUGH, this.#stopping.signal))
    this.#host.dropSpare()
    this.#dialDue(now, links)
    this.#trim(now, links)
    if (links.length > 0) this.#lookAround(now, links.length)
  }

  #dialDue(now: number, links: readonly Link[]): void {
    const atOnce = DIALS_MAX - this.#dialling.size
    const room = Math.min(atOnce, this.#wanted - links.length - this.#dialling.size)
    if (atOnce <= 0) return
    const paths = new Map(links.map(({ peerId, path }) => [peerId, path]))
    // A better path is looked for as long as there is none.
    const isWanted = (peerId: string) => paths.get(peerId) === 'relay' || this.#wants(peerId)
    const skip = (peerId: string) =>
      (paths.has(peerId) && paths.get(peerId) !== 'relay') ||
      this.#dialling.has(peerId) ||
      (room <= 0 && !isWanted(peerId))
    const due = this.#candidates.due(now, links.length === 0, skip)
    const wanted = due.filter(({ peerId }) => isWanted(peerId)).slice(0, atOnce)
    const others = due.filter((one) => !wanted.includes(one)).slice(0, Math.max(0, room - wanted.length))
    for (const { peerId, addresses } of [...wanted, ...others]) this.#begin(this.#dial(peerId, addresses))
  }

  async #dial(peerId: string, addresses: readonly Multiaddr[]): Promise<void> {
    this.#dialling.add(peerId)
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(DIAL_MS_MAX)])
    const named = addresses.map((address) => withPeer(address, peerId))
    try {
      if (this.#host.isConnected(peerId)) await this.#host.dial(named, signal)
      else await this.#host.reach(peerId, named, signal)
      // By a relay it is reached, and not where it was dialled.
      if (!this.#host.isDirect(peerId)) this.#candidates.failed(peerId, Date.now())
    } catch (error) {
      this.#log.debug({ peerId, reason: reasonOf(error) }, 'dial.failed')
      this.#candidates.failed(peerId, Date.now())
    } finally {
      this.#dialling.delete(peerId)
    }
  }

  #trim(now: number, links: readonly Link[]): void {
    const surplus = Math.min(links.length - this.#maxPeers, TRIMMED_PER_TICK_MAX)
    if (surplus <= 0) return
    const spare = links
      .filter(({ peerId, busy, connectedMs }) => {
        const isSettled = !busy && now - connectedMs > GRACE_MS
        return isSettled && !this.#bootstraps.has(peerId) && !this.#wants(peerId)
      })
      .map((link) => ({ link, rank: this.#random() }))
      .sort((a, b) => a.rank - b.rank)
    for (const { link } of spare.slice(0, surplus)) {
      this.#log.debug({ peerId: link.peerId }, 'peer.trimmed')
      this.#begin(
        this.#host.hangUp(link.peerId).then(() => this.#candidates.dismiss(link.peerId, Date.now() + DISMISSED_MS)),
      )
    }
  }

  #lookAround(now: number, connected: number): void {
    const signal = () => AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(LOOKUP_MS_MAX)])
    if (now >= this.#askDueMs && connected < this.#wanted) {
      this.#askDueMs = now + this.#askMs * (1 + this.#random())
      this.#askMs = Math.min(this.#askMs * 2, ASK_MAX_MS)
      this.#begin(this.#host.askPeers(signal()))
    }
    if (now >= this.#neighboursDueMs) {
      this.#neighboursDueMs = now + NEIGHBOURS_EVERY_MS * (0.5 + this.#random())
      if (this.#candidates.size >= NEIGHBOURS_AMONG) this.#begin(this.#host.findNeighbours(signal()))
    }
  }

  #watchAddresses(now: number): void {
    this.#addressesDueMs = now + ADDRESSES_MS
    if (this.#host.addresses().join() !== this.#addresses) this.networkChanged()
  }

  /** Looks around anew: this machine is somewhere else, or slept. */
  networkChanged(): void {
    const now = Date.now()
    this.#addresses = this.#host.addresses().join()
    this.#log.info({ addresses: this.#host.addresses() }, 'addresses.changed')
    this.#bootstraps.forgive()
    this.#candidates.forgive(now)
    this.#begin(this.#host.refreshAddresses())
  }

  async #remember(peerId: string): Promise<void> {
    const addresses = await this.#host.addressesOf(peerId)
    this.#candidates.hear(peerId, addresses, 'book', Date.now())
    this.#book.remember(peerId, addresses.map(String), Date.now())
  }

  /** Runs work that the tick does not wait for, and dispose does. */
  #begin(work: Promise<void>): void {
    const settled = work
      .catch((error: unknown) => {
        this.#log.debug({ reason: reasonOf(error) }, 'keeper.failed')
      })
      .finally(() => this.#work.delete(settled))
    this.#work.add(settled)
  }
}
