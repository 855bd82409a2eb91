/**
 * What is written to repositories: uploads of blobs in all the ways of the specification, mounts, manifests, and deletions. Who may is
 * asked before, in routes.ts.
 */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Slots } from '../content/slots.ts'
import { type Asked, digestOf, locationOf } from './asked.ts'
import { type ChunkRange, formatUploadRange, parseChunkRange } from './chunk-range.ts'
import { OciError } from './errors.ts'
import { MANIFEST_BYTES_MAX, tooLarge } from './manifests.ts'
import { type Algorithm, algorithmOf, type OciDigest, parsePath, parseTag, type Reference, type Tag } from './names.ts'
import { unknownBlob, unknownManifest } from './pull.ts'
import type { Places, Repositories, RepositoryName } from './repositories.ts'
import type { Chunk, Uploads } from './uploads.ts'

/** Manifests being received: each may be 4 MiB, and as much again while it is read. */
const MANIFESTS_MAX = 32
/** A client has all of a manifest before it sends the first byte; who holds one of those places does not hold it for long. */
const MANIFEST_IDLE_MS_MAX = 10_000
/** With one push. The specification asks for 10 at least. */
const TAGS_MAX = 100
/** A client that sends nothing for so long in the middle of a body is gone. */
const BODY_IDLE_MS_MAX = 5 * 60_000

export type PushDeps = { repositories: Repositories; uploads: Uploads; places: Places }

const manifestSlots = new Slots(MANIFESTS_MAX)

/** POST: a mount, a blob in one request, or the beginning of an upload. */
export async function beginUpload(asked: Asked, deps: PushDeps): Promise<FastifyReply> {
  const { reply, name, query, hangUp } = asked
  const { uploads } = deps
  const mount = query.get('mount')
  if (mount !== null && (await mounted(asked, digestOf(mount), deps))) return created(reply, name, digestOf(mount))
  const digest = mount === null ? query.get('digest') : null
  if (digest === null) return accepted(reply, name, uploads.begin(name, algorithmIn(query)), 0)
  const wanted = digestOf(digest)
  const id = uploads.begin(name, algorithmOf(wanted))
  try {
    await uploads.finish(name, id, wanted, chunkOf(asked.request), hangUp)
  } catch (error) {
    // Nobody was told its id.
    uploads.discard(id)
    throw error
  }
  return created(reply, name, wanted)
}

async function mounted({ name, query, hangUp }: Asked, digest: OciDigest, deps: PushDeps): Promise<boolean> {
  const text = query.get('from')
  const path = text === null ? undefined : parsePath(text)
  const from = path && deps.places.locate(path, undefined)
  // A source that is unknown has nothing: the client then sends the blob.
  if (text !== null && from === undefined) return false
  return await deps.repositories.mount(name, digest, from, hangUp)
}

/** GET. */
export async function answerUpload({ reply, name }: Asked, id: string, { uploads }: PushDeps): Promise<FastifyReply> {
  const sizeBytes = uploads.sizeOf(name, id)
  return await progress(reply, name, id, sizeBytes).code(204).send()
}

/** PATCH. */
export async function takeChunk(asked: Asked, id: string, { uploads }: PushDeps): Promise<FastifyReply> {
  const { request, reply, name, hangUp } = asked
  const sizeBytes = await uploads.append(name, id, chunkOf(request), hangUp)
  return accepted(reply, name, id, sizeBytes)
}

/** PUT. */
export async function endUpload(asked: Asked, id: string, { uploads }: PushDeps): Promise<FastifyReply> {
  const { request, reply, name, query, hangUp } = asked
  const digest = digestOf(query.get('digest') ?? '')
  await uploads.finish(name, id, digest, chunkOf(request), hangUp)
  return created(reply, name, digest)
}

/** DELETE. */
export async function cancelUpload({ reply, name }: Asked, id: string, { uploads }: PushDeps): Promise<FastifyReply> {
  uploads.cancel(name, id)
  return await reply.code(204).send()
}

export async function putManifest(
  { request, reply, name, query, hangUp }: Asked,
  reference: Reference | undefined,
  { repositories }: PushDeps,
): Promise<FastifyReply> {
  if (reference === undefined) throw new OciError('MANIFEST_INVALID', 'that is no tag')
  const tags = reference.tag === undefined ? tagsIn(query) : [reference.tag]
  const free = await manifestSlots.take(hangUp)
  try {
    const bytes = await manifestBytes(request)
    const mediaType = mediaTypeOf(request.headers['content-type'])
    const asked = reference.digest === undefined ? {} : { digest: reference.digest }
    const { digest, subject } = await repositories.putManifest(name, { ...asked, tags, bytes, mediaType }, hangUp)
    if (subject !== undefined) reply.header('oci-subject', subject)
    if (reference.digest !== undefined && tags.length > 0) reply.header('oci-tag', tags.join(', '))
    const location = locationOf(name, 'manifests', reference.tag ?? digest)
    return await reply.code(201).header('location', location).header('docker-content-digest', digest).send()
  } finally {
    free()
  }
}

export async function deleteManifest(
  { reply, name, hangUp }: Asked,
  reference: Reference | undefined,
  { repositories }: PushDeps,
): Promise<FastifyReply> {
  const isDeleted =
    reference !== undefined &&
    (reference.tag === undefined
      ? await repositories.deleteManifest(name, reference.digest, hangUp)
      : await repositories.deleteTag(name, reference.tag, hangUp))
  if (!isDeleted) throw await unknownManifest(name, repositories, hangUp)
  return await reply.code(202).send()
}

export async function deleteBlob(
  { reply, name, hangUp }: Asked,
  digest: OciDigest,
  { repositories }: PushDeps,
): Promise<FastifyReply> {
  if (await repositories.deleteBlob(name, digest, hangUp)) return await reply.code(202).send()
  throw await unknownBlob(name, digest, repositories, hangUp)
}

function created(reply: FastifyReply, name: RepositoryName, digest: OciDigest): FastifyReply {
  const location = locationOf(name, 'blobs', digest)
  return reply.code(201).header('location', location).header('docker-content-digest', digest).send()
}

function accepted(reply: FastifyReply, name: RepositoryName, id: string, sizeBytes: number): FastifyReply {
  return progress(reply, name, id, sizeBytes).code(202).send()
}

function progress(reply: FastifyReply, { text }: RepositoryName, id: string, sizeBytes: number): FastifyReply {
  return reply
    .header('location', `/v2/${text}/blobs/uploads/${id}`)
    .header('range', formatUploadRange(sizeBytes))
    .header('docker-upload-uuid', id)
}

/** @throws {OciError} DIGEST_INVALID for an algorithm that is not kept here */
function algorithmIn(query: URLSearchParams): Algorithm {
  const text = query.get('digest-algorithm') ?? 'sha256'
  if (text === 'sha256' || text === 'sha512') return text
  throw new OciError('DIGEST_INVALID', 'digests are made with sha256 or sha512 here')
}

/** @throws {OciError} MANIFEST_INVALID, with status 414 for too many */
function tagsIn(query: URLSearchParams): Tag[] {
  const texts = query.getAll('tag')
  if (texts.length > TAGS_MAX) throw new OciError('MANIFEST_INVALID', `more than ${TAGS_MAX} tags`, { status: 414 })
  return texts.map((text) => {
    const tag = parseTag(text)
    if (tag !== undefined) return tag
    throw new OciError('MANIFEST_INVALID', 'one of the tags is none: letters, digits and . _ -, 128 at most')
  })
}

/** Parameters are ignored, as the specification wants it. */
function mediaTypeOf(header: string | undefined): string | undefined {
  return header?.split(';')[0]?.trim() || undefined
}

/** @throws {OciError} BLOB_UPLOAD_INVALID for a range that is none */
function chunkOf(request: FastifyRequest): Chunk {
  return { bytes: bytesOf(request), range: rangeIn(request), lengthBytes: lengthOf(request) }
}

function rangeIn({ headers }: FastifyRequest): ChunkRange | undefined {
  const header = headers['content-range']
  // Go's clients send `0--1` with an empty body.
  if (header === undefined || headers['content-length'] === '0') return undefined
  const range = parseChunkRange(header)
  if (range !== undefined) return range
  throw new OciError('BLOB_UPLOAD_INVALID', 'the Content-Range is none: FIRST-LAST, both in bytes, from 0 on')
}

function lengthOf({ headers }: FastifyRequest): number | undefined {
  const header = headers['content-length']
  return header === undefined ? undefined : Number(header)
}

/** @throws {OciError} MANIFEST_INVALID with status 413 */
async function manifestBytes(request: FastifyRequest): Promise<Buffer> {
  if ((lengthOf(request) ?? 0) > MANIFEST_BYTES_MAX) throw tooLarge()
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of bytesOf(request, MANIFEST_IDLE_MS_MAX)) {
    bytes += chunk.byteLength
    if (bytes > MANIFEST_BYTES_MAX) throw tooLarge()
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

/** The body. Whoever stops reading it may still answer: the connection stays. */
async function* bytesOf({ raw }: FastifyRequest, idleMsMax = BODY_IDLE_MS_MAX): AsyncGenerator<Uint8Array> {
  const idle = setTimeout(() => raw.destroy(), idleMsMax)
  try {
    for await (const chunk of raw.iterator({ destroyOnReturn: false })) {
      idle.refresh()
      yield chunk as Uint8Array
    }
  } finally {
    clearTimeout(idle)
  }
}
