/**
 * Content is for networks: a peer gets what was published in a network that it is in, or came from peers there, and learns nothing of the
 * rest, not even that it is here.
 */
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import type { BlobHolder } from '../../../agent/content/content.ts'
import { Fetcher } from '../../../agent/content/fetcher.ts'
import { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { listOf } from '../../../agent/content/piece-lists.ts'
import {
  OPEN_NETWORK_ID,
  PUBLICATION_PIN,
  publicationKey,
  publicationOf,
} from '../../../agent/content/publication-key.ts'
import { PieceServer } from '../../../agent/content/server.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  encodeRequest,
  PIECES_PROTOCOL,
  PieceAsker,
  type PieceHolder,
  type PieceRequest,
} from '../../../protocols/pieces/exchange.ts'
import { PIECE_BYTES, pieceBytes } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer, Store, until } from './peers.ts'

const [N1, N2] = ['11', '22'].map((byte) => byte.repeat(32)) as [string, string]
const NETWORKS = [OPEN_NETWORK_ID, N1, N2]
const BLOB = pattern(5 * PIECE_BYTES + 9)
const { digest: DIGEST, hashes: HASHES } = digestOf(BLOB)
const LIST = listOf(BLOB.byteLength, HASHES)
const ABSENT = digestOf(pattern(7)).digest
const bytesOf = (hex: string) => Buffer.from(hex, 'hex')

const known = new Map()
let member: Peer
let other: Peer
let stranger: Peer
beforeAll(async () => {
  ;[member, other, stranger] = await Promise.all([Peer.start(known), Peer.start(known), Peer.start(known)])
})
afterAll(async () => {
  for (const peer of [member, other, stranger]) await peer[Symbol.asyncDispose]()
})

/** Everybody is in the open network, `member` in N1, `other` in N2. */
function grants() {
  const members = new Map([
    [N1, new Set([member.peerId])],
    [N2, new Set([other.peerId])],
  ])
  const mayFetch = (peerId: string, network: string) =>
    network === OPEN_NETWORK_ID || members.get(network)?.has(peerId) === true
  return { members, mayFetch }
}

async function node(options: Parameters<typeof ContentNode.start>[1] = {}): Promise<ContentNode> {
  const started = await ContentNode.start(known, { mayFetch: grants().mayFetch, ...options })
  onTestFinished(() => started[Symbol.asyncDispose]())
  return started
}

/** What a peer is answered to every kind of request about a blob, asked in a network. */
async function answers(of: { peerId: string }, by: Peer, digest: string, network: string): Promise<string[]> {
  const name = bytesOf(digest)
  const requests: PieceRequest[] = [
    { op: 'have', digests: [name] },
    { op: 'have', digests: [name, bytesOf(ABSENT), name] },
    { op: 'hashes', digest: name, from: 0, count: 0 },
    { op: 'hashes', digest: name, from: 1, count: 8_192 },
    { op: 'get', digest: name, from: 0, count: 1 },
    { op: 'get', digest: name, from: 5, count: 16 },
  ]
  const answered: string[] = []
  for (const request of requests) {
    const stream = await by.streams.openStream(of.peerId, PIECES_PROTOCOL, never)
    const frames = new Frames(stream)
    const inNetwork = network === OPEN_NETWORK_ID ? {} : { network: bytesOf(network) }
    await frames.write(encodeRequest({ ...request, ...inNetwork }), never)
    answered.push(Buffer.from((await frames.read(never)) ?? []).toString('hex'))
    stream.abort(new Error('asked enough'))
  }
  return answered
}

/** The networks in which each of the three peers gets a blob; in all others it is answered as for one that is not here. */
async function servedIn(of: { peerId: string }, digest: string): Promise<Record<string, string[]>> {
  const served: Record<string, string[]> = {}
  for (const [name, peer] of Object.entries({ member, other, stranger })) {
    served[name] = []
    for (const network of NETWORKS) {
      const [given, absent] = [await answers(of, peer, digest, network), await answers(of, peer, ABSENT, network)]
      const isSame = given.map((one, at) => one === absent[at])
      expect(new Set(isSame).size, `${name} in ${network} gets all or nothing`).toBe(1)
      if (!isSame[0]) served[name].push(network)
    }
  }
  return served
}

async function asker(of: { peerId: string }, by: Peer, network: string): Promise<PieceAsker> {
  const frames = new Frames(await by.streams.openStream(of.peerId, PIECES_PROTOCOL, never))
  return new PieceAsker(frames, bytesOf(network))
}

describe('a peer that asks', () => {
  test('gets what is published in its network, asked there; who is not in it gets the answers for what is absent', async () => {
    const serving = await node()
    await serving.store.publish(BLOB, N1)
    expect(await servedIn(serving, DIGEST)).toEqual({ member: [N1], other: [], stranger: [] })
  })

  test('gets in each network what is published in it, and what is for nobody in none', async () => {
    const serving = await node()
    await serving.store.publish(BLOB, N1)
    await serving.store.publish(BLOB)
    const { digest } = await serving.store.blobs.write(undefined, [pattern(1_000)], never, { pin: 'temporary:upload' })
    const all = [OPEN_NETWORK_ID]
    expect(await servedIn(serving, DIGEST)).toEqual({ member: [OPEN_NETWORK_ID, N1], other: all, stranger: all })
    expect(await servedIn(serving, digest)).toEqual({ member: [], other: [], stranger: [] })
  })

  test('is judged anew with every request on a stream', async () => {
    const { members, mayFetch } = grants()
    const serving = await node()
    await serving.server[Symbol.asyncDispose]()
    const { store, peer } = serving
    await using _server = await PieceServer.start({
      streams: peer.streams,
      holdings: store.blobs,
      lists: store.lists,
      mayFetch,
      log: store.log,
    })
    await store.publish(BLOB, N1)
    const asking = await asker(serving, member, N1)
    const get = async () => {
      await asking.askGet(bytesOf(DIGEST), 0, 1, never)
      await asking.readInto(new Uint8Array(await asking.readGet(never)), never)
    }
    const hashes = () => asking.hashes(bytesOf(DIGEST), { sizeBytesMax: 2 ** 30 }, never)
    await get()
    members.get(N1)?.delete(member.peerId)
    await expect(get()).rejects.toMatchObject({ code: 'absent' })
    await expect(hashes()).rejects.toMatchObject({ code: 'absent' })
    expect(await asking.have([bytesOf(DIGEST)], never)).toEqual([null])
    members.get(N1)?.add(member.peerId)
    await get()
    store.blobs.setPins(`${PUBLICATION_PIN}${publicationKey(N1, DIGEST)}`, [])
    await expect(get()).rejects.toMatchObject({ code: 'absent' })
  })

  test('and may not have it makes this node open nothing', async () => {
    using store = new Store()
    await using peer = await Peer.start(known)
    const opened: string[] = []
    const holdings: BlobHolder = {
      open: async (digest) => {
        opened.push(digest)
        return undefined
      },
      networksOf: (digest) => (digest === DIGEST ? [N1] : []),
    }
    const { mayFetch } = grants()
    await using _server = await PieceServer.start({
      streams: peer.streams,
      holdings,
      lists: store.lists,
      mayFetch,
      log: store.log,
    })
    expect(await servedIn(peer, DIGEST)).toEqual({ member: [], other: [], stranger: [] })
    // A member of N1 in N1, once for each request and digest.
    expect(opened).toEqual(Array.from({ length: 7 }, () => DIGEST))
  })
})

describe('what was fetched for a network', () => {
  test('is given on in that one only, also after a restart, whatever other networks name it', async () => {
    const [first, holder] = [await node(), await Peer.start(known)]
    onTestFinished(() => holder[Symbol.asyncDispose]())
    await serve(holder, liar(BLOB))
    await first.fetcher.fetch(DIGEST, { network: N1, sources: [holder.peerId], signal: never })
    for (const network of [N2, OPEN_NETWORK_ID]) {
      await first.fetcher.fetch(DIGEST, { network, sources: [holder.peerId], signal: never })
      await (await first.fetcher.open(DIGEST, { network, sources: [], signal: never })).close?.()
    }
    expect(await servedIn(first, DIGEST)).toEqual({ member: [N1], other: [], stranger: [] })

    await first.server[Symbol.asyncDispose]()
    using after = first.store.reopened()
    await using _server = await PieceServer.start({
      streams: first.peer.streams,
      holdings: after.blobs,
      lists: after.lists,
      mayFetch: grants().mayFetch,
      log: after.log,
    })
    expect(await servedIn(first, DIGEST)).toEqual({ member: [N1], other: [], stranger: [] })
  })

  test('is asked for in its network, so that who is in both gives nothing of one for the other', async () => {
    const [holding, fetching] = [await node({ mayFetch: () => true }), await node()]
    await holding.store.publish(BLOB, N1)
    const sources = [holding.peerId]
    for (const network of [N2, OPEN_NETWORK_ID]) {
      const fetch = fetching.fetcher.fetch(DIGEST, { network, sources, signal: never })
      await expect(fetch).rejects.toMatchObject({ code: 'not-found', message: expect.stringContaining('not have it') })
    }
    await fetching.fetcher.fetch(DIGEST, { network: N1, sources, signal: never })
    expect(fetching.store.blobs.networksOf(DIGEST)).toEqual(new Set([N1]))
  })

  test('is asked for in its network, also on a stream that is kept from another', async () => {
    const [fetching, holder] = [await node(), await Peer.start(known)]
    onTestFinished(() => holder[Symbol.asyncDispose]())
    const asked: string[] = []
    const blobs = NETWORKS.map((_network, seed) => pattern(2 * PIECE_BYTES, seed))
    const holderOf = (digest: Uint8Array) =>
      liar(blobs.find((one) => digestOf(one).digest === Buffer.from(digest).toString('hex')) ?? BLOB)
    const note = (network: Uint8Array | undefined) => {
      asked.push(network === undefined ? OPEN_NETWORK_ID : Buffer.from(network).toString('hex'))
    }
    await serve(holder, {
      ...liar(BLOB),
      hashes: async (digest, from, count, signal, network) => {
        note(network)
        return await holderOf(digest).hashes(digest, from, count, signal, network)
      },
      get: async (digest, from, count, signal, network) => {
        note(network)
        return await holderOf(digest).get(digest, from, count, signal, network)
      },
    })
    for (const [at, network] of NETWORKS.entries()) {
      const { digest } = digestOf(blobs[at] ?? BLOB)
      await fetching.fetcher.fetch(digest, { network, sources: [holder.peerId], signal: never })
    }
    expect(asked).toEqual(NETWORKS.flatMap((network) => [network, network]))
  })

  test.each([
    ['succeeds, and has no part in it', true, [N1]],
    ['fails, and then is its own', false, [N2]],
  ])('is waited for by who wants it for another, when it %s', async (_how, isGood, networks) => {
    const [fetching, holder, honest] = [await node(), await Peer.start(known), await Peer.start(known)]
    onTestFinished(async () => {
      for (const peer of [holder, honest]) await peer[Symbol.asyncDispose]()
    })
    const go = Promise.withResolvers<void>()
    const asked: string[] = []
    const recorded = (name: string, wait: Promise<void>, isHere: boolean): PieceHolder => ({
      ...liar(BLOB),
      hashes: async (digest, from, count, signal, network) => {
        asked.push(`${name} ${Buffer.from(network ?? []).toString('hex')}`)
        await wait
        return isHere ? await liar(BLOB).hashes(digest, from, count, signal, network) : { error: 'absent' }
      },
    })
    await serve(holder, recorded('first', go.promise, isGood))
    await serve(honest, recorded('second', Promise.resolve(), true))
    const first = fetching.fetcher.fetch(DIGEST, { network: N1, sources: [holder.peerId], signal: never })
    const outcome = first.then(
      () => true,
      () => false,
    )
    await until(() => asked.length === 1)
    const second = fetching.fetcher.fetch(DIGEST, { network: N2, sources: [honest.peerId], signal: never })
    const leaving = new AbortController()
    const third = fetching.fetcher.fetch(DIGEST, { network: N2, sources: [honest.peerId], signal: leaving.signal })
    leaving.abort()
    await expect(third).rejects.toMatchObject({ code: 'cancelled' })
    go.resolve()
    expect(await outcome).toBe(isGood)
    await second
    expect(asked).toEqual(isGood ? [`first ${N1}`] : [`first ${N1}`, `second ${N2}`])
    expect(fetching.store.blobs.networksOf(DIGEST)).toEqual(new Set(networks))
  })
})

describe('what was half fetched for a network', () => {
  const piece = (index: number) => BLOB.subarray(index * PIECE_BYTES).subarray(0, pieceBytes(BLOB.byteLength, index))

  async function halfFetched(network: string): Promise<Store> {
    const store = new Store()
    const partial = await PartialBlob.open(store.blobs, { digest: DIGEST, network }, LIST, never)
    for (const index of [0, 1, 3]) await partial.write(index, piece(index))
    await partial.leave()
    return store
  }

  test.each([
    ['the same network, goes on', N1, N1, 3],
    ['another network, begins anew', N1, N2, 0],
    ['the open network, begins anew', N1, OPEN_NETWORK_ID, 0],
    ['a closed network, begins anew', OPEN_NETWORK_ID, N1, 0],
  ])('and is fetched after a restart for %s', async (_how, before, network, pieces) => {
    using started = await halfFetched(before)
    using after = started.reopened()
    await using holder = await Peer.start(known)
    await serve(holder, liar(BLOB))
    await using fetcher = new Fetcher({
      blobs: after.blobs,
      streams: member.streams,
      self: member.peerId,
      log: after.log,
    })
    await fetcher.fetch(DIGEST, { network, sources: [holder.peerId], signal: never })
    expect(fetcher.fetchedBytes).toBe(BLOB.byteLength - pieces * PIECE_BYTES)
    expect(after.blobs.networksOf(DIGEST)).toEqual(new Set([network]))
    expect(Buffer.compare((await after.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
    expect(readdirSync(join(after.directory, 'blobs', 'partial'))).toEqual([])
    expect(after.index.partialBytes()).toBe(0)
  })

  test('is not taken for that of another when a power cut brought its row back', async () => {
    using before = await halfFetched(N1)
    writeFileSync(before.blobs.partialPathOf({ digest: DIGEST, network: N2 }), BLOB)
    before.blobs.index.putPartial({ digest: DIGEST, sizeBytes: BLOB.byteLength, network: N2 }, 0)
    using after = before.reopened()
    expect(readdirSync(join(after.directory, 'blobs', 'partial'))).toEqual([`${DIGEST}.${N2}`])
  })
})

describe('leaving a network', () => {
  test('takes what is here only for it, and leaves what others have a part in', async () => {
    const leaving = await node()
    const { store } = leaving
    const holder = await Peer.start(known)
    onTestFinished(() => holder[Symbol.asyncDispose]())
    const blobs = new Map([1, 2, 3, 4, 5].map((seed) => [digestOf(pattern(1_000, seed)).digest, pattern(1_000, seed)]))
    const [published = '', fetched = '', both = '', elsewhere = '', local = ''] = blobs.keys()
    const bytesFor = (digest: string) => blobs.get(digest) ?? new Uint8Array(0)
    await serve(holder, {
      ...liar(BLOB),
      get: (digest, ...rest) => liar(bytesFor(Buffer.from(digest).toString('hex'))).get(digest, ...rest),
    })
    const fetch = (digest: string, network: string) =>
      leaving.fetcher.fetch(digest, { network, sources: [holder.peerId], sizeBytes: 1_000, signal: never })
    await store.publish(bytesFor(published), N1)
    await fetch(fetched, N1)
    await fetch(both, N1)
    await store.publish(bytesFor(both), N2)
    await fetch(elsewhere, N2)
    await store.blobs.write(local, [bytesFor(local)], never)
    const partial = await PartialBlob.open(store.blobs, { digest: DIGEST, network: N1 }, LIST, never)
    await partial.write(0, BLOB.subarray(0, PIECE_BYTES))
    await partial.leave()
    expect(store.index.networks()).toEqual(new Set([N1, N2]))

    await leaving.fetcher.forgetNetwork(N1)
    store.blobs.forgetNetwork(N1)
    expect([...blobs.keys()].map((digest) => store.blobs.has(digest))).toEqual([false, false, true, true, true])
    expect([...blobs.keys()].map((digest) => existsSync(store.blobs.pathOf(digest)))).toEqual([
      false,
      false,
      true,
      true,
      true,
    ])
    expect(store.blobs.stats).toMatchObject({ blobs: 3, bytes: 3_000 })
    expect(store.index.partialBytes()).toBe(0)
    expect(store.index.networks()).toEqual(new Set([N2]))
    expect(readdirSync(join(store.directory, 'blobs', 'partial'))).toEqual([])
    using after = store.reopened()
    expect(after.blobs.networksOf(both)).toEqual(new Set([N2]))
  })

  test('ends its fetches, and no others', async () => {
    const fetching = await node()
    const holder = await Peer.start(known)
    onTestFinished(() => holder[Symbol.asyncDispose]())
    const go = Promise.withResolvers<void>()
    let asked = 0
    await serve(holder, {
      ...liar(BLOB),
      hashes: async (...request) => {
        asked++
        await go.promise
        return await liar(BLOB).hashes(...request)
      },
    })
    const fetch = (digest: string, network: string) =>
      fetching.fetcher.fetch(digest, { network, sources: [holder.peerId], signal: never })
    const ended = expect(fetch(ABSENT, N1)).rejects.toMatchObject({ code: 'cancelled', message: /left the network/ })
    const goingOn = fetch(DIGEST, N2)
    await until(() => asked === 2)
    await fetching.fetcher.forgetNetwork(N1)
    await ended
    go.resolve()
    await goingOn
  })
})

describe('networks of a blob', () => {
  test('are those that a key says', () => {
    for (const network of NETWORKS)
      expect(publicationOf(publicationKey(network, 'a-name_1.0'))).toEqual({ network, name: 'a-name_1.0' })
    expect(publicationKey(OPEN_NETWORK_ID, 'as-before')).toBe('as-before')
    expect(() => publicationKey(OPEN_NETWORK_ID, `${N1}/forged`)).toThrow(TypeError)
  })

  test('end with the publication there, although it was fetched there before', async () => {
    using store = new Store()
    await act(store, { do: 'fetch', blob: BLOB.subarray(0, 100), network: N1 })
    const { digest } = await store.publish(BLOB.subarray(0, 100), N1, 'a')
    await store.publish(BLOB.subarray(0, 100), N2, 'a')
    await act(store, { do: 'withdraw', network: N1, name: 'a' })
    expect(store.blobs.networksOf(digest)).toEqual(new Set([N2]))
    await act(store, { do: 'withdraw', network: N2, name: 'a' })
    expect(store.blobs.has(digest)).toBe(false)
  })

  test('of a state from before there were closed ones are the open one, where it was given out', () => {
    const db = openDatabase(':memory:')
    db.exec(`
      CREATE TABLE content_blobs (
        digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE content_pins (
        digest TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (digest, reason)
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE content_partials (
        digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      INSERT INTO schema_versions VALUES ('content', 1);
      INSERT INTO content_blobs VALUES ('fetched', 1, 1), ('published', 1, 1), ('uploading', 1, 1);
      INSERT INTO content_pins VALUES ('published', 'artifact:a'), ('uploading', 'temporary:1');
      INSERT INTO content_partials VALUES ('half', 1, 1);
    `)
    const index = new BlobIndex(db)
    const networks = ['fetched', 'published', 'uploading'].map((digest) => [...index.networksOf(digest)])
    expect(networks).toEqual([[OPEN_NETWORK_ID], [OPEN_NETWORK_ID], []])
    expect(index.partial('half')).toMatchObject({ network: OPEN_NETWORK_ID, sizeBytes: 1 })
  })

  const BLOBS = [1, 2].map((seed) => pattern(100, seed))
  const blob = fc.integer({ min: 0, max: BLOBS.length - 1 }).map((at) => BLOBS[at] as Uint8Array)
  const network = fc.constantFrom(...NETWORKS)
  const name = fc.constantFrom('a', 'b')
  const step = fc.oneof(
    fc.record({ do: fc.constant('publish' as const), blob, network, name }),
    fc.record({ do: fc.constant('withdraw' as const), network, name }),
    fc.record({ do: fc.constant('fetch' as const), blob, network }),
    fc.record({ do: fc.constant('leave' as const), network }),
    fc.record({ do: fc.constant('restart' as const) }),
  )
  type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

  test('are what was published, fetched, withdrawn and left, in any order', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30, size: 'max' }), async (steps) => {
        let store = new Store()
        const model = new Model()
        try {
          for (const one of steps) {
            if (one.do === 'restart') store = store.reopened()
            else await act(store, one)
            model.act(one)
            for (const { digest } of BLOBS.map(digestOf)) {
              expect(store.blobs.networksOf(digest)).toEqual(model.networksOf(digest))
              expect(store.blobs.has(digest)).toBe(model.here.has(digest))
            }
          }
          expect(store.blobs.stats.bytes).toBe(100 * model.here.size)
        } finally {
          store[Symbol.dispose]()
        }
      }),
      { numRuns: 60 },
    )
  })

  async function act(store: Store, one: Exclude<Step, { do: 'restart' }>): Promise<void> {
    if (one.do === 'publish') {
      const { digest } = await store.publish(one.blob, one.network, one.name)
      store.blobs.setPins(`${PUBLICATION_PIN}${publicationKey(one.network, one.name)}`, [digest])
    } else if (one.do === 'withdraw') {
      store.blobs.setPins(`${PUBLICATION_PIN}${publicationKey(one.network, one.name)}`, [])
    } else if (one.do === 'leave') {
      store.blobs.forgetNetwork(one.network)
    } else {
      const { digest, hashes } = digestOf(one.blob)
      if (store.blobs.has(digest)) return
      const partial = await PartialBlob.open(
        store.blobs,
        { digest, network: one.network },
        listOf(one.blob.byteLength, hashes),
        never,
      )
      await partial.write(0, one.blob)
      expect(await partial.finish(never)).toBe('whole')
      await partial.leave()
    }
  }

  class Model {
    readonly here = new Set<string>()
    /** By network and name. */
    readonly published = new Map<string, { network: string; digest: string }>()
    readonly fetched = new Set<string>()

    networksOf(digest: string): Set<string> {
      const published = [...this.published.values()].filter((one) => one.digest === digest)
      return new Set([
        ...published.map((one) => one.network),
        ...NETWORKS.filter((one) => this.fetched.has(`${one} ${digest}`)),
      ])
    }

    act(one: Step): void {
      if (one.do === 'publish') this.#publish(one.network, one.name, digestOf(one.blob).digest)
      if (one.do === 'withdraw') this.#publish(one.network, one.name, undefined)
      if (one.do === 'fetch') {
        const { digest } = digestOf(one.blob)
        if (!this.here.has(digest)) this.fetched.add(`${one.network} ${digest}`)
        this.here.add(digest)
      }
      if (one.do === 'leave') {
        for (const [key, { network }] of this.published) if (network === one.network) this.published.delete(key)
        for (const digest of this.here) this.fetched.delete(`${one.network} ${digest}`)
      }
      for (const digest of this.here) if (this.networksOf(digest).size === 0) this.here.delete(digest)
    }

    #publish(network: string, name: string, digest: string | undefined): void {
      const key = `${network} ${name}`
      const before = this.published.get(key)
      if (before && before.digest !== digest) this.fetched.delete(`${network} ${before.digest}`)
      if (digest === undefined) this.published.delete(key)
      else {
        this.published.set(key, { network, digest })
        this.here.add(digest)
      }
    }
  }
})
