/**
 * Lets QUIC dial from a socket of our own: its native code takes a socket for dialling that nobody can choose, and a hole is one socket's. So
 * it dials a port of loopback, and what comes there goes out by the socket to one place, and back. Nothing else passes in either direction.
 */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { Place } from '../../protocols/reflect/reflect.ts'

const LOOPBACK = '127.0.0.1'
/** A window of QUIC on a fast link; the system may give less. */
const SOCKET_BYTES = 4 * 1024 * 1024
/** What waits to be sent: beyond that datagrams are dropped, as a router does, and QUIC slows down. */
const WAITING_BYTES_MAX = 1024 * 1024
/** QUIC's last words go out after the connection is closed here: without them the peer would wait for IDLE_MS. */
const LINGER_MS = 300

export class PunchProxy implements AsyncDisposable {
  readonly #outer: Socket
  readonly #inner: Socket

  private constructor(outer: Socket, inner: Socket) {
    this.#outer = outer
    this.#inner = inner
  }

  /** The socket is the proxy's from now on, and closed with it. */
  static async open(outer: Socket, place: Place): Promise<PunchProxy> {
    const inner = createSocket('udp4')
    inner.on('error', () => undefined)
    inner.bind({ port: 0, address: LOOPBACK, exclusive: true })
    await once(inner, 'listening')
    for (const socket of [outer, inner]) enlarge(socket)
    let client: number | undefined
    inner.on('message', (bytes: Uint8Array, from: RemoteInfo) => {
      // The first one to come; others of this machine do not get through.
      client ??= from.port
      if (from.port === client) send(outer, bytes, place)
    })
    outer.removeAllListeners('message')
    outer.on('message', (bytes: Uint8Array, from: RemoteInfo) => {
      const isPeer = from.address === place.address && from.port === place.port
      if (isPeer && client !== undefined) send(inner, bytes, { address: LOOPBACK, port: client })
    })
    return new PunchProxy(outer, inner)
  }

  /** To be dialled on loopback. */
  get port(): number {
    return this.#inner.address().port
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await delay(LINGER_MS, undefined, { ref: false })
    this.#outer.close()
    this.#inner.close()
  }
}

function send(socket: Socket, bytes: Uint8Array, { address, port }: Place): void {
  if (socket.getSendQueueSize() < WAITING_BYTES_MAX) socket.send(bytes, port, address, () => undefined)
}

function enlarge(socket: Socket): void {
  try {
    socket.setRecvBufferSize(SOCKET_BYTES)
    socket.setSendBufferSize(SOCKET_BYTES)
  } catch {
    // Then it is as large as the system makes it.
  }
}
