/**
 * Tells members where their datagrams come from, from start() until disposed. Wire format: protocols/reflect/spec.md. It has two UDP ports of
 * its own, beside QUIC's, whose socket belongs to native code.
 *
 * Strangers and former members get silence: a question is answered only when it is asked with a key that a member got on a stream.
 */
import { randomBytes } from 'node:crypto'
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { isIPv6 } from 'node:net'
import type { Stream } from '@libp2p/interface'
import {
  answerQuestion,
  decodeReflectRequest,
  encodeReflectAnswer,
  encodeReflectSeen,
  type Place,
  questionId,
  REFLECT_ANSWERS_MAX,
  REFLECT_KEY_MS_MAX,
  REFLECT_PROTOCOL,
  REFLECT_WORD_BYTES_MAX,
  type ReflectKey,
  type ReflectOffer,
  type ReflectRequest,
} from '../../protocols/reflect/reflect.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { Prelude } from './prelude.ts'

/** One round trip of a few bytes. */
const WORDS_MS_MAX = 5_000
/** Keys that are kept: one for each asker, and a fleet that starts at once. */
const KEYS_MAX = 1_024
/** Per connection; an asker needs one. */
const STREAMS_MAX = 2
/** Answers a second to one address: a site behind one router, where everybody starts at once. What is above is dropped. */
const ANSWERS_PER_ADDRESS_MAX = 64
/** Addresses that are counted in a second; then nobody else is answered in it. */
const ADDRESSES_MAX = 4_096
/** A second port tells routers apart that give each destination a port of its own. */
const PORTS = 2
/** Ports that are free on one address and not on the next. */
const PORT_TRIES_MAX = 5

/** A part of the mesh that is one network. */
export type ReflectScope = {
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type ReflectorOptions = {
  /** IP addresses to listen on. */
  hosts: readonly string[]
  /** The first port; the second is the one below. Where one is taken, and for 0, another is used: members are told which. */
  port: number
  /** Where a peer's last QUIC connection came from. */
  quicFrom?: (peerId: string) => Place | undefined
  log: Log
  /** For tests. */
  now?: () => number
}

type Given = ReflectKey & { peerId: string; isMember: (peerId: string) => boolean; untilMs: number; left: number }

export class Reflector implements AsyncDisposable {
  readonly #now: () => number
  readonly #quicFrom: NonNullable<ReflectorOptions['quicFrom']>
  readonly #sockets: Socket[] = []
  #ports: number[] = []
  /** By their ids, oldest first. */
  readonly #keys = new Map<string, Given>()
  /** Answers to each address in this second. */
  readonly #answered = new Map<string, number>()
  #secondMs = 0

  private constructor({ quicFrom = () => undefined, now = Date.now }: ReflectorOptions) {
    this.#quicFrom = quicFrom
    this.#now = now
  }

  /** Resolves when it listens; where it cannot, it refuses whoever asks. */
  static async start(options: ReflectorOptions): Promise<Reflector> {
    const reflector = new Reflector(options)
    try {
      for (let nth = 0; nth < PORTS && options.hosts.length > 0; nth++) {
        const port = options.port === 0 ? 0 : options.port - nth
        reflector.#ports.push(await reflector.#listen(options.hosts, port))
      }
      options.log.info({ ports: reflector.#ports }, 'reflector.listening')
    } catch (error) {
      options.log.warn({ port: options.port, reason: reasonOf(error) }, 'reflector.no-port')
      reflector.#close()
    }
    return reflector
  }

  /** Where it reflects; none when it does not. */
  get ports(): readonly number[] {
    return this.#ports
  }

  /** Gives keys to members of a network until disposed. `isMember` is asked again for each question. */
  async serve(scope: ReflectScope, isMember: (peerId: string) => boolean): Promise<AsyncDisposable> {
    await scope.handle(REFLECT_PROTOCOL, (stream, peerId) => this.#answer(stream, peerId, isMember), {
      maxInboundStreams: STREAMS_MAX,
    })
    return { [Symbol.asyncDispose]: () => scope.unhandle(REFLECT_PROTOCOL) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#close()
  }

  #close(): void {
    for (const socket of this.#sockets.splice(0)) socket.close()
    this.#ports = []
    this.#keys.clear()
  }

  async #answer(stream: Stream, peerId: string, isMember: (peerId: string) => boolean): Promise<void> {
    const prelude = new Prelude(stream)
    const signal = AbortSignal.timeout(WORDS_MS_MAX)
    const request = decodeReflectRequest(await prelude.read(signal, REFLECT_WORD_BYTES_MAX))
    await prelude.write(this.#wordsFor(request, peerId, isMember), signal)
    prelude.release()
    await stream.close({ signal })
  }

  #wordsFor(request: ReflectRequest | 'unknown', peerId: string, isMember: (peerId: string) => boolean): Uint8Array {
    if (request === 'key') return encodeReflectAnswer(this.#offer(peerId, isMember))
    const place = request === 'quic' ? this.#quicFrom(peerId) : undefined
    return (place && encodeReflectSeen(place)) ?? encodeReflectAnswer(request === 'quic' ? 'absent' : 'unknown')
  }

  #offer(peerId: string, isMember: (peerId: string) => boolean): ReflectOffer | 'off' | 'busy' {
    if (this.#ports.length === 0) return 'off'
    const nowMs = this.#now()
    for (const [id, one] of this.#keys)
      if (one.peerId === peerId || one.untilMs <= nowMs || one.left <= 0) this.#keys.delete(id)
    if (this.#keys.size >= KEYS_MAX) return 'busy'
    const key = { id: randomBytes(8), key: randomBytes(32) }
    const untilMs = nowMs + REFLECT_KEY_MS_MAX
    this.#keys.set(key.id.toString('hex'), { ...key, peerId, isMember, untilMs, left: REFLECT_ANSWERS_MAX })
    return { ...key, ports: this.#ports }
  }

  readonly #question = (socket: Socket, bytes: Uint8Array, from: RemoteInfo): void => {
    const id = questionId(bytes)
    const key = id === undefined ? undefined : this.#keys.get(id)
    if (key === undefined || key.left <= 0 || key.untilMs <= this.#now() || !key.isMember(key.peerId)) return
    const answer = answerQuestion(key, bytes, from)
    if (answer === undefined || !this.#hasRoom(from.address)) return
    key.left--
    // What cannot be sent is asked for again.
    socket.send(answer, from.port, from.address, () => undefined)
  }

  #hasRoom(address: string): boolean {
    const secondMs = Math.floor(this.#now() / 1_000)
    if (secondMs !== this.#secondMs) this.#answered.clear()
    this.#secondMs = secondMs
    const count = this.#answered.get(address) ?? 0
    if (count >= ANSWERS_PER_ADDRESS_MAX || (count === 0 && this.#answered.size >= ADDRESSES_MAX)) return false
    this.#answered.set(address, count + 1)
    return true
  }

  /** One port for all addresses: the one wanted, or one that the system chooses. */
  async #listen(hosts: readonly string[], wanted: number): Promise<number> {
    for (let tries = 1; ; tries++) {
      const sockets: Socket[] = []
      let port = tries === 1 ? wanted : 0
      try {
        for (const host of hosts) {
          const socket = createSocket({ type: isIPv6(host) ? 'udp6' : 'udp4', ipv6Only: isIPv6(host) })
          sockets.push(socket)
          socket.on('error', () => undefined)
          socket.bind({ address: host, port, exclusive: true })
          await once(socket, 'listening')
          port = socket.address().port
          socket.on('message', (bytes, from) => this.#question(socket, bytes, from))
          socket.unref()
        }
        this.#sockets.push(...sockets)
        return port
      } catch (error) {
        for (const socket of sockets) socket.close()
        if (tries >= PORT_TRIES_MAX) throw error
      }
    }
  }
}
