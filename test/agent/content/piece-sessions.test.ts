/** Streams to peers on which blobs are asked for: when one that could not be opened is tried again. */
import { StreamResetError } from '@libp2p/interface'
import { expect, test } from 'vitest'
import { PieceSessions } from '../../../agent/content/piece-sessions.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { never } from './peers.ts'

const OF = { peerId: 'somebody', network: OPEN_NETWORK_ID }

/** Sessions to a peer to which no stream can be opened; and how often it was tried. */
function failing(error: Error) {
  const tried = { count: 0 }
  const openStream = async () => {
    tried.count++
    throw error
  }
  return { sessions: new PieceSessions({ openStream }), tried }
}

test('a stream that was reset before anything was said on it is opened once more, and no more than that', async () => {
  const { sessions, tried } = failing(new StreamResetError('too early'))
  await expect(sessions.take(OF, never)).rejects.toMatchObject({
    code: 'closed',
    message: expect.stringContaining('too early'),
  })
  expect(tried.count).toBe(2)
})

test('a peer that cannot be reached is not dialled again', async () => {
  const { sessions, tried } = failing(new Error('connection refused'))
  await expect(sessions.take(OF, never)).rejects.toMatchObject({ code: 'closed' })
  expect(tried.count).toBe(1)
})
