/**
 * The endpoints of the distribution specification below `/v2/`, read from the path of a request. Names have slashes in them, so a path is
 * read from its end; what is between is one strict pattern or another, or refused with the specification's code.
 */
import { digestOf } from './asked.ts'
import { OciError } from './errors.ts'
import { type OciDigest, parsePath, parseReference, type Reference, type RepositoryPath } from './names.ts'

/** Longer than any path that can be right: a name, a word, a SHA-512, each percent-encoded. */
const PATH_LENGTH_MAX = 1_500
const UPLOAD_ID_PATTERN = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

export type Endpoint =
  | { readonly kind: 'version' }
  /** `reference` undefined: the text is no tag, so there is no such manifest, nor can there be. */
  | { readonly kind: 'manifest'; readonly path: RepositoryPath; readonly reference: Reference | undefined }
  | { readonly kind: 'blob'; readonly path: RepositoryPath; readonly digest: OciDigest }
  | { readonly kind: 'uploads'; readonly path: RepositoryPath }
  | { readonly kind: 'upload'; readonly path: RepositoryPath; readonly id: string }
  | { readonly kind: 'tags'; readonly path: RepositoryPath }
  | { readonly kind: 'referrers'; readonly path: RepositoryPath; readonly digest: OciDigest }

/**
 * Of a request's path, without its query.
 *
 * @throws {OciError} NAME_INVALID, DIGEST_INVALID, BLOB_UPLOAD_UNKNOWN; UNSUPPORTED (404) for what is no endpoint
 */
export function parseEndpoint(pathname: string): Endpoint {
  if (pathname.length > PATH_LENGTH_MAX) throw new OciError('NAME_INVALID', 'the path is too long')
  const segments = segmentsOf(pathname)
  const last = segments.at(-1) ?? ''
  const before = segments.at(-2)
  const name = (from: number) => nameOf(segments.slice(0, from))
  if (segments.length === 0 || (segments.length === 1 && last === '')) return { kind: 'version' }
  if (last === 'list' && before === 'tags') return { kind: 'tags', path: name(-2) }
  if (before === 'manifests') return { kind: 'manifest', path: name(-2), reference: referenceOf(last) }
  if (before === 'referrers') return { kind: 'referrers', path: name(-2), digest: digestOf(last) }
  if (last === 'uploads' && before === 'blobs') return { kind: 'uploads', path: name(-2) }
  if (before === 'uploads' && segments.at(-3) === 'blobs') {
    const path = name(-3)
    if (last === '') return { kind: 'uploads', path }
    if (!UPLOAD_ID_PATTERN.test(last)) throw new OciError('BLOB_UPLOAD_UNKNOWN', 'that is no id of an upload')
    return { kind: 'upload', path, id: last }
  }
  if (before === 'blobs') return { kind: 'blob', path: name(-2), digest: digestOf(last) }
  throw new OciError('UNSUPPORTED', 'no endpoint of the distribution specification', { status: 404 })
}

/** After `/v2`, each without its percent signs: one that hides a slash is no part of a name. */
function segmentsOf(pathname: string): string[] {
  const [, version, ...segments] = pathname.split('/')
  if (version !== 'v2') throw new OciError('UNSUPPORTED', 'this is not below /v2/', { status: 404 })
  try {
    return segments.map((segment) => (segment.includes('%') ? decodeURIComponent(segment) : segment))
  } catch {
    throw new OciError('NAME_INVALID', 'the path has a percent sign that encodes nothing')
  }
}

function nameOf(segments: readonly string[]): RepositoryPath {
  const path = parsePath(segments.join('/'))
  // A slash that was encoded would be one between components now.
  if (path !== undefined && !segments.some((segment) => segment.includes('/'))) return path
  throw new OciError(
    'NAME_INVALID',
    'that is no name of a repository: lower-case letters, digits and . _ - between slashes',
  )
}

function referenceOf(text: string): Reference | undefined {
  return text.includes(':') ? { digest: digestOf(text) } : parseReference(text)
}
