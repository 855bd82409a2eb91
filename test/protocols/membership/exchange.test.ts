/** Statements and certificates on their way: messages against vectors made by another implementation, and whoever does not keep to the rules. */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { Frames } from '../../../protocols/frame.ts'
import { decodeChain } from '../../../protocols/membership/certificate.ts'
import {
  answerStatements,
  IDS_PAGE_MAX,
  type Offer,
  STATEMENT_DIGEST_BYTES,
  STATEMENTS_PROTOCOL,
  type Stated,
  type StatementHoldings,
  StatementsAsker,
  statementPages,
} from '../../../protocols/membership/exchange.ts'
import { decodePolicy } from '../../../protocols/membership/policy.ts'
import { answerRenewal, askRenewal, handOver, RENEWAL_PROTOCOL } from '../../../protocols/membership/renewal.ts'
import { decodeRevocation } from '../../../protocols/membership/revocation.ts'
import { streamPair } from '../../stream-pair.ts'
import { hex } from './people.ts'

type Pair = { what: string; request: string; answer: string }
const vectors = JSON.parse(readFileSync('protocols/membership/vectors.json', 'utf8')) as {
  network: { id: string }
  chains: { chain: string }[]
  revocations: { revocation: string; code: string | null }[]
  policies: { policy: string; code: string | null }[]
  bucket: { number: number; ids: string[]; digest: string; empty: string }
  exchange: Pair[]
  renewal: Pair[]
  refusedRequests: { protocol: string; why: string; request: string }[]
}
const bytes = (text = '') => Uint8Array.from(Buffer.from(text, 'hex'))
const signal = AbortSignal.timeout(20_000)
const limits = { requestsMax: 50, signal: () => signal }
const network = bytes(vectors.network.id)
const revocation = bytes(vectors.revocations.find(({ code }) => code === null)?.revocation)
const policy = bytes(vectors.policies.find(({ code }) => code === null)?.policy)
const chain = decodeChain(bytes(vectors.chains[0]?.chain))
const digestOf = (ids: readonly Uint8Array[]) =>
  createHash('sha256').update(Buffer.concat(ids)).digest().subarray(0, STATEMENT_DIGEST_BYTES)

/** Holds what the vectors say. */
function holdings(over: Partial<StatementHoldings> = {}): StatementHoldings & { offers: Offer[] } {
  const offers: Offer[] = []
  const { id } = decodeRevocation(revocation, network).statement
  const { version, id: policyId } = decodePolicy(policy, network, { isVoid: () => false }).statement
  return {
    offers,
    digests: () => Buffer.concat(Array.from({ length: 256 }, (_, bucket) => digestOf(bucket === id[0] ? [id] : []))),
    ids: (buckets, after) => (buckets.includes(id[0] ?? 0) && (!after || Buffer.compare(id, after) > 0) ? [id] : []),
    statement: (wanted) => (hex(wanted) === hex(id) ? { kind: 'revocation', bytes: revocation } : undefined),
    policy: () => ({ position: { version, id: policyId }, bytes: policy }),
    take: async (offer) => {
      offers.push(offer)
      return offer.statements.length + (offer.policy ? 1 : 0)
    },
    ...over,
  }
}

/** An asker whose peer answers from `held`. */
function connected(held: StatementHoldings = holdings()) {
  const [ours, theirs] = streamPair()
  const answering = answerStatements(new Frames(theirs), held, limits)
  answering.catch(() => {})
  const frames = new Frames(ours)
  return { frames, asker: new StatementsAsker(frames), answering }
}

/** Answers one request, if one comes. */
function answerOnce(frames: Frames, answer: Uint8Array): void {
  frames
    .read(signal)
    .then(() => frames.write(answer, signal))
    .catch(() => {})
}

/** A stream whose other end answers everything with `answer`. */
function answeredWith(answer: unknown): Frames {
  const [ours, theirs] = streamPair()
  const frames = new Frames(theirs)
  answerOnce(frames, encodeCbor(answer))
  return new Frames(ours)
}

/** Answers one request for a certificate. */
function renewing(desk: Parameters<typeof answerRenewal>[1] = { renew: () => chain, take: () => true }) {
  const [ours, theirs] = streamPair()
  const answering = answerRenewal(new Frames(theirs), desk, signal)
  answering.catch(() => {})
  return { frames: new Frames(ours), answering }
}

const malformed = expect.objectContaining({ name: 'WireError', code: 'malformed' })

describe('statements are exchanged', () => {
  it.each(vectors.exchange)('as the vectors say: $what', async ({ request, answer }) => {
    const { frames } = connected()
    await frames.write(bytes(request), signal)
    expect(hex((await frames.read(signal)) ?? bytes())).toBe(answer)
  })

  it('and asked for with the same bytes', async () => {
    const asked: string[] = []
    const answers = vectors.exchange.map(({ answer }) => answer)
    const [ours, theirs] = streamPair()
    const peer = new Frames(theirs)
    const answerAll = async () => {
      for (const answer of answers) {
        asked.push(hex((await peer.read(signal)) ?? bytes()))
        await peer.write(bytes(answer), signal)
      }
    }
    answerAll().catch(() => {})
    const asker = new StatementsAsker(new Frames(ours))
    const { id } = decodeRevocation(revocation, network).statement
    const bucket = id[0] ?? 0
    const statements = [{ kind: 'revocation', bytes: revocation }]
    expect((await asker.summary(signal)).policy?.version).toBeGreaterThan(0)
    const two = Uint8Array.from([bucket, (bucket + 1) % 256].sort((one, other) => one - other))
    expect((await asker.ids(two, undefined, signal)).map(hex)).toEqual([hex(id)])
    expect(await asker.ids(Uint8Array.of(bucket), id, signal)).toEqual([])
    expect(await asker.statements([id], signal)).toEqual(statements)
    expect(await asker.policy(signal)).toEqual(policy)
    expect(await asker.offer({ statements, policy }, signal)).toBe(2)
    expect(asked).toEqual(vectors.exchange.slice(0, 6).map(({ request }) => request))
  })

  it('with the digests that the vectors say', () => {
    const { ids, digest, empty } = vectors.bucket
    expect(hex(digestOf(ids.map(bytes)))).toBe(digest)
    expect(hex(digestOf([]))).toBe(empty)
  })

  it.each([
    ...vectors.refusedRequests.filter(({ protocol }) => protocol === STATEMENTS_PROTOCOL),
    { why: '1,025 ids', request: hex(encodeCbor({ ask: 'statements', ids: new Uint8Array(32 * 1_025) })) },
    {
      why: '1,025 statements',
      request: hex(encodeCbor({ ask: 'offer', statements: Array(1_025).fill({ kind: 'a', bytes: bytes() }) })),
    },
    {
      why: 'a policy too long',
      request: hex(encodeCbor({ ask: 'offer', statements: [], policy: new Uint8Array(51_000) })),
    },
  ])('but not for a request with $why: that is said, and ends it', async ({ request }) => {
    const held = holdings()
    const { frames, answering } = connected(held)
    await frames.write(bytes(request), signal)
    expect(await frames.read(signal)).toEqual(encodeCbor({ error: 'malformed' }))
    await expect(answering).rejects.toEqual(malformed)
    expect(held.offers).toEqual([])
  })

  it('no more often than the limit', async () => {
    const { asker, answering } = connected()
    for (let nth = 0; nth < limits.requestsMax; nth++) await asker.offer({ statements: [] }, signal)
    await expect(asker.summary(signal)).rejects.toMatchObject({ code: 'refused' })
    await expect(answering).rejects.toMatchObject({ code: 'too-large' })
  })

  it('and it is known afterwards whether a summary was asked for', async () => {
    for (const isCompared of [true, false]) {
      const { asker, frames, answering } = connected()
      if (isCompared) await asker.summary(signal)
      else await asker.policy(signal)
      await frames.close(signal)
      expect(await answering).toEqual({ isCompared })
    }
  })

  it.each<[string, unknown, (asker: StatementsAsker) => Promise<unknown>]>([
    ['fewer digests', { digests: new Uint8Array(16), policy: null }, (asker) => asker.summary(signal)],
    [
      'a policy of no version',
      { digests: new Uint8Array(4_096), policy: { version: 0, id: new Uint8Array(32) } },
      (asker) => asker.summary(signal),
    ],
    [
      'ids out of order',
      { ids: Buffer.concat([idOf(1, 2), idOf(1, 1)]) },
      (asker) => asker.ids(Uint8Array.of(1), undefined, signal),
    ],
    [
      'an id twice',
      { ids: Buffer.concat([idOf(1, 1), idOf(1, 1)]) },
      (asker) => asker.ids(Uint8Array.of(1), undefined, signal),
    ],
    ['ids of another bucket', { ids: idOf(2, 1) }, (asker) => asker.ids(Uint8Array.of(1), undefined, signal)],
    ['ids that are not above', { ids: idOf(1, 1) }, (asker) => asker.ids(Uint8Array.of(1), idOf(1, 1), signal)],
    [
      'too many ids',
      { ids: new Uint8Array(32 * (IDS_PAGE_MAX + 1)) },
      (asker) => asker.ids(Uint8Array.of(0), undefined, signal),
    ],
    ['no statements', { statements: [] }, (asker) => asker.statements([idOf(1, 1)], signal)],
    [
      'more than was asked for',
      { statements: [1, 2].map(() => ({ kind: 'revocation', bytes: revocation })) },
      (asker) => asker.statements([idOf(1, 1)], signal),
    ],
    ['a policy too long', { policy: new Uint8Array(51_000) }, (asker) => asker.policy(signal)],
    ['a negative number', { taken: -1 }, (asker) => asker.offer({ statements: [] }, signal)],
    ['a list', [], (asker) => asker.offer({ statements: [] }, signal)],
  ])('but not with a peer that answers with %s', async (_what, answer, ask) => {
    await expect(ask(new StatementsAsker(answeredWith(answer)))).rejects.toEqual(malformed)
  })

  it('in pages that fit a frame', () => {
    const sizes = fc.array(fc.integer({ min: 100, max: 2_064 }), { maxLength: 1_500 })
    fc.assert(
      fc.property(sizes, (list) => {
        const statements: Stated[] = list.map((size) => ({ kind: 'revocation', bytes: new Uint8Array(size) }))
        const pages = [...statementPages(statements)]
        expect(pages.flat()).toEqual(statements)
        for (const page of pages) {
          const frame = encodeCbor({ ask: 'offer', statements: page, policy: new Uint8Array(50_000) })
          expect(frame.byteLength).toBeLessThan(1024 * 1024)
          expect(page.length).toBeLessThanOrEqual(1_024)
        }
      }),
      { numRuns: 20 },
    )
  })
})

describe('certificates are handed over', () => {
  it.each(vectors.renewal)('as the vectors say: $what', async ({ request, answer }) => {
    const { frames } = renewing()
    await frames.write(bytes(request), signal)
    expect(hex((await frames.read(signal)) ?? bytes())).toBe(answer)
  })

  it('to who asks, and to who is told', async () => {
    const taken: string[] = []
    const desk = { renew: () => chain, take: (one: typeof chain) => taken.push(hex(one.bytes)) > 1 }
    expect((await askRenewal(renewing(desk).frames, signal)).bytes).toEqual(chain.bytes)
    expect(await handOver(renewing(desk).frames, chain, signal)).toBe(false)
    expect(await handOver(renewing(desk).frames, chain, signal)).toBe(true)
    expect(taken).toEqual([hex(chain.bytes), hex(chain.bytes)])
  })

  it('or not, with a word', async () => {
    const desk = { renew: () => 'too-often', take: () => 'older' }
    await expect(askRenewal(renewing(desk).frames, signal)).rejects.toThrow('too-often')
    await expect(handOver(renewing(desk).frames, chain, signal)).rejects.toThrow('older')
  })

  it.each(vectors.refusedRequests.filter(({ protocol }) => protocol === RENEWAL_PROTOCOL))(
    'but not for a request with $why',
    async ({ request }) => {
      const { frames, answering } = renewing({ renew: () => 'asked', take: () => 'asked' })
      await frames.write(bytes(request), signal)
      await expect(answering).rejects.toEqual(malformed)
    },
  )

  it.each([
    ['nothing', {}],
    ['a chain that is none', { chain: randomBytes(100) }],
    ['a chain too long', { chain: new Uint8Array(2_065) }],
    ['a word that is none', { refused: 'No!' }],
  ])('but not by a peer that answers with %s', async (_what, answer) => {
    await expect(askRenewal(answeredWith(answer), signal)).rejects.toEqual(malformed)
  })
})

describe('any bytes', () => {
  const requests = [...vectors.exchange, ...vectors.renewal].map(({ request }) => bytes(request))
  const altered = fc.tuple(fc.constantFrom(...requests), fc.nat(), fc.nat(255)).map(([one, at, byte]) => {
    const changed = Uint8Array.from(one)
    changed[at % changed.length] = byte
    return changed
  })
  const any = fc.oneof(fc.uint8Array({ maxLength: 200 }), altered)

  it('are met with an answer or a WireError on the answering side', async () => {
    await fc.assert(
      fc.asyncProperty(any, async (input) => {
        for (const { frames, answering } of [connected(), renewing()]) {
          await frames.write(input, signal)
          await frames.close(signal)
          await answering.catch((error: Error) => expect(error.name).toBe('WireError'))
        }
      }),
      { numRuns: 200 },
    )
  })

  it('and on the asking side', async () => {
    const answers = [...vectors.exchange, ...vectors.renewal].map(({ answer }) => bytes(answer))
    await fc.assert(
      fc.asyncProperty(fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(...answers)), async (input) => {
        const answered = () => {
          const [ours, theirs] = streamPair()
          const frames = new Frames(theirs)
          answerOnce(frames, input)
          return new Frames(ours)
        }
        const asked: ((frames: Frames) => Promise<unknown>)[] = [
          (frames) => new StatementsAsker(frames).summary(signal),
          (frames) => new StatementsAsker(frames).ids(Uint8Array.of(1), undefined, signal),
          (frames) => new StatementsAsker(frames).statements([idOf(1, 1)], signal),
          (frames) => new StatementsAsker(frames).policy(signal),
          (frames) => new StatementsAsker(frames).offer({ statements: [] }, signal),
          (frames) => askRenewal(frames, signal),
          (frames) => handOver(frames, chain, signal),
        ]
        for (const ask of asked) await ask(answered()).catch((error: Error) => expect(error.name).toBe('WireError'))
      }),
      { numRuns: 100 },
    )
  })
})

function idOf(bucket: number, rest: number): Uint8Array {
  return new Uint8Array(32).fill(rest).fill(bucket, 0, 1)
}
