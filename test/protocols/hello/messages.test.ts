/** The hello's messages against vectors made by another implementation, and against altered and hostile bytes. */
import { createPrivateKey, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import { encodeFrame } from '../../../protocols/frame.ts'
import {
  decodeOpening,
  encodeOpening,
  OPENING_BYTES_MAX,
  Transcript,
  tagOf,
} from '../../../protocols/hello/messages.ts'
import { tokenId } from '../../../protocols/membership/token.ts'
import { hex } from '../membership/people.ts'

type Vectors = {
  dialler: { seedByte: number; public: string }
  listener: { seedByte: number; public: string }
  networks: { id: string; secret: string; tag: string }[]
  nonce: string
  members: { messages: string[]; chains: { listener: string; dialler: string } }
  join: { token: { network: string; secret: string; id: string }; proof: string; messages: string[] }
  joinNamed: { name: string; messages: string[] }
  guest: { pass: string; messages: string[] }
  later: { messages: string[] }
  firstStream: { dialler: string; listener: string }
  refusedOpenings: { why: string; opening: string }[]
}
const vectors = JSON.parse(readFileSync('protocols/hello/vectors.json', 'utf8')) as Vectors
const bytes = (text = '') => Uint8Array.from(Buffer.from(text, 'hex'))
const pair = { dialler: bytes(vectors.dialler.public), listener: bytes(vectors.listener.public) }

function signer({ seedByte, public: publicKey }: Vectors['dialler']) {
  const der = Buffer.concat([bytes('302e020100300506032b657004220420'), Buffer.alloc(32, seedByte)])
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  return { publicKey: bytes(publicKey), sign: (data: Uint8Array) => sign(null, data, key) }
}

/** A transcript in which this much was said. */
function having(messages: readonly string[]): Transcript {
  const transcript = new Transcript(pair)
  const read = ['readReply', 'readProof', 'readVerdict'] as const
  transcript.begin(bytes(messages[0]))
  for (const [at, message] of messages.slice(1).entries()) transcript[read[at] ?? 'readVerdict'](bytes(message))
  return transcript
}

describe('the first stream of a QUIC connection', () => {
  it('has the frames of the conversation and nothing else, in each direction', () => {
    const { members, firstStream } = vectors
    const framed = (messages: readonly string[]) => messages.map((one) => hex(encodeFrame(bytes(one)))).join('')
    const [opening = '', reply = '', proof = '', verdict = ''] = members.messages
    expect(firstStream).toEqual({ dialler: framed([opening, proof]), listener: framed([reply, verdict]) })
  })
})

describe('messages of the hello', () => {
  it('have tags that fellow members can compute', () => {
    const { tags, nonce } = decodeOpening(bytes(vectors.members.messages[0]))
    expect(hex(nonce)).toBe(vectors.nonce)
    for (const { id, secret, tag } of vectors.networks) {
      expect(hex(tagOf({ network: bytes(id), secret: bytes(secret) }, nonce, pair))).toBe(tag)
      expect(hex(tags)).toContain(tag)
    }
  })

  it('are read as another implementation wrote them, and written the same', () => {
    const { messages, chains } = vectors.members
    const transcript = new Transcript(pair)
    const opening = decodeOpening(bytes(messages[0]))
    expect(hex(encodeOpening(opening))).toBe(messages[0])
    transcript.begin(bytes(messages[0]))
    const reply = transcript.readReply(bytes(messages[1]))
    expect(reply.chains.map(hex)).toEqual([chains.listener])
    const proof = transcript.readProof(bytes(messages[2]))
    expect(proof.chains.map(hex)).toEqual([chains.dialler])
    expect(hex(having(messages.slice(0, 1)).sign(reply, signer(vectors.listener)))).toBe(messages[1])
    expect(hex(having(messages.slice(0, 2)).sign(proof, signer(vectors.dialler)))).toBe(messages[2])
  })

  it('prove a token, and bring what it gives', () => {
    const { token, proof, messages } = vectors.join
    expect(hex(tokenId(bytes(token.secret)))).toBe(token.id)
    const transcript = having(messages.slice(0, 2))
    expect(hex(transcript.tokenProof({ network: bytes(token.network), secret: bytes(token.secret) }))).toBe(proof)
    expect(hex(transcript.readProof(bytes(messages[2])).token ?? bytes())).toBe(proof)
    expect(transcript.readVerdict(bytes(messages[3])).grant).toMatchObject({ name: 'home' })
  })

  it('tell what the holder of a token would like to be called', () => {
    const { name, messages } = vectors.joinNamed
    const transcript = having(messages.slice(0, 2))
    const proof = transcript.readProof(bytes(messages[2]))
    expect(proof.name).toBe(name)
    expect(hex(having(messages.slice(0, 2)).sign(proof, signer(vectors.dialler)))).toBe(messages[2])
    expect(transcript.readVerdict(bytes(messages[3])).grant).toBeDefined()
  })

  it('show a pass, and let in by it', () => {
    const { pass, messages } = vectors.guest
    const opening = decodeOpening(bytes(messages[0]))
    expect(hex(opening.pass ?? bytes())).toBe(pass)
    expect(hex(encodeOpening(opening))).toBe(messages[0])
    const transcript = having(messages.slice(0, 3))
    const verdict = transcript.readVerdict(bytes(messages[3]))
    expect(verdict).toEqual({ guest: true })
    expect(hex(having(messages.slice(0, 3)).sign(verdict, signer(vectors.listener)))).toBe(messages[3])
  })

  it('with a wish that is no name are refused', () => {
    const { messages } = vectors.join
    for (const name of ['', 'Db', 'a.b', '-a', 'a'.repeat(64), 'a b']) {
      const message = having(messages.slice(0, 2)).sign({ chains: [], name }, signer(vectors.dialler))
      expect(() => having(messages.slice(0, 2)).readProof(message)).toThrow(
        expect.objectContaining({ code: 'malformed' }),
      )
    }
  })

  it('of later versions are read as far as they are known', () => {
    const { messages } = vectors.later
    expect(decodeOpening(bytes(messages[0]))).toMatchObject({ v: 3, open: true })
    const transcript = having(messages.slice(0, 3))
    expect(transcript.readVerdict(bytes(messages[3]))).toMatchObject({
      token: 'used-up',
      refused: [{ fault: 'expired' }],
    })
  })

  it.each(vectors.refusedOpenings)('are no opening: $why', ({ opening }) => {
    expect(() => decodeOpening(bytes(opening))).toThrow(
      expect.objectContaining({ name: 'WireError', code: 'malformed' }),
    )
  })

  it('that a stranger may send are small', () => {
    expect(bytes(vectors.join.messages[0]).byteLength).toBeLessThan(OPENING_BYTES_MAX / 2)
  })

  it('are refused with any one bit turned', () => {
    const { messages } = vectors.join
    const read = ['readReply', 'readProof', 'readVerdict'] as const
    for (const [at, name] of read.entries()) {
      const good = bytes(messages[at + 1])
      fc.assert(
        fc.property(fc.nat(good.byteLength * 8 - 1), (bit) => {
          const altered = Uint8Array.from(good)
          altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
          expect(() => having(messages.slice(0, at + 1))[name](altered)).toThrow(WireError)
        }),
        { numRuns: 100 },
      )
    }
  })

  it('are refused in another conversation: other ends, another opening, the other way round, out of order', () => {
    const { messages } = vectors.members
    const other = new Transcript({ dialler: pair.listener, listener: pair.dialler })
    other.begin(bytes(messages[0]))
    expect(() => other.readReply(bytes(messages[1]))).toThrow(WireError)
    expect(() => having([vectors.join.messages[0] ?? '']).readReply(bytes(messages[1]))).toThrow(WireError)
    expect(() => having(messages.slice(0, 2)).readProof(bytes(messages[1]))).toThrow(WireError)
    expect(() => having(messages.slice(0, 1)).readProof(bytes(messages[2]))).toThrow(WireError)
    expect(() => having(messages.slice(0, 1)).readReply(bytes(messages[2]))).toThrow(WireError)
  })

  it('are refused as arbitrary bytes with a WireError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (data) => {
        expect(() => decodeOpening(data)).toThrow(WireError)
        expect(() => having(vectors.members.messages.slice(0, 1)).readReply(data)).toThrow(WireError)
        expect(() => having(vectors.members.messages.slice(0, 2)).readProof(data)).toThrow(WireError)
      }),
      { numRuns: 200 },
    )
  })
})
