/** Datagrams in frames: those that are none end the tunnel, and those that would wait are dropped. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Datagrams } from '../../../agent/routing/datagrams.ts'
import { TunnelStream } from '../../../agent/routing/tunnel-stream.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import { until } from '../../agents.ts'
import { streamPair } from '../../stream-pair.ts'
import { instanceOf } from './instance.ts'

const soon = (what: string, look: () => boolean) => until(async () => look(), { what, ms: 5_000 })

function pair() {
  const [stream, far] = streamPair()
  const near = new TunnelStream(stream)
  near.begin()
  return { near, far, stream, datagrams: new Datagrams(near, { instance: instanceOf(), path: 'direct' }) }
}

describe('datagrams', () => {
  it('come as they were sent, however the stream is cut', async () => {
    const many = fc.array(fc.uint8Array({ maxLength: 300 }), { minLength: 1, maxLength: 20 })
    await fc.assert(
      fc.asyncProperty(many, fc.integer({ min: 1, max: 50 }), async (sent, size) => {
        const { far, datagrams } = pair()
        const heard: Uint8Array[] = []
        datagrams.onDatagram((bytes) => heard.push(Uint8Array.from(bytes)))
        const all = Buffer.concat(sent.map(encodeFrame))
        for (let at = 0; at < all.byteLength; at += size) far.send(all.subarray(at, at + size))
        await soon('all came', () => heard.length === sent.length)
        expect(heard).toEqual(sent)
      }),
      { numRuns: 30 },
    )
  })

  it('that are longer than can be, or no frames, end the tunnel, whatever the bytes are', async () => {
    for (const bytes of [Uint8Array.of(0xff, 0xff, 0xff, 1), encodeFrame(new Uint8Array(65_508)).subarray(0, 10)]) {
      const { near, far, datagrams } = pair()
      let closed = 0
      datagrams.onClose(() => closed++)
      far.send(bytes)
      await soon('it is over', () => near.destroyed && closed === 1)
    }
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 100 }), async (bytes) => {
        const { near, far, datagrams } = pair()
        datagrams.onDatagram(() => undefined)
        far.send(bytes)
        await far.close()
        await soon('it is over', () => near.destroyed)
      }),
      { numRuns: 50 },
    )
  })

  it('are dropped when too many wait', async () => {
    const { near, stream, datagrams } = pair()
    Object.assign(stream, { send: () => false })
    for (let nth = 0; nth < 1_000; nth++) datagrams.send(new Uint8Array(10_000))
    expect(near.writableLength).toBeLessThan(600_000)
  })
})
