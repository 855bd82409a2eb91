/**
 * Protocol buffers for the few messages that discovery sends and reads (xds-schema.ts): tables of fields instead of generated code, so that
 * one object is both the JSON of REST and, by its table, the bytes of gRPC, and nothing is loaded for it (the smallest library is 400 KB).
 *
 * Objects are in the proto3 JSON form with the names of the .proto files. The reader is for bytes of strangers: it skips what it does not know,
 * and throws ProtobufFault for what is not a message.
 */

/** A field's number and type; `many` when repeated. Wrapped numbers are UInt32Value. */
type Field = {
  number: number
  type: 'string' | 'bool' | 'uint32' | 'wrapped' | 'duration' | 'any' | Message | Enum
  many?: true
}
export type Message = { fields: Record<string, Field> }
export type Enum = { values: Record<string, number> }
export type Json = { [name: string]: unknown }
/** By type URL: what an Any may hold. */
export type AnyTypes = Record<string, Message>

const VARINT = 0
const FIXED64 = 1
const BYTES = 2
const FIXED32 = 5
/** Seven bits a byte. */
const VARINT_BYTES_MAX = 10
/** Of messages in messages: none that is read here has more than three. */
const DEPTH_MAX = 16
const NANOS = 1e9

export class ProtobufFault extends Error {
  override readonly name = 'ProtobufFault'
}

export function encodeMessage({ fields }: Message, value: Json, anyTypes: AnyTypes): Uint8Array {
  const parts: Uint8Array[] = []
  for (const [name, field] of Object.entries(fields)) {
    const given = value[name]
    if (given === undefined) continue
    for (const one of field.many === true ? (given as unknown[]) : [given])
      parts.push(encodeField(field, one, anyTypes))
  }
  return Buffer.concat(parts)
}

function encodeField({ number, type }: Field, value: unknown, anyTypes: AnyTypes): Uint8Array {
  if (type === 'bool' || type === 'uint32')
    return Buffer.concat([varint((number << 3) | VARINT), varint(Number(value))])
  if (typeof type === 'object' && 'values' in type)
    return Buffer.concat([varint((number << 3) | VARINT), varint(type.values[value as string] ?? 0)])
  const bytes = lengthDelimited(type, value, anyTypes)
  return Buffer.concat([varint((number << 3) | BYTES), varint(bytes.byteLength), bytes])
}

function lengthDelimited(type: Exclude<Field['type'], Enum>, value: unknown, anyTypes: AnyTypes): Uint8Array {
  if (type === 'string') return Buffer.from(value as string)
  if (type === 'wrapped') return encodeField({ number: 1, type: 'uint32' }, value, anyTypes)
  if (type === 'duration') {
    const seconds = Number.parseFloat(value as string)
    const nanos = Math.round((seconds % 1) * NANOS)
    const whole = encodeField({ number: 1, type: 'uint32' }, Math.floor(seconds), anyTypes)
    return nanos === 0 ? whole : Buffer.concat([whole, encodeField({ number: 2, type: 'uint32' }, nanos, anyTypes)])
  }
  if (type === 'any') return encodeAny(value as Json, anyTypes)
  return encodeMessage(type as Message, value as Json, anyTypes)
}

/** Of an object that names its type in `@type`. */
function encodeAny(value: Json, anyTypes: AnyTypes): Uint8Array {
  const url = value['@type'] as string
  const message = anyTypes[url]
  if (message === undefined) throw new Error(`no table for ${url}`)
  const inner = encodeMessage(message, value, anyTypes)
  return Buffer.concat([
    encodeField({ number: 1, type: 'string' }, url, anyTypes),
    Buffer.concat([varint((2 << 3) | BYTES), varint(inner.byteLength), inner]),
  ])
}

function varint(value: number): Uint8Array {
  const bytes: number[] = []
  let rest = value
  while (rest > 0x7f) {
    bytes.push((rest % 0x80) + 0x80)
    rest = Math.floor(rest / 0x80)
  }
  bytes.push(rest)
  return Uint8Array.from(bytes)
}

/**
 * Reads the strings, numbers and messages that the table names; a field that is not there is left out, and a repeated one is an empty list.
 *
 * @throws {ProtobufFault} for bytes that are no message.
 */
export function decodeMessage(message: Message, bytes: Uint8Array, depth = 0): Json {
  if (depth > DEPTH_MAX) throw new ProtobufFault('messages within messages within messages')
  const known = new Map(Object.entries(message.fields).map(([name, field]) => [field.number, { name, ...field }]))
  const read: Json = Object.fromEntries(
    [...known.values()].filter(({ many }) => many === true).map(({ name }) => [name, []]),
  )
  const cursor = { bytes, at: 0 }
  while (cursor.at < bytes.byteLength) {
    const tag = readVarint(cursor)
    const field = known.get(Math.floor(tag / 8))
    const raw = readRaw(cursor, tag % 8)
    const value = field && readValue(field, raw, depth)
    if (field === undefined || value === undefined) continue
    if (field.many === true) (read[field.name] as unknown[]).push(value)
    else read[field.name] = value
  }
  return read
}

type Cursor = { readonly bytes: Uint8Array; at: number }

function readVarint(cursor: Cursor): number {
  let value = 0
  for (let nth = 0; nth < VARINT_BYTES_MAX; nth += 1) {
    const byte = cursor.bytes[cursor.at]
    if (byte === undefined) break
    cursor.at += 1
    value += (byte & 0x7f) * 2 ** (7 * nth)
    if (byte < 0x80) return value
  }
  throw new ProtobufFault('a number does not end')
}

function readRaw(cursor: Cursor, wire: number): number | Uint8Array | undefined {
  if (wire === VARINT) return readVarint(cursor)
  const length = wire === FIXED64 ? 8 : wire === FIXED32 ? 4 : wire === BYTES ? readVarint(cursor) : -1
  const end = cursor.at + length
  if (length < 0 || end > cursor.bytes.byteLength) throw new ProtobufFault('a field goes beyond the message')
  const raw = cursor.bytes.subarray(cursor.at, end)
  cursor.at = end
  return wire === BYTES ? raw : undefined
}

function readValue({ type }: Field, raw: number | Uint8Array | undefined, depth: number): unknown {
  if (typeof raw === 'number') return type === 'uint32' ? raw : undefined
  if (raw === undefined) return undefined
  if (type === 'string') return Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength).toString('utf8')
  return typeof type === 'object' && 'fields' in type ? decodeMessage(type, raw, depth + 1) : undefined
}
