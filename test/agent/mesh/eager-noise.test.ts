/** Noise that does not wait to be asked for: what goes out when, and that it works with whoever waits, and over any wire. */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Libp2p } from '@libp2p/interface'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { describe, expect, it, onTestFinished } from 'vitest'
import { eager } from '../../../agent/mesh/eager-noise.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import { LOOPBACK } from './nodes.ts'

type Node = Libp2p<{ ping: ReturnType<ReturnType<typeof ping>> }>

const MULTISTREAM = '/multistream/1.0.0\n'
const PROPOSAL = Buffer.concat([MULTISTREAM, '/noise\n'].map((word) => encodeFrame(Buffer.from(word))))
/** Noise's first message: an ephemeral key, behind its length in two bytes. */
const FIRST_BYTES = 2 + 32

async function start(isEager: boolean): Promise<Node> {
  const { connectionEncrypter, connectionProtector } = eager(noise())
  const node = (await createLibp2p({
    addresses: { listen: [LOOPBACK] },
    transports: [tcp()],
    streamMuxers: [yamux()],
    connectionEncrypters: [isEager ? connectionEncrypter : noise()],
    ...(isEager && { connectionProtector }),
    connectionMonitor: { enabled: false },
    connectionGater: { denyDialMultiaddr: () => false },
    services: { ping: ping() },
  })) as unknown as Node
  onTestFinished(() => node.stop() as Promise<void>)
  return node
}

/** A listener of TCP and of nothing else. */
async function serve(answer: (socket: Socket) => void): Promise<number> {
  const server = createServer(answer)
  onTestFinished(() => void server.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

function dial(node: Node, port: number): Promise<unknown> {
  return node.dial(multiaddr(`/ip4/127.0.0.1/tcp/${port}`), { signal: AbortSignal.timeout(5_000) })
}

async function received(socket: Socket, count: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  while (Buffer.concat(chunks).byteLength < count) chunks.push(((await once(socket, 'data')) as [Buffer])[0])
  return Buffer.concat(chunks)
}

describe('a dialler', () => {
  it('proposes Noise and begins with it, before the listener has said anything', async () => {
    const said = Promise.withResolvers<Buffer>()
    const port = await serve((socket) => {
      socket.on('error', () => undefined)
      received(socket, PROPOSAL.byteLength + FIRST_BYTES).then((bytes) => {
        said.resolve(bytes)
        socket.destroy()
      }, said.reject)
    })
    await expect(dial(await start(true), port)).rejects.toThrow()
    const bytes = await said.promise
    expect(bytes.subarray(0, PROPOSAL.byteLength)).toEqual(PROPOSAL)
    expect(bytes.byteLength).toBe(PROPOSAL.byteLength + FIRST_BYTES)
    expect(bytes.readUInt16BE(PROPOSAL.byteLength)).toBe(32)
  })

  it.each([
    ['another protocol', 'na\n'],
    ['nonsense', 'x'.repeat(500)],
  ])('ends a connection on which it is answered with %s', async (_, word) => {
    const closed = Promise.withResolvers<void>()
    const port = await serve((socket) => {
      socket.on('error', () => undefined)
      socket.on('close', () => closed.resolve())
      socket.write(Buffer.concat([MULTISTREAM, word].map((one) => encodeFrame(Buffer.from(one)))))
    })
    await expect(dial(await start(true), port)).rejects.toThrow('does not speak Noise')
    await closed.promise
  })

  it('ends a connection on which the listener says nothing when its time is over', async () => {
    const port = await serve((socket) => void socket.on('error', () => undefined))
    const node = await start(true)
    const signal = AbortSignal.timeout(300)
    await expect(node.dial(multiaddr(`/ip4/127.0.0.1/tcp/${port}`), { signal })).rejects.toThrow()
    expect(node.getConnections()).toEqual([])
  })

  it.each([
    [true, true],
    [true, false],
    [false, true],
  ])('talks to a listener (eager: %s to %s), also when single bytes arrive', async (from, to) => {
    const [dialler, listener] = [await start(from), await start(to)]
    const [address] = listener.getMultiaddrs()
    const target = Number(address?.getComponents().find(({ name }) => name === 'tcp')?.value)
    const port = await serve((near) => {
      const far = connect(target, '127.0.0.1')
      for (const [one, other] of [
        [near, far],
        [far, near],
      ] as const) {
        one.on('error', () => undefined)
        one.on('close', () => other.destroy())
        // A wire that is cut is the end of it.
        passByBytes(one, other).catch(() => undefined)
      }
    })
    await dial(dialler, port)
    expect(
      await dialler.services.ping.ping(listener.peerId, { signal: AbortSignal.timeout(5_000) }),
    ).toBeGreaterThanOrEqual(0)
  })
})

/** The handshakes byte by byte; then as it comes. */
async function passByBytes(from: Socket, to: Socket): Promise<void> {
  to.setNoDelay(true)
  let slow = 300
  for await (const chunk of from as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.byteLength; ) {
      const length = slow-- > 0 ? 1 : chunk.byteLength - at
      to.write(chunk.subarray(at, at + length))
      at += length
      if (slow > 0) await delay(0)
    }
  }
}
