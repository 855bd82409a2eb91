/**
 * Blobs that come from outside (a registry upstream) in order: written to the blob directory, and read and given to members of the network at the same
 * time. Of members who want the same blob one fetches it, and the others follow: each from one who receives it, who gives it to two at most, so that
 * they make a tree. Wire format: protocols/arriving/spec.md; who fetches is agreed by protocols/upstream/spec.md.
 *
 * Nobody is told the last byte before the hash of all is right. When it is wrong nobody can tell whose fault it was, and the blob is
 * fetched from outside alone for a while.
 */
import type { Stream } from '@libp2p/interface'
import {
  ARRIVING_PROTOCOL,
  type ArrivingRequest,
  answerArriving,
  askArriving,
  FOLLOWERS_MAX,
} from '../../protocols/arriving/exchange.ts'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { Frames } from '../../protocols/frame.ts'
import type { Blobs } from '../content/blobs.ts'
import type { BlobHolder, BlobSource, BlobStore } from '../content/content.ts'
import type { Uploads } from '../content/uploads.ts'
import { AgentError, reasonOf } from '../error.ts'
import { peerIdOf, publisherOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { Arrival } from './arrival.ts'

/** Followers of one blob at one node: it sends as many copies while it receives one. */
const FOLLOWERS_OF_ONE_MAX = 2
/** Members that are asked to follow before it is given up. */
const ASKED_MAX = 8
/** One that receives the blob sends something in that time, or is too slow. */
const QUIET_MS_MAX = 20_000
/** Sources that fail in a row without anything new. From the second on nobody but the outside is asked. */
const FAILURES_MAX = 4
/** Each is a stream with up to 256 KiB under way. */
const STREAMS_MAX = 32
/** Another blob under the name of this one: only the outside is asked. */
const SPOILT_MS = 10 * 60_000
const SPOILT_MAX = 1_000

/** Who is to be asked for a blob, and whether he has all of it; nobody: then this node fetches it, until the claim is disposed. */
type Claim = { readonly peerId: string | undefined; readonly isHere: boolean } & Disposable

/** The part of the mesh that is one network. */
export type ArrivalScope = {
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type ArrivalsInit = {
  self: string
  blobs: Pick<BlobStore, 'write' | 'open'> & Pick<Blobs, 'makeRoom' | 'makeDiskRoom'>
  holdings: Pick<BlobHolder, 'open' | 'networksOf'>
  shared: {
    claim(digest: Digest, sizeBytes: number, network: string, signal: AbortSignal): Promise<Claim>
    distrust(peerId: string): void
  }
  /** Whether the peer may have this blob of this node. */
  mayFetch: (peerId: string, network: string, digest: Digest) => boolean
  uploads: Pick<Uploads, 'paced'>
  log: Log
}

export type WantedBlob = {
  digest: Digest
  sizeBytes: number
  /** The network in which it is fetched once, and given on; undefined: in none. */
  network: string | undefined
  /** From an offset to the end. */
  fromOutside: (from: number, signal: AbortSignal) => AsyncIterable<Uint8Array>
  /** The blob as a whole, of somebody who has it. */
  fromHolder: (peerId: string, signal: AbortSignal) => Promise<BlobSource>
}

export class Arrivals implements AsyncDisposable {
  readonly #init: ArrivalsInit
  readonly #arrivals = new Map<string, Arrival>()
  readonly #scopes = new Map<string, ArrivalScope>()
  /** Digest -> until when. */
  readonly #spoilt = new Map<Digest, number>()
  readonly #stopping = new AbortController()
  #fetchedBytes = 0

  constructor(init: ArrivalsInit) {
    this.#init = init
  }

  /** From outside, since the start. */
  get fetchedBytes(): number {
    return this.#fetchedBytes
  }

  /** Gives and takes in a network until disposed. */
  async serve(network: string, scope: ArrivalScope): Promise<AsyncDisposable> {
    this.#scopes.set(network, scope)
    const handler = (stream: Stream, peerId: string) => this.#answer(stream, peerId, network)
    await scope.handle(ARRIVING_PROTOCOL, handler, { maxInboundStreams: STREAMS_MAX })
    return {
      [Symbol.asyncDispose]: async () => {
        this.#scopes.delete(network)
        await scope.unhandle(ARRIVING_PROTOCOL)
      },
    }
  }

  /**
   * The blob, to be read while it arrives; to be closed.
   *
   * @throws {AgentError} `not-found`, `failed`, `limit`; `cancelled` when the signal fires. Reads throw `corrupt` as well.
   */
  async open(wanted: WantedBlob, signal: AbortSignal): Promise<BlobSource> {
    const { digest, network } = wanted
    for (let tries = 0; ; tries++) {
      const whole = await this.#init.blobs.open(digest)
      if (whole) return whole
      const key = `${network ?? ''} ${digest}`
      const arrival = this.#arrivals.get(key) ?? this.#begin(key, wanted)
      const reader = arrival.reader()
      try {
        const holder = await arrival.begun(signal)
        if (holder === undefined) return reader
        await reader.close()
        return await wanted.fromHolder(holder, signal)
      } catch (error) {
        await reader.close()
        signal.throwIfAborted()
        if (tries > 0 || !(error instanceof AgentError) || error.code !== 'not-found') throw error
        // Who said that he has the blob does not give it.
        this.#noteSpoilt(digest)
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.all([...this.#arrivals.values()].map((arrival) => arrival.ended))
  }

  #begin(key: string, wanted: WantedBlob): Arrival {
    const { digest, sizeBytes } = wanted
    const arrival = new Arrival({ digest, sizeBytes, stopping: this.#stopping.signal })
    this.#arrivals.set(key, arrival)
    // Out of the way before anybody hears of the end: who comes then finds the whole blob, or begins anew.
    void arrival.run(async () => {
      try {
        return await this.#run(arrival, wanted)
      } finally {
        this.#arrivals.delete(key)
      }
    })
    return arrival
  }

  /** Gives back who has all of it, if it is not to come here from outside. */
  async #run(arrival: Arrival, wanted: WantedBlob): Promise<string | undefined> {
    const { digest, network } = wanted
    const { blobs, shared, log } = this.#init
    const isAlone = network === undefined || this.#isSpoilt(digest)
    using claim = isAlone ? undefined : await shared.claim(digest, wanted.sizeBytes, network, arrival.signal)
    if (claim?.isHere) return claim.peerId
    // Before anything of it is read: whoever waits may then have it without it being kept.
    blobs.makeRoom(wanted.sizeBytes, wanted.sizeBytes)
    blobs.makeDiskRoom(wanted.sizeBytes)
    try {
      const options = { ...(network !== undefined && { network }), onFile: (path: string) => arrival.opens(path) }
      await blobs.write(digest, this.#bytes(arrival, wanted, claim), arrival.signal, options)
      log.info({ digest, sizeBytes: wanted.sizeBytes, following: arrival.isFollowing }, 'image.blob-arrived')
    } catch (error) {
      if (error instanceof AgentError && error.code === 'corrupt') this.#noteSpoilt(digest)
      throw error
    }
    return undefined
  }

  /** All of it, from one source after the other, each beginning where the last one failed. */
  async *#bytes(arrival: Arrival, wanted: WantedBlob, first: Claim | undefined): AsyncGenerator<Uint8Array> {
    const { sizeBytes, digest } = wanted
    let at = 0
    for (let failures = 0; at < sizeBytes; ) {
      const before = at
      try {
        const isAlone = failures > 1 || (before === 0 && first === undefined)
        for await (const chunk of this.#source(arrival, wanted, {
          at,
          first: before === 0 ? first : undefined,
          isAlone,
        })) {
          at += chunk.byteLength
          if (at > sizeBytes) throw new AgentError('corrupt', `more than the ${sizeBytes} bytes that it should have`)
          yield chunk
          arrival.wrote(chunk, at)
        }
        if (at < sizeBytes) throw new AgentError('failed', 'it ended early')
      } catch (error) {
        arrival.signal.throwIfAborted()
        if (error instanceof AgentError && (error.code === 'not-found' || error.code === 'not-allowed')) throw error
        failures = at > before ? 1 : failures + 1
        this.#init.log.debug({ digest, at, reason: reasonOf(error) }, 'image.source-failed')
        if (failures >= FAILURES_MAX) throw error
      }
    }
  }

  async *#source(
    arrival: Arrival,
    wanted: WantedBlob,
    { at, first, isAlone }: { at: number; first: Claim | undefined; isAlone: boolean },
  ): AsyncGenerator<Uint8Array> {
    const { digest, network, fromOutside } = wanted
    const { signal } = arrival
    const isShared = network !== undefined && !isAlone
    using again =
      isShared && first === undefined
        ? await this.#init.shared.claim(digest, wanted.sizeBytes, network, signal)
        : undefined
    const { peerId } = first ?? again ?? {}
    if (isShared && peerId !== undefined) return yield* this.#follow(arrival, { ...wanted, network }, peerId, at)
    arrival.isFollowing = false
    for await (const chunk of fromOutside(at, signal)) {
      this.#fetchedBytes += chunk.byteLength
      yield chunk
    }
  }

  /** From a member who receives it, or from one who receives it from him. */
  async *#follow(
    arrival: Arrival,
    { digest, sizeBytes, network }: WantedBlob & { network: string },
    peerId: string,
    at: number,
  ): AsyncGenerator<Uint8Array> {
    const scope = this.#scopes.get(network)
    const asked = new Set([this.#init.self])
    const waiting = [peerId]
    for (let next = waiting.shift(); next !== undefined && scope && asked.size <= ASKED_MAX; next = waiting.shift()) {
      // Who receives it from here cannot give it to here.
      if (asked.has(next) || arrival.followers.has(next)) continue
      asked.add(next)
      using quiet = new Quiet(arrival.signal)
      let frames: Frames | undefined
      try {
        frames = new Frames(await scope.openStream(next, ARRIVING_PROTOCOL, quiet.signal))
        const request = { digest: Buffer.from(digest, 'hex'), from: at }
        const answer = await askArriving(frames, request, sizeBytes, quiet.signal)
        if ('error' in answer) {
          waiting.push(...answer.followers.map(peerIdOf))
          continue
        }
        arrival.isFollowing = true
        for await (const chunk of answer.bytes) {
          quiet.heard()
          yield chunk
          // While this node writes it is not the member that is slow.
          quiet.heard()
        }
        return
      } finally {
        frames?.abort(new Error('done'))
      }
    }
    this.#init.shared.distrust(peerId)
    throw new AgentError('failed', 'no member gives it while it arrives')
  }

  async #answer(stream: Stream, peerId: string, network: string): Promise<void> {
    const frames = new Frames(stream)
    const { signal } = this.#stopping
    await using kept = new AsyncDisposableStack()
    await answerArriving(frames, (request) => this.#give(request, { peerId, network, kept, signal }), signal)
    await frames.close(signal)
  }

  async #give(
    { digest: bytes, from }: ArrivingRequest,
    {
      peerId,
      network,
      kept,
      signal,
    }: { peerId: string; network: string; kept: AsyncDisposableStack; signal: AbortSignal },
  ): Promise<Awaited<ReturnType<Parameters<typeof answerArriving>[1]>>> {
    const digest = Buffer.from(bytes).toString('hex')
    const { mayFetch, holdings, uploads } = this.#init
    if (!mayFetch(peerId, network, digest)) return { error: 'absent' }
    const arrival = this.#arrivals.get(`${network} ${digest}`)
    if (arrival && arrival.followers.size >= FOLLOWERS_OF_ONE_MAX) {
      const followers = [...arrival.followers].flatMap((one) => publisherOf(one) ?? [])
      return { error: 'busy', followers: followers.slice(0, FOLLOWERS_MAX) }
    }
    const isWhole = arrival === undefined && new Set(holdings.networksOf(digest)).has(network)
    const source = isWhole ? await holdings.open(digest) : arrival?.reader()
    if (source === undefined) return { error: 'absent' }
    kept.defer(async () => source.close?.())
    if (arrival) {
      arrival.followers.add(peerId)
      kept.defer(() => void arrival.followers.delete(peerId))
      const holder = await arrival.begun(signal)
      if (holder !== undefined) return { error: 'absent' }
    }
    const { sizeBytes } = source
    if (from > sizeBytes) return { error: 'range' }
    const chunks = source.read(from, sizeBytes - from, signal)
    return { sizeBytes, bytes: uploads.paced(peerId, chunks, (turn) => turn, signal) }
  }

  #noteSpoilt(digest: Digest): void {
    if (this.#spoilt.size >= SPOILT_MAX) this.#spoilt.clear()
    this.#spoilt.set(digest, performance.now() + SPOILT_MS)
  }

  #isSpoilt(digest: Digest): boolean {
    return (this.#spoilt.get(digest) ?? 0) > performance.now()
  }
}

/** A signal that fires when nothing was heard for too long. */
class Quiet implements Disposable {
  readonly signal: AbortSignal
  readonly #timer: NodeJS.Timeout

  constructor(signal: AbortSignal) {
    const controller = new AbortController()
    const reason = new AgentError('failed', `nothing came for ${QUIET_MS_MAX} ms`)
    this.#timer = setTimeout(() => controller.abort(reason), QUIET_MS_MAX)
    this.signal = AbortSignal.any([signal, controller.signal])
  }

  heard(): void {
    this.#timer.refresh()
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
  }
}
