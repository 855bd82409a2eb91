/** Links that die without a word: how soon that is noticed depends on who waits, and a live one is asked as little as may be. */
import type { Connection } from '@libp2p/interface'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Liveness } from '../../../agent/mesh/liveness.ts'
import { quiet } from './nodes.ts'

/** A sealed ping, and more than one. */
const PING_BYTES = 30
const DATA_BYTES = 1_000

// The clock of node:timers/promises is not vitest's to turn.
vi.mock('node:timers/promises', () => ({
  setTimeout: (ms: number, _value: unknown, { signal }: { signal?: AbortSignal } = {}) =>
    new Promise<void>((resolve, reject) => {
      if (signal?.aborted) reject(signal.reason as Error)
      const timer = setTimeout(resolve, ms)
      signal?.addEventListener('abort', () => {
        clearTimeout(timer)
        reject(signal.reason as Error)
      })
    }),
}))

/** A connection whose other end answers pings as long as it lives. */
class Link {
  isAlive = true
  pings = 0
  abortedMs: number | undefined
  readonly #heard = new Set<(event: { data: Uint8Array }) => void>()
  readonly connection = {
    id: String(Math.random()),
    status: 'open',
    remotePeer: 'pear',
    addEventListener: () => undefined,
    abort: () => {
      this.abortedMs ??= performance.now()
    },
    maConn: {
      addEventListener: (_: string, listener: (event: { data: Uint8Array }) => void) => this.#heard.add(listener),
      send: (data: Uint8Array) => data.byteLength > 0,
    },
    muxer: {
      ping: async () => {
        this.pings++
        this.send(PING_BYTES)
        if (!this.isAlive) return await new Promise<number>(() => undefined)
        await Promise.resolve()
        this.hear(PING_BYTES)
        return 1
      },
    },
  }

  hear(bytes: number): void {
    for (const listener of this.#heard) listener({ data: new Uint8Array(bytes) })
  }

  send(bytes: number): void {
    this.connection.maConn.send(new Uint8Array(bytes))
  }
}

describe('a link', () => {
  const used = new Set<unknown>()
  let liveness: Liveness
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'] })
    liveness = new Liveness(quiet, (connection) => used.has(connection))
  })
  afterEach(() => {
    liveness[Symbol.dispose]()
    vi.useRealTimers()
  })

  /** Watched for a while, after the first round trip. */
  async function watched(link: Link): Promise<Link> {
    const connection = link.connection as unknown as Connection
    liveness.watch(connection)
    await vi.advanceTimersByTimeAsync(3_000)
    link.pings = 0
    return link
  }
  /** From now on it is dead; how long until that is noticed. */
  async function noticed(link: Link): Promise<number> {
    const startMs = performance.now()
    link.isAlive = false
    await vi.advanceTimersByTimeAsync(20_000)
    return (link.abortedMs ?? Number.POSITIVE_INFINITY) - startMs
  }

  it('that was idle is given up after some twelve seconds', async () => {
    expect(await noticed(await watched(new Link()))).toBeLessThan(12_000)
  })

  it('on which something was sent is given up within 4.2 s', async () => {
    const link = await watched(new Link())
    link.send(DATA_BYTES)
    expect(await noticed(link)).toBeLessThan(4_200)
  })

  it('from which something came last is given up within 4.2 s', async () => {
    const link = await watched(new Link())
    link.hear(DATA_BYTES)
    expect(await noticed(link)).toBeLessThan(4_200)
  })

  it('that somebody uses is given up within 5.2 s', async () => {
    const link = await watched(new Link())
    used.add(link.connection)
    expect(await noticed(link)).toBeLessThan(5_200)
  })

  it('is asked once after something passed, and not while something comes', async () => {
    const link = await watched(new Link())
    for (let nth = 0; nth < 20; nth++) {
      link.send(DATA_BYTES)
      link.hear(DATA_BYTES)
      await vi.advanceTimersByTimeAsync(500)
    }
    expect(link.pings).toBe(0)
    await vi.advanceTimersByTimeAsync(5_000)
    expect(link.pings).toBe(1)
    expect(link.abortedMs).toBeUndefined()
  })

  it('that is idle is asked every seven seconds, and signs of life do not count as use', async () => {
    const link = await watched(new Link())
    await vi.advanceTimersByTimeAsync(70_000)
    expect(link.pings).toBeGreaterThan(6)
    expect(link.pings).toBeLessThan(12)
  })

  it('whose round trip is long is waited for', async () => {
    const link = await watched(new Link())
    const { muxer } = link.connection
    const { ping } = muxer
    muxer.ping = async () => {
      await new Promise((resolve) => setTimeout(resolve, 1_200))
      return await ping()
    }
    await vi.advanceTimersByTimeAsync(20_000)
    link.send(DATA_BYTES)
    muxer.ping = async () => {
      await new Promise((resolve) => setTimeout(resolve, 3_500))
      return await ping()
    }
    await vi.advanceTimersByTimeAsync(10_000)
    expect(link.abortedMs).toBeUndefined()
  })
})
