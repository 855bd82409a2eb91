/** Real hosts on loopback: streams, pings, errors for people, one connection per peer, and strangers at the door. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { Frames } from '../../../protocols/frame.ts'
import { addressesOf, join, LOOPBACK, lay, startHost, until } from './nodes.ts'

function portOf(host: Host): number {
  return Number(addressesOf(host)[0]?.toString().split('/')[4])
}

const soon = () => AbortSignal.timeout(5_000)

describe('Host', () => {
  test('two hosts report each other once, with the direction, and who went', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    const seen: string[] = []
    a.onPeer((peerId, direction) => seen.push(`a ${peerId === b.peerId} ${direction}`))
    b.onPeer((peerId, direction) => seen.push(`b ${peerId === a.peerId} ${direction}`))
    b.onPeerGone((peerId) => seen.push(`b gone ${peerId === a.peerId}`))
    await join(a, b)
    await until('both report', () => seen.length === 2)
    expect(seen.toSorted()).toEqual(['a true outbound', 'b true inbound'])
    expect(a.connected()).toEqual([b.peerId])
    expect(b.isConnected(a.peerId)).toBe(true)
    await a.hangUp(b.peerId)
    await until('b notices', () => seen.includes('b gone true'))
    expect(b.connected()).toEqual([])
  })

  test('a stream carries frames both ways; a handler that throws resets its stream only', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    await b.handle(
      '/test/echo/1',
      async (stream, peerId) => {
        expect(peerId).toBe(a.peerId)
        const frames = new Frames(stream)
        const frame = await frames.read(soon())
        if (frame?.byteLength === 0) throw new Error('I do not like it')
        await frames.write(frame ?? new Uint8Array(0), soon())
        await frames.close(soon())
      },
      { maxInboundStreams: 4 },
    )
    await join(a, b)
    const echo = async (bytes: Uint8Array) => {
      const frames = new Frames(await a.openStream(b.peerId, '/test/echo/1', soon()))
      await frames.write(bytes, soon())
      return frames.read(soon())
    }
    await expect(echo(new Uint8Array(0))).rejects.toThrow()
    expect(await echo(Uint8Array.of(1, 2, 3))).toEqual(Uint8Array.of(1, 2, 3))
    await b.unhandle('/test/echo/1')
    await expect(echo(Uint8Array.of(1))).rejects.toThrow()
  })

  test('opening a stream to a peer that was connected before dials it again, and one nobody knows is refused', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    await b.handle('/test/nothing/1', (stream) => stream.close(), { maxInboundStreams: 4 })
    const known = Promise.withResolvers<void>()
    a.onPeer(() => known.resolve())
    await join(a, b)
    await known.promise
    await a.hangUp(b.peerId)
    const stream = await a.openStream(b.peerId, '/test/nothing/1', soon())
    stream.abort(new Error('done'))
    await expect(a.openStream(ephemeralNodeKey().peerId, '/test/nothing/1', soon())).rejects.toThrow(
      expect.objectContaining({ name: 'AgentError', code: 'failed' }),
    )
  })

  test('a stream whose connection goes while it is being opened is opened on another', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    await b.handle('/test/nothing/1', (stream) => stream.close(), { maxInboundStreams: 4 })
    const known = Promise.withResolvers<void>()
    a.onPeer(() => known.resolve())
    await join(a, b)
    await known.promise
    const opening = a.openStream(b.peerId, '/test/nothing/1', soon())
    await a.hangUp(b.peerId)
    const stream = await opening
    stream.abort(new Error('done'))
  })

  test('pings by peer id and by address', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    expect((await a.ping(addressesOf(b)[0]?.toString() ?? '', soon())).rttMs).toBeLessThan(1_000)
    expect((await a.ping(b.peerId, soon())).rttMs).toBeLessThan(1_000)
  })

  test('a port that is in use is named, with what to do', async () => {
    const taken = createServer().listen(0, '127.0.0.1')
    onTestFinished(() => void taken.close())
    await once(taken, 'listening')
    const { port } = taken.address() as { port: number }
    await expect(startHost({ listen: [`/ip4/127.0.0.1/tcp/${port}`] })).rejects.toThrow(
      expect.objectContaining({ code: 'taken', message: expect.stringContaining(`port ${port} `) }),
    )
  })

  test('an address that is not ours and one that is none are refused', async () => {
    await expect(startHost({ listen: ['/ip4/192.0.2.1/tcp/7477'] })).rejects.toThrow(
      expect.objectContaining({ code: 'usage', message: expect.stringContaining('192.0.2.1') }),
    )
    await expect(startHost({ listen: ['0.0.0.0:7477'] })).rejects.toThrow(expect.objectContaining({ code: 'usage' }))
  })

  test('listens on all addresses at once, IPv4 and IPv6, and tells others none of loopback if there is another', async () => {
    const host = await startHost({ listen: ['/ip4/0.0.0.0/tcp/0', '/ip6/::/tcp/0'] })
    const told = host.addresses()
    expect(told.length).toBeGreaterThan(0)
    expect(told.every((address) => address.endsWith(`/p2p/${host.peerId}`))).toBe(true)
    if (told.some((address) => !address.includes('/127.') && !address.includes('/::1/'))) {
      expect(told.filter((address) => address.includes('/127.'))).toEqual([])
    }
  })
})

/** Replacing takes a round trip and some 20 ms, on a machine that may be busy. */
const STAYS_MS = 300

describe('one connection per peer', () => {
  test('of two that dial each other at the same moment, one connection stays on both ends', async () => {
    for (let round = 0; round < 10; round++) {
      const [a, b] = await Promise.all([startHost(), startHost()])
      await Promise.allSettled([join(a, b), join(b, a)])
      // A connection that was first may be replaced by the one that both prefer: it is the last that counts.
      let sinceMs = 0
      await until('one connection, the same on both ends, and it stays', () => {
        const [one, other] = [a.links(), b.links()]
        const isOne = one.length === 1 && other.length === 1 && one[0]?.direction !== other[0]?.direction
        sinceMs = isOne ? sinceMs || performance.now() : 0
        return isOne && performance.now() - sinceMs > STAYS_MS
      })
    }
  })

  test('a peer that restarted, unnoticed, is let in again at once', async () => {
    const key = ephemeralNodeKey()
    const a = await startHost()
    const cable = await lay(portOf(a))
    const before = await startHost({ key })
    await before.dial([multiaddr(`/ip4/127.0.0.1/tcp/${cable.port}`)], soon())
    await until('connected', () => a.connected().length === 1)
    const old = a.links()[0]
    cable.cut()
    const after = await startHost({ key })
    await join(after, a)
    await until('the new connection took the place of the old one', () => {
      const [link, second] = a.links()
      return second === undefined && link !== undefined && link.address !== old?.address
    })
    expect((await after.ping(a.peerId, soon())).rttMs).toBeLessThan(1_000)
  })

  test('a live peer is not displaced by another that dials with its key', async () => {
    const key = ephemeralNodeKey()
    const a = await startHost()
    const first = await startHost({ key })
    await join(first, a)
    await until('connected', () => a.connected().length === 1)
    const second = await startHost({ key })
    await join(second, a).catch(() => undefined)
    await until('the second is gone', () => second.links().length === 0)
    expect(first.connected()).toEqual([a.peerId])
    expect((await first.ping(a.peerId, soon())).rttMs).toBeLessThan(1_000)
  })

  test('dialling an address with no peer id, of a peer that is connected, gives its id and no second connection', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    await join(a, b)
    const bare = multiaddr(addressesOf(b)[0]?.toString().split('/p2p/')[0])
    expect(await a.dial([bare], soon())).toBe(b.peerId)
    expect(a.links()).toHaveLength(1)
  })
})

describe('strangers', () => {
  test('garbage, silence and floods on the listening port do not disturb those who are connected', async () => {
    const [a, b] = await Promise.all([startHost(), startHost()])
    await join(a, b)
    const sockets = Array.from({ length: 200 }, (_, index) => {
      const socket = connect(portOf(b), '127.0.0.1')
      socket.on('error', () => undefined)
      if (index % 4 === 0) socket.write(randomBytes(100_000))
      if (index % 4 === 1) socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
      if (index % 4 === 2)
        socket.write('\x13/multistream/1.0.0\n\x07/noise\n'.repeat(2) + randomBytes(64).toString('latin1'))
      return socket
    })
    onTestFinished(() => sockets.forEach((socket) => void socket.destroy()))
    await delay(500)
    expect((await a.ping(b.peerId, soon())).rttMs).toBeLessThan(2_000)
    await until('every stranger is gone', () => sockets.every((socket) => socket.destroyed || socket.closed), 12_000)
    expect(b.connected()).toEqual([a.peerId])
    const late = await startHost()
    await join(late, b)
    await until('the newcomer is in', () => b.connected().length === 2)
  })

  test('a peer that opens a thousand streams gets what the limits allow, and others are served', async () => {
    const [a, b, c] = await Promise.all([startHost(), startHost(), startHost()])
    let open = 0
    let most = 0
    await b.handle(
      '/test/hold/1',
      async (stream) => {
        most = Math.max(most, ++open)
        await once(stream as unknown as EventTarget, 'close').catch(() => undefined)
        open--
      },
      { maxInboundStreams: 8 },
    )
    await Promise.all([join(a, b), join(c, b)])
    const streams: Stream[] = []
    await Promise.allSettled(
      Array.from({ length: 1_000 }, async () => {
        const stream = await a.openStream(b.peerId, '/test/hold/1', AbortSignal.timeout(3_000))
        streams.push(stream)
      }),
    )
    expect(most).toBeLessThanOrEqual(8)
    expect((await c.ping(b.peerId, soon())).rttMs).toBeLessThan(2_000)
    for (const stream of streams) stream.abort(new Error('done'))
    await until('all are let go', () => open === 0)
  })

  test('a loopback address told by a stranger is not kept by a node that has a real one', async () => {
    const host = await startHost({ listen: ['/ip4/0.0.0.0/tcp/0'] })
    if (host.addresses().every((address) => address.includes('/127.'))) return
    const stranger = await startHost({ listen: [LOOPBACK] })
    const told = Promise.withResolvers<void>()
    host.onPeer(() => told.resolve())
    await join(stranger, host)
    await told.promise
    expect(await host.addressesOf(stranger.peerId)).toEqual([])
  })
})

describe('with the open network off', () => {
  test('there is neither a DHT nor gossip, and what would use them does nothing', async () => {
    const [a, b] = [await startHost({ open: false }), await startHost()]
    await join(a, b)
    expect([a.dht, a.pubsub]).toEqual([undefined, undefined])
    await a.askPeers(soon())
    await a.findNeighbours(soon())
    for (const protocol of ['/undernet/kad/1', '/meshsub/1.2.0'])
      await expect(b.openStream(a.peerId, protocol, soon())).rejects.toThrow()
    await expect(a.openStream(ephemeralNodeKey().peerId, '/undernet/kad/1', soon())).rejects.toMatchObject({
      code: 'failed',
    })
  })
})
