/**
 * The lanes that this node has to its peers, for large blobs to come over (protocols/lane/spec.md): asked for on a stream, their leash, and
 * closed with it. One that was used is kept for a few seconds, since large blobs often follow each other. Whoever cannot have a
 * lane has the stream: nothing here fails, there is only less.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import { askLanes, identityOf, LANE_PROTOCOL, type LaneOffers, type LaneRequest } from '../../protocols/lane/lane.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { LaneEnd } from './lane-worker.ts'
import { type Lane, LaneWorkers } from './lane-workers.ts'
import { fromHex } from './piece-lists.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'
import type { Hasher } from './whole-hash.ts'

/** One for each of the threads that receive. */
const LANES_PER_BLOB = 2
/** What a server gives one peer: two blobs at a time, further ones come over streams. */
const LANES_PER_PEER_MAX = 4
/** Each costs a piece of memory. */
const LANES_MAX = 16
/** Between two blobs. */
const IDLE_MS = 5_000
/** To get an offer; the handshake has a limit of its own. */
const ASK_MS_MAX = 5_000
/** After a lane could not be opened: its port may be closed by a firewall, and that stays so. */
const REST_MS = 5 * 60_000
/** After one broke off, or the peer had enough of them. */
const SHORT_REST_MS = 30_000
/** Peers remembered. */
const RESTING_MAX = 1_000

export type LaneWant = { peerId: string; network: string; digest: string }

/** Where fetches get lanes, and give them back. */
export type LaneSource = {
  /** As many as there are to be had now, perhaps none. The one who takes them gives back each. */
  take(want: LaneWant): Promise<Lane[]>
  give(lane: Lane): Promise<void>
  /** Hashes a file in a thread of lanes; undefined when none runs. */
  hasher(fd: number): Hasher | undefined
}

export type LanesInit = {
  streams: { openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> }
  /** The other end's host of the direct connection with a peer; undefined when there is none. */
  hostOf(peerId: string): string | undefined
  log: Log
  now?: () => number
}

type Leash = {
  peerId: string
  stream: Stream
  frames: Frames
  lanes: Set<Lane>
  /** One question at a time. */
  asking: Promise<unknown>
  isOver: boolean
}

export class Lanes implements LaneSource, AsyncDisposable {
  readonly #init: LanesInit
  readonly #now: () => number
  readonly #workers: LaneWorkers
  readonly #leashes = new Map<string, Promise<Leash>>()
  readonly #leashOf = new WeakMap<Lane, Leash>()
  readonly #idle = new Map<Lane, { peerId: string; timer: NodeJS.Timeout }>()
  readonly #resting = new Map<string, number>()
  readonly #stopping = new AbortController()
  /** Open, or being asked for. */
  #count = 0

  constructor(init: LanesInit) {
    this.#init = init
    this.#now = init.now ?? Date.now
    this.#workers = new LaneWorkers(init.log)
  }

  /** Threads that run for lanes. */
  get threads(): number {
    return this.#workers.size
  }

  async take(want: LaneWant): Promise<Lane[]> {
    const lanes = this.#takeIdle(want.peerId)
    if (lanes.length >= LANES_PER_BLOB || this.#stopping.signal.aborted || this.#rests(want.peerId)) return lanes
    const host = this.#init.hostOf(want.peerId)
    const count = LANES_PER_BLOB - lanes.length
    if (host === undefined || this.#count + count > LANES_MAX) return lanes
    this.#count += count
    try {
      return [...lanes, ...(await this.#open(want, { host, count }))]
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#failed(want.peerId, error)
      return lanes
    } finally {
      this.#count -= count
    }
  }

  hasher(fd: number): Hasher | undefined {
    return this.#workers.hasher(fd)
  }

  async give(lane: Lane): Promise<void> {
    lane.use(undefined)
    const leash = this.#leashOf.get(lane)
    if (
      !lane.isOpen ||
      lane.load > 0 ||
      lane.isSpent ||
      leash === undefined ||
      leash.isOver ||
      this.#stopping.signal.aborted
    ) {
      await lane.close()
      return
    }
    const timer = setTimeout(() => {
      this.#idle.delete(lane)
      void lane.close()
    }, IDLE_MS)
    this.#idle.set(lane, { peerId: leash.peerId, timer })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new WireError('closed', 'this node is stopping'))
    for (const { timer } of this.#idle.values()) clearTimeout(timer)
    const leashes = await Promise.allSettled(this.#leashes.values())
    for (const leash of leashes) if (leash.status === 'fulfilled') this.#end(leash.value)
    await this.#workers[Symbol.asyncDispose]()
  }

  #takeIdle(peerId: string): Lane[] {
    const mine = [...this.#idle].filter(([lane, one]) => one.peerId === peerId && lane.isOpen).slice(0, LANES_PER_BLOB)
    for (const [lane, { timer }] of mine) {
      clearTimeout(timer)
      this.#idle.delete(lane)
    }
    return mine.map(([lane]) => lane)
  }

  async #open(
    { peerId, network, digest }: LaneWant,
    { host, count }: { host: string; count: number },
  ): Promise<Lane[]> {
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ASK_MS_MAX)])
    const leash = await this.#leash(peerId, signal)
    const room = Math.min(count, LANES_PER_PEER_MAX - leash.lanes.size)
    if (room <= 0) return []
    const named = network === OPEN_NETWORK_ID ? {} : { network: fromHex(network) }
    const offers = await this.#ask(leash, { digest: fromHex(digest), count: room, ...named }, signal)
    if (leash.isOver || this.#stopping.signal.aborted) return []
    const lanes = offers.lanes.map(({ id, key }) => {
      const lane = this.#workers.open({ host, port: offers.port, identity: identityOf(id), key })
      leash.lanes.add(lane)
      this.#count++
      this.#leashOf.set(lane, leash)
      void lane.ended.then((end) => this.#ended(leash, lane, end))
      return lane
    })
    await Promise.allSettled(lanes.map(({ opened }) => opened))
    const open = lanes.filter(({ isOpen }) => isOpen)
    if (open.length > 0) this.#init.log.debug({ peerId, count: open.length, port: offers.port }, 'lane.opened')
    return open
  }

  /** The stream to the peer on which lanes are asked for, opened if there is none. */
  async #leash(peerId: string, signal: AbortSignal): Promise<Leash> {
    const known = this.#leashes.get(peerId)
    if (known !== undefined) return known
    const opening = this.#openLeash(peerId, signal)
    this.#leashes.set(peerId, opening)
    try {
      const leash = await opening
      if (leash.isOver) throw new WireError('closed', 'the stream was closed')
      return leash
    } catch (error) {
      if (this.#leashes.get(peerId) === opening) this.#leashes.delete(peerId)
      throw error
    }
  }

  async #openLeash(peerId: string, signal: AbortSignal): Promise<Leash> {
    const stream = await this.#init.streams.openStream(peerId, LANE_PROTOCOL, signal)
    const frames = new Frames(stream)
    const leash: Leash = { peerId, stream, frames, lanes: new Set(), asking: Promise.resolve(), isOver: false }
    for (const event of ['close', 'end'] as const) stream.addEventListener(event, () => this.#end(leash))
    if (stream.status !== 'open') this.#end(leash)
    return leash
  }

  async #ask(leash: Leash, request: LaneRequest, signal: AbortSignal): Promise<LaneOffers> {
    const asking = leash.asking.then(() => askLanes(leash.frames, request, signal))
    leash.asking = asking.catch((error: unknown) => {
      // A no leaves it in order; after anything else, whose answer comes next is not known.
      const isNo = error instanceof WireError && (error.code === 'absent' || error.code === 'refused')
      if (!isNo) this.#end(leash)
    })
    return await asking
  }

  /** The stream is closed, by whomever: so are its lanes. */
  #end(leash: Leash): void {
    if (leash.isOver) return
    leash.isOver = true
    this.#leashes.delete(leash.peerId)
    for (const lane of leash.lanes) void lane.close()
    leash.stream.abort(new WireError('closed', 'no lanes are wanted'))
  }

  #ended(leash: Leash, lane: Lane, end: LaneEnd): void {
    leash.lanes.delete(lane)
    this.#count--
    const idle = this.#idle.get(lane)
    if (idle) clearTimeout(idle.timer)
    this.#idle.delete(lane)
    const { peerId, isOver } = leash
    const isFault = end.why === 'lost' || end.why === 'wrong'
    if (isFault && !isOver) this.#rest(peerId, lane.wasOpen && end.why === 'lost' ? SHORT_REST_MS : REST_MS)
    this.#init.log.debug({ peerId, why: end.why, reason: end.reason }, 'lane.closed')
    if (leash.lanes.size === 0 && !isOver) this.#end(leash)
  }

  #failed(peerId: string, error: unknown): void {
    this.#init.log.debug({ peerId, reason: reasonOf(error) }, 'lane.refused')
    if (error instanceof WireError && error.code === 'absent') return
    const isForGood = error instanceof Error && error.name === 'UnsupportedProtocolError'
    this.#rest(peerId, isForGood ? REST_MS : SHORT_REST_MS)
  }

  #rest(peerId: string, ms: number): void {
    if (this.#resting.size >= RESTING_MAX) this.#resting.clear()
    this.#resting.set(peerId, Math.max(this.#resting.get(peerId) ?? 0, this.#now() + ms))
  }

  #rests(peerId: string): boolean {
    const untilMs = this.#resting.get(peerId) ?? 0
    if (untilMs > this.#now()) return true
    this.#resting.delete(peerId)
    return false
  }
}
