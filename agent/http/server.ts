/**
 * The HTTP server on loopback, on which the front-ends put their routes (the Nix binary cache, discovery; more to come). Connections that begin
 * as HTTP/2 are given to whoever speaks it (gRPC of discovery): browsers do not without TLS, so a web page cannot.
 *
 * Any program of this machine may ask it, browsers included, and a web page can point a name of its own at 127.0.0.1. So only
 * requests whose Host is a loopback address or `localhost` are answered.
 */
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { SCHEMALESS } from '../schemaless.ts'

/** Of what is read as a whole. What is pushed to the binary cache is a stream, and counts its own bytes. */
const BODY_BYTES_MAX = 64 * 1024
/** The name of a derivation in a path. */
const PARAMETER_LENGTH_MAX = 300
/** A client on this machine sends its headers at once. */
const HEADERS_MS_MAX = 10_000
/** Node looks for those who are later than that every so often: by its default a slow client has half a minute more. */
const LATE_EVERY_MS = 2_000
/** Nix holds up to 25 connections; this is room for several Nix at once, and a bound on file descriptors. */
const CONNECTIONS_MAX = 256
/** Longer than Nix waits between the narinfos of a closure, so that it keeps its connections. */
const KEEP_ALIVE_MS = 30_000
/** How HTTP/2 begins (RFC 9113, section 3.4), and no request of HTTP/1 does. */
const HTTP2_PREFACE = 'PRI'
/** What is under way when the agent stops is cut after this: systemd waits 5 s for all of it. */
const CLOSE_MS_MAX = 500

export type HttpPlace = { host: string; port: number }

export class HttpServer implements AsyncDisposable {
  /** Where it answers, without a path: `http://127.0.0.1:7478`. */
  readonly url: string
  readonly #app: FastifyInstance
  /** Connections on which nothing was said so far. */
  readonly #undecided: ReadonlySet<Socket>

  private constructor(app: FastifyInstance, url: string, undecided: ReadonlySet<Socket>) {
    this.#app = app
    this.#undecided = undecided
    this.url = url
  }

  /**
   * Listens until disposed. `register` puts the routes on; `http2` takes connections over, and has to close them before this is disposed.
   *
   * @throws {AgentError} `taken` when the port is in use.
   */
  static async start(
    place: HttpPlace,
    register: (app: FastifyInstance) => void,
    log: Log,
    http2?: (socket: Socket) => void,
  ): Promise<HttpServer> {
    const app = fastify({
      ...SCHEMALESS,
      bodyLimit: BODY_BYTES_MAX,
      routerOptions: { maxParamLength: PARAMETER_LENGTH_MAX },
      keepAliveTimeout: KEEP_ALIVE_MS,
      forceCloseConnections: 'idle',
      // In words, as all that is refused here: what the framework says otherwise is in a JSON of its own.
      frameworkErrors: (error, _request, reply) =>
        void (reply as unknown as FastifyReply).code(400).type('text/plain').send(`${error.message}\n`),
      http: { headersTimeout: HEADERS_MS_MAX, connectionsCheckingInterval: LATE_EVERY_MS },
    })
    app.server.maxConnections = CONNECTIONS_MAX
    app.addHook('onRequest', async (request, reply) => {
      if (isLoopbackName(request.host)) return
      await reply.code(421).type('text/plain').send('This is an agent on loopback: ask it as 127.0.0.1 or localhost.\n')
    })
    app.setErrorHandler(async (error, request, reply) => {
      const status = (error as { statusCode?: number }).statusCode ?? 500
      if (status >= 500) log.error({ err: error, method: request.method, url: request.url }, 'http.failed')
      await reply
        .code(status)
        .type('text/plain')
        .send(`${reasonOf(error)}\n`)
    })
    register(app)
    const undecided = http2 === undefined ? new Set<Socket>() : tellApart(app.server, http2)
    try {
      await app.listen({ host: place.host, port: place.port })
    } catch (cause) {
      await app.close()
      throw listenError(place, cause)
    }
    const address = app.server.address()
    const port = typeof address === 'object' && address !== null ? address.port : place.port
    const host = place.host.includes(':') ? `[${place.host}]` : place.host
    return new HttpServer(app, `http://${host}:${port}`, undecided)
  }

  /** Takes no more requests; answers under way have CLOSE_MS_MAX to end. */
  async [Symbol.asyncDispose](): Promise<void> {
    const late = setTimeout(() => this.#app.server.closeAllConnections(), CLOSE_MS_MAX)
    for (const socket of this.#undecided) socket.destroy()
    await this.#app.close()
    clearTimeout(late)
  }
}

/** Looks at the first bytes of each connection, and puts them back. Returns those on which there were none yet. */
function tellApart(server: Server, http2: (socket: Socket) => void): ReadonlySet<Socket> {
  const undecided = new Set<Socket>()
  const listeners = server.listeners('connection') as ((socket: Socket) => void)[]
  server.removeAllListeners('connection')
  server.on('connection', (socket: Socket) => {
    undecided.add(socket)
    let bytes = Buffer.alloc(0)
    const late = setTimeout(() => socket.destroy(), HEADERS_MS_MAX)
    const failed = () => socket.destroy()
    const over = () => {
      undecided.delete(socket)
      clearTimeout(late)
      socket.off('readable', look)
      socket.off('end', failed)
      socket.off('error', failed)
      socket.off('close', over)
    }
    const look = () => {
      const more = socket.read() as Buffer | null
      if (more === null) return
      bytes = Buffer.concat([bytes, more])
      const start = bytes.toString('latin1', 0, HTTP2_PREFACE.length)
      // What is put back is readable at once: not before it is known whom it is for.
      if (start.length < HTTP2_PREFACE.length && HTTP2_PREFACE.startsWith(start)) return
      over()
      socket.unshift(bytes)
      if (start === HTTP2_PREFACE) http2(socket)
      else for (const listener of listeners) listener.call(server, socket)
    }
    socket.on('readable', look)
    socket.once('end', failed)
    socket.once('error', failed)
    socket.once('close', over)
  })
  return undecided
}

/** Of a Host header, with or without a port. */
function isLoopbackName(host: string): boolean {
  const name = host.replace(/:\d+$/, '').toLowerCase()
  return name === 'localhost' || name === '[::1]' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(name)
}

function listenError({ host, port }: HttpPlace, cause: unknown): AgentError {
  const next = 'Stop what uses it (ss -ltnp shows it), or choose another with --http HOST:PORT, or --http off.'
  if ((cause as NodeJS.ErrnoException).code === 'EADDRINUSE') {
    return new AgentError('taken', `the HTTP port ${host}:${port} is in use`, { cause, next })
  }
  return new AgentError('failed', `the HTTP server cannot listen on ${host}:${port}: ${reasonOf(cause)}`, {
    cause,
    next,
  })
}
