/**
 * A network's scope for whatever is said after statements: a member is there once statements have been compared with it, and not before, so
 * that who is out is known before anything else is heard. What waits for a connection cannot come first either.
 */
import { AgentError } from '../error.ts'
import type { NetworkScope } from '../mesh/network-streams.ts'
import type { Statements } from './statements.ts'

export type ComparedScope = Pick<
  NetworkScope,
  'onPeer' | 'onPeerGone' | 'connected' | 'openStream' | 'handle' | 'unhandle'
>

export function comparedScope(
  scope: ComparedScope,
  statements: Pick<Statements, 'onCompared' | 'isCompared'>,
): ComparedScope {
  const expectCompared = (peerId: string) => {
    if (!statements.isCompared(peerId))
      throw new AgentError('not-found', `statements have not been compared with ${peerId} yet`)
  }
  return {
    onPeer: (listener) => statements.onCompared(listener),
    onPeerGone: (listener) => scope.onPeerGone(listener),
    connected: () => scope.connected().filter((peerId) => statements.isCompared(peerId)),
    openStream: async (peerId, protocol, signal) => {
      expectCompared(peerId)
      const stream = await scope.openStream(peerId, protocol, signal)
      try {
        // The peer may have gone while this waited, and the stream be one of the next time that they meet.
        expectCompared(peerId)
        return stream
      } catch (error) {
        stream.abort(error as Error)
        throw error
      }
    },
    handle: (protocol, handler, options) => scope.handle(protocol, handler, options),
    unhandle: (protocol) => scope.unhandle(protocol),
  }
}
