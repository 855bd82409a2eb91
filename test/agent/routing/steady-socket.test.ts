/** What is read into the same memory again and again arrives as it was sent, however long the tunnel keeps it. */
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { Writable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Libp2p } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { noiseCrypto } from '../../../agent/mesh/noise-cipher.ts'
import { quick, thrifty } from '../../../agent/mesh/quick-channel.ts'
import { steadySocket } from '../../../agent/routing/steady-socket.ts'
import { TunnelStream } from '../../../agent/routing/tunnel-stream.ts'
import { LOOPBACK, until } from '../mesh/nodes.ts'

const KIB = 1024
const TUNNELS = 12
const TUNNEL_BYTES = 3 * KIB * KIB
/** Below, at and above what it reads at a time, small ones among large ones. */
const SIZES = [1, 4 * KIB, 300 * KIB, 100, 2_000 * KIB, 4 * KIB + 1, 3, 1_000 * KIB]

async function serve(handle: (socket: Socket) => void): Promise<{ host: string; port: number }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined)
    handle(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port }
}

/** Looks at what it takes at once then, and at what it takes late even later than it says that it is done with it. */
function reader(isSlow: (nth: number) => boolean): { tunnel: Writable; digest: () => string } {
  const hash = createHash('sha256')
  let count = 0
  let looks = Promise.resolve()
  const tunnel = new Writable({
    highWaterMark: 256 * KIB,
    write(chunk: Uint8Array, _encoding, done) {
      const look = () => void hash.update(chunk)
      if (isSlow(count++)) {
        const late = delay(2)
        looks = looks.then(() => late).then(look)
        setImmediate(done)
      } else if (count === 1 || !isSlow(count - 2)) {
        look()
        done()
      } else {
        // In their order.
        looks = looks.then(look)
        void after(looks, done)
      }
    },
    final: (done) => void after(looks, done),
  })
  return { tunnel, digest: () => hash.digest('hex') }
}

async function after(looks: Promise<void>, done: () => void): Promise<void> {
  await looks
  done()
}

describe('a steady socket', () => {
  test.each([
    ['at once', () => false],
    ['late', () => true],
    ['now at once, now late', (nth: number) => nth % 3 === 0],
  ])('gives to a tunnel that takes it %s what was sent, and the end', async (_, isSlow) => {
    const hash = createHash('sha256')
    const address = await serve((socket) => {
      const send = async () => {
        for (const size of [...SIZES, ...SIZES]) {
          const bytes = randomBytes(size)
          hash.update(bytes)
          if (!socket.write(bytes)) await once(socket, 'drain')
        }
        socket.end()
      }
      void send()
    })
    const { socket, readInto } = steadySocket(address)
    await once(socket, 'connect')
    const { tunnel, digest } = reader(isSlow)
    readInto(tunnel)
    await once(tunnel, 'finish')
    expect(digest()).toBe(hash.digest('hex'))
    socket.destroy()
  })

  test('keeps what comes before there is a tunnel, and writes while it reads', async () => {
    const address = await serve((socket) => {
      socket.write('first')
      socket.on('data', (bytes) => socket.write(bytes))
      socket.on('end', () => socket.end())
    })
    const { socket, readInto } = steadySocket(address)
    await once(socket, 'connect')
    const { tunnel, digest } = reader(() => false)
    socket.write(' second')
    readInto(tunnel)
    socket.end(' third')
    await once(tunnel, 'finish')
    expect(digest()).toBe(createHash('sha256').update('first second third').digest('hex'))
    socket.destroy()
  })
})

describe('many steady sockets that share a connection', () => {
  test('lose and change nothing, however slowly each is read at the other end', async () => {
    const [near, far] = await Promise.all([startHost(), startHost()])
    const arrived: Promise<string>[] = []
    await far.handle('/test/1', (stream) => {
      const tunnel = new TunnelStream(stream)
      tunnel.begin()
      arrived.push(readSlowly(tunnel, arrived.length))
    })
    const tunnels: TunnelStream[] = []
    for (let nth = 0; nth < TUNNELS; nth++)
      tunnels.push(new TunnelStream(await near.dialProtocol(far.getMultiaddrs(), '/test/1')))
    const sent = await Promise.all(
      tunnels.map(async (tunnel) => {
        const bytes = randomBytes(TUNNEL_BYTES)
        const address = await serve((socket) => void socket.end(bytes))
        tunnel.begin()
        const { socket, readInto } = steadySocket(address)
        await once(socket, 'connect')
        readInto(tunnel)
        onTestFinished(() => void socket.destroy())
        return createHash('sha256').update(bytes).digest('hex')
      }),
    )
    await until('all streams are there', () => arrived.length === TUNNELS)
    expect((await Promise.all(arrived)).sort()).toEqual(sent.sort())
  }, 60_000)

  test('queue no more for a peer that makes room by the byte', async () => {
    const [near, far] = await Promise.all([startHost(), startHost()])
    await far.handle('/test/1', (stream) => stream.pause())
    const stream = await near.dialProtocol(far.getMultiaddrs(), '/test/1')
    const tunnel = new TunnelStream(stream)
    tunnel.begin()
    const { socket, readInto } = steadySocket(await serve((to) => void to.end(randomBytes(20 * KIB * KIB))))
    await once(socket, 'connect')
    readInto(tunnel)
    await until('the window is used up', () => stream.writeBufferLength > 0)
    for (let nth = 0; nth < 50; nth++) {
      stream.dispatchEvent(new Event('drain'))
      await delay(2)
    }
    expect(tunnel.heldBytes).toBeLessThan(KIB * KIB)
    socket.destroy()
    tunnel.destroy()
  })
})

async function startHost(): Promise<Libp2p> {
  const node = await createLibp2p({
    addresses: { listen: [LOOPBACK] },
    transports: [tcp()],
    connectionEncrypters: [quick(noise({ crypto: noiseCrypto }))],
    streamMuxers: [thrifty(yamux())],
    connectionMonitor: { enabled: false },
    connectionGater: { denyDialMultiaddr: () => false },
  })
  onTestFinished(() => node.stop() as Promise<void>)
  return node
}

/** Each at another speed. */
async function readSlowly(tunnel: TunnelStream, nth: number): Promise<string> {
  const hash = createHash('sha256')
  let count = 0
  for await (const chunk of tunnel) {
    hash.update(chunk as Uint8Array)
    if (nth > 0 && count++ % nth === 0) await delay(nth % 3)
  }
  return hash.digest('hex')
}
