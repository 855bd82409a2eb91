/** Room for streams: tunnels of members are counted apart from all that anybody may open. */
import type { Stream } from '@libp2p/interface'
import { expect, it } from 'vitest'
import { roomed } from '../../../agent/mesh/stream-room.ts'

const TUNNEL = '/undernet/network/1/undernet/tunnel/1'
const OTHERS_MAX = 256

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
