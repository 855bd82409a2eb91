/**
 * Serves the local API on a unix socket, from start() until disposed. Whoever may connect may do everything: the permissions of the
 * socket are the access control.
 *
 * A request whose client hangs up is aborted. Errors are `{ error: { code, message, next } }`; one that is not an AgentError is a fault
 * of the agent, logged here with its stack.
 */
import { once } from 'node:events'
import { Readable } from 'node:stream'
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { z } from 'zod'
import { AgentError, type AgentErrorCode, reasonOf } from '../error.ts'
import { sendBytes } from '../http/sending.ts'
import type { Log } from '../log.ts'
import { SCHEMALESS } from '../schemaless.ts'
import type { AgentApi } from './agent-api.ts'
import type { BlobReader } from './blob-reader.ts'
import { API_PREFIX, type ErrorBody } from './contract.ts'
import { openApi } from './openapi.ts'
import type { Call, Route, WorkEvent } from './route.ts'
import { routes } from './routes.ts'
import { SocketPlace } from './socket-place.ts'

/** A JSON request is a few short strings. Uploads are not held to this: the blobs' quota bounds them. */
const BODY_BYTES_MAX = 64 * 1024
/** A client on this machine sends its headers at once. There is no limit for the whole request: an upload takes as long as it takes. */
const HEADERS_MS_MAX = 10_000
/** Node looks for those who are later than that every so often: by its default a slow client has half a minute more. */
const LATE_EVERY_MS = 2_000
/** Between two requests of a client that keeps its connection. */
const KEEP_ALIVE_MS = 5_000
/** People, scripts and a dashboard. Those beyond are refused, so that nobody uses up the file descriptors. */
const CONNECTIONS_MAX = 128
/** The longest `ref`, percent-encoded. */
const PARAM_LENGTH_MAX = 1_536
/** Of a line of progress; people see no more, and lines cost. */
const PROGRESS_MS_MIN = 100
/** Answers that are under way when the agent stops are aborted, and have this long to say so. */
const CLOSE_MS_MAX = 1_000

/** 499 is nginx's: the client went away, so nobody reads it. */
const STATUS: Record<AgentErrorCode, number> = {
  failed: 500,
  usage: 400,
  'not-running': 503,
  'not-allowed': 403,
  'not-found': 404,
  taken: 409,
  corrupt: 502,
  limit: 507,
  cancelled: 499,
}

export type ApiServerOptions = {
  socket: string
  /** Of the socket: 0o600 for a person's agent, 0o660 for a service with a group. */
  mode: number
  api: AgentApi
  log: Log
  /** Says what an error that is no AgentError means, if that is known: it becomes one. */
  explain?: (error: unknown) => unknown
}

export class ApiServer implements AsyncDisposable {
  readonly #app: FastifyInstance
  readonly #place: SocketPlace
  readonly #work: Work

  private constructor(app: FastifyInstance, place: SocketPlace, work: Work) {
    this.#app = app
    this.#place = place
    this.#work = work
  }

  /** @throws {AgentError} `taken` when another agent answers on the socket. */
  static async start({ socket, mode, api, log, explain = (error) => error }: ApiServerOptions): Promise<ApiServer> {
    const place = await SocketPlace.claim(socket)
    const work = new Work()
    const app = makeApp(api, { log, work, explain })
    try {
      await app.listen({ path: place.temporaryPath })
      place.publish(mode)
    } catch (error) {
      await app.close()
      place[Symbol.dispose]()
      throw error
    }
    return new ApiServer(app, place, work)
  }

  /** Takes no more requests, aborts those under way and waits until they have ended, and removes the socket. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#place[Symbol.dispose]()
    const late = setTimeout(() => this.#app.server.closeAllConnections(), CLOSE_MS_MAX)
    const closed = this.#app.close()
    await this.#work.stop()
    await closed
    clearTimeout(late)
  }
}

/** The answers that are under way: what they use must be there until they have ended. */
class Work {
  readonly #stopping = new AbortController()
  readonly #running = new Set<Promise<unknown>>()
  readonly stopping = this.#stopping.signal

  async run<Reply>(work: Promise<Reply>): Promise<Reply> {
    this.#running.add(work)
    try {
      return await work
    } finally {
      this.#running.delete(work)
    }
  }

  async stop(): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    const ended = Promise.allSettled(this.#running)
    const late = Promise.withResolvers<void>()
    const timer = setTimeout(late.resolve, CLOSE_MS_MAX)
    await Promise.race([ended, late.promise])
    clearTimeout(timer)
  }
}

type Context = { log: Log; work: Work; explain: (error: unknown) => unknown }

function makeApp(api: AgentApi, { log, work, explain }: Context): FastifyInstance {
  const app = fastify({
    ...SCHEMALESS,
    bodyLimit: BODY_BYTES_MAX,
    keepAliveTimeout: KEEP_ALIVE_MS,
    exposeHeadRoutes: false,
    forceCloseConnections: 'idle',
    http: { headersTimeout: HEADERS_MS_MAX, connectionsCheckingInterval: LATE_EVERY_MS },
    requestTimeout: 0,
    routerOptions: { maxParamLength: PARAM_LENGTH_MAX },
    // What the router itself cannot read, such as a broken percent-encoding.
    frameworkErrors: (error, request, reply) => {
      refuse(error, request, reply, log)
    },
  })
  app.server.maxConnections = CONNECTIONS_MAX
  // The stream itself is the body: its reader bounds it.
  app.addContentTypeParser('application/octet-stream', (_request, payload, done) => done(null, payload))
  app.setErrorHandler((error, request, reply) => refuse(explain(error), request, reply, log))
  app.setNotFoundHandler(({ method, url }) => {
    throw new AgentError('usage', `this agent has no ${method} ${url.split('?')[0]}`, {
      next: `GET ${API_PREFIX}/openapi.json lists what it has; a newer command line may want a newer agent.`,
    })
  })
  app.get(`${API_PREFIX}/openapi.json`, openApi)
  for (const route of routes) {
    app.route({
      method: route.method,
      url: route.path,
      ...(route.bodyBytesMax !== undefined && { bodyLimit: route.bodyBytesMax }),
      handler: (request, reply) =>
        work.run(answer(route, api, request, reply, { log, explain, stopping: work.stopping })),
    })
  }
  return app
}

async function answer(
  route: Route,
  api: AgentApi,
  request: FastifyRequest,
  reply: FastifyReply,
  { log, explain, stopping }: Pick<Context, 'log' | 'explain'> & { stopping: AbortSignal },
): Promise<unknown> {
  const signal = AbortSignal.any([stopping, hangUp(reply)])
  const call: Call<unknown> = {
    input: parseInput(route, request),
    upload: request.body instanceof Readable ? request.body : Readable.from([]),
    signal,
    emit: () => undefined,
  }
  switch (route.answers) {
    case 'json':
      return await route.handle(api, call)
    case 'bytes':
      return await answerBytes(await route.handle(api, call), reply, signal)
    case 'events':
    case 'lines': {
      const lines = new Lines(reply)
      try {
        if (route.answers === 'events') await route.handle(api, { ...call, emit: (event) => lines.event(event) })
        else for await (const item of route.handle(api, call)) await lines.write(item, signal)
      } catch (error) {
        if (!lines.begun) throw error
        const told = explain(error)
        logFault(told, request, log)
        lines.event({ type: 'error', ...bodyOf(told) })
      }
      lines.end()
      return reply
    }
  }
}

function parseInput(route: Route, request: FastifyRequest): unknown {
  if (route.takes === 'query and bytes' && !(request.body instanceof Readable))
    throw new AgentError('usage', 'the body of this request is application/octet-stream')
  const from = route.takes === 'json' ? request.body : request.query
  return route.input.parse({ ...(from as object), ...(request.params as object) })
}

/** Fires when the connection closes before the answer is out. */
function hangUp(reply: FastifyReply): AbortSignal {
  const gone = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort(new AgentError('cancelled', 'the client went away'))
  })
  return gone.signal
}

async function answerBytes(blob: BlobReader, reply: FastifyReply, signal: AbortSignal): Promise<FastifyReply> {
  const { sizeBytes } = blob
  reply.type('application/octet-stream').header('content-length', sizeBytes)
  if (blob.readInto !== undefined) {
    try {
      await sendBytes(reply, blob as Required<BlobReader>, { offset: 0, length: sizeBytes }, signal)
    } finally {
      await blob.close?.()
    }
    return reply
  }
  async function* bytes() {
    try {
      yield* blob.read(0, blob.sizeBytes, signal)
    } finally {
      await blob.close?.()
    }
  }
  return await reply.send(Readable.from(bytes(), { objectMode: false }))
}

/** Lines of JSON on a reply, which begins with the first: before it, an error can still be an ordinary one. */
class Lines {
  readonly #reply: FastifyReply
  #progressAt = 0
  begun = false

  constructor(reply: FastifyReply) {
    this.#reply = reply
  }

  /** Progress is thinned out, and left out while the client does not read. */
  event(event: WorkEvent): void {
    if (event.type === 'progress') {
      const now = performance.now()
      const isLast = event.doneBytes >= event.totalBytes
      if (this.#reply.raw.writableNeedDrain || (now - this.#progressAt < PROGRESS_MS_MIN && !isLast)) return
      this.#progressAt = now
    }
    this.#send(event)
  }

  /** Waits while the client is slower than what it asked for. */
  async write(item: unknown, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (!this.#send(item)) await once(this.#reply.raw, 'drain', { signal })
  }

  end(): void {
    this.#begin()
    this.#reply.raw.end()
  }

  #send(item: unknown): boolean {
    this.#begin()
    return this.#reply.raw.write(`${JSON.stringify(item)}\n`)
  }

  #begin(): void {
    if (this.begun) return
    this.begun = true
    this.#reply.hijack()
    this.#reply.raw.writeHead(200, { 'content-type': 'application/x-ndjson' })
  }
}

function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply, log: Log): FastifyReply {
  logFault(error, request, log)
  return reply.code(STATUS[codeOf(error) ?? 'failed']).send(bodyOf(error))
}

/** What the client caused is told to the client only. */
function logFault(error: unknown, { method, url }: FastifyRequest, log: Log): void {
  if (codeOf(error) === undefined) log.error({ err: error, method, url }, 'api.failed')
}

/** undefined for what nobody foresaw. */
function codeOf(error: unknown): AgentErrorCode | undefined {
  if (error instanceof AgentError) return error.code
  if (error instanceof z.ZodError) return 'usage'
  // fastify's own: a body that is too large, or not JSON.
  const { statusCode } = error as { statusCode?: number }
  return statusCode !== undefined && statusCode >= 400 && statusCode < 500 ? 'usage' : undefined
}

function bodyOf(error: unknown): ErrorBody {
  const code = codeOf(error) ?? 'failed'
  if (error instanceof z.ZodError) {
    const message = error.issues.map(({ path, message }) => `${path.join('.') || 'request'}: ${message}`).join('\n')
    return { error: { code, message } }
  }
  const next = error instanceof AgentError ? error.next : undefined
  return { error: { code, message: reasonOf(error), ...(next !== undefined && { next }) } }
}
