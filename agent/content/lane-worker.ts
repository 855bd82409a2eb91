/**
 * The receiving end of lanes (protocols/lane/spec.md), in a thread of its own: opens them, asks on them what it is told to ask, holds each
 * piece against its hash and writes it to its place in the file. Whole pieces go by here, and only their numbers leave.
 *
 * Everything is synchronous between a read from the socket and the write to the disk: so the network waits while the disk is slow, there is
 * one piece in memory for each lane, and when `closed` was said of a lane nothing more is written for it.
 *
 * A blob of a few pieces comes as a whole into a file of its own, and only its digest is looked at. It also hashes large files, whose bytes it has just
 * written.
 *
 * It knows the shape of answers, not their meaning: one that is not exactly what was expected is shown to the main thread.
 */
import { createHash, type Hash } from 'node:crypto'
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { constants, getPriority, setPriority } from 'node:os'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import { parentPort, workerData } from 'node:worker_threads'
import { isPiece, PIECE_BYTES, pieceBytes } from '../../protocols/pieces/tree.ts'

/** Where a run of pieces goes. */
export type Place =
  /** A file that stays open until they are here or the lane is closed, and what each is held against; undefined: the hash of the whole will tell. */
  | { fd: number; hashes: Uint8Array | undefined }
  /** A file that is made; the pieces are all of the blob with this digest. */
  | { path: string; digest: string }
/** A run of pieces: `request` and `answer` are frames' payloads, the latter as it must be if the pieces follow. */
type Get = {
  request: Uint8Array
  answer: Uint8Array
  place: Place
  sizeBytes: number
  from: number
  count: number
}
type Address = { host: string; port: number; identity: string; key: Uint8Array }
type TlsTerms = { suites: string; group: string; openMs: number; quietMs: number; pieceMs: number }

export type ToLaneWorker =
  | ({ type: 'open'; lane: number } & Address & TlsTerms)
  | ({ type: 'get'; lane: number } & Get)
  /** A question whose answer is one frame, which goes to the main thread. */
  | { type: 'ask'; lane: number; request: Uint8Array }
  /** The answer that was shown is as it should be: its pieces follow. */
  | { type: 'go-on'; lane: number }
  /** The answer that was shown is a no. */
  | { type: 'skip'; lane: number }
  | { type: 'close'; lane: number }
  /** The next bytes of a file that is hashed from its beginning. */
  | { type: 'hash'; hash: number; fd: number; offset: number; length: number }
  | { type: 'digest'; hash: number }
  | { type: 'drop'; hash: number }

/** `wrong` is a piece, or a blob, with another hash than it should have, `disk` a failure on this side. */
export type LaneEnd = { why: 'closed' | 'lost' | 'wrong' | 'disk'; reason: string; code?: string | undefined }

export type FromLaneWorker =
  | { type: 'open'; lane: number }
  | { type: 'answer'; lane: number; payload: Uint8Array; isOfRun: boolean }
  | { type: 'pieces'; lane: number; from: number; count: number }
  | ({ type: 'closed'; lane: number } & LaneEnd)
  | { type: 'hashed'; hash: number; isDone: boolean }
  | { type: 'digest'; hash: number; digest: string }

/** TLS gives 16 KiB at a time. */
const READ_BYTES = 64 * 1024
/** Of an answer: a bitmap of the largest blob fits. */
const ANSWER_BYTES_MAX = 1024 * 1024
/** A varint of a length below 2^28. */
const PREFIX_BYTES_MAX = 4
const NOTHING = Buffer.alloc(0)
/** Far longer than a piece takes to be written: the thread whose turn it was is gone. */
const TURN_MS_MAX = 250

/** A third of the share of others: bulk work gives way to the main thread, which answers, and to whoever unpacks what came. With a core to spare it costs nothing. */
const NICER_BY = 5

/** How often lanes are looked at. */
const LOOK_MS = 1_000

/** What the threads share: by file, whether one of them writes to it. */
const turns = new Int32Array(workerData as SharedArrayBuffer)
const port = parentPort
const lanes = new Map<number, Connection>()
/** Files that are being hashed, as far as they are. */
const hashes = new Map<number, Hash>()
/** What fits into the processor's own memory is hashed quickest. */
const readBack = Buffer.allocUnsafeSlow(PIECE_BYTES)

giveWay()

function tell(message: FromLaneWorker): void {
  port?.postMessage(message)
}

port?.on('message', (message: ToLaneWorker) => {
  if ('hash' in message) {
    hashFile(message)
    return
  }
  const { lane } = message
  if (message.type === 'open') {
    lanes.set(lane, new Connection(lane, message))
    return
  }
  // It may have been closed while the message was on its way.
  const connection = lanes.get(lane)
  if (message.type === 'get') connection?.get(message)
  else if (message.type === 'ask') connection?.ask(message.request)
  else if (message.type === 'go-on') connection?.goOn()
  else if (message.type === 'skip') connection?.skip()
  else connection?.close({ why: 'closed', reason: 'nothing more is wanted' })
})

function giveWay(): void {
  // Only Linux has priorities for single threads: elsewhere it would be the whole agent that gives way.
  if (process.platform !== 'linux') return
  try {
    setPriority(Math.min(getPriority() + NICER_BY, constants.priority.PRIORITY_LOW))
  } catch {
    // A sandbox that forbids it, as the unit of earlier releases does.
  }
}

function hashFile(message: Extract<ToLaneWorker, { hash: number }>): void {
  const made = hashes.get(message.hash) ?? createHash('sha256')
  hashes.delete(message.hash)
  if (message.type === 'digest') tell({ type: 'digest', hash: message.hash, digest: made.digest('hex') })
  if (message.type !== 'hash') return
  hashes.set(message.hash, made)
  const { fd, offset, length } = message
  let at = 0
  try {
    for (let count = 1; at < length && count > 0; at += count) {
      count = readSync(fd, readBack, 0, Math.min(readBack.byteLength, length - at), offset + at)
      made.update(readBack.subarray(0, count))
    }
  } catch {
    // The main thread tries for itself, and sees why.
  }
  tell({ type: 'hashed', hash: message.hash, isDone: at >= length })
}

/**
 * One thread at a time writes to a file. The kernel would see to that, too, but lets the other one wait for it in a busy loop, and the core that takes
 * is wanted by whoever sends.
 */
function writeInTurn(fd: number, bytes: Uint8Array, offset: number): void {
  const at = fd % turns.length
  while (Atomics.compareExchange(turns, at, 0, 1) !== 0 && Atomics.wait(turns, at, 1, TURN_MS_MAX) !== 'timed-out');
  try {
    write(fd, bytes, offset)
  } finally {
    Atomics.store(turns, at, 0)
    Atomics.notify(turns, at, 1)
  }
}

function write(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.byteLength; )
    done += writeSync(fd, bytes, done, bytes.byteLength - done, offset + done)
}

/** A blob that comes as a whole. */
class WholeFile {
  readonly #fd: number
  readonly #digest: string
  readonly #hash = createHash('sha256')

  constructor({ path, digest }: { path: string; digest: string }) {
    this.#fd = openSync(path, 'wx', 0o600)
    this.#digest = digest
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#hash.update(bytes)
    write(this.#fd, bytes, offset)
  }

  /** @returns whether it has its digest; to be called once. */
  end(): boolean {
    this.close()
    return this.#hash.digest('hex') === this.#digest
  }

  close(): void {
    closeSync(this.#fd)
  }
}

class Connection {
  readonly #lane: number
  readonly #socket: TLSSocket
  /** What was asked and not answered yet; undefined for a question whose answer is one frame. */
  readonly #asked: (Get | undefined)[] = []
  readonly #piece = Buffer.allocUnsafeSlow(PIECE_BYTES)
  readonly #looking: NodeJS.Timeout
  /** When something that was asked for came last, or something was asked for when nothing was under way. */
  #movedMs = performance.now()
  #filledBytes = 0
  /** The piece that comes now, of the run asked for first; undefined between answers. */
  #index: number | undefined
  /** Where the pieces go that come now, if they are a whole blob. */
  #whole: WholeFile | undefined
  /** An answer's frame: its length while that comes, then as much of it as is here. */
  #prefix = { value: 0, bytes: 0 }
  #payload: { bytes: Uint8Array; filled: number } | undefined
  /** Read behind an answer that the main thread looks at. */
  #held: Buffer | undefined
  #isHeld = false
  #isOpen = false
  #isClosed = false

  constructor(lane: number, terms: Address & TlsTerms) {
    const { host, port, identity, key, suites, group, openMs, quietMs, pieceMs } = terms
    this.#lane = lane
    // Node's types do not know that TLS has `onread`, too.
    const onread = {
      buffer: Buffer.allocUnsafeSlow(READ_BYTES),
      callback: (count: number, bytes: Uint8Array) => this.#read(bytes.subarray(0, count)),
    }
    const options: ConnectionOptions & { noDelay: boolean; onread: typeof onread } = {
      host,
      port,
      noDelay: true,
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
      ciphers: suites,
      ecdhCurve: group,
      // Nobody is trusted but who knows the key: who offers a certificate instead is refused.
      ca: [],
      rejectUnauthorized: true,
      checkServerIdentity: () => new Error('it showed a certificate in place of the key'),
      pskCallback: () => ({ psk: key, identity }),
      timeout: openMs,
      onread,
    }
    this.#socket = connect(options)
    this.#socket.once('secureConnect', () => this.#opened(quietMs))
    this.#socket.on('timeout', () => this.#quiet())
    this.#looking = setInterval(() => this.#look(pieceMs), LOOK_MS)
    this.#socket.on('error', (error) => this.close({ why: 'lost', reason: error.message }))
    this.#socket.on('close', () => this.close({ why: 'lost', reason: 'the peer closed it' }))
  }

  get(run: Get): void {
    this.#write(run.request, run)
  }

  ask(request: Uint8Array): void {
    this.#write(request, undefined)
  }

  goOn(): void {
    this.#begin(this.#asked[0])
    this.#release()
  }

  skip(): void {
    this.#asked.shift()
    this.#release()
  }

  #release(): void {
    const held = this.#held
    this.#isHeld = false
    this.#held = undefined
    if (held === undefined || this.#read(held)) this.#socket.resume()
  }

  /** Says so once. Nothing is written to any file afterwards. */
  close(end: LaneEnd): void {
    if (this.#isClosed) return
    this.#isClosed = true
    clearInterval(this.#looking)
    lanes.delete(this.#lane)
    this.#socket.destroy()
    this.#leaveWhole()
    const [run] = this.#asked
    if (run !== undefined && isUnchecked(run) && this.#index !== undefined && this.#index > run.from)
      tell({ type: 'pieces', lane: this.#lane, from: run.from, count: this.#index - run.from })
    tell({ type: 'closed', lane: this.#lane, ...end })
  }

  #opened(quietMs: number): void {
    const { authorized } = this.#socket
    const hasCertificate = Object.keys(this.#socket.getPeerCertificate() ?? {}).length > 0
    if (!authorized || !this.#socket.isSessionReused() || hasCertificate) {
      this.close({ why: 'lost', reason: 'the other end did not prove that it has the key' })
      return
    }
    this.#isOpen = true
    this.#socket.setTimeout(quietMs)
    tell({ type: 'open', lane: this.#lane })
  }

  #quiet(): void {
    const isWaiting = this.#asked.length > 0 && !this.#isHeld
    if (isWaiting || !this.#isOpen) this.close({ why: 'lost', reason: 'nothing came for too long' })
  }

  /** A peer that gives a byte now and then is not quiet, and nobody is to wait for it. */
  #look(pieceMs: number): void {
    const isLate = performance.now() - this.#movedMs > pieceMs
    if (isLate && this.#asked.length > 0 && !this.#isHeld) this.close({ why: 'lost', reason: 'it is too slow' })
  }

  #write(request: Uint8Array, run: Get | undefined): void {
    if (this.#asked.length === 0) this.#movedMs = performance.now()
    this.#asked.push(run)
    this.#socket.write(request)
  }

  /** @returns whether to go on reading. */
  #read(bytes: Uint8Array): boolean {
    if (this.#isClosed) return false
    try {
      return this.#take(bytes)
    } catch (error) {
      this.close({ why: 'lost', reason: error instanceof Error ? error.message : String(error) })
      return false
    }
  }

  #take(bytes: Uint8Array): boolean {
    for (let at = 0; at < bytes.byteLength; ) {
      if (this.#isHeld) {
        // TLS gives what it has decrypted already, also when it was told to stop.
        this.#held = Buffer.concat([this.#held ?? NOTHING, bytes.subarray(at)])
        return false
      }
      if (this.#isClosed) return false
      at += this.#index === undefined ? this.#takeFrame(bytes, at) : this.#takePiece(bytes, at, this.#index)
    }
    return !this.#isHeld && !this.#isClosed
  }

  #takeFrame(bytes: Uint8Array, at: number): number {
    if (this.#asked.length === 0) throw new Error('it said something that nobody asked for')
    if (this.#payload === undefined) return this.#takePrefix(bytes[at] ?? 0)
    const payload = this.#payload
    const part = bytes.subarray(at, at + payload.bytes.byteLength - payload.filled)
    payload.bytes.set(part, payload.filled)
    payload.filled += part.byteLength
    if (payload.filled === payload.bytes.byteLength) this.#answered(payload.bytes)
    return part.byteLength
  }

  #takePrefix(byte: number): number {
    const prefix = this.#prefix
    prefix.value |= (byte & 0x7f) << (7 * prefix.bytes++)
    if (byte < 0x80) {
      if (prefix.value > ANSWER_BYTES_MAX || prefix.value === 0) throw new Error('an answer of an impossible length')
      this.#payload = { bytes: new Uint8Array(prefix.value), filled: 0 }
      this.#prefix = { value: 0, bytes: 0 }
    } else if (prefix.bytes === PREFIX_BYTES_MAX) throw new Error('a frame length over four bytes')
    return 1
  }

  #answered(payload: Uint8Array): void {
    this.#payload = undefined
    this.#movedMs = performance.now()
    const run = this.#asked[0]
    if (run !== undefined && Buffer.compare(payload, run.answer) === 0) {
      this.#begin(run)
      return
    }
    if (run === undefined) this.#asked.shift()
    else this.#isHeld = true
    tell({ type: 'answer', lane: this.#lane, payload, isOfRun: run !== undefined })
  }

  #begin(run: Get | undefined): void {
    this.#index = run?.from
    if (run === undefined || !('path' in run.place)) return
    try {
      this.#whole = new WholeFile(run.place)
    } catch (error) {
      this.#closeOf(error)
    }
  }

  #takePiece(bytes: Uint8Array, at: number, index: number): number {
    const run = this.#asked[0] as Get
    const length = pieceBytes(run.sizeBytes, index)
    const part = bytes.subarray(at, at + length - this.#filledBytes)
    this.#piece.set(part, this.#filledBytes)
    this.#filledBytes += part.byteLength
    if (this.#filledBytes === length) this.#endPiece(run, index, length)
    return part.byteLength
  }

  #endPiece(run: Get, index: number, length: number): void {
    const piece = this.#piece.subarray(0, length)
    const { place } = run
    if ('hashes' in place && place.hashes !== undefined && !isPiece(piece, place.hashes, index - run.from)) {
      this.close({ why: 'wrong', reason: `piece ${index} has another hash than it said` })
      return
    }
    const isLast = index + 1 === run.from + run.count
    try {
      if ('fd' in place) writeInTurn(place.fd, piece, index * PIECE_BYTES)
      else this.#whole?.write(piece, index * PIECE_BYTES)
    } catch (error) {
      this.#closeOf(error)
      return
    }
    if (isLast && this.#whole !== undefined && !this.#endWhole()) return
    this.#filledBytes = 0
    this.#movedMs = performance.now()
    if (isLast) this.#asked.shift()
    this.#index = isLast ? undefined : index + 1
    // Who has pieces held against their hashes wants to know of each at once.
    if ('hashes' in place && place.hashes !== undefined)
      tell({ type: 'pieces', lane: this.#lane, from: index, count: 1 })
    else if (isLast) tell({ type: 'pieces', lane: this.#lane, from: run.from, count: run.count })
  }

  /** @returns whether the blob is the one that was asked for. */
  #endWhole(): boolean {
    const whole = this.#whole
    this.#whole = undefined
    if (whole?.end() === true) return true
    this.close({ why: 'wrong', reason: 'a blob has another hash than it was asked for by' })
    return false
  }

  #leaveWhole(): void {
    try {
      this.#whole?.close()
    } catch {
      // It is dropped anyway.
    }
    this.#whole = undefined
  }

  /** What fails on this side. */
  #closeOf(error: unknown): void {
    const { code, message } = error as NodeJS.ErrnoException
    this.close({ why: 'disk', reason: message, code })
  }
}

/** Whether its pieces are told of together, when they are here or no more come. */
function isUnchecked({ place }: Get): boolean {
  return 'fd' in place && place.hashes === undefined
}
