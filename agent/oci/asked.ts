/** A request to the registry, as far as it was read: what the answers in pull.ts and push.ts are given. */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { OciError } from './errors.ts'
import { type OciDigest, parseDigest } from './names.ts'
import type { RepositoryName } from './repositories.ts'

export type Asked = {
  readonly request: FastifyRequest
  readonly reply: FastifyReply
  readonly name: RepositoryName
  readonly query: URLSearchParams
  /** Fires when the requester goes away, and when the answer is out. */
  readonly hangUp: AbortSignal
}

/** @throws {OciError} DIGEST_INVALID */
export function digestOf(text: string): OciDigest {
  const digest = parseDigest(text)
  if (digest !== undefined) return digest
  throw new OciError('DIGEST_INVALID', 'that is no digest: sha256: and 64 digits, or sha512: and 128')
}

/** Where a blob or a manifest is pulled. */
export function locationOf({ text }: RepositoryName, kind: 'blobs' | 'manifests', reference: string): string {
  return `/v2/${text}/${kind}/${reference}`
}

/** Bytes, not text: of text the media type would get a charset, and clients compare it whole. */
export async function sendJson(reply: FastifyReply, mediaType: string, value: unknown): Promise<FastifyReply> {
  return await reply.type(mediaType).send(Buffer.from(JSON.stringify(value)))
}
