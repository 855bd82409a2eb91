/** A node of a closed network in memory: its store, its view of the members, and what the test decides of its membership. */
import { Members, type OwnMembership } from '../../../agent/catalog/members.ts'
import { Records } from '../../../agent/catalog/records.ts'
import { RefusedIds } from '../../../agent/catalog/sync.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { type Chain, judgeChain } from '../../../protocols/membership/certificate.ts'
import { issueRevocation, Revocations } from '../../../protocols/membership/revocation.ts'
import { MEMBER_KIND, MEMBER_NAME } from '../../../protocols/records/member.ts'
import type { SignedRecord } from '../../../protocols/records/record.ts'
import type { TestNetwork } from '../../protocols/membership/people.ts'
import { type Clock, clockAt, DAY_MS, keptLog, recordBy, type Said, type Store } from './catalog.ts'

/** A membership that the test changes. */
class FakeMembership implements OwnMembership {
  readonly network: Uint8Array
  readonly revocations: Revocations
  readonly #key: NodeKey
  readonly #clock: Clock
  readonly #listeners = new Set<Parameters<OwnMembership['onChange']>[0]>()
  chain: Chain
  issues = false

  constructor(network: Uint8Array, chain: Chain, key: NodeKey, clock: Clock) {
    this.network = network
    this.chain = chain
    this.#key = key
    this.#clock = clock
    this.revocations = new Revocations(network)
  }

  fault(now = this.#clock.at): unknown {
    const { network, revocations } = this
    const verdict = judgeChain(this.chain, { network, subject: this.#key.publicKey, now, revocations })
    return 'member' in verdict ? undefined : verdict
  }

  can(): unknown {
    return this.issues ? {} : undefined
  }

  onChange(listener: Parameters<OwnMembership['onChange']>[0]): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** A revocation arrives. */
  learn(bytes: Uint8Array): void {
    if (!this.revocations.add(bytes)) return
    for (const listener of this.#listeners) listener('revocations')
  }

  mayIssue(): void {
    this.issues = true
    for (const listener of this.#listeners) listener('rights')
  }

  renew(chain: Chain): void {
    this.chain = chain
    for (const listener of this.#listeners) listener('certificate')
  }
}

export type ClosedStore = Store & Disposable & { members: Members; membership: FakeMembership; refused: RefusedIds }

export type ClosedOptions = { clock?: Clock; key?: NodeKey; path?: string; chain?: Chain; revoked?: Uint8Array[] }

/** A member's node. */
export function makeClosedStore(network: TestNetwork, options: ClosedOptions = {}): ClosedStore {
  const { clock = clockAt(network.now), key = ephemeralNodeKey(), path = ':memory:', revoked = [] } = options
  const log = keptLog()
  const db = openDatabase(path)
  const membership = new FakeMembership(network.id, options.chain ?? lasting(network, key), key, clock)
  for (const bytes of revoked) membership.revocations.add(bytes)
  const records = new Records(db, {
    network: network.id,
    signer: key,
    admits: (record) => members.admits(record),
    now: clock.now,
    log,
  })
  const members: Members = Members.start({ records, membership, log })
  const refused = new RefusedIds()
  members.onChange(() => refused.forget())
  const dispose = () => {
    members[Symbol.dispose]()
    records[Symbol.dispose]()
    db.close()
  }
  return { records, db, key, clock, log, members, membership, refused, [Symbol.dispose]: dispose }
}

/** A certificate by the root key for ten years, unless said otherwise. */
export function lasting(network: TestNetwork, key: NodeKey, fields: Parameters<TestNetwork['certify']>[1] = {}): Chain {
  return network.certify(key.publicKey, { notAfter: network.now + 3_650 * DAY_MS, ...fields })
}

/** What a node with this certificate says first. */
export function memberRecord(
  network: TestNetwork,
  key: NodeKey,
  chain = lasting(network, key),
  said: Said = {},
): SignedRecord {
  const body = { v: 1, chain: chain.bytes, issues: false }
  return recordBy(key, { network: network.id, kind: MEMBER_KIND, name: MEMBER_NAME, body, ...said })
}

export function revocationOf(network: TestNetwork, key: Uint8Array, scope: 'member' | 'issuer' = 'member'): Uint8Array {
  return issueRevocation({ network: network.id, key, scope, issued: network.now }, network.root).bytes
}
