/** Who gets a lane and who does not: the server of lanes against clients of TLS that do it right, and otherwise. */
import { once } from 'node:events'
import { connect as connectTcp, createServer } from 'node:net'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import type { Stream } from '@libp2p/interface'
import { describe, expect, onTestFinished, test } from 'vitest'
import { LaneServer } from '../../../agent/content/lane-server.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import { askLanes, identityOf, LANE_GROUP, LANE_PROTOCOL, LANE_SUITES } from '../../../protocols/lane/lane.ts'
import { decodeGetAnswer, encodeRequest } from '../../../protocols/pieces/exchange.ts'
import { laneNode } from './lane-peer.ts'
import { type ContentNode, digestOf, type NodeOptions, never, Peer, until } from './peers.ts'

const BLOB = Buffer.alloc(100_000, 7)
const digest = Buffer.from(digestOf(BLOB).digest, 'hex')
const known = new Map()

async function server(options: NodeOptions = {}): Promise<ContentNode & { laneServer: LaneServer }> {
  const node = await laneNode(known, options)
  await node.store.publish(BLOB)
  return node as ContentNode & { laneServer: LaneServer }
}

/** A stream on which lanes can be asked for. */
async function leashTo(node: ContentNode, of?: Peer): Promise<{ stream: Stream; frames: Frames }> {
  const peer = of ?? (await Peer.start(known))
  if (!of) onTestFinished(() => peer[Symbol.asyncDispose]())
  const stream = await peer.streams.openStream(node.peerId, LANE_PROTOCOL, never)
  return { stream, frames: new Frames(stream) }
}

type Taken = { port: number; identity: string; psk: Uint8Array }

async function offerOf(frames: Frames): Promise<Taken> {
  const { port, lanes } = await askLanes(frames, { digest, count: 1 }, never)
  const [lane] = lanes
  if (!lane) throw new Error('no lane')
  return { port, identity: identityOf(lane.id), psk: lane.key }
}

/** Resolves with the connection when its handshake is done, with the error when it fails. */
async function opened({ port, identity, psk }: Taken, more: ConnectionOptions = {}): Promise<TLSSocket | Error> {
  const socket = connect({
    port,
    host: '127.0.0.1',
    minVersion: 'TLSv1.3',
    ciphers: LANE_SUITES,
    ecdhCurve: LANE_GROUP,
    ca: [],
    checkServerIdentity: () => new Error('a certificate'),
    pskCallback: () => ({ psk, identity }),
    ...more,
  })
  onTestFinished(() => void socket.destroy())
  const failed = new Promise<Error>((resolve) => socket.once('error', resolve))
  const closed = once(socket, 'close').then(() => new Error('closed'))
  return await Promise.race([once(socket, 'secureConnect').then(() => socket), failed, closed])
}

async function lane(taken: Taken, more?: ConnectionOptions): Promise<TLSSocket> {
  const socket = await opened(taken, more)
  if (socket instanceof Error) throw socket
  return socket
}

/** What is answered to a question for the blob's only piece. */
async function ask(socket: TLSSocket): Promise<Buffer> {
  socket.write(encodeFrame(encodeRequest({ op: 'get', digest, from: 0, count: 1 })))
  const chunks: Buffer[] = []
  for await (const chunk of socket) {
    chunks.push(chunk as Buffer)
    const bytes = Buffer.concat(chunks)
    if (bytes.byteLength > BLOB.byteLength) return bytes
  }
  throw new Error('the lane ended')
}

describe('a lane', () => {
  test('answers requests for pieces, by the key that was handed over', async () => {
    const node = await server()
    const { frames } = await leashTo(node)
    const socket = await lane(await offerOf(frames))
    expect(socket.getProtocol()).toBe('TLSv1.3')
    expect(socket.isSessionReused()).toBe(true)
    expect(socket.getPeerCertificate()).toEqual({})
    expect(socket.getEphemeralKeyInfo()).toMatchObject({ name: 'X25519' })
    const answer = await ask(socket)
    const [length = 0] = answer
    expect(decodeGetAnswer(answer.subarray(1, 1 + length))).toBe(BLOB.byteLength)
    expect(Buffer.compare(answer.subarray(1 + length), BLOB)).toBe(0)
    expect(node.server.servedBytes).toBe(BLOB.byteLength)
    expect(node.laneServer.sentBytes).toBe(BLOB.byteLength)
  })

  test.each(LANE_SUITES.split(':'))('takes %s', async (ciphers) => {
    const { frames } = await leashTo(await server())
    expect((await lane(await offerOf(frames), { ciphers })).getCipher()).toMatchObject({ standardName: ciphers })
  })

  test('is closed with its stream, and so are offers', async () => {
    const node = await server()
    const { stream, frames } = await leashTo(node)
    const [socket, left] = [await lane(await offerOf(frames)), await offerOf(frames)]
    await until(() => node.laneServer.size === 1)
    const closed = once(socket, 'close')
    socket.resume()
    stream.abort(new Error('enough'))
    await closed
    expect(await opened(left)).toBeInstanceOf(Error)
    await until(() => node.laneServer.size === 0)
  })

  test('ends when what comes on it is no request', async () => {
    const { frames } = await leashTo(await server())
    for (const bytes of [Buffer.alloc(80, 'GET /'), Buffer.alloc(5, 0xff), encodeFrame(Buffer.alloc(4_097))]) {
      const socket = await lane(await offerOf(frames))
      const closed = once(socket, 'close')
      socket.on('error', () => undefined)
      socket.resume()
      socket.write(bytes)
      await closed
    }
  })
})

describe('no lane for', () => {
  test('a wrong key, no key, an id that nobody was given', async () => {
    const node = await server()
    const { frames } = await leashTo(node)
    const taken = await offerOf(frames)
    expect(await opened({ ...taken, psk: Buffer.alloc(32, 1) })).toBeInstanceOf(Error)
    const other = await offerOf(frames)
    expect(await opened({ ...other, identity: 'ab'.repeat(16) })).toBeInstanceOf(Error)
    const { port } = other
    const bare = connect({ port, host: '127.0.0.1', minVersion: 'TLSv1.3', rejectUnauthorized: false })
    await expect(once(bare, 'secureConnect')).rejects.toThrow()
    expect(node.laneServer.size).toBe(0)
  })

  test('an id that was used, be it in vain', async () => {
    const node = await server()
    const { frames } = await leashTo(node)
    const [used, spoilt] = [await offerOf(frames), await offerOf(frames)]
    // Offers that stay open, so that the server does not hang up before the handshake.
    await offerOf(frames)
    await lane(used)
    expect(await opened(used)).toBeInstanceOf(Error)
    expect(await opened({ ...spoilt, psk: Buffer.alloc(32, 1) })).toBeInstanceOf(Error)
    expect(await opened(spoilt)).toBeInstanceOf(Error)
    expect(node.laneServer.size).toBe(1)
  })

  test('an offer that is too old', async () => {
    const node = await server({ lanes: { offerMs: 20 } })
    const { frames } = await leashTo(node)
    const taken = await offerOf(frames)
    const dueMs = performance.now() + 25
    await until(() => performance.now() > dueMs)
    expect(await opened(taken)).toBeInstanceOf(Error)
    expect(node.laneServer.size).toBe(0)
  })

  test('a session that is resumed by a ticket', async () => {
    const node = await server()
    const { frames } = await leashTo(node)
    const first = await offerOf(frames)
    await offerOf(frames)
    const socket = await opened(first)
    if (socket instanceof Error) throw socket
    let session: Buffer | undefined
    socket.on('session', (one: Buffer) => {
      session = one
    })
    await ask(socket)
    if (session) expect(await opened(first, { session, pskCallback: undefined as never })).toBeInstanceOf(Error)
    expect(node.store.entries.filter(({ msg }) => msg === 'lane.given')).toHaveLength(1)
  })

  test('older versions of TLS, and suites that the protocol does not name', async () => {
    const { frames } = await leashTo(await server())
    const old: ConnectionOptions = { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2', ciphers: 'PSK' }
    expect(await opened(await offerOf(frames), old)).toBeInstanceOf(Error)
    expect(await opened(await offerOf(frames), { ciphers: 'TLS_AES_256_GCM_SHA384' })).toBeInstanceOf(Error)
  })

  test('who may not fetch the blob, or when it is not here', async () => {
    const { frames } = await leashTo(await server({ mayFetch: () => false }))
    await expect(askLanes(frames, { digest, count: 1 }, never)).rejects.toMatchObject({ code: 'absent' })
    const { frames: others } = await leashTo(await server())
    for (const request of [
      { digest: new Uint8Array(32), count: 1 },
      { digest, count: 1, network: new Uint8Array(32).fill(1) },
    ])
      await expect(askLanes(others, request, never)).rejects.toMatchObject({ code: 'absent' })
  })

  test('a peer that has four, or was offered them, until it gives one up', async () => {
    const node = await server()
    const peer = await Peer.start(known)
    onTestFinished(() => peer[Symbol.asyncDispose]())
    const [{ frames }, { frames: others }] = [await leashTo(node, peer), await leashTo(node, peer)]
    const { lanes } = await askLanes(frames, { digest, count: 3 }, never)
    expect(lanes).toHaveLength(3)
    expect((await askLanes(others, { digest, count: 3 }, never)).lanes).toHaveLength(1)
    await expect(askLanes(others, { digest, count: 1 }, never)).rejects.toMatchObject({ code: 'refused' })
    const { frames: another } = await leashTo(node)
    expect((await askLanes(another, { digest, count: 4 }, never)).lanes).toHaveLength(4)
    frames.abort(new Error('enough'))
    await until(() => node.laneServer.pendingCount < 8)
    expect((await askLanes(others, { digest, count: 1 }, never)).lanes).toHaveLength(1)
  })

  test('anybody while nothing is on offer: they are dropped before a handshake', async () => {
    const node = await server()
    const socket = connectTcp(node.laneServer.port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    socket.on('error', () => undefined)
    await once(socket, 'close')
    expect(socket.bytesRead).toBe(0)
  })
})

describe('the port', () => {
  async function started(hosts: string[], port: number) {
    const node = await server()
    const laneServer = await LaneServer.start({
      streams: { handle: async () => undefined, unhandle: async () => undefined },
      pieces: node.server,
      hosts,
      port,
      log: node.store.log,
    })
    onTestFinished(() => laneServer?.[Symbol.asyncDispose]())
    return { laneServer, entries: node.store.entries }
  }

  test('is another one when somebody has it, which is said', async () => {
    const other = createServer().listen(0, '127.0.0.1')
    await once(other, 'listening')
    onTestFinished(() => void other.close())
    const { port } = other.address() as { port: number }
    const { laneServer, entries } = await started(['127.0.0.1'], port)
    expect(laneServer?.port).toBeGreaterThan(0)
    expect(laneServer?.port).not.toBe(port)
    expect(entries).toContainEqual(expect.objectContaining({ msg: 'lane.port-taken', port }))
  })

  test('is the same on all addresses', async () => {
    const { laneServer } = await started(['127.0.0.1', '127.0.0.2', '::1'], 0)
    for (const host of ['127.0.0.1', '127.0.0.2']) {
      const socket = connectTcp(laneServer?.port ?? 0, host)
      await once(socket, 'connect')
      socket.destroy()
    }
  })

  test('there is none on a node that listens nowhere', async () => {
    expect((await started([], 0)).laneServer).toBeUndefined()
  })
})
