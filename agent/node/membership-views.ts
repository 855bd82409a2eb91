/**
 * Closed networks, members and invitations in the words of the local API's contract (agent/api/membership-contract.ts).
 */
import type { Member } from '../../protocols/membership/certificate.ts'
import { networkOf } from '../../protocols/membership/network.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'
import type {
  InvitationView,
  MemberView,
  NetworkDetail,
  OwnMembership,
  Right,
  SignerView,
} from '../api/membership-contract.ts'
import type { ShareMode } from '../api/share-contract.ts'
import { AgentError } from '../error.ts'
import type { Invitation, Invitations } from '../identity/invitations.ts'
import type { Membership } from '../identity/membership.ts'
import type { Networks } from '../identity/networks.ts'
import { peerIdOf, publisherOf } from '../identity/peer-id.ts'
import type { Host } from '../mesh/host.ts'
import type { ClosedNetworks } from './closed-networks.ts'

/** Peer ids of one name, in an error. */
const NAMED_MAX = 5
const RIGHTS: readonly Right[] = ['issue', 'revoke', 'policy']

/** `issues` as the member says; this node itself is not among those that say so. */
export type Known = Member & { readonly issues?: boolean }

export type ViewsDeps = {
  networks: Pick<Networks, 'get'>
  closed: Pick<ClosedNetworks, 'get'>
  invitations: Pick<Invitations, 'list'>
  host: Pick<Host, 'isConnected'>
  /** What this node gives out in a network. */
  shareOf?: (id: string) => ShareMode
}

export class MembershipViews {
  readonly #parts: ViewsDeps

  constructor(deps: ViewsDeps) {
    this.#parts = deps
  }

  /** Of one network by its id, or of all. */
  invitations(id: string | undefined): InvitationView[] {
    return this.#parts.invitations.list(id).map((one) => this.invitation(one))
  }

  /** Members that are known, this node among them, also when it is none any more. */
  roll(membership: Membership): Known[] {
    const known = this.#parts.closed.get(membership.id)?.members.list() ?? []
    const { self } = membership
    return known.some(({ key }) => sameBytes(key, self.key)) ? known : [...known, self]
  }

  /** @throws {AgentError} `not-found`, or `usage` when several members have the name */
  member(membership: Membership, reference: string): Known {
    const roll = this.roll(membership)
    const found = roll.filter(({ key, name }) => name === reference || peerIdOf(key) === reference)
    const [only, ...others] = found
    if (only === undefined) {
      throw new AgentError('not-found', `no member "${reference.slice(0, 80)}" of ${membership.name} is known here`, {
        next: `\`agent member list\` lists those that are.`,
      })
    }
    if (others.length === 0) return only
    const ids = found.slice(0, NAMED_MAX).map(({ key }) => peerIdOf(key))
    throw new AgentError('usage', `${found.length} members are called ${reference}`, {
      next: `Give the peer id: ${ids.join(' or ')}.`,
    })
  }

  /**
   * The key that is meant: of a member, or of anybody by its peer id. `name` is null where no certificate of the key is known.
   *
   * @throws {AgentError} as `member`
   */
  keyOf(membership: Membership, reference: string): { key: Uint8Array; name: string | null } {
    const key = publisherOf(reference)
    if (key === undefined) return this.member(membership, reference)
    const name = this.roll(membership).find((member) => sameBytes(member.key, key))?.name
    return { key, name: name ?? null }
  }

  detail(membership: Membership): NetworkDetail {
    const may = RIGHTS.filter((right) => membership.can(right) !== undefined)
    const running = this.#parts.closed.get(membership.id)
    return {
      id: membership.id,
      name: membership.name,
      kind: 'closed',
      nodes: running?.nodes.list().length ?? 0,
      member: ownMembership(membership),
      members: running?.members.list().length ?? 0,
      share: this.#parts.shareOf?.(membership.id) ?? 'published',
      may,
      issues: may.includes('issue'),
      rootKey: membership.rootKey,
      policyVersion: membership.policy?.statement.version ?? null,
      invitations: this.invitations(membership.id),
    }
  }

  invitation({ network, name, issued, expires, ...rest }: Invitation): InvitationView {
    const known = this.#parts.networks.get(network)?.name ?? network
    return {
      ...rest,
      labels: { ...rest.labels },
      network: known,
      name: name ?? null,
      issued: iso(issued),
      expires: iso(expires),
    }
  }

  memberView(membership: Membership, member: Known): MemberView {
    const { key, name, labels, issued, notAfter, issuer } = member
    const peerId = peerIdOf(key)
    const isOwn = sameBytes(key, membership.self.key)
    const isHere = this.#parts.closed.get(membership.id)?.nodes.get(peerId) !== undefined
    const fault = isOwn ? membership.fault()?.fault : membership.revocations.faultOf(member)
    return {
      peerId,
      name,
      labels: { ...labels },
      own: isOwn,
      state: isStanding(fault) ? fault : isHere ? 'here' : 'away',
      connected: !isOwn && this.#parts.host.isConnected(peerId),
      issues: isOwn ? membership.can('issue') !== undefined : (member.issues ?? false),
      issued: iso(issued),
      expires: iso(notAfter),
      issuer: this.signer(membership, issuer),
    }
  }

  signer(membership: Membership, key: Uint8Array): SignerView {
    if (sameBytes(networkOf(key), membership.network)) return { root: true, peerId: null, name: null }
    const name = this.roll(membership).find((member) => sameBytes(member.key, key))?.name
    return { root: false, peerId: peerIdOf(key), name: name ?? null }
  }
}

/** This node as it is in a network. */
function ownMembership(membership: Membership): OwnMembership {
  const { name, labels, issued, notAfter } = membership.self
  const fault = membership.fault()
  return {
    name,
    labels: { ...labels },
    issued: iso(issued),
    expires: iso(notAfter),
    state: fault?.fault ?? 'member',
    ...(fault && { why: fault.why }),
  }
}

const STANDING = ['not-yet-valid', 'expired', 'revoked', 'issuer-revoked'] as const

function isStanding(fault: string | undefined): fault is (typeof STANDING)[number] {
  return STANDING.some((one) => one === fault)
}

/** Times that no calendar has are the last one that it has. */
export function iso(ms: number): string {
  return new Date(Math.min(ms, 8.64e15)).toISOString()
}
