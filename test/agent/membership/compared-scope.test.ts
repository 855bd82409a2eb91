/** What is said after statements, with a scope and statements that do as the test says. */
import type { Stream } from '@libp2p/interface'
import { describe, expect, test } from 'vitest'
import { type ComparedScope, comparedScope } from '../../../agent/membership/compared-scope.ts'

const signal = new AbortController().signal

describe('what is said after statements', () => {
  test('has members once statements were compared with them, and neither waits for others nor dials them', async () => {
    const compared = new Set<string>()
    const opened: string[] = []
    const told: string[] = []
    const aborted: string[] = []
    let tell: (peerId: string, direction: 'inbound' | 'outbound') => void = () => undefined
    const scope: ComparedScope = {
      onPeer: () => expect.unreachable('it is told by the statements'),
      onPeerGone: () => () => undefined,
      connected: () => ['one', 'two'],
      openStream: async (peerId) => {
        opened.push(peerId)
        return { abort: () => void aborted.push(peerId) } as unknown as Stream
      },
      handle: async () => undefined,
      unhandle: async () => undefined,
    }
    const peers = comparedScope(scope, {
      onCompared: (listener) => {
        tell = listener
        return () => undefined
      },
      isCompared: (peerId) => compared.has(peerId),
    })
    peers.onPeer((peerId) => told.push(peerId))
    await expect(peers.openStream('one', '/undernet/records/1', signal)).rejects.toMatchObject({ code: 'not-found' })
    expect([opened, told, peers.connected()]).toEqual([[], [], []])
    compared.add('one')
    tell('one', 'outbound')
    await peers.openStream('one', '/undernet/records/1', signal)
    await expect(peers.openStream('two', '/undernet/records/1', signal)).rejects.toMatchObject({ code: 'not-found' })
    expect([opened, told, peers.connected()]).toEqual([['one'], ['one'], ['one']])
    // It went while a stream to it was being opened, and came again.
    const late = peers.openStream('one', '/undernet/records/1', signal)
    compared.delete('one')
    await expect(late).rejects.toMatchObject({ code: 'not-found' })
    expect(aborted).toEqual(['one'])
  })
})
