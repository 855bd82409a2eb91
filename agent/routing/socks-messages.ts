/**
 * The messages of SOCKS 5 (RFC 1928), from bytes and to bytes. What is read comes from programs of this machine: a reader gives the message
 * and how long it was, undefined while bytes are missing, or throws SocksFault.
 */
import { isIPv4 } from 'node:net'

export const SOCKS_VERSION = 5
export const NO_AUTHENTICATION = 0x00
export const NO_METHOD = 0xff
export const SUCCEEDED = 0x00
/** Version, command, reserved, kind of address, the longest name with its length, port. */
export const REQUEST_BYTES_MAX = 4 + 1 + 255 + 2

const COMMANDS = new Map([
  [1, 'connect'],
  [3, 'udp-associate'],
] as const)
const IPV4 = 1
const DOMAIN = 3
const IPV6 = 4
const COMMAND_NOT_SUPPORTED = 0x07
const ADDRESS_NOT_SUPPORTED = 0x08
const GENERAL_FAILURE = 0x01

export type SocksAddress = { host: string; port: number }
type Read<T> = { value: T; length: number } | undefined

/** Not SOCKS 5, or of it what is not spoken here. */
export class SocksFault extends Error {
  override readonly name = 'SocksFault'
  /** RFC 1928, section 6. */
  readonly reply: number

  constructor(reply: number, message: string) {
    super(message)
    this.reply = reply
  }
}

/** The methods of authentication that a client offers. */
export function readGreeting(bytes: Uint8Array): Read<readonly number[]> {
  const [version, count] = bytes
  if (version === undefined) return undefined
  if (version !== SOCKS_VERSION) throw new SocksFault(GENERAL_FAILURE, `SOCKS ${version} is not spoken here, only 5`)
  if (count === undefined || bytes.byteLength < 2 + count) return undefined
  return { value: [...bytes.subarray(2, 2 + count)], length: 2 + count }
}

export function readRequest(bytes: Uint8Array): Read<SocksAddress & { command: 'connect' | 'udp-associate' }> {
  const [version, number, reserved] = bytes
  if (version === undefined || number === undefined || reserved === undefined) return undefined
  if (version !== SOCKS_VERSION || reserved !== 0) throw new SocksFault(GENERAL_FAILURE, 'this is no SOCKS 5 request')
  const address = readAddress(bytes, 3)
  if (address === undefined) return undefined
  const command = COMMANDS.get(number as 1 | 3)
  if (command === undefined)
    throw new SocksFault(COMMAND_NOT_SUPPORTED, `SOCKS command ${number} is not spoken here, only CONNECT and UDP`)
  return { value: { ...address.value, command }, length: address.length }
}

/** A datagram as a client sends it through the proxy; undefined for fragments, and for what is none. */
export function readDatagram(bytes: Uint8Array): (SocksAddress & { data: Uint8Array }) | undefined {
  if (bytes[0] !== 0 || bytes[1] !== 0 || bytes[2] !== 0) return undefined
  try {
    const address = readAddress(bytes, 3)
    return address && { ...address.value, data: bytes.subarray(address.length) }
  } catch {
    return undefined
  }
}

export function writeMethod(method: number): Uint8Array {
  return Uint8Array.of(SOCKS_VERSION, method)
}

export function writeReply(code: number, bound: SocksAddress = { host: '0.0.0.0', port: 0 }): Uint8Array {
  return Buffer.concat([Uint8Array.of(SOCKS_VERSION, code, 0), writeAddress(bound)])
}

export function writeDatagram(from: SocksAddress, data: Uint8Array): Uint8Array {
  return Buffer.concat([Uint8Array.of(0, 0, 0), writeAddress(from), data])
}

function readAddress(bytes: Uint8Array, at: number): Read<SocksAddress> {
  const kind = bytes[at]
  if (kind === undefined) return undefined
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const nameLength = bytes[at + 1]
  if (kind === DOMAIN && nameLength === undefined) return undefined
  if (kind !== IPV4 && kind !== DOMAIN && kind !== IPV6)
    throw new SocksFault(ADDRESS_NOT_SUPPORTED, `there is no kind ${kind} of address`)
  const start = kind === DOMAIN ? at + 2 : at + 1
  const end = start + (kind === IPV4 ? 4 : kind === IPV6 ? 16 : (nameLength ?? 0))
  if (bytes.byteLength < end + 2) return undefined
  const host = hostOf(kind, buffer.subarray(start, end))
  return { value: { host, port: buffer.readUInt16BE(end) }, length: end + 2 }
}

function hostOf(kind: number, bytes: Buffer): string {
  if (kind === IPV4) return bytes.join('.')
  if (kind === IPV6) return Array.from({ length: 8 }, (_, nth) => bytes.readUInt16BE(nth * 2).toString(16)).join(':')
  const name = bytes.toString('latin1')
  // Whatever it is: it goes into messages.
  if (name === '' || !/^[\x21-\x7e]+$/.test(name)) throw new SocksFault(GENERAL_FAILURE, 'this is no name of a host')
  return name
}

function writeAddress({ host, port }: SocksAddress): Uint8Array {
  const name = Buffer.from(host, 'latin1').subarray(0, 255)
  const address = isIPv4(host)
    ? Uint8Array.of(IPV4, ...host.split('.').map(Number))
    : Buffer.concat([Uint8Array.of(DOMAIN, name.byteLength), name])
  return Buffer.concat([address, Uint8Array.of(port >> 8, port & 0xff)])
}
