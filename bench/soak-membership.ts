/**
 * Parsers of closed networks that bytes of strangers, members and former members reach: tokens, certificates, delegations, revocations,
 * policies, headers of network streams, the exchange of statements, renewal, member records.
 *
 * Statements are soaked twice: damaged as they are, which the signature gives away; and with damaged contents that were signed all the
 * same, since whoever issues may be hostile.
 */
import { createHash, createPrivateKey, sign } from 'node:crypto'
import { multiaddr } from '@multiformats/multiaddr'
import { base32 } from 'multiformats/bases/base32'
import { z } from 'zod'
import { rawPublicKey } from '../agent/identity/key-file.ts'
import { decodeCbor, encodeCbor } from '../protocols/cbor.ts'
import { encodeFrame } from '../protocols/frame.ts'
import {
  type Chain,
  issueCertificate,
  issueDelegation,
  verifyChain,
  verifyDelegation,
} from '../protocols/membership/certificate.ts'
import {
  answerStatements,
  STATEMENT_BUCKETS,
  STATEMENT_DIGEST_BYTES,
  type StatementHoldings,
  StatementsAsker,
} from '../protocols/membership/exchange.ts'
import { networkOf } from '../protocols/membership/network.ts'
import { DEFAULT_GRANTS, decide, decodePolicy, issuePolicy } from '../protocols/membership/policy.ts'
import { answerRenewal, askRenewal, handOver } from '../protocols/membership/renewal.ts'
import { decodeRevocation, issueRevocation, Revocations } from '../protocols/membership/revocation.ts'
import type { StatementSigner } from '../protocols/membership/statement.ts'
import { decodeHeader, encodeHeader, HEADER_BYTES_MAX } from '../protocols/membership/streams.ts'
import { decodeToken, encodeToken } from '../protocols/membership/token.ts'
import { MEMBER_KIND, MEMBER_NAME, memberIn } from '../protocols/records/member.ts'
import type { SignedRecord } from '../protocols/records/record.ts'
import type { Random } from './random.ts'
import type { Parser } from './soak-run.ts'
import { askAll, framed, incoming, incomingPrelude } from './soak-stream.ts'

const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')
export const NOW = Date.UTC(2026, 0, 1)
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const NEVER = new AbortController().signal
const SIGNATURE_BYTES = 64
const REQUESTS_MAX = 100
const VERBS = ['content:fetch', 'service:connect web', 'service:offer *', 'api:admin']

export function signerOf(random: Random): StatementSigner {
  const key = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, random.bytes(32)]), format: 'der', type: 'pkcs8' })
  return { publicKey: rawPublicKey(key), sign: (bytes) => sign(null, bytes, key) }
}

/** A network with a delegate, and two of its members. */
export class SoakedNetwork {
  readonly root: StatementSigner
  readonly delegate: StatementSigner
  readonly network: Uint8Array
  readonly secret: Uint8Array
  readonly delegation
  readonly revocations

  constructor(random: Random) {
    this.root = signerOf(random)
    this.delegate = signerOf(random)
    this.network = Uint8Array.from(networkOf(this.root.publicKey))
    this.secret = Uint8Array.from(random.bytes(32))
    this.revocations = new Revocations(this.network)
    this.delegation = issueDelegation(
      {
        network: this.network,
        subject: this.delegate.publicKey,
        may: ['issue', 'revoke', 'policy'],
        names: ['web*', 'db1'],
        labels: { role: ['web', 'db'], zone: ['*'] },
        lifetimeMsMax: DAY_MS,
        ...lifetime(30 * DAY_MS),
      },
      this.root,
    )
  }

  /** Given by the root, or by the delegate. */
  certify(subject: Uint8Array, by: 'root' | 'delegate' = 'delegate'): Chain {
    const fields = { network: this.network, subject, name: 'web1', labels: { role: 'web', zone: 'a.b-1' } }
    const issued = { ...fields, ...lifetime(HOUR_MS) }
    return by === 'root'
      ? issueCertificate(issued, this.root)
      : issueCertificate(issued, this.delegate, this.delegation)
  }

  judgedFor(subject: Uint8Array) {
    return { network: this.network, subject, now: NOW + 1, revocations: this.revocations }
  }
}

export function membershipParsers(random: Random): Parser[] {
  const home = new SoakedNetwork(random)
  const member = signerOf(random)
  return [
    ...tokenParsers(home, random),
    ...certificateParsers(home, member),
    ...wordParsers(home, member),
    {
      name: 'network streams: headers',
      seeds: ['/meshsub/1.2.0', '/undernet/records/1'].map((protocol) =>
        Buffer.concat([encodeFrame(encodeHeader({ network: home.network, protocol })), random.bytes(50)]),
      ),
      parse: async (input, cuts) => void decodeHeader(await incomingPrelude(input, cuts).read(NEVER, HEADER_BYTES_MAX)),
    },
    ...exchangeParsers(home, member, random),
    {
      name: 'records: members',
      seeds: [{ v: 1, chain: home.certify(member.publicKey).bytes, issues: true }].map((body) =>
        Buffer.from(encodeCbor(body)),
      ),
      parse: (input) => {
        const said = { kind: MEMBER_KIND, name: MEMBER_NAME, publisher: member.publicKey, deleted: false }
        memberIn({ ...said, body: decodeCbor(input, z.unknown()) } as SignedRecord, home.judgedFor(member.publicKey))
      },
    },
  ]
}

function tokenParsers({ network, root }: SoakedNetwork, random: Random): Parser[] {
  const addresses = ['/ip4/192.0.2.7/tcp/7477', '/dns4/host.example/tcp/1', '/ip6/2001:db8::1/udp/1/quic-v1']
  const fields = { network, issuer: root.publicKey, secret: Uint8Array.from(random.bytes(16)), expires: NOW }
  const token = encodeToken({ ...fields, addresses: addresses.map((one) => multiaddr(one)) })
  const contents = Buffer.from(encodeCbor({ v: 1, ...fields, addresses: addresses.map((one) => multiaddr(one).bytes) }))
  const checked = (payload: Buffer) => {
    const sum = createHash('sha256').update('undernet/token/1/checksum\0').update(payload).digest().subarray(0, 4)
    return `un1${base32.baseEncode(Buffer.concat([payload, sum]))}`
  }
  const short = encodeToken({ ...fields, addresses: [] })
  return [
    {
      name: 'tokens',
      seeds: [token, short, `  ${token.toUpperCase()}\n`].map((text) => Buffer.from(text)),
      parse: (input, one) => decodeToken(input.toString(one.oneIn(2) ? 'latin1' : 'utf8')),
    },
    { name: 'tokens: contents', seeds: [contents], parse: (input) => decodeToken(checked(input)) },
  ]
}

function certificateParsers(home: SoakedNetwork, member: StatementSigner): Parser[] {
  const [plain, delegated] = [home.certify(member.publicKey, 'root'), home.certify(member.publicKey)]
  const { network, root, delegation } = home
  const by = home.judgedFor(member.publicKey)
  return [
    {
      name: 'certificates',
      seeds: [plain, delegated].map(({ bytes }) => Buffer.from(bytes)),
      parse: (input) => verifyChain(input, by),
    },
    {
      name: 'certificates: signed',
      seeds: [plain, delegated].map(({ statement }) => contentsOf(statement.bytes)),
      parse: (input) => issuedByAll(home, 'undernet/member/1\0', input, (bytes) => verifyChain(bytes, by)),
    },
    {
      name: 'delegations',
      seeds: [Buffer.from(delegation.bytes)],
      parse: (input) => verifyDelegation(input, network),
    },
    {
      name: 'delegations: signed',
      seeds: [contentsOf(delegation.bytes)],
      parse: (input) => {
        const given = verifyDelegation(signed('undernet/issuer/1\0', root, input), network)
        verifyChain(encodeCbor([delegated.statement.bytes, given.bytes]), by)
      },
    },
  ]
}

/** What issuers say: revocations and policies. */
function wordParsers(home: SoakedNetwork, member: StatementSigner): Parser[] {
  const { network, root, delegate, delegation } = home
  const common = { network, issued: NOW }
  const against = { ...common, key: member.publicKey, scope: 'member' as const, reason: 'stolen' }
  const revocations = [
    issueRevocation(against, delegate, delegation),
    issueRevocation({ ...common, key: delegate.publicKey, scope: 'issuer', issuedAfter: NOW }, root),
  ]
  const grants = [
    ...DEFAULT_GRANTS,
    { from: 'label:role=web', to: 'name:db*', allow: ['service:connect web', 'service:offer *', 'later:verb x'] },
  ]
  const policies = [
    issuePolicy({ ...common, version: 2, grants }, root),
    issuePolicy({ ...common, version: 3, grants }, delegate, delegation),
  ]
  const subject = { name: 'web1', labels: { role: 'web' } }
  const readPolicy = (bytes: Uint8Array) => {
    const { statement } = decodePolicy(bytes, network, home.revocations)
    for (const verb of VERBS) decide(statement, subject, { ...subject, name: 'db1' }, verb)
  }
  return [
    {
      name: 'revocations',
      seeds: revocations.map(({ bytes }) => Buffer.from(bytes)),
      parse: (input) => decodeRevocation(input, network),
    },
    {
      name: 'revocations: signed',
      seeds: revocations.map(({ statement }) => contentsOf(statement.bytes)),
      parse: (input) =>
        issuedByAll(home, 'undernet/revocation/1\0', input, (bytes) => decodeRevocation(bytes, network)),
    },
    { name: 'policies', seeds: policies.map(({ bytes }) => Buffer.from(bytes)), parse: readPolicy },
    {
      name: 'policies: signed',
      seeds: policies.map(({ statement }) => contentsOf(statement.bytes)),
      parse: (input) => issuedByAll(home, 'undernet/policy/1\0', input, readPolicy),
    },
  ]
}

function exchangeParsers(home: SoakedNetwork, member: StatementSigner, random: Random): Parser[] {
  const revocation = issueRevocation(
    { network: home.network, key: member.publicKey, scope: 'member', issued: NOW },
    home.root,
  )
  const policy = issuePolicy({ network: home.network, issued: NOW, version: 1, grants: [...DEFAULT_GRANTS] }, home.root)
  const stated = { kind: 'revocation', bytes: revocation.bytes }
  const ids = Buffer.concat([random.bytes(32), random.bytes(32)].sort((a, b) => Buffer.compare(a, b)))
  const chain = home.certify(member.publicKey)
  const digests = random.bytes(STATEMENT_BUCKETS * STATEMENT_DIGEST_BYTES)
  const position = { version: 1, id: policy.statement.id }
  const holdings: StatementHoldings = {
    digests: () => new Uint8Array(digests),
    ids: () => [revocation.statement.id],
    statement: () => stated,
    policy: () => ({ position, bytes: policy.bytes }),
    take: async ({ statements, policy: offered }) => {
      for (const { bytes } of statements) decodeRevocation(bytes, home.network)
      if (offered) decodePolicy(offered, home.network, home.revocations)
      return statements.length
    },
  }
  return [
    {
      name: 'statements: requests',
      seeds: framed([
        { ask: 'summary' },
        { ask: 'ids', buckets: Uint8Array.from([0, 1, 255]), after: random.bytes(32) },
        { ask: 'statements', ids },
        { ask: 'policy' },
        { ask: 'offer', statements: [stated, stated], policy: policy.bytes },
      ]),
      parse: (input, cuts) =>
        answerStatements(incoming(input, cuts), holdings, { requestsMax: REQUESTS_MAX, signal: () => NEVER }),
    },
    {
      name: 'statements: answers',
      seeds: framed([
        { digests, policy: position },
        { digests, policy: null },
        { ids },
        { statements: [stated] },
        { policy: policy.bytes },
        { taken: 2 },
        { error: 'absent' },
      ]),
      parse: (input, one) => readStatementAnswers(input, one, ids),
    },
    {
      name: 'renewal: requests',
      seeds: framed([{ ask: 'renew' }, { ask: 'take', chain: chain.bytes }]),
      parse: (input, cuts) => answerRenewal(incoming(input, cuts), { renew: () => chain, take: () => true }, NEVER),
    },
    {
      name: 'renewal: answers',
      seeds: framed([{ refused: 'no-member' }, { chain: chain.bytes }, { taken: true }]),
      parse: (input, cuts) =>
        askAll([() => askRenewal(incoming(input, cuts), NEVER), () => handOver(incoming(input, cuts), chain, NEVER)]),
    },
  ]
}

async function readStatementAnswers(input: Buffer, random: Random, ids: Buffer): Promise<void> {
  const asker = () => new StatementsAsker(incoming(input, random))
  const buckets = Uint8Array.from({ length: STATEMENT_BUCKETS }, (_, bucket) => bucket)
  await askAll([
    () => asker().summary(NEVER),
    () => asker().ids(buckets, undefined, NEVER),
    () => asker().statements([ids.subarray(0, 32), ids.subarray(32)], NEVER),
    () => asker().policy(NEVER),
    () => asker().offer({ statements: [] }, NEVER),
  ])
}

function lifetime(ms: number): { issued: number; notBefore: number; notAfter: number } {
  return { issued: NOW, notBefore: NOW, notAfter: NOW + ms }
}

/** Whoever may issue has signed these contents: the root, and a delegate. */
function issuedByAll(
  { root, delegate, delegation }: SoakedNetwork,
  domain: string,
  contents: Buffer,
  read: (bytes: Uint8Array) => unknown,
): Promise<void> {
  return askAll([
    () => read(encodeCbor([signed(domain, root, contents)])),
    () => read(encodeCbor([signed(domain, delegate, contents), delegation.bytes])),
  ])
}

function signed(domain: string, signer: StatementSigner, contents: Buffer): Uint8Array {
  return Buffer.concat([signer.sign(Buffer.concat([Buffer.from(domain), contents])), contents])
}

/** What was signed, without the words before it. */
function contentsOf(statement: Uint8Array): Buffer {
  return Buffer.from(statement.subarray(SIGNATURE_BYTES))
}
