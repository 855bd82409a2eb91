/**
 * Questions of DNS (RFC 1035, EDNS: RFC 6891) as programs on this machine send them. Only what a question has is read, strictly and by hand:
 * a library would read names with any bytes in them, and answer records that no question has. Answers are encoded by dns-packet, and cut to
 * what their way carries.
 */
import { type Answer, AUTHORITATIVE_ANSWER, encode, type Packet, TRUNCATED_RESPONSE } from 'dns-packet'

/** RFC 6891, section 6.2.3. */
const UDP_BYTES_PLAIN = 512
/** What we say and take: fits every network, though loopback carries more. */
const UDP_BYTES_MAX = 1_232
const HEADER_BYTES = 12
const LABEL_BYTES_MAX = 63
const NAME_BYTES_MAX = 255
const OPT = 41
const CLASS_IN = 1

export const RCODE = { ok: 0, format: 1, failed: 2, noName: 3, notImplemented: 4, refused: 5, version: 16 } as const
export type Rcode = (typeof RCODE)[keyof typeof RCODE]

/** By number: RFC 1035, section 3.2.2, RFC 3596, RFC 2782. Others are answered as names without such records. */
const TYPES = new Map([
  [1, 'A'],
  [2, 'NS'],
  [6, 'SOA'],
  [12, 'PTR'],
  [16, 'TXT'],
  [28, 'AAAA'],
  [33, 'SRV'],
  [255, 'ANY'],
] as const)
export type QuestionType = typeof TYPES extends Map<number, infer T> ? T | 'other' : never

export type Query = {
  id: number
  /** Recursion desired: said back. */
  isRecursive: boolean
  /** As it was written, without the last dot. */
  name: string
  type: QuestionType
  /** What the client takes by UDP; undefined when it speaks no EDNS. */
  udpBytes: number | undefined
  /** The question as it came, to be said back. */
  question: Uint8Array
}

/** What is wrong with a message, as the code of an answer; `drop` for what must not be answered: answers, and noise. */
export type Malformed = { rcode: Rcode; id: number; question: Uint8Array; isRecursive: boolean } | 'drop'

export type Reply = {
  rcode: Rcode
  answers: Answer[]
  authorities: Answer[]
  additionals: Answer[]
  /** RFC 8914: why, for people who look with dig. */
  explanation?: string
}

/** Reads a question. */
export function readQuery(bytes: Uint8Array): { query: Query } | { malformed: Malformed } {
  if (bytes.byteLength < HEADER_BYTES) return { malformed: 'drop' }
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const [id, flags, questions, answers, authorities, additionals] = Array.from({ length: 6 }, (_, nth) =>
    view.readUInt16BE(nth * 2),
  ) as [number, number, number, number, number, number]
  if ((flags & 0x8000) !== 0) return { malformed: 'drop' }
  const isRecursive = (flags & 0x0100) !== 0
  const fault = (rcode: Rcode, question = view.subarray(0, 0)) => ({ malformed: { rcode, id, question, isRecursive } })
  if ((flags & 0x7800) !== 0) return fault(RCODE.notImplemented)
  if (questions !== 1 || answers !== 0 || authorities !== 0) return fault(RCODE.format)
  const named = readName(view, HEADER_BYTES)
  if (named === undefined || view.byteLength < named.end + 4) return fault(RCODE.format)
  const end = named.end + 4
  const question = view.subarray(HEADER_BYTES, end)
  const extra = readAdditionals(view, end, additionals)
  if (extra === undefined) return fault(RCODE.format)
  if (extra.version !== undefined && extra.version !== 0) return fault(RCODE.version, question)
  // Names with other bytes in them are nobody's here; their text would be ambiguous.
  if (view.readUInt16BE(named.end + 2) !== CLASS_IN || named.name === undefined) return fault(RCODE.refused, question)
  const type = TYPES.get(view.readUInt16BE(named.end) as 1) ?? 'other'
  return { query: { id, isRecursive, name: named.name, type, udpBytes: extra.udpBytes, question } }
}

/** Of a question there is nothing to point back to, so a pointer is a fault. `name` is undefined when it holds other than letters of hosts. */
function readName(view: Buffer, start: number): { name: string | undefined; end: number } | undefined {
  const labels: string[] = []
  let at = start
  for (;;) {
    const length = view[at]
    if (length === undefined || length > LABEL_BYTES_MAX || at + 1 + length > view.byteLength) return undefined
    if (at + 1 + length - start > NAME_BYTES_MAX) return undefined
    if (length === 0) break
    labels.push(view.toString('latin1', at + 1, at + 1 + length))
    at += 1 + length
  }
  const isPlain = labels.every((label) => /^[0-9A-Za-z_-]+$/.test(label))
  return { name: isPlain ? labels.join('.') : undefined, end: at + 1 }
}

/** EDNS is a record among them, at most one, with the root as its name. Others (TSIG, cookies of servers) are passed over. */
function readAdditionals(view: Buffer, start: number, count: number) {
  let found: { udpBytes: number; version: number } | undefined
  let at = start
  for (let nth = 0; nth < count; nth += 1) {
    const named = readName(view, at)
    if (named === undefined || view.byteLength < named.end + 10) return undefined
    const type = view.readUInt16BE(named.end)
    if (type === OPT) {
      if (found !== undefined || named.name !== '') return undefined
      found = { udpBytes: view.readUInt16BE(named.end + 2), version: view[named.end + 5] ?? 0 }
    }
    at = named.end + 10 + view.readUInt16BE(named.end + 8)
    if (at > view.byteLength) return undefined
  }
  return { udpBytes: found?.udpBytes, version: found?.version }
}

/** The answer to a question; `isUdp` bounds it, and what does not fit makes the client ask again by TCP. */
export function writeReply(query: Query, reply: Reply, isUdp: boolean): Uint8Array {
  const { id, isRecursive, udpBytes } = query
  const isOurs = reply.rcode === RCODE.ok || reply.rcode === RCODE.noName
  const flags = (isOurs ? AUTHORITATIVE_ANSWER : 0) | (isRecursive ? 0x0100 : 0) | (reply.rcode & 0x0f)
  const opt = udpBytes === undefined ? [] : [optOf(reply)]
  const { answers, authorities, additionals } = reply
  const limit = isUdp ? Math.min(Math.max(udpBytes ?? 0, UDP_BYTES_PLAIN), UDP_BYTES_MAX) : 0xffff
  const whole = encoded(query, { id, flags, answers, authorities, additionals: [...additionals, ...opt] })
  if (whole.byteLength <= limit) return whole
  const lean = encoded(query, { id, flags, answers, authorities, additionals: opt })
  if (lean.byteLength <= limit) return lean
  return encoded(query, { id, flags: flags | TRUNCATED_RESPONSE, additionals: opt })
}

/** The answer to what is no question that can be answered; undefined when there is to be none. */
export function writeFault(malformed: Malformed): Uint8Array | undefined {
  if (malformed === 'drop') return undefined
  const { id, question, rcode, isRecursive } = malformed
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt16BE(id, 0)
  header.writeUInt16BE(0x8000 | (isRecursive ? 0x0100 : 0) | (rcode & 0x0f), 2)
  header.writeUInt16BE(question.byteLength > 0 ? 1 : 0, 4)
  if (rcode <= 0x0f) return Buffer.concat([header, question])
  // Its upper bits are in an EDNS record.
  header.writeUInt16BE(1, 10)
  const opt = Buffer.from([0, 0, OPT, UDP_BYTES_MAX >> 8, UDP_BYTES_MAX & 0xff, rcode >> 4, 0, 0, 0, 0, 0])
  return Buffer.concat([header, question, opt])
}

/** dns-packet writes the rest; the question is said back byte for byte, with its letters in the case in which they came. */
function encoded({ question }: Query, packet: Packet): Uint8Array {
  const bytes = Buffer.from(encode({ ...packet, type: 'response' }))
  bytes.writeUInt16BE(1, 4)
  return Buffer.concat([bytes.subarray(0, HEADER_BYTES), question, bytes.subarray(HEADER_BYTES)])
}

/** Extended DNS errors: RFC 8914, section 2; 0 is "other". */
function optOf({ explanation }: Reply): Answer {
  const text = explanation === undefined ? undefined : Buffer.concat([Buffer.alloc(2), Buffer.from(explanation)])
  const options = text === undefined ? [] : [{ code: 15, data: text }]
  return { type: 'OPT', name: '.', udpPayloadSize: UDP_BYTES_MAX, flags: 0, options } as unknown as Answer
}
