/**
 * Which addresses this node tells others, which of a peer's it keeps, and in what order it dials them.
 *
 * Loopback is told only by a node that has nothing else: two agents on one machine reach each other by the machine's own address, and
 * where there is none, by loopback. A peer's loopback address is kept only by such a node, so that a stranger cannot point us at
 * services on our own machine.
 */
import { BlockList, isIP } from 'node:net'
import { networkInterfaces } from 'node:os'
import type { Address } from '@libp2p/interface'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { AgentError, reasonOf } from '../error.ts'

/** Multiaddr protocol codes: https://github.com/multiformats/multiaddr/blob/master/protocols.csv */
const CODE_IP4 = 4
const CODE_TCP = 6
const CODE_IP6 = 41
const CODE_UDP = 273
const CODE_P2P = 421

/** How old the list of our own networks may be while we sort by it. */
const INTERFACES_MS_MAX = 10_000

/** Addresses with no route from anywhere else. IPv6 link-local ones mean nothing without the reader's interface name. */
const loopback = blocks(['127.0.0.0', 8, 'ipv4'], ['::1', 128, 'ipv6'])
const linkLocal = blocks(['fe80::', 10, 'ipv6'])
const privateUse = blocks(
  ['10.0.0.0', 8, 'ipv4'],
  ['172.16.0.0', 12, 'ipv4'],
  ['192.168.0.0', 16, 'ipv4'],
  ['169.254.0.0', 16, 'ipv4'],
  ['100.64.0.0', 10, 'ipv4'],
  ['fc00::', 7, 'ipv6'],
)
/** Of no single machine: unspecified, multicast, reserved. */
const nobodys = blocks(
  ['0.0.0.0', 8, 'ipv4'],
  ['192.0.0.0', 24, 'ipv4'],
  ['198.18.0.0', 15, 'ipv4'],
  ['224.0.0.0', 3, 'ipv4'],
  ['::', 128, 'ipv6'],
  ['ff00::', 8, 'ipv6'],
)

/** The addresses to tell others, of those that we listen on. */
export function announced(addresses: Multiaddr[]): Multiaddr[] {
  const routable = addresses.filter((address) => !isIn(linkLocal, address))
  const remote = routable.filter((address) => !isLoopback(address))
  return remote.length > 0 ? remote : routable
}

export function isLoopback(address: Multiaddr): boolean {
  return isIn(loopback, address)
}

/** Whether an IP address is one of the Internet's. */
export function isPublicHost(host: string): boolean {
  const family = isIP(host)
  if (family === 0) return false
  return ![loopback, linkLocal, privateUse, nobodys].some((list) => list.check(host, family === 4 ? 'ipv4' : 'ipv6'))
}

/** Whether an address, as a socket has it, is one of this machine now. */
export function isOurs(address: string): boolean {
  const host = address.split('%')[0]?.replace(/^::ffff:(?=\d+\.)/i, '')
  return Object.values(networkInterfaces()).some((all) => all?.some((one) => one.address === host))
}

/** Whether an IP address is on a network that this machine is in itself, or loopback. */
export function isNear(host: string): boolean {
  const family = isIP(host) === 4 ? 'ipv4' : 'ipv6'
  return isIP(host) !== 0 && [loopback, linkLocal, localNetworks()].some((list) => list.check(host, family))
}

/** Sorts for dialling: an address on one of our own networks first, then public ones, other private ones, loopback. */
export function byReach(): (a: Address, b: Address) => -1 | 0 | 1 {
  let local = new BlockList()
  let readMs = Number.NEGATIVE_INFINITY
  const rank = (address: Multiaddr): number => {
    if (isLoopback(address)) return 3
    if (isIn(local, address)) return 0
    return isIn(privateUse, address) ? 2 : 1
  }
  return (a, b) => {
    if (performance.now() - readMs > INTERFACES_MS_MAX) {
      local = localNetworks()
      readMs = performance.now()
    }
    return Math.sign(rank(a.multiaddr) - rank(b.multiaddr)) as -1 | 0 | 1
  }
}

/** The peer id at the end of a multiaddr. */
export function peerIdIn(address: Multiaddr): string | undefined {
  return address.getComponents().findLast((component) => component.code === CODE_P2P)?.value
}

/** The IP address that a multiaddr begins with; undefined for names, and for addresses that mean nothing without an interface. */
export function hostIn(address: Multiaddr): string | undefined {
  const [first] = address.getComponents()
  return first?.code === CODE_IP4 || first?.code === CODE_IP6 ? first.value : undefined
}

/** What an IPv4 address names behind the host; undefined for IPv6, which no router translates, and for loopback. */
export function portIn(address: Multiaddr): { transport: 'tcp' | 'udp'; port: number } | undefined {
  const [host, transport] = address.getComponents()
  if (host?.code !== CODE_IP4 || isLoopback(address)) return undefined
  if (transport?.code !== CODE_TCP && transport?.code !== CODE_UDP) return undefined
  return { transport: transport.code === CODE_TCP ? 'tcp' : 'udp', port: Number(transport.value) }
}

/**
 * A multiaddr that a person wrote.
 *
 * @throws {AgentError} `usage`
 */
export function parseAddress(text: string): Multiaddr {
  try {
    return multiaddr(text)
  } catch (cause) {
    throw new AgentError('usage', `${text} is not a multiaddr: ${reasonOf(cause)}`, {
      cause,
      next: 'Write it like /ip4/192.0.2.7/tcp/7477 or /dns4/host.example/tcp/7477/p2p/12D3Koo...',
    })
  }
}

function isIn(list: BlockList, address: Multiaddr): boolean {
  const host = address.getComponents().find(({ code }) => code === CODE_IP4 || code === CODE_IP6)?.value
  const family = host === undefined ? 0 : isIP(host)
  return host !== undefined && family !== 0 && list.check(host, family === 4 ? 'ipv4' : 'ipv6')
}

function localNetworks(): BlockList {
  const list = new BlockList()
  for (const { address, cidr, family, internal } of Object.values(networkInterfaces()).flatMap((all) => all ?? [])) {
    if (!internal && cidr !== null) {
      list.addSubnet(address, Number(cidr.split('/')[1]), family === 'IPv4' ? 'ipv4' : 'ipv6')
    }
  }
  return list
}

function blocks(...subnets: [address: string, prefix: number, family: 'ipv4' | 'ipv6'][]): BlockList {
  const list = new BlockList()
  for (const [address, prefix, family] of subnets) list.addSubnet(address, prefix, family)
  return list
}

/** With the peer id at its end, if it has none. */
export function withPeer(address: Multiaddr, peer: { toString(): string }): Multiaddr {
  return peerIdIn(address) === undefined ? address.encapsulate(`/p2p/${peer.toString()}`) : address
}
