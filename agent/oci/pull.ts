/** What is read of repositories: manifests, blobs with ranges, tags and referrers by the page. HEAD is a GET without its body. */
import { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import type { BlobSource } from '../content/content.ts'
import { rangeOf } from '../http/ranges.ts'
import { sendBytes } from '../http/sending.ts'
import { printable } from '../printable.ts'
import { type Asked, sendJson } from './asked.ts'
import { OciError } from './errors.ts'
import { OCI_INDEX } from './manifests.ts'
import { type OciDigest, parseDigest, parseTag, type Reference } from './names.ts'
import type { Held, Repositories, RepositoryName } from './repositories.ts'

/** A page of tags: a client that wants all follows the links. */
const TAGS_MAX = 10_000
/** The specification allows 4096 bytes of warnings in all. */
const WARNING_LENGTH_MAX = 1_000

export async function answerManifest(
  { request, reply, name, hangUp }: Asked,
  reference: Reference | undefined,
  repositories: Repositories,
): Promise<FastifyReply> {
  const found = reference && (await repositories.resolve(name, reference, hangUp))
  if (!found) throw await unknownManifest(name, repositories, hangUp)
  const { digest, mediaType, sizeBytes, warning } = found
  if (warning !== undefined) reply.header('warning', `299 - "${warningText(warning)}"`)
  if (isKnown(request.headers['if-none-match'], digest)) return await named(reply, digest).code(304).send()
  named(reply, digest).type(mediaType).header('content-length', sizeBytes)
  if (request.method === 'HEAD') return await reply.send()
  const source = await found.open(hangUp)
  return await reply.send(await wholeOf(source, hangUp))
}

export async function answerBlob(
  { request, reply, name, hangUp }: Asked,
  digest: OciDigest,
  repositories: Repositories,
): Promise<FastifyReply> {
  const found = await repositories.blob(name, digest, hangUp)
  if (!found) throw await unknownBlob(name, digest, repositories, hangUp)
  const { sizeBytes } = found
  if (isKnown(request.headers['if-none-match'], digest)) return await named(reply, digest).code(304).send()
  named(reply, digest).type('application/octet-stream').header('accept-ranges', 'bytes')
  if (request.method === 'HEAD') return await reply.header('content-length', sizeBytes).send()
  const range = rangeOf(request.headers.range, sizeBytes)
  if (range === 'unsatisfiable') {
    reply.header('content-range', `bytes */${sizeBytes}`)
    throw new OciError('SIZE_INVALID', `the blob has ${sizeBytes} bytes`, { status: 416 })
  }
  const { offset, length } = range ?? { offset: 0, length: sizeBytes }
  if (range) reply.code(206).header('content-range', `bytes ${offset}-${offset + length - 1}/${sizeBytes}`)
  return await send(reply.header('content-length', length), found, { offset, length }, hangUp)
}

export async function answerTags(
  { reply, name, query, hangUp }: Asked,
  repositories: Repositories,
): Promise<FastifyReply> {
  const n = countOf(query.get('n'))
  const last = query.get('last') ?? undefined
  // A name that is no tag sorts among them all the same; one with control characters is nobody's.
  if (last !== undefined && last !== '' && parseTag(last) === undefined)
    throw new OciError('UNSUPPORTED', '`last` is no tag', { status: 400 })
  const page = await repositories.tags(name, { n, last }, hangUp)
  if (page === undefined) throw new OciError('NAME_UNKNOWN', `there is no repository ${name.text}`)
  const next = page.tags.at(-1)
  if (page.hasMore && next !== undefined) link(reply, name, `tags/list?n=${n}&last=${encodeURIComponent(next)}`)
  return await sendJson(reply, 'application/json', { name: name.text, tags: page.tags })
}

export async function answerReferrers(
  { reply, name, query, hangUp }: Asked,
  digest: OciDigest,
  repositories: Repositories,
): Promise<FastifyReply> {
  // Media types have a plus, which many forget to encode, and no space.
  const artifactType = query.get('artifactType')?.replaceAll(' ', '+')
  const last = parseDigest(query.get('last') ?? '')
  const page = await repositories.referrers(name, digest, { artifactType, last }, hangUp)
  const next = page.descriptors.at(-1)
  if (artifactType !== undefined) reply.header('oci-filters-applied', 'artifactType')
  if (page.hasMore && next !== undefined) {
    const filter = artifactType === undefined ? '' : `artifactType=${encodeURIComponent(artifactType)}&`
    link(reply, name, `referrers/${digest}?${filter}last=${encodeURIComponent(next.digest)}`)
  }
  const index = { schemaVersion: 2, mediaType: OCI_INDEX, manifests: page.descriptors }
  return await sendJson(reply, OCI_INDEX, index)
}

export async function unknownManifest(
  name: RepositoryName,
  repositories: Repositories,
  signal: AbortSignal,
): Promise<OciError> {
  if (!(await repositories.exists(name, signal))) return unknownName(name)
  return new OciError('MANIFEST_UNKNOWN', `there is no such manifest in ${name.text}`)
}

export async function unknownBlob(
  name: RepositoryName,
  digest: OciDigest,
  repositories: Repositories,
  signal: AbortSignal,
): Promise<OciError> {
  if (!(await repositories.exists(name, signal))) return unknownName(name)
  return new OciError('BLOB_UNKNOWN', `there is no blob ${digest} in ${name.text}`)
}

function unknownName({ text }: RepositoryName): OciError {
  return new OciError('NAME_UNKNOWN', `there is no repository ${text}`)
}

/** What is named by its hash never changes. */
function named(reply: FastifyReply, digest: OciDigest): FastifyReply {
  return reply.header('docker-content-digest', digest).header('etag', `"${digest}"`)
}

function isKnown(ifNoneMatch: string | undefined, digest: OciDigest): boolean {
  return ifNoneMatch?.includes(`"${digest}"`) ?? false
}

function link(reply: FastifyReply, { text }: RepositoryName, rest: string): void {
  reply.header('link', `</v2/${text}/${rest}>; rel="next"`)
}

/** @throws {OciError} UNSUPPORTED (400) for what is no number */
function countOf(text: string | null): number {
  if (text === null) return TAGS_MAX
  if (!/^\d{1,15}$/.test(text)) throw new OciError('UNSUPPORTED', '`n` is no number', { status: 400 })
  return Math.min(Number(text), TAGS_MAX)
}

function warningText(text: string): string {
  return printable(text)
    .replace(/[^ -~]|["\\]/g, "'")
    .slice(0, WARNING_LENGTH_MAX)
}

/** Small ones in one go: a stream costs more than they do. */
async function send(
  reply: FastifyReply,
  found: Held,
  { offset, length }: { offset: number; length: number },
  hangUp: AbortSignal,
): Promise<FastifyReply> {
  const source = await found.open(hangUp)
  if (length <= PIECE_BYTES) return await reply.send(await wholeOf(source, hangUp, { offset, length }))
  if (source.readInto === undefined) {
    const close = () => void source.close?.().catch(() => {})
    if (hangUp.aborted) close()
    else hangUp.addEventListener('abort', close, { once: true })
    return await reply.send(Readable.from(source.read(offset, length, hangUp), { objectMode: false }))
  }
  try {
    await sendBytes(reply, source as Required<BlobSource>, { offset, length }, hangUp)
  } finally {
    await source.close?.()
  }
  return reply
}

async function wholeOf(
  source: BlobSource,
  signal: AbortSignal,
  { offset, length } = { offset: 0, length: source.sizeBytes },
): Promise<Buffer> {
  try {
    const chunks: Uint8Array[] = []
    for await (const chunk of source.read(offset, length, signal)) chunks.push(chunk)
    const [only] = chunks
    return chunks.length === 1 && Buffer.isBuffer(only) ? only : Buffer.concat(chunks)
  } finally {
    await source.close?.()
  }
}
