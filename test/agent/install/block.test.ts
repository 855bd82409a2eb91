/** Our lines in somebody else's file: put in, put in anew, taken out, and nothing else touched, whatever the file. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { withBlock, withoutBlock } from '../../../agent/install/block.ts'
import { difference } from '../../../agent/install/difference.ts'

const MARKS = withBlock('', []).trimEnd().split('\n')
const BROKEN = withBlock('x', []).split('\n')[1] ?? ''
/** Texts of lines, with our marks and halves of them among them, with and without a line break at the end. */
const texts = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc
    .array(fc.oneof(fc.constantFrom(...MARKS, BROKEN, '', 'a = b', '\r'), fc.string()), { maxLength: 12 })
    .map((lines) => lines.join('\n')),
)
const lines = fc.array(fc.stringMatching(/^[ -~]{0,40}$/), { maxLength: 4 })

describe('a block', () => {
  it('stands at the end, between marks', () => {
    expect(withBlock('a = 1\n', ['b = 2'])).toMatch(/^a = 1\n# undernet: begin .*\nb = 2\n# undernet: end\n$/)
    expect(withBlock('a = 1', ['b = 2'])).toMatch(/^a = 1\n# undernet: begin, .*\nb = 2\n# undernet: end\n$/)
  })

  it('taken out again leaves the same bytes, whatever the file', () => {
    fc.assert(
      fc.property(texts, lines, (text, block) => {
        fc.pre(withoutBlock(text) === undefined)
        fc.pre(!block.some((line) => MARKS.includes(line) || line === BROKEN))
        expect(withoutBlock(withBlock(text, block))).toBe(text)
      }),
      { numRuns: 2_000 },
    )
  })

  it('put in a second time changes nothing, and other lines take its place', () => {
    fc.assert(
      fc.property(texts, lines, lines, (text, first, second) => {
        fc.pre(![...first, ...second].some((line) => MARKS.includes(line) || line === BROKEN))
        const once = withBlock(text, first)
        expect(withBlock(once, first)).toBe(once)
        expect(withBlock(withBlock(once, second), first)).toBe(once)
      }),
      { numRuns: 2_000 },
    )
  })

  it('goes alone when somebody wrote around it since', () => {
    const once = withBlock('a = 1', ['b = 2'])
    expect(withoutBlock(`# top\n${once}c = 3\n`)).toBe('# top\na = 1c = 3\n')
    expect(withoutBlock(once.replace('# undernet: end', ''))).toBeUndefined()
  })
})

describe('difference', () => {
  it('shows what goes and what comes, and what is around it', () => {
    expect(difference('a\nb\nc\nd\n', 'a\nb\nx\ny\nd\n')).toEqual([' a', ' b', '-c', '+x', '+y', ' d'])
    expect(difference('', 'a\n')).toEqual(['+a'])
    expect(difference('a', 'a\n')).toEqual(['-a (no line break at its end)', '+a'])
    expect(difference('a\n', 'a\n')).toEqual([])
  })

  it('is empty for equal texts only, and holds no line that is in neither', () => {
    fc.assert(
      fc.property(texts, texts, (a, b) => {
        const shown = difference(a, b)
        expect(shown.length === 0).toBe(a === b)
        for (const line of shown.filter((one) => one.startsWith('+')))
          expect(b).toContain(line.slice(1).replace(/ \(no line break at its end\)$/, ''))
      }),
    )
  })
})
