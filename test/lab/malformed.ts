/**
 * What no parser likes: garbage, beginnings without ends, lengths that promise gigabytes, wrong CBOR, thousands of streams; on protocols, on
 * bare secure channels and on sockets. All of it bounded in number and in time.
 */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { MessageStream, Stream } from '@libp2p/interface'
import { encodeCbor } from '../../protocols/cbor.ts'
import { encodeFrame } from '../../protocols/frame.ts'

/** Who has not ended by then waits for more, which is its right: then it is left. */
const WAIT_MS_MAX = 1_500
const POLL_MS = 20

const deep = Buffer.concat([Buffer.alloc(4_000, 0x81), Buffer.from([0x80])])
/** What is sent in place of a message, by what is wrong with it. */
const MALFORMED: Record<string, () => Uint8Array> = {
  garbage: () => randomBytes(8_192),
  'a frame that is cut short': () => encodeFrame(encodeCbor({ ask: 'summary', v: 1 })).subarray(0, -2),
  'a length of 256 MiB': () => Buffer.concat([Buffer.from('ffffff7f', 'hex'), Buffer.alloc(32_768, 1)]),
  'a length without an end': () => Buffer.alloc(64, 0xff),
  'a frame of nothing': () => Uint8Array.of(0),
  'CBOR in another order': () => encodeFrame(Buffer.from('a2626262016161f5', 'hex')),
  'a list that claims 2^63 entries': () => encodeFrame(Buffer.from('9b7fffffffffffffff', 'hex')),
  'CBOR that is deep': () => encodeFrame(deep),
  'fields of wrong types': () =>
    encodeFrame(encodeCbor({ ask: 7, op: ['get'], network: 'home', protocol: 0, v: -1, tags: null, nonce: [] })),
}

/** Each kind on a stream of its own, which is then ended. Streams that cannot be had are no fault. */
export async function sendMalformed(open: () => Promise<Stream>): Promise<void> {
  await Promise.all(
    Object.values(MALFORMED).map(async (make) => {
      const stream = await open().catch(() => undefined)
      if (stream === undefined) return
      send(stream, make())
      await stream.close().catch(() => undefined)
      await over(stream)
    }),
  )
}

/** Each kind in place of the hello, or of a multiplexer. */
export async function sendMalformedOn(open: () => Promise<MessageStream>): Promise<void> {
  await Promise.all(
    Object.values(MALFORMED).map(async (make) => {
      const channel = await open()
      send(channel, make())
      await over(channel)
    }),
  )
}

/** Each kind in place of a secure channel. */
export async function sendMalformedTo(host: string, port: number): Promise<void> {
  await Promise.all(
    Object.values(MALFORMED).map(async (make) => {
      const socket = connect({ host, port })
      socket.on('error', () => undefined).resume()
      socket.write(make())
      const ended = new Promise((resolve) => socket.once('close', resolve))
      await Promise.race([ended, delay(WAIT_MS_MAX)])
      socket.destroy()
    }),
  )
}

/** So many streams, a hundred at a time, each begun and left open until the hundred are there. Answers how many there were. */
export async function floodStreams(open: () => Promise<Stream>, count: number): Promise<number> {
  let opened = 0
  for (let begun = 0; begun < count; begun += 100) {
    const streams = await Promise.all(Array.from({ length: 100 }, () => open().catch(() => undefined)))
    for (const stream of streams) {
      if (stream === undefined) continue
      opened++
      send(stream, Uint8Array.of(0x80))
    }
    for (const stream of streams) stream?.abort(new Error('enough'))
  }
  return opened
}

function send(stream: MessageStream, bytes: Uint8Array): void {
  try {
    stream.send(bytes)
  } catch {
    // Reset meanwhile.
  }
}

async function over(stream: MessageStream): Promise<void> {
  const endMs = performance.now() + WAIT_MS_MAX
  while (stream.status === 'open' && performance.now() < endMs) await delay(POLL_MS)
  if (stream.status === 'open') stream.abort(new Error('enough'))
}
