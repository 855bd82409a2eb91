/**
 * One comparison with a member, driven from here: afterwards both have the revocations of both, and the newer policy.
 * Bounded against a member that lies: it can make this node read so many ids and statements, and no more; the rest is for the next time.
 */
import { WireError } from '../../protocols/error.ts'
import {
  IDS_PAGE_MAX,
  type Offer,
  type PolicyPosition,
  STATEMENT_BUCKETS,
  STATEMENT_DIGEST_BYTES,
  STATEMENTS_ASKED_MAX,
  type Stated,
  type StatementHoldings,
  type StatementsAsker,
  statementPages,
} from '../../protocols/membership/exchange.ts'
import { hexOf } from '../../protocols/membership/statement.ts'

/** Pages of ids in one comparison: 262,144 ids, what sixteen delegates can revoke. */
const PAGES_MAX = 32
/** Ids of what was refused here, so that it is not asked for again. */
const REFUSED_MAX = 65_536

/** The asking side's view of what this node has. */
export type Compared = Omit<StatementHoldings, 'take'> & {
  has(id: Uint8Array): boolean
  /** Answers how many were new, and which were refused without anybody's fault. @throws {WireError} for what no honest peer has */
  takeAll(offer: Offer): Promise<{ taken: number; refused: number[] }>
}

export class RefusedStatements {
  readonly #ids = new Set<string>()

  has(id: Uint8Array): boolean {
    return this.#ids.has(hexOf(id))
  }

  add(id: Uint8Array): void {
    if (this.#ids.size >= REFUSED_MAX) this.#ids.clear()
    this.#ids.add(hexOf(id))
  }
}

/** What came and went. */
export type CompareResult = { received: number; given: number }

/** `signal` is asked for each question. @throws {WireError} for what the peer did wrong */
export async function compareWith(
  asker: StatementsAsker,
  ours: Compared,
  refused: RefusedStatements,
  signal: () => AbortSignal,
): Promise<CompareResult> {
  const theirs = await asker.summary(signal())
  const buckets = differing(theirs.digests, ours.digests())
  const result: CompareResult = { received: 0, given: 0 }
  let after: Uint8Array | undefined
  for (let pages = 0; buckets.byteLength > 0 && pages < PAGES_MAX; pages++) {
    const page = await asker.ids(buckets, after, signal())
    const isLast = page.length < IDS_PAGE_MAX
    const lacking = lackingThere(ours, buckets, { after, upTo: isLast ? undefined : page.at(-1), page })
    const wanted = page.filter((id) => !ours.has(id) && !refused.has(id))
    result.received += await fetchAll(asker, ours, { wanted, refused, signal })
    for (const statements of statementPages(lacking)) result.given += await asker.offer({ statements }, signal())
    if (isLast) break
    after = page.at(-1)
  }
  await agreeOnPolicy(asker, ours, { theirs: theirs.policy, result, signal })
  return result
}

async function fetchAll(
  asker: StatementsAsker,
  ours: Compared,
  { wanted, refused, signal }: { wanted: Uint8Array[]; refused: RefusedStatements; signal: () => AbortSignal },
): Promise<number> {
  let received = 0
  for (let at = 0; at < wanted.length; ) {
    const batch = wanted.slice(at, at + STATEMENTS_ASKED_MAX)
    const statements = await asker.statements(batch, signal())
    at += statements.length
    const outcome = await ours.takeAll({ statements })
    received += outcome.taken
    for (const [nth, id] of batch.slice(0, statements.length).entries()) {
      if (outcome.refused.includes(nth)) refused.add(id)
      else if (!ours.has(id)) throw new WireError('mismatch', 'a statement that is not the one that was asked for')
    }
  }
  return received
}

type Range = { after: Uint8Array | undefined; upTo: Uint8Array | undefined; page: readonly Uint8Array[] }

/** Our statements in the range of ids that the peer's page covers, without those in the page. */
function* lackingThere(ours: Compared, buckets: Uint8Array, { after, upTo, page }: Range): Generator<Stated> {
  const there = new Set(page.map(hexOf))
  for (let from = after; ; ) {
    const ids = ours.ids(buckets, from)
    for (const id of ids) {
      if (upTo !== undefined && Buffer.compare(id, upTo) > 0) return
      const one = there.has(hexOf(id)) ? undefined : ours.statement(id)
      if (one !== undefined) yield one
    }
    if (ids.length < IDS_PAGE_MAX) return
    from = ids.at(-1)
  }
}

/** After the revocations, since those may take a policy out of force. */
async function agreeOnPolicy(
  asker: StatementsAsker,
  ours: Compared,
  { theirs, result, signal }: { theirs: PolicyPosition | null; result: CompareResult; signal: () => AbortSignal },
): Promise<void> {
  const held = ours.policy()
  const order = comparePositions(held?.position ?? null, theirs)
  if (order > 0 && held !== undefined)
    result.given += await asker.offer({ statements: [], policy: held.bytes }, signal())
  if (order >= 0) return
  const policy = await asker.policy(signal())
  if (policy !== undefined) result.received += (await ours.takeAll({ statements: [], policy })).taken
}

/** As comparePolicies orders them; none is the oldest. */
function comparePositions(a: PolicyPosition | null, b: PolicyPosition | null): number {
  if (a === null || b === null) return Number(a !== null) - Number(b !== null)
  return a.version - b.version || Buffer.compare(a.id, b.id)
}

/** The buckets whose digests are not the same. */
function differing(a: Uint8Array, b: Uint8Array): Uint8Array {
  const digest = (list: Uint8Array, bucket: number) =>
    list.subarray(bucket * STATEMENT_DIGEST_BYTES, (bucket + 1) * STATEMENT_DIGEST_BYTES)
  const all = Array.from({ length: STATEMENT_BUCKETS }, (_, bucket) => bucket)
  return Uint8Array.from(all.filter((bucket) => Buffer.compare(digest(a, bucket), digest(b, bucket)) !== 0))
}
