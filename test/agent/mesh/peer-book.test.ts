/** Peers remembered across restarts. */
import { describe, expect, test } from 'vitest'
import { PeerBook } from '../../../agent/mesh/peer-book.ts'
import { memoryDatabase } from './nodes.ts'

describe('PeerBook', () => {
  test('remembers peers, newest first, across a restart', () => {
    const db = memoryDatabase()
    const book = new PeerBook(db)
    book.remember('a', ['/ip4/192.0.2.1/tcp/1'], 1_000)
    book.remember('b', ['/ip4/192.0.2.2/tcp/1'], 2_000)
    book.remember('a', ['/ip4/192.0.2.3/tcp/1'], 3_000)
    expect(new PeerBook(db).recent(10)).toEqual([
      { peerId: 'a', addresses: ['/ip4/192.0.2.3/tcp/1'], connectedMs: 3_000 },
      { peerId: 'b', addresses: ['/ip4/192.0.2.2/tcp/1'], connectedMs: 2_000 },
    ])
    expect(new PeerBook(db).recent(1)).toHaveLength(1)
  })

  test('does not write again for a peer that comes and goes', () => {
    const book = new PeerBook(memoryDatabase())
    book.remember('a', ['/ip4/192.0.2.1/tcp/1'], 1_000)
    book.remember('a', ['/ip4/192.0.2.1/tcp/1'], 2_000)
    expect(book.recent(1)[0]?.connectedMs).toBe(1_000)
    book.remember('a', ['/ip4/192.0.2.1/tcp/1'], 1_000_000)
    expect(book.recent(1)[0]?.connectedMs).toBe(1_000_000)
  })

  test('keeps the newest thousand, and nobody without an address', () => {
    const book = new PeerBook(memoryDatabase())
    book.remember('nowhere', [], 1)
    for (let number = 0; number < 1_200; number++) book.remember(`p${number}`, ['/ip4/192.0.2.1/tcp/1'], number + 1)
    expect(book.size).toBe(1_000)
    expect(book.recent(1_000).at(-1)?.peerId).toBe('p200')
  })
})
