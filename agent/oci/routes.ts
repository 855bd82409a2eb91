/**
 * The OCI registry on loopback HTTP, below `/v2/`: the distribution specification 1.1, its four categories (pull, push, content discovery,
 * content management). What a request asks for is read in endpoints.ts; what is answered is in pull.ts and push.ts.
 *
 * Whoever is on this machine may read. What changes something is for those who may use the agent's socket, and for no web page: browsers
 * send some requests to loopback without asking first, and say from where.
 */
import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { type Asked, sendJson } from './asked.ts'
import { type Endpoint, parseEndpoint } from './endpoints.ts'
import { answerOf, OciError } from './errors.ts'
import type { RepositoryPath } from './names.ts'
import { answerBlob, answerManifest, answerReferrers, answerTags } from './pull.ts'
import {
  answerUpload,
  beginUpload,
  cancelUpload,
  deleteBlob,
  deleteManifest,
  endUpload,
  type PushDeps,
  putManifest,
  takeChunk,
} from './push.ts'
import type { RepositoryName } from './repositories.ts'

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']
/** What a client still sends after it was refused is thrown away for so long, so that it reads the answer and not a reset. */
const LINGER_MS_MAX = 5_000
/** A host name, with a port. */
const NS_PATTERN = /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::\d{1,5})?$/

export type OciDeps = PushDeps & {
  /** Why who connected may not change anything. */
  refusal: (socket: Socket) => Promise<string | undefined>
  log: Log
}

type Answer = (asked: Asked) => Promise<FastifyReply>
type Answers = Partial<Record<string, Answer>>

export function registerOciRoutes(server: FastifyInstance, deps: OciDeps): void {
  const handler = (request: FastifyRequest, reply: FastifyReply) => answer(request, reply, deps)
  void server.register(async (scope) => {
    // Bodies are streams, whatever they say they are.
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
    for (const url of ['/v2', '/v2/*']) scope.route({ method: METHODS, url, exposeHeadRoute: false, handler })
  })
}

async function answer(request: FastifyRequest, reply: FastifyReply, deps: OciDeps): Promise<FastifyReply> {
  const hangUp = new AbortController()
  reply.raw.once('close', () => hangUp.abort(new AgentError('cancelled', 'who asked went away')))
  reply.header('docker-distribution-api-version', 'registry/2.0')
  try {
    const [path = '', search = ''] = (request.raw.url ?? '').split(/\?(.*)/s, 2)
    const endpoint = parseEndpoint(path)
    const query = new URLSearchParams(search)
    const isRead = request.method === 'GET' || request.method === 'HEAD'
    if (endpoint.kind === 'version' && isRead) return await sendJson(reply, 'application/json', {})
    const act = endpoint.kind === 'version' ? undefined : actsOf(endpoint, deps)[isRead ? 'GET' : request.method]
    if (endpoint.kind === 'version' || act === undefined)
      throw new OciError('UNSUPPORTED', `${request.method} is nothing that can be done there`)
    if (!isRead) await refuseStranger(request, deps)
    const name = locate(endpoint.path, query, reply, deps)
    const fault = isRead ? undefined : deps.places.writeFault(name)
    if (fault !== undefined) throw new OciError('DENIED', fault)
    return await act({ request, reply, name, query, hangUp: hangUp.signal })
  } catch (error) {
    return await refuse(request, reply, error, deps.log)
  }
}

/** What each method does; HEAD is as GET. */
function actsOf(endpoint: Exclude<Endpoint, { kind: 'version' }>, deps: OciDeps): Answers {
  const { repositories } = deps
  switch (endpoint.kind) {
    case 'tags':
      return { GET: (asked) => answerTags(asked, repositories) }
    case 'referrers':
      return { GET: (asked) => answerReferrers(asked, endpoint.digest, repositories) }
    case 'blob':
      return {
        GET: (asked) => answerBlob(asked, endpoint.digest, repositories),
        DELETE: (asked) => deleteBlob(asked, endpoint.digest, deps),
      }
    case 'manifest':
      return {
        GET: (asked) => answerManifest(asked, endpoint.reference, repositories),
        PUT: (asked) => putManifest(asked, endpoint.reference, deps),
        DELETE: (asked) => deleteManifest(asked, endpoint.reference, deps),
      }
    case 'uploads':
      return { POST: (asked) => beginUpload(asked, deps) }
    case 'upload':
      return {
        GET: (asked) => answerUpload(asked, endpoint.id, deps),
        PATCH: (asked) => takeChunk(asked, endpoint.id, deps),
        PUT: (asked) => endUpload(asked, endpoint.id, deps),
        DELETE: (asked) => cancelUpload(asked, endpoint.id, deps),
      }
  }
}

/** @throws {OciError} NAME_UNKNOWN */
function locate(
  path: RepositoryPath,
  query: URLSearchParams,
  reply: FastifyReply,
  { places }: Pick<OciDeps, 'places'>,
): RepositoryName {
  const ns = query.get('ns') ?? undefined
  if (ns !== undefined && !NS_PATTERN.test(ns)) throw new OciError('NAME_INVALID', '`ns` is no registry')
  const name = places.locate(path, ns)
  if (name === undefined) {
    const what =
      ns === undefined ? `${path}: no network and no upstream registry begins it` : `the upstream registry ${ns}`
    throw new OciError('NAME_UNKNOWN', `this node does not know ${what}`)
  }
  if (ns !== undefined) reply.header('oci-namespace', ns)
  return name
}

/** @throws {OciError} DENIED */
async function refuseStranger({ raw, headers }: FastifyRequest, { refusal }: OciDeps): Promise<void> {
  const site = headers['sec-fetch-site']
  if (headers.origin !== undefined || (site !== undefined && site !== 'none'))
    throw new OciError('DENIED', 'a web page may change nothing here')
  const fault = await refusal(raw.socket)
  if (fault !== undefined) throw new OciError('DENIED', fault)
}

async function refuse(request: FastifyRequest, reply: FastifyReply, error: unknown, log: Log): Promise<FastifyReply> {
  // The body had begun: its connection was cut.
  if (reply.sent) return reply
  const { status, body } = answerOf(error)
  const isGone = error instanceof AgentError && error.code === 'cancelled'
  const { method, raw } = request
  if (status >= 500 && !isGone && !raw.destroyed)
    log.warn({ method, url: (raw.url ?? '').slice(0, 200), status, reason: reasonOf(error) }, 'oci.failed')
  if (!raw.complete) linger(request, reply)
  reply.code(status).removeHeader('content-length').removeHeader('etag')
  return await sendJson(reply, 'application/json', body)
}

/** A body that nobody wants is read to its end, or for a while: whoever sends it would not see the answer otherwise. */
function linger({ raw }: FastifyRequest, reply: FastifyReply): void {
  reply.raw.once('finish', () => {
    if (raw.complete || raw.destroyed) return
    const late = setTimeout(() => raw.destroy(), LINGER_MS_MAX)
    raw.once('close', () => clearTimeout(late))
    raw.resume()
  })
}
