/** How members of a closed network meet in the DHT: under which keys, how often they look, and what they make of what they find. */
import { CID } from 'multiformats/cid'
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Meeting, type MeetingOptions } from '../../../agent/membership/meeting.ts'
import { Providers } from '../../../agent/mesh/providers.ts'
import { meetingKeys } from '../../../protocols/membership/network.ts'
import { keptLog } from '../catalog/catalog.ts'
import { quiet, startNode, until } from '../mesh/nodes.ts'

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS
const DAY_MS = 24 * HOUR_MS
/** Noon, far from a change of keys. */
const NOON_MS = Date.UTC(2026, 0, 1, 12)
const network = new Uint8Array(32).fill(1)
const secret = new Uint8Array(32).fill(2)

afterEach(() => void vi.useRealTimers())

/** A meeting whose clock, DHT and connected members the test decides on. */
function startMeeting(over: Partial<MeetingOptions> = {}) {
  vi.useFakeTimers({ now: NOON_MS })
  const state = {
    provided: new Set<string>(),
    lookups: [] as { cid: string; at: number }[],
    holders: new Map<string, string[]>(),
    connected: 0,
    fault: undefined as unknown,
    heard: [] as string[],
  }
  const providers: MeetingOptions['providers'] = {
    provide: (cid) => void state.provided.add(cid),
    withdraw: (cid) => void state.provided.delete(cid),
    find: async function* (cid) {
      state.lookups.push({ cid, at: Date.now() })
      yield* state.holders.get(cid) ?? []
    },
  }
  const log = keptLog()
  const meeting = Meeting.start({
    membership: { network, secret, fault: () => state.fault },
    providers,
    hear: (peerId) => void state.heard.push(peerId),
    connectedCount: () => state.connected,
    log,
    now: () => Date.now(),
    random: () => 0.5,
    ...over,
  })
  return Object.assign(state, { log, meeting, [Symbol.asyncDispose]: () => meeting[Symbol.asyncDispose]() })
}

/** The digests that content ids name, as the DHT sees them. */
const digests = (cids: Iterable<string>) =>
  [...cids].map((cid) => Buffer.from(CID.parse(cid).multihash.digest).toString('hex'))
const keysAt = (now: number) => meetingKeys({ network, secret }, now).map((key) => Buffer.from(key).toString('hex'))

describe('announcing', () => {
  it('is under the keys of the time, as raw content ids, and changes with them', async () => {
    await using met = startMeeting()
    expect(digests(met.provided)).toEqual(keysAt(NOON_MS))
    expect([...met.provided].map((cid) => CID.parse(cid).code)).toEqual([0x55])
    const [first] = met.provided
    await vi.advanceTimersByTimeAsync(11.5 * HOUR_MS)
    expect(digests(met.provided).sort()).toEqual(keysAt(NOON_MS + 11.5 * HOUR_MS).sort())
    expect(met.provided.size).toBe(2)
    await vi.advanceTimersByTimeAsync(2 * HOUR_MS)
    expect(met.provided.size).toBe(1)
    expect(met.provided.has(first ?? '')).toBe(false)
  })

  it('ends with the membership, and with the meeting', async () => {
    await using met = startMeeting()
    met.fault = 'revoked'
    await vi.advanceTimersByTimeAsync(MINUTE_MS)
    expect(met.provided.size).toBe(0)
    const { length } = met.lookups
    await vi.advanceTimersByTimeAsync(HOUR_MS)
    expect(met.lookups).toHaveLength(length)
    met.fault = undefined
    await vi.advanceTimersByTimeAsync(MINUTE_MS)
    expect(met.provided.size).toBe(1)
    expect(met.lookups.length).toBeGreaterThan(length)
    await met.meeting[Symbol.asyncDispose]()
    expect(met.provided.size).toBe(0)
  })

  it('is tried again when this node announces too much', async () => {
    let isFull = true
    const provided: string[] = []
    await using met = startMeeting({
      providers: {
        provide: (cid) => {
          if (isFull) throw new Error('too many')
          provided.push(cid)
        },
        withdraw: () => undefined,
        find: async function* () {},
      },
    })
    expect(met.log.entries.map(({ event }) => event)).toEqual(['meeting.unannounced'])
    isFull = false
    await vi.advanceTimersByTimeAsync(MINUTE_MS)
    expect(digests(provided)).toEqual(keysAt(NOON_MS))
  })
})

describe('looking', () => {
  it('is soon after the start, then less and less often while nobody is met', async () => {
    await using met = startMeeting()
    await vi.advanceTimersByTimeAsync(MINUTE_MS)
    const seconds = met.lookups.map(({ at }) => Math.round((at - NOON_MS) / 1_000))
    expect(seconds).toEqual([2, 6, 14, 30])
    await vi.advanceTimersByTimeAsync(HOUR_MS)
    const { length } = met.lookups
    await vi.advanceTimersByTimeAsync(HOUR_MS)
    expect(met.lookups.length - length).toBeLessThanOrEqual(6)
    expect(met.lookups.length - length).toBeGreaterThanOrEqual(5)
  })

  it('is seldom with members connected, and at once when the last one has gone', async () => {
    await using met = startMeeting()
    met.connected = 1
    await vi.advanceTimersByTimeAsync(5 * HOUR_MS)
    expect(met.lookups.length).toBeLessThanOrEqual(11)
    met.connected = 0
    const { length } = met.lookups
    await vi.advanceTimersByTimeAsync(MINUTE_MS + 5_000)
    expect(met.lookups.length).toBeGreaterThan(length)
  })

  it('goes on when the clock jumps, ahead or back', async () => {
    let skewMs = 0
    await using met = startMeeting({ now: () => Date.now() + skewMs })
    for (const jump of [300 * DAY_MS, -300 * DAY_MS]) {
      skewMs = jump
      const { length } = met.lookups
      await vi.advanceTimersByTimeAsync(5 * MINUTE_MS)
      expect(met.lookups.length).toBeGreaterThan(length)
      expect(digests(met.provided)).toEqual(keysAt(Date.now() + skewMs))
    }
  })

  it('tells of whoever is found, under both keys once, and never of too many', async () => {
    await using met = startMeeting()
    const [cid = ''] = met.provided
    met.holders.set(cid, ['a', 'b', 'a'])
    await vi.advanceTimersByTimeAsync(2_000)
    expect(met.heard).toEqual(['a', 'b'])
    met.holders.set(
      cid,
      Array.from({ length: 1_000 }, (_, nth) => `fake${nth}`),
    )
    met.heard.length = 0
    await vi.advanceTimersByTimeAsync(5_000)
    expect(met.heard.length).toBe(32)
  })

  it('goes on after one that failed, is not begun while one runs, and is ended with the meeting', async () => {
    let mode: 'fail' | 'hang' = 'fail'
    let asked = 0
    await using _met = startMeeting({
      providers: {
        provide: () => undefined,
        withdraw: () => undefined,
        find: async function* (_cid, signal) {
          asked++
          if (mode === 'fail') throw new Error('no DHT')
          yield await new Promise<string>((_, reject) =>
            signal.addEventListener('abort', () => reject(signal.reason as Error)),
          )
        },
      },
    })
    await vi.advanceTimersByTimeAsync(15_000)
    expect(asked).toBe(3)
    mode = 'hang'
    await vi.advanceTimersByTimeAsync(10 * MINUTE_MS)
    expect(asked).toBe(4)
  })
})

describe('two members who know a third node only', () => {
  it('find each other, and where they can be dialled', async () => {
    const hub = await startNode()
    const bootstrap = hub.host.addresses()
    const [a, b] = await Promise.all([startNode({ bootstrap, maxPeers: 2 }), startNode({ bootstrap, maxPeers: 2 })])
    const heard = new Map<string, string[]>()
    for (const { host } of [a, b]) {
      const { dht, peerId } = host
      if (dht === undefined) throw new Error('no DHT')
      const providers = Providers.start({ dht, host, log: quiet })
      heard.set(peerId, [])
      const meeting = Meeting.start({
        membership: { network, secret, fault: () => undefined },
        providers,
        hear: (found) => heard.get(peerId)?.push(found),
        connectedCount: () => 0,
        log: quiet,
      })
      onTestFinished(async () => {
        await meeting[Symbol.asyncDispose]()
        await providers[Symbol.asyncDispose]()
      })
    }
    const [fromA, fromB] = [heard.get(a.host.peerId), heard.get(b.host.peerId)]
    await until('they hear of each other', () => !!fromA?.includes(b.host.peerId) && !!fromB?.includes(a.host.peerId))
    await until('a knows where b is', async () => (await a.host.addressesOf(b.host.peerId)).length > 0)
  })
})
