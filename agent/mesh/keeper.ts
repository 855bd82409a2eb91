/**
 * Keeps this node in the mesh: dials bootstraps, what the LAN and the DHT tell of, and who was known before, until enough peers are
 * connected; tells which; lets the surplus go.
 *
 * Up to `maxPeers` connections stay. The node dials by itself until half of that, and takes those who dial it up to all of it, so that
 * in a large network everybody finds room; a small one is simply a full mesh. Surplus connections are closed in order, after a while:
 * whoever arrives at a bootstrap has learnt of others by then. Bootstraps and connections in use are not closed.
 */
import { peerIdFromString } from '@libp2p/peer-id'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { peerIdIn } from './addresses.ts'
import { Bootstraps, type BootstrapView } from './bootstraps.ts'
import { Candidates } from './candidates.ts'
import type { Direction, Found, Host, Link } from './host.ts'
import type { PeerBook } from './peer-book.ts'

const TICK_MS = 1_000
/** The share of maxPeers that the node dials for itself. */
const DIALLED_SHARE = 0.5
/** Each costs 10 ms of CPU on both ends; the queue of peers can wait. */
const DIALS_MAX = 4
const DIAL_MS_MAX = 10_000
/** A surplus connection younger than this stays: the peer is still looking around. Shorter than what the other end calls lasting. */
const GRACE_MS = 30_000
/** Closed in one tick, so that a hub that was flooded does not cut everybody off at once. */
const TRIMMED_PER_TICK_MAX = 4
/** A peer that we let go is not dialled again for this long. */
const DISMISSED_MS = 10 * 60_000
/** Remembered peers taken up at start; the rest come in by the DHT. */
const REMEMBERED_MAX = 64
/** How soon after a new peer its neighbours are asked for, and how often at the least: a lookup costs some 2 KB a peer. */
const LOOK_FIRST_MS = 1_000
const LOOK_MAX_MS = 30 * 60_000
const LOOK_DEADLINE_MS = 10_000
/** Between two looks at our own addresses: a laptop that moved is back within this. */
const ADDRESSES_MS = 10_000

export type PeerView = Link & { readonly path: 'direct' }
export type KeptHost = Pick<
  Host,
  | 'peerId'
  | 'addresses'
  | 'addressesOf'
  | 'dial'
  | 'hangUp'
  | 'isConnected'
  | 'links'
  | 'lookAround'
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
  log: Log
  random?: () => number
}

export class Keeper implements AsyncDisposable {
  readonly #host: KeptHost
  readonly #book: PeerBook
  readonly #log: Log
  readonly #maxPeers: number
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
  #lookMs = LOOK_FIRST_MS
  #lookDueMs = Number.POSITIVE_INFINITY
  #looking = false
  #addresses: string
  #addressesDueMs: number

  private constructor(options: KeeperOptions) {
    this.#host = options.host
    this.#book = options.book
    this.#log = options.log
    this.#maxPeers = options.maxPeers
    this.#random = options.random ?? Math.random
    this.#candidates = new Candidates(this.#host.peerId, this.#random)
    this.#bootstraps = new Bootstraps(this.#host, this.#log, this.#random)
    this.#addresses = this.#host.addresses().join()
    this.#addressesDueMs = Date.now() + ADDRESSES_MS
  }

  /** Begins at once; does not wait for a peer. @throws {AgentError} `usage` for a bootstrap that is not a multiaddr. */
  static start(options: KeeperOptions): Keeper {
    const keeper = new Keeper(options)
    keeper.#bootstraps.set(options.bootstrap)
    keeper.#recall()
    keeper.#unlisten.push(
      keeper.#host.onFound((found) => keeper.#found(found)),
      keeper.#host.onPeer((peerId, direction) => keeper.#connected(peerId, direction)),
      keeper.#host.onPeerGone((peerId) => keeper.#gone(peerId)),
    )
    for (const { peerId, direction } of keeper.#host.links()) keeper.#connected(peerId, direction)
    keeper.#timer = setInterval(() => keeper.#tick(), TICK_MS)
    keeper.#tick()
    return keeper
  }

  /** Connected peers, longest connected first. */
  peers(): PeerView[] {
    return this.#host
      .links()
      .map((link) => ({ ...link, path: 'direct' as const }))
      .sort((a, b) => a.connectedMs - b.connectedMs)
  }

  bootstraps(): BootstrapView[] {
    return this.#bootstraps.views()
  }

  /** Replaces the bootstraps, as a reload of the configuration does. @throws {AgentError} `usage` */
  setBootstrap(addresses: readonly string[]): void {
    this.#bootstraps.set(addresses)
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
    this.#lookMs = LOOK_FIRST_MS
    this.#lookDueMs = Math.min(this.#lookDueMs, Date.now() + LOOK_FIRST_MS)
  }

  #gone(peerId: string): void {
    const now = Date.now()
    const sinceMs = this.#since.get(peerId)
    // Connections that never got as far as telling their protocols are not worth a line: strangers make those.
    if (sinceMs === undefined) return
    this.#since.delete(peerId)
    this.#log.info({ peerId, seconds: Math.round((now - sinceMs) / 1_000) }, 'peer.gone')
    this.#candidates.lost(peerId, now - sinceMs, now)
    this.#tick()
  }

  get #wanted(): number {
    return Math.ceil(this.#maxPeers * DIALLED_SHARE)
  }

  #tick(): void {
    if (this.#stopping.signal.aborted) return
    const now = Date.now()
    const links = this.#host.links()
    if (now >= this.#addressesDueMs) this.#watchAddresses(now)
    this.#begin(this.#bootstraps.tend(now, this.#stopping.signal))
    this.#dialDue(now, links)
    this.#trim(now, links)
    if (now >= this.#lookDueMs && !this.#looking && links.length > 0) this.#begin(this.#look())
  }

  #dialDue(now: number, links: readonly Link[]): void {
    const room = Math.min(DIALS_MAX, this.#wanted - links.length) - this.#dialling.size
    if (room <= 0) return
    const connected = new Set(links.map(({ peerId }) => peerId))
    const skip = (peerId: string) => connected.has(peerId) || this.#dialling.has(peerId)
    for (const { peerId, addresses } of this.#candidates.due(now, links.length === 0, skip).slice(0, room)) {
      this.#begin(this.#dial(peerId, addresses))
    }
  }

  async #dial(peerId: string, addresses: readonly Multiaddr[]): Promise<void> {
    this.#dialling.add(peerId)
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(DIAL_MS_MAX)])
    try {
      await this.#host.dial(
        addresses.map((address) => withPeer(address, peerId)),
        signal,
      )
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
      .filter(({ peerId, busy, connectedMs }) => !busy && now - connectedMs > GRACE_MS && !this.#bootstraps.has(peerId))
      .map((link) => ({ link, rank: this.#random() }))
      .sort((a, b) => a.rank - b.rank)
    for (const { link } of spare.slice(0, surplus)) {
      this.#log.debug({ peerId: link.peerId }, 'peer.trimmed')
      this.#begin(
        this.#host.hangUp(link.peerId).then(() => this.#candidates.dismiss(link.peerId, Date.now() + DISMISSED_MS)),
      )
    }
  }

  /** Meets the DHT's neighbourhood; less and less often while nobody new turns up. */
  async #look(): Promise<void> {
    this.#looking = true
    try {
      await this.#host.lookAround(AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(LOOK_DEADLINE_MS)]))
    } catch (error) {
      this.#log.debug({ reason: reasonOf(error) }, 'lookup.failed')
    } finally {
      this.#looking = false
      this.#lookDueMs = Date.now() + this.#lookMs * (0.75 + this.#random() / 2)
      this.#lookMs = Math.min(this.#lookMs * 2, LOOK_MAX_MS)
    }
  }

  #watchAddresses(now: number): void {
    this.#addressesDueMs = now + ADDRESSES_MS
    const addresses = this.#host.addresses().join()
    if (addresses === this.#addresses) return
    this.#log.info({ addresses: this.#host.addresses() }, 'addresses.changed')
    this.#addresses = addresses
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
        if (!this.#stopping.signal.aborted) this.#log.warn({ reason: reasonOf(error) }, 'keeper.failed')
      })
      .finally(() => this.#work.delete(settled))
    this.#work.add(settled)
  }
}

function withPeer(address: Multiaddr, peerId: string): Multiaddr {
  return peerIdIn(address) === undefined ? address.encapsulate(`/p2p/${peerIdFromString(peerId).toString()}`) : address
}
