/**
 * Who is in a closed network: a view of the member records, each with the certificate that makes its publisher a member. Says this node's
 * own, from start() until disposed: at start, when its certificate was renewed, and before it expires.
 *
 * It decides whose records are kept: `admits` is what Records asks. A publisher whose certificate ends, whose key or issuer is revoked, or
 * whose member record runs out, loses all that it said here at once, and is no member to anybody who asks.
 *
 * Of several member records of a key the one of highest rank counts, as ever: were it the one of the newest certificate, stores that heard
 * of them in another order would not agree. Specification: protocols/records/spec.md.
 */
import type { Chain, Member, RevocationCheck } from '../../protocols/membership/certificate.ts'
import { hexOf, sameBytes } from '../../protocols/membership/statement.ts'
import {
  isMemberKey,
  MEMBER_KIND,
  MEMBER_NAME,
  type MemberBody,
  memberBody,
  memberIn,
} from '../../protocols/records/member.ts'
import { ISSUED_AHEAD_MS_MAX, LEASE_MS_MAX, type SignedRecord } from '../../protocols/records/record.ts'
import { reasonOf } from '../error.ts'
import { peerIdOf, publisherOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import type { Change, Records } from './records.ts'

/** Looked at least this often, since the clock may jump or the machine sleep; a look costs nothing when nothing ended. */
const SWEEP_MS_MAX = 4_000
/** Certificates that end close together are looked at together. */
const SWEEP_MS_MIN = 250

/** A member, as its certificate says. */
export type MemberView = Member & {
  readonly peerId: string
  /** Whether it renews the certificates of others. */
  readonly issues: boolean
}

/** What Members needs of the network that this node is in. */
export type OwnMembership = {
  readonly network: Uint8Array
  /** This node's own certificate, replaced when it is renewed. */
  readonly chain: Chain
  readonly revocations: RevocationCheck
  /** Why this node is no member now. */
  fault(now?: number): unknown
  can(right: 'issue'): unknown
  onChange(listener: (what: 'revocations' | 'policy' | 'certificate' | 'rights') => void): () => void
}

export type MembersOptions = {
  records: Pick<Records, 'publisher' | 'now' | 'get' | 'list' | 'put' | 'expel' | 'addIndex' | 'onChange'>
  membership: OwnMembership
  log: Log
}

export class Members implements Disposable {
  readonly #records: MembersOptions['records']
  readonly #membership: OwnMembership
  readonly #log: Log
  /** By the publisher's key in hexadecimal. */
  readonly #members = new Map<string, MemberView>()
  readonly #listeners = new Set<(peerIds: readonly string[]) => void>()
  /** Peer ids of who came, went or changed in the transaction that runs. */
  readonly #changed = new Set<string>()
  readonly #stop: (() => void)[]
  /** Records of somebody who is out may still be there. */
  #isExpelDue = true
  #timer: NodeJS.Timeout | undefined

  private constructor({ records, membership, log }: MembersOptions) {
    this.#records = records
    this.#membership = membership
    this.#log = log
    this.#read()
    records.addIndex(
      (change) => this.#apply(change),
      () => this.#read(),
    )
    this.#stop = [
      records.onChange((changes) => this.#committed(changes)),
      membership.onChange((what) => {
        if (what === 'revocations') this.#revoked()
        else this.#sayOwn()
      }),
    ]
  }

  /** Drops what is here of publishers who are no members any more, and says that this node is one. */
  static start(options: MembersOptions): Members {
    const members = new Members(options)
    members.sweep()
    return members
  }

  /** This node's member record stays: its certificate is good without it. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    for (const stop of this.#stop) stop()
    this.#listeners.clear()
  }

  /** For Records: whether a record is by a member, or makes its publisher one. */
  admits(record: SignedRecord): boolean {
    return isMemberKey(record) ? this.#judge(record) !== undefined : this.isMember(record.publisher)
  }

  /** Whether records of this key count. */
  isMember(publisher: Uint8Array): boolean {
    return this.of(publisher) !== undefined
  }

  of(publisher: Uint8Array): MemberView | undefined {
    const member = this.#members.get(hexOf(publisher))
    return this.#isLive(member) ? member : undefined
  }

  /** In no order; this node is among them while it is a member. */
  list(): MemberView[] {
    return [...this.#members.values()].filter((member) => this.#isLive(member))
  }

  get(peerId: string): MemberView | undefined {
    const publisher = publisherOf(peerId)
    return publisher && this.of(publisher)
  }

  /** Whose name this is: one, if the issuers took care; else the newest certificate comes first. */
  byName(name: string): MemberView[] {
    return this.list()
      .filter((member) => member.name === name)
      .sort(compareCertificates)
  }

  /** Told the peer ids of who came, went or changed; also, of nobody, when revocations changed: who was out may be in again. */
  onChange(listener: (peerIds: readonly string[]) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Drops whose certificate ended, and says this node's own record if that is due. Runs by itself in time. */
  sweep(): void {
    clearTimeout(this.#timer)
    const now = this.#records.now()
    const out = this.#putOut((member) => member.notAfter <= now)
    if (out.length > 0) this.#tell(out)
    this.#sayOwn()
    const nextEnd = this.#members
      .values()
      .reduce((least, { notAfter }) => Math.min(least, notAfter), now + SWEEP_MS_MAX)
    this.#timer = setTimeout(() => this.sweep(), Math.max(nextEnd - now, SWEEP_MS_MIN)).unref()
  }

  #revoked(): void {
    const { revocations } = this.#membership
    this.#tell(this.#putOut((member) => revocations.faultOf(member) !== undefined))
  }

  /** Takes members out of the view, and drops what they said. Gives back their peer ids. */
  #putOut(isOut: (member: MemberView) => boolean): string[] {
    const out = [...this.#members].filter(([, member]) => isOut(member))
    for (const [key] of out) this.#members.delete(key)
    if (out.length > 0 || this.#isExpelDue) this.#expel()
    const peerIds = out.map(([, { peerId }]) => peerId)
    if (peerIds.length > 0) this.#log.info({ peerIds }, 'members.out')
    return peerIds
  }

  #expel(): void {
    try {
      this.#records.expel((publisher) => !this.isMember(publisher))
      this.#isExpelDue = false
    } catch (error) {
      // A full disk, most likely: tried again with the next sweep.
      this.#isExpelDue = true
      this.#log.warn({ reason: reasonOf(error) }, 'members.unexpelled')
    }
  }

  /** The view, from what is stored. */
  #read(): void {
    this.#members.clear()
    this.#changed.clear()
    for (const record of this.#records.list(MEMBER_KIND)) {
      const member = this.#judge(record)
      if (member) this.#members.set(hexOf(member.key), member)
    }
  }

  /** In the transaction of the change, so that the records that follow in it are judged by it. */
  #apply(change: Change): void {
    if (!isMemberKey(change)) return
    const key = hexOf(change.publisher)
    const before = this.#members.get(key)
    const member = change.record && this.#judge(change.record)
    if (member) this.#members.set(key, member)
    else this.#members.delete(key)
    const isSame =
      before && member && before.issues === member.issues && sameBytes(before.chain.bytes, member.chain.bytes)
    if (!isSame && (before ?? member)) this.#changed.add(peerIdOf(change.publisher))
  }

  #committed(changes: readonly Change[]): void {
    // Without its member record there is nothing of a publisher. Who was expelled has lost the rest as well.
    if (changes.some((change) => isMemberKey(change) && !change.record && change.cause !== 'expelled')) this.#expel()
    if (this.#changed.size === 0) return
    const changed = [...this.#changed]
    this.#changed.clear()
    this.#tell(changed)
  }

  #tell(peerIds: readonly string[]): void {
    for (const listener of this.#listeners) listener(peerIds)
  }

  #isLive(member: MemberView | undefined): member is MemberView {
    return member !== undefined && member.notAfter > this.#records.now()
  }

  /** The member that a record makes of its publisher; undefined when its chain is no good now. */
  #judge(record: SignedRecord): MemberView | undefined {
    const { network, revocations } = this.#membership
    const found = memberIn(record, { network, now: this.#records.now(), revocations })
    return found && { ...found.member, peerId: peerIdOf(record.publisher), issues: found.issues }
  }

  /** Own records are never dropped: after a clock that was ahead came back, the one that stayed counts again. */
  #seeOwn(said: SignedRecord): void {
    const member = this.#members.has(hexOf(said.publisher)) ? undefined : this.#judge(said)
    if (!member) return
    this.#members.set(hexOf(said.publisher), member)
    this.#tell([member.peerId])
  }

  /** Says this node's member record, unless what it said is still good for long. */
  #sayOwn(): void {
    const { chain } = this.#membership
    const { notAfter } = chain.statement
    const now = this.#records.now()
    try {
      if (notAfter <= now || this.#membership.fault(now) !== undefined) return
      const issues = this.#membership.can('issue') !== undefined
      const said = this.#records.get(this.#records.publisher, MEMBER_KIND, MEMBER_NAME)
      if (said && isSaid(said, chain, issues) && !isDue(said, notAfter, now)) {
        this.#seeOwn(said)
        return
      }
      const body: MemberBody = { v: 1, chain: chain.bytes, issues }
      const leaseMs = Math.min(notAfter - now, LEASE_MS_MAX)
      this.#records.put({ kind: MEMBER_KIND, name: MEMBER_NAME, body, leaseMs })
    } catch (error) {
      this.#log.warn({ reason: reasonOf(error) }, 'member.unsaid')
    }
  }
}

/** Newest first: by when it was issued, then by id. */
function compareCertificates(a: MemberView, b: MemberView): number {
  return b.issued - a.issued || Buffer.compare(b.chain.statement.id, a.chain.statement.id)
}

function isSaid({ body }: SignedRecord, chain: Chain, issues: boolean): boolean {
  const said = memberBody.safeParse(body).data
  return said !== undefined && said.issues === issues && sameBytes(said.chain, chain.bytes)
}

/** Whether it ends before the certificate does, and soon; or was said while this node's clock was ahead, and nobody took it. */
function isDue({ issued, expires }: SignedRecord, notAfter: number, now: number): boolean {
  return expires < Math.min(notAfter, now + LEASE_MS_MAX / 2) || issued > now + ISSUED_AHEAD_MS_MAX
}
