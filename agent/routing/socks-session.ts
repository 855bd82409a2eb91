/**
 * One client that speaks SOCKS 5 (RFC 1928): CONNECT joins its connection with a tunnel; UDP ASSOCIATE gives it a port for datagrams, as long
 * as its connection stays. Without a password: who may connect to loopback may use the agent's other ways in, too.
 *
 * SOCKS has a number for a refusal and no words: those go to the log.
 */
import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import type { Socket } from 'node:net'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { DatagramFlows } from './datagram-flows.ts'
import { type Destinations, destinationOf, refusalOf } from './destination.ts'
import type { TunnelDialer } from './dialer.ts'
import {
  NO_AUTHENTICATION,
  NO_METHOD,
  REQUEST_BYTES_MAX,
  readDatagram,
  readGreeting,
  readRequest,
  type SocksAddress,
  SocksFault,
  SUCCEEDED,
  writeDatagram,
  writeMethod,
  writeReply,
} from './socks-messages.ts'
import { splice } from './splice.ts'

/** A client on this machine says what it wants at once. */
export const HANDSHAKE_MS_MAX = 10_000
/** To open a tunnel, with all instances that are tried. */
export const DIAL_MS_MAX = 30_000

export type SocksDeps = {
  destinations: Destinations
  dialer: TunnelDialer
  /** For all that is said before a tunnel is opened. */
  handshakeMs: number
  log: Log
}

/**
 * Serves one connection to its end; never throws. In order: read the methods, choose none (no authentication), read the request, then
 * answer it by what it asks for. `gone` fires when the connection is closed or the proxy stops.
 */
export async function serveSocks(socket: Socket, deps: SocksDeps, gone: AbortSignal): Promise<void> {
  let asked: SocksAddress | undefined
  try {
    const limit = AbortSignal.any([gone, AbortSignal.timeout(deps.handshakeMs)])
    const methods = await read(socket, readGreeting, limit)
    if (!methods.includes(NO_AUTHENTICATION)) return void socket.end(writeMethod(NO_METHOD))
    socket.write(writeMethod(NO_AUTHENTICATION))
    const request = await read(socket, readRequest, limit)
    asked = request
    if (request.command === 'udp-associate') return await associate(socket, request, deps, gone)
    const target = destinationOf(request, 'stream', deps.destinations)
    const tunnel = await deps.dialer.open(target, AbortSignal.any([gone, AbortSignal.timeout(DIAL_MS_MAX)]))
    socket.write(writeReply(SUCCEEDED))
    await splice(socket, tunnel)
  } catch (error) {
    if (gone.aborted) return void socket.destroy()
    const { socks, text } = error instanceof SocksFault ? { socks: error.reply, text: error.message } : refusalOf(error)
    deps.log.info({ way: 'socks', host: asked?.host, port: asked?.port, reason: text }, 'proxy.refused')
    socket.end(writeReply(socks))
  }
}

/** Waits until `reader` has a whole message, and leaves what comes after it to the next reader. */
function read<T>(
  socket: Socket,
  reader: (bytes: Uint8Array) => { value: T; length: number } | undefined,
  signal: AbortSignal,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let bytes = Buffer.alloc(0)
    const done = (act: () => void) => {
      socket.off('readable', look)
      socket.off('close', closed)
      signal.removeEventListener('abort', aborted)
      act()
    }
    const closed = () => done(() => reject(new Error('the client hung up')))
    const aborted = () => done(() => reject(signal.reason as Error))
    const look = () => {
      for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
        bytes = Buffer.concat([bytes, chunk])
        try {
          const message = reader(bytes)
          if (message !== undefined) {
            const rest = bytes.subarray(message.length)
            return done(() => {
              if (rest.byteLength > 0) socket.unshift(rest)
              resolve(message.value)
            })
          }
          if (bytes.byteLength > REQUEST_BYTES_MAX) throw new SocksFault(1, 'this is no SOCKS 5')
        } catch (error) {
          return done(() => reject(error as Error))
        }
      }
      if (socket.readableEnded) closed()
    }
    if (signal.aborted) return reject(signal.reason as Error)
    signal.addEventListener('abort', aborted, { once: true })
    socket.once('close', closed)
    socket.on('readable', look)
    look()
  })
}

/** Datagrams go through a port of their own, for the program that owns the connection: the first that sends from its address. */
async function associate(socket: Socket, asked: SocksAddress, deps: SocksDeps, gone: AbortSignal): Promise<void> {
  const local = (socket.localAddress ?? '127.0.0.1').replace(/^::ffff:/, '')
  const client = (socket.remoteAddress ?? '').replace(/^::ffff:/, '')
  const udp = createSocket(local.includes(':') ? 'udp6' : 'udp4')
  const refused = (error: Error, key: string) =>
    deps.log.info({ way: 'socks-udp', to: key, reason: refusalOf(error).text }, 'proxy.refused')
  using flows = new DatagramFlows(refused)
  try {
    await new Promise<void>((resolve, reject) => {
      udp.once('error', reject)
      udp.bind({ address: local, port: 0, exclusive: true }, resolve)
    })
    udp.on('error', (error) => deps.log.debug({ reason: error.message }, 'proxy.udp'))
    let sender = asked.port === 0 ? undefined : asked.port
    udp.on('message', (bytes, from) => {
      sender ??= from.port
      const datagram = from.address === client && from.port === sender ? readDatagram(bytes) : undefined
      if (datagram === undefined) return
      const { host, port } = datagram
      const open = async (signal: AbortSignal) =>
        await deps.dialer.openDatagrams(destinationOf({ host, port }, 'datagrams', deps.destinations), signal)
      const reply = (data: Uint8Array) => send(udp, writeDatagram({ host, port }, data), from)
      flows.send(`${host}:${port}`, datagram.data, open, reply)
    })
    const bound = udp.address()
    socket.write(writeReply(SUCCEEDED, { host: bound.address, port: bound.port }))
    // Nothing more comes on the connection, but that it ends.
    socket.resume()
    await new Promise<void>((resolve) => {
      socket.once('end', resolve)
      socket.once('close', () => resolve())
      gone.addEventListener('abort', () => resolve(), { once: true })
    })
    socket.end()
  } finally {
    udp.close()
  }
}

function send(udp: UdpSocket, bytes: Uint8Array, to: { address: string; port: number }): void {
  try {
    // A program that has gone away is no error.
    udp.send(bytes, to.port, to.address, () => undefined)
  } catch (error) {
    // Closed in between.
    void reasonOf(error)
  }
}
