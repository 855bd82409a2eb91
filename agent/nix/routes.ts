/**
 * The binary cache on loopback HTTP, below /nix: nix-cache-info, narinfos, listings, NARs with ranges, logs, realisations. Whatever goes wrong inside, the answer for a
 * narinfo is a 404: a 5xx would fail the user's whole command although another cache may have the path. For a NAR too, since Nix
 * then takes the next substituter; once its first byte is out, the connection is cut instead, and Nix asks for the rest.
 */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { BlobSource } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'
import { rangeOf } from '../http/ranges.ts'
import type { Log } from '../log.ts'
import { hashPartOf } from './closures.ts'
import { listNar } from './listing.ts'
import { digestOfNarFile, formatCacheInfo, formatNarinfo, type Narinfo } from './narinfo.ts'
import { HASH_PART_PATTERN } from './nix32.ts'
import type { SideFiles } from './side-files.ts'
import type { Substituter } from './substituter.ts'

const TEXT = 'text/plain; charset=utf-8'
const METHODS = ['GET', 'HEAD']
/** One for all: an error of its own, with its stack, takes as long to make as some of the answers that it would be made for. */
const GONE = new AgentError('cancelled', 'who asked went away, or has the answer')

type Deps = {
  substituter: Pick<Substituter, 'narinfo' | 'narSize' | 'openNar'>
  sideFiles: Pick<SideFiles, 'open'>
  storeDirectory: string
  log: Log
}

export function registerNixRoutes(
  server: FastifyInstance,
  { substituter, sideFiles, storeDirectory, log }: Deps,
): void {
  server.route({
    method: METHODS,
    url: '/nix/nix-cache-info',
    handler: (_request, reply) => reply.type('text/x-nix-cache-info').send(formatCacheInfo(storeDirectory)),
  })

  server.route<{ Params: { file: string } }>({
    method: METHODS,
    url: '/nix/:file',
    handler: async ({ params: { file } }, reply) => {
      const [, hashPart = '', kind] = /^(.*)\.(narinfo|ls)$/.exec(file) ?? []
      if (!HASH_PART_PATTERN.test(hashPart)) return absent(reply, [])
      const hangUp = hangUpOf(reply)
      try {
        const { narinfo, refusals } = await substituter.narinfo(hashPart, hangUp)
        if (narinfo && kind === 'ls') return await answerListing(reply, narinfo, substituter, hangUp)
        if (narinfo) return await reply.type('text/x-nix-narinfo').send(formatNarinfo(narinfo))
        return absent(reply, refusals)
      } catch (error) {
        if (!hangUp.aborted) log.error({ hashPart, reason: reasonOf(error) }, 'nix.narinfo-failed')
        return absent(reply, [])
      }
    },
  })

  server.route<{ Params: { file: string }; Querystring: { of?: unknown } }>({
    method: METHODS,
    url: '/nix/nar/:file',
    handler: (request, reply) => answerNar(request, reply, substituter, log),
  })
  registerSideFiles(server, { sideFiles, log })
}

/** Of a path that is not here its NAR is fetched, as it will be for the files that are looked at next. */
async function answerListing(
  reply: FastifyReply,
  { path, narHash }: Narinfo,
  substituter: Deps['substituter'],
  hangUp: AbortSignal,
): Promise<FastifyReply> {
  const source = await substituter.openNar(narHash, hashPartOf(path), hangUp)
  if (!source) return absent(reply, [])
  try {
    const listing = await listNar(source.read(0, source.sizeBytes, hangUp))
    return await reply.type('application/json').send(listing)
  } finally {
    await source.close?.()
  }
}

function registerSideFiles(server: FastifyInstance, { sideFiles, log }: Pick<Deps, 'sideFiles' | 'log'>): void {
  server.route<{ Params: { kind: string; name: string } }>({
    method: METHODS,
    url: '/nix/:kind(^(?:log|realisations)$)/:name',
    handler: async ({ params: { kind, name } }, reply) => {
      const hangUp = hangUpOf(reply)
      try {
        const file = await sideFiles.open(`${kind}/${name}`, hangUp)
        if (file === undefined) return absent(reply, [])
        closeWith(file, hangUp)
        if (file.encoding !== undefined) reply.header('content-encoding', file.encoding)
        return await reply
          .type(kind === 'log' ? TEXT : 'application/json')
          .send(Readable.from(file.bytes, { objectMode: false }))
      } catch (error) {
        if (!hangUp.aborted) log.error({ name, reason: reasonOf(error) }, 'nix.file-failed')
        return absent(reply, [])
      }
    },
  })
}

async function answerNar(
  request: FastifyRequest<{ Params: { file: string }; Querystring: { of?: unknown } }>,
  reply: FastifyReply,
  substituter: Deps['substituter'],
  log: Log,
): Promise<FastifyReply> {
  const digest = digestOfNarFile(request.params.file)
  if (digest === undefined) return absent(reply, [])
  const { of } = request.query
  const hashPart = typeof of === 'string' && HASH_PART_PATTERN.test(of) ? of : undefined
  const hangUp = hangUpOf(reply)
  try {
    if (request.method === 'HEAD') {
      const sizeBytes = await substituter.narSize(digest, hashPart, hangUp)
      if (sizeBytes === undefined) return absent(reply, [])
      return narHeaders(reply, digest).header('content-length', sizeBytes).send()
    }
    const source = await substituter.openNar(digest, hashPart, hangUp)
    if (!source) return absent(reply, [])
    closeWith(source, hangUp)
    const { sizeBytes } = source
    const range = rangeOf(request.headers.range, sizeBytes)
    if (range === 'unsatisfiable') {
      return reply.code(416).header('content-range', `bytes */${sizeBytes}`).type(TEXT).send('no such range\n')
    }
    const { offset, length } = range ?? { offset: 0, length: sizeBytes }
    if (range) reply.code(206).header('content-range', `bytes ${offset}-${offset + length - 1}/${sizeBytes}`)
    narHeaders(reply, digest).header('content-length', length).hijack()
    reply.raw.writeHead(reply.statusCode, reply.getHeaders() as OutgoingHttpHeaders)
    // Once the first byte is out there is nothing to say but that it ended.
    await writeChunks(reply.raw, source.read(offset, length, hangUp)).catch((error: unknown) => {
      if (!hangUp.aborted) log.warn({ digest, reason: reasonOf(error) }, 'nix.nar-cut')
      reply.raw.destroy(error instanceof Error ? error : undefined)
    })
    return reply
  } catch (error) {
    if (!hangUp.aborted) log.error({ digest, reason: reasonOf(error) }, 'nix.nar-failed')
    return absent(reply, [])
  }
}

/**
 * Writes while the next chunk is read, and gives the memory of each back when it is written: left to the garbage collector, which counts
 * objects, twenty clients would have 60 MB of it wait.
 */
async function writeChunks(to: ServerResponse, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  let written = Promise.resolve()
  for await (const chunk of chunks) {
    await written
    written = new Promise((resolve, reject) => {
      to.write(chunk, (error) => {
        if (error) return reject(error)
        const { buffer, byteLength } = chunk
        if (byteLength === buffer.byteLength && buffer instanceof ArrayBuffer) buffer.transfer(0)
        resolve()
      })
    })
    written.catch(() => undefined)
  }
  await written
  to.end()
}

function narHeaders(reply: FastifyReply, digest: string): FastifyReply {
  return reply.type('application/x-nix-nar').header('accept-ranges', 'bytes').header('etag', `"${digest}"`)
}

/** The reasons are for whoever asks with curl: Nix does not show them. */
function absent(reply: FastifyReply, refusals: readonly string[]): FastifyReply {
  const lines = refusals.map((refusal) => `refused: ${refusal}`)
  return reply
    .code(404)
    .type(TEXT)
    .send(`${['not found', ...lines].join('\n')}\n`)
}

/** Closes the source when the answer is out, or the requester away: the stream of its bytes may never be begun. */
function closeWith(source: Pick<BlobSource, 'close'>, hangUp: AbortSignal): void {
  const close = () => void source.close?.().catch(() => {})
  if (hangUp.aborted) close()
  else hangUp.addEventListener('abort', close, { once: true })
}

/** Fires when the requester goes away, and when the answer is out. */
function hangUpOf(reply: FastifyReply): AbortSignal {
  const hangUp = new AbortController()
  reply.raw.once('close', () => hangUp.abort(GONE))
  return hangUp.signal
}
