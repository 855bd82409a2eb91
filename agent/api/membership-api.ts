/**
 * What the routes need of a running agent for closed networks, one method an endpoint. As AgentApi, which it is a part of.
 *
 * `network` is a local name or the beginning of an id. Without it: the only closed network that this node is in; with several, or none,
 * a `usage` error that says so.
 */
import type {
  AuditEntry,
  AuditRequest,
  CreateNetworkRequest,
  DelegateRequest,
  DelegationView,
  ExplainRequest,
  Explanation,
  ExportedRoot,
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
  PolicyCheck,
  PolicyView,
  RestoreRequest,
  RevokeRequest,
  RevokeResult,
  SetPolicyRequest,
} from './membership-contract.ts'

type Awaitable<T> = T | Promise<T>

export interface MembershipApi {
  networks(): Awaitable<NetworkList>
  createNetwork(request: CreateNetworkRequest): Awaitable<NetworkDetail>
  network(network: string): Awaitable<NetworkDetail>
  /** As it was before. `force` gives up the only copy of a root key. */
  leaveNetwork(network: string, force: boolean): Awaitable<NetworkDetail>
  /** Writes nothing: whoever asks keeps the file, and the root key counts as exported from then on. */
  exportRoot(network: string, passphrase: string): Promise<ExportedRoot>
  importRoot(network: string, request: ImportRootRequest): Promise<NetworkDetail>
  /** Comes into a network that this node is not in, with nothing but its exported root key. */
  restoreNetwork(request: RestoreRequest): Promise<NetworkDetail>
  removeRoot(network: string): Awaitable<NetworkDetail>
  delegate(network: string, request: DelegateRequest): Awaitable<DelegationView>

  invite(request: InviteRequest): Awaitable<InviteResult>
  /** Of all networks, unless one is named. */
  invitations(network?: string): Awaitable<InvitationView[]>
  /** As it was before. `id` is an invitation's, or the beginning of one. */
  withdrawInvitation(id: string): Awaitable<InvitationView>
  join(request: JoinRequest, signal: AbortSignal): Promise<NetworkDetail>

  members(network?: string): Awaitable<MemberList>
  /** `member` is a name or a peer id. */
  member(member: string, network?: string): Awaitable<MemberView>
  revoke(member: string, request: RevokeRequest): Awaitable<RevokeResult>
  label(member: string, request: LabelRequest): Awaitable<LabelResult>

  policy(network?: string): Awaitable<PolicyView>
  setPolicy(request: SetPolicyRequest): Awaitable<PolicyView>
  checkPolicy(text: string): Awaitable<PolicyCheck>
  explain(request: ExplainRequest): Awaitable<Explanation>

  /** Ends when all was said; with `follow` when the signal fires, by throwing its reason. */
  audit(request: AuditRequest, signal: AbortSignal): AsyncIterable<AuditEntry>
}
