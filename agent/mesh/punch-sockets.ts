/**
 * The datagrams that make holes (protocols/punch/spec.md): tags to a place, tags to many ports, and many sockets that wait to be met. All of it
 * is bounded by the specification, and over when its signal is.
 */
import type { RemoteInfo, Socket } from 'node:dgram'
import { setTimeout as delay } from 'node:timers/promises'
import { PUNCH_PORT_MIN, PUNCH_PROBES_MAX, PUNCH_SOCKETS_MAX, PUNCH_TAG_BYTES } from '../../protocols/punch/punch.ts'
import type { Place } from '../../protocols/reflect/reflect.ts'
import { openSocket } from './reflections.ts'

/** One may be lost. */
const TAGS = 3
/** 4,000 a second: cheap routers keep up. */
const PROBES_BURST = 8
const PROBES_EVERY_MS = 2
/** For the answer to the last probe. */
const ANSWER_MS_MAX = 1_000
/** Routers forget a port that is not used; some after a few seconds. */
const AGAIN_MS = 3_000
const PORT_MAX = 65_535

/** Sends the tag a few times, and resolves when it is on its way: a socket that is closed before that sends nothing. Whether it arrives does not matter. */
export async function sendTag(socket: Socket, tag: Uint8Array, { address, port }: Place): Promise<void> {
  const sent = Array.from({ length: TAGS }, () => new Promise((resolve) => socket.send(tag, port, address, resolve)))
  await Promise.all(sent)
}

type Tags = { readonly own: Uint8Array; readonly peers: Uint8Array }

/** Sends the own tag to ports of an address until the peer's comes back from one of them, which is it; undefined when none does. */
export async function probe(
  socket: Socket,
  tags: Tags,
  address: string,
  signal: AbortSignal,
): Promise<Place | undefined> {
  const met = Promise.withResolvers<Place>()
  let place: Place | undefined
  const onMessage = (bytes: Uint8Array, from: RemoteInfo) => {
    if (place !== undefined || from.address !== address || !isTag(bytes, tags.peers)) return
    const found = { address, port: from.port }
    place = found
    // It may have come by itself, through a router that lets everybody in: now the other side is met, too.
    void sendTag(socket, tags.own, found).then(() => met.resolve(found))
  }
  socket.on('message', onMessage)
  try {
    const ports = randomPorts(PUNCH_PROBES_MAX)
    for (let at = 0; at < ports.length && place === undefined; at += PROBES_BURST) {
      signal.throwIfAborted()
      for (const port of ports.slice(at, at + PROBES_BURST)) socket.send(tags.own, port, address, () => undefined)
      await delay(PROBES_EVERY_MS)
    }
    return await Promise.race([met.promise, delay(ANSWER_MS_MAX, undefined, { signal })])
  } finally {
    socket.off('message', onMessage)
  }
}

/** Many sockets that each send a tag to a place, and the first of them that is met from there. */
export class ManySockets implements AsyncDisposable {
  /** Resolves with a socket that is the caller's from then on. */
  readonly met: Promise<Socket>
  readonly #sockets: Set<Socket>
  readonly #timer: NodeJS.Timeout

  private constructor(sockets: Socket[], tags: Tags, place: Place) {
    this.#sockets = new Set(sockets)
    const met = Promise.withResolvers<Socket>()
    this.met = met.promise
    for (const socket of sockets) {
      socket.on('message', (bytes, from) => {
        if (from.address !== place.address || from.port !== place.port || !isTag(bytes, tags.peers)) return
        void sendTag(socket, tags.own, place)
        met.resolve(socket)
      })
    }
    void this.met.then((socket) => this.#sockets.delete(socket))
    const knock = () => {
      for (const socket of sockets)
        if (this.#sockets.has(socket)) socket.send(tags.own, place.port, place.address, () => undefined)
    }
    knock()
    this.#timer = setInterval(knock, AGAIN_MS).unref()
  }

  static async open(tags: Tags, place: Place): Promise<ManySockets> {
    const opened = await Promise.allSettled(Array.from({ length: PUNCH_SOCKETS_MAX }, () => openSocket()))
    // Fewer than wanted make it less likely that one is met, where a process may have few files open.
    const sockets = opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    return new ManySockets(sockets, tags, place)
  }

  /** Closes those that were not met. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    for (const socket of this.#sockets) socket.close()
    this.#sockets.clear()
  }
}

function isTag(bytes: Uint8Array, tag: Uint8Array): boolean {
  return bytes.byteLength === PUNCH_TAG_BYTES && Buffer.compare(bytes, tag) === 0
}

/** Different ones, in any order. Exported for tests. */
export function randomPorts(count: number): number[] {
  const ports = new Set<number>()
  while (ports.size < count) ports.add(PUNCH_PORT_MIN + Math.floor(Math.random() * (PORT_MAX + 1 - PUNCH_PORT_MIN)))
  return [...ports]
}
