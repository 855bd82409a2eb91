/**
 * What the local API does with closed networks (agent/api/membership-api.ts): networks, invitations, members, policies, the audit log.
 */
import { multiaddr } from '@multiformats/multiaddr'
import { WireError } from '../../protocols/error.ts'
import type { Chain } from '../../protocols/membership/certificate.ts'
import { verbFault } from '../../protocols/membership/policy.ts'
import { formatPolicy, parsePolicy } from '../../protocols/membership/policy-text.ts'
import { sameBytes } from '../../protocols/membership/statement.ts'
import { encodeToken } from '../../protocols/membership/token.ts'
import type { MembershipApi } from '../api/membership-api.ts'
import type {
  AuditEntry,
  AuditRequest,
  CreateNetworkRequest,
  DelegateRequest,
  DelegationView,
  ExplainRequest,
  Explanation,
  ImportRootRequest,
  InvitationView,
  InviteRequest,
  InviteResult,
  JoinRequest,
  LabelRequest,
  LabelResult,
  MemberList,
  MemberView,
  NetworkDetail,
  NetworkList,
  NetworkView,
  PolicyCheck,
  PolicyView,
  RestoreRequest,
  RevokeRequest,
  RevokeResult,
  SetPolicyRequest,
} from '../api/membership-contract.ts'
import type { ShareMode } from '../api/share-contract.ts'
import { AgentError } from '../error.ts'
import type { Audit } from '../identity/audit.ts'
import type { Invitations } from '../identity/invitations.ts'
import type { Issuer } from '../identity/issuing.ts'
import type { Membership } from '../identity/membership.ts'
import type { Networks } from '../identity/networks.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Gate } from '../mesh/gate.ts'
import type { Host } from '../mesh/host.ts'
import type { ClosedNetwork } from './closed-network.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Joining } from './joining.ts'
import { iso, MembershipViews } from './membership-views.ts'
import type { Reach } from './reach.ts'

/** To a member that is connected. */
const HAND_OVER_MS_MAX = 5_000
/** Whoever joined is told of the others that are there, if they say so soon. */
const MET_MS_MAX = 2_000
const DAY_MS = 24 * 3_600_000
/** More than a token holds are not worth a try. */
const TOKEN_ADDRESSES_MAX = 8

export type MembershipParts = {
  /** What this node is called, here and where it is not told otherwise. */
  name: string
  networks: Networks
  closed: ClosedNetworks
  issuer: Issuer
  invitations: Invitations
  joining: Joining
  audit: Audit
  gate: Gate
  host: Pick<Host, 'peerId' | 'isConnected'>
  reach: Pick<Reach, 'addresses'>
  /** undefined when this node takes no part in it. */
  open: () => NetworkView | undefined
  /** What this node gives out in a network. */
  shareOf?: (id: string) => ShareMode
}

export class NodeMembership implements MembershipApi {
  readonly #parts: MembershipParts
  readonly #views: MembershipViews

  constructor(parts: MembershipParts) {
    this.#parts = parts
    this.#views = new MembershipViews(parts)
  }

  networks(): NetworkList {
    const { networks, open } = this.#parts
    return { networks: networks.list().map((one) => this.#views.detail(one)), open: open() ?? null }
  }

  async createNetwork({ name, as }: CreateNetworkRequest): Promise<NetworkDetail> {
    const { networks, closed, audit } = this.#parts
    const membership = networks.create(name, { memberName: as ?? this.#parts.name })
    await closed.settled()
    audit.append({ event: 'network.created', network: membership.name, name: membership.self.name })
    return this.#views.detail(membership)
  }

  network(reference: string): NetworkDetail {
    return this.#views.detail(this.#parts.networks.find(reference))
  }

  async leaveNetwork(reference: string, force: boolean): Promise<NetworkDetail> {
    const { networks, closed, audit } = this.#parts
    const membership = networks.find(reference)
    const before = this.#views.detail(membership)
    networks.leave(membership.id, { force })
    await closed.settled()
    audit.append({ event: 'network.left', network: before.name, name: before.member.name })
    return before
  }

  async exportRoot(reference: string, passphrase: string): Promise<{ armored: string }> {
    const { networks, audit } = this.#parts
    const { id, name } = networks.find(reference)
    const armored = await networks.exportRoot(id, passphrase)
    audit.append({ event: 'root.exported', network: name })
    return { armored }
  }

  async importRoot(reference: string, { armored, passphrase }: ImportRootRequest): Promise<NetworkDetail> {
    const { networks, audit } = this.#parts
    const { id, name } = networks.find(reference)
    await networks.importRoot(id, armored, passphrase)
    audit.append({ event: 'root.imported', network: name })
    return this.network(id)
  }

  async restoreNetwork({ armored, passphrase, as }: RestoreRequest): Promise<NetworkDetail> {
    const { networks, closed, audit } = this.#parts
    const membership = await networks.restore(armored, passphrase, { memberName: as ?? this.#parts.name })
    await closed.settled()
    const { name, self } = membership
    audit.append({ event: 'network.joined', network: name, name: self.name, why: 'restored from its root key' })
    return this.#views.detail(membership)
  }

  removeRoot(reference: string): NetworkDetail {
    const { networks, audit } = this.#parts
    const { id, name } = networks.find(reference)
    networks.removeRoot(id)
    audit.append({ event: 'root.removed', network: name })
    return this.network(id)
  }

  delegate(reference: string, request: DelegateRequest): DelegationView {
    const { networks, issuer, audit } = this.#parts
    const membership = networks.find(reference)
    const member = this.#views.member(membership, request.member)
    const { may, names, labels, days } = request
    const delegation = issuer.delegate(membership, member.key, {
      may,
      ...(names && { names }),
      ...(labels && { labels }),
      notAfter: Date.now() + days * DAY_MS,
    })
    const peerId = peerIdOf(member.key)
    audit.append({
      event: 'issuer.delegated',
      network: membership.name,
      peerId,
      name: member.name,
      why: may.join(', '),
    })
    return {
      network: membership.name,
      peerId,
      name: member.name,
      may,
      ...(names && { names }),
      ...(labels && { labels }),
      issued: iso(delegation.issued),
      expires: iso(delegation.notAfter),
    }
  }

  invite({ network, name, labels, uses, expiresSeconds }: InviteRequest): InviteResult {
    const { invitations, audit, host, reach } = this.#parts
    const membership = this.#meant(network)
    const relays = this.#closed(membership)?.guestAddresses() ?? []
    const own = reach.addresses().slice(0, TOKEN_ADDRESSES_MAX - relays.length)
    const made = invitations.create({
      membership,
      addresses: own.map((address) => multiaddr(address).decapsulate(`/p2p/${host.peerId}`)),
      relays,
      name,
      labels,
      uses,
      expires: Date.now() + expiresSeconds * 1_000,
    })
    const invitation = this.#views.invitation(made.invitation)
    audit.append({ event: 'invitation.made', network: membership.name, invitation: invitation.id })
    return { token: encodeToken(made.token), invitation }
  }

  invitations(network?: string): InvitationView[] {
    return this.#views.invitations(network === undefined ? undefined : this.#parts.networks.find(network).id)
  }

  withdrawInvitation(id: string): InvitationView {
    const { invitations, audit } = this.#parts
    const view = this.#views.invitation(invitations.withdraw(id))
    audit.append({ event: 'invitation.withdrawn', network: view.network, invitation: view.id })
    return view
  }

  async join({ token, name }: JoinRequest, signal: AbortSignal): Promise<NetworkDetail> {
    const { joining, closed } = this.#parts
    const membership = await joining.join(token, name ?? this.#parts.name, signal)
    await closed.settled()
    await this.#closed(membership)?.met(MET_MS_MAX)
    return this.#views.detail(membership)
  }

  members(network?: string): MemberList {
    const membership = this.#meant(network)
    const views = this.#views.roll(membership).map((member) => this.#views.memberView(membership, member))
    return { network: membership.name, members: views.sort((a, b) => (a.name < b.name ? -1 : 1)) }
  }

  member(reference: string, network?: string): MemberView {
    const membership = this.#meant(network)
    return this.#views.memberView(membership, this.#views.member(membership, reference))
  }

  revoke(reference: string, request: RevokeRequest): RevokeResult {
    const { issuer, gate } = this.#parts
    const membership = this.#meant(request.network)
    // Who joined and said nothing since is on no roll, and can be put out all the same.
    const { key, name: known } = this.#views.keyOf(membership, reference)
    const name = known ?? issuer.known(membership, key)?.name ?? null
    const peerId = peerIdOf(key)
    const scopes = request.issuer === true ? (['issuer', 'member'] as const) : (['member'] as const)
    const issuedAfter = request.issuedAfter === undefined ? undefined : Date.parse(request.issuedAfter)
    const announcedTo = (this.#closed(membership)?.connected() ?? []).filter((one) => one !== peerId).length
    const wasConnected = gate.admitted(peerId) !== undefined
    for (const scope of scopes) {
      issuer.revoke(membership, { key, scope, reason: request.reason, ...(scope === 'issuer' && { issuedAfter }) })
    }
    gate.recheck()
    const cut = wasConnected && gate.admitted(peerId) === undefined ? 1 : 0
    return { network: membership.name, peerId, name, scopes: [...scopes], announcedTo, cut }
  }

  async label(reference: string, request: LabelRequest): Promise<LabelResult> {
    const { issuer, audit } = this.#parts
    const membership = this.#meant(request.network)
    const member = this.#views.member(membership, reference)
    const known = issuer.known(membership, member.key)?.labels ?? member.labels
    const labels = Object.fromEntries(
      Object.entries({ ...known, ...request.labels }).filter((pair): pair is [string, string] => pair[1] !== null),
    )
    const chain = issuer.relabel(membership, member, labels)
    const isOwn = sameBytes(member.key, membership.self.key)
    const delivered = isOwn
      ? membership.takeChain(chain)
      : await this.#handOver(membership, peerIdOf(member.key), chain)
    const text = Object.entries(labels).map(([key, value]) => `${key}=${value}`)
    const peerId = peerIdOf(member.key)
    audit.append({
      event: 'member.labelled',
      network: membership.name,
      peerId,
      name: member.name,
      labels: text.join(', '),
    })
    return { member: { ...this.#views.memberView(membership, member), labels }, delivered }
  }

  policy(network?: string): PolicyView {
    const membership = this.#meant(network)
    const { policy } = membership
    if (policy === undefined) {
      throw new AgentError('not-found', `this node has not received the policy of "${membership.name}" yet`, {
        next: 'It comes with the first member that this node is connected to: see `agent status`.',
      })
    }
    const { version, grants, issued, issuer } = policy.statement
    const text = formatPolicy(grants)
    return {
      network: membership.name,
      version,
      text,
      issued: iso(issued),
      issuer: this.#views.signer(membership, issuer),
    }
  }

  setPolicy({ network, text, replaces }: SetPolicyRequest): PolicyView {
    const { issuer } = this.#parts
    const membership = this.#meant(network)
    const { grants, mistakes } = this.checkPolicy(text)
    if (mistakes.length > 0) throw new AgentError('usage', `the policy has mistakes:\n${mistakes.join('\n')}`)
    const present = membership.policy?.statement.version
    if (replaces !== undefined && replaces !== present)
      throw new AgentError('taken', `version ${present ?? 'none'} of the policy is in force by now, not ${replaces}`, {
        next: 'Look at it with `agent policy show`, and set yours again.',
      })
    issuer.setPolicy(membership, grants)
    return this.policy(membership.id)
  }

  checkPolicy(text: string): PolicyCheck {
    try {
      return { grants: parsePolicy(text), mistakes: [] }
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      return { grants: [], mistakes: error.message.split('\n') }
    }
  }

  explain({ network, from, to, verb }: ExplainRequest): Explanation {
    const membership = this.#meant(network)
    const fault = verbFault(verb)
    if (fault !== undefined) throw new AgentError('usage', fault)
    const [one, other] = [this.#views.member(membership, from), this.#views.member(membership, to)]
    return { network: membership.name, ...membership.decide(one, other, verb) }
  }

  audit({ follow, limit }: AuditRequest, signal: AbortSignal): AsyncIterable<AuditEntry> {
    return this.#parts.audit.read({ follow, last: limit, signal })
  }

  /** Whether the member has it now: who is away gets it when it is here again. */
  async #handOver(membership: Membership, peerId: string, chain: Chain): Promise<boolean> {
    const running = this.#closed(membership)
    if (running === undefined || !running.connected().includes(peerId)) return false
    try {
      await running.renewal.push(peerId, chain, AbortSignal.timeout(HAND_OVER_MS_MAX))
      return true
    } catch {
      return false
    }
  }

  #closed({ id }: Membership): ClosedNetwork | undefined {
    return this.#parts.closed.get(id)
  }

  /** @throws {AgentError} `usage` when none is named, and this node is in none or several */
  #meant(network: string | undefined): Membership {
    const { networks } = this.#parts
    if (network !== undefined) return networks.find(network)
    const [only, ...others] = networks.list()
    if (only === undefined)
      throw new AgentError('usage', 'this node is in no closed network', {
        next: 'Make one with `agent network create NAME`, or join one with `agent join`.',
      })
    if (others.length === 0) return only
    const names = networks.list().map(({ name }) => name)
    throw new AgentError('usage', `this node is in ${names.length} networks: ${names.join(', ')}`, {
      next: 'Say which with --network.',
    })
  }
}
