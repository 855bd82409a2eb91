/**
 * The socket of multicast DNS in one family of addresses: sends on every interface that has one of these, not on that of the default route alone,
 * since there may be none, or a VPN has it. In IPv6 an interface is named by its link, where a link-local address is enough.
 */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { networkInterfaces } from 'node:os'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'

const PORT = 5353
/** RFC 6762, section 3. */
const GROUPS = { IPv4: '224.0.0.251', IPv6: 'ff02::fb' } as const
const TYPES = { IPv4: 'udp4', IPv6: 'udp6' } as const
/** RFC 6762, section 11: packets are not forwarded, and this shows it. */
const TTL_HOPS = 255

export type Family = keyof typeof GROUPS
export type LanSocketOptions = {
  family: Family
  heard: (bytes: Uint8Array, from: RemoteInfo) => void
  /** It can send from now on. */
  ready: () => void
  log: Log
}

export class LanSocket implements AsyncDisposable {
  readonly #family: Family
  readonly #log: Log
  readonly #socket: Socket
  readonly #joined = new Set<string>()
  /** Sends follow one another: the interface is a setting of the socket. */
  #sending = Promise.resolve()
  /** Bound, and not disposed. */
  #isOpen = false

  /** A family that cannot be listened on is logged, and leaves the other. */
  constructor({ family, heard, ready, log }: LanSocketOptions, socket?: Socket) {
    this.#family = family
    this.#log = log
    const isSix = family === 'IPv6'
    this.#socket = socket ?? createSocket({ type: TYPES[family], reuseAddr: true, ipv6Only: isSix })
    this.#socket.on('error', (error) => {
      // That a machine has no IPv6 is no news.
      const fields = { family, reason: error.message }
      if (isSix) log.debug(fields, 'lan.failed')
      else log.warn(fields, 'lan.failed')
    })
    this.#socket.on('message', heard)
    this.#socket.bind(PORT, () => {
      this.#isOpen = true
      this.#socket.setMulticastTTL(TTL_HOPS)
      ready()
    })
  }

  /** On the interfaces that there are now. */
  send(bytes: Uint8Array): void {
    this.#sending = this.#sending.then(async () => {
      for (const place of interfacesOf(this.#family)) if (this.#isOpen) await this.#sendOn(place, bytes)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOpen = false
    await this.#sending
    await new Promise<void>((resolve) => this.#socket.close(resolve))
  }

  /** An interface that cannot send is no error: it is down, or has no multicast. */
  #sendOn(place: string, bytes: Uint8Array): Promise<void> {
    return new Promise((resolve) => {
      const failed = (error: unknown) => {
        this.#joined.delete(place)
        this.#log.debug({ address: place, reason: reasonOf(error) }, 'lan.unsent')
        resolve()
      }
      try {
        if (!this.#joined.has(place)) {
          this.#joined.add(place)
          this.#join(place)
        }
        this.#socket.setMulticastInterface(place)
        this.#socket.send(bytes, PORT, GROUPS[this.#family], (error) => (error === null ? resolve() : failed(error)))
      } catch (error) {
        failed(error)
      }
    })
  }

  #join(place: string): void {
    try {
      this.#socket.addMembership(GROUPS[this.#family], place)
    } catch (error) {
      // Joined already: by another address of the same interface, or before the interface went and came.
      this.#log.debug({ address: place, reason: reasonOf(error) }, 'lan.join')
    }
  }
}

/** As sockets name them: an address in IPv4, a link in IPv6. Loopback only where there is no other, and in IPv4. */
function interfacesOf(family: Family): string[] {
  const all = Object.entries(networkInterfaces()).flatMap(([name, addresses]) =>
    (addresses ?? []).filter((one) => one.family === family).map((one) => ({ ...one, name })),
  )
  const external = all.filter(({ internal }) => !internal)
  if (family === 'IPv6') return [...new Set(external.map(({ name }) => `::%${name}`))]
  return (external.length > 0 ? external : all).map(({ address }) => address)
}
