/**
 * Finds agents on the same LAN by multicast DNS over IPv4 (RFC 6762), in the form of libp2p's specification
 * (https://github.com/libp2p/specs/blob/master/discovery/mdns.md) under a service name of our own.
 *
 * Every answer on a LAN reaches everybody, so N nodes that ask every 10 s (libp2p's default) cost N x N answers: 5 idle nodes some
 * 5 MB an hour. A node that arrives asks at once, hears everybody, and is heard by everybody, since its own question makes it answer
 * as well; so a few questions on arrival and a rare one afterwards find the same peers. `ask()` begins such a series again: when the
 * addresses change, or no peer is left.
 *
 * Unlike libp2p's own module it sends on every interface, not on the one of the default route: there may be none, or a VPN has it; and
 * it tells public addresses as well. What it hears is anybody's claim: bounded here, and proven when the peer is dialled.
 */
import { randomBytes } from 'node:crypto'
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { networkInterfaces } from 'node:os'
import { peerIdFromString } from '@libp2p/peer-id'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { type Answer, AUTHORITATIVE_ANSWER, decode, encode, type Packet } from 'dns-packet'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { isLoopback, peerIdIn } from './addresses.ts'

const GROUP = '224.0.0.251'
const PORT = 5353
const SERVICE = '_undernet._udp.local'
/** RFC 6762, section 11: packets are not forwarded, and this shows it. */
const TTL_HOPS = 255
const TTL_SECONDS = 120

/** A series: a packet may be lost, and a switch port takes a second to forward. */
const SERIES_MS = [0, 1_000, 3_000, 9_000]
/** Between series, for a peer whose questions and our answers were all lost. */
const ASK_EVERY_MS = 10 * 60_000
/** RFC 6762, section 6. Questions in between share one answer. */
const ANSWER_EVERY_MS = 1_000
/** As many as fit a packet; nobody has more. */
const ADDRESSES_MAX = 20
/** One TXT string: RFC 6763, section 6.1. */
const TEXT_BYTES_MAX = 255
const TEXT_PREFIX = 'dnsaddr='
/** RFC 6762, section 17. */
const PACKET_BYTES_MAX = 9_000

export type Sighting = { peerId: string; addresses: Multiaddr[] }
export type LanOptions = {
  peerId: string
  /** What to tell, each with our peer id. */
  addresses: () => string[]
  /** Told of each answer, also of one that was heard before. */
  heard: (sighting: Sighting) => void
  log: Log
}

export class Lan implements AsyncDisposable {
  readonly #options: LanOptions
  readonly #socket: Socket
  /** Changes with each start, as the specification wants: nothing is known of us by it. */
  readonly #name = `${randomBytes(16).toString('hex')}.${SERVICE}`
  readonly #joined = new Set<string>()
  #timers: NodeJS.Timeout[] = []
  #answeredMs = Number.NEGATIVE_INFINITY
  #answerLater: NodeJS.Timeout | undefined
  /** Sends follow one another: the interface is a setting of the socket. */
  #sending = Promise.resolve()
  /** Bound, and not disposed. */
  #isOpen = false

  private constructor(options: LanOptions, socket: Socket) {
    this.#options = options
    this.#socket = socket
  }

  /** Listens and begins to ask. A LAN that cannot be listened on is logged, and leaves the other ways to find peers. */
  static start(options: LanOptions, socket = createSocket({ type: 'udp4', reuseAddr: true })): Lan {
    const lan = new Lan(options, socket)
    socket.on('error', (error) => options.log.warn({ reason: error.message }, 'lan.failed'))
    socket.on('message', (bytes, from) => lan.#receive(bytes, from))
    socket.bind(PORT, () => {
      lan.#isOpen = true
      socket.setMulticastTTL(TTL_HOPS)
      lan.ask()
    })
    return lan
  }

  /** Asks who is there, now and a few times more, on the interfaces that there are now. */
  ask(): void {
    this.#stopTimers()
    this.#timers = SERIES_MS.map((ms) => setTimeout(() => this.#query(), ms).unref())
    this.#timers.push(setInterval(() => this.#query(), ASK_EVERY_MS).unref())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOpen = false
    this.#stopTimers()
    clearTimeout(this.#answerLater)
    await this.#sending
    await new Promise<void>((resolve) => this.#socket.close(resolve))
  }

  #stopTimers(): void {
    for (const timer of this.#timers) clearTimeout(timer)
  }

  #query(): void {
    this.#send({ type: 'query', questions: [{ name: SERVICE, type: 'PTR' }] })
  }

  #receive(bytes: Uint8Array, from: RemoteInfo): void {
    if (bytes.byteLength > PACKET_BYTES_MAX) return
    const packet = read(bytes)
    if (packet?.type === 'query' && packet.questions?.some(({ name, type }) => name === SERVICE && type === 'PTR')) {
      this.#answerSoon()
    }
    const sighting = packet?.type === 'response' ? readAnswer(packet, this.#name) : undefined
    if (sighting === undefined || sighting.peerId === this.#options.peerId) return
    // Only an agent on this machine can mean our loopback.
    const near = interfaceAddresses().includes(from.address)
    const addresses = sighting.addresses.filter((address) => near || !isLoopback(address))
    if (addresses.length > 0) this.#options.heard({ peerId: sighting.peerId, addresses })
  }

  #answerSoon(): void {
    if (this.#answerLater !== undefined) return
    const waitMs = Math.max(0, this.#answeredMs + ANSWER_EVERY_MS - performance.now())
    this.#answerLater = setTimeout(() => {
      this.#answerLater = undefined
      this.#answeredMs = performance.now()
      this.#answer()
    }, waitMs).unref()
  }

  #answer(): void {
    const texts = this.#options
      .addresses()
      .map((address) => TEXT_PREFIX + address)
      .filter((text) => Buffer.byteLength(text) <= TEXT_BYTES_MAX)
      .slice(0, ADDRESSES_MAX)
    if (texts.length === 0) return
    const answers: Answer[] = [{ name: SERVICE, type: 'PTR', class: 'IN', ttl: TTL_SECONDS, data: this.#name }]
    const additionals = texts.map(
      (data): Answer => ({ name: this.#name, type: 'TXT', class: 'IN', ttl: TTL_SECONDS, data }),
    )
    this.#send({ type: 'response', flags: AUTHORITATIVE_ANSWER, answers, additionals })
  }

  #send(packet: Packet): void {
    const bytes = encode(packet)
    this.#sending = this.#sending.then(async () => {
      for (const address of interfaceAddresses()) {
        if (this.#isOpen) await this.#sendOn(address, bytes)
      }
    })
  }

  /** An interface that cannot send is no error: it is down, or has no multicast. */
  #sendOn(address: string, bytes: Uint8Array): Promise<void> {
    return new Promise((resolve) => {
      const failed = (error: unknown) => {
        this.#joined.delete(address)
        this.#options.log.debug({ address, reason: reasonOf(error) }, 'lan.unsent')
        resolve()
      }
      try {
        if (!this.#joined.has(address)) {
          this.#joined.add(address)
          this.#join(address)
        }
        this.#socket.setMulticastInterface(address)
        this.#socket.send(bytes, PORT, GROUP, (error) => (error === null ? resolve() : failed(error)))
      } catch (error) {
        failed(error)
      }
    })
  }

  #join(address: string): void {
    try {
      this.#socket.addMembership(GROUP, address)
    } catch (error) {
      // Joined already: by another address of the same interface, or before the interface went and came.
      this.#options.log.debug({ address, reason: reasonOf(error) }, 'lan.join')
    }
  }
}

function read(bytes: Uint8Array): Packet | undefined {
  try {
    return decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  } catch {
    return undefined
  }
}

/** The peer that an answer tells of; undefined for other services, our own answers, and whatever does not parse. */
export function readAnswer(packet: Packet, ownName: string): Sighting | undefined {
  const records = [...(packet.answers ?? []), ...(packet.additionals ?? [])]
  const pointer = records.find((record) => record.type === 'PTR' && record.name === SERVICE)
  if (pointer?.type !== 'PTR' || pointer.data === ownName) return undefined
  const addresses: Multiaddr[] = []
  for (const record of records) {
    if (record.type !== 'TXT' || record.name !== pointer.data) continue
    for (const text of [record.data].flat()) {
      const address = parseText(text.toString())
      if (address !== undefined && addresses.length < ADDRESSES_MAX) addresses.push(address)
    }
  }
  const peerId = addresses[0] === undefined ? undefined : peerIdIn(addresses[0])
  if (peerId === undefined) return undefined
  return { peerId, addresses: addresses.filter((address) => peerIdIn(address) === peerId) }
}

function parseText(text: string): Multiaddr | undefined {
  if (!text.startsWith(TEXT_PREFIX)) return undefined
  try {
    const address = multiaddr(text.slice(TEXT_PREFIX.length))
    peerIdFromString(peerIdIn(address) ?? '')
    return address
  } catch {
    return undefined
  }
}

/** The IPv4 addresses of this machine; loopback only where there is no other. */
function interfaceAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  const ipv4 = all.filter(({ family }) => family === 'IPv4')
  const external = ipv4.filter(({ internal }) => !internal)
  return (external.length > 0 ? external : ipv4).map(({ address }) => address)
}
