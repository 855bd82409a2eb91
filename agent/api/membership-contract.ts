/**
 * What the agent says of closed networks on its local API, as types: memberships, invitations, policies, the audit log. The same
 * promises as in contract.ts. A `network` in a request is a network's local name or the beginning of its id; times are ISO 8601.
 */
import type { Fault } from '../../protocols/membership/certificate.ts'
import type { ShareMode } from './share-contract.ts'

/** What a member may sign: certificates, revocations, the policy. */
export type Right = 'issue' | 'revoke' | 'policy'

type Labels = Record<string, string>

export type NetworkView = {
  /** 64 hexadecimal digits. */
  id: string
  /** What this node calls it. */
  name: string
  kind: 'open' | 'closed'
  /** Nodes whose presence is known, this one included. */
  nodes: number
  /** Of a closed network: this node as it is in there, and how many members are known, whether they are here or not. */
  member?: OwnMembership
  members?: number
  /** What this node gives out there. */
  share?: ShareMode
}

export type OwnMembership = {
  name: string
  labels: Labels
  issued: string
  expires: string
  /** `member`, or what stands against it, in the words of protocols/membership. */
  state: 'member' | Fault
  /** For people, when the state is not `member`. */
  why?: string
}

/** A closed network. */
export type NetworkDetail = NetworkView & {
  kind: 'closed'
  member: OwnMembership
  members: number
  /** What this node may sign there, by the root key or by a delegation. */
  may: Right[]
  /** `may` has `issue`: this node can invite, and renews certificates. */
  issues: boolean
  /** The root key, on this node: never exported (the only copy is here), exported, or not here. */
  rootKey: 'here' | 'exported' | 'absent'
  /** null until a policy has been received. */
  policyVersion: number | null
  /** Made by this node. */
  invitations: InvitationView[]
}

/** Closed networks, and the open one if this node takes part in it. */
export type NetworkList = { networks: NetworkDetail[]; open: NetworkView | null }

export type CreateNetworkRequest = {
  name: string
  /** What this node is called there; otherwise its own name, as far as a member's name may have that. */
  as?: string
}

/** `armored` is an age file (age-encryption.org/v1) in its text form, encrypted with the passphrase. */
export type ExportedRoot = { armored: string }
export type ImportRootRequest = { armored: string; passphrase: string }
/** As what, as in CreateNetworkRequest. */
export type RestoreRequest = ImportRootRequest & { as?: string }

export type DelegateRequest = {
  /** A member's name or peer id. */
  member: string
  may: Right[]
  /** Patterns of names that it may give; any when there are none. */
  names?: string[]
  /** Labels that it may give, with their values (`*` for any); any when there are none. */
  labels?: Record<string, string[]>
  days: number
}
export type DelegationView = {
  /** The network's name. */
  network: string
  peerId: string
  name: string | null
  may: Right[]
  names?: string[]
  labels?: Record<string, string[]>
  issued: string
  expires: string
}

export type InviteRequest = {
  network?: string
  /** A member's name, or a pattern with one `*`, which stands for a few letters of the newcomer's key; otherwise the newcomer's own. */
  name?: string
  labels: Labels
  uses: number
  expiresSeconds: number
}
export type InvitationView = {
  /** 16 hexadecimal digits. Tells nothing of the token's secret. */
  id: string
  /** The network's name. */
  network: string
  /** As asked for; null when newcomers bring their own. */
  name: string | null
  labels: Labels
  uses: number
  /** How many have used it. */
  used: number
  issued: string
  expires: string
  state: 'open' | 'used-up' | 'expired'
}
export type InviteResult = { /** Who has it can join: a secret. */ token: string; invitation: InvitationView }
export type InvitationList = { invitations: InvitationView[] }

export type JoinRequest = {
  token: string
  /** What this node would be called there; otherwise its own name. The one who invites decides. */
  name?: string
}

/** Who signed something: the network's root key, or a member that it delegated to. */
export type SignerView = { root: boolean /** Of the delegate. */; peerId: string | null; name: string | null }

export type MemberView = {
  peerId: string
  name: string
  labels: Labels
  /** This node. */
  own: boolean
  /** `here`: it said so within its lease; `away`: it did not; or what stands against it. */
  state: 'here' | 'away' | 'not-yet-valid' | 'expired' | 'revoked' | 'issuer-revoked'
  /** Connected to this node now. */
  connected: boolean
  /** It invites and renews certificates. */
  issues: boolean
  issued: string
  expires: string
  issuer: SignerView
}
/** `network` is the network's name. */
export type MemberList = { network: string; members: MemberView[] }

export type RevokeRequest = {
  network?: string
  /** For people, at most 200 bytes. */
  reason?: string
  /** Revokes it as an issuer, too: what it issued counts no more. */
  issuer?: boolean
  /** With `issuer`: only what it issued after this time. */
  issuedAfter?: string
}
export type RevokeResult = {
  /** The network's name. */
  network: string
  peerId: string
  /** null when no certificate of the key is known. */
  name: string | null
  /** What was signed: one statement, or two. */
  scopes: ('member' | 'issuer')[]
  /** Connected members that were told at once. */
  announcedTo: number
  /** Connections of this node that were cut. */
  cut: number
}

export type LabelRequest = {
  network?: string
  /** null removes a label; what is not named stays. */
  labels: Record<string, string | null>
}
export type LabelResult = {
  member: MemberView
  /** The member has its new certificate; otherwise it gets it when it is here again. */
  delivered: boolean
}

export type PolicyView = {
  /** The network's name. */
  network: string
  version: number
  /** In the form that `PUT policy` takes: TOML. */
  text: string
  issued: string
  issuer: SignerView
}
export type SetPolicyRequest = {
  network?: string
  text: string
  /** The version that this is to replace: refused (`taken`) when another is in force meanwhile. */
  replaces?: number
}
export type GrantView = { from: string; to: string; allow: string[] }
/** Without mistakes the text can be set. A mistake says where it is: `line 3: grants[0].from: ...`. */
export type PolicyCheck = { grants: GrantView[]; mistakes: string[] }

export type ExplainRequest = {
  network?: string
  /** Members by name or peer id. */
  from: string
  to: string
  /** `content:fetch`, `service:connect web`. */
  verb: string
}
export type Explanation = {
  /** The network's name. */
  network: string
  allowed: boolean
  /** When allowed: the grant, as people write it, and its place in the document, from 0. */
  rule?: { index: number; text: string }
  /** When not: what would have to be there. */
  missing?: string
}

/** One line of the audit log. `event` is `noun.verbed` and stable; some events have more fields than these. */
export type AuditEntry = {
  at: string
  event: string
  /** The network's name. */
  network?: string | undefined
  peerId?: string | undefined
  /** Of the member. */
  name?: string | undefined
  /** What allowed or refused it. */
  rule?: string | undefined
  why?: string | undefined
  /** How often within the minute that ends at `at`, for what repeats. */
  count?: number | undefined
  [more: string]: unknown
}
/** `limit` is how many of those there are, the newest, begin the answer; the oldest of them comes first. */
export type AuditRequest = { follow: boolean; limit: number }
