/**
 * The four messages of the hello, as a hostile peer would send them. All but the first are signed: what is damaged is their contents, and
 * the peer signs that, in its place in the conversation, since it may sign what it likes.
 */
import { createHash } from 'node:crypto'
import { encodeCbor } from '../protocols/cbor.ts'
import { encodeFrame } from '../protocols/frame.ts'
import { answer, type Grant, greet, type HelloOptions, type Party, type TokenDesk } from '../protocols/hello/hello.ts'
import { encodeOpening, NETWORKS_MAX, TAG_BYTES, tagOf } from '../protocols/hello/messages.ts'
import type { StatementSigner } from '../protocols/membership/statement.ts'
import { tokenId } from '../protocols/membership/token.ts'
import type { Random } from './random.ts'
import { NOW, SoakedNetwork, signerOf } from './soak-membership.ts'
import type { Parser } from './soak-run.ts'
import { incomingPrelude } from './soak-stream.ts'

const NEVER = new AbortController().signal
/** Now and then the signature is wrong as well. */
const UNSIGNED_ONE_IN = 20

export function helloParsers(random: Random): Parser[] {
  const home = new SoakedNetwork(random)
  const [us, peer] = [signerOf(random), signerOf(random)]
  const party = partyOf(us, home)
  const bytes = (count: number) => Uint8Array.from(random.bytes(count))
  const theirs = home.certify(peer.publicKey).bytes
  const fault = { network: home.network, fault: 'expired' }
  const token = { network: home.network, issuer: peer.publicKey, addresses: [], secret: bytes(16), expires: NOW }
  const grant: Grant = { name: 'home', secret: home.secret, chain: home.certify(peer.publicKey) }
  const desk: TokenDesk = { find: () => token, redeem: () => grant }

  const opening = { v: 1, nonce: bytes(32), tags: bytes(NETWORKS_MAX * TAG_BYTES), open: true }
  opening.tags.set(tagOf(home, opening.nonce, { dialler: peer.publicKey, listener: us.publicKey }))
  const named = { ...opening, token: tokenId(token.secret) }
  const reply = { v: 1, nonce: bytes(32), open: true, chains: [theirs] }
  const given = { name: 'home', secret: home.secret, chain: home.certify(us.publicKey).bytes, issuer: theirs }
  const [asDialler, asListener] = [
    { dialler: us.publicKey, listener: peer.publicKey },
    { dialler: peer.publicKey, listener: us.publicKey },
  ]
  return [
    {
      name: 'hello: openings',
      seeds: [opening, named, { ...opening, v: 7, later: true }].map((one) =>
        Buffer.concat([encodeFrame(encodeOpening(one)), encodeFrame(random.bytes(100))]),
      ),
      parse: (input, cuts) =>
        answer({ party, peer: peer.publicKey, frames: incomingPrelude(input, cuts), signal: NEVER, desk }),
    },
    {
      name: 'hello: replies',
      seeds: encoded([reply, { ...reply, chains: [] }, { ...reply, open: false }]),
      parse: async (input, one) => {
        const frames = conversation(asDialler, [], forged(peer, input, one))
        const { afterwards } = await greet({ party, peer: peer.publicKey, frames, signal: NEVER })
        await afterwards
      },
    },
    {
      name: 'hello: proofs',
      seeds: encoded([
        { chains: [theirs] },
        { chains: [], refused: [fault] },
        { chains: [theirs], token: bytes(32), name: 'web7' },
      ]),
      parse: (input, one) => {
        const frames = conversation(asListener, [() => encodeOpening(named)], forged(peer, input, one))
        return answer({ party, peer: peer.publicKey, frames, signal: NEVER, desk })
      },
    },
    {
      name: 'hello: verdicts',
      seeds: encoded([
        { refused: [fault] },
        { token: 'used-up' },
        { grant: given },
        { refused: [fault], grant: given },
      ]),
      parse: (input, one) => {
        const first = forged(peer, Buffer.from(encodeCbor({ ...reply, chains: [] })))
        const frames = conversation(asDialler, [first], forged(peer, input, one))
        return greet({ party, peer: peer.publicKey, frames, signal: NEVER, token, wished: 'web7' })
      },
    },
  ]
}

function partyOf(key: StatementSigner, home: SoakedNetwork): Party {
  const credentials = [{ network: home.network, secret: home.secret, chain: home.certify(key.publicKey) }]
  return {
    key,
    networks: () => credentials,
    isOpen: () => true,
    revocations: () => home.revocations,
    now: () => NOW + 1,
  }
}

/** Makes the peer's next message, of what has to be signed before its contents. */
type Said = (before: Buffer) => Uint8Array

function forged(signer: StatementSigner, contents: Buffer, random?: Random): Said {
  return (before) => {
    if (random?.oneIn(UNSIGNED_ONE_IN)) return contents
    return Buffer.concat([signer.sign(Buffer.concat([before, contents])), contents])
  }
}

/** The peer's end: says these in turn, then the last; after that, that all is well. */
function conversation(
  { dialler, listener }: { dialler: Uint8Array; listener: Uint8Array },
  first: readonly Said[],
  last: Said,
): HelloOptions['frames'] {
  const all = [...first, last]
  let messages = 0
  let hash: Uint8Array = new Uint8Array(32)
  const add = (bytes: Uint8Array) => {
    messages++
    hash = createHash('sha256').update(hash).update(bytes).digest()
    return bytes
  }
  return {
    write: async (bytes) => void add(bytes),
    read: async () => {
      const say = all.shift()
      if (say === undefined) return new Uint8Array(0)
      return add(say(Buffer.concat([Buffer.from(`undernet/hello/1/${messages + 1}\0`), dialler, listener, hash])))
    },
  }
}

function encoded(messages: readonly object[]): Buffer[] {
  return messages.map((one) => Buffer.from(encodeCbor(one)))
}
