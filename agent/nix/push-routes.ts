/**
 * What a client writes to the binary cache, below /nix (into the only closed network of this node) and /nix/in/NETWORK: NARs, then
 * narinfos, as http-binary-cache-store.cc sends them. Below /nix/in/NETWORK a narinfo is answered only for what this node has for that
 * network, so that a client sends all that is missing there. Who is refused is told why, in the body that Nix prints.
 */
import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { AgentError, type AgentErrorCode, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { compressionNamed, decompressed } from './compression.ts'
import { formatCacheInfo, formatNarinfo, type Narinfo } from './narinfo.ts'
import { NARINFO_BYTES_MAX } from './narinfo-read.ts'
import { HASH_PART_PATTERN } from './nix32.ts'
import type { Pushes, PushPlace } from './pushes.ts'
import type { SideFiles } from './side-files.ts'

const TEXT = 'text/plain; charset=utf-8'
const STATUS: Partial<Record<AgentErrorCode, number>> = {
  usage: 400,
  corrupt: 400,
  'not-allowed': 403,
  'not-found': 404,
  limit: 507,
}

export type PushDeps = {
  pushes: Pick<Pushes, 'place' | 'putNar' | 'putNarinfo' | 'sizeOfUpload' | 'waiting'>
  sideFiles: Pick<SideFiles, 'put'>
  /** What this node has for a network, by the network's id. */
  local: (hashPart: string, network: string) => Narinfo | undefined
  /** The size of a NAR that is here. */
  sizeHere: (file: string) => Promise<number | undefined>
  /** Why who connected may not push. */
  refusal: (socket: Socket) => Promise<string | undefined>
  storeDirectory: string
  log: Log
}

type File = { Params: { file: string; network?: string } }

export function registerPushRoutes(server: FastifyInstance, deps: PushDeps): void {
  void server.register(async (scope) => {
    // Bodies are streams, whatever they say they are.
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
    for (const base of ['/nix', '/nix/in/:network']) {
      registerWrites(scope, base, deps)
      registerSideWrites(scope, base, deps)
    }
    registerNetworkReads(scope, deps)
  })
}

function registerWrites(scope: FastifyInstance, base: string, deps: PushDeps): void {
  const { pushes } = deps
  scope.put<File>(`${base}/nar/:file`, (request, reply) =>
    taking(request, reply, deps, async (place, hangUp) =>
      pushes.putNar(place, request.params.file, bodyOf(request), hangUp),
    ),
  )
  scope.put<File>(`${base}/:file`, (request, reply) =>
    taking(request, reply, deps, async (place, hangUp) => {
      const { file } = request.params
      const [, hashPart = '', kind] = /^(.*)\.(narinfo|ls)$/.exec(file) ?? []
      if (!HASH_PART_PATTERN.test(hashPart)) throw new AgentError('not-found', `${file.slice(0, 100)} is not kept here`)
      const text = await textOf(request, kind === 'ls', hangUp)
      // Listings are made here, of the NAR itself.
      if (kind === 'narinfo') await pushes.putNarinfo(place, hashPart, text, hangUp)
    }),
  )
}

function registerSideWrites(scope: FastifyInstance, base: string, deps: PushDeps): void {
  type SideFile = { Params: { kind: string; name: string; network?: string } }
  scope.put<SideFile>(`${base}/:kind(^(?:log|realisations)$)/:name`, (request, reply) =>
    taking(request, reply, deps, async (_place, hangUp) => {
      const { kind, name } = request.params
      const encoding = request.headers['content-encoding']
      await deps.sideFiles.put(`${kind}/${name}`, encoding, bodyOf(request), hangUp)
    }),
  )
}

/** A client asks what is here before it writes, and expects what it has written. */
function registerNetworkReads(scope: FastifyInstance, deps: PushDeps): void {
  const { pushes, local, sizeHere, storeDirectory } = deps
  const asking = (work: (place: PushPlace, file: string, reply: FastifyReply) => unknown) => ({
    method: ['GET', 'HEAD'],
    handler: async (request: FastifyRequest, reply: FastifyReply) => {
      const { network, file = '' } = request.params as { network?: string; file?: string }
      try {
        return await work(pushes.place(network), file, reply)
      } catch (error) {
        return refuse(reply, error, deps)
      }
    },
  })
  scope.route({
    url: '/nix/in/:network/nix-cache-info',
    ...asking((_place, _file, reply) => reply.type('text/x-nix-cache-info').send(formatCacheInfo(storeDirectory))),
  })
  scope.route({
    url: '/nix/in/:network/:file',
    ...asking((place, file, reply) => {
      const hashPart = file.endsWith('.narinfo') ? file.slice(0, -'.narinfo'.length) : ''
      const known = HASH_PART_PATTERN.test(hashPart)
        ? (pushes.waiting(place, hashPart) ?? local(hashPart, place.id))
        : undefined
      if (!known) return reply.code(404).type(TEXT).send('not found\n')
      return reply.type('text/x-nix-narinfo').send(formatNarinfo(known))
    }),
  })
  scope.route({
    url: '/nix/in/:network/nar/:file',
    ...asking(async (place, file, reply) => {
      const sizeBytes = pushes.sizeOfUpload(place, file) ?? (await sizeHere(file))
      if (sizeBytes === undefined) return reply.code(404).type(TEXT).send('not found\n')
      if (reply.request.method === 'HEAD') return reply.send()
      return reply.redirect(`/nix/nar/${encodeURIComponent(file)}`)
    }),
  })
}

async function taking(
  request: FastifyRequest,
  reply: FastifyReply,
  deps: PushDeps,
  take: (place: PushPlace, hangUp: AbortSignal) => Promise<void>,
): Promise<FastifyReply> {
  const hangUp = new AbortController()
  reply.raw.once('close', () => hangUp.abort(new AgentError('cancelled', 'who pushed went away')))
  try {
    const refusal = await deps.refusal(request.raw.socket)
    if (refusal !== undefined) throw new AgentError('not-allowed', refusal)
    await take(deps.pushes.place((request.params as File['Params']).network), hangUp.signal)
    return await reply.code(200).type(TEXT).send('')
  } catch (error) {
    return refuse(reply, error, deps)
  }
}

/** What was not read of the body is not worth reading: the connection ends with the answer. */
function refuse(reply: FastifyReply, error: unknown, { log }: Pick<PushDeps, 'log'>): FastifyReply {
  const { code = 'failed', next } = error instanceof AgentError ? error : {}
  if (code !== 'cancelled') {
    const { method, url } = reply.request
    log.warn({ method, url: url.slice(0, 200), code, reason: reasonOf(error) }, 'push.refused')
  }
  return reply
    .code(STATUS[code] ?? 500)
    .header('connection', 'close')
    .type(TEXT)
    .send(`${[reasonOf(error), ...(next === undefined ? [] : [next])].join('\n')}\n`)
}

function bodyOf(request: FastifyRequest): AsyncIterable<Uint8Array> {
  return request.body as AsyncIterable<Uint8Array>
}

/** A small file, which newer clients may compress. Of what is not wanted only the end is waited for. */
async function textOf(request: FastifyRequest, isUnwanted: boolean, signal: AbortSignal): Promise<string> {
  const encoding = request.headers['content-encoding'] ?? ''
  const compression = compressionNamed(encoding)
  if (compression === undefined) throw new AgentError('usage', `${encoding} is not read here`)
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of decompressed(bodyOf(request), compression, signal)) {
    if (isUnwanted) continue
    bytes += chunk.byteLength
    if (bytes > NARINFO_BYTES_MAX) throw new AgentError('usage', `more than ${NARINFO_BYTES_MAX} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}
