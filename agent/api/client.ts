/**
 * Asks a running agent over its unix socket. Errors of the agent come back as the AgentError that it threw; `not-running` when nobody
 * answers. A connection a request: the command line makes one or two.
 *
 * Node's http is taken by getBuiltinModule, since an import of it costs a short-lived command 50 ms.
 */
import type { ClientRequest, IncomingMessage, RequestOptions } from 'node:http'
import type { Socket } from 'node:net'
import { AgentError, type AgentErrorCode, reasonOf } from '../error.ts'
import { API_PREFIX, type ErrorBody, type ErrorLine, type FetchEvent } from './contract.ts'

/** Of an ordinary answer. Beyond this the agent hangs, and people should hear of it. */
const ANSWER_MS_MAX = 30_000
/** Until a listening agent accepts. */
const CONNECT_MS_MAX = 5_000
/** A line of events is a few KB: the parts of a large closure. */
const LINE_LENGTH_MAX = 16 * 1024 * 1024

export type Query = Readonly<Record<string, string | number | undefined>>
type Method = 'GET' | 'POST' | 'PUT' | 'DELETE'
type Asking = {
  query?: Query
  json?: unknown
  bytes?: AsyncIterable<Uint8Array>
  signal?: AbortSignal | undefined
  /** Work takes as long as it takes. */
  isWork?: boolean
}

export class Client {
  readonly #candidates: () => Promise<readonly string[]>

  /** `candidates` are tried in order: the first on which an agent answers is asked. */
  constructor(candidates: () => Promise<readonly string[]>) {
    this.#candidates = candidates
  }

  async get<Reply>(path: string, query: Query = {}): Promise<Reply> {
    return readJson(await this.#ask('GET', path, { query }))
  }

  async post<Reply>(path: string, json: unknown, signal?: AbortSignal): Promise<Reply> {
    return readJson(await this.#ask('POST', path, { json, signal, isWork: signal !== undefined }))
  }

  async put<Reply>(path: string, json: unknown): Promise<Reply> {
    return readJson(await this.#ask('PUT', path, { json }))
  }

  async delete<Reply>(path: string, query: Query = {}): Promise<Reply> {
    return readJson(await this.#ask('DELETE', path, { query }))
  }

  /** Sends bytes as they come; the answer may come before their end, and ends the sending. */
  async upload<Reply>(
    path: string,
    query: Query,
    bytes: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<Reply> {
    return readJson(await this.#ask('POST', path, { query, bytes, signal, isWork: true }))
  }

  /** With `json`, what is posted for them. */
  async *download(path: string, signal: AbortSignal, json?: unknown): AsyncGenerator<Uint8Array, void, void> {
    const response = await this.#ask(json === undefined ? 'GET' : 'POST', path, { json, signal, isWork: true })
    try {
      for await (const chunk of response) yield chunk as Uint8Array
    } catch (cause) {
      signal.throwIfAborted()
      throw brokenOff(cause)
    }
  }

  /** The lines of an answer, the last of them `done`; an `error` is thrown. */
  async *events<Event extends { type: string } = FetchEvent>(
    path: string,
    json: unknown,
    signal: AbortSignal,
  ): AsyncGenerator<Event, void, void> {
    const response = await this.#ask('POST', path, { json, signal, isWork: true })
    let isDone = false
    for await (const event of parsedLines<Event>(response, signal)) {
      isDone = event.type === 'done'
      yield event
    }
    if (!isDone) throw brokenOff()
  }

  /** The lines of an answer that ends when there are no more. An `error` is thrown. */
  async *lines<Line extends object>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<Line, void, void> {
    yield* parsedLines<Line>(await this.#ask('GET', path, { query, signal, isWork: true }), signal)
  }

  async #ask(method: Method, path: string, asking: Asking): Promise<IncomingMessage> {
    const socket = await this.#connect()
    const response = await exchange(socket, method, path, asking)
    if ((response.statusCode ?? 500) < 400) return response
    throw errorOf(await readJson<ErrorBody>(response))
  }

  async #connect(): Promise<Socket> {
    const candidates = await this.#candidates()
    for (const path of candidates) {
      const socket = await connectTo(path)
      if (socket) return socket
    }
    const looked = candidates.length > 1 ? `looked at ${candidates.join(', ')}` : `on ${candidates[0]}`
    throw new AgentError('not-running', `no agent is running (${looked})`, {
      next: 'Start one with `agent start`, or name its socket with --socket.',
    })
  }
}

/** undefined when nobody listens there. */
function connectTo(path: string): Promise<Socket | undefined> {
  const { connect } = process.getBuiltinModule('node:net')
  return new Promise((resolve, reject) => {
    const socket = connect({ path, timeout: CONNECT_MS_MAX })
    socket.once('connect', () => {
      socket.setTimeout(0)
      socket.removeAllListeners('error')
      resolve(socket)
    })
    socket.once('timeout', () => {
      socket.destroy()
      reject(new AgentError('failed', `the agent on ${path} does not answer`, { next: 'Restart it.' }))
    })
    socket.once('error', (cause: NodeJS.ErrnoException) => {
      if (['ENOENT', 'ECONNREFUSED', 'ENOTDIR', 'ENOTSOCK'].includes(cause.code ?? '')) resolve(undefined)
      else if (cause.code === 'EACCES') {
        const next = 'Run the command as the user who runs the agent, with sudo, or as a member of the socket’s group.'
        reject(new AgentError('not-allowed', `this user may not connect to ${path}`, { cause, next }))
      } else reject(new AgentError('failed', `${path}: ${cause.message}`, { cause }))
    })
  })
}

function exchange(socket: Socket, method: Method, path: string, asking: Asking): Promise<IncomingMessage> {
  const { request } = process.getBuiltinModule('node:http')
  const { query = {}, json, bytes, signal, isWork = false } = asking
  const search = new URLSearchParams()
  for (const [key, value] of Object.entries(query)) if (value !== undefined) search.set(key, String(value))
  const body = json === undefined ? undefined : Buffer.from(JSON.stringify(json))
  const options: RequestOptions = {
    method,
    path: `${API_PREFIX}/${path}${search.size > 0 ? `?${search.toString()}` : ''}`,
    createConnection: () => socket,
    headers: {
      host: 'agent',
      // Closing is ours: an agent that refuses an upload goes on reading until we have seen its answer.
      connection: 'keep-alive',
      ...(body && { 'content-type': 'application/json', 'content-length': body.byteLength }),
      ...(bytes && { 'content-type': 'application/octet-stream', 'transfer-encoding': 'chunked' }),
    },
    ...(signal && { signal }),
  }
  return new Promise((resolve, reject) => {
    const asked = request(options)
    if (!isWork) asked.setTimeout(ANSWER_MS_MAX, () => asked.destroy(new Error('it does not answer')))
    asked.once('response', (response) => {
      response.once('close', () => socket.destroy())
      resolve(response)
    })
    asked.once('error', (cause) => reject(signal?.aborted ? signal.reason : brokenOff(cause)))
    if (bytes === undefined) {
      asked.end(body)
      return
    }
    pump(bytes, asked).catch((cause) => {
      reject(cause)
      asked.destroy()
    })
  })
}

/** Until all is sent, or the agent has answered: it does so early only to refuse. */
async function pump(bytes: AsyncIterable<Uint8Array>, asked: ClientRequest): Promise<void> {
  let isOver = false
  const wake = new EventTarget()
  for (const event of ['response', 'close'] as const)
    asked.once(event, () => {
      isOver = true
      wake.dispatchEvent(new Event('wake'))
    })
  asked.on('drain', () => wake.dispatchEvent(new Event('wake')))
  for await (const chunk of bytes) {
    if (isOver) return
    if (!asked.write(chunk) && !isOver)
      await new Promise((resolve) => wake.addEventListener('wake', resolve, { once: true }))
  }
  asked.end()
}

async function readJson<Reply>(response: IncomingMessage): Promise<Reply> {
  const chunks: Uint8Array[] = []
  try {
    for await (const chunk of response) chunks.push(chunk as Uint8Array)
    return JSON.parse(Buffer.concat(chunks).toString()) as Reply
  } catch (cause) {
    throw brokenOff(cause)
  }
}

async function* linesOf(response: IncomingMessage): AsyncGenerator<string, void, void> {
  let rest = ''
  response.setEncoding('utf8')
  for await (const chunk of response) {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() ?? ''
    if (rest.length > LINE_LENGTH_MAX) throw new Error('a line without an end')
    yield* lines
  }
}

async function* parsedLines<Line extends object>(
  response: IncomingMessage,
  signal: AbortSignal,
): AsyncGenerator<Line, void, void> {
  try {
    for await (const line of linesOf(response)) {
      const item = JSON.parse(line) as Line | ErrorLine
      if ('type' in item && item.type === 'error') throw errorOf(item as ErrorLine)
      yield item as Line
    }
  } catch (cause) {
    signal.throwIfAborted()
    if (cause instanceof AgentError) throw cause
    throw brokenOff(cause)
  }
}

function brokenOff(cause?: unknown): AgentError {
  const reason = cause === undefined ? '' : ` (${reasonOf(cause)})`
  return new AgentError('failed', `the agent broke off the answer${reason}`, {
    cause,
    next: 'See its log, and try again.',
  })
}

function errorOf({ error }: ErrorBody): AgentError {
  const { code, message, next } = error
  return new AgentError(code as AgentErrorCode, message, next === undefined ? {} : { next })
}
