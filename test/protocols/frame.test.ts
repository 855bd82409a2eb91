/** Frames over real libp2p streams: whatever the cut, whatever the bytes; and a slow reader slows the writer. */
import { setImmediate as turn } from 'node:timers/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import fc from 'fast-check'
import { createLibp2p, type Libp2p } from 'libp2p'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { encodeFrame, Frames } from '../../protocols/frame.ts'

const PROTOCOL = '/test/frames/1'
const never = new AbortController().signal

let a: Libp2p
let b: Libp2p
let arrived: (stream: Stream) => void

beforeAll(async () => {
  const options = { transports: [tcp()], connectionEncrypters: [noise()], streamMuxers: [yamux()] }
  a = await createLibp2p({ ...options })
  b = await createLibp2p({ ...options, addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] } })
  await b.handle(PROTOCOL, (stream) => arrived(stream), { maxInboundStreams: 1_000 })
})
afterAll(async () => {
  await Promise.all([a.stop(), b.stop()])
})

async function streamPair(): Promise<[Stream, Stream]> {
  const theirs = new Promise<Stream>((resolve) => {
    arrived = resolve
  })
  const ours = await a.dialProtocol(b.getMultiaddrs(), PROTOCOL)
  return [ours, await theirs]
}

describe('frames over a libp2p stream', () => {
  test('any payloads, cut anywhere on the way, arrive as they were sent, then a clean end', async () => {
    const payloads = fc.array(fc.uint8Array({ maxLength: 2_000 }), { minLength: 1, maxLength: 8 })
    await fc.assert(
      fc.asyncProperty(payloads, fc.integer({ min: 1, max: 700 }), async (sent, cut) => {
        const [ours, theirs] = await streamPair()
        const bytes = Buffer.concat(sent.map(encodeFrame))
        for (let at = 0; at < bytes.byteLength; at += cut) ours.send(bytes.subarray(at, at + cut))
        const frames = new Frames(theirs)
        const closing = ours.close()
        for (const payload of sent)
          expect(Buffer.compare((await frames.read(never)) ?? new Uint8Array(1), payload)).toBe(0)
        expect(await frames.read(never)).toBeUndefined()
        await closing
        await theirs.close()
      }),
      { numRuns: 30 },
    )
  })

  test('no more is queued for a peer that makes room by the byte', async () => {
    const [ours, theirs] = await streamPair()
    theirs.pause()
    const bytes = new Uint8Array(2 * 1024 * 1024).fill(7)
    const writing = new Frames(ours).writeBytes(bytes, never)
    await vi.waitFor(() => expect(ours.writeBufferLength).toBeGreaterThan(0))
    const queuedBytes = ours.writeBufferLength
    for (let nth = 0; nth < 50; nth++) {
      ours.dispatchEvent(new Event('drain'))
      await turn()
    }
    expect(ours.writeBufferLength).toBeLessThanOrEqual(queuedBytes)
    const frames = new Frames(theirs)
    theirs.resume()
    expect(Buffer.compare(await frames.readBytes(bytes.byteLength, never), bytes)).toBe(0)
    await writing
    ours.abort(new Error('done'))
  })

  test('random bytes give frames or a WireError, never anything else', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (bytes) => {
        const [ours, theirs] = await streamPair()
        const frames = new Frames(theirs)
        ours.send(bytes)
        await ours.close()
        for (;;) {
          const frame = await frames.read(never, 100).catch((error: Error) => {
            expect(error.name).toBe('WireError')
          })
          if (!frame) break
        }
        theirs.abort(new Error('done'))
      }),
      { numRuns: 50 },
    )
  })

  test.each([
    ['a length that is not minimal', [0x81, 0x00, 1], 'malformed'],
    ['a length over four bytes', [0xff, 0xff, 0xff, 0xff, 1], 'too-large'],
    ['a length over the limit', [0xff, 0x7f], 'too-large'],
    ['an end inside the length', [0x80], 'closed'],
    ['an end inside the payload', [5, 1, 2], 'closed'],
  ])('%s is refused', async (_what, bytes, code) => {
    const [ours, theirs] = await streamPair()
    const frames = new Frames(theirs)
    ours.send(Uint8Array.from(bytes))
    await ours.close()
    await expect(frames.read(never, 1_000)).rejects.toMatchObject({ code })
    theirs.abort(new Error('done'))
  })

  test('a reset is an error to whoever reads, and to whoever writes', async () => {
    const [ours, theirs] = await streamPair()
    const reading = new Frames(ours).read(never)
    theirs.abort(new Error('no'))
    await expect(reading).rejects.toMatchObject({ name: 'WireError', code: 'closed' })
    await expect(new Frames(theirs).writeBytes(new Uint8Array(10), never)).rejects.toMatchObject({ code: 'closed' })
  })

  test('a reset that came before anybody read is an error, not an end', async () => {
    const [ours, theirs] = await streamPair()
    const closed = new Promise((resolve) => ours.addEventListener('close', resolve, { once: true }))
    theirs.abort(new Error('no'))
    await closed
    await expect(new Frames(ours).read(never)).rejects.toMatchObject({ code: 'closed' })
  })

  test('a wait ends with its signal', async () => {
    const [ours, theirs] = await streamPair()
    const frames = new Frames(theirs)
    const leaving = new AbortController()
    const reading = frames.read(leaving.signal)
    leaving.abort(new Error('left'))
    await expect(reading).rejects.toThrow('left')
    ours.abort(new Error('done'))
  })

  test('a reader that does not read stops the writer; then all arrives', async () => {
    const [ours, theirs] = await streamPair()
    const out = new Frames(ours)
    const into = new Frames(theirs)
    const total = 64 * 1024 * 1024
    const block = new Uint8Array(1024 * 1024).fill(7)
    let sentBytes = 0
    const writing = (async () => {
      for (; sentBytes < total; sentBytes += block.byteLength) await out.writeBytes(block, never)
      await out.close()
    })()
    await settles(() => sentBytes)
    expect(sentBytes).toBeLessThan(40 * 1024 * 1024)
    const target = new Uint8Array(300_000)
    let readBytes = 0
    while (readBytes < total) {
      const want = target.subarray(0, Math.min(target.byteLength, total - readBytes))
      await into.readInto(want, never)
      readBytes += want.byteLength
    }
    expect(await into.read(never)).toBeUndefined()
    await writing
  })
})

/** Waits until the value is the same over many turns of the event loop. */
async function settles(value: () => number): Promise<void> {
  let last = -1
  for (let quiet = 0; quiet < 3_000; quiet++) {
    await new Promise((resolve) => setImmediate(resolve))
    if (value() !== last) quiet = 0
    last = value()
  }
}
