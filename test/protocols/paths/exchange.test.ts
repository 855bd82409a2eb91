/** What is known of store paths: against vectors made by another implementation, and against whatever bytes there are. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  ANSWER_BYTES_STOP,
  ASKED_MAX,
  answerPaths,
  askPaths,
  decodePathsAnswer,
  decodePathsRequest,
  encodePathsAnswer,
  encodePathsRequest,
  factsBytes,
  factsFit,
  type PathFacts,
  REFERENCES_MAX,
} from '../../../protocols/paths/exchange.ts'
import { streamPair } from '../../stream-pair.ts'

type ShownFacts = Omit<PathFacts, 'nar'> & { nar: string }
const vectors = JSON.parse(readFileSync('protocols/paths/vectors.json', 'utf8')) as {
  requests: { paths: string[]; bytes: string }[]
  answers: { what: string; paths: (ShownFacts | null)[]; bytes: string }[]
  refusedRequests: { why: string; bytes: string }[]
  refusedAnswers: { why: string; bytes: string }[]
}
const bytes = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex')
const signal = AbortSignal.timeout(20_000)
const refused = expect.objectContaining({ code: 'malformed' })

const hashPart = (nth: number) => String(nth).padStart(32, '0')
function facts(nth: number, references = 0): PathFacts {
  return {
    path: `/nix/store/${hashPart(nth)}-some`,
    nar: new Uint8Array(32).fill(nth),
    sizeBytes: 1 + nth,
    references: Array.from({ length: references }, (_, at) => `${hashPart(at)}-a-reference`),
    signatures: [],
  }
}

it.each(vectors.requests)('a request is read, and written in the same bytes', ({ paths, bytes: encoded }) => {
  expect(decodePathsRequest(bytes(encoded))).toEqual({ paths })
  expect(hex(encodePathsRequest({ paths }))).toBe(encoded)
})

it.each(vectors.answers)('an answer of $what is read, and written in the same bytes', ({ paths, bytes: encoded }) => {
  const answer = { paths: paths.map((one) => one && { ...one, nar: bytes(one.nar) }) }
  expect(decodePathsAnswer(bytes(encoded))).toEqual(answer)
  expect(hex(encodePathsAnswer(answer))).toBe(encoded)
})

it.each(vectors.refusedRequests)('a request is refused: $why', ({ bytes: encoded }) => {
  expect(() => decodePathsRequest(bytes(encoded))).toThrow(refused)
})

it.each(vectors.refusedAnswers)('an answer is refused: $why', ({ bytes: encoded }) => {
  expect(() => decodePathsAnswer(bytes(encoded))).toThrow(refused)
})

it('any bytes are a request, an answer, or refused', () => {
  const known = [...vectors.requests, ...vectors.answers]
  const altered = fc.tuple(fc.constantFrom(...known), fc.nat(), fc.nat(255)).map(([one, at, byte]) => {
    const changed = bytes(one.bytes)
    changed[at % changed.length] = byte
    return changed
  })
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), altered), (input) => {
      for (const decode of [decodePathsRequest, decodePathsAnswer]) {
        try {
          decode(input)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }
    }),
  )
})

it('says what fits an answer', () => {
  expect(factsFit(facts(1, 1_000))).toBe(true)
  expect(factsFit(facts(1, REFERENCES_MAX + 1))).toBe(false)
  expect(factsBytes(facts(1, 100))).toBeGreaterThan(encodePathsAnswer({ paths: [facts(1, 100)] }).byteLength)
})

describe('asking', () => {
  async function exchange(asked: string[], factsOf: (hashPart: string) => PathFacts | null) {
    const [near, far] = streamPair()
    let frames = 0
    const answering = answerPaths(
      new Frames(far),
      async (one) => factsOf(one),
      () => {
        frames++
        return signal
      },
    )
    // Where the answer is refused, nobody asks any more.
    answering.catch(() => {})
    const asking = new Frames(near)
    const answers = await askPaths(asking, asked, signal)
    await asking.close(signal)
    await answering
    return { answers, requests: frames - 1 }
  }

  it('gives an answer for each path, in order', async () => {
    const { answers, requests } = await exchange([hashPart(1), hashPart(2), hashPart(3)], (one) =>
      one === hashPart(2) ? null : facts(Number(one)),
    )
    expect(answers.map((one) => one?.sizeBytes ?? null)).toEqual([2, null, 4])
    expect(requests).toBe(1)
  })

  it('takes as many requests as the answers need', async () => {
    const many = Array.from({ length: ASKED_MAX + 1 }, (_, nth) => hashPart(nth))
    expect(await exchange(many, () => null)).toEqual({ answers: many.map(() => null), requests: 2 })
    const references = Math.ceil(ANSWER_BYTES_STOP / 40)
    const { answers, requests } = await exchange(many.slice(0, 3), (one) => facts(Number(one), references))
    expect(answers.map((one) => one?.sizeBytes)).toEqual([1, 2, 3])
    expect(requests).toBe(3)
  })

  it('refuses facts of another path, and more than it asked for', async () => {
    await expect(exchange([hashPart(1)], () => facts(2))).rejects.toThrow('for 00000')
    const [near, far] = streamPair()
    const answerer = new Frames(far)
    const asking = askPaths(new Frames(near), [hashPart(1)], signal)
    await answerer.read(signal)
    await answerer.write(encodePathsAnswer({ paths: [null, null] }), signal)
    await expect(asking).rejects.toThrow('more answers than questions')
  })
})
