/** What is known of a store's paths, asked over streams: together, in time, of peers who answer and of some who don't. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Holder } from '../../../agent/catalog/filters.ts'
import type { PathInfo } from '../../../agent/nix/nix-store.ts'
import { CacheKey, isSignedBy } from '../../../agent/nix/signing.ts'
import { type PathsScope, StorePaths } from '../../../agent/nix/store-paths.ts'
import { StorePeers } from '../../../agent/nix/store-peers.ts'
import { StoreRules } from '../../../agent/nix/store-rules.ts'
import { Frames } from '../../../protocols/frame.ts'
import { decodePathsRequest, encodePathsAnswer } from '../../../protocols/paths/exchange.ts'
import { until } from '../../agents.ts'
import { streamPair } from '../../stream-pair.ts'
import { memoryLog } from './peers.ts'

const HOME = 'ab'.repeat(32)
const signal = AbortSignal.timeout(30_000)
const directory = mkdtempSync(join(tmpdir(), 'store-paths-'))
const key = CacheKey.loadOrMake(join(directory, 'cache.key'), 'builder')
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const hashPart = (nth: number) => String(nth).padStart(32, '0')
const info = (nth: number, given: Partial<PathInfo> = {}): PathInfo => ({
  path: `/nix/store/${hashPart(nth)}-some`,
  narHash: String(nth).padStart(64, '0'),
  narSize: 1_000 + nth,
  references: [`/nix/store/${hashPart(nth)}-some`],
  signatures: [],
  ca: undefined,
  deriver: undefined,
  ultimate: true,
  ...given,
})

type Handler = Parameters<PathsScope['handle']>[1]

/** Nodes that can open streams to each other, and what is wrong with them. */
class Town {
  readonly #handlers = new Map<string, Handler>()
  opened = 0
  dialMs = 0

  scopeOf(self: string): PathsScope {
    return {
      openStream: async (peerId) => {
        this.opened++
        await delay(this.dialMs)
        const [near, far] = streamPair()
        const handler = this.#handlers.get(peerId)
        if (handler === undefined) throw new Error('it cannot be reached')
        void handler(far, self)
        return near
      },
      handle: async (_protocol, handler) => void this.#handlers.set(self, handler),
      unhandle: async () => void this.#handlers.delete(self),
    }
  }
}

let town: Town
let paths: Map<string, PathInfo>
let isShared: boolean
let barred: Set<string>
let stack: AsyncDisposableStack
beforeEach(() => {
  town = new Town()
  paths = new Map()
  isShared = true
  barred = new Set()
  stack = new AsyncDisposableStack()
})
afterEach(() => stack.disposeAsync())

async function joins(self: string, store: ReadonlyMap<string, PathInfo> = new Map(), answerMs = 2_000) {
  const node = stack.use(
    new StorePaths({
      index: { byHashPart: (one) => store.get(one) },
      isShared: () => isShared,
      rules: () => new StoreRules(['*.drv', 'private-*']),
      storeDirectory: '/nix/store',
      key,
      mayFetch: (peerId) => !barred.has(peerId),
      log: memoryLog(),
      answerMs,
    }),
  )
  stack.use(await node.serve(HOME, town.scopeOf(self)))
  return node
}

describe('asked of a peer', () => {
  it('is what its Nix says, signed by it where nobody else has, with the deriver if its name may be told', async () => {
    const deriver = (name: string) => `/nix/store/${hashPart(9)}-${name}.drv`
    paths.set(hashPart(1), info(1, { deriver: deriver('some') }))
    paths.set(hashPart(2), info(2, { deriver: deriver('private-key'), ultimate: false, signatures: ['x-1:AAAA'] }))
    await joins('builder', paths)
    const asker = await joins('asker')
    const [one, two, none] = await Promise.all(
      [1, 2, 3].map((nth) => asker.ask('builder', HOME, hashPart(nth), signal)),
    )
    expect(one).toMatchObject({
      path: info(1).path,
      narHash: info(1).narHash,
      narSize: 1_001,
      deriver: deriver('some'),
    })
    expect(one && isSignedBy(key.publicKey, one, one.signatures[0] ?? '')).toBe(true)
    expect(two).toMatchObject({ references: info(2).references, deriver: undefined })
    expect(two?.signatures.every((signature) => !signature.startsWith(key.publicKey.name))).toBe(true)
    expect(none).toBeUndefined()
    // All that was asked at the same time went over one stream.
    expect(town.opened).toBe(1)
  })

  it('is the same nothing where the store is not given out, to whom may not fetch, and for what is not there', async () => {
    paths.set(hashPart(1), info(1))
    paths.set(hashPart(2), info(2, { path: `/other/store/${hashPart(2)}-some` }))
    await joins('builder', paths)
    const asker = await joins('asker')
    expect(await asker.ask('builder', HOME, hashPart(2), signal)).toBeUndefined()
    isShared = false
    expect(await asker.ask('builder', HOME, hashPart(1), signal)).toBeUndefined()
    isShared = true
    barred.add('barred')
    const other = await joins('barred')
    expect(await other.ask('builder', HOME, hashPart(1), signal)).toBeUndefined()
    expect(await asker.ask('builder', HOME, hashPart(1), signal)).toBeDefined()
  })

  it('comes of hundreds at once, and of a peer that hangs up in between', async () => {
    for (let nth = 0; nth < 500; nth++) paths.set(hashPart(nth), info(nth))
    await joins('builder', paths)
    const asker = await joins('asker')
    const all = await Promise.all([...paths.keys()].map((one) => asker.ask('builder', HOME, one, signal)))
    expect(all.map((one) => one?.narSize)).toEqual(Array.from({ length: 500 }, (_, nth) => 1_000 + nth))
    expect(town.opened).toBe(1)
  })

  it('is given up in time, and the peer left alone for a while', async () => {
    const mute = town.scopeOf('mute')
    await mute.handle('', () => delay(60_000, undefined, { ref: false }), { maxInboundStreams: 1 })
    const asker = await joins('asker', new Map(), 60)
    const startMs = performance.now()
    await expect(asker.ask('mute', HOME, hashPart(1), signal)).rejects.toThrow()
    expect(performance.now() - startMs).toBeLessThan(2_000)
    expect([asker.isShunned('mute', HOME), asker.isShunned('builder', HOME)]).toEqual([true, false])
    await expect(asker.ask('nobody', HOME, hashPart(1), signal)).rejects.toThrow('cannot be reached')
    await expect(asker.ask('mute', 'cd'.repeat(32), hashPart(1), signal)).rejects.toThrow('not in the network')
  })

  it('is not waited for while the peer is dialled for long, and had when it is there', async () => {
    paths.set(hashPart(1), info(1))
    await joins('builder', paths)
    const asker = await joins('asker', new Map(), 100)
    town.dialMs = 400
    await expect(asker.ask('builder', HOME, hashPart(1), signal)).rejects.toThrow()
    // The clock of timers may be a millisecond ahead.
    await until(() => asker.isShunned('builder', HOME), { what: 'it takes long' })
    await until(() => !asker.isShunned('builder', HOME), { what: 'it is there' })
    expect(await asker.ask('builder', HOME, hashPart(1), signal)).toMatchObject({ path: info(1).path })
    expect(town.opened).toBe(1)
  })

  it('is refused when it is of another path, or no answer at all', async () => {
    const liar = town.scopeOf('liar')
    const answer = async (stream: Parameters<Handler>[0]) => {
      const frames = new Frames(stream)
      const request = decodePathsRequest((await frames.read(signal)) ?? new Uint8Array())
      const [asked] = request.paths
      const nar = new Uint8Array(32)
      const lie = { path: info(7).path, nar, sizeBytes: 1, references: [], signatures: [] }
      await frames.write(asked === hashPart(1) ? encodePathsAnswer({ paths: [lie] }) : new Uint8Array([0xff]), signal)
    }
    await liar.handle('', answer, { maxInboundStreams: 1 })
    const asker = await joins('asker')
    await expect(asker.ask('liar', HOME, hashPart(1), signal)).rejects.toThrow(`for ${hashPart(1)}`)
    await expect(asker.ask('liar', HOME, hashPart(2), signal)).rejects.toMatchObject({ code: 'malformed' })
    expect(asker.isShunned('liar', HOME)).toBe(true)
  })
})

describe('found among peers', () => {
  const holder = (peerId: string, signer = ''): Holder => ({ peerId, signer, network: HOME })
  function peersOf(all: readonly Holder[], said: Record<string, PathInfo | 'silent' | undefined>) {
    const asked: string[] = []
    const peers = new StorePeers({
      holders: () => all,
      paths: {
        isShunned: (peerId) => peerId === 'shunned',
        ask: async (peerId) => {
          asked.push(peerId)
          const facts = said[peerId]
          if (facts === 'silent') throw new Error('silent')
          return facts
        },
      },
      isConnected: (peerId) => peerId.startsWith('near'),
      isTrusted: (signer) => signer === 'trusted',
    })
    return { peers, asked }
  }

  it('is asked first of those who are near and trusted, and never of those who were silent', () => {
    const all = [
      holder('far'),
      holder('near'),
      holder('far-trusted', 'trusted'),
      holder('shunned'),
      holder('near-trusted', 'trusted'),
    ]
    const { peers } = peersOf(all, {})
    const order = ['near-trusted', 'near', 'far-trusted', 'far']
    expect(peers.holders(hashPart(1)).map(({ peerId }) => peerId)).toEqual(order)
  })

  it('is taken of the first whose word is believed, whoever else has nothing, is silent or is not', async () => {
    const all = ['near-1', 'near-2', 'a', 'b', 'c'].map((peerId) => holder(peerId))
    const said = { 'near-1': undefined, 'near-2': 'silent' as const, a: info(1), b: info(2), c: info(3) }
    const { peers, asked } = peersOf(all, said)
    const judge = ({ peerId }: { peerId: string }, facts: { narSize: number }) =>
      peerId === 'a' ? undefined : facts.narSize
    expect(await peers.find(hashPart(1), judge, signal)).toBe(1_002)
    expect(asked.slice(0, 2)).toEqual(['near-1', 'near-2'])
    await expect(peersOf(all, {}).peers.find(hashPart(1), judge, signal)).rejects.toThrow()
    await expect(peersOf([], {}).peers.find(hashPart(1), judge, signal)).rejects.toThrow()
  })
})
