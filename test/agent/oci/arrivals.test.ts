/** Blobs that arrive from outside: read meanwhile, followed by members, gone on with elsewhere, and never given to the end when they are wrong. */
import { createHash, randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import { afterEach, describe, expect, it } from 'vitest'
import type { BlobSource } from '../../../agent/content/content.ts'
import { Uploads } from '../../../agent/content/uploads.ts'
import { AgentError } from '../../../agent/error.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import { type ArrivalScope, Arrivals, type ArrivalsInit, type WantedBlob } from '../../../agent/oci/arrivals.ts'
import { ARRIVING_PROTOCOL, encodeArrivingRequest } from '../../../protocols/arriving/exchange.ts'
import { Frames } from '../../../protocols/frame.ts'
import { streamPair } from '../../stream-pair.ts'
import { never, recordingLog, Store } from '../content/peers.ts'

const NETWORK = 'a'.repeat(64)
const CHUNK = 64 * 1024
const bytes = randomBytes(20 * CHUNK + 17)
const digest = createHash('sha256').update(bytes).digest('hex')

type Claim = Awaited<ReturnType<ArrivalsInit['shared']['claim']>>

/** A source outside that gives what it is let to, and counts. */
class Outside {
  givenBytes = 0
  readonly askedFrom: number[] = []
  /** What it gives until more is let; then it waits, or fails. */
  limitBytes = Number.POSITIVE_INFINITY
  isBroken = false
  content = bytes

  async *from(from: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    this.askedFrom.push(from)
    for (let at = from; at < this.content.byteLength; ) {
      signal.throwIfAborted()
      if (this.isBroken) throw new AgentError('failed', 'the line is cut')
      if (at >= this.limitBytes) {
        await delay(2)
        continue
      }
      const chunk = this.content.subarray(at, Math.min(at + CHUNK, this.limitBytes))
      at += chunk.byteLength
      this.givenBytes += chunk.byteLength
      yield chunk
      await delay(0)
    }
  }
}

/** Members of one network in memory: each with a blob directory, and claims that the test decides. */
class Crowd implements AsyncDisposable {
  readonly outside = new Outside()
  readonly members: { id: string; arrivals: Arrivals; store: Store; claims: string[] }[] = []
  readonly #handlers = new Map<string, Parameters<ArrivalScope['handle']>[1]>()
  readonly #stack = new AsyncDisposableStack()
  /** Whom a member is told to ask; nobody: it fetches itself. */
  claim: (member: string) => { peerId: string; isHere: boolean } | undefined = () => undefined
  mayFetch: ArrivalsInit['mayFetch'] = () => true

  static async of(count: number): Promise<Crowd> {
    const crowd = new Crowd()
    for (let nth = 0; nth < count; nth++) await crowd.#add()
    return crowd
  }

  async #add(): Promise<void> {
    const id = peerIdOf(ephemeralNodeKey().publicKey)
    const store = this.#stack.use(new Store())
    const claims: string[] = []
    const shared: ArrivalsInit['shared'] = {
      claim: async (_digest, _size, network): Promise<Claim> => {
        claims.push(network)
        const other = this.claim(id)
        return { peerId: other?.peerId, isHere: other?.isHere ?? false, [Symbol.dispose]: () => undefined }
      },
      distrust: () => undefined,
    }
    const { blobs } = store
    const mayFetch: ArrivalsInit['mayFetch'] = (...asked) => this.mayFetch(...asked)
    const uploads = this.#stack.use(new Uploads())
    const { log } = recordingLog()
    const arrivals = this.#stack.use(new Arrivals({ self: id, blobs, holdings: blobs, shared, mayFetch, uploads, log }))
    this.members.push({ id, arrivals, store, claims })
    this.#stack.use(await arrivals.serve(NETWORK, this.#scopeOf(id)))
  }

  #scopeOf(id: string): ArrivalScope {
    return {
      openStream: async (peerId) => await this.open(peerId, id),
      handle: async (_protocol, handler) => void this.#handlers.set(id, handler),
      unhandle: async () => void this.#handlers.delete(id),
    }
  }

  async open(peerId: string, from: string): Promise<Stream> {
    const handler = this.#handlers.get(peerId)
    if (!handler) throw new Error('it is not there')
    const [near, far] = streamPair()
    void Promise.resolve(handler(far, from)).catch((error: Error) => far.abort(error))
    return near
  }

  at(nth: number) {
    return this.members[nth] as (typeof this.members)[number]
  }

  want(nth: number, more: Partial<WantedBlob> = {}): Promise<BlobSource> {
    const { arrivals } = this.at(nth)
    return arrivals.open(
      {
        digest,
        sizeBytes: bytes.byteLength,
        network: NETWORK,
        fromOutside: (from, signal) => this.outside.from(from, signal),
        fromHolder: async () => {
          throw new AgentError('not-found', 'not from there')
        },
        ...more,
      },
      never,
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

async function all(source: BlobSource): Promise<Buffer> {
  try {
    return Buffer.concat(await Array.fromAsync(source.read(0, source.sizeBytes, never)))
  } finally {
    await source.close?.()
  }
}

let crowd: Crowd
afterEach(async () => await crowd[Symbol.asyncDispose]())

describe('a blob from outside', () => {
  it('is read while it arrives, by several at once, and kept for the network', async () => {
    crowd = await Crowd.of(1)
    crowd.outside.limitBytes = 10 * CHUNK
    const source = await crowd.want(0)
    const first = Buffer.concat(await Array.fromAsync(source.read(0, CHUNK, never)))
    expect(first.equals(bytes.subarray(0, CHUNK))).toBe(true)
    const other = crowd.want(0).then(all)
    crowd.outside.limitBytes = Number.POSITIVE_INFINITY
    expect((await all(source)).equals(bytes)).toBe(true)
    expect((await other).equals(bytes)).toBe(true)
    expect(crowd.outside.givenBytes).toBe(bytes.byteLength)
    expect([...crowd.at(0).store.blobs.networksOf(digest)]).toEqual([NETWORK])
    expect((await all(await crowd.want(0))).equals(bytes)).toBe(true)
    expect(crowd.outside.askedFrom).toEqual([0])
  })

  it('that is another one is not read to its end, and not kept', async () => {
    crowd = await Crowd.of(1)
    crowd.outside.content = Buffer.concat([bytes.subarray(0, -1), Buffer.from([(bytes.at(-1) ?? 0) ^ 1])])
    const source = await crowd.want(0)
    const got: Uint8Array[] = []
    const reading = async () => {
      for await (const chunk of source.read(0, source.sizeBytes, never)) got.push(chunk)
    }
    await expect(reading()).rejects.toMatchObject({ code: 'corrupt' })
    expect(Buffer.concat(got).byteLength).toBeLessThan(bytes.byteLength)
    expect(crowd.at(0).store.blobs.has(digest)).toBe(false)
    await source.close?.()
  })

  it('goes on where it was cut, and fails when nothing more comes', async () => {
    crowd = await Crowd.of(1)
    crowd.outside.limitBytes = 5 * CHUNK
    const source = await crowd.want(0)
    await Array.fromAsync(source.read(0, 5 * CHUNK, never))
    crowd.outside.isBroken = true
    await expect(Array.fromAsync(source.read(0, source.sizeBytes, never))).rejects.toMatchObject({ code: 'failed' })
    expect(crowd.outside.askedFrom.slice(0, 2)).toEqual([0, 5 * CHUNK])
    await source.close?.()
    crowd.outside.isBroken = false
    crowd.outside.limitBytes = Number.POSITIVE_INFINITY
    expect((await all(await crowd.want(0))).equals(bytes)).toBe(true)
  })
})

describe('members who want the same', () => {
  it('follow the one that fetches it, two each, and the outside gives one copy', async () => {
    crowd = await Crowd.of(6)
    const [root] = crowd.members.map(({ id }) => id)
    crowd.claim = (member) => (member === root ? undefined : { peerId: root ?? '', isHere: false })
    crowd.outside.limitBytes = 4 * CHUNK
    const sources = await Promise.all(crowd.members.map((_, nth) => crowd.want(nth)))
    const read = Promise.all(sources.map(all))
    await delay(50)
    crowd.outside.limitBytes = Number.POSITIVE_INFINITY
    expect((await read).every((one) => one.equals(bytes))).toBe(true)
    expect(crowd.outside.givenBytes).toBe(bytes.byteLength)
  })

  it('go on from outside when the one that they follow fails, from where they are', async () => {
    crowd = await Crowd.of(2)
    const [root] = crowd.members.map(({ id }) => id)
    let isRootThere = true
    crowd.claim = (member) => (member === root || !isRootThere ? undefined : { peerId: root ?? '', isHere: false })
    crowd.outside.limitBytes = 8 * CHUNK
    const [, second] = await Promise.all([crowd.want(0), crowd.want(1)])
    if (!second) throw new Error('nothing')
    const start = await Array.fromAsync(second.read(0, 6 * CHUNK, never))
    expect(Buffer.concat(start).equals(bytes.subarray(0, 6 * CHUNK))).toBe(true)
    isRootThere = false
    crowd.outside.limitBytes = Number.POSITIVE_INFINITY
    await crowd.at(0).arrivals[Symbol.asyncDispose]()
    expect((await all(second)).equals(bytes)).toBe(true)
    expect(crowd.outside.askedFrom.at(-1)).toBeGreaterThan(0)
  })

  it('are given nothing that they may not have, and nothing of what is not here', async () => {
    crowd = await Crowd.of(2)
    const [one, two] = crowd.members.map(({ id }) => id)
    await all(await crowd.want(0))
    const asks = async (from: number) => {
      const frames = new Frames(await crowd.open(one ?? '', two ?? ''))
      await frames.write(encodeArrivingRequest({ digest: Buffer.from(digest, 'hex'), from }), never)
      return Buffer.from((await frames.read(never)) ?? []).toString('latin1')
    }
    expect(await asks(0)).toContain('sizeBytes')
    expect(await asks(bytes.byteLength + 1)).toContain('range')
    crowd.mayFetch = () => false
    expect(await asks(0)).toContain('absent')
    expect(ARRIVING_PROTOCOL).toMatch(/\/1$/)
  })

  it('take it from who has all of it, and from outside when he does not give it', async () => {
    crowd = await Crowd.of(2)
    const [one] = crowd.members.map(({ id }) => id)
    crowd.claim = () => ({ peerId: one ?? '', isHere: true })
    const given: string[] = []
    const fromHolder = async (peerId: string) => {
      given.push(peerId)
      return { sizeBytes: 1, read: async function* () {} } as BlobSource
    }
    await crowd.want(1, { fromHolder })
    expect(given).toEqual([one])
    expect((await all(await crowd.want(1))).equals(bytes)).toBe(true)
    expect(crowd.outside.givenBytes).toBe(bytes.byteLength)
  })
})
