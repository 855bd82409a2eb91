/**
 * How many streams a peer may open on a connection: tunnels, which only members can have, are counted apart (routing/acceptor.ts bounds them for each
 * member), so that their number leaves strangers no more room than they had.
 */
import type { yamux } from '@chainsafe/libp2p-yamux'
import type { Stream } from '@libp2p/interface'
import { NETWORK_PROTOCOL } from '../../protocols/membership/streams.ts'
import { TUNNEL_PROTOCOL, TUNNELS_PER_PEER_MAX } from '../../protocols/tunnel/tunnel.ts'

/** Over all other protocols. Each may hold what a handler has not read yet. */
const OTHER_STREAMS_MAX = 256
/** For yamux, in each direction. */
export const STREAMS_MAX = OTHER_STREAMS_MAX + TUNNELS_PER_PEER_MAX
/** As the scope of a network names it, once it has taken the stream. */
const TUNNEL = NETWORK_PROTOCOL + TUNNEL_PROTOCOL

type Factory = ReturnType<ReturnType<typeof yamux>>
/** Its own types hide how streams of the other side come in. */
type Opened = { streams: Stream[]; onRemoteStream(stream: Stream): void }

/** The same, with room for so many. */
export function roomed(make: ReturnType<typeof yamux>): ReturnType<typeof yamux> {
  return () => {
    const factory = make()
    const create = factory.createStreamMuxer.bind(factory)
    factory.createStreamMuxer = (channel): ReturnType<Factory['createStreamMuxer']> => {
      const muxer = create(channel)
      const opened = muxer as unknown as Opened
      const take = opened.onRemoteStream.bind(muxer)
      opened.onRemoteStream = (stream) => {
        const isTaken = isRoom(opened.streams)
        // Also what is refused is the muxer's to count and forget.
        take(stream)
        if (!isTaken) stream.abort(new Error('too many streams'))
      }
      return muxer
    }
    return factory
  }
}

export function isRoom(streams: readonly Stream[]): boolean {
  if (streams.length < OTHER_STREAMS_MAX) return true
  const others = streams.filter(({ direction, protocol }) => direction === 'inbound' && protocol !== TUNNEL)
  return others.length < OTHER_STREAMS_MAX
}
