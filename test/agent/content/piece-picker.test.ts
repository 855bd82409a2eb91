/** Which piece is asked of whom: against a model, whatever sources come, go, give and fail. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Offer, offers, PiecePicker, type Run } from '../../../agent/content/piece-picker.ts'
import { GET_PIECES_MAX } from '../../../protocols/pieces/exchange.ts'
import { SHARE_PIECES } from '../../../protocols/pieces/share.ts'

const SOURCES = ['a', 'b', 'c', 'd'] as const
const LATE_AT_END_MS = 300
const LATE_MS = 3_000

function bitmapOf(count: number, pieces: Iterable<number>): Uint8Array {
  const bitmap = new Uint8Array(Math.ceil(count / 8))
  for (const index of pieces) bitmap[index >> 3] = (bitmap[index >> 3] ?? 0) | (0x80 >> (index & 7))
  return bitmap
}

const indices = ({ from, count }: Run) => Array.from({ length: count }, (_, at) => from + at)

type Step =
  | { do: 'pick'; source: number; countMax: number; alsoOthers: boolean }
  | { do: 'give' | 'refuse' | 'leave'; source: number }
  | { do: 'offer'; source: number; pieces: number[] | 'all' }
  | { do: 'wait'; ms: number }

const source = fc.nat(SOURCES.length - 1)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('pick'),
      source,
      countMax: fc.integer({ min: 1, max: 6 }),
      alsoOthers: fc.boolean(),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('give'), source }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('refuse', 'leave'), source }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('offer'),
      source,
      pieces: fc.oneof(fc.constant('all'), fc.array(fc.nat(39), { maxLength: 40 })),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('wait'), ms: fc.constantFrom(100, 400, 4_000) }) },
) as fc.Arbitrary<Step>

describe('the picker', () => {
  test('asks for what is missing and offered, of one source at a time but for what is late, and knows when all is asked', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40 }), fc.array(step, { maxLength: 120 }), (count, steps) => {
        let now = 0
        const here = new Set<number>()
        const offered = new Map<string, Offer>()
        /** Model: what every source was asked for and has not answered, and when. */
        const asked: { source: string; index: number; atMs: number }[] = []
        const picker = new PiecePicker({ pieceCount: count, has: (at) => here.has(at), self: 'me', now: () => now })
        const forget = (drop: (one: (typeof asked)[number]) => boolean) => {
          for (let at = asked.length - 1; at >= 0; at--)
            if (drop(asked[at] as (typeof asked)[number])) asked.splice(at, 1)
        }
        for (const one of steps) {
          if (one.do === 'wait') {
            now += one.ms
            continue
          }
          const name = SOURCES[one.source] as string
          if (one.do === 'offer') {
            const pieces =
              one.pieces === 'all'
                ? 'all'
                : bitmapOf(
                    count,
                    one.pieces.filter((at) => at < count),
                  )
            offered.set(name, pieces)
            picker.offer(name, pieces)
          } else if (one.do === 'leave') {
            offered.delete(name)
            forget((at) => at.source === name)
            picker.leave(name)
          } else if (one.do === 'pick') {
            const run = picker.pick(name, one.countMax, { alsoOthers: one.alsoOthers })
            const offer = offered.get(name)
            const missing = Array.from({ length: count }, (_, at) => at).filter((at) => !here.has(at))
            const free = missing.filter((at) => !asked.some(({ index }) => index === at))
            if (run === undefined) {
              // A source is idle only if it has nothing that is free, or is not to give what is for fellows.
              const hasFellows = [...offered.values()].some((other) => other !== 'all')
              const isHeldBack = offer === 'all' && hasFellows && !one.alsoOthers
              if (offer !== undefined && !isHeldBack) expect(free.filter((at) => offers(offer, at))).toEqual([])
              continue
            }
            const isShared = [...offered.values()].some((other) => other !== 'all')
            expect(run.count).toBeLessThanOrEqual(Math.min(one.countMax, isShared ? SHARE_PIECES : GET_PIECES_MAX))
            for (const index of indices(run)) {
              expect(offer !== undefined && offers(offer, index) && index < count && !here.has(index)).toBe(true)
              const before = asked.filter((at) => at.index === index)
              if (before.length > 0) {
                expect(run.count).toBe(1)
                expect(before).toHaveLength(1)
                expect(before[0]?.source).not.toBe(name)
                expect(now - (before[0]?.atMs ?? 0)).toBeGreaterThanOrEqual(
                  free.length === 0 ? LATE_AT_END_MS : LATE_MS,
                )
              }
              asked.push({ source: name, index, atMs: now })
            }
          } else {
            const first = asked.find((at) => at.source === name)
            if (!first) continue
            if (one.do === 'give') here.add(first.index)
            picker.settle(name, { from: first.index, count: 1 })
            forget((at) => (at.source === name || one.do === 'give') && at.index === first.index)
          }
        }
      }),
      { numRuns: 400 },
    )
  })

  test('always finishes, however sources come and go, with no piece asked for twice where nobody is late', () => {
    const speeds = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 })
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 300 }), speeds, fc.nat(3), (count, rates, fellows) => {
        const here = new Set<number>()
        const picker = new PiecePicker({ pieceCount: count, has: (at) => here.has(at), self: 'me', now: () => 0 })
        const under = rates.map(() => [] as number[])
        let askedTotal = 0
        for (const at of rates.keys()) picker.offer(`s${at}`, 'all')
        for (let at = 0; at < fellows; at++) picker.offer(`f${at}`, bitmapOf(count, []))
        for (let round = 0; here.size < count; round++) {
          if (round > 10 * count + 10) throw new Error('it does not finish')
          for (const [at, rate] of rates.entries()) {
            const mine = under[at] ?? []
            while (mine.length < 8) {
              // Fellows have nothing: after their own shares, sources give theirs, too.
              const run = picker.pick(`s${at}`, 4) ?? picker.pick(`s${at}`, 4, { alsoOthers: true })
              if (!run) break
              askedTotal += run.count
              mine.push(...indices(run))
            }
            for (const index of mine.splice(0, rate)) {
              here.add(index)
              picker.settle(`s${at}`, { from: index, count: 1 })
            }
          }
        }
        expect(askedTotal).toBe(count)
      }),
      { numRuns: 150 },
    )
  })
})

describe('fellows', () => {
  test('ask a whole source for different pieces, all of them together', () => {
    const names = ['p', 'q', 'r', 's']
    const count = 512
    const all = new Map<number, string[]>()
    for (const self of names) {
      const here = new Set<number>()
      const picker = new PiecePicker({ pieceCount: count, has: (at) => here.has(at), self })
      picker.offer('whole', 'all')
      for (const other of names) if (other !== self) picker.offer(other, bitmapOf(count, []))
      let own = 0
      for (let run = picker.pick('whole', 4); run; run = picker.pick('whole', 4)) {
        for (const index of indices(run)) all.set(index, [...(all.get(index) ?? []), self])
        own += run.count
      }
      // Not far from a fourth each.
      expect(own).toBeGreaterThan(count / 8)
      expect(own).toBeLessThan(count / 2)
    }
    expect(all.size).toBe(count)
    for (const askers of all.values()) expect(askers).toHaveLength(1)
  })

  test('are asked for the rarest first, and whole sources for nothing that fellows have', () => {
    const count = 16
    const picker = new PiecePicker({ pieceCount: count, has: () => false, self: 'me' })
    picker.offer('whole', 'all')
    picker.offer('common', bitmapOf(count, [0, 1, 2, 3, 12]))
    picker.offer('other', bitmapOf(count, [0, 1, 2, 3]))
    expect(picker.pick('common', 4)).toEqual({ from: 12, count: 1 })
    for (let run = picker.pick('whole', 4); run; run = picker.pick('whole', 4))
      for (const index of indices(run)) expect(index > 3 && index !== 12).toBe(true)
  })

  test('that are too slow leave their share to the whole source, from its end', () => {
    const count = 64
    const picker = new PiecePicker({ pieceCount: count, has: () => false, self: 'me' })
    picker.offer('whole', 'all')
    picker.offer('slow', bitmapOf(count, []))
    const own: number[] = []
    for (let run = picker.pick('whole', 4); run; run = picker.pick('whole', 4)) own.push(...indices(run))
    const theirs: number[] = []
    for (let run = picker.pick('whole', 4, { alsoOthers: true }); run; ) {
      theirs.push(run.from)
      run = picker.pick('whole', 4, { alsoOthers: true })
    }
    expect(theirs.length).toBeGreaterThan(0)
    expect(theirs).toEqual(theirs.toSorted((one, other) => other - one))
    expect(own.length + theirs.length * 4).toBe(count)
  })
})
