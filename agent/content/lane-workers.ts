/**
 * The threads that receive lanes, and this side's end of each lane. A thread is started when the first lane is opened, and stopped when none
 * was open for a while: an agent that moves nothing large has neither.
 */
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame } from '../../protocols/frame.ts'
import { LANE_BYTES_MAX, LANE_GROUP, LANE_SUITES } from '../../protocols/lane/lane.ts'
import { decodeGetAnswer, encodeGetAnswer, isRefusal } from '../../protocols/pieces/exchange.ts'
import { HASH_BYTES, pieceCount, rangeBytes } from '../../protocols/pieces/tree.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { PieceList } from './content.ts'
import type { FromLaneWorker, LaneEnd, Place, ToLaneWorker } from './lane-worker.ts'
import type { Run } from './piece-picker.ts'
import type { Hasher } from './whole-hash.ts'

/** The cipher of one fills a core; more than two are no faster. */
const WORKERS_MAX = Math.min(2, availableParallelism())
/** A closure's large blobs follow each other. */
const IDLE_MS = 10_000
/** To connect, and to prove the key. */
const OPEN_MS_MAX = 5_000
/** A lane that owes something and says nothing for so long is given up, and the stream goes on. */
const QUIET_MS_MAX = 10_000
/** So is one on which a piece takes longer than this, which is 13 KB/s: as over the stream. */
const PIECE_MS_MAX = 20_000
/** Of a thread, in MiB: its own objects are few, pieces lie outside. */
const LIMITS = { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 }

/** More than are fetched at once: two files that share one wait for each other, and that is all. */
const TURNS = 64

/** One file: from sources as it is, in a bundle beside the chunk that this is in. */
const WORKER_URL = new URL(import.meta.url.endsWith('.ts') ? './lane-worker.ts' : './lane-worker.js', import.meta.url)

export type LaneAddress = { host: string; port: number; identity: string; key: Uint8Array }

/** Who uses a lane is told what comes on it. */
export type LaneUser = {
  onPiece(index: number, bytes: number, isChecked: boolean): void
  /** What was asked for and has not come. */
  onEnd(end: LaneEnd, missing: Run[]): void
}

/** `isChecked`: each piece is held against the list; else they go to the file as they come. */
type LaneGet = { run: Run; list: PieceList; fd: number; isChecked: boolean }
type WholeGet = { path: string; digest: Digest; sizeBytes: number }
type HashMessage = Extract<FromLaneWorker, { hash: number }>
type LaneMessage = Exclude<FromLaneWorker, { hash: number }>
type Pending = { resolve: (payload: Uint8Array) => void; reject: (error: Error) => void }
/** A run under way, and the piece that comes next. */
type Asked = Run & {
  next: number
  sizeBytes: number
  isChecked: boolean
  user: LaneUser
  onNo?: (error: WireError) => void
}

/** One lane, for whoever fetches something from its peer. */
export class Lane {
  readonly #tell: (message: ToLaneWorker) => void
  readonly #number: number
  readonly #opened = Promise.withResolvers<void>()
  readonly #ended = Promise.withResolvers<LaneEnd>()
  readonly #asked: Asked[] = []
  readonly #answers: Pending[] = []
  readonly #users = new Set<LaneUser>()
  #end: LaneEnd | undefined
  #wasOpen = false
  #drained: PromiseWithResolvers<void> | undefined
  #askedBytes = 0

  constructor(number: number, tell: (message: ToLaneWorker) => void) {
    this.#number = number
    this.#tell = tell
    this.#opened.promise.catch(() => undefined)
  }

  /** Resolves when the other end has proved the key. @throws {WireError} `closed` */
  get opened(): Promise<void> {
    return this.#opened.promise
  }

  /** Resolves, when it is closed, with why. Nothing is written to a file for it from then on. */
  get ended(): Promise<LaneEnd> {
    return this.#ended.promise
  }

  get isOpen(): boolean {
    return this.#end === undefined
  }

  /** Whether the other end proved the key, ever. */
  get wasOpen(): boolean {
    return this.#wasOpen
  }

  /** Pieces under way. */
  get load(): number {
    return this.#asked.reduce((sum, { from, count, next }) => sum + from + count - next, 0)
  }

  /** Whether something is under way for the user. */
  owes(user: LaneUser): boolean {
    return this.#asked.some((run) => run.user === user)
  }

  /** Resolves when nothing is under way. */
  get drained(): Promise<void> {
    if (this.#asked.length === 0) return Promise.resolve()
    this.#drained ??= Promise.withResolvers()
    return this.#drained.promise
  }

  /** It has carried almost what one key may. */
  get isSpent(): boolean {
    return this.#askedBytes >= LANE_BYTES_MAX - SPENT_MARGIN_BYTES
  }

  get users(): number {
    return this.#users.size
  }

  join(user: LaneUser): void {
    this.#users.add(user)
  }

  /** Nothing more is told to the user. What is still under way for it goes on being written. */
  leave(user: LaneUser): void {
    this.#users.delete(user)
  }

  /** Asks for pieces, which go into the file. */
  get(user: LaneUser, request: Uint8Array, { run, list, fd, isChecked }: LaneGet): void {
    const { from, count } = run
    const { sizeBytes, hashes } = list
    const place = { fd, hashes: isChecked ? hashes.slice(from * HASH_BYTES, (from + count) * HASH_BYTES) : undefined }
    this.#get(request, { ...run, next: from, sizeBytes, isChecked, user }, place)
  }

  /**
   * Asks for all of a blob, which goes into a new file. Resolves when it is there, and has the digest.
   *
   * @throws {WireError} the peer's no; `closed` with the lane, also where the digest is another.
   * @throws {NodeJS.ErrnoException} what went wrong on this side.
   */
  async take(request: Uint8Array, { path, digest, sizeBytes }: WholeGet): Promise<void> {
    if (this.#end !== undefined) throw new WireError('closed', this.#end.reason)
    const taken = Promise.withResolvers<void>()
    const count = pieceCount(sizeBytes)
    const user: LaneUser = {
      onPiece: (index) => index === count - 1 && taken.resolve(),
      onEnd: ({ why, reason, code }) =>
        taken.reject(why === 'disk' ? Object.assign(new Error(reason), { code }) : new WireError('closed', reason)),
    }
    this.join(user)
    const asked = { from: 0, count, next: 0, sizeBytes, isChecked: false, user, onNo: taken.reject }
    this.#get(request, asked, { path, digest })
    await taken.promise.finally(() => this.leave(user))
  }

  /** Asks a question whose answer is one frame. @throws {WireError} `closed` */
  ask(request: Uint8Array): Promise<Uint8Array> {
    const answer = Promise.withResolvers<Uint8Array>()
    if (this.#end !== undefined) answer.reject(new WireError('closed', this.#end.reason))
    else {
      this.#answers.push(answer)
      this.#tell({ type: 'ask', lane: this.#number, request: encodeFrame(request) })
    }
    return answer.promise
  }

  /** Resolves when nothing is written for it any more. */
  async close(): Promise<void> {
    if (this.#end === undefined) this.#tell({ type: 'close', lane: this.#number })
    await this.#ended.promise
  }

  /** What the thread says of it. */
  hear(message: LaneMessage): void {
    if (message.type === 'open') {
      this.#wasOpen = true
      this.#opened.resolve()
    } else if (message.type === 'pieces') this.#arrived(message)
    else if (message.type === 'answer') this.#answered(message)
    else this.finish({ why: message.why, reason: message.reason, code: message.code })
  }

  finish(end: LaneEnd): void {
    if (this.#end !== undefined) return
    this.#end = end
    const error = new WireError('closed', end.reason)
    this.#opened.reject(error)
    for (const { reject } of this.#answers.splice(0)) reject(error)
    const asked = this.#asked.splice(0)
    for (const user of this.#users) {
      const runs = asked.filter((run) => run.user === user)
      user.onEnd(
        end,
        runs.map(({ from, count, next }) => ({ from: next, count: from + count - next })),
      )
    }
    this.#drained?.resolve()
    this.#ended.resolve(end)
  }

  #get(request: Uint8Array, asked: Asked, place: Place): void {
    const { from, count, sizeBytes } = asked
    const lengthBytes = rangeBytes(sizeBytes, from, count)
    this.#askedBytes += lengthBytes
    this.#asked.push(asked)
    const answer = encodeGetAnswer(lengthBytes)
    this.#tell({
      type: 'get',
      lane: this.#number,
      request: encodeFrame(request),
      answer,
      place,
      sizeBytes,
      from,
      count,
    })
  }

  #arrived({ from, count }: Run): void {
    const [run] = this.#asked
    if (run === undefined || this.#end !== undefined) return
    run.next = from + count
    if (run.next === run.from + run.count) this.#asked.shift()
    if (this.#asked.length === 0) this.#drained?.resolve()
    const { user, sizeBytes, isChecked } = run
    for (let index = from; index < from + count && this.#users.has(user); index++)
      user.onPiece(index, rangeBytes(sizeBytes, index, 1), isChecked)
  }

  /** Of a question; or of a run, and then not just what was expected: more than this version knows of, or a no. */
  #answered({ payload, isOfRun }: { payload: Uint8Array; isOfRun: boolean }): void {
    if (!isOfRun) {
      this.#answers.shift()?.resolve(payload)
      return
    }
    const [run] = this.#asked
    if (run === undefined) return
    try {
      const isRight = decodeGetAnswer(payload) === rangeBytes(run.sizeBytes, run.from, run.count)
      this.#tell({ type: isRight ? 'go-on' : 'close', lane: this.#number })
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      if (run.onNo === undefined || !isRefusal(error)) this.#tell({ type: 'close', lane: this.#number })
      else {
        // What else is asked on it is nothing to do with this blob.
        this.#asked.shift()
        this.#tell({ type: 'skip', lane: this.#number })
        run.onNo(error)
      }
    }
  }
}

/** A file that a thread hashes. */
class ThreadHash implements Hasher {
  readonly #number: number
  readonly #fd: number
  readonly #tell: (message: ToLaneWorker) => void
  readonly #onEnd: () => void
  #waiting: ((message: HashMessage | undefined) => void) | undefined
  #isOver = false

  constructor(number: number, fd: number, tell: (message: ToLaneWorker) => void, onEnd: () => void) {
    this.#number = number
    this.#fd = fd
    this.#tell = tell
    this.#onEnd = onEnd
  }

  async update(offset: number, length: number): Promise<boolean> {
    const answer = await this.#ask({ type: 'hash', hash: this.#number, fd: this.#fd, offset, length })
    return answer?.type === 'hashed' && answer.isDone
  }

  async digest(): Promise<string | undefined> {
    const answer = await this.#ask({ type: 'digest', hash: this.#number })
    if (answer?.type !== 'digest') return undefined
    // The thread has forgotten it.
    this.lose()
    return answer.digest
  }

  end(): void {
    if (!this.#isOver) this.#tell({ type: 'drop', hash: this.#number })
    this.#isOver = true
    // What is being read is waited for: the file may be closed then.
    if (this.#waiting === undefined) this.#onEnd()
  }

  /** Its thread is gone. */
  lose(): void {
    this.#isOver = true
    this.#answered(undefined)
  }

  hear(message: HashMessage): void {
    this.#answered(message)
  }

  #ask(message: ToLaneWorker): Promise<HashMessage | undefined> {
    if (this.#isOver) return Promise.resolve(undefined)
    return new Promise((resolve) => {
      this.#waiting = resolve
      this.#tell(message)
    })
  }

  #answered(message: HashMessage | undefined): void {
    const waiting = this.#waiting
    this.#waiting = undefined
    if (this.#isOver) this.#onEnd()
    waiting?.(message)
  }
}

/** More than a fetch has under way. */
const SPENT_MARGIN_BYTES = 64 * 2 ** 20

type Thread = {
  worker: Worker
  lanes: Map<number, Lane>
  hashes: Map<number, ThreadHash>
  idle: NodeJS.Timeout | undefined
}

export class LaneWorkers implements AsyncDisposable {
  readonly #log: Log
  readonly #pieceMs: number
  readonly #threads = new Set<Thread>()
  /** By which threads take turns in writing to a file, one for all files of the same number modulo this. */
  readonly #turns = new SharedArrayBuffer(TURNS * Int32Array.BYTES_PER_ELEMENT)
  #count = 0

  constructor(log: Log, pieceMs = PIECE_MS_MAX) {
    this.#log = log
    this.#pieceMs = pieceMs
  }

  /** Threads that run. */
  get size(): number {
    return this.#threads.size
  }

  /** Starts the threads, which takes as long as asking for lanes does. */
  start(): void {
    while (this.#threads.size < WORKERS_MAX) this.#add()
  }

  /** Begins to open a lane, on the thread that has the fewest. */
  open(address: LaneAddress): Lane {
    const thread = this.#thread()
    const number = ++this.#count
    const lane = new Lane(number, (message) => thread.worker.postMessage(message))
    thread.lanes.set(number, lane)
    clearTimeout(thread.idle)
    thread.worker.postMessage({
      type: 'open',
      lane: number,
      ...address,
      suites: LANE_SUITES,
      group: LANE_GROUP,
      openMs: OPEN_MS_MAX,
      quietMs: QUIET_MS_MAX,
      pieceMs: this.#pieceMs,
    } satisfies ToLaneWorker)
    void lane.ended.then(() => {
      thread.lanes.delete(number)
      if (thread.lanes.size === 0 && this.#threads.has(thread)) this.#stopLater(thread)
    })
    return lane
  }

  /** Hashes a file on the thread that has the fewest to hash; undefined when none runs. The file stays open until it was ended, and is quiet. */
  hasher(fd: number): Hasher | undefined {
    const [thread] = [...this.#threads].sort((a, b) => a.hashes.size - b.hashes.size)
    if (thread === undefined) return undefined
    const number = ++this.#count
    const hash = new ThreadHash(
      number,
      fd,
      (message) => thread.worker.postMessage(message),
      () => thread.hashes.delete(number),
    )
    thread.hashes.set(number, hash)
    return hash
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#threads].map((thread) => this.#stop(thread)))
  }

  #thread(): Thread {
    const [least] = [...this.#threads].sort((a, b) => a.lanes.size - b.lanes.size)
    return least !== undefined && (least.lanes.size === 0 || this.#threads.size >= WORKERS_MAX) ? least : this.#add()
  }

  #add(): Thread {
    const worker = new Worker(WORKER_URL, {
      name: 'lanes',
      workerData: this.#turns,
      resourceLimits: LIMITS,
      execArgv: [],
    })
    const thread: Thread = { worker, lanes: new Map(), hashes: new Map(), idle: undefined }
    this.#threads.add(thread)
    this.#stopLater(thread)
    worker.on('message', (message: FromLaneWorker) => {
      if ('hash' in message) thread.hashes.get(message.hash)?.hear(message)
      else thread.lanes.get(message.lane)?.hear(message)
    })
    worker.on('error', (error) => this.#log.warn({ reason: reasonOf(error) }, 'lane.thread-failed'))
    worker.on('exit', () => {
      this.#threads.delete(thread)
      clearTimeout(thread.idle)
      for (const lane of thread.lanes.values()) lane.finish({ why: 'lost', reason: 'its thread ended' })
      for (const hash of thread.hashes.values()) hash.lose()
    })
    return thread
  }

  #stopLater(thread: Thread): void {
    thread.idle = setTimeout(() => void this.#stop(thread), IDLE_MS)
  }

  async #stop(thread: Thread): Promise<void> {
    clearTimeout(thread.idle)
    this.#threads.delete(thread)
    await thread.worker.terminate()
  }
}
