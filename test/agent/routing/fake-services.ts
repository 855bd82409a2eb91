/** Services and a dialler for tests of the ways in: instances as they are set, tunnels as connections to programs on this machine. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net'
import { AgentError } from '../../../agent/error.ts'
import type { DatagramTunnel, Target, Tunnel, TunnelDialer } from '../../../agent/routing/dialer.ts'
import type { Instance, Resolved, ServiceNames } from '../../../agent/routing/services.ts'

export function instance(fields: Partial<Instance> = {}): Instance {
  const made = {
    id: 'bafy',
    network: 'home',
    service: 'web',
    peerId: '12D3KooWnas',
    node: 'nas',
    proto: 'tcp' as const,
    port: 8080,
    labels: {},
    weight: 1,
    state: 'healthy' as const,
    ...fields,
  }
  return made
}

export class FakeServices implements ServiceNames {
  #instances: Instance[] = []
  readonly #listeners = new Set<() => void>()

  set(...instances: Instance[]): void {
    this.#instances = instances
    for (const listener of this.#listeners) listener()
  }

  resolve(name: string): Resolved | undefined {
    const labels = name.split('.')
    if (labels.length === 1) {
      const found = this.list().filter(({ service }) => service === name)
      if (found.length > 1) throw new AgentError('usage', `${found.length} networks have a service ${name}`)
      return found[0]
    }
    const [service, ...rest] = labels.slice(0, -1)
    const [network, node] = rest.reverse()
    if (labels.at(-1) !== 'internal' || rest.length > 2) return undefined
    const instances = this.#instances.filter(
      (one) => one.service === service && one.network === network && (node === undefined || one.node === node),
    )
    if (instances.length === 0 || service === undefined || network === undefined) return undefined
    return { network, service, ...(node !== undefined && { node }), instances }
  }

  list(): Resolved[] {
    const byName = Map.groupBy(this.#instances, ({ service, network }) => `${service} ${network}`)
    return [...byName.values()].map((instances) => ({
      network: instances[0]?.network ?? '',
      service: instances[0]?.service ?? '',
      instances,
    }))
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }
}

/** Leads every service to a port of this machine. */
export class FakeDialer implements TunnelDialer {
  readonly targets: Target[] = []
  readonly #services: FakeServices
  readonly #ports: Record<string, number>
  readonly refusals = new Map<string, Error>()

  constructor(services: FakeServices, ports: Record<string, number>) {
    this.#services = services
    this.#ports = ports
  }

  async open(target: Target): Promise<Tunnel> {
    const socket = netConnect({ port: this.#find(target).port, host: '127.0.0.1', allowHalfOpen: true })
    await once(socket, 'connect')
    return Object.assign(socket, { instance: this.#find(target).instance, path: 'direct' })
  }

  async openDatagrams(target: Target): Promise<DatagramTunnel> {
    const { port, instance: found } = this.#find(target)
    const socket = createSocket('udp4')
    return {
      instance: found,
      path: 'direct',
      send: (bytes) => socket.send(bytes, port, '127.0.0.1', () => undefined),
      onDatagram: (listener) => void socket.on('message', listener),
      onClose: (listener) => void socket.once('close', listener),
      close: () => socket.close(),
    }
  }

  #find(target: Target) {
    this.targets.push(target)
    const refusal = this.refusals.get(target.service)
    if (refusal !== undefined) throw refusal
    const name = [target.service, ...(target.node === undefined ? [] : [target.node]), target.network, 'internal']
    const [found] = this.#services.resolve(name.join('.'))?.instances ?? []
    const port = this.#ports[target.node ?? ''] ?? this.#ports[target.service]
    if (found === undefined || port === undefined) throw new AgentError('not-found', `nobody offers ${target.service}`)
    return { instance: found, port }
  }
}

/** A TCP server on loopback that ends with the test. */
export class TcpServer implements AsyncDisposable {
  readonly port: number
  readonly #server: Server
  readonly #sockets: Set<Socket>

  private constructor(server: Server, sockets: Set<Socket>) {
    this.#server = server
    this.#sockets = sockets
    this.port = (server.address() as { port: number }).port
  }

  static async start(serve: (socket: Socket) => void, host = '127.0.0.1', port = 0): Promise<TcpServer> {
    const sockets = new Set<Socket>()
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket)
      socket.on('error', () => undefined)
      serve(socket)
    })
    server.listen(port, host)
    await once(server, 'listening')
    return new TcpServer(server, sockets)
  }

  /** Says back what it hears. */
  static echo(): Promise<TcpServer> {
    return TcpServer.start((socket) => socket.pipe(socket))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}
