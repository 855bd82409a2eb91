/** Who of several sources is asked for what when some are slow: shares are left to fellows only as long as they bring them. */
import { describe, expect, test } from 'vitest'
import type { PartialBlob } from '../../../agent/content/partial-blob.ts'
import { Supply } from '../../../agent/content/supply.ts'
import { nameHash, shareWeight } from '../../../protocols/pieces/share.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'

const COUNT = 64

function supply(self = 'me', count = COUNT) {
  const clock = { now: 1_000_000 }
  const here = new Set<number>()
  const partial = {
    pieceCount: count,
    has: (index: number) => here.has(index),
    isFull: false,
    list: { sizeBytes: count * PIECE_BYTES, root: new Uint8Array(32), hashes: new Uint8Array(count * 32) },
  } as unknown as PartialBlob
  const made = new Supply(partial, self, () => clock.now)
  /** Asks the source for all that it may be asked for, which comes at `bytesPerMs`. */
  const drain = (peerId: string, pace: ReturnType<Supply['join']>, bytesPerMs: number) => {
    const pieces: number[] = []
    for (let run = made.pick(peerId); run; run = made.pick(peerId)) {
      pace.asked(run.count)
      pace.answered()
      for (let index = run.from; index < run.from + run.count; index++) {
        clock.now += PIECE_BYTES / bytesPerMs
        pace.arrived(PIECE_BYTES)
        here.add(index)
        made.wrote(peerId, index)
        pieces.push(index)
      }
    }
    return pieces
  }
  return { made, clock, here, drain }
}

const none = () => new Uint8Array(COUNT / 8)

describe('a source that has it all', () => {
  test('is asked for everything where nobody else fetches the blob', () => {
    const { made, drain } = supply()
    expect(drain('whole', made.join('whole', 'all'), 100_000)).toEqual([...Array(COUNT).keys()])
  })

  test('is not asked for the share of a fellow that has just come, and is when it brings nothing', () => {
    const { made, clock, drain } = supply()
    const whole = made.join('whole', 'all')
    made.join('fellow', none())
    const own = drain('whole', whole, 100_000)
    expect(own.length).toBeLessThan(COUNT)
    clock.now += 1_500
    expect(made.pick('whole')).toBeUndefined()
    clock.now += 600
    expect(drain('whole', whole, 100_000).length).toBe(COUNT - own.length)
  })

  test('is asked for it, too, when the fellow is much slower, and is not when it is as quick', () => {
    for (const [bytesPerMs, isSlow] of [
      [1_000, true],
      [100_000, false],
    ] as const) {
      const { made, clock, here, drain } = supply()
      const whole = made.join('whole', 'all')
      const fellow = made.join('fellow', none())
      drain('whole', whole, 100_000)
      const missing = [...Array(COUNT).keys()].filter((index) => !here.has(index)).slice(0, 2)
      const bitmap = none()
      for (const index of missing) bitmap[index >> 3] = (bitmap[index >> 3] ?? 0) | (0x80 >> (index & 7))
      clock.now += 2_500
      made.offer('fellow', bitmap)
      drain('fellow', fellow, bytesPerMs)
      expect(made.pick('whole') !== undefined).toBe(isSlow)
    }
  })

  test('is asked for what a fellow does not bring even by who has no share at all', () => {
    const peers = ['me', 'a', 'b', 'c']
    const weights = peers.map((peer) => shareWeight(nameHash(peer), 0))
    const self = peers.find((_, at) => weights[at] !== Math.max(...weights)) ?? ''
    const { made, clock } = supply(self, 4)
    made.join('whole', 'all')
    for (const peer of peers) if (peer !== self) made.join(peer, new Uint8Array(1))
    expect(made.pick('whole')).toBeUndefined()
    clock.now += 2_100
    expect(made.pick('whole')).toEqual({ from: 0, count: 4 })
  })
})

describe('a peer that is said to fetch the blob', () => {
  test('has its share left to it, until nothing is to be had of it', () => {
    const { made, drain } = supply()
    made.expect('named')
    const whole = made.join('whole', 'all')
    const own = drain('whole', whole, 100_000)
    expect(own.length).toBeLessThan(COUNT)
    made.giveUp('named')
    expect(drain('whole', whole, 100_000).length).toBe(COUNT - own.length)
  })
})

describe('the slowest source', () => {
  test('is named when it gives far less than is usual, once it had the time to show what it can', () => {
    const { made, clock } = supply()
    const rates = { quick: 100_000, usual: 50_000, slow: 1_000 }
    for (const [peerId, rate] of Object.entries(rates)) {
      const pace = made.join(peerId, 'all')
      pace.asked(1)
      clock.now += PIECE_BYTES / rate
      pace.arrived(PIECE_BYTES)
    }
    expect(made.slowest(5_000)).toBeUndefined()
    clock.now += 5_000
    expect(made.slowest(5_000)).toBe('slow')
    made.leave('slow')
    expect(made.slowest(5_000)).toBeUndefined()
  })
})
