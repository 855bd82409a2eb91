/**
 * The proxy on loopback: SOCKS 5 and HTTP on one port, told apart by the first byte. It leads to services of this node's networks and
 * nowhere else: see destination.ts.
 */
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import type { HttpAddress } from '../config/values.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Destinations } from './destination.ts'
import type { TunnelDialer } from './dialer.ts'
import { httpProxy } from './http-proxy.ts'
import { SOCKS_VERSION } from './socks-messages.ts'
import { HANDSHAKE_MS_MAX, serveSocks } from './socks-session.ts'

/** A browser holds some 30, and a load test some hundred; each costs two file descriptors at most. */
const CONNECTIONS_MAX = 1_024
const SOCKS_4 = 4
/** SOCKS 4: rejected or failed. */
const SOCKS_4_REJECTED = Uint8Array.of(0, 0x5b, 0, 0, 0, 0, 0, 0)

type Init = { destinations: Destinations; dialer: TunnelDialer; handshakeMs?: number; log: Log }
/** Who takes over a connection once it is known what its client speaks. */
type Speakers = { http: (socket: Socket) => void; socks: (socket: Socket) => void }

export class ServiceProxy implements AsyncDisposable {
  /** `127.0.0.1:7479`. */
  readonly address: string
  readonly #server: Server
  readonly #stop: AbortController
  readonly #sockets: Set<Socket>

  private constructor(address: string, server: Server, stop: AbortController, sockets: Set<Socket>) {
    this.address = address
    this.#server = server
    this.#stop = stop
    this.#sockets = sockets
  }

  /**
   * Listens until disposed.
   *
   * @throws {AgentError} `taken` when the port is in use.
   */
  static async start({ host, port }: HttpAddress, init: Init): Promise<ServiceProxy> {
    const stop = new AbortController()
    const sockets = new Set<Socket>()
    const { handshakeMs = HANDSHAKE_MS_MAX } = init
    const server = httpProxy({ ...init, handshakeMs }, stop.signal)
    const listeners = server.listeners('connection') as ((socket: Socket) => void)[]
    server.removeAllListeners('connection')
    const speakers: Speakers = {
      http: (socket) => {
        for (const listener of listeners) listener.call(server, socket)
      },
      socks: (socket) => {
        const gone = new AbortController()
        socket.once('close', () => gone.abort())
        void serveSocks(socket, { ...init, handshakeMs }, AbortSignal.any([gone.signal, stop.signal]))
      },
    }
    server.on('connection', (socket: Socket) => {
      sockets.add(socket)
      socket.once('close', () => sockets.delete(socket))
      void serve(socket, speakers, handshakeMs)
    })
    server.maxConnections = CONNECTIONS_MAX
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject)
        server.listen({ host, port, exclusive: true }, resolve)
      })
    } catch (cause) {
      throw listenError(`${host}:${port}`, cause)
    }
    server.on('error', (error) => init.log.warn({ reason: error.message }, 'proxy.accept'))
    const bound = server.address() as { address: string; port: number }
    const shown = bound.address.includes(':') ? `[${bound.address}]` : bound.address
    return new ServiceProxy(`${shown}:${bound.port}`, server, stop, sockets)
  }

  /** Takes nobody new, and cuts the connections that there are. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve))
    this.#stop.abort()
    for (const socket of this.#sockets) socket.resetAndDestroy()
    await closed
  }
}

/** Waits for the first byte, which says what the client speaks. */
async function serve(socket: Socket, speakers: Speakers, handshakeMs: number): Promise<void> {
  socket.on('error', () => undefined)
  const late = setTimeout(() => socket.destroy(), handshakeMs)
  socket.once('close', () => clearTimeout(late))
  const first = await firstByte(socket)
  clearTimeout(late)
  if (first === undefined) return void socket.destroy()
  if (first === SOCKS_4) return void socket.end(SOCKS_4_REJECTED)
  if (first === SOCKS_VERSION) speakers.socks(socket)
  else speakers.http(socket)
}

/** It stays to be read. */
function firstByte(socket: Socket): Promise<number | undefined> {
  return new Promise((resolve) => {
    const done = (byte: number | undefined) => {
      socket.off('readable', look)
      socket.off('end', ended)
      socket.off('close', ended)
      resolve(byte)
    }
    const ended = () => done(undefined)
    const look = () => {
      const chunk = socket.read() as Buffer | null
      if (chunk === null) return
      socket.unshift(chunk)
      done(chunk[0])
    }
    socket.on('readable', look)
    socket.once('end', ended)
    socket.once('close', ended)
  })
}

function listenError(place: string, cause: unknown): AgentError {
  const next = 'Stop what uses it (ss -ltnp shows it), or choose another with --proxy HOST:PORT, or --proxy off.'
  if ((cause as NodeJS.ErrnoException).code === 'EADDRINUSE')
    return new AgentError('taken', `the port of the proxy ${place} is in use`, { cause, next })
  return new AgentError('failed', `the proxy cannot listen on ${place}: ${reasonOf(cause)}`, { cause, next })
}
