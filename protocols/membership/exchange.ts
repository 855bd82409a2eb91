/**
 * How two members come to know the same revocations and the same policy: `/undernet/statements/1`, both sides, on a stream of their
 * network. See spec.md beside this file.
 *
 * Who opens the stream asks, one request frame at a time; the other answers each by one frame and remembers nothing between them. From
 * coarse to fine: digests of 256 buckets of ids, ids, statements. What is news is offered at once, without any of that before.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'
import { POLICY_BYTES_MAX } from './policy.ts'
import { bytes32, STATEMENT_BYTES_MAX, timeMs } from './statement.ts'

export const STATEMENTS_PROTOCOL = '/undernet/statements/1'

/** One for each value of the first byte of an id. */
export const STATEMENT_BUCKETS = 256
/** Of SHA-256. A hash and no sum: a delegate that may revoke could choose what it signs so that a sum hides what others revoked. */
export const STATEMENT_DIGEST_BYTES = 16
const STATEMENT_ID_BYTES = 32
/** In one answer: 256 KiB. With so many there may be more. */
export const IDS_PAGE_MAX = 8_192
/** Statements in one request or offer. */
export const STATEMENTS_ASKED_MAX = 1_024
/** A statement, its delegation, and what surrounds them. */
const ENDORSED_BYTES_MAX = 2 * STATEMENT_BYTES_MAX + 16
const ENDORSED_POLICY_BYTES_MAX = POLICY_BYTES_MAX + STATEMENT_BYTES_MAX + 16
/** Answers and offers stop growing here; with a policy and one more statement they still fit a frame. */
const PAGE_BYTES_MAX = 512 * 1024

/** Which policy somebody holds. */
export type PolicyPosition = { version: number; id: Uint8Array }
/** A statement with what it is: `revocation`, endorsed. Other kinds are of later versions. */
export type Stated = { kind: string; bytes: Uint8Array }
export type Offer = { statements: Stated[]; policy?: Uint8Array | undefined }

/** What the answering side needs of a store. */
export type StatementHoldings = {
  /** For each of 256 buckets the first 16 bytes of SHA-256 over its ids, in order. */
  digests(): Uint8Array
  /** Ids in these buckets, in order, above `after`: the first IDS_PAGE_MAX. */
  ids(buckets: Uint8Array, after: Uint8Array | undefined): Uint8Array[]
  statement(id: Uint8Array): Stated | undefined
  policy(): { position: PolicyPosition; bytes: Uint8Array } | undefined
  /** Says how much of it was new. @throws {WireError} for what no honest peer offers */
  take(offer: Offer): Promise<number>
}

function bytesUpTo(max: number) {
  return z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength <= max,
    `not bytes, or over ${max}`,
  )
}

function packed(entryBytes: number, entriesMax: number) {
  return bytesUpTo(entryBytes * entriesMax).refine(
    ({ byteLength }) => byteLength % entryBytes === 0,
    `not in entries of ${entryBytes} bytes`,
  )
}

const buckets = bytesUpTo(STATEMENT_BUCKETS)
  .refine(({ byteLength }) => byteLength > 0, 'no buckets')
  .refine((list) => list.every((one, nth) => nth === 0 || one > (list[nth - 1] ?? 255)), 'buckets out of order')
const stated = z.object({
  kind: z.string().regex(/^[a-z-]{1,32}$/, 'not a kind'),
  bytes: bytesUpTo(ENDORSED_BYTES_MAX),
})
const policy = bytesUpTo(ENDORSED_POLICY_BYTES_MAX)
const askedIds = packed(STATEMENT_ID_BYTES, STATEMENTS_ASKED_MAX).refine(({ byteLength }) => byteLength > 0, 'no ids')

const request = z.discriminatedUnion('ask', [
  z.object({ ask: z.literal('summary') }),
  z.object({ ask: z.literal('ids'), buckets, after: bytes32.optional() }),
  z.object({ ask: z.literal('statements'), ids: askedIds }),
  z.object({ ask: z.literal('policy') }),
  z.object({
    ask: z.literal('offer'),
    statements: z.array(stated).max(STATEMENTS_ASKED_MAX),
    policy: policy.optional(),
  }),
])
type Request = z.infer<typeof request>

const digests = packed(STATEMENT_DIGEST_BYTES, STATEMENT_BUCKETS).refine(
  ({ byteLength }) => byteLength === STATEMENT_BUCKETS * STATEMENT_DIGEST_BYTES,
  'not 256 digests',
)
const position = z.object({ version: timeMs.min(1), id: bytes32 })
const summaryAnswer = z.object({ digests, policy: position.nullable() })
const idsAnswer = z.object({ ids: packed(STATEMENT_ID_BYTES, IDS_PAGE_MAX) })
const statementsAnswer = z.object({ statements: z.array(stated).min(1).max(STATEMENTS_ASKED_MAX) })
const policyAnswer = z.object({ policy: policy.nullable() })
const offerAnswer = z.object({ taken: z.int().min(0) })
const errorAnswer = z.object({ error: z.string().max(64) })

/** The asking side. Each method is one request and its answer. @throws {WireError} */
export class StatementsAsker {
  readonly #frames: Frames

  constructor(frames: Frames) {
    this.#frames = frames
  }

  summary(signal: AbortSignal): Promise<z.infer<typeof summaryAnswer>> {
    return this.#ask({ ask: 'summary' }, summaryAnswer, signal)
  }

  /** In order, as `StatementHoldings.ids`: what is out of it is refused here. */
  async ids(wanted: Uint8Array, after: Uint8Array | undefined, signal: AbortSignal): Promise<Uint8Array[]> {
    const question = { ask: 'ids', buckets: wanted, ...(after && { after }) } as const
    const list = split((await this.#ask(question, idsAnswer, signal)).ids)
    const asked = new Set(wanted)
    let before = after
    for (const id of list) {
      if (!asked.has(id[0] ?? 0) || (before && Buffer.compare(id, before) <= 0))
        throw new WireError('malformed', 'ids that were not asked for, or out of order')
      before = id
    }
    return list
  }

  /** The first of those asked for, at least one. */
  async statements(ids: readonly Uint8Array[], signal: AbortSignal): Promise<Stated[]> {
    const question = { ask: 'statements', ids: Buffer.concat(ids) } as const
    const { statements } = await this.#ask(question, statementsAnswer, signal)
    if (statements.length > ids.length) throw new WireError('malformed', 'more than was asked for')
    return statements
  }

  async policy(signal: AbortSignal): Promise<Uint8Array | undefined> {
    return (await this.#ask({ ask: 'policy' }, policyAnswer, signal)).policy ?? undefined
  }

  /** Hands over statements, and says how many were new there; the caller keeps to `statementPages`. */
  async offer({ statements, policy: offered }: Offer, signal: AbortSignal): Promise<number> {
    const question = { ask: 'offer', statements, ...(offered && { policy: offered }) } as const
    return (await this.#ask(question, offerAnswer, signal)).taken
  }

  async #ask<T>(question: Request, schema: z.ZodType<T>, signal: AbortSignal): Promise<T> {
    await this.#frames.write(encodeCbor(question), signal)
    const frame = await this.#frames.read(signal)
    if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
    const answer = decodeCbor(frame, z.union([errorAnswer, schema]))
    if (isError(answer)) throw new WireError('refused', `the peer answered: ${answer.error}`)
    return answer as T
  }
}

export type StatementLimits = {
  requestsMax: number
  /** Of one wait for the peer. */
  signal(): AbortSignal
}

/**
 * Answers requests until the peer ends the stream, and says whether it had asked for a summary. A request that breaks the rules is
 * answered with its error code, and ends it too.
 *
 * @throws {WireError} for what the peer did wrong.
 */
export async function answerStatements(
  frames: Frames,
  holdings: StatementHoldings,
  limits: StatementLimits,
): Promise<{ isCompared: boolean }> {
  let isCompared = false
  for (let asked = 0; ; asked++) {
    const frame = await frames.read(limits.signal())
    if (!frame) return { isCompared }
    try {
      if (asked >= limits.requestsMax) throw new WireError('too-large', `over ${limits.requestsMax} requests`)
      const question = decodeCbor(frame, request)
      isCompared ||= question.ask === 'summary'
      await frames.write(encodeCbor(await answerTo(question, holdings)), limits.signal())
    } catch (error) {
      if (error instanceof WireError && error.code !== 'closed')
        await frames.write(encodeCbor({ error: error.code }), limits.signal())
      throw error
    }
  }
}

async function answerTo(asked: Request, holdings: StatementHoldings): Promise<unknown> {
  switch (asked.ask) {
    case 'summary':
      return { digests: holdings.digests(), policy: holdings.policy()?.position ?? null }
    case 'ids':
      return { ids: Buffer.concat(holdings.ids(asked.buckets, asked.after).slice(0, IDS_PAGE_MAX)) }
    case 'statements': {
      const asList = split(asked.ids).values()
      const [page = []] = statementPages(asList.map((id) => found(holdings, id)))
      return { statements: page }
    }
    case 'policy':
      return { policy: holdings.policy()?.bytes ?? null }
    case 'offer':
      return { taken: await holdings.take(asked) }
  }
}

/** What was told of just now is there: who asks for another was not told of it here. */
function found(holdings: StatementHoldings, id: Uint8Array): Stated {
  const one = holdings.statement(id)
  if (one === undefined) throw new WireError('absent', 'a statement that is not here')
  return one
}

/** Cuts a list of statements into offers that fit a frame. */
export function* statementPages(statements: Iterable<Stated>): Generator<Stated[]> {
  let page: Stated[] = []
  let sizeBytes = 0
  for (const one of statements) {
    page.push(one)
    sizeBytes += one.bytes.byteLength
    if (sizeBytes < PAGE_BYTES_MAX && page.length < STATEMENTS_ASKED_MAX) continue
    yield page
    page = []
    sizeBytes = 0
  }
  if (page.length > 0) yield page
}

function split(list: Uint8Array): Uint8Array[] {
  return Array.from({ length: list.byteLength / STATEMENT_ID_BYTES }, (_, nth) =>
    list.subarray(nth * STATEMENT_ID_BYTES, (nth + 1) * STATEMENT_ID_BYTES),
  )
}

function isError(answer: unknown): answer is { error: string } {
  return typeof (answer as { error?: unknown }).error === 'string'
}
