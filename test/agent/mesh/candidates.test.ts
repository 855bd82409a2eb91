/** Whom to dial next: back-off, order, politeness and bounds, with the clock and the dice in the test's hand. */
import { multiaddr } from '@multiformats/multiaddr'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { backoffMs, Candidates } from '../../../agent/mesh/candidates.ts'

const at = [multiaddr('/ip4/192.0.2.1/tcp/7477')]
const nobody = () => false
const half = () => 0.5
const ids = (found: { peerId: string }[]) => found.map(({ peerId }) => peerId)

describe('Candidates', () => {
  test('of two peers that hear of each other, the smaller id dials at once and the larger later', () => {
    const smaller = new Candidates('a', half)
    const larger = new Candidates('b', half)
    smaller.hear('b', at, 'lan', 0)
    larger.hear('a', at, 'lan', 0)
    expect(ids(smaller.due(0, false, nobody))).toEqual(['b'])
    expect(ids(larger.due(0, false, nobody))).toEqual([])
    expect(ids(larger.due(2_000, false, nobody))).toEqual(['a'])
  })

  test('the LAN goes before remembered peers, and those before the DHT; who failed less goes first', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('dht', at, 'dht', 0)
    candidates.hear('book', at, 'book', 0)
    candidates.hear('lan', at, 'lan', 0)
    candidates.hear('lan2', at, 'lan', 0)
    candidates.failed('lan', 0)
    expect(ids(candidates.due(60_000, false, nobody))).toEqual(['lan2', 'lan', 'book', 'dht'])
    expect(ids(candidates.due(60_000, false, (id) => id === 'lan2'))).toEqual(['lan', 'book', 'dht'])
  })

  test('failures are waited out, longer each time; being seen on the LAN ends the wait', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('b', at, 'dht', 0)
    for (let failures = 0; failures < 6; failures++) candidates.failed('b', 0)
    expect(candidates.due(10_000, false, nobody)).toEqual([])
    candidates.hear('b', at, 'dht', 10_000)
    expect(candidates.due(10_000, false, nobody)).toEqual([])
    candidates.hear('b', at, 'lan', 10_000)
    expect(ids(candidates.due(10_000, false, nobody))).toEqual(['b'])
  })

  test('a member that says a new address has moved, which ends the wait; one that says the old ones again has not', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('b', at, 'network', 0)
    for (let failures = 0; failures < 6; failures++) candidates.failed('b', 0)
    candidates.hear('b', at, 'network', 10_000)
    expect(candidates.due(10_000, false, nobody)).toEqual([])
    candidates.hear('b', [multiaddr('/ip4/192.0.2.2/tcp/7477'), ...at], 'network', 10_000)
    expect(ids(candidates.due(10_000, false, nobody))).toEqual(['b'])
  })

  test('a node with no peer tries everybody again within 15 s', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('b', at, 'book', 0)
    for (let failures = 0; failures < 12; failures++) candidates.failed('b', 0)
    expect(candidates.due(16_000, false, nobody)).toEqual([])
    expect(ids(candidates.due(16_000, true, nobody))).toEqual(['b'])
  })

  test('a connection that lasted is dialled again at once; one that did not counts as a failure', () => {
    const candidates = new Candidates('a', half)
    for (const peerId of ['lasted', 'short']) {
      candidates.hear(peerId, at, 'book', 0)
      candidates.failed(peerId, 0)
      candidates.failed(peerId, 0)
    }
    candidates.lost('lasted', 120_000, 200_000)
    candidates.lost('short', 5_000, 200_000)
    expect(ids(candidates.due(201_000, false, nobody))).toEqual(['lasted'])
    expect(ids(candidates.due(205_000, false, nobody))).toEqual(['lasted', 'short'])
  })

  test('made-up peers push out those that failed, and never make it grow', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('good', at, 'book', 0)
    for (let number = 0; number < 3_000; number++) {
      candidates.hear(`x${number}`, at, 'dht', number + 1)
      candidates.failed(`x${number}`, number + 1)
    }
    expect(candidates.size).toBe(1_000)
    expect(ids(candidates.due(10_000_000, false, nobody))).toContain('good')
  })

  test('never holds itself, nor a peer without an address', () => {
    const candidates = new Candidates('a', half)
    candidates.hear('a', at, 'lan', 0)
    candidates.hear('b', [], 'lan', 0)
    expect(candidates.size).toBe(0)
  })

  test('the back-off doubles up to its limit, with jitter below it', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.double({ min: 0, max: 0.999, noNaN: true }),
        (failures, random) => {
          const ms = backoffMs(failures, 300_000, () => random)
          const full = Math.min(300_000, 1_000 * 2 ** (failures - 1))
          expect(ms).toBeGreaterThanOrEqual(full / 2)
          expect(ms).toBeLessThanOrEqual(full)
        },
      ),
    )
  })
})
