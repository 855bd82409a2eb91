/**
 * The messages of the hello: reading and writing them, and what each is signed over. See spec.md beside this file.
 */
import { createHash, createHmac } from 'node:crypto'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import { CHAIN_BYTES_MAX } from '../membership/certificate.ts'
import { deriveKey, type NetworkSecret, SECRET_BYTES } from '../membership/network.ts'
import { PASS_BYTES_MAX } from '../membership/pass.ts'
import { bytes32, memberName, type StatementSigner, verifySignature } from '../membership/statement.ts'
import { TOKEN_ID_BYTES, type Token, tokenKey } from '../membership/token.ts'

export const VERSION = 1
export const NONCE_BYTES = 32
export const TAG_BYTES = 16
/** As many tags are sent as there can be networks: the number says nothing. */
export const NETWORKS_MAX = 16
/** The first message, from somebody who has proven nothing yet. */
export const OPENING_BYTES_MAX = 1_024
/** A chain for each network, and what surrounds them. */
export const MESSAGE_BYTES_MAX = NETWORKS_MAX * (CHAIN_BYTES_MAX + 64) + 1_024

const SIGNATURE_BYTES = 64
const TAG_DOMAIN = 'undernet/hello/1/tag\0'
const TOKEN_DOMAIN = 'undernet/hello/1/token\0'

function bytesOf(count: number) {
  return z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength === count,
    `not ${count} bytes`,
  )
}

const chain = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.byteLength <= CHAIN_BYTES_MAX,
  'too long for a chain',
)
const chains = z.array(chain).max(NETWORKS_MAX)
/** A word for people and logs: it may be of a later version. */
const word = z.string().regex(/^[a-z-]{1,32}$/, 'not a word')
const refused = z.array(z.object({ network: bytes32, fault: word })).max(NETWORKS_MAX)

const opening = z.object({
  v: z.int().min(VERSION),
  nonce: bytesOf(NONCE_BYTES),
  tags: bytesOf(NETWORKS_MAX * TAG_BYTES),
  open: z.boolean(),
  token: bytesOf(TOKEN_ID_BYTES).optional(),
  pass: z
    .custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength <= PASS_BYTES_MAX, 'not a pass')
    .optional(),
})
const reply = z.object({ v: z.literal(VERSION), nonce: bytesOf(NONCE_BYTES), open: z.boolean(), chains })
const proof = z.object({
  chains,
  refused: refused.optional(),
  token: bytes32.optional(),
  /** With a token: what the newcomer would like to be called. */
  name: memberName.optional(),
})
const verdict = z.object({
  refused: refused.optional(),
  token: word.optional(),
  grant: z.object({ name: memberName, secret: bytesOf(SECRET_BYTES), chain, issuer: chain }).optional(),
  /** The dialler is let in by its pass. */
  guest: z.literal(true).optional(),
})

/** What somebody refused of what the other showed, network by network. */
export type Refused = z.infer<typeof refused>
export type Opening = z.infer<typeof opening>
export type Reply = z.infer<typeof reply>
export type Proof = z.infer<typeof proof>
export type Verdict = z.infer<typeof verdict>

/** The keys that the secure channel proved. */
export type Pair = { readonly dialler: Uint8Array; readonly listener: Uint8Array }

export function encodeOpening(message: Opening): Uint8Array {
  return encodeCbor(withoutUndefined(message))
}

/** @throws {WireError} `malformed` */
export function decodeOpening(bytes: Uint8Array): Opening {
  return decodeCbor(bytes, opening)
}

/** How a dialler says that it is in a network, to whom knows the network's secret: nobody else can tell it from noise. */
export function tagOf(network: NetworkSecret, nonce: Uint8Array, { dialler, listener }: Pair): Uint8Array {
  const mac = createHmac('sha256', deriveKey(network, 'hello'))
  return mac.update(TAG_DOMAIN).update(nonce).update(dialler).update(listener).digest().subarray(0, TAG_BYTES)
}

/**
 * What was said so far on one stream. Each message but the first is signed by its sender over the keys of both ends and all messages
 * before it, so none can be used anywhere else, at another time, the other way round, or in another order.
 */
export class Transcript {
  readonly #pair: Pair
  #messages = 0
  #hash: Uint8Array = new Uint8Array(32)

  constructor(pair: Pair) {
    this.#pair = pair
  }

  /** The first message, as it travels. */
  begin(opening: Uint8Array): void {
    this.#add(opening)
  }

  sign(message: Reply | Proof | Verdict, signer: StatementSigner): Uint8Array {
    const payload = encodeCbor(withoutUndefined(message))
    const bytes = Buffer.concat([signer.sign(this.#signed(payload)), payload])
    this.#add(bytes)
    return bytes
  }

  readReply(bytes: Uint8Array): Reply {
    return this.#read(bytes, reply, this.#pair.listener)
  }

  readProof(bytes: Uint8Array): Proof {
    return this.#read(bytes, proof, this.#pair.dialler)
  }

  readVerdict(bytes: Uint8Array): Verdict {
    return this.#read(bytes, verdict, this.#pair.listener)
  }

  /** Proves that whoever makes it has the token, for nobody else and for this time only. */
  tokenProof(token: Pick<Token, 'network' | 'secret'>): Uint8Array {
    const mac = createHmac('sha256', tokenKey(token))
    const { dialler, listener } = this.#pair
    return mac.update(TOKEN_DOMAIN).update(dialler).update(listener).update(this.#hash).digest()
  }

  /** @throws {WireError} `malformed`, `bad-signature` */
  #read<T>(bytes: Uint8Array, schema: z.ZodType<T>, signer: Uint8Array): T {
    if (bytes.byteLength <= SIGNATURE_BYTES) throw new WireError('malformed', 'shorter than a signature')
    const payload = bytes.subarray(SIGNATURE_BYTES)
    if (!verifySignature(this.#signed(payload), bytes.subarray(0, SIGNATURE_BYTES), signer))
      throw new WireError('bad-signature', 'the peer did not sign this message, or not in this conversation')
    const message = decodeCbor(payload, schema)
    this.#add(bytes)
    return message
  }

  #signed(payload: Uint8Array): Uint8Array {
    const domain = Buffer.from(`undernet/hello/1/${this.#messages + 1}\0`)
    return Buffer.concat([domain, this.#pair.dialler, this.#pair.listener, this.#hash, payload])
  }

  #add(bytes: Uint8Array): void {
    this.#messages++
    this.#hash = createHash('sha256').update(this.#hash).update(bytes).digest()
  }
}

function withoutUndefined(fields: object): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}
