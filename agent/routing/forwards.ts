/**
 * Ports of this machine that lead to a service, each from start() until disposed. Loopback unless somebody says otherwise: whoever can connect
 * to the port uses the service as this node.
 */
import { createSocket, type Socket as DatagramSocket } from 'node:dgram'
import { createServer, isIPv6, type Server, type Socket } from 'node:net'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { DatagramFlows } from './datagram-flows.ts'
import type { Target, TunnelDialer } from './dialer.ts'
import type { Proto, ServiceNames } from './services.ts'
import { splice } from './splice.ts'

/** Until a tunnel is open. Programs that connect wait for a minute or so themselves. */
const OPEN_MS_MAX = 20_000
/** Of one forward; more wait to be accepted. Each costs two descriptors at its ends. */
const CONNECTIONS_MAX = 4_096

export type ForwardOptions = {
  /** `web`, `web.home`, `web.nas.home.internal`. */
  name: string
  host: string
  /** 0 for any that is free. */
  port: number
  /** Where the service is not known yet. */
  proto?: Proto
  /** All connections go to the same instance, while it is there. */
  isSticky: boolean
  /** This node's peer id. */
  self: string
  services: Pick<ServiceNames, 'resolve'>
  dialer: TunnelDialer
  /** Told why a connection was not carried. */
  onRefused: (error: Error) => void
  log: Log
}

export class Forward implements AsyncDisposable {
  readonly #options: ForwardOptions
  readonly #stopping = new AbortController()
  readonly #sockets = new Set<Socket>()
  readonly #flows: DatagramFlows
  #server: Server | undefined
  #datagrams: DatagramSocket | undefined

  private constructor(options: ForwardOptions) {
    this.#options = options
    this.#flows = new DatagramFlows((error) => this.#refused(error))
  }

  /** @throws {AgentError} `taken`, `usage`, `not-allowed` for a port that cannot be listened on */
  static async start(options: ForwardOptions): Promise<Forward> {
    const forward = new Forward(options)
    const proto = options.services.resolve(options.name)?.instances[0]?.proto ?? options.proto ?? 'tcp'
    try {
      await (proto === 'udp' ? forward.#listenDatagrams() : forward.#listen())
    } catch (error) {
      throw listenError(error, options)
    }
    return forward
  }

  get address(): { host: string; port: number; proto: 'tcp' | 'udp' } {
    const address = this.#server?.address() ?? this.#datagrams?.address()
    if (address === undefined || address === null || typeof address === 'string') throw new Error('it does not listen')
    return { host: address.address, port: address.port, proto: this.#datagrams === undefined ? 'tcp' : 'udp' }
  }

  /** Takes no more, and ends what there is. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the forward is over'))
    this.#flows[Symbol.dispose]()
    for (const socket of this.#sockets) socket.destroy()
    const closed = [this.#server, this.#datagrams].map(
      (one) => new Promise<void>((resolve) => (one === undefined ? resolve() : one.close(() => resolve()))),
    )
    await Promise.all(closed)
  }

  #listen(): Promise<void> {
    const { host, port } = this.#options
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true })
    this.#server = server
    server.maxConnections = CONNECTIONS_MAX
    server.on('connection', (socket) => void this.#carry(socket))
    return new Promise((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host, port }, () => {
        server.removeListener('error', reject)
        server.on('error', (error) => this.#refused(error))
        resolve()
      })
    })
  }

  #listenDatagrams(): Promise<void> {
    const { host, port } = this.#options
    const socket = createSocket(isIPv6(host) ? 'udp6' : 'udp4')
    this.#datagrams = socket
    socket.on('message', (bytes, { address, port: from }) => {
      const open = (signal: AbortSignal) => this.#options.dialer.openDatagrams(this.#target(), signal)
      this.#flows.send(`${address} ${from}`, bytes, open, (reply) => socket.send(reply, from, address, () => undefined))
    })
    return new Promise((resolve, reject) => {
      socket.once('error', reject)
      socket.bind(port, host, () => {
        socket.removeListener('error', reject)
        socket.on('error', (error) => this.#refused(error))
        resolve()
      })
    })
  }

  /** Never rejects. */
  async #carry(socket: Socket): Promise<void> {
    this.#sockets.add(socket)
    const gone = new AbortController()
    socket.once('close', () => {
      this.#sockets.delete(socket)
      gone.abort(new AgentError('cancelled', 'the program went away'))
    })
    socket.on('error', () => undefined)
    const signal = AbortSignal.any([this.#stopping.signal, gone.signal, AbortSignal.timeout(OPEN_MS_MAX)])
    try {
      const tunnel = await this.#options.dialer.open(this.#target(), signal)
      await splice(socket, tunnel)
    } catch (error) {
      if (!gone.signal.aborted) this.#refused(error)
      socket.resetAndDestroy()
    }
  }

  /** @throws {AgentError} `not-found`, `usage` */
  #target(): Target {
    const { services, name, isSticky, self } = this.#options
    const found = services.resolve(name)
    if (found === undefined) {
      throw new AgentError('not-found', `nobody offers ${name} now`, {
        next: '`agent service list` shows what there is.',
      })
    }
    const { network, service, node } = found
    return { network, service, ...(node !== undefined && { node }), ...(isSticky && { sticky: self }) }
  }

  #refused(error: unknown): void {
    const told = error instanceof Error ? error : new Error(String(error))
    this.#options.log.debug({ name: this.#options.name, reason: reasonOf(error) }, 'forward.refused')
    this.#options.onRefused(told)
  }
}

function listenError(error: unknown, { host, port }: ForwardOptions): unknown {
  const { code } = error as NodeJS.ErrnoException
  const where = `${isIPv6(host) ? `[${host}]` : host}:${port}`
  if (code === 'EADDRINUSE') {
    return new AgentError('taken', `${where} is in use by another program`, {
      cause: error,
      next: 'Name another port.',
    })
  }
  if (code === 'EACCES') {
    return new AgentError('not-allowed', `listening on ${where} needs privileges`, {
      cause: error,
      next: 'Name a port above 1023.',
    })
  }
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND') {
    return new AgentError('usage', `${host} is not an address of this machine`, {
      cause: error,
      next: 'Leave it out for 127.0.0.1.',
    })
  }
  return error
}
