/**
 * xDS v3 over gRPC, for programs of this machine: the aggregated stream (ADS), and a stream for each kind of resource. State of the world; who
 * asks for deltas is told that there are none, and Envoy and gRPC do without.
 *
 * It listens nowhere: the loopback HTTP server gives it the connections that begin as HTTP/2.
 */
import { createServer, type Http2Server, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Directory } from './directory.ts'
import { begin, end, frame, GrpcFault, isGrpc, messages, refuse, STATUS } from './grpc.ts'
import { decodeMessage, encodeMessage, ProtobufFault } from './protobuf.ts'
import { ANY_TYPES, discoveryRequest, discoveryResponse, type ResourceKind } from './xds-schema.ts'
import { type XdsRequest, XdsSession } from './xds-session.ts'

/** Each is a client that holds a copy of all it asked for. */
const STREAMS_MAX = 128
/** A client opens one or a few. */
const STREAMS_PER_CONNECTION_MAX = 16
/** Changes come in bursts: a node that goes takes all its services with it. Clients are to know within a second. */
const GATHER_MS = 50
/** A client that is gone without a word. */
const PING_EVERY_MS = 30_000

const PATHS: Record<string, ResourceKind | 'all'> = {
  '/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources': 'all',
  '/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters': 'clusters',
  '/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints': 'endpoints',
  '/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners': 'listeners',
  '/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes': 'routes',
}

type Client = { session: XdsSession; stream: ServerHttp2Stream; isBehind: boolean }

export class XdsServer implements AsyncDisposable {
  readonly #server: Http2Server
  readonly #directory: Directory
  readonly #log: Log
  readonly #clients = new Set<Client>()
  readonly #connections = new Set<ServerHttp2Session>()
  readonly #forget: () => void
  #gathering: NodeJS.Timeout | undefined

  constructor(directory: Directory, log: Log) {
    this.#directory = directory
    this.#log = log
    this.#server = createServer({
      settings: { maxConcurrentStreams: STREAMS_PER_CONNECTION_MAX },
      maxSessionMemory: 16,
    })
    this.#server.on('session', (connection) => this.#keep(connection))
    this.#server.on('stream', (stream, headers) => {
      stream.on('error', (error) => log.debug({ reason: error.message }, 'xds.broken'))
      if (!isGrpc(headers)) {
        stream.respond({ ':status': 415 }, { endStream: true })
        return
      }
      const path = headers[':path'] ?? ''
      const kind = Object.hasOwn(PATHS, path) ? PATHS[path] : undefined
      if (kind === undefined) refuse(stream, STATUS.unimplemented, `there is no method ${path} here`)
      else if (this.#clients.size >= STREAMS_MAX) refuse(stream, STATUS.unavailable, 'too many streams')
      else void this.#serve(stream, kind === 'all' ? undefined : kind)
    })
    this.#forget = directory.onChange(() => {
      this.#gathering ??= setTimeout(() => this.#tell(), GATHER_MS)
    })
  }

  /** Takes over a connection on which nothing was read yet, or what was read was put back. */
  accept(socket: Socket): void {
    this.#server.emit('connection', socket)
  }

  /** Clients are told that it was not for a fault of theirs, and try again. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget()
    clearTimeout(this.#gathering)
    for (const { stream } of this.#clients) end(stream, STATUS.unavailable, 'the agent stops')
    for (const connection of this.#connections) connection.close()
    await new Promise<void>((resolve) => {
      const late = setTimeout(() => {
        for (const connection of this.#connections) connection.destroy()
      }, 200)
      const look = () => {
        if (this.#connections.size > 0) return
        clearTimeout(late)
        resolve()
      }
      for (const connection of this.#connections) connection.once('close', look)
      look()
    })
  }

  #keep(connection: ServerHttp2Session): void {
    this.#connections.add(connection)
    connection.on('error', (error) => this.#log.debug({ reason: reasonOf(error) }, 'xds.broken'))
    let isAnswered = true
    const pings = setInterval(() => {
      if (!isAnswered) return connection.destroy()
      isAnswered = false
      connection.ping((error) => {
        isAnswered = error === null
      })
    }, PING_EVERY_MS).unref()
    connection.once('close', () => {
      clearInterval(pings)
      this.#connections.delete(connection)
    })
  }

  async #serve(stream: ServerHttp2Stream, only: ResourceKind | undefined): Promise<void> {
    begin(stream)
    const session = new XdsSession(
      this.#directory,
      (response) => {
        if (!stream.destroyed && stream.writable)
          stream.write(frame(encodeMessage(discoveryResponse, response, ANY_TYPES)))
      },
      this.#log,
    )
    const client = { session, stream, isBehind: false }
    this.#clients.add(client)
    stream.on('drain', () => {
      if (client.isBehind) this.#bring(client)
    })
    try {
      // What is wrong with a message is said on the stream, which has to live for that.
      for await (const bytes of messages(stream.iterator({ destroyOnReturn: false })))
        session.request(decodeMessage(discoveryRequest, bytes) as XdsRequest, only)
      end(stream, STATUS.ok)
    } catch (error) {
      if (error instanceof GrpcFault) end(stream, error.status, error.message)
      else if (error instanceof ProtobufFault) end(stream, STATUS.invalidArgument, error.message)
      else if (!stream.destroyed) stream.destroy()
    } finally {
      this.#clients.delete(client)
    }
  }

  #tell(): void {
    this.#gathering = undefined
    for (const client of this.#clients) this.#bring(client)
  }

  /** A client that does not read gets what is true when it does, not all that happened since. */
  #bring(client: Client): void {
    client.isBehind = client.stream.writableNeedDrain
    if (!client.isBehind) void client.session.changed()
  }
}
