/**
 * What one stream of the pieces protocol is answered from: blobs that are here, and those that are being fetched, as far as they are here.
 *
 * A piece leaves a stream only when its hash is the one that the peer was told: of what is here by the blob's own list; of what is being fetched by
 * the list that it is fetched by, which may be replaced by another one at any time.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import {
  getRange,
  type Holding,
  type PieceHashes,
  type PieceHolder,
  type Refused,
} from '../../protocols/pieces/exchange.ts'
import { HASH_BYTES, isPiece, PIECE_BYTES, pieceBytes } from '../../protocols/pieces/tree.ts'
import { AgentError } from '../error.ts'
import type { BlobHolder, BlobSource, PartSource, PieceList } from './content.ts'
import type { Deadline } from './deadline.ts'
import type { PieceLists } from './piece-lists.ts'
import type { Run } from './piece-picker.ts'
import { OPEN_NETWORK_ID } from './publication-key.ts'

/** Half-fetched blobs whose list one stream was told: an asker goes on with the one that it asked for last. */
const STATED_MAX = 16

const NO_HASHES = new Uint8Array(0)

/** As a request has it. */
type Network = Uint8Array | undefined

export type ShelfInit = {
  holdings: BlobHolder
  lists: PieceLists
  deadline: Deadline
  /** What the peer may be given of a blob: all of it, or at most what arrived of it so far. */
  mayGet: (digest: Digest, network: string) => 'whole' | 'part' | undefined
  arriving: (digest: Digest, network: string) => PartSource | undefined
  /** The peer begins to fetch; gives back who else does. */
  asked: (digest: Digest, network: string) => string[]
  /** This node's own statement of a list, for those who fetch by it. */
  sign?: ((digest: Digest, network: string, list: PieceList) => Uint8Array | undefined) | undefined
  /** Gives pieces out in turn with those for other peers. */
  give: (outgoing: Outgoing) => AsyncIterable<Uint8Array>
  /** Whether the peer had to wait too long for its turn. */
  isBusy: () => boolean
  /** Leaves it to the peer to hold pieces against the list: on a lane, where it asks for a wrong one again on a stream. */
  isUnchecked?: boolean
}

/** A run of a blob's pieces, on its way out. */
export type Outgoing = { digest: Digest; from: number; pieces: AsyncIterable<Uint8Array> }

type IsSound = (piece: Uint8Array, hashes: Uint8Array, index: number) => boolean
type Range = { from: number; count: number; isSound: IsSound }

type Pieces = Pick<PieceList, 'sizeBytes' | 'hashes'>
type Open = { digest: Digest; source: BlobSource; list?: PieceList }

/** The blob that a stream asked for last stays open, since the next question is most likely about it. */
export class Shelf implements PieceHolder, AsyncDisposable {
  readonly #init: ShelfInit
  #open: Open | undefined
  /**
   * The list that the peer was told for each half-fetched blob, by digest and network. It holds the pieces that it is given against that,
   * so none are given by another one.
   */
  readonly #stated = new Map<string, PieceList>()

  constructor(init: ShelfInit) {
    this.#init = init
  }

  async have(digest: Uint8Array, _signal: AbortSignal, network: Network): Promise<Holding | null> {
    const found = await this.#take(digest, network)
    if (!found) return null
    if ('part' in found) return { sizeBytes: found.part.list.sizeBytes, pieces: found.part.bitmap() }
    return { sizeBytes: found.open.source.sizeBytes, pieces: 'all' }
  }

  async hashes(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Network,
  ): Promise<PieceHashes | Refused> {
    const id = networkId(network)
    const others = this.#init.mayGet(hex(digest), id) ? this.#init.asked(hex(digest), id) : []
    const found = await this.#take(digest, network)
    if (!found) return { error: 'absent' }
    const list = 'part' in found ? found.part.list : await this.#listOf(found.open, signal)
    const { sizeBytes, root, hashes } = list
    const some = { sizeBytes, root, hashes: hashes.subarray(from * HASH_BYTES, (from + count) * HASH_BYTES) }
    const signed = 'part' in found ? found.part.signed : this.#init.sign?.(hex(digest), id, list)
    const more = { ...(others.length > 0 && { askers: others }), ...(signed && { signed }) }
    if (!('part' in found)) return { ...some, ...more }
    this.#state(keyOf(digest, network), list)
    return { ...some, ...more, pieces: found.part.bitmap() }
  }

  async get(
    digest: Uint8Array,
    from: number,
    count: number,
    signal: AbortSignal,
    network: Network,
  ): Promise<{ lengthBytes: number; chunks: AsyncIterable<Uint8Array> } | Refused> {
    const found = await this.#take(digest, network)
    if (!found) return { error: 'absent' }
    const held =
      'part' in found
        ? { part: found.part, list: found.part.list }
        : { source: found.open.source, list: await this.#neededOf(found.open, signal) }
    const range = getRange(held.list.sizeBytes, from, count)
    if (!range) return { error: 'range' }
    if ('part' in held && !(await this.#mayGive(held.part, held.list, keyOf(digest, network), { from, count })))
      return { error: 'absent' }
    if (this.#init.isBusy()) return { error: 'busy' }
    const isSound: IsSound = this.#init.isUnchecked ? () => true : isPiece
    const pieces =
      'part' in held
        ? arrivedPieces(held.part, held.list, { from, count, isSound })
        : soundPieces(held.source, held.list, { from, count, isSound }, signal)
    return { lengthBytes: range.lengthBytes, chunks: this.#init.give({ digest: hex(digest), from, pieces }) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const open = this.#open
    this.#open = undefined
    await open?.source.close?.()
  }

  /** Whether these pieces arrived, and by the list that the peer was told. */
  async #mayGive(part: PartSource, list: Pieces, key: string, { from, count }: Run): Promise<boolean> {
    for (let index = from; index < from + count; index++)
      if (this.#stated.get(key) !== list || part.list !== list || !(await part.check(index))) return false
    return this.#stated.get(key) === list
  }

  #state(key: string, list: PieceList): void {
    this.#stated.delete(key)
    this.#stated.set(key, list)
    for (const oldest of this.#stated.keys()) {
      if (this.#stated.size <= STATED_MAX) break
      this.#stated.delete(oldest)
    }
  }

  async #listOf(open: Open, signal: AbortSignal): Promise<PieceList> {
    const { lists, deadline } = this.#init
    open.list ??= await deadline.hold(lists.of(open.digest, open.source, signal))
    return open.list
  }

  /** What it takes to give pieces out: where they are not held against the list, the size. */
  async #neededOf(open: Open, signal: AbortSignal): Promise<Pieces> {
    return this.#init.isUnchecked ? { sizeBytes: open.source.sizeBytes, hashes: NO_HASHES } : this.#listOf(open, signal)
  }

  async #take(bytes: Uint8Array, network: Network): Promise<{ open: Open } | { part: PartSource } | undefined> {
    const digest = hex(bytes)
    const id = networkId(network)
    // Before anything is opened: how long that takes would tell that it is here.
    const mayGet = this.#init.mayGet(digest, id)
    if (mayGet === 'whole' && this.#open?.digest === digest) return { open: this.#open }
    await this[Symbol.asyncDispose]()
    if (mayGet === undefined) return undefined
    const source = mayGet === 'whole' ? await this.#init.holdings.open(digest) : undefined
    if (source) {
      this.#open = { digest, source }
      return { open: this.#open }
    }
    const part = this.#init.arriving(digest, id)
    return part && { part }
  }
}

/** Pieces that arrived. */
async function* arrivedPieces(
  part: PartSource,
  list: Pieces,
  { from, count, isSound }: Range,
): AsyncIterable<Uint8Array> {
  part.retain()
  try {
    for (let index = from; index < from + count; index++) {
      const fresh = part.list === list ? part.fresh(index) : undefined
      if (fresh) {
        yield fresh
        continue
      }
      const piece = await part.read(index * PIECE_BYTES, pieceBytes(list.sizeBytes, index))
      if (!isSound(piece, list.hashes, index))
        throw new AgentError('corrupt', `piece ${index} of a blob that is being fetched is not on the disk as it came`)
      yield piece
    }
  } finally {
    await part.release()
  }
}

/** Pieces as their source has them, each given out only when its hash is right. */
async function* soundPieces(
  source: BlobSource,
  list: Pieces,
  { from, count, isSound }: Range,
  signal: AbortSignal,
): AsyncIterable<Uint8Array> {
  let index = from
  let chunks: Uint8Array[] = []
  let bytes = 0
  const range = getRange(list.sizeBytes, from, count)
  if (!range) return
  for await (const chunk of source.read(range.offset, range.lengthBytes, signal)) {
    for (let rest = chunk; rest.byteLength > 0; ) {
      const wanted = pieceBytes(list.sizeBytes, index)
      const part = rest.subarray(0, wanted - bytes)
      rest = rest.subarray(part.byteLength)
      chunks.push(part)
      bytes += part.byteLength
      if (bytes < wanted) continue
      const piece = chunks.length === 1 ? part : Buffer.concat(chunks)
      if (!isSound(piece, list.hashes, index)) {
        source.reportCorrupt?.()
        throw new AgentError('corrupt', `piece ${index} has another hash now than when it was listed`)
      }
      yield piece
      index++
      chunks = []
      bytes = 0
    }
  }
}

function keyOf(digest: Uint8Array, network: Network): string {
  return `${hex(digest)} ${networkId(network)}`
}

function networkId(network: Network): string {
  return network === undefined ? OPEN_NETWORK_ID : hex(network)
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
