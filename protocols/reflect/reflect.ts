/**
 * `/undernet/reflect/1`: a member tells another from which address and port its datagrams come, as seen from outside. The words on a stream of
 * the network, by which the asker gets a key; and the two datagrams, question and answer. See spec.md beside this file. Opens no socket.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { isIPv4, isIPv6 } from 'node:net'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'

export const REFLECT_PROTOCOL = '/undernet/reflect/1'
/** Every request and answer on the stream, with room for fields of later versions. */
export const REFLECT_WORD_BYTES_MAX = 256
/** Of a question and of its answer: whoever forges the address that a question comes from gains nothing. */
export const REFLECT_DATAGRAM_BYTES = 64
/** A key lives for so long, and for so many answers. */
export const REFLECT_KEY_MS_MAX = 60_000
export const REFLECT_ANSWERS_MAX = 32
/** A second port shows whether a router gives each destination a port of its own. */
const PORTS_MAX = 2
const PORT_MAX = 65_535

const ID_BYTES = 8
const KEY_BYTES = 32
const NONCE_BYTES = 12
const MAC_BYTES = 16
const SIGNED_BYTES = REFLECT_DATAGRAM_BYTES - MAC_BYTES
const QUESTION_MAGIC = Buffer.from('unq1')
const ANSWER_MAGIC = Buffer.from('una1')
/** Where the fields of a datagram begin. */
const ID_AT = 4
const NONCE_AT = ID_AT + ID_BYTES
const FAMILY_AT = NONCE_AT + NONCE_BYTES
const PORT_AT = FAMILY_AT + 1
const ADDRESS_AT = PORT_AT + 2
const ADDRESS_BYTES = 16
const PADDING_AT = ADDRESS_AT + ADDRESS_BYTES

const bytesOf = (count: number) =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === count, `not ${count} bytes`)

const anyRequest = z.looseObject({ ask: z.string().max(32) })
const offerSchema = z.object({
  id: bytesOf(ID_BYTES),
  key: bytesOf(KEY_BYTES),
  ports: z.array(z.int().min(1).max(PORT_MAX)).min(1).max(PORTS_MAX),
})
const placeSchema = z.object({
  address: z.union([bytesOf(4), bytesOf(ADDRESS_BYTES)]),
  port: z.int().min(1).max(PORT_MAX),
})
const refusedSchema = z.object({ error: z.string().max(32) })
const answerSchema = z.union([offerSchema, refusedSchema])
const seenSchema = z.union([placeSchema, refusedSchema])
const REFUSALS = ['off', 'busy', 'unknown', 'absent'] as const

/** What a question is asked with: for one asker, for a minute. */
export type ReflectKey = { readonly id: Uint8Array; readonly key: Uint8Array }
export type ReflectOffer = z.infer<typeof offerSchema>
type ReflectRefusal = (typeof REFUSALS)[number]
export type Place = { readonly address: string; readonly port: number }

/** `key`: to ask by datagrams. `quic`: where did my last QUIC connection with you come from? */
export type ReflectRequest = 'key' | 'quic'

export const encodeReflectRequest = (ask: ReflectRequest): Uint8Array => encodeCbor({ ask })

/** @throws {WireError} `malformed` */
export function decodeReflectRequest(bytes: Uint8Array): ReflectRequest | 'unknown' {
  const { ask } = decodeCbor(bytes, anyRequest)
  return ask === 'key' || ask === 'quic' ? ask : 'unknown'
}

/** The answer to `quic`; undefined for an address that is none. */
export function encodeReflectSeen({ address, port }: Place): Uint8Array | undefined {
  const bytes = bytesOfAddress(address)
  return bytes && encodeCbor({ address: bytes, port })
}

/** @throws {WireError} `malformed` */
export function decodeReflectSeen(bytes: Uint8Array): Place | 'absent' {
  const answer = decodeCbor(bytes, seenSchema)
  return 'error' in answer ? 'absent' : { address: addressOf(answer.address), port: answer.port }
}

export const encodeReflectAnswer = (answer: ReflectOffer | ReflectRefusal): Uint8Array =>
  encodeCbor(typeof answer === 'string' ? { error: answer } : answer)

/** A refusal of a later version is `off`. @throws {WireError} `malformed` */
export function decodeReflectAnswer(bytes: Uint8Array): ReflectOffer | ReflectRefusal {
  const answer = decodeCbor(bytes, answerSchema)
  return 'error' in answer ? (REFUSALS.find((one) => one === answer.error) ?? 'off') : answer
}

/** @param nonce 12 random bytes, by which the answer is known */
export function encodeQuestion(key: ReflectKey, nonce: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(REFLECT_DATAGRAM_BYTES)
  QUESTION_MAGIC.copy(bytes)
  bytes.set(key.id, ID_AT)
  bytes.set(nonce.subarray(0, NONCE_BYTES), NONCE_AT)
  bytes.set(macOf(key, 'ask', bytes), SIGNED_BYTES)
  return bytes
}

/** The id of the key that a datagram is asked with, in hexadecimal; undefined for what is no question. Nothing is proven by it. */
export function questionId(bytes: Uint8Array): string | undefined {
  if (bytes.byteLength !== REFLECT_DATAGRAM_BYTES || !startsWith(bytes, QUESTION_MAGIC)) return undefined
  return Buffer.from(bytes.subarray(ID_AT, NONCE_AT)).toString('hex')
}

/** The answer to a question that comes from there; undefined when it was not asked with this key. */
export function answerQuestion(key: ReflectKey, question: Uint8Array, from: Place): Uint8Array | undefined {
  if (questionId(question) !== Buffer.from(key.id).toString('hex') || !isSound(key, 'ask', question)) return undefined
  const address = bytesOfAddress(from.address)
  if (address === undefined) return undefined
  const bytes = Buffer.from(question)
  ANSWER_MAGIC.copy(bytes)
  bytes.fill(0, FAMILY_AT, SIGNED_BYTES)
  bytes[FAMILY_AT] = address.byteLength
  bytes.writeUInt16BE(from.port, PORT_AT)
  bytes.set(address, ADDRESS_AT)
  hide(bytes, question)
  bytes.set(macOf(key, 'answer', bytes), SIGNED_BYTES)
  return bytes
}

/** What an answer to this question says; undefined for whatever is none. */
export function readReflection(key: ReflectKey, question: Uint8Array, bytes: Uint8Array): Place | undefined {
  if (bytes.byteLength !== REFLECT_DATAGRAM_BYTES || !startsWith(bytes, ANSWER_MAGIC)) return undefined
  if (Buffer.compare(bytes.subarray(ID_AT, FAMILY_AT), question.subarray(ID_AT, FAMILY_AT)) !== 0) return undefined
  if (!isSound(key, 'answer', bytes)) return undefined
  const plain = Buffer.from(bytes)
  hide(plain, question)
  const length = plain[FAMILY_AT] ?? 0
  const port = plain.readUInt16BE(PORT_AT)
  const rest = plain.subarray(ADDRESS_AT + length, SIGNED_BYTES)
  if ((length !== 4 && length !== ADDRESS_BYTES) || port === 0 || rest.some((byte) => byte !== 0)) return undefined
  return { address: addressOf(plain.subarray(ADDRESS_AT, ADDRESS_AT + length)), port }
}

/** Routers that replace addresses wherever they see them shall not see this one: it is mixed with the question's proof. */
function hide(bytes: Buffer, question: Uint8Array): void {
  for (let at = PORT_AT; at < PADDING_AT; at++) {
    const pad = question[SIGNED_BYTES + ((at - PORT_AT) % MAC_BYTES)] ?? 0
    const isUsed = at < ADDRESS_AT + (bytes[FAMILY_AT] ?? 0)
    if (isUsed) bytes[at] = (bytes[at] ?? 0) ^ pad
  }
}

function macOf({ key }: ReflectKey, what: 'ask' | 'answer', bytes: Uint8Array): Uint8Array {
  const mac = createHmac('sha256', key).update(`undernet/reflect/1/${what}\0`).update(bytes.subarray(0, SIGNED_BYTES))
  return mac.digest().subarray(0, MAC_BYTES)
}

function isSound(key: ReflectKey, what: 'ask' | 'answer', bytes: Uint8Array): boolean {
  return timingSafeEqual(macOf(key, what, bytes), bytes.subarray(SIGNED_BYTES))
}

function startsWith(bytes: Uint8Array, magic: Uint8Array): boolean {
  return Buffer.compare(bytes.subarray(0, magic.byteLength), magic) === 0
}

/** 4 or 16 bytes; undefined for text that is no address. One that is IPv4 within IPv6 is IPv4. */
function bytesOfAddress(address: string): Uint8Array | undefined {
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '')
  if (isIPv4(plain)) return Uint8Array.from(plain.split('.').map(Number))
  if (!isIPv6(plain)) return undefined
  const [head = '', tail] = plain.split('::')
  const wordsOf = (text: string) => (text === '' ? [] : text.split(':').flatMap(wordOf))
  const [before, after] = [wordsOf(head), wordsOf(tail ?? '')]
  const words = Array.from({ length: 8 }, (_, at) => before[at] ?? after[at - 8 + after.length] ?? 0)
  return Uint8Array.from(words.flatMap((word) => [word >> 8, word & 0xff]))
}

/** Also of the two that an IPv4 address at the end stands for. */
function wordOf(text: string): number[] {
  if (!text.includes('.')) return [Number.parseInt(text, 16)]
  const [a = 0, b = 0, c = 0, d = 0] = text.split('.').map(Number)
  return [a * 256 + b, c * 256 + d]
}

/** IPv6 in its full length, without leading zeros of a word. */
function addressOf(bytes: Uint8Array): string {
  if (bytes.byteLength === 4) return bytes.join('.')
  const view = Buffer.from(bytes)
  return Array.from({ length: 8 }, (_, at) => view.readUInt16BE(at * 2).toString(16)).join(':')
}
