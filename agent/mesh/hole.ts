/**
 * One attempt to come through the routers between this node and a member that a relay connects it with (protocols/punch/spec.md). What was opened for
 * it is closed when it fails, and with the connection when it does not.
 */
import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:dgram'
import type { Stream } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { WireError } from '../../protocols/error.ts'
import {
  decodePunchOffer,
  decodePunchStep,
  encodePunchOffer,
  encodePunchStep,
  PUNCH_TAG_BYTES,
  PUNCH_WORD_BYTES_MAX,
  type PunchOffer,
  type PunchPlan,
  type PunchRefusal,
  planOf,
} from '../../protocols/punch/punch.ts'
import type { Place } from '../../protocols/reflect/reflect.ts'
import { Prelude } from './prelude.ts'
import { PunchProxy } from './punch-proxy.ts'
import { ManySockets, probe, sendTag } from './punch-sockets.ts'
import type { PunchedListener, Quic } from './quic.ts'
import { openSocket, type Reflections } from './reflections.ts'

/** TLS, hello and a lost datagram or two. */
const DIAL_MS_MAX = 6_000
/** From QUIC's own socket, where the other side was told of it: else from the one that made the hole, through loopback. */
const NATIVE_MS_MAX = 2_500

export type HoleDeps = {
  reflections: Pick<Reflections, 'askFrom' | 'quicFrom'>
  quic: Pick<Quic, 'dialPunched' | 'listenPunched'>
  /** Whether datagrams may be sent to an address that a member names. */
  mayReach: (address: string) => boolean
}

/** How it ended; `relay`: no way is known between two symmetric routers. */
export type Dug = 'punched' | 'relay' | 'missed' | 'failed' | PunchRefusal

/** A socket and where it is seen. */
type Spot = { socket: Socket; offer: PunchOffer }
type Dig = {
  stack: AsyncDisposableStack
  words: Words
  spot: Spot
  theirs: PunchOffer
  peer: string
  deps: HoleDeps
  signal: AbortSignal
}

/** As the one that begins. The stream is opened when there is something to say on it. */
export async function openHole(
  peer: string,
  open: () => Promise<Stream>,
  deps: HoleDeps,
  signal: AbortSignal,
): Promise<Dug> {
  await using stack = new AsyncDisposableStack()
  const [spot, quic] = await Promise.all([takeSpot(stack, deps, signal), deps.reflections.quicFrom(signal)])
  if (typeof spot === 'string') return spot
  const { offer } = spot
  // The other side lets QUIC's own socket in, too.
  if (offer.router === 'fixed' && quic?.address === offer.address.join('.')) offer.quicPort = quic.port
  const stream = await open()
  return await onStream(stream, async () => {
    const words = new Words(stream, signal)
    await words.say(encodePunchOffer(spot.offer))
    const theirs = decodePunchOffer(await words.hear())
    if (typeof theirs === 'string') return theirs
    return await dig(planOf(spot.offer.router, theirs.router, true), { stack, words, spot, theirs, peer, deps, signal })
  })
}

/** As the other one; `refusal` is said instead of an offer. */
export async function answerHole(
  peer: string,
  stream: Stream,
  deps: HoleDeps,
  signal: AbortSignal,
  refusal?: PunchRefusal,
): Promise<Dug> {
  await using stack = new AsyncDisposableStack()
  return await onStream(stream, async () => {
    const words = new Words(stream, signal)
    const theirs = decodePunchOffer(await words.hear())
    const spot = refusal ?? (typeof theirs === 'string' ? 'unknown' : await takeSpot(stack, deps, signal))
    await words.say(encodePunchOffer(typeof spot === 'string' ? spot : spot.offer))
    if (typeof spot === 'string' || typeof theirs === 'string') return typeof spot === 'string' ? spot : 'unknown'
    return await dig(planOf(spot.offer.router, theirs.router, false), {
      stack,
      words,
      spot,
      theirs,
      peer,
      deps,
      signal,
    })
  })
}

async function onStream(stream: Stream, run: () => Promise<Dug>): Promise<Dug> {
  try {
    const dug = await run()
    await stream.close()
    return dug
  } catch (error) {
    stream.abort(error as Error)
    throw error
  }
}

async function takeSpot(stack: AsyncDisposableStack, deps: HoleDeps, signal: AbortSignal): Promise<Spot | 'no-udp'> {
  const socket = await openSocket()
  stack.defer(() => closed(socket))
  const { kind, seen, mappings } = await deps.reflections.askFrom(socket, signal)
  const common = { tag: Uint8Array.from(randomBytes(PUNCH_TAG_BYTES)) }
  if (kind === 'symmetric') {
    const address = mappings.map((one) => one.seen.address).find((one) => deps.mayReach(one))
    if (address === undefined) return 'no-udp'
    return { socket, offer: { router: 'symmetric', address: bytesOf(address), ...common } }
  }
  if (seen === undefined || !deps.mayReach(seen.address)) return 'no-udp'
  return { socket, offer: { router: 'fixed', address: bytesOf(seen.address), port: seen.port, ...common } }
}

async function dig(plan: PunchPlan, work: Dig): Promise<Dug> {
  const { words, theirs, deps } = work
  if (plan === 'relay') return 'relay'
  const address = theirs.address.join('.')
  if (!deps.mayReach(address)) {
    await words.say(encodePunchStep('failed'))
    throw new WireError('refused', `${address} is no address to send datagrams to`)
  }
  try {
    return plan.role === 'dial' ? await dial(plan.many, work) : await listen(plan.many, work)
  } catch (error) {
    // The other side waits for a word, if it still listens.
    await words.say(encodePunchStep('failed')).catch(() => undefined)
    throw error
  }
}

async function listen(many: boolean, { stack, words, spot, theirs, peer, deps, signal }: Dig): Promise<Dug> {
  const { socket, offer } = spot
  if (many) {
    const step = decodePunchStep(await words.hear())
    if (step !== 'ready') return 'failed'
    const tags = { own: offer.tag, peers: theirs.tag }
    const met = await probe(socket, tags, theirs.address.join('.'), signal)
    if (met === undefined) {
      await words.say(encodePunchStep('missed'))
      return 'missed'
    }
  } else {
    const place = placeOf(theirs)
    await sendTag(socket, offer.tag, place)
    const { quicPort = place.port } = theirs as { quicPort?: number }
    if (quicPort !== place.port) await sendTag(socket, offer.tag, { ...place, port: quicPort })
  }
  const { port } = socket.address()
  await closed(socket)
  const listener = stack.use(await deps.quic.listenPunched(port, peer))
  await words.say(encodePunchStep('ready'))
  const step = decodePunchStep(await words.hear())
  if (step !== 'done') return 'failed'
  await keepWith(await inTime(listener.arrived, signal), stack)
  return 'punched'
}

async function dial(many: boolean, work: Dig): Promise<Dug> {
  const { stack, words, spot, theirs, peer, deps, signal } = work
  const place = placeOf(theirs)
  let { socket } = spot
  if (many) {
    await closed(socket)
    await using sockets = await ManySockets.open({ own: spot.offer.tag, peers: theirs.tag }, place)
    await words.say(encodePunchStep('ready'))
    const step = decodePunchStep(await words.hear())
    if (step !== 'ready') return step === 'missed' ? 'missed' : 'failed'
    socket = await inTime(sockets.met, signal)
    const met = socket
    stack.defer(() => closed(met))
  } else {
    await sendTag(socket, spot.offer.tag, place)
    if (decodePunchStep(await words.hear()) !== 'ready') return 'failed'
  }
  const isSeen = spot.offer.router === 'fixed' && spot.offer.quicPort !== undefined
  const native = isSeen ? await dialFrom(place, peer, deps, signal, NATIVE_MS_MAX).catch(() => undefined) : undefined
  if (native !== undefined) await closed(socket)
  else {
    const proxy = stack.use(await PunchProxy.open(socket, place))
    const near = { address: '127.0.0.1', port: proxy.port }
    await keepWith(await dialFrom(near, peer, deps, signal, DIAL_MS_MAX), stack)
  }
  await words.say(encodePunchStep('done'))
  return 'punched'
}

function dialFrom({ address, port }: Place, peer: string, deps: HoleDeps, signal: AbortSignal, msMax: number) {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(msMax)])
  return deps.quic.dialPunched(multiaddr(`/ip4/${address}/udp/${port}/quic-v1/p2p/${peer}`), peer, limited)
}

/** From now on what was opened is closed when the connection is. */
async function keepWith(connection: Awaited<PunchedListener['arrived']>, stack: AsyncDisposableStack): Promise<void> {
  const kept = stack.move()
  const end = () => void kept.disposeAsync().catch(() => undefined)
  connection.addEventListener('close', end, { once: true })
  if (connection.status !== 'open') end()
}

/** The frames on the stream. */
class Words {
  readonly #prelude: Prelude
  readonly #signal: AbortSignal

  constructor(stream: Stream, signal: AbortSignal) {
    this.#prelude = new Prelude(stream)
    this.#signal = signal
  }

  say(payload: Uint8Array): Promise<void> {
    return this.#prelude.write(payload, this.#signal)
  }

  hear(): Promise<Uint8Array> {
    return this.#prelude.read(this.#signal, PUNCH_WORD_BYTES_MAX)
  }
}

function placeOf(offer: PunchOffer): Place {
  if (offer.router !== 'fixed') throw new Error('a symmetric router shows nobody in one place')
  return { address: offer.address.join('.'), port: offer.port }
}

function bytesOf(address: string): Uint8Array {
  return Uint8Array.from(address.split('.').map(Number))
}

/** Closed sockets are closed again at the end. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    try {
      socket.close(() => resolve())
    } catch {
      resolve()
    }
  })
}

async function inTime<T>(waited: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted()
  const over = Promise.withResolvers<never>()
  const give = () => over.reject(signal.reason as Error)
  signal.addEventListener('abort', give, { once: true })
  try {
    return await Promise.race([waited, over.promise])
  } finally {
    signal.removeEventListener('abort', give)
  }
}
