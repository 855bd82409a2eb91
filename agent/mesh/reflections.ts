/**
 * Where this node's datagrams seem to come from, as members outside see it (protocols/reflect/spec.md), and what kind of router that
 * tells of. Asked when it is needed; nothing is kept.
 */
import { randomBytes } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { isIPv4, isIPv6 } from 'node:net'
import { networkInterfaces } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import type { Stream } from '@libp2p/interface'
import {
  decodeReflectAnswer,
  decodeReflectSeen,
  encodeQuestion,
  encodeReflectRequest,
  type Place,
  REFLECT_PROTOCOL,
  REFLECT_WORD_BYTES_MAX,
  type ReflectOffer,
  type ReflectRequest,
  readReflection,
} from '../../protocols/reflect/reflect.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { isPublicHost } from './addresses.ts'
import { Prelude } from './prelude.ts'

/** Members that are asked: two tell kinds of routers apart, and one of them may not be reachable by UDP. */
const REFLECTORS_MAX = 4
/** For a key. */
const WORDS_MS_MAX = 3_000
/** Members that are connected with by QUIC to be told where that came from. */
const TOUCHED_MAX = 2
const TOUCH_MS_MAX = 2_000
/** Datagrams get lost: a question is sent again after this, and not waited for longer than that. */
const AGAIN_MS = 200
const ANSWER_MS_MAX = 1_500
/** So many from outside tell kinds of routers apart; then the others have this much time. */
const ANSWERS_ENOUGH = 2
const LAST_MS = 150

/** A member's answer to a question from one socket. */
type Mapping = {
  /** Peer id of who answered. */
  readonly reflector: string
  /** Where it answered. */
  readonly asked: Place
  /** Where the question came from. */
  readonly seen: Place
  readonly rttMs: number
}

/**
 * - `none`: no router between; peers see the machine's own address and port
 * - `endpoint-independent`: the router gives the socket one address and port, whatever the destination: peers can be told of it
 * - `symmetric`: it gives another one to each destination
 * - `no-udp`: members reflect, and nothing came back
 * - `unknown`: nobody to ask, or a single answer, which tells no kinds apart
 */
export type NatKind = 'none' | 'endpoint-independent' | 'symmetric' | 'no-udp' | 'unknown'

export type Reflection = {
  readonly kind: NatKind
  /** Of the socket that was asked from. */
  readonly localPort: number
  /** Where peers see it; undefined when they see it nowhere, or each elsewhere. */
  readonly seen: Place | undefined
  readonly mappings: readonly Mapping[]
  /** Members that said that they reflect. */
  readonly reflectors: number
}

/** A part of the mesh that is one network. */
type AskedScope = {
  connected(): string[]
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
}

export type ReflectionsOptions = {
  /** The networks whose members may be asked. */
  scopes: () => readonly AskedScope[]
  /** The address at the other end of a direct connection. */
  hostOf: (peerId: string) => string | undefined
  /** Connects by QUIC with a peer at an address, beside what there is; whatever comes of it. */
  touchQuic: (peerId: string, host: string, signal: AbortSignal) => Promise<void>
  log: Log
}

type Candidate = { scope: AskedScope; reflector: string; host: string }
type Asked = { reflector: string; host: string; offer: ReflectOffer }
type Words<T> = Pick<Candidate, 'scope' | 'reflector'> & { ask: ReflectRequest; decode: (bytes: Uint8Array) => T }

export class Reflections {
  readonly #options: ReflectionsOptions

  constructor(options: ReflectionsOptions) {
    this.#options = options
  }

  /** By a socket of its own, which is closed then. IPv4 only: with IPv6 there is a filter to pass, not an address to learn. */
  async ask(signal: AbortSignal): Promise<Reflection> {
    const socket = await openSocket()
    try {
      return await this.askFrom(socket, signal)
    } finally {
      socket.close()
    }
  }

  /** By this socket (IPv4, bound), which the caller keeps. Whatever else arrives on it is left alone. */
  async askFrom(socket: Socket, signal: AbortSignal): Promise<Reflection> {
    const asked = await this.#reflectors(signal)
    const mappings: Mapping[] = []
    const enough = new AbortController()
    const limited = AbortSignal.any([signal, enough.signal])
    const note = (mapping: Mapping | undefined) => {
      if (mapping === undefined) return
      mappings.push(mapping)
      const outside = mappings.filter(({ seen }) => isPublicHost(seen.address))
      // Those that are not there are not waited for.
      if (outside.length === ANSWERS_ENOUGH) setTimeout(() => enough.abort(), LAST_MS).unref()
    }
    const questions = asked.flatMap(({ reflector, host, offer }) =>
      offer.ports.map((port) => ask(socket, { reflector, offer, place: { address: host, port } }, limited).then(note)),
    )
    await Promise.all(questions)
    signal.throwIfAborted()
    const localPort = socket.address().port
    const { kind, seen } = judge({ mappings, localPort, own: ownAddresses(), reflectors: asked.length })
    return { kind, localPort, seen, mappings, reflectors: asked.length }
  }

  /**
   * Where QUIC of this node dials from, as members with public addresses see it: its socket is native code's, and asks nobody. So it connects with
   * one, which tells afterwards. Undefined when nobody knows.
   */
  async quicFrom(signal: AbortSignal): Promise<Place | undefined> {
    const { touchQuic } = this.#options
    const outside = this.#candidates().filter(({ host }) => isPublicHost(host))
    for (const { scope, reflector, host } of outside.slice(0, TOUCHED_MAX)) {
      await touchQuic(reflector, host, AbortSignal.any([signal, AbortSignal.timeout(TOUCH_MS_MAX)]))
      const place = await this.#askWords({ scope, reflector, ask: 'quic', decode: decodeReflectSeen }, signal)
      if (place !== undefined && place !== 'absent') return place
    }
    return undefined
  }

  /** Those that gave a key. */
  async #reflectors(signal: AbortSignal): Promise<Asked[]> {
    const asked = this.#candidates()
      .slice(0, REFLECTORS_MAX)
      .map(async ({ scope, reflector, host }) => {
        const offer = await this.#askWords({ scope, reflector, ask: 'key', decode: decodeReflectAnswer }, signal)
        return offer === undefined || typeof offer === 'string' ? [] : [{ reflector, host, offer }]
      })
    return (await Promise.all(asked)).flat()
  }

  /** Members that are connected directly, public ones first, since they see us from outside all routers. */
  #candidates(): Candidate[] {
    const seen = new Set<string>()
    const known = this.#options.scopes().flatMap((scope) =>
      scope.connected().flatMap((reflector) => {
        const host = this.#options.hostOf(reflector)?.replace(/^::ffff:/i, '')
        if (host === undefined || !isIPv4(host) || seen.has(reflector)) return []
        seen.add(reflector)
        return [{ scope, reflector, host }]
      }),
    )
    return known.toSorted((a, b) => Number(isPublicHost(b.host)) - Number(isPublicHost(a.host)))
  }

  /** Undefined from who does not answer, or is of a version that knows nothing of it. */
  async #askWords<T>({ scope, reflector, ask, decode }: Words<T>, outer: AbortSignal): Promise<T | undefined> {
    const signal = AbortSignal.any([outer, AbortSignal.timeout(WORDS_MS_MAX)])
    try {
      const stream = await scope.openStream(reflector, REFLECT_PROTOCOL, signal)
      try {
        const prelude = new Prelude(stream)
        await prelude.write(encodeReflectRequest(ask), signal)
        const answer = decode(await prelude.read(signal, REFLECT_WORD_BYTES_MAX))
        prelude.release()
        await stream.close({ signal })
        return answer
      } catch (error) {
        stream.abort(error as Error)
        throw error
      }
    } catch (error) {
      outer.throwIfAborted()
      this.#options.log.debug({ peerId: reflector, reason: reasonOf(error) }, 'reflector.unanswered')
      return undefined
    }
  }
}

/** An IPv4 socket on all addresses. */
export async function openSocket(port = 0): Promise<Socket> {
  const socket = createSocket('udp4')
  // A socket that fails gets no answers.
  socket.on('error', () => undefined)
  socket.bind({ port, exclusive: true })
  await once(socket, 'listening')
  return socket
}

type Question = { reflector: string; offer: ReflectOffer; place: Place }

/** Undefined when no answer came. */
async function ask(socket: Socket, question: Question, outer: AbortSignal): Promise<Mapping | undefined> {
  const { reflector, offer, place } = question
  const bytes = encodeQuestion(offer, randomBytes(12))
  const answered = new AbortController()
  const signal = AbortSignal.any([outer, answered.signal, AbortSignal.timeout(ANSWER_MS_MAX)])
  const startMs = performance.now()
  let mapping: Mapping | undefined
  const onMessage = (answer: Uint8Array) => {
    const seen = readReflection(offer, bytes, answer)
    if (seen === undefined) return
    mapping = { reflector, asked: place, seen, rttMs: performance.now() - startMs }
    answered.abort()
  }
  socket.on('message', onMessage)
  try {
    while (!signal.aborted) {
      socket.send(bytes, place.port, place.address, () => undefined)
      await delay(AGAIN_MS, undefined, { signal })
    }
  } catch {
    // An answer, or none in time.
  } finally {
    socket.off('message', onMessage)
  }
  return mapping
}

type Judged = {
  mappings: readonly Pick<Mapping, 'seen' | 'asked'>[]
  localPort: number
  own: ReadonlySet<string>
  reflectors: number
}

/** Exported for tests. */
export function judge({ mappings, localPort, own, reflectors }: Judged): Pick<Reflection, 'kind' | 'seen'> {
  if (mappings.length === 0) return { kind: reflectors > 0 ? 'no-udp' : 'unknown', seen: undefined }
  // Members on this side of a router see what is on this side of it.
  const outside = mappings.filter(({ seen }) => isPublicHost(seen.address))
  const others = mappings.filter(({ seen }) => !own.has(seen.address))
  const counted = outside.length > 0 ? outside : others.length > 0 ? others : mappings
  const places = new Set(counted.map(({ seen }) => `${seen.address} ${seen.port}`))
  const [first] = counted
  if (first === undefined || places.size > 1) return { kind: 'symmetric', seen: undefined }
  if (own.has(first.seen.address) && first.seen.port === localPort) return { kind: 'none', seen: first.seen }
  return { kind: counted.length > 1 ? 'endpoint-independent' : 'unknown', seen: first.seen }
}

function ownAddresses(): Set<string> {
  const all = Object.values(networkInterfaces()).flatMap((one) => one ?? [])
  return new Set(all.map(({ address }) => address).filter((address) => isIPv4(address) || isIPv6(address)))
}
