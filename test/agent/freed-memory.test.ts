/** When memory that was freed is given back to the machine. */
import { expect, it, vi } from 'vitest'
import { FreedMemory } from '../../agent/freed-memory.ts'
import { memoryLog } from './nix/peers.ts'

const MIB = 2 ** 20

function grown(by: number, freed: number) {
  let rss = 100 * MIB
  let trims = 0
  const memory = new FreedMemory({
    log: memoryLog(),
    rssBytes: () => rss,
    loadTrim: async () => async () => {
      trims++
      rss -= freed
    },
    lookMs: 1,
  })
  rss += by
  return { memory, trims: () => trims, rss: () => rss }
}

it('is searched for when the process has grown, and not any more when it has shrunk', async () => {
  const { memory, trims, rss } = grown(60 * MIB, 50 * MIB)
  using _memory = memory
  await vi.waitFor(() => expect(rss()).toBe(110 * MIB))
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(trims()).toBe(1)
})

it('is not searched for while the process has not grown', async () => {
  const { memory, trims } = grown(10 * MIB, 10 * MIB)
  using _memory = memory
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(trims()).toBe(0)
})

it('is searched for ever less often when there is none', async () => {
  const { memory, trims } = grown(60 * MIB, 0)
  using _memory = memory
  let looks = 0
  const counter = setInterval(() => looks++, 1)
  await vi.waitFor(() => expect(trims()).toBeGreaterThanOrEqual(4))
  clearInterval(counter)
  expect(looks).toBeGreaterThan(10)
})

it('is left alone where the C library cannot say', async () => {
  let rss = 0
  let loads = 0
  using _memory = new FreedMemory({
    log: memoryLog(),
    rssBytes: () => rss,
    loadTrim: async () => {
      loads++
      return undefined
    },
    lookMs: 1,
  })
  rss = 200 * MIB
  await vi.waitFor(() => expect(loads).toBe(1))
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(loads).toBe(1)
})
