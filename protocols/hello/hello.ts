/**
 * The hello: the first exchange on every connection, before any other protocol can run. Both sides prove the networks that they share,
 * learn nothing of those that they don't, and a dialler with a token is let in. See spec.md beside this file.
 *
 * The steps: the dialler opens with tags that only fellow members can read (1); the listener, if it finds a shared network, the open
 * one or a token that it made, answers with its proofs (2); the dialler checks them and gives its own (3), and may begin; the listener
 * checks those, and says what it refuses or grants, or that all is well (4).
 *
 * Nothing here dials, stores or logs. What is thrown is a WireError, and the connection must then end.
 */
import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'
import {
  type Chain,
  decodeChain,
  type Fault,
  judgeChain,
  type Member,
  type RevocationCheck,
} from '../membership/certificate.ts'
import type { NetworkSecret } from '../membership/network.ts'
import { decodePass, type Pass } from '../membership/pass.ts'
import { hexOf, SKEW_MS_MAX, type StatementSigner, sameBytes } from '../membership/statement.ts'
import { type Token, tokenId } from '../membership/token.ts'
import {
  decodeOpening,
  encodeOpening,
  MESSAGE_BYTES_MAX,
  NETWORKS_MAX,
  NONCE_BYTES,
  OPENING_BYTES_MAX,
  type Opening,
  type Refused,
  TAG_BYTES,
  Transcript,
  tagOf,
  VERSION,
  type Verdict,
} from './messages.ts'

/** The protocol's name where it runs again on a connection that has had its hello, after a membership changed. */
export const HELLO_PROTOCOL = '/undernet/hello/1'

/** A network that this node is in. */
export type Credentials = NetworkSecret & {
  /** This node's own. */
  readonly chain: Chain
}

type Revoked = RevocationCheck & { isRevoked(key: Uint8Array): boolean }

/** Who says hello, as it is at that moment. */
export type Party = {
  readonly key: StatementSigner
  /** At most NETWORKS_MAX; those whose certificate ended are left out here. */
  networks(): readonly Credentials[]
  /** Whether this node takes part in the open network. */
  isOpen(): boolean
  revocations(network: Uint8Array): Revoked
  now(): number
}

/** What a token gives. */
export type Grant = {
  /** The network's, for people. */
  readonly name: string
  readonly secret: Uint8Array
  /** The new member's. */
  readonly chain: Chain
}

/** Where a node that invites looks up its tokens. */
export type TokenDesk = {
  /** Also for tokens that were used up or expired, as long as their holder should be told so. */
  find(id: Uint8Array): Pick<Token, 'network' | 'secret'> | undefined
  /**
   * Uses the token for a key, which has proven that it holds it. The same key may come again (the answer may have been lost) and does not
   * count twice. `wished` is what its holder would like to be called, which is no more than a wish. Answers with a word for what is
   * wrong, such as `used-up`.
   */
  redeem(id: Uint8Array, key: Uint8Array, wished?: string): Promise<Grant | TokenFault> | Grant | TokenFault
}

/** Where a node that carries for others looks whether it may. */
export type Door = {
  /** Whether who shows this pass, which its issuer signed, is let in. */
  admits(pass: Pass): boolean
}

export type TokenFault = 'unknown-token' | 'used-up' | 'token-expired' | 'wrong-secret' | 'not-issuing' | 'revoked'

/** What the two sides are to each other from now on. */
export type Admission = {
  /** Both take part in the open network. */
  readonly open: boolean
  /** The peer's memberships, of the networks that both are in. */
  readonly members: readonly Member[]
  /** What was refused of the peer's chains. The rest still holds. */
  readonly faults: readonly ChainFault[]
  /** The dialler showed this pass, and is let in to be carried to who signed it. */
  readonly guest?: Pass | undefined
}

type ChainFault = { readonly network: Uint8Array; readonly fault: Fault; readonly why: string }

/** What a token brought; to be stored before it is used. */
export type Joined = Grant & { readonly network: Uint8Array }

export type Greeting = Admission & {
  readonly joined: Joined | undefined
  /**
   * What the listener refused of what this side showed, once it has looked at it; resolves with an empty list when it took all. Rejects
   * when the stream ends otherwise. Who does not wait for it may begin, and learns later.
   */
  readonly afterwards: Promise<Refused>
}

export type HelloOptions = {
  readonly party: Party
  /** The raw Ed25519 key that the secure channel proved. */
  readonly peer: Uint8Array
  readonly frames: Pick<Frames, 'read' | 'write'>
  readonly signal: AbortSignal
}

type ListenerOptions = HelloOptions & { readonly desk?: TokenDesk | undefined; readonly door?: Door | undefined }

/**
 * The dialler's side. With a token the peer must be its issuer, and the answer is waited for; `wished` is then told, a DNS label. With a pass
 * the answer is waited for as well.
 *
 * @throws {WireError} `refused` with the reason for people; else what is wrong with the peer's bytes
 */
export async function greet(
  options: HelloOptions & { token?: Token; wished?: string | undefined; pass?: Pass | undefined },
): Promise<Greeting> {
  const { party, peer, frames, signal, token, wished, pass } = options
  notOurselves(options)
  if (token !== undefined && !sameBytes(token.issuer, peer))
    throw new WireError('refused', 'the token is of another node')
  const pair = { dialler: party.key.publicKey, listener: peer }
  const transcript = new Transcript(pair)
  const credentials = usable(party, peer)
  const nonce = randomBytes(NONCE_BYTES)
  const opening: Opening = {
    v: VERSION,
    nonce,
    tags: shuffledTags(credentials.map((one) => tagOf(one, nonce, pair))),
    open: party.isOpen(),
    ...(token && { token: tokenId(token.secret) }),
    ...(pass && { pass: pass.bytes }),
  }
  const first = encodeOpening(opening)
  transcript.begin(first)
  await frames.write(first, signal)

  const silence = token === undefined ? 'the peer shares no network with this node' : tokenFaultText('unknown-token')
  const reply = transcript.readReply(await readOr(options, silence))
  const open = opening.open && reply.open
  const judged = judgeAll(reply.chains, credentials, options)
  const shown = credentials.filter(({ network }) => judged.members.some((one) => sameBytes(one.network, network)))
  const proof = {
    chains: shown.map(({ chain }) => chain.bytes),
    ...(judged.faults.length > 0 && { refused: wordsOf(judged.faults) }),
    ...(token && { token: transcript.tokenProof(token), ...(wished !== undefined && { name: wished }) }),
  }
  await frames.write(transcript.sign(proof, party.key), signal)
  if (token !== undefined) return join(options, token, transcript, { open, ...judged })
  if (pass !== undefined) return visit(options, pass, transcript, { open, ...judged })
  if (!open && judged.members.length === 0) throw nothingShared(judged.faults)
  const afterwards = readVerdict(options, transcript).then(({ refused = [] }) => refused)
  // Whoever asks still gets the error.
  afterwards.catch(() => undefined)
  return { open, ...judged, joined: undefined, afterwards }
}

/**
 * The listener's side.
 *
 * @throws {WireError} `refused` with the reason for people; else what is wrong with the peer's bytes
 */
export async function answer(options: ListenerOptions): Promise<Admission> {
  const { party, peer, frames, signal } = options
  notOurselves(options)
  const pair = { dialler: peer, listener: party.key.publicKey }
  const transcript = new Transcript(pair)
  const first = await readOr(options, 'the peer said nothing', OPENING_BYTES_MAX)
  const opening = decodeOpening(first)
  transcript.begin(first)
  const shared = sharedNetworks(opening, usable(party, peer), pair)
  const token = opening.token && options.desk?.find(opening.token)
  const open = opening.open && party.isOpen()
  const guest = guestBy(opening.pass, options)
  if (shared.length === 0 && !open && token === undefined && guest === undefined)
    throw new WireError(
      'refused',
      `the peer shares no network with this node${opening.token ? ', and its token is not of this node' : ''}`,
    )
  const chains = shared.map(({ chain }) => chain.bytes)
  const reply = { v: VERSION, nonce: randomBytes(NONCE_BYTES), open: party.isOpen(), chains } as const
  await frames.write(transcript.sign(reply, party.key), signal)

  const expected = token && transcript.tokenProof(token)
  const proof = transcript.readProof(await readOr(options, 'the peer gave up'))
  const judged = { open, ...judgeAll(proof.chains, shared, options), ...(guest && { guest }) }
  const isProven = expected !== undefined && proof.token !== undefined && timingSafeEqual(expected, proof.token)
  const shown = opening.token && { id: opening.token, isProven, network: token?.network, wished: proof.name }
  const used = shown && (await useToken(options, shown))
  const verdict = verdictOf(judged.faults, used, guest)
  await frames.write(verdict === undefined ? ALL_WELL : transcript.sign(verdict, party.key), signal)
  const admission = typeof used === 'object' ? { ...judged, members: withMember(judged.members, used.member) } : judged
  if (open || admission.members.length > 0 || (guest !== undefined && used === undefined)) return admission
  throw used === undefined
    ? nothingShared(judged.faults, proof.refused)
    : new WireError('refused', `the peer's token: ${used as TokenFault}`)
}

type Used = { grant: Grant; own: Chain; member: Member } | TokenFault
type ShownToken = {
  readonly id: Uint8Array
  readonly isProven: boolean
  /** Undefined when nobody here knows the token. */
  readonly network: Uint8Array | undefined
  readonly wished: string | undefined
}

/** Uses the token that the dialler named, if it proved that it holds it. */
async function useToken(
  { party, peer, desk }: ListenerOptions,
  { id, isProven, network, wished }: ShownToken,
): Promise<Used> {
  if (desk === undefined || network === undefined) return 'unknown-token'
  if (!isProven) return 'wrong-secret'
  if (party.revocations(network).isRevoked(peer)) return 'revoked'
  const own = usable(party, peer).find((one) => sameBytes(one.network, network))
  if (own === undefined) return 'not-issuing'
  const grant = await desk.redeem(id, peer, wished)
  if (typeof grant === 'string') return grant
  const by = { network, subject: peer, now: party.now(), revocations: party.revocations(network) }
  const judged = judgeChain(grant.chain, by)
  return 'member' in judged ? { grant, own: own.chain, member: judged.member } : 'not-issuing'
}

/** Undefined when all is well. */
function verdictOf(faults: readonly ChainFault[], used: Used | undefined, guest?: Pass): Verdict | undefined {
  if (faults.length === 0 && used === undefined && guest === undefined) return undefined
  const refused = {
    ...(faults.length > 0 && { refused: wordsOf(faults) }),
    ...(guest !== undefined && { guest: true as const }),
  }
  if (typeof used !== 'object') return { ...refused, ...(used && { token: used }) }
  const { grant, own } = used
  const { name, secret, chain } = grant
  return { ...refused, grant: { name, secret, chain: chain.bytes, issuer: own.bytes } }
}

/** The dialler's last step with a token. */
async function join(options: HelloOptions, token: Token, transcript: Transcript, before: Admission): Promise<Greeting> {
  const { party, peer } = options
  const verdict = await readVerdict(options, transcript)
  const { network } = token
  if (verdict.grant === undefined) throw new WireError('refused', tokenFaultText(verdict.token ?? 'unknown-token'))
  const { name, secret } = verdict.grant
  const chain = decodeChain(verdict.grant.chain)
  const by = { network, now: party.now(), revocations: NOTHING_REVOKED }
  const own = judgeChain(chain, { ...by, subject: party.key.publicKey })
  if (!('member' in own)) throw new WireError('refused', `the issuer gave a certificate that is not good: ${own.why}`)
  const issuer = judgeChain(decodeChain(verdict.grant.issuer), { ...by, subject: peer })
  if (!('member' in issuer)) throw new WireError('refused', `the issuer is no member itself: ${issuer.why}`)
  const members = withMember(before.members, issuer.member)
  const afterwards = Promise.resolve(verdict.refused ?? [])
  return { ...before, members, joined: { network, name, secret, chain }, afterwards }
}

/** The dialler's last step with a pass. */
async function visit(options: HelloOptions, pass: Pass, transcript: Transcript, before: Admission): Promise<Greeting> {
  const { refused = [], guest } = await readVerdict(options, transcript)
  if (guest !== true && !before.open && before.members.length === 0) throw nothingShared(before.faults, refused)
  return { ...before, ...(guest && { guest: pass }), joined: undefined, afterwards: Promise.resolve(refused) }
}

/** A pass that is good counts; another one is as none, so that strangers who try some see nothing of it. */
function guestBy(bytes: Uint8Array | undefined, { party, door }: ListenerOptions): Pass | undefined {
  if (bytes === undefined || door === undefined) return undefined
  let pass: Pass
  try {
    pass = decodePass(bytes)
  } catch {
    return undefined
  }
  return pass.expires > party.now() && door.admits(pass) ? pass : undefined
}

async function readVerdict(options: HelloOptions, transcript: Transcript): Promise<Verdict> {
  const bytes = await readOr(options, 'the peer ended the connection without giving a reason')
  return bytes.byteLength === 0 ? {} : transcript.readVerdict(bytes)
}

/** Networks to speak of with this peer: not those that either was thrown out of, or whose certificate is not in its time. */
function usable(party: Party, peer: Uint8Array): Credentials[] {
  const now = party.now()
  const all = party.networks().filter(({ network, chain }) => {
    const { notBefore, notAfter } = chain.statement
    return notBefore <= now + SKEW_MS_MAX && now < notAfter && !party.revocations(network).isRevoked(peer)
  })
  return all.slice(0, NETWORKS_MAX)
}

/** A node that was copied, key and all, is not a peer. */
function notOurselves({ party, peer }: HelloOptions): void {
  if (sameBytes(party.key.publicKey, peer)) throw new WireError('refused', 'this is our own key')
}

/** The tags among noise that looks like them, in any order. */
function shuffledTags(tags: readonly Uint8Array[]): Uint8Array {
  const all = randomBytes(NETWORKS_MAX * TAG_BYTES)
  // Each goes to a place of its own, drawn from those that are left.
  const places = Array.from({ length: NETWORKS_MAX }, (_, place) => place)
  for (const tag of tags) all.set(tag, (places.splice(randomInt(places.length), 1)[0] ?? 0) * TAG_BYTES)
  return all
}

function sharedNetworks(
  { nonce, tags }: Opening,
  credentials: readonly Credentials[],
  pair: Parameters<typeof tagOf>[2],
) {
  const said = new Set(
    Array.from({ length: NETWORKS_MAX }, (_, at) => hexOf(tags.subarray(at * TAG_BYTES, (at + 1) * TAG_BYTES))),
  )
  return credentials.filter((one) => said.has(hexOf(tagOf(one, nonce, pair))))
}

/** The peer's chains, each of a network that was spoken of, and at most one of each. */
function judgeAll(
  chains: readonly Uint8Array[],
  credentials: readonly Credentials[],
  { party, peer }: HelloOptions,
): Pick<Admission, 'members' | 'faults'> {
  const now = party.now()
  const members: Member[] = []
  const faults: ChainFault[] = []
  const seen = new Set<string>()
  for (const bytes of chains) {
    const chain = decodeChain(bytes)
    const { network } = chain.statement
    if (seen.has(hexOf(network)) || !credentials.some((one) => sameBytes(one.network, network)))
      throw new WireError('malformed', 'a certificate of a network that was not spoken of')
    seen.add(hexOf(network))
    const verdict = judgeChain(chain, { network, subject: peer, now, revocations: party.revocations(network) })
    if ('member' in verdict) members.push(verdict.member)
    else faults.push({ network, ...verdict })
  }
  return { members, faults }
}

/** @throws {WireError} `refused` when the peer ends instead of speaking, and what Frames throws */
async function readOr({ frames, signal }: HelloOptions, otherwise: string, bytesMax = MESSAGE_BYTES_MAX) {
  let bytes: Uint8Array | undefined
  try {
    bytes = await frames.read(signal, bytesMax)
  } catch (cause) {
    if (cause instanceof WireError && cause.code === 'closed') throw new WireError('refused', otherwise, { cause })
    throw cause
  }
  if (bytes === undefined) throw new WireError('refused', otherwise)
  return bytes
}

function withMember(members: readonly Member[], added: Member): Member[] {
  return [...members.filter(({ network }) => !sameBytes(network, added.network)), added]
}

function wordsOf(faults: readonly ChainFault[]): Refused {
  return faults.map(({ network, fault }) => ({ network, fault }))
}

function nothingShared(faults: readonly ChainFault[], refused: Refused = []): WireError {
  const [ours] = faults
  if (ours !== undefined) return new WireError('refused', `the peer proved no membership: ${ours.why}`)
  const [theirs] = refused
  return new WireError('refused', theirs ? `the peer refused: ${theirs.fault}` : 'the peer proved no membership')
}

/** For the one who holds the token. */
function tokenFaultText(fault: string): string {
  const texts: Record<string, string> = {
    'unknown-token':
      'the node that the token names does not know it: it was withdrawn, that node lost its state, or is too busy to say',
    'used-up': 'the token was used already',
    'token-expired': 'the token has expired',
    'wrong-secret': 'the token is not the one that was made',
    'not-issuing': 'the node that made the token cannot issue certificates now',
    revoked: "this node's key was revoked in that network, which is for good: it can come back with a new key only",
  }
  return (Object.hasOwn(texts, fault) && texts[fault]) || `the token was refused: ${fault}`
}

/** The verdict that refuses and grants nothing. Unsigned: what could be said otherwise only ends the connection. */
const ALL_WELL = new Uint8Array(0)

/** A newcomer knows of no revocation yet, and learns of them first of all. */
const NOTHING_REVOKED: RevocationCheck = { faultOf: () => undefined }
