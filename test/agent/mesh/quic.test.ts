/** QUIC between real hosts on loopback: the hello on it, what streams promise, one connection of two ways, and who is dead. */
import { createHash, randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { quic } from '@chainsafe/libp2p-quic'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, it, onTestFinished } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { Gate } from '../../../agent/mesh/gate.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { openSocket } from '../../../agent/mesh/reflections.ts'
import { TunnelStream } from '../../../agent/routing/tunnel-stream.ts'
import { Frames } from '../../../protocols/frame.ts'
import { HELLO_PROTOCOL } from '../../../protocols/hello/hello.ts'
import { type Key, type TestNetwork, TestParty } from '../../protocols/membership/people.ts'
import { makeNetwork } from './member-hosts.ts'
import { addressesOf, LOOPBACK, quiet, startHost, until } from './nodes.ts'

const QUIC = '/ip4/127.0.0.1/udp/0/quic-v1'
const ECHO = '/test/echo/1'
const soon = () => AbortSignal.timeout(15_000)

const quicOf = (host: Host) => addressesOf(host).filter((address) => address.toString().includes('/quic-v1'))
const pathOf = (host: Host, peer: Host) => host.links().find(({ peerId }) => peerId === peer.peerId)

/** libp2p with the package as it is, and nothing of the agent's. */
async function stock(): Promise<Libp2p> {
  const node = await createLibp2p({
    privateKey: ephemeralNodeKey().libp2pKey,
    transports: [quic()],
    connectionGater: { denyDialMultiaddr: () => false },
  })
  onTestFinished(() => node.stop())
  return node as unknown as Libp2p
}

/** Streams of a connection on which nothing is said, and which its opener takes for a good one. */
async function bareStreams(node: Libp2p, address: Multiaddr): Promise<{ connection: Connection; streams: Stream[] }> {
  const connection = await node.dial(address, { signal: soon() })
  const { muxer } = connection as unknown as { muxer: { createStream(): Promise<Stream> } }
  return { connection, streams: await Promise.all([1, 2, 3].map(() => muxer.createStream())) }
}

async function pair(listen = [QUIC]): Promise<[Host, Host]> {
  return [await startHost({ listen }), await startHost({ listen })]
}

async function member(
  networks: readonly TestNetwork[],
  open = false,
): Promise<{ host: Host; gate: Gate; party: TestParty }> {
  const key = ephemeralNodeKey()
  const party = new TestParty(key as unknown as Key, Date.now())
  party.open = open
  for (const network of networks) party.join(network, network.certify(key.publicKey, { name: 'one' }))
  const gate = new Gate({ party, log: quiet })
  onTestFinished(() => gate[Symbol.dispose]())
  return { host: await startHost({ key, gate, open, listen: [QUIC] }), gate, party }
}

/** Answers each frame with its hash, and ends when the other side does. */
async function hashes(host: Host): Promise<void> {
  await host.handle(
    ECHO,
    async (stream) => {
      const frames = new Frames(stream)
      for (let frame = await frames.read(soon()); frame; frame = await frames.read(soon()))
        await frames.write(createHash('sha256').update(frame).digest(), soon())
      await frames.close(soon())
    },
    { maxInboundStreams: 64 },
  )
}

describe('a connection by QUIC', () => {
  it('is let in by the hello, and carries streams whole, both ways and at once', async () => {
    const [a, b] = await pair()
    await hashes(b)
    await a.dial(quicOf(b), soon())
    expect(pathOf(a, b)).toMatchObject({ path: 'direct', direction: 'outbound' })
    expect(pathOf(a, b)?.address).toContain('/quic-v1')
    await Promise.all(
      [1, 5_000, 300_000, 1_000_000, 70_000].map(async (sizeBytes) => {
        const frames = new Frames(await a.openStream(b.peerId, ECHO, soon()))
        for (let nth = 0; nth < 5; nth++) {
          const bytes = randomBytes(sizeBytes)
          await frames.write(bytes, soon())
          expect(await frames.read(soon())).toEqual(Uint8Array.from(createHash('sha256').update(bytes).digest()))
        }
        await frames.close(soon())
        expect(await frames.read(soon())).toBeUndefined()
      }),
    )
    expect(b.quic?.cameFrom(a.peerId)).toMatchObject({ address: '127.0.0.1' })
    expect(a.quic?.cameFrom(b.peerId)).toBeUndefined()
    const { rttMs } = await a.ping(b.peerId, soon())
    expect(rttMs).toBeGreaterThan(0)
    await until('the round trip is known', () => pathOf(a, b)?.rttMs !== undefined)
  })

  it('makes a fast sender wait for a slow reader, and loses nothing', async () => {
    const [a, b] = await pair()
    const taken = Promise.withResolvers<Stream>()
    await b.handle(
      ECHO,
      (stream) => {
        stream.pause()
        taken.resolve(stream)
      },
      { maxInboundStreams: 8 },
    )
    await a.dial(quicOf(b), soon())
    const stream = await a.openStream(b.peerId, ECHO, soon())
    const hash = createHash('sha256')
    const bytes = randomBytes(24 * 1024 * 1024)
    let sent = 0
    const sending = (async () => {
      for (; sent < bytes.length; sent += 65_536) {
        if (!stream.send(bytes.subarray(sent, sent + 65_536)))
          await new Promise((resolve) => stream.addEventListener('drain', resolve, { once: true }))
      }
      await stream.close({ signal: soon() })
    })()
    const reader = await taken.promise
    let before = -1
    // What the windows and the buffers on both sides hold, and no more.
    while (sent !== before) {
      before = sent
      await delay(300)
    }
    expect(sent).toBeLessThan(20 * 1024 * 1024)
    expect(reader.status).toBe('open')
    const ended = new Promise((resolve) => reader.addEventListener('end', resolve, { once: true }))
    reader.addEventListener('message', ({ data }) => void hash.update(data.subarray()))
    reader.resume()
    await Promise.all([sending, ended])
    expect(hash.digest('hex')).toBe(createHash('sha256').update(bytes).digest('hex'))
  })

  it('carries tunnels, with half-closes, twenty at a time', async () => {
    const [a, b] = await pair()
    await b.handle(
      ECHO,
      (stream) => {
        const tunnel = new TunnelStream(stream)
        tunnel.begin()
        // What ends comes back, and then its end does.
        tunnel.pipe(tunnel)
      },
      { maxInboundStreams: 64 },
    )
    await a.dial(quicOf(b), soon())
    const echoes = async (sizeBytes: number) => {
      const bytes = randomBytes(sizeBytes)
      const tunnel = new TunnelStream(await a.openStream(b.peerId, ECHO, soon()))
      tunnel.begin()
      tunnel.end(bytes)
      const hash = createHash('sha256')
      for await (const chunk of tunnel) hash.update(chunk as Buffer)
      expect(hash.digest('hex')).toBe(createHash('sha256').update(bytes).digest('hex'))
    }
    for (let nth = 0; nth < 5; nth++)
      await Promise.all(Array.from({ length: 20 }, () => echoes(Math.floor(Math.random() ** 3 * 1_000_000))))
  })

  it.each(['the one that opened it', 'the other'])('tells a reset by %s from an end', async (who) => {
    const [a, b] = await pair()
    const taken = Promise.withResolvers<Stream>()
    await b.handle(ECHO, (stream) => taken.resolve(stream), { maxInboundStreams: 8 })
    await a.dial(quicOf(b), soon())
    const opened = await a.openStream(b.peerId, ECHO, soon())
    opened.send(Uint8Array.of(1))
    const other = await taken.promise
    const [resetting, told] = who === 'the other' ? [other, opened] : [opened, other]
    const closed = new Promise<string>((resolve) => told.addEventListener('close', () => resolve(told.status)))
    resetting.abort(new Error('no'))
    expect(await closed).toBe('reset')
    await expect(new Frames(told).read(soon())).rejects.toMatchObject({ code: 'closed' })
  })

  it('ends at once with its peer’s process in order, and says so', async () => {
    const [a, b] = await pair()
    await a.dial(quicOf(b), soon())
    const gone = new Promise((resolve) => a.onPeerGone((peerId, letGo) => resolve({ peerId, letGo })))
    await until('b is known', () => b.isConnected(a.peerId))
    await b[Symbol.asyncDispose]()
    expect(await gone).toEqual({ peerId: b.peerId, letGo: true })
  })
})

describe('the hello on QUIC', () => {
  it('lets in members of one network, and cuts who is revoked', async () => {
    const network = makeNetwork()
    const [a, b] = [await member([network]), await member([network])]
    await a.host.dial(quicOf(b.host), soon())
    await until(
      'both are in',
      () =>
        a.gate.memberOf(network.id, b.host.peerId) !== undefined &&
        b.gate.memberOf(network.id, a.host.peerId) !== undefined,
    )
    network.revoke(a.party.key.publicKey)
    expect(b.gate.recheck()).toBe(1)
    await until(
      'it is cut on both ends',
      () => !a.host.isConnected(b.host.peerId) && !b.host.isConnected(a.host.peerId),
    )
    await expect(a.host.dial(quicOf(b.host), soon())).rejects.toMatchObject({ code: 'not-allowed' })
  })

  it('is the first stream’s: a stranger that knows libp2p and not the hello gets no answer to anything', async () => {
    const { host, gate } = await member([makeNetwork()], true)
    const stranger = await stock()
    const [address] = quicOf(host)
    for (const protocol of ['/ipfs/id/1.0.0', '/ipfs/ping/1.0.0', HELLO_PROTOCOL]) {
      const asked = stranger.dial(address as Multiaddr, { signal: soon() }).then((one) => one.newStream(protocol))
      await expect(asked).rejects.toThrow()
    }
    expect(host.connected()).toEqual([])
    expect(gate.admitted(stranger.peerId.toString())).toBeUndefined()
  })

  it('is not waited for while a stranger sends much else', async () => {
    const { host } = await member([makeNetwork()], true)
    const stranger = await stock()
    const { connection, streams } = await bareStreams(stranger, quicOf(host)[0] as Multiaddr)
    const closed = new Promise((resolve) => connection.addEventListener('close', resolve, { once: true }))
    const startMs = performance.now()
    for (const stream of streams) stream.send(new Uint8Array(1024 * 1024))
    await closed
    // The hello alone would be waited for three seconds.
    expect(performance.now() - startMs).toBeLessThan(2_500)
    expect(host.connected()).toEqual([])
  })

  it('keeps strangers out, of another network and of the open one only', async () => {
    const [b, other, openOnly] = [await member([makeNetwork()]), await member([makeNetwork()]), await member([], true)]
    await expect(other.host.dial(quicOf(b.host), soon())).rejects.toMatchObject({ code: 'not-allowed' })
    await expect(openOnly.host.dial(quicOf(b.host), soon())).rejects.toMatchObject({ code: 'not-allowed' })
    expect(b.host.connected()).toEqual([])
  })
})

describe('a port that waits for one peer', () => {
  it('lets that one in, once, and nobody else', async () => {
    const [a, b, c] = [
      await startHost({ listen: [] }),
      await startHost({ listen: [] }),
      await startHost({ listen: [] }),
    ]
    const socket = await openSocket()
    const { port } = socket.address()
    await new Promise<void>((resolve) => socket.close(() => resolve()))
    const listener = await a.quic?.listenPunched(port, b.peerId)
    onTestFinished(() => listener?.[Symbol.asyncDispose]())
    const come = (host: Host) =>
      host.quic?.dialPunched(multiaddr(`/ip4/127.0.0.1/udp/${port}/quic-v1/p2p/${a.peerId}`), a.peerId, soon())
    await expect(come(c)).rejects.toThrow()
    await come(b)
    await listener?.arrived
    expect([pathOf(a, b)?.path, pathOf(b, a)?.path, a.isConnected(c.peerId)]).toEqual(['punched', 'punched', false])
    expect([a.hostOf(b.peerId), a.addresses()]).toEqual([undefined, []])
    await expect(come(b)).rejects.toThrow()
    await listener?.[Symbol.asyncDispose]()
    await until('it is closed with its listener', () => !b.isConnected(a.peerId))
  })
})

describe('a peer with TCP and QUIC', () => {
  it('is reached by TCP, with one connection', async () => {
    const [a, b] = await pair([LOOPBACK, QUIC])
    await a.dial(addressesOf(b), soon())
    expect(pathOf(a, b)?.address).toContain('/tcp/')
    await delay(500)
    expect(a.links()).toHaveLength(1)
    expect(b.links()).toHaveLength(1)
  })

  it('is reached by QUIC where TCP leads nowhere', async () => {
    const [a, b] = await pair([LOOPBACK, QUIC])
    const nowhere = multiaddr(`/ip4/127.0.0.1/tcp/1/p2p/${b.peerId}`)
    await a.dial([nowhere, ...quicOf(b)], soon())
    expect(pathOf(a, b)?.address).toContain('/quic-v1')
  })

  it('has one connection when both dial at once, each by another way', async () => {
    const [a, b] = await pair([LOOPBACK, QUIC])
    const tcp = addressesOf(b).filter((address) => !quicOf(b).some((one) => one.equals(address)))
    await Promise.all([a.dial(tcp, soon()), b.dial(quicOf(a), soon())])
    await until('one is left on each side, the same', async () => {
      const [one, two] = [pathOf(a, b), pathOf(b, a)]
      return one !== undefined && two !== undefined && one.address.includes('/tcp/') === two.address.includes('/tcp/')
    })
  })
})
