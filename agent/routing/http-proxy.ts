/**
 * The HTTP half of the proxy: CONNECT (RFC 9110, section 9.3.6), and plain requests for `http://` URLs as old programs and `curl -x` make
 * them, WebSocket upgrades among them. Node's parser reads the requests, strictly; here it is decided where they go.
 *
 * A refusal is a status, a Proxy-Status field (RFC 9209) and a sentence for people.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { type Destinations, destinationOf, refusalOf } from './destination.ts'
import type { Tunnel, TunnelDialer } from './dialer.ts'
import { DIAL_MS_MAX } from './socks-session.ts'
import { splice } from './splice.ts'

/** Not imported: as an ES module it brings all of undici, a tenth of the agent's start. */
const { createServer, request } = process.getBuiltinModule('node:http')

/** Of a request or an answer. Node's own bound, said here so that it is ours. */
const HEADER_BYTES_MAX = 16 * 1024
const HEADERS_MAX = 200
/** A client that keeps its connection for the next request. */
const KEEP_ALIVE_MS = 30_000
const LATE_EVERY_MS = 2_000
const PORT_MAX = 65_535
/** RFC 9110, section 7.6.1, and what only a proxy reads. */
const HOP_BY_HOP = /^(connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade)$/
const PROXY_NAME = 'undernet'

const CLIENT_ERRORS: Record<string, string> = {
  HPE_HEADER_OVERFLOW: '431 Request Header Fields Too Large',
  ERR_HTTP_REQUEST_TIMEOUT: '408 Request Timeout',
}

export type HttpProxyDeps = {
  destinations: Destinations
  dialer: TunnelDialer
  /** For the head of a request. */
  handshakeMs: number
  log: Log
}

/** A server that does not listen yet. `stopping` fires when tunnels have to end. */
export function httpProxy(deps: HttpProxyDeps, stopping: AbortSignal): Server {
  const server = createServer({
    maxHeaderSize: HEADER_BYTES_MAX,
    headersTimeout: deps.handshakeMs,
    connectionsCheckingInterval: Math.min(LATE_EVERY_MS, deps.handshakeMs),
    keepAliveTimeout: KEEP_ALIVE_MS,
    // A request may be an upload of hours.
    requestTimeout: 0,
  })
  server.maxHeadersCount = HEADERS_MAX
  server.on('connect', (asked, socket, head) => void connect(asked, socket, head, deps, stopping))
  server.on('request', (asked, answer) => void forward(asked, answer, deps, stopping))
  server.on('upgrade', (asked, socket, head) => void upgrade(asked, socket, head, deps, stopping))
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    const status = CLIENT_ERRORS[error.code ?? ''] ?? '400 Bad Request'
    if (socket.writable) socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`)
    else socket.destroy()
  })
  return server
}

/** `HOST:PORT` of a CONNECT. Undefined for what is none. */
export function authorityOf(text: string): { host: string; port: number } | undefined {
  const [, bracketed, plain, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9A-Za-z._-]+)):(\d{1,5})$/.exec(text) ?? []
  const host = bracketed ?? plain
  const port = Number(digits)
  return host === undefined || port < 1 || port > PORT_MAX ? undefined : { host, port }
}

/** Of a request in absolute form (RFC 9112, section 3.2.2). Undefined for others, and for other schemes. */
export function absoluteOf(text: string): { host: string; port: number; path: string } | undefined {
  const [, authority = '', path = ''] = /^http:\/\/([^/?#]+)([^#]*)$/i.exec(text) ?? []
  const place = authorityOf(/:\d+$/.test(authority) ? authority : `${authority}:80`)
  return place && { ...place, path: path.startsWith('/') ? path : `/${path}` }
}

async function connect(
  asked: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  deps: HttpProxyDeps,
  stopping: AbortSignal,
) {
  socket.on('error', () => undefined)
  try {
    const place = authorityOf(asked.url ?? '')
    if (place === undefined) throw new AgentError('usage', 'CONNECT takes HOST:PORT')
    const tunnel = await dial(place, deps, goneOf(socket, stopping))
    socket.write('HTTP/1.1 200 Connection established\r\n\r\n')
    if (head.byteLength > 0) socket.unshift(head)
    await splice(socket as Socket, tunnel)
  } catch (error) {
    refuseOn(socket, asked.url ?? '', error, deps.log)
  }
}

async function forward(asked: IncomingMessage, answer: ServerResponse, deps: HttpProxyDeps, stopping: AbortSignal) {
  const gone = goneOf(answer, stopping)
  try {
    const { place, tunnel } = await reach(asked, deps, gone)
    const forwarded = request({
      // One tunnel a request: the next one may go elsewhere.
      createConnection: () => tunnel as unknown as Socket,
      method: asked.method,
      path: place.path,
      setHost: false,
      headers: { ...endToEnd(asked), host: hostOf(place), via: `1.1 ${PROXY_NAME}` },
      maxHeaderSize: HEADER_BYTES_MAX,
    })
    gone.addEventListener('abort', () => tunnel.destroy(), { once: true })
    forwarded.on('error', (error) => refuse(answer, asked.url ?? '', error, deps.log))
    forwarded.on('response', (reply) => {
      answer.writeHead(reply.statusCode ?? 502, reply.statusMessage, { ...endToEnd(reply), via: `1.1 ${PROXY_NAME}` })
      reply.on('error', () => answer.destroy())
      reply.on('close', () => {
        if (!reply.complete) answer.destroy()
      })
      reply.pipe(answer)
    })
    asked.on('error', () => tunnel.destroy())
    asked.pipe(forwarded)
  } catch (error) {
    refuse(answer, asked.url ?? '', error, deps.log)
  }
}

/** What the application answers, and all that follows, goes through as it is. */
async function upgrade(
  asked: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  deps: HttpProxyDeps,
  stopping: AbortSignal,
) {
  socket.on('error', () => undefined)
  try {
    const { place, tunnel } = await reach(asked, deps, goneOf(socket, stopping))
    const kept = Object.entries({ ...endToEnd(asked), host: hostOf(place), via: `1.1 ${PROXY_NAME}` })
    const fields = [...kept, ['connection', 'Upgrade'], ['upgrade', asked.headers.upgrade ?? '']]
    const lines = fields.flatMap(([name, values]) => [values ?? []].flat().map((value) => `${name}: ${value}`))
    tunnel.write(`${asked.method} ${place.path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`, 'latin1')
    if (head.byteLength > 0) socket.unshift(head)
    await splice(socket as Socket, tunnel)
  } catch (error) {
    refuseOn(socket, asked.url ?? '', error, deps.log)
  }
}

async function reach(asked: IncomingMessage, deps: HttpProxyDeps, gone: AbortSignal) {
  const place = absoluteOf(asked.url ?? '')
  if (place === undefined) throw new NotForProxies()
  return { place, tunnel: await dial(place, deps, gone) }
}

async function dial(place: { host: string; port: number }, deps: HttpProxyDeps, gone: AbortSignal): Promise<Tunnel> {
  const target = destinationOf(place, 'stream', deps.destinations)
  return await deps.dialer.open(target, AbortSignal.any([gone, AbortSignal.timeout(DIAL_MS_MAX)]))
}

/** Fires when the client goes away, when its answer is out, and when the agent stops. */
function goneOf(client: Duplex | ServerResponse, stopping: AbortSignal): AbortSignal {
  const gone = new AbortController()
  client.once('close', () => gone.abort())
  if (client.destroyed) gone.abort()
  return AbortSignal.any([gone.signal, stopping])
}

function hostOf({ host, port }: { host: string; port: number }): string {
  return port === 80 ? host : `${host}:${port}`
}

/** The fields of a message that are not for this hop only. */
function endToEnd({ headersDistinct, headers }: IncomingMessage): Record<string, string[]> {
  const named = new Set((headers.connection ?? '').toLowerCase().split(/\s*,\s*/))
  const kept = Object.entries(headersDistinct).filter(([name]) => !HOP_BY_HOP.test(name) && !named.has(name))
  return Object.fromEntries(kept.map(([name, values = []]) => [name, values]))
}

/** A program that takes this for a web server. */
class NotForProxies extends Error {
  constructor() {
    super('This is a proxy: programs use it with CONNECT, or with the whole URL of an http:// service.')
  }
}

type Answer = { status: number; phrase: string; headers: Record<string, string>; body: string }

function answerFor(error: unknown): Answer {
  const { status, proxyError, text } =
    error instanceof NotForProxies
      ? { status: 400, proxyError: 'http_request_error', text: error.message }
      : refusalOf(error)
  const details = text.replace(/[^\x20-\x7e]/g, '?').replace(/["\\]/g, "'")
  const body = `${text}\n`
  return {
    status,
    phrase:
      { 400: 'Bad Request', 403: 'Forbidden', 502: 'Bad Gateway', 504: 'Gateway Timeout' }[status] ?? 'Unavailable',
    headers: {
      'content-type': 'text/plain; charset=utf-8',
      'content-length': String(Buffer.byteLength(body)),
      connection: 'close',
      'proxy-status': `${PROXY_NAME}; error=${proxyError}; details="${details}"`,
    },
    body,
  }
}

function refuse(answer: ServerResponse, url: string, error: unknown, log: Log): void {
  if (answer.destroyed) return
  log.info({ way: 'http', url, reason: reasonOf(error) }, 'proxy.refused')
  if (answer.headersSent) return void answer.destroy()
  const { status, phrase, headers, body } = answerFor(error)
  answer.writeHead(status, phrase, headers).end(body)
}

function refuseOn(socket: Duplex, url: string, error: unknown, log: Log): void {
  if (socket.destroyed) return
  log.info({ way: 'http', url, reason: reasonOf(error) }, 'proxy.refused')
  const { status, phrase, headers, body } = answerFor(error)
  const fields = Object.entries(headers)
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join('')
  socket.end(`HTTP/1.1 ${status} ${phrase}\r\n${fields}\r\n${body}`)
}
