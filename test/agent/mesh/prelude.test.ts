/** Frames before a stream becomes somebody else's: nothing of theirs is lost or heard early, however it was cut. */
import { StreamCloseEvent, StreamMessageEvent } from '@libp2p/interface'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Prelude } from '../../../agent/mesh/prelude.ts'
import { WireError } from '../../../protocols/error.ts'
import { encodeFrame } from '../../../protocols/frame.ts'

const never = new AbortController().signal

/** As much of a channel as Prelude uses, and somebody who listens after it. */
class Channel extends EventTarget {
  status = 'open'
  paused = false
  sent: Uint8Array[] = []
  heard: number[] = []

  constructor() {
    super()
    setTimeout(() =>
      this.addEventListener('message', (event) => this.heard.push(...(event as StreamMessageEvent).data.subarray())),
    )
  }

  send(bytes: Uint8Array): boolean {
    this.sent.push(bytes)
    return true
  }

  pause(): void {
    this.paused = true
  }

  resume(): void {
    this.paused = false
  }

  unshift(bytes: Uint8Array): void {
    this.heard.push(...bytes)
  }

  receive(bytes: Uint8Array): void {
    this.dispatchEvent(new StreamMessageEvent(bytes))
  }
}

function preludeOn(channel: Channel): Prelude {
  return new Prelude(channel as unknown as ConstructorParameters<typeof Prelude>[0])
}

describe('a prelude', () => {
  it('reads frames and hands on the rest, in whatever pieces they come', async () => {
    const payloads = fc.array(fc.uint8Array({ maxLength: 300 }), { minLength: 1, maxLength: 4 })
    const run = fc.asyncProperty(
      payloads,
      fc.uint8Array({ maxLength: 50 }),
      fc.integer({ min: 1, max: 400 }),
      async (frames, rest, size) => {
        const channel = new Channel()
        const prelude = preludeOn(channel)
        const all = Buffer.concat([...frames.map(encodeFrame), rest])
        const read = (async () => {
          const got: Uint8Array[] = []
          for (const _ of frames) got.push(await prelude.read(never))
          prelude.release()
          return got
        })()
        for (let at = 0; at < all.byteLength; at += size) {
          channel.receive(all.subarray(at, at + size))
          await new Promise((resolve) => setTimeout(resolve))
        }
        expect((await read).map((one) => [...one])).toEqual(frames.map((one) => [...one]))
        expect(channel.heard).toEqual([...rest])
      },
    )
    await fc.assert(run, { numRuns: 40 })
  })

  it.each([
    ['a length that is not minimal', [0x81, 0x00], 'malformed'],
    ['a length over three bytes', [0x80, 0x80, 0x80], 'too-large'],
    ['a frame over the limit, before it comes', [0x65], 'too-large'],
  ])('refuses %s', async (_what, bytes, code) => {
    const channel = new Channel()
    const prelude = preludeOn(channel)
    channel.receive(Uint8Array.from(bytes))
    await expect(prelude.read(never, 100)).rejects.toThrow(expect.objectContaining({ name: 'WireError', code }))
  })

  it('slows down a peer that sends more than a hello, and lets it go on afterwards', async () => {
    const channel = new Channel()
    const prelude = preludeOn(channel)
    channel.receive(Uint8Array.of(1, 7))
    channel.receive(new Uint8Array(70_000))
    expect(channel.paused).toBe(true)
    expect([...(await prelude.read(never))]).toEqual([7])
    prelude.release()
    expect([channel.paused, channel.heard.length]).toEqual([false, 70_000])
  })

  it('ends with the channel, and with the signal', async () => {
    const channel = new Channel()
    const prelude = preludeOn(channel)
    const read = prelude.read(never)
    channel.dispatchEvent(new StreamCloseEvent())
    await expect(read).rejects.toThrow(WireError)
    const other = preludeOn(new Channel())
    await expect(other.read(AbortSignal.abort(new Error('stop')))).rejects.toThrow('stop')
    const stop = new AbortController()
    const waiting = other.read(stop.signal)
    stop.abort(new Error('late'))
    await expect(waiting).rejects.toThrow('late')
  })

  it('writes frames, and not on a closed channel', async () => {
    const channel = new Channel()
    const prelude = preludeOn(channel)
    await prelude.write(Uint8Array.of(1, 2), never)
    expect([channel.sent.map((one) => [...one]), prelude.written]).toEqual([[[2, 1, 2]], 1])
    channel.status = 'closed'
    await expect(prelude.write(Uint8Array.of(1), never)).rejects.toThrow(WireError)
  })
})
