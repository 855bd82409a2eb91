/** The closed networks of the agent in fake-agent.ts: one that is called home, with three members. */
import type { MembershipApi } from '../../../agent/api/membership-api.ts'
import type {
  AuditEntry,
  InvitationView,
  MemberView,
  NetworkDetail,
  PolicyView,
  SignerView,
} from '../../../agent/api/membership-contract.ts'

const DAY_MS = 24 * 3_600_000
/** Lifetimes are shown as what is left of them: in the middle of a minute, so that a slow test does not show another. */
const nowMs = Date.now() + 30_000
const dayFromNow = (days: number) => new Date(nowMs + days * DAY_MS).toISOString()

const APPLE_ID = '12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS'
const PEAR_ID = '12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q'
const QUINCE_ID = '12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN'

const root: SignerView = { root: true, peerId: null, name: null }

export const invitation: InvitationView = {
  id: '0123456789abcdef',
  network: 'home',
  name: 'ci-*',
  labels: { zone: 'a' },
  uses: 3,
  used: 1,
  issued: dayFromNow(-0.5),
  expires: dayFromNow(0.5),
  state: 'open',
}

export const home: NetworkDetail = {
  id: 'cd'.repeat(32),
  name: 'home',
  kind: 'closed',
  nodes: 2,
  member: { name: 'apple', labels: { zone: 'a' }, issued: dayFromNow(-10), expires: dayFromNow(80), state: 'member' },
  members: 3,
  may: ['issue', 'revoke', 'policy'],
  issues: true,
  rootKey: 'here',
  policyVersion: 1,
  invitations: [invitation],
}

export const members: MemberView[] = [
  {
    peerId: APPLE_ID,
    name: 'apple',
    labels: { zone: 'a' },
    own: true,
    state: 'here',
    connected: false,
    issues: true,
    issued: dayFromNow(-10),
    expires: dayFromNow(80),
    issuer: root,
  },
  {
    peerId: PEAR_ID,
    name: 'pear',
    labels: {},
    own: false,
    state: 'here',
    connected: true,
    issues: false,
    issued: dayFromNow(-10),
    expires: dayFromNow(80),
    issuer: { root: false, peerId: APPLE_ID, name: 'apple' },
  },
  {
    peerId: QUINCE_ID,
    name: 'quince',
    labels: { zone: 'b', role: 'db' },
    own: false,
    state: 'away',
    connected: false,
    issues: false,
    issued: dayFromNow(-85),
    expires: dayFromNow(5),
    issuer: root,
  },
]

export const policy: PolicyView = {
  network: 'home',
  version: 1,
  text: `# What no grant gives is denied.

[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish"]
`,
  issued: '2026-01-01T00:00:00.000Z',
  issuer: root,
}

export const auditLog: AuditEntry[] = [
  { at: '2026-01-01T00:00:00.000Z', event: 'network.created', network: 'home' },
  { at: '2026-01-01T00:00:01.500Z', event: 'member.joined', network: 'home', peerId: PEAR_ID, name: 'pear' },
  {
    at: '2026-01-01T00:01:00.000Z',
    event: 'peer.refused',
    peerId: QUINCE_ID,
    why: 'no network is shared',
    count: 7,
  },
]

export function fakeMembership(replaced: Partial<MembershipApi> = {}): MembershipApi {
  const [, pear] = members as [MemberView, MemberView]
  return {
    networks: () => ({ networks: [home], open: { id: 'ab'.repeat(32), name: 'open', kind: 'open', nodes: 2 } }),
    createNetwork: ({ name, as = 'apple' }) => ({
      ...home,
      name,
      member: { ...home.member, name: as, labels: {} },
      nodes: 1,
      members: 1,
      invitations: [],
    }),
    network: () => home,
    leaveNetwork: () => home,
    exportRoot: async () => ({
      armored: '-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n-----END AGE ENCRYPTED FILE-----\n',
    }),
    importRoot: async () => ({ ...home, rootKey: 'exported' }),
    restoreNetwork: async () => ({ ...home, rootKey: 'exported' }),
    removeRoot: () => ({ ...home, rootKey: 'absent', may: [], issues: false }),
    delegate: (_network, { member, may, names, labels, days }) => ({
      network: 'home',
      peerId: pear.peerId,
      name: member,
      may,
      ...(names && { names }),
      ...(labels && { labels }),
      issued: dayFromNow(0),
      expires: dayFromNow(days),
    }),
    invite: ({ name = null, labels, uses, expiresSeconds }) => ({
      token: 'un1token',
      invitation: {
        ...invitation,
        name,
        labels,
        uses,
        used: 0,
        expires: new Date(nowMs + expiresSeconds * 1_000).toISOString(),
      },
    }),
    invitations: () => [invitation],
    withdrawInvitation: () => invitation,
    join: async ({ name = 'web1' }) => ({
      ...home,
      member: { ...home.member, name },
      rootKey: 'absent',
      may: [],
      issues: false,
      invitations: [],
    }),
    members: () => ({ network: 'home', members }),
    member: () => pear,
    revoke: (_member, { issuer = false }) => ({
      network: 'home',
      peerId: pear.peerId,
      name: pear.name,
      scopes: issuer ? ['member', 'issuer'] : ['member'],
      announcedTo: 1,
      cut: 1,
    }),
    label: (_member, { labels }) => ({
      member: {
        ...pear,
        labels: Object.fromEntries(
          Object.entries({ ...pear.labels, ...labels }).filter((entry): entry is [string, string] => entry[1] !== null),
        ),
      },
      delivered: true,
    }),
    policy: () => policy,
    setPolicy: ({ text }) => ({ ...policy, version: 2, text }),
    checkPolicy: () => ({ grants: [], mistakes: [] }),
    explain: ({ verb }) =>
      verb.startsWith('content:')
        ? { network: 'home', allowed: true, rule: { index: 0, text: '* -> *: content:fetch, content:publish' } }
        : { network: 'home', allowed: false, missing: `no grant gives ${verb}` },
    audit: async function* () {
      yield* auditLog
    },
    ...replaced,
  }
}
