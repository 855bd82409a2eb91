/**
 * The lanes that this node has to its peers, for large blobs to come over (protocols/lane/spec.md): asked for on a stream, their leash, and
 * closed with it. All that is fetched from a peer shares its lanes, which are opened when that is much, and kept for a few seconds after it. Whoever
 * cannot have a lane has the stream: nothing here fails, there is only less.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { Frames } from '../../protocols/frame.ts'
import { askLanes, identityOf, LANE_PROTOCOL, type LaneOffers, type LaneRequest } from '../../protocols/lane/lane.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { LaneEnd } from './lane-worker.ts'
import { type Lane, type LaneUser, LaneWorkers } from './lane-workers.ts'
import { fromHex } from './piece-lists.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'
import type { Hasher } from './whole-hash.ts'

/** One for each of the threads that receive. */
const LANES_PER_PEER = 2
/** Threads and handshakes cost what the stream needs for some of this. */
const OPEN_BYTES_MIN = 16 * 2 ** 20
/** Of smaller blobs, so much must be wanted within this time. */
const WANTED_MS = 5_000
const WANTED_MAX = 1_000
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

/** `bytes` is how much there is to fetch, `moreBytes` how much will be wanted of the peer soon. */
export type LaneWant = { peerId: string; network: string; digest: string; bytes: number; moreBytes?: number }

/** Where fetches get lanes, and give them back. */
export type LaneSource = {
  hasOpen(peerId: string): boolean
  /** Those that are open. The one who takes them gives back each. */
  takeOpen(peerId: string): Lane[]
  /** Opens some where there are none and that is worth its while; resolves when they are open, or are not to be had. */
  open(want: LaneWant): Promise<void>
  /** Resolves when nothing more is written for the user. */
  give(lane: Lane, user: LaneUser | undefined): Promise<void>
  /** Hashes a file in a thread of lanes; undefined when none runs. */
  hasher(fd: number): Hasher | undefined
}

export type LanesInit = {
  streams: { openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream> }
  /** The other end's host of the direct connection with a peer; undefined when there is none. */
  hostOf(peerId: string): string | undefined
  log: Log
  now?: () => number
  /** How long a piece may take. For tests. */
  pieceMs?: number
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
  /** By peer: open, or being opened. */
  readonly #laneOf = new Map<string, Set<Lane>>()
  /** How often each was taken and not given back. */
  readonly #taken = new Map<Lane, number>()
  readonly #idle = new Map<Lane, NodeJS.Timeout>()
  readonly #opening = new Map<string, Promise<void>>()
  /** By peer, how much was wanted of blobs that are not worth a lane by themselves. */
  readonly #wanted = new Map<string, { bytes: number; sinceMs: number }>()
  readonly #resting = new Map<string, number>()
  readonly #stopping = new AbortController()
  /** Open, or being asked for. */
  #count = 0

  constructor(init: LanesInit) {
    this.#init = init
    this.#now = init.now ?? Date.now
    this.#workers = new LaneWorkers(init.log, init.pieceMs)
  }

  /** Threads that run for lanes. */
  get threads(): number {
    return this.#workers.size
  }

  hasOpen(peerId: string): boolean {
    return this.#openOf(peerId).length > 0
  }

  takeOpen(peerId: string): Lane[] {
    const lanes = this.#openOf(peerId)
    for (const lane of lanes) {
      clearTimeout(this.#idle.get(lane))
      this.#idle.delete(lane)
      this.#taken.set(lane, (this.#taken.get(lane) ?? 0) + 1)
    }
    return lanes
  }

  async open(want: LaneWant): Promise<void> {
    const { peerId } = want
    if (this.#openOf(peerId).length > 0 || !this.#isWorth(want)) return
    const opening = this.#opening.get(peerId) ?? this.#openAll(want).finally(() => this.#opening.delete(peerId))
    this.#opening.set(peerId, opening)
    await opening
  }

  hasher(fd: number): Hasher | undefined {
    return this.#workers.hasher(fd)
  }

  async give(lane: Lane, user: LaneUser | undefined): Promise<void> {
    const isOwing = user !== undefined && lane.owes(user)
    if (user !== undefined) lane.leave(user)
    if (!lane.isOpen) return await lane.close()
    const taken = (this.#taken.get(lane) ?? 1) - 1
    this.#taken.set(lane, taken)
    // What comes for somebody who is gone must not be written; whoever else uses the lane goes on over the stream.
    if (isOwing || (taken === 0 && (lane.isSpent || this.#stopping.signal.aborted))) await lane.close()
    else if (taken === 0) this.#idle.set(lane, this.#closeLater(lane))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new WireError('closed', 'this node is stopping'))
    for (const timer of this.#idle.values()) clearTimeout(timer)
    const leashes = await Promise.allSettled(this.#leashes.values())
    for (const leash of leashes) if (leash.status === 'fulfilled') this.#end(leash.value)
    await this.#workers[Symbol.asyncDispose]()
  }

  #openOf(peerId: string): Lane[] {
    return [...(this.#laneOf.get(peerId) ?? [])].filter((lane) => lane.isOpen && lane.wasOpen && !lane.isSpent)
  }

  #closeLater(lane: Lane): NodeJS.Timeout {
    return setTimeout(() => {
      this.#idle.delete(lane)
      void lane.close()
    }, IDLE_MS)
  }

  /** Whether this, with what else was wanted lately, is worth opening lanes. */
  #isWorth({ peerId, bytes, moreBytes = 0 }: LaneWant): boolean {
    if (this.#wanted.size >= WANTED_MAX) this.#wanted.clear()
    const before = this.#wanted.get(peerId)
    const isLate = before === undefined || this.#now() - before.sinceMs > WANTED_MS
    const wanted = isLate ? { bytes, sinceMs: this.#now() } : { ...before, bytes: before.bytes + bytes }
    this.#wanted.set(peerId, wanted)
    return wanted.bytes + moreBytes >= OPEN_BYTES_MIN
  }

  async #openAll(want: LaneWant): Promise<void> {
    if (this.#stopping.signal.aborted || this.#rests(want.peerId)) return
    const host = this.#init.hostOf(want.peerId)
    if (host === undefined || this.#count + LANES_PER_PEER > LANES_MAX) return
    this.#count += LANES_PER_PEER
    try {
      this.#workers.start()
      await this.#open(want, host)
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#failed(want.peerId, error)
    } finally {
      this.#count -= LANES_PER_PEER
    }
  }

  async #open({ peerId, network, digest }: LaneWant, host: string): Promise<void> {
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ASK_MS_MAX)])
    const leash = await this.#leash(peerId, signal)
    const named = network === OPEN_NETWORK_ID ? {} : { network: fromHex(network) }
    const offers = await this.#ask(leash, { digest: fromHex(digest), count: LANES_PER_PEER, ...named }, signal)
    if (leash.isOver || this.#stopping.signal.aborted) return
    const lanes = offers.lanes.map(({ id, key }) => {
      const lane = this.#workers.open({ host, port: offers.port, identity: identityOf(id), key })
      leash.lanes.add(lane)
      this.#laneOf.set(peerId, leash.lanes)
      this.#count++
      void lane.ended.then((end) => this.#ended(leash, lane, end))
      return lane
    })
    await Promise.allSettled(lanes.map(({ opened }) => opened))
    const open = lanes.filter(({ isOpen }) => isOpen)
    if (open.length === 0) return
    this.#init.log.debug({ peerId, count: open.length, port: offers.port }, 'lane.opened')
    // Whoever wanted them may be gone.
    for (const lane of open) this.#idle.set(lane, this.#closeLater(lane))
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
    if (this.#laneOf.get(leash.peerId) === leash.lanes) this.#laneOf.delete(leash.peerId)
    for (const lane of leash.lanes) void lane.close()
    leash.stream.abort(new WireError('closed', 'no lanes are wanted'))
  }

  #ended(leash: Leash, lane: Lane, end: LaneEnd): void {
    leash.lanes.delete(lane)
    this.#count--
    clearTimeout(this.#idle.get(lane))
    this.#idle.delete(lane)
    this.#taken.delete(lane)
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
