/** Room for streams: tunnels of members are counted apart from all that anybody may open. */
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Stream, StreamMuxer } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import { createLibp2p, type Libp2p } from 'libp2p'
import { expect, it, onTestFinished, vi } from 'vitest'
import { roomed } from '../../../agent/mesh/stream-room.ts'

const TUNNEL = '/undernet/network/1/undernet/tunnel/1'
const OTHERS_MAX = 256
/** The library's own bound is 10. */
const EARLY = 100

/** A muxer that takes whatever the other side opens. */
function muxer() {
  const streams: Stream[] = []
  const aborted = new Set<Stream>()
  const taken = { streams, onRemoteStream: (stream: Stream) => void streams.push(stream) }
  const make = roomed((() => ({ createStreamMuxer: () => taken })) as never)
  make().createStreamMuxer({} as never)
  const open = (protocol: string, direction = 'inbound') => {
    const stream = { protocol, direction, abort: () => void aborted.add(stream) } as unknown as Stream
    if (direction === 'inbound') taken.onRemoteStream(stream)
    else streams.push(stream)
    return !aborted.has(stream)
  }
  return { open }
}

it('is so much for what anybody may open, whatever is open in the other direction', () => {
  const { open } = muxer()
  for (let nth = 0; nth < 500; nth++) open('', 'outbound')
  for (let nth = 0; nth < OTHERS_MAX; nth++) expect(open('')).toBe(true)
  expect(open('')).toBe(false)
  expect(open('/ipfs/ping/1.0.0')).toBe(false)
})

it('is left for others by any number of tunnels', () => {
  const { open } = muxer()
  for (let nth = 0; nth < 2_000; nth++) expect(open(TUNNEL)).toBe(true)
  for (let nth = 0; nth < OTHERS_MAX; nth++) expect(open('')).toBe(true)
  expect(open('')).toBe(false)
})

it('is there for all that is opened before the connection is made on the other side', async () => {
  const made = Promise.withResolvers<boolean>()
  const listener = await host(() => made.promise)
  const dialler = await host(async () => false)
  await listener.node.handle('/echo/1', (stream) => void stream.close(), { maxInboundStreams: EARLY })
  const connection = await dialler.node.dial(listener.node.getMultiaddrs())
  const opening = Promise.all(
    Array.from({ length: EARLY }, () => connection.newStream('/echo/1', { maxOutboundStreams: EARLY })),
  )
  opening.catch(() => undefined)
  await vi.waitFor(() => expect(listener.muxers[0]?.streams).toHaveLength(EARLY), { timeout: 10_000 })
  made.resolve(false)
  await expect(opening).resolves.toHaveLength(EARLY)
})

/** `isRefused` is asked when there is a muxer and no connection yet. */
async function host(isRefused: () => Promise<boolean>): Promise<{ node: Libp2p; muxers: StreamMuxer[] }> {
  const muxers: StreamMuxer[] = []
  const node = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [
      () => {
        const factory = roomed(yamux())()
        const create = factory.createStreamMuxer.bind(factory)
        factory.createStreamMuxer = (channel) => {
          const muxer = create(channel)
          muxers.push(muxer)
          return muxer
        }
        return factory
      },
    ],
    connectionGater: { denyInboundUpgradedConnection: isRefused },
  })
  onTestFinished(() => node.stop())
  return { node, muxers }
}
