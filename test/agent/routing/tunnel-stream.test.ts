/** A stream of the mesh as a Duplex: nothing is lost, ends are ends, and whatever else ends it is a reset. */
import { once } from 'node:events'
import type { Stream } from '@libp2p/interface'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { TunnelStream } from '../../../agent/routing/tunnel-stream.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import { until } from '../../agents.ts'
import { streamPair } from '../../stream-pair.ts'

const signal = AbortSignal.timeout(10_000)
const soon = (what: string, look: () => boolean) => until(async () => look(), { what, ms: 5_000 })

function pair(): { near: TunnelStream; far: Stream; stream: Stream } {
  const [stream, far] = streamPair()
  return { near: new TunnelStream(stream), far, stream }
}

async function readAll(stream: TunnelStream): Promise<Buffer> {
  return Buffer.concat((await stream.toArray()) as Buffer[])
}

describe('a tunnel stream', () => {
  it('gives frames and then bytes, however they are cut, also when the end comes with them', async () => {
    const frames = fc.array(fc.uint8Array({ maxLength: 200 }), { minLength: 1, maxLength: 3 })
    await fc.assert(
      fc.asyncProperty(
        frames,
        fc.uint8Array({ maxLength: 500 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 90 })),
        async (heads, rest, cuts) => {
          const { near, far } = pair()
          const all = Buffer.concat([...heads.map(encodeFrame), rest])
          for (let at = 0; at < all.byteLength; ) {
            const size = cuts.next().value as number
            far.send(all.subarray(at, at + size))
            at += size
          }
          void far.close()
          for (const head of heads) expect(Buffer.compare(await near.readFrame(200, signal), head)).toBe(0)
          near.begin()
          expect(Buffer.compare(await readAll(near), rest)).toBe(0)
          expect(near.receivedBytes).toBe(rest.byteLength)
        },
      ),
    )
  })

  it('sends all that is written, small things together, and then ends', async () => {
    const { near, far } = pair()
    near.begin()
    const other = new TunnelStream(far)
    other.begin()
    const parts = Array.from({ length: 300 }, (_, at) => Buffer.alloc((at * 997) % 5_000, at))
    near.cork()
    for (const part of parts) near.write(part)
    near.uncork()
    near.end()
    expect(Buffer.compare(await readAll(other), Buffer.concat(parts))).toBe(0)
    expect(near.sentBytes).toBe(Buffer.concat(parts).byteLength)
  })

  it('refuses frames that are too large, not minimal, or cut off', async () => {
    for (const [bytes, code] of [
      [encodeFrame(new Uint8Array(201)), 'too-large'],
      [Uint8Array.of(0xff, 0xff, 0x7f), 'too-large'],
      [Uint8Array.of(0x80, 0x00), 'malformed'],
      [Uint8Array.of(5, 1), 'closed'],
    ] as const) {
      const { near, far } = pair()
      far.send(bytes)
      void far.close()
      await expect(near.readFrame(200, signal)).rejects.toMatchObject({ code })
    }
  })

  it('hears a reset while frames are read, and while bytes are', async () => {
    const first = pair()
    const reading = first.near.readFrame(200, signal)
    first.far.abort(new Error('no'))
    await expect(reading).rejects.toMatchObject({ code: 'closed' })
    const second = pair()
    second.near.begin()
    second.far.abort(new Error('no'))
    await soon('it is told', () => second.near.errored !== null)
    expect(second.near.errored).toMatchObject({ code: 'ECONNRESET' })
  })

  it('takes a connection that goes away without an end for a reset', async () => {
    const [stream] = streamPair()
    const near = new TunnelStream(stream)
    near.begin()
    // As the library does when a connection is closed in order.
    Object.assign(stream, { status: 'closed', remoteWriteStatus: 'closed', readableEnded: true })
    stream.dispatchEvent(new Event('end'))
    stream.dispatchEvent(new Event('close'))
    await soon('it is told', () => near.errored !== null)
    expect(near.errored).toMatchObject({ code: 'ECONNRESET' })
  })

  it('slows a sender down, whose bytes all come when they are read', async () => {
    const { near, far, stream } = pair()
    let paused = 0
    const pause = stream.pause.bind(stream)
    Object.assign(stream, {
      pause: () => {
        paused++
        pause()
      },
    })
    near.begin()
    const total = 3 * 1024 * 1024
    for (let sent = 0; sent < total; sent += 65_536) far.send(new Uint8Array(65_536))
    void far.close()
    await soon('it pauses', () => paused > 0)
    expect(near.readableLength).toBeLessThan(total / 2)
    expect((await readAll(near)).byteLength).toBe(total)
  })

  it('waits for the stream to drain', async () => {
    const { near, far, stream } = pair()
    near.begin()
    const sent: number[] = []
    Object.assign(stream, { send: (bytes: Uint8Array) => sent.push(bytes.byteLength) < 0 })
    near.write(Buffer.alloc(10))
    near.write(Buffer.alloc(20))
    await soon('the first is sent', () => sent.length === 1)
    Reflect.deleteProperty(stream, 'send')
    const other = new TunnelStream(far)
    other.begin()
    stream.dispatchEvent(new Event('drain'))
    await once(other, 'readable')
    expect(other.read()).toHaveLength(20)
  })
})
