/** Members that want the same blob from upstream: one fetches it, whoever asks when, and whoever misbehaves. */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { afterEach, describe, expect, it } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import { SharedFetches, type SharedScope } from '../../../agent/nix/shared-fetches.ts'
import { streamPair } from '../../stream-pair.ts'
import { memoryLog } from './peers.ts'

const HOME = 'ab'.repeat(32)
const signal = AbortSignal.timeout(30_000)
const digestOf = (nth: number) => createHash('sha256').update(`${nth}`).digest('hex')

/** Members that are all connected, with links that take a moment. */
class Town {
  readonly members = new Map<string, Member>()
  readonly stack = new AsyncDisposableStack()

  async join(count: number): Promise<Member[]> {
    for (let nth = 0; nth < count; nth++) {
      const member = new Member(this, peerIdFromPrivateKey(await generateKeyPair('Ed25519')).toString())
      this.stack.use(await member.shared.serve(HOME, member.scope()))
      this.members.set(member.peerId, member)
    }
    return [...this.members.values()]
  }
}

class Member {
  readonly peerId: string
  readonly has = new Set<string>()
  readonly shared: SharedFetches
  /** Fetches from upstream. */
  fetched: string[] = []
  isSilent = false
  isBarred = false
  /** Says that it has everything. */
  isBoasting = false
  fails = false
  latencyMs = 2
  readonly #town: Town
  #handler: Parameters<SharedScope['handle']>[1] | undefined

  constructor(town: Town, peerId: string) {
    this.#town = town
    this.peerId = peerId
    this.shared = town.stack.use(
      new SharedFetches({
        self: peerId,
        gives: (digest) => this.isBoasting || this.has.has(digest),
        mayFetch: (asker) => !(town.members.get(asker)?.isBarred ?? false),
        fetcher: {
          fetch: async (digest, { sources }) => {
            for await (const source of sources) {
              await delay(5)
              if (!town.members.get(source)?.has.has(digest)) continue
              this.has.add(digest)
              return
            }
            throw new AgentError('not-found', 'no peer has it')
          },
        },
        claimMs: 150,
        log: memoryLog(),
      }),
    )
  }

  want(digest: string): Promise<void> {
    const fetch = async () => {
      this.fetched.push(digest)
      await delay(60)
      if (this.fails) throw new AgentError('failed', 'upstream is down')
      this.has.add(digest)
    }
    return this.shared.once(digest, 1_000, HOME, fetch, signal)
  }

  scope(): SharedScope {
    return {
      connected: () => [...this.#town.members.keys()].filter((peerId) => peerId !== this.peerId),
      openStream: async (peerId) => {
        const other = this.#town.members.get(peerId)
        await delay(this.latencyMs + (other?.latencyMs ?? 0) * Math.random())
        const [near, far] = streamPair()
        if (!other?.isSilent) void Promise.resolve(other?.answer(far, this.peerId)).catch(() => undefined)
        return near
      },
      handle: async (_protocol, handler) => {
        this.#handler = handler
      },
      unhandle: async () => undefined,
    }
  }

  answer(stream: Parameters<Parameters<SharedScope['handle']>[1]>[0], asker: string) {
    return this.#handler?.(stream, asker)
  }
}

let town = new Town()
afterEach(async () => {
  await town.stack.disposeAsync()
  town = new Town()
})
const copies = (members: Member[]) => members.reduce((sum, { fetched }) => sum + fetched.length, 0)

describe('a blob from upstream', () => {
  it('is fetched once by eight that ask at the same moment', async () => {
    const members = await town.join(8)
    for (let nth = 0; nth < 10; nth++) {
      await Promise.all(members.map((member) => member.want(digestOf(nth))))
      for (const member of members) expect(member.has.has(digestOf(nth))).toBe(true)
    }
    // Each blob once; a race that is lost costs a copy, and is rare.
    expect(copies(members)).toBeGreaterThanOrEqual(10)
    expect(copies(members)).toBeLessThanOrEqual(11)
  })

  it('is taken from who has it, or fetches it already', async () => {
    const members = await town.join(3)
    const [a, b, c] = members as [Member, Member, Member]
    const first = a.want(digestOf(1))
    await delay(30)
    await Promise.all([first, b.want(digestOf(1))])
    await c.want(digestOf(1))
    expect(members.map(({ fetched }) => fetched.length)).toEqual([1, 0, 0])
  })

  it('is fetched by the next when the first one fails', async () => {
    const members = await town.join(3)
    const [a, ...others] = members as [Member, Member, Member]
    a.fails = true
    const first = a.want(digestOf(1)).catch((error: Error) => error.message)
    await delay(30)
    await Promise.all(others.map((member) => member.want(digestOf(1))))
    expect(await first).toBe('upstream is down')
    expect(copies(others)).toBe(1)
  })

  it('waits once for a member that is silent, and not long', async () => {
    const [a, b] = (await town.join(2)) as [Member, Member]
    b.isSilent = true
    const startMs = performance.now()
    for (let nth = 0; nth < 5; nth++) await a.want(digestOf(nth))
    expect(performance.now() - startMs).toBeLessThan(3 * 150 + 5 * 60 + 300)
    expect(a.fetched).toHaveLength(5)
  })

  it('is fetched all the same when a member says what is not so', async () => {
    const [a, b] = (await town.join(2)) as [Member, Member]
    b.isBoasting = true
    await a.want(digestOf(1))
    expect(a.has.has(digestOf(1))).toBe(true)
    expect(a.fetched).toHaveLength(1)
  })

  it('is not told of to who may not fetch', async () => {
    const [a, b] = (await town.join(2)) as [Member, Member]
    b.isBarred = true
    await a.want(digestOf(1))
    await b.want(digestOf(1))
    expect([a.fetched.length, b.fetched.length]).toEqual([1, 1])
  })

  it('ends with who wanted it', async () => {
    const [a, b] = (await town.join(2)) as [Member, Member]
    const stop = new AbortController()
    const slow = b.shared.once(
      digestOf(1),
      1,
      HOME,
      () => delay(5_000, undefined, { signal: stop.signal }),
      stop.signal,
    )
    await delay(50)
    const leave = new AbortController()
    const waiting = a.shared.once(digestOf(1), 1, HOME, async () => undefined, leave.signal)
    await delay(50)
    leave.abort(new AgentError('cancelled', 'gone'))
    await expect(waiting).rejects.toThrow('gone')
    stop.abort()
    await expect(slow).rejects.toThrow()
  })

  it('is claimed by one at a time, who tells the others that it comes until he lets go', async () => {
    const members = await town.join(3)
    const [a, b, c] = members as [Member, Member, Member]
    const claims = (member: Member) => member.shared.claim(digestOf(1), 1_000, HOME, signal)
    {
      using first = await claims(a)
      expect(first.peerId).toBeUndefined()
      expect(await claims(b)).toMatchObject({ peerId: a.peerId, isHere: false })
    }
    using second = await claims(b)
    expect(second.peerId).toBeUndefined()
    b.has.add(digestOf(1))
    expect((await claims(c)).peerId).toBe(b.peerId)
    // In a network that nothing is shared in it is anybody's own to fetch.
    expect((await a.shared.claim(digestOf(1), 1_000, 'cd'.repeat(32), signal)).peerId).toBeUndefined()
  })
})
