/** Comparing two sets of statements over a stream in memory: whatever each side has, both have all of it afterwards. */
import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Compared, compareWith, RefusedStatements } from '../../../agent/membership/comparison.ts'
import { StatementIndex } from '../../../agent/membership/statement-index.ts'
import { Frames } from '../../../protocols/frame.ts'
import { answerStatements, IDS_PAGE_MAX, StatementsAsker } from '../../../protocols/membership/exchange.ts'
import { streamPair } from '../../stream-pair.ts'

const signal = AbortSignal.timeout(20_000)

type Side = Compared & { names(): string[]; asked: { statements: number } }

/** Has statements that are nothing but a number each. Some may be refused. */
function side(
  numbers: Iterable<number>,
  { refuses = () => false }: { refuses?: (number: number) => boolean } = {},
): Side {
  const index = new StatementIndex()
  const asked = { statements: 0 }
  const heldOf = (bytes: Uint8Array) => ({ kind: 'revocation', bytes, id: createHash('sha256').update(bytes).digest() })
  index.update([...numbers].map((number) => heldOf(bytesOf(number))))
  return {
    asked,
    digests: () => index.digests(),
    ids: (buckets, after) => index.ids(buckets, after),
    has: (id) => index.has(id),
    statement: (id) => index.get(id),
    policy: () => undefined,
    takeAll: async ({ statements }) => {
      asked.statements += statements.length
      const refused = statements.flatMap(({ bytes }, nth) => (refuses(Buffer.from(bytes).readUInt32BE()) ? [nth] : []))
      const taken = statements.filter((_, nth) => !refused.includes(nth)).map(({ bytes }) => heldOf(bytes))
      return { taken: index.update(taken).length, refused }
    },
    names: () =>
      index
        .ids(
          Uint8Array.from({ length: 256 }, (_, bucket) => bucket),
          undefined,
        )
        .map((id) => Buffer.from(id).toString('hex')),
  }
}

function bytesOf(number: number): Uint8Array {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(number)
  return Uint8Array.from(bytes)
}

async function compare(ours: Side, theirs: Side, refused = new RefusedStatements()) {
  const [near, far] = streamPair()
  const limits = { requestsMax: 1_000, signal: () => signal }
  const take = async (offer: Parameters<Side['takeAll']>[0]) => (await theirs.takeAll(offer)).taken
  const answering = answerStatements(new Frames(far), { ...theirs, take }, limits)
  const frames = new Frames(near)
  const result = await compareWith(new StatementsAsker(frames), ours, refused, () => signal)
  await frames.close(signal)
  await answering
  return result
}

describe('a comparison', () => {
  it('brings both sides what the other has, and nothing twice', async () => {
    const some = fc.uniqueArray(fc.nat(2_000), { maxLength: 400 })
    await fc.assert(
      fc.asyncProperty(some, some, async (one, other) => {
        const [ours, theirs] = [side(one), side(other)]
        const result = await compare(ours, theirs)
        const all = side(new Set([...one, ...other])).names()
        expect([ours.names(), theirs.names()]).toEqual([all, all])
        expect(result).toEqual({ received: all.length - one.length, given: all.length - other.length })
        expect(await compare(ours, theirs)).toEqual({ received: 0, given: 0 })
      }),
      { numRuns: 50 },
    )
  })

  it('also of more than fit a page of ids, on either side', async () => {
    const many = Array.from({ length: IDS_PAGE_MAX * 2 + 500 }, (_, nth) => nth)
    const few = [1, 5, 1_000_000]
    for (const [one, other] of [
      [many, few],
      [few, many],
    ] as const) {
      const [ours, theirs] = [side(one), side(other)]
      await compare(ours, theirs)
      for (const each of [ours, theirs])
        expect(
          [...many, 1_000_000].every((number) => each.has(createHash('sha256').update(bytesOf(number)).digest())),
        ).toBe(true)
    }
  })

  it('does not ask again for what was refused', async () => {
    const refused = new RefusedStatements()
    const [ours, theirs] = [side([1], { refuses: (number) => number > 5 }), side([2, 6, 7])]
    expect(await compare(ours, theirs, refused)).toEqual({ received: 1, given: 1 })
    expect(ours.asked.statements).toBe(3)
    expect(await compare(ours, theirs, refused)).toEqual({ received: 0, given: 0 })
    expect(ours.asked.statements).toBe(3)
  })
})
