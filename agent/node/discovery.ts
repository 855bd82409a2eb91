/**
 * Discovery for other programs, put together: its routes on the loopback HTTP server, and gRPC on the same port, which is loaded when the first
 * client comes.
 */
import type { Socket } from 'node:net'
import { Directory } from '../discovery/directory.ts'
import { registerDiscoveryRoutes } from '../discovery/routes.ts'
import type { XdsServer } from '../discovery/xds-server.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { nameOf } from '../routing/internal-names.ts'
import type { NodeNames } from './names.ts'
import type { NodeRouting } from './routing.ts'

type Init = { routing: Pick<NodeRouting, 'services' | 'get'>; names: NodeNames; log: Log }

export class NodeDiscovery implements AsyncDisposable {
  readonly #directory: Directory
  readonly #log: Log
  #server: Promise<XdsServer> | undefined
  #isOver = false

  constructor({ routing, names, log }: Init) {
    this.#log = log
    this.#directory = new Directory({
      services: routing.services,
      hold: (name) => names.hold(name),
      nameOf,
      zoneIn: (network) => routing.get(network)?.zone(),
    })
  }

  register(app: Parameters<typeof registerDiscoveryRoutes>[0]): void {
    registerDiscoveryRoutes(app, this.#directory)
  }

  /** A connection that begins as HTTP/2. */
  accept(socket: Socket): void {
    socket.on('error', () => undefined)
    if (this.#isOver) return void socket.destroy()
    this.#server ??= import('../discovery/xds-server.ts').then(
      ({ XdsServer }) => new XdsServer(this.#directory, this.#log),
    )
    this.#server.then(
      (server) => (this.#isOver ? socket.destroy() : server.accept(socket)),
      (error: unknown) => {
        this.#log.error({ reason: reasonOf(error) }, 'xds.failed')
        socket.destroy()
      },
    )
  }

  /** Before the HTTP server: it waits for all of its connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true
    await (await this.#server)?.[Symbol.asyncDispose]()
  }
}
