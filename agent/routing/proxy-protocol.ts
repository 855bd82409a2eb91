/**
 * The first bytes of a connection that tell an application who calls: the PROXY protocol, version 2, as HAProxy specifies it.
 *
 * The source is the member's address where it is connected directly, else none (UNSPEC); who it is stands in fields of our own, of the range that is
 * left to users: 0xE0 the member's name, 0xE1 its peer id, 0xE2 the network. Applications that know nothing of them skip them.
 */
import { isIP } from 'node:net'

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex')
/** Version 2, command PROXY. */
const VERSION_PROXY = 0x21
const UNSPEC = 0x00
const TCP_IPV4 = 0x11
const TCP_IPV6 = 0x21
const MEMBER_NAME = 0xe0
const PEER_ID = 0xe1
const NETWORK_NAME = 0xe2

export type Caller = {
  name: string
  peerId: string
  network: string
  /** Of its connection; undefined where it is not direct. */
  address: { host: string; port: number } | undefined
}

/** `to` is where the application listens. */
export function proxyHeader(
  { name, peerId, network, address }: Caller,
  to: { host: string; port: number },
): Uint8Array {
  const [family, addresses] = addressBlock(address, to)
  const fields = [field(MEMBER_NAME, name), field(PEER_ID, peerId), field(NETWORK_NAME, network)]
  const rest = Buffer.concat([addresses, ...fields])
  const head = Buffer.alloc(4)
  head.writeUInt8(VERSION_PROXY, 0)
  head.writeUInt8(family, 1)
  head.writeUInt16BE(rest.byteLength, 2)
  return Buffer.concat([SIGNATURE, head, rest])
}

function addressBlock(from: Caller['address'], to: { host: string; port: number }): [family: number, Buffer] {
  const kind = from === undefined ? 0 : isIP(from.host)
  if (from === undefined || kind === 0) return [UNSPEC, Buffer.alloc(0)]
  // An application has one address family; where its own is another than the caller's, the mapped form says both.
  const isV4 = kind === 4 && isIP(to.host) !== 6
  const ports = Buffer.alloc(4)
  ports.writeUInt16BE(from.port, 0)
  ports.writeUInt16BE(to.port, 2)
  const host = isIP(to.host) === 0 ? (isV4 ? '127.0.0.1' : '::1') : to.host
  const bytes = isV4 ? bytesOfV4 : bytesOfV6
  return [isV4 ? TCP_IPV4 : TCP_IPV6, Buffer.concat([bytes(from.host), bytes(host), ports])]
}

function field(type: number, text: string): Buffer {
  const value = Buffer.from(text)
  const head = Buffer.alloc(3)
  head.writeUInt8(type, 0)
  head.writeUInt16BE(value.byteLength, 1)
  return Buffer.concat([head, value])
}

function bytesOfV4(host: string): Buffer {
  return Buffer.from(host.split('.').map(Number))
}

function bytesOfV6(host: string): Buffer {
  if (isIP(host) === 4) return Buffer.concat([Buffer.from('00000000000000000000ffff', 'hex'), bytesOfV4(host)])
  const [, v4] = /:(\d+\.\d+\.\d+\.\d+)$/.exec(host) ?? []
  const hex =
    v4 === undefined
      ? host
      : host.replace(
          v4,
          bytesOfV4(v4)
            .toString('hex')
            .replace(/^(....)/, '$1:'),
        )
  const [left = '', right] = hex.split('::')
  const words = (text: string) =>
    text
      .split(':')
      .filter((word) => word !== '')
      .map((word) => Number.parseInt(word, 16))
  const before = words(left)
  const after = right === undefined ? [] : words(right)
  const all = [...before, ...Array<number>(Math.max(0, 8 - before.length - after.length)).fill(0), ...after]
  const bytes = Buffer.alloc(16)
  for (const [at, word] of all.slice(0, 8).entries()) bytes.writeUInt16BE(word, at * 2)
  return bytes
}
