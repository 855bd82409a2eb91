/** What is remembered of single peers: here, what their clocks together say of ours. */
import { expect, test } from 'vitest'
import { PeerLimits } from '../../../agent/catalog/peer-limits.ts'

test.each([
  [[], undefined],
  [[300], 300],
  [[-300], -300],
  // One wrong clock beside one that agrees with ours does not make ours wrong.
  [[0, 300], 0],
  [[-300, 0], 0],
  [[300, 310], 300],
  [[-310, -300], -300],
  [[0, 1, 300], 1],
  [[-5, 0, 5, 300], 0],
])('of peers whose clocks are ahead by %j the clocks together are ahead by %j', (offsets, together) => {
  const limits = new PeerLimits(() => 1_000_000)
  for (const [nth, offsetMs] of offsets.entries()) limits.noteClock(`peer ${nth}`, offsetMs)
  expect(limits.clockOffsetMs()).toBe(together)
})
