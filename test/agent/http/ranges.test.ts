/** The Range header: nothing outside what there is, whatever is asked for. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { rangeOf } from '../../../agent/http/ranges.ts'

it('gives no range outside the file, whatever is asked for', () => {
  const number = fc.oneof(fc.nat(300).map(String), fc.constantFrom('', '9'.repeat(30), '-1', 'x'))
  fc.assert(
    fc.property(number, number, fc.nat(200), (from, to, sizeBytes) => {
      const range = rangeOf(`bytes=${from}-${to}`, sizeBytes)
      if (range === undefined || range === 'unsatisfiable') return
      expect(range.length).toBeGreaterThan(0)
      expect(range.offset).toBeGreaterThanOrEqual(0)
      expect(range.offset + range.length).toBeLessThanOrEqual(sizeBytes)
    }),
  )
  fc.assert(fc.property(fc.string(), (header) => rangeOf(header, 100) === undefined))
})

it('reads one range, and refuses what nothing is in', () => {
  const all = ['bytes=0-9', 'bytes=90-', 'bytes=-10', 'bytes=90-1000', 'bytes=-1000'].map((one) => rangeOf(one, 100))
  expect(all).toEqual([
    { offset: 0, length: 10 },
    { offset: 90, length: 10 },
    { offset: 90, length: 10 },
    { offset: 90, length: 10 },
    { offset: 0, length: 100 },
  ])
  for (const one of ['bytes=100-', 'bytes=5-4', 'bytes=-0'])
    expect([one, rangeOf(one, 100)]).toEqual([one, 'unsatisfiable'])
  for (const one of ['bytes=0-1,5-6', 'pieces=0-1', 'bytes=-', 'bytes=a-b'])
    expect([one, rangeOf(one, 100)]).toEqual([one, undefined])
})
