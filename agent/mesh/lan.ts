/**
 * Finds agents on the same LAN by multicast DNS (RFC 6762) over IPv4 and IPv6, in the form of libp2p's specification
 * (https://github.com/libp2p/specs/blob/master/discovery/mdns.md) under a service name of our own.
 *
 * Every answer on a LAN reaches everybody, so N nodes that ask every 10 s (libp2p's default) cost N x N answers: 5 idle nodes some
 * 5 MB an hour. A node that arrives asks at once, hears everybody, and is heard by everybody, since its own question makes it answer
 * as well; so a few questions on arrival and a rare one afterwards find the same peers. `ask()` begins such a series again: when the
 * addresses change, or no peer is left.
 *
 * Unlike libp2p's own module it sends on every interface, in both families, and tells public addresses as well. A question is answered in the
 * family that it came in. What it hears is anybody's claim: bounded here, and proven when the peer is dialled.
 */
import { randomBytes } from 'node:crypto'
import type { RemoteInfo, Socket } from 'node:dgram'
import { peerIdFromString } from '@libp2p/peer-id'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { type Answer, AUTHORITATIVE_ANSWER, decode, encode, type Packet } from 'dns-packet'
import type { Log } from '../log.ts'
import { isLoopback, isOurs, peerIdIn } from './addresses.ts'
import { type Family, LanSocket } from './lan-socket.ts'

const SERVICE = '_undernet._udp.local'
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

/** A socket, and when it answered last. */
type End = { readonly socket: LanSocket; answeredMs: number; answerLater: NodeJS.Timeout | undefined }

export class Lan implements AsyncDisposable {
  readonly #options: LanOptions
  readonly #ends: End[] = []
  /** Changes with each start, as the specification wants: nothing is known of us by it. */
  readonly #name = `${randomBytes(16).toString('hex')}.${SERVICE}`
  #timers: NodeJS.Timeout[] = []

  private constructor(options: LanOptions) {
    this.#options = options
  }

  /** Listens and begins to ask. A LAN that cannot be listened on is logged, and leaves the other ways to find peers. */
  static start(options: LanOptions, socket?: Socket): Lan {
    const lan = new Lan(options)
    lan.#open('IPv4', socket)
    lan.#open('IPv6')
    return lan
  }

  /** Asks who is there, now and a few times more, on the interfaces that there are now. */
  ask(): void {
    this.#stopTimers()
    this.#timers = SERIES_MS.map((ms) => setTimeout(() => this.#query(), ms).unref())
    this.#timers.push(setInterval(() => this.#query(), ASK_EVERY_MS).unref())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopTimers()
    for (const { answerLater } of this.#ends) clearTimeout(answerLater)
    await Promise.all(this.#ends.map(({ socket }) => socket[Symbol.asyncDispose]()))
  }

  #open(family: Family, given?: Socket): void {
    const { log } = this.#options
    const heard = (bytes: Uint8Array, from: RemoteInfo) => this.#receive(end, bytes, from)
    const socket = new LanSocket({ family, heard, ready: () => this.ask(), log }, given)
    const end: End = { socket, answeredMs: Number.NEGATIVE_INFINITY, answerLater: undefined }
    this.#ends.push(end)
  }

  #stopTimers(): void {
    for (const timer of this.#timers) clearTimeout(timer)
  }

  #query(): void {
    const question = encode({ type: 'query', questions: [{ name: SERVICE, type: 'PTR' }] })
    for (const { socket } of this.#ends) socket.send(question)
  }

  #receive(end: End, bytes: Uint8Array, from: RemoteInfo): void {
    if (bytes.byteLength > PACKET_BYTES_MAX) return
    const packet = read(bytes)
    if (packet?.type === 'query' && packet.questions?.some(({ name, type }) => name === SERVICE && type === 'PTR')) {
      this.#answerSoon(end)
    }
    const sighting = packet?.type === 'response' ? readAnswer(packet, this.#name) : undefined
    if (sighting === undefined || sighting.peerId === this.#options.peerId) return
    // Only an agent on this machine can mean our loopback.
    const near = isOurs(from.address)
    const addresses = sighting.addresses.filter((address) => near || !isLoopback(address))
    if (addresses.length > 0) this.#options.heard({ peerId: sighting.peerId, addresses })
  }

  #answerSoon(end: End): void {
    if (end.answerLater !== undefined) return
    const waitMs = Math.max(0, end.answeredMs + ANSWER_EVERY_MS - performance.now())
    end.answerLater = setTimeout(() => {
      end.answerLater = undefined
      end.answeredMs = performance.now()
      this.#answer(end)
    }, waitMs).unref()
  }

  #answer({ socket }: End): void {
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
    socket.send(encode({ type: 'response', flags: AUTHORITATIVE_ANSWER, answers, additionals }))
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
