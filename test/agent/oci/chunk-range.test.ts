/** The Content-Range of a chunk. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { formatUploadRange, parseChunkRange } from '../../../agent/oci/chunk-range.ts'

it('reads what clients write, both ends included', () => {
  fc.assert(
    fc.property(fc.nat(), fc.nat(), (offset, more) => {
      const range = { offset, length: more + 1 }
      const ends = `${offset}-${offset + more}`
      for (const text of [ends, `bytes=${ends}`, `bytes ${ends}/*`, `bytes ${ends}/${offset + more + 1}`])
        expect([text, parseChunkRange(text)]).toEqual([text, range])
    }),
  )
})

it('refuses everything else, and never gives a range of nothing', () => {
  for (const text of [
    '',
    '-',
    '0-',
    '-5',
    '5-4',
    '0--1',
    'a-b',
    '0-1,2-3',
    ' 0-1',
    '0-1\n',
    `0-${'9'.repeat(16)}`,
    'bytes=',
    'pieces=0-1',
  ])
    expect([text, parseChunkRange(text)]).toEqual([text, undefined])
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom('0', '9', '-', '/', '*', ' ', 'bytes'), maxLength: 24 }), (text) => {
      const range = parseChunkRange(text)
      if (range === undefined) return
      expect(range.length).toBeGreaterThan(0)
      expect(Number.isSafeInteger(range.offset + range.length)).toBe(true)
    }),
  )
})

it('writes how much of an upload is here', () => {
  expect([0, 1, 1_024].map(formatUploadRange)).toEqual(['0-0', '0-0', '0-1023'])
})
