/**
 * DNS on loopback, by UDP and by TCP (RFC 7766), for the names of our networks: what they are is in dns-zone.ts. A resolver of this machine
 * is told to ask here for them; everything else is refused, so nothing of what a person looks up elsewhere comes here.
 */
import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { createServer, type Server, type Socket } from 'node:net'
import type { HttpAddress } from '../config/values.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { RCODE, readQuery, writeFault, writeReply } from './dns-message.ts'
import { answer, type Zones } from './dns-zone.ts'

/** A resolver keeps one or two. */
const CONNECTIONS_MAX = 64
/** RFC 7766, section 6.2.3: a few seconds, and some who ask again keep it. */
const IDLE_MS = 10_000
/** Of one connection, answered one after the other; what is read beyond waits in the kernel. */
const MESSAGE_BYTES_MAX = 0xffff
/** When any port will do. */
const PORT_TRIES_MAX = 8
/** Being answered at once: more are dropped, and asked again by whoever meant it. */
const QUESTIONS_MAX = 512

export class DnsServer implements AsyncDisposable {
  /** `127.0.0.1:7453`. */
  readonly address: { host: string; port: number }
  readonly #zones: Zones
  readonly #log: Log
  readonly #udp: UdpSocket
  readonly #tcp: Server
  readonly #sockets = new Set<Socket>()
  #underway = 0

  private constructor(zones: Zones, address: HttpAddress, udp: UdpSocket, tcp: Server, log: Log) {
    this.#zones = zones
    this.address = address
    this.#udp = udp
    this.#tcp = tcp
    this.#log = log
  }

  /**
   * Listens until disposed.
   *
   * @throws {AgentError} `taken` when the port is in use.
   */
  static async start(place: HttpAddress, zones: Zones, log: Log): Promise<DnsServer> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await DnsServer.#bind(place, zones, log)
      } catch (cause) {
        // A port that was free for TCP need not be for UDP.
        const isChosen = place.port === 0 && tries < PORT_TRIES_MAX
        if (!isChosen) throw listenError(`${place.host}:${place.port}`, cause)
      }
    }
  }

  static async #bind({ host, port }: HttpAddress, zones: Zones, log: Log): Promise<DnsServer> {
    const tcp = createServer({ noDelay: true })
    const udp = createSocket(host.includes(':') ? 'udp6' : 'udp4')
    try {
      await begun(tcp, () => tcp.listen({ host, port, exclusive: true }))
      const bound = tcp.address() as { address: string; port: number }
      await begun(udp, () => udp.bind({ address: bound.address, port: bound.port, exclusive: true }))
      const server = new DnsServer(zones, { host: bound.address, port: bound.port }, udp, tcp, log)
      server.#listen()
      return server
    } catch (cause) {
      tcp.close()
      udp.close()
      throw cause
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#udp.close()
    await new Promise((resolve) => this.#tcp.close(resolve))
  }

  #listen(): void {
    this.#tcp.maxConnections = CONNECTIONS_MAX
    this.#tcp.on('error', (error) => this.#log.warn({ reason: error.message }, 'dns.failed'))
    this.#udp.on('error', (error) => this.#log.warn({ reason: error.message }, 'dns.failed'))
    this.#udp.on('message', (bytes, from) => void this.#answerUdp(bytes, from))
    this.#tcp.on('connection', (socket) => {
      this.#sockets.add(socket)
      socket.on('error', () => undefined)
      socket.once('close', () => this.#sockets.delete(socket))
      socket.setTimeout(IDLE_MS, () => socket.destroy())
      void this.#answerTcp(socket)
    })
  }

  async #answerUdp(bytes: Uint8Array, from: { address: string; port: number }): Promise<void> {
    if (this.#underway >= QUESTIONS_MAX) return
    const reply = await this.#answer(bytes, true)
    if (reply === undefined) return
    try {
      this.#udp.send(reply, from.port, from.address, () => undefined)
    } catch {
      // Closed in between.
    }
  }

  /** Questions with their length before them, one after the other. */
  async #answerTcp(socket: Socket): Promise<void> {
    let bytes = Buffer.alloc(0)
    try {
      for await (const chunk of socket as AsyncIterable<Buffer>) {
        bytes = Buffer.concat([bytes, chunk])
        while (bytes.byteLength >= 2 && bytes.byteLength >= 2 + bytes.readUInt16BE(0)) {
          const length = bytes.readUInt16BE(0)
          const reply = await this.#answer(bytes.subarray(2, 2 + length), false)
          bytes = bytes.subarray(2 + length)
          if (reply === undefined || reply.byteLength > MESSAGE_BYTES_MAX) return void socket.destroy()
          const prefix = Uint8Array.of(reply.byteLength >> 8, reply.byteLength & 0xff)
          // A client that does not read keeps only itself waiting: the time-out counts what goes out, too.
          if (!socket.write(Buffer.concat([prefix, reply]))) await drained(socket)
        }
      }
    } catch {
      socket.destroy()
    }
  }

  async #answer(bytes: Uint8Array, isUdp: boolean): Promise<Uint8Array | undefined> {
    const read = readQuery(bytes)
    if ('malformed' in read) return writeFault(read.malformed)
    this.#underway += 1
    try {
      return writeReply(read.query, await answer(read.query, this.#zones), isUdp)
    } catch (error) {
      this.#log.error({ err: error, name: read.query.name }, 'dns.failed')
      const { id, question, isRecursive } = read.query
      return writeFault({ rcode: RCODE.failed, id, question, isRecursive })
    } finally {
      this.#underway -= 1
    }
  }
}

function drained(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.once('drain', done)
    socket.once('close', done)
  })
}

function begun(server: Server | UdpSocket, begin: () => unknown): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.once('listening', () => {
      server.off('error', reject)
      resolve()
    })
    begin()
  })
}

function listenError(place: string, cause: unknown): AgentError {
  const next = 'Stop what uses it (ss -lnptu shows it), or choose another with --dns HOST:PORT, or --dns off.'
  if ((cause as NodeJS.ErrnoException).code === 'EADDRINUSE')
    return new AgentError('taken', `the DNS port ${place} is in use`, { cause, next })
  return new AgentError('failed', `DNS cannot listen on ${place}: ${reasonOf(cause)}`, { cause, next })
}
