/** How far ahead of its answers a source is asked: bounded, and by what it gives. */
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Pace } from '../../../agent/content/pace.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'

const WINDOW_MAX = 32

/** A source that gives `piecesPerSecond`, each after `delayMs`; the window that is found for it in the end. */
function windowFor(piecesPerSecond: number, delayMs: number): number {
  let now = 0
  const pace = new Pace(() => now)
  const arrivals: number[] = []
  let lastMs = 0
  let window = 0
  for (let turn = 0; turn < 2_000; turn++) {
    while (pace.room > 0) {
      pace.asked(1)
      lastMs = Math.max(now + delayMs, lastMs + 1_000 / piecesPerSecond)
      arrivals.push(lastMs)
    }
    window = arrivals.length
    now = arrivals.shift() ?? now
    pace.answered()
    pace.arrived(PIECE_BYTES)
  }
  return window
}

test('a fast source far away is asked for as much as the line holds, a slow one for little', () => {
  // 100 MB/s at 1 ms, 10 MB/s at 200 ms, 100 KB/s.
  expect(windowFor(400, 1)).toBe(WINDOW_MAX)
  expect(windowFor(40, 200)).toBeGreaterThanOrEqual(8)
  expect(windowFor(40, 200)).toBeLessThanOrEqual(16)
  expect(windowFor(0.4, 20)).toBe(2)
})

test('what is under way never exceeds the bound, whatever a source does', () => {
  const event = fc.oneof(
    fc.record({ kind: fc.constant('ask'), count: fc.integer({ min: 1, max: 4 }) }),
    fc.record({ kind: fc.constantFrom('give', 'refuse'), ms: fc.nat(5_000) }),
  )
  fc.assert(
    fc.property(fc.array(event, { maxLength: 200 }), (events) => {
      let now = 0
      const pace = new Pace(() => now)
      const asked: number[] = []
      for (const one of events) {
        const under = asked.reduce((sum, count) => sum + count, 0)
        if (one.kind === 'ask' && 'count' in one && pace.room >= one.count) {
          pace.asked(one.count)
          asked.push(one.count)
        } else if ('ms' in one && under > 0) {
          now += one.ms
          if (one.kind === 'refuse') {
            pace.refused()
            asked.shift()
            continue
          }
          pace.answered()
          pace.arrived(PIECE_BYTES)
          asked[0] = (asked[0] ?? 1) - 1
          if (asked[0] === 0) asked.shift()
        }
        expect(asked.reduce((sum, count) => sum + count, 0)).toBeLessThanOrEqual(WINDOW_MAX)
      }
      if (asked.length === 0) expect(pace.room).toBeGreaterThanOrEqual(2)
    }),
  )
})
