/** A machine that comes elsewhere, or slept, with a clock and surroundings of the test's own. */
import { describe, expect, it } from 'vitest'
import { type Change, NetworkChange } from '../../../agent/mesh/network-change.ts'
import { quiet } from './nodes.ts'

/** Each step is a look, in time after the one before unless it says otherwise. */
async function looks(
  steps: { surroundings?: string; wallMs?: number; monotonicMs?: number }[],
): Promise<[number, Change][]> {
  const told: [number, Change][] = []
  const done = Promise.withResolvers<void>()
  let [step, wall, monotonic, seen] = [-1, 0, 0, 'home']
  const change = NetworkChange.start({
    onChange: (what) => told.push([step, what]),
    log: quiet,
    surroundings: () => seen,
    now: () => wall,
    monotonic: () => monotonic,
    rest: async (ms, signal) => {
      const next = steps[++step]
      if (next === undefined) {
        done.resolve()
        return await new Promise((resolve) => signal.addEventListener('abort', resolve))
      }
      wall += next.wallMs ?? ms
      monotonic += next.monotonicMs ?? ms
      seen = next.surroundings ?? seen
    },
  })
  await done.promise
  await change[Symbol.asyncDispose]()
  return told
}

describe('NetworkChange', () => {
  it('tells of another network once its addresses stay, and of one that never rests all the same', async () => {
    expect(await looks([{}, { surroundings: 'none' }, { surroundings: 'cafe' }, {}, {}])).toEqual([[3, 'moved']])
    const restless = Array.from({ length: 7 }, (_, nth) => ({ surroundings: `flapping ${nth}` }))
    expect(await looks(restless)).toEqual([[5, 'moved']])
  })

  it('tells nothing where an address went and came back', async () => {
    expect(await looks([{ surroundings: 'none' }, { surroundings: 'home' }, {}, {}])).toEqual([])
  })

  it('tells of a sleep, which stops one clock, of a stop, which stops none, and of neither when it is merely late', async () => {
    expect(await looks([{}, { wallMs: 3_600_000 }, {}])).toEqual([[1, 'woke']])
    expect(await looks([{ wallMs: 60_000, monotonicMs: 60_000 }, {}])).toEqual([[0, 'woke']])
    expect(await looks([{ wallMs: 5_000, monotonicMs: 5_000 }, {}])).toEqual([])
  })
})
