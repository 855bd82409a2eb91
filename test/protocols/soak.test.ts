/** The soak, short: `npm run soak` is the same with a million inputs, and looks at memory as well. */
import { describe, expect, it } from 'vitest'
import { Random } from '../../bench/random.ts'
import { parsers } from '../../bench/soak-parsers.ts'
import { type Parser, soak } from '../../bench/soak-run.ts'
import { WireError } from '../../protocols/error.ts'

/** Three seconds of a machine that has nothing else to do. */
const INPUTS = 10_000
const MS_MAX = 90_000

/** What comes after an opening that was taken has no signature, and is missed. */
const BEGINNINGS: Record<string, RegExp> = { 'hello: openings': /^the peer did not sign/ }

describe('bytes of strangers', () => {
  it(
    'lead to a WireError or to nothing, whatever they are',
    async () => {
      const seed = Math.floor(Math.random() * 2 ** 31)
      const { done, failure } = await soak({ parsers: parsers(seed), inputs: INPUTS, seed, msMax: MS_MAX })
      const told = failure && `${failure.parser}: ${failure.what}\nseed ${seed}, input ${failure.input.toString('hex')}`
      expect(told).toBeUndefined()
      expect(done).toBe(INPUTS)
    },
    MS_MAX,
  )

  it('begin from such as are taken, by every parser', async () => {
    for (const { name, seeds, parse } of parsers(1)) {
      const outcomes: string[] = []
      for (const [nth, seed] of seeds.entries()) {
        try {
          await parse(Buffer.from(seed), new Random(nth))
          outcomes.push('taken')
        } catch (error) {
          outcomes.push((error as Error).message)
        }
      }
      expect(outcomes.join('\n'), name).toMatch(BEGINNINGS[name] ?? /^taken$/m)
    }
  })

  it('that a parser fails on are told of, with the parser', async () => {
    const broken: Parser = {
      name: 'broken',
      seeds: [Buffer.from('abc')],
      parse: (input) => {
        if (input.byteLength < 3) throw new RangeError('out of range')
        if (input.byteLength > 3) throw new WireError('malformed', 'too long')
      },
    }
    const { failure, done } = await soak({ parsers: [broken], inputs: 1_000, seed: 1, msMax: MS_MAX })
    expect(failure?.what).toContain('out of range')
    expect(failure?.parser).toBe('broken')
    expect(failure?.input.byteLength).toBeLessThan(3)
    expect(done).toBeLessThan(1_000)
  })
})
