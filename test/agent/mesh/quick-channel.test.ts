/** Quick connections speak as any others do: with stock peers, either way, in bulk, and no faster than it is read. */
import { createHash, randomBytes } from 'node:crypto'
import { Socket } from 'node:net'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Libp2p, Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { noiseCrypto } from '../../../agent/mesh/noise-cipher.ts'
import { quick, thrifty } from '../../../agent/mesh/quick-channel.ts'
import { LOOPBACK, until } from './nodes.ts'

const MIB = 1024 * 1024
const PIECE = randomBytes(65_507)
const PIECES = 320
const ROUND_TRIPS = 50

async function start(isQuick: boolean): Promise<Libp2p> {
  const node = await createLibp2p({
    addresses: { listen: [LOOPBACK] },
    transports: [tcp()],
    connectionEncrypters: [isQuick ? quick(noise({ crypto: noiseCrypto })) : noise()],
    streamMuxers: [isQuick ? thrifty(yamux()) : yamux()],
    connectionMonitor: { enabled: false },
    connectionGater: { denyDialMultiaddr: () => false },
  })
  onTestFinished(() => node.stop() as Promise<void>)
  return node
}

/** A stream between two nodes, as the dialler and as the listener have it. */
async function join(isQuick: boolean, isFarQuick: boolean): Promise<[Stream, Stream]> {
  const [near, far] = await Promise.all([start(isQuick), start(isFarQuick)])
  const taken = Promise.withResolvers<Stream>()
  await far.handle('/test/1', (stream) => {
    stream.maxReadBufferLength = 32 * MIB
    taken.resolve(stream)
  })
  const stream = await near.dialProtocol(far.getMultiaddrs(), '/test/1')
  return [stream, await taken.promise]
}

/** What arrives, as it does. */
function listen(stream: Stream): { bytes: number; hash: ReturnType<typeof createHash> } {
  const heard = { bytes: 0, hash: createHash('sha256') }
  stream.addEventListener('message', ({ data }) => {
    heard.bytes += data.byteLength
    for (const part of data instanceof Uint8Array ? [data] : data) heard.hash.update(part)
  })
  return heard
}

async function sendAll(stream: Stream): Promise<void> {
  for (let piece = 0; piece < PIECES; piece++) {
    if (!stream.send(PIECE)) await new Promise((resolve) => stream.addEventListener('drain', resolve, { once: true }))
  }
}

const expected = () => {
  const hash = createHash('sha256')
  for (let piece = 0; piece < PIECES; piece++) hash.update(PIECE)
  return hash.digest('hex')
}

describe('a quick connection', () => {
  test.each([
    ['with a stock listener', true, false],
    ['with a stock dialler', false, true],
    ['with its own kind', true, true],
  ])('%s carries 20 MiB each way', async (_, isQuick, isFarQuick) => {
    const [near, far] = await join(isQuick, isFarQuick)
    const [there, here] = [listen(far), listen(near)]
    await Promise.all([sendAll(near), sendAll(far)])
    const all = PIECE.byteLength * PIECES
    await until('all has come', () => there.bytes === all && here.bytes === all)
    expect([there.hash.digest('hex'), here.hash.digest('hex')]).toEqual([expected(), expected()])
  })

  test('sends nothing beyond the window of who does not read, and all of it once that reads', async () => {
    const [near, far] = await join(true, true)
    const heard = listen(far)
    far.pause()
    let isSent = false
    const sending = sendAll(near).then(() => {
      isSent = true
    })
    await until('the window is used up', () => far.readBufferLength > 200_000 && near.writableNeedsDrain)
    expect(far.readBufferLength + near.writeBufferLength).toBeLessThan(MIB)
    expect(isSent).toBe(false)
    expect(heard.bytes).toBe(0)
    far.resume()
    await sending
    await until('all has come', () => heard.bytes === PIECE.byteLength * PIECES)
    expect(heard.hash.digest('hex')).toBe(expected())
  })

  test('writes a message at once, and tells little of what was read', async () => {
    const [near, far] = await join(true, true)
    const heard = listen(near)
    far.addEventListener('message', ({ data }) => far.send(data.subarray()))
    const cork = vi.spyOn(Socket.prototype, 'cork')
    onTestFinished(() => cork.mockRestore())
    for (let nth = 1; nth <= ROUND_TRIPS; nth++) {
      near.send(Buffer.alloc(100))
      await until('it came back', () => heard.bytes === 100 * nth)
    }
    // One write for each message, and no window updates.
    expect(cork.mock.calls.length).toBeLessThan(2 * ROUND_TRIPS + 10)
  })
})
