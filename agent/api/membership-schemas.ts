/**
 * The types of membership-contract.ts as schemas: what requests are checked against, and what the OpenAPI document says of replies.
 */
import { z } from 'zod'
import {
  LABEL_KEY_PATTERN,
  LABEL_VALUE_PATTERN,
  LABELS_MAX,
  NAME_GLOB_PATTERN,
  NAME_PATTERN,
  reasonFault,
} from '../../protocols/membership/words.ts'
import type {
  AuditEntry,
  CreateNetworkRequest,
  DelegateRequest,
  DelegationView,
  ExplainRequest,
  Explanation,
  ExportedRoot,
  ImportRootRequest,
  InvitationList,
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
  SignerView,
} from './membership-contract.ts'

/** A network's id is the longest way to name one, and a peer id to name a member. */
const REF_LENGTH_MAX = 128
/** As protocols/membership/token.ts, with the line breaks of a mail. */
const TOKEN_LENGTH_MAX = 8_192
/** As protocols/membership/policy-text.ts. */
const POLICY_TEXT_LENGTH_MAX = 192 * 1024
/** Escaped as JSON, a policy's text grows; this is read before anything can be said of it. */
export const POLICY_BODY_BYTES_MAX = 1024 * 1024
/** A key of 32 bytes in an age file is some 500 characters. */
const ARMORED_LENGTH_MAX = 16 * 1024
const PASSPHRASE_LENGTH_MAX = 1_024
/** Shorter ones are guessed, even with scrypt in the way. */
const PASSPHRASE_LENGTH_MIN = 8
/** As protocols/membership/certificate.ts. */
const LISTED_MAX = 16
const DAYS_MAX = 3_650
const USES_MAX = 10_000
const MINUTE_SECONDS = 60
/** A token that works for longer than a year has been forgotten. */
const EXPIRES_SECONDS_MAX = 366 * 24 * 3_600
/** More than a person reads; bounds one answer. */
const AUDIT_LINES_MAX = 10_000
const AUDIT_LINES_DEFAULT = 50

const count = z.int().min(0)
const network = z.string().min(1).max(REF_LENGTH_MAX)
const member = network
const peerId = z.string()
const time = z.iso.datetime()
const right = z.enum(['issue', 'revoke', 'policy'])
const memberName = z.string().regex(NAME_PATTERN, 'must be a name: a-z, 0-9 and - (at most 63)')
const namePattern = z.string().regex(NAME_GLOB_PATTERN, 'must be a name with at most one *')
const labelValue = z.string().regex(LABEL_VALUE_PATTERN, 'must be the value of a label')
const labelsOf = <T>(value: z.ZodType<T>) =>
  z
    .record(z.string().regex(LABEL_KEY_PATTERN, 'must be the name of a label'), value)
    .refine((labels) => Object.keys(labels).length <= LABELS_MAX, `must be at most ${LABELS_MAX} labels`)
const labels = labelsOf(labelValue)
const listedLabels = labelsOf(z.array(z.union([z.literal('*'), labelValue])).max(LISTED_MAX))
const flag = z
  .enum(['true', 'false'])
  .default('false')
  .transform((value) => value === 'true')

// Requests. A field that is not known is refused: what it asks for would not be done.

export const networkRequest = z.strictObject({ network })
export const ofNetworkRequest = z.strictObject({ network: network.exactOptional() })
export const createNetworkRequest: z.ZodType<CreateNetworkRequest> = z.strictObject({
  name: memberName,
  as: memberName.exactOptional(),
})
export const leaveRequest = z.strictObject({ network, force: flag })
export const exportRequest = z.strictObject({
  network,
  passphrase: z
    .string()
    .min(PASSPHRASE_LENGTH_MIN, `must have at least ${PASSPHRASE_LENGTH_MIN} characters`)
    .max(PASSPHRASE_LENGTH_MAX),
})
const exported = {
  armored: z.string().min(1).max(ARMORED_LENGTH_MAX),
  passphrase: z.string().min(1).max(PASSPHRASE_LENGTH_MAX),
}
export const importRequest: z.ZodType<ImportRootRequest & { network: string }> = z.strictObject({
  network,
  ...exported,
})
export const restoreRequest: z.ZodType<RestoreRequest> = z.strictObject({ ...exported, as: memberName.exactOptional() })
export const delegateRequest: z.ZodType<DelegateRequest & { network: string }> = z.strictObject({
  network,
  member,
  may: z.array(right).min(1).max(right.options.length),
  names: z.array(namePattern).min(1).max(LISTED_MAX).exactOptional(),
  labels: listedLabels.exactOptional(),
  days: z.int().min(1).max(DAYS_MAX),
})
export const inviteRequest: z.ZodType<InviteRequest> = z.strictObject({
  network: network.exactOptional(),
  name: namePattern.exactOptional(),
  labels,
  uses: z.int().min(1).max(USES_MAX),
  expiresSeconds: z.int().min(MINUTE_SECONDS).max(EXPIRES_SECONDS_MAX),
})
export const invitationRequest = z.strictObject({
  id: z.string().regex(/^[0-9a-f]{4,16}$/, 'must be 4 to 16 hexadecimal digits'),
})
export const joinRequest: z.ZodType<JoinRequest> = z.strictObject({
  token: z.string().min(1).max(TOKEN_LENGTH_MAX),
  name: memberName.exactOptional(),
})
export const memberRequest = z.strictObject({ member, network: network.exactOptional() })
export const revokeRequest: z.ZodType<RevokeRequest & { member: string }> = z
  .strictObject({
    member,
    network: network.exactOptional(),
    reason: z
      .string()
      .refine((text) => reasonFault(text) === undefined, { error: ({ input }) => reasonFault(input as string) ?? '' })
      .exactOptional(),
    issuer: z.boolean().exactOptional(),
    issuedAfter: time.exactOptional(),
  })
  .refine(({ issuer, issuedAfter }) => issuer === true || issuedAfter === undefined, 'issuedAfter goes with issuer')
export const labelRequest: z.ZodType<LabelRequest & { member: string }> = z.strictObject({
  member,
  network: network.exactOptional(),
  labels: labelsOf(labelValue.nullable()),
})
export const setPolicyRequest: z.ZodType<SetPolicyRequest> = z.strictObject({
  network: network.exactOptional(),
  text: z.string().max(POLICY_TEXT_LENGTH_MAX),
  replaces: count.exactOptional(),
})
export const policyText = z.strictObject({ text: z.string().max(POLICY_TEXT_LENGTH_MAX) })
export const explainRequest: z.ZodType<ExplainRequest> = z.strictObject({
  network: network.exactOptional(),
  from: member,
  to: member,
  verb: z.string().min(1).max(REF_LENGTH_MAX),
})
export const auditRequest = z.strictObject({
  follow: flag,
  limit: z.coerce.number().int().min(0).max(AUDIT_LINES_MAX).default(AUDIT_LINES_DEFAULT),
})

// Replies. What they hold was checked when it came in.

const labelsView = z.record(z.string(), z.string())
const listedLabelsView = z.record(z.string(), z.array(z.string()))
const networkFields = {
  id: z.string().regex(/^[0-9a-f]{64}$/),
  name: z.string(),
  nodes: count,
}
const ownMembership = z.object({
  name: z.string(),
  labels: labelsView,
  issued: time,
  expires: time,
  state: z.enum([
    'member',
    'foreign',
    'not-yours',
    'bad-signature',
    'exceeds',
    'not-yet-valid',
    'expired',
    'revoked',
    'issuer-revoked',
  ]),
  why: z.string().exactOptional(),
})
const share = z.enum(['published', 'store'])
export const networkView: z.ZodType<NetworkView> = z.object({
  ...networkFields,
  kind: z.enum(['open', 'closed']),
  member: ownMembership.exactOptional(),
  members: count.exactOptional(),
  share: share.exactOptional(),
})
export const invitation: z.ZodType<InvitationView> = z.object({
  id: z.string(),
  network: z.string(),
  name: z.string().nullable(),
  labels: labelsView,
  uses: count,
  used: count,
  issued: time,
  expires: time,
  state: z.enum(['open', 'used-up', 'expired']),
})
export const networkDetail: z.ZodType<NetworkDetail> = z.object({
  ...networkFields,
  kind: z.literal('closed'),
  member: ownMembership,
  share: share.exactOptional(),
  members: count,
  may: z.array(right),
  issues: z.boolean(),
  rootKey: z.enum(['here', 'exported', 'absent']),
  policyVersion: count.nullable(),
  invitations: z.array(invitation),
})
export const networkList: z.ZodType<NetworkList> = z.object({
  networks: z.array(networkDetail),
  open: networkView.nullable(),
})
export const exportedRoot: z.ZodType<ExportedRoot> = z.object({ armored: z.string() })
export const delegation: z.ZodType<DelegationView> = z.object({
  network: z.string(),
  peerId,
  name: z.string().nullable(),
  may: z.array(right),
  names: z.array(z.string()).exactOptional(),
  labels: listedLabelsView.exactOptional(),
  issued: time,
  expires: time,
})
export const inviteResult: z.ZodType<InviteResult> = z.object({ token: z.string(), invitation })
export const invitationList: z.ZodType<InvitationList> = z.object({ invitations: z.array(invitation) })

const signer: z.ZodType<SignerView> = z.object({
  root: z.boolean(),
  peerId: peerId.nullable(),
  name: z.string().nullable(),
})
export const memberView: z.ZodType<MemberView> = z.object({
  peerId,
  name: z.string(),
  labels: labelsView,
  own: z.boolean(),
  state: z.enum(['here', 'away', 'not-yet-valid', 'expired', 'revoked', 'issuer-revoked']),
  connected: z.boolean(),
  issues: z.boolean(),
  issued: time,
  expires: time,
  issuer: signer,
})
export const memberList: z.ZodType<MemberList> = z.object({ network: z.string(), members: z.array(memberView) })
export const revokeResult: z.ZodType<RevokeResult> = z.object({
  network: z.string(),
  peerId,
  name: z.string().nullable(),
  scopes: z.array(z.enum(['member', 'issuer'])),
  announcedTo: count,
  cut: count,
})
export const labelResult: z.ZodType<LabelResult> = z.object({ member: memberView, delivered: z.boolean() })

export const policyView: z.ZodType<PolicyView> = z.object({
  network: z.string(),
  version: count,
  text: z.string(),
  issued: time,
  issuer: signer,
})
export const policyCheck: z.ZodType<PolicyCheck> = z.object({
  grants: z.array(z.object({ from: z.string(), to: z.string(), allow: z.array(z.string()) })),
  mistakes: z.array(z.string()),
})
export const explanation: z.ZodType<Explanation> = z.object({
  network: z.string(),
  allowed: z.boolean(),
  rule: z.object({ index: count, text: z.string() }).exactOptional(),
  missing: z.string().exactOptional(),
})

export const auditEntry: z.ZodType<AuditEntry> = z.looseObject({
  at: time,
  event: z.string(),
  network: z.string().exactOptional(),
  peerId: peerId.exactOptional(),
  name: z.string().exactOptional(),
  rule: z.string().exactOptional(),
  why: z.string().exactOptional(),
  count: count.exactOptional(),
})
