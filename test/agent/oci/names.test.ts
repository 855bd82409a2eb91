/** Names, tags, digests and the paths made of them: what is right is read, and nothing else is, however it is dressed up. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { parseEndpoint } from '../../../agent/oci/endpoints.ts'
import { OciError } from '../../../agent/oci/errors.ts'
import {
  algorithmOf,
  hexOf,
  NAME_LENGTH_MAX,
  parseDigest,
  parsePath,
  parseReference,
  parseTag,
} from '../../../agent/oci/names.ts'

/** Of the specification, whole: slow on hostile names, and so not used. */
const NAME = /^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$/
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/

const nearName = fc.string({ unit: fc.constantFrom('a', '0', '.', '_', '-', '/', 'A', '%', ' ', '\0'), maxLength: 20 })
const component = fc.stringMatching(/^[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}$/)
const name = fc.array(component, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'))
const digest = fc.oneof(
  fc.stringMatching(/^[0-9a-f]{64}$/).map((hex) => `sha256:${hex}`),
  fc.stringMatching(/^[0-9a-f]{128}$/).map((hex) => `sha512:${hex}`),
)
const codeOf = (path: string) => {
  try {
    return parseEndpoint(path)
  } catch (error) {
    if (!(error instanceof OciError)) throw error
    return error.oci
  }
}

describe('names', () => {
  it('are those of the specification', () => {
    fc.assert(
      fc.property(fc.oneof(nearName, name, fc.string()), (text) => (parsePath(text) !== undefined) === NAME.test(text)),
    )
    fc.assert(fc.property(fc.oneof(nearName, fc.string()), (text) => (parseTag(text) !== undefined) === TAG.test(text)))
  })

  it('are refused quickly however long they are', () => {
    expect(parsePath('a'.repeat(NAME_LENGTH_MAX))).toBeDefined()
    for (const text of ['a'.repeat(NAME_LENGTH_MAX + 1), `${'a-'.repeat(100_000)}!`, 'a/'.repeat(100_000)]) {
      expect(parsePath(text)).toBeUndefined()
      expect(parseTag(text)).toBeUndefined()
      expect(parseDigest(text)).toBeUndefined()
    }
    expect(parseTag('a'.repeat(128))).toBeDefined()
    expect(parseTag('a'.repeat(129))).toBeUndefined()
  })

  it.each([
    '../etc',
    'a/../b',
    'a//b',
    '/a',
    'a/',
    'A/b',
    'a/.b',
    'a/b.',
    'a..b',
    'a/b\n',
    'a/b\0',
    'a/%2e%2e',
    'ä/b',
    'a b',
    '',
  ])('have no place for %j', (text) => {
    expect(parsePath(text)).toBeUndefined()
  })

  it('are told from digests by a colon', () => {
    fc.assert(
      fc.property(digest, (text) => {
        const reference = parseReference(text)
        expect(reference?.digest).toBe(text)
        expect(algorithmOf(reference?.digest as never)).toBe(text.slice(0, 6))
        expect(text.endsWith(hexOf(reference?.digest as never))).toBe(true)
      }),
    )
    for (const text of [
      'sha256:',
      'sha256:abc',
      `SHA256:${'a'.repeat(64)}`,
      `sha256:${'A'.repeat(64)}`,
      `md5:${'a'.repeat(32)}`,
      ':',
      `sha512:${'a'.repeat(64)}`,
      `sha256:${'a'.repeat(64)}\n`,
    ])
      expect([text, parseReference(text)]).toEqual([text, undefined])
  })
})

describe('endpoints', () => {
  it('are read from the end, so that a name may be made of their words', () => {
    const words = fc.array(fc.constantFrom('blobs', 'uploads', 'manifests', 'tags', 'list', 'referrers', 'v2', 'a'), {
      minLength: 1,
      maxLength: 5,
    })
    fc.assert(
      fc.property(words, digest, fc.uuid(), (parts, one, id) => {
        const path = parts.join('/')
        expect(parseEndpoint(`/v2/${path}/tags/list`)).toEqual({ kind: 'tags', path })
        expect(parseEndpoint(`/v2/${path}/manifests/latest`)).toEqual({
          kind: 'manifest',
          path,
          reference: { tag: 'latest' },
        })
        expect(parseEndpoint(`/v2/${path}/manifests/${one}`)).toEqual({
          kind: 'manifest',
          path,
          reference: { digest: one },
        })
        expect(parseEndpoint(`/v2/${path}/blobs/${one}`)).toEqual({ kind: 'blob', path, digest: one })
        expect(parseEndpoint(`/v2/${path}/referrers/${one}`)).toEqual({ kind: 'referrers', path, digest: one })
        expect(parseEndpoint(`/v2/${path}/blobs/uploads/`)).toEqual({ kind: 'uploads', path })
        expect(parseEndpoint(`/v2/${path}/blobs/uploads`)).toEqual({ kind: 'uploads', path })
        expect(parseEndpoint(`/v2/${path}/blobs/uploads/${id}`)).toEqual({ kind: 'upload', path, id })
      }),
    )
  })

  it('give a name that is one, or the code of the specification, whatever the path is', () => {
    const segment = fc.oneof(
      nearName,
      digest,
      component,
      fc.constantFrom('blobs', 'uploads', 'manifests', 'tags', 'list', '..', '%2f', '%2e%2e', '%00', '%', '%C3'),
    )
    fc.assert(
      fc.property(fc.array(segment, { maxLength: 8 }), (segments) => {
        const read = codeOf(`/v2/${segments.join('/')}`)
        if (typeof read === 'string')
          expect(read).toMatch(/^(?:NAME_INVALID|DIGEST_INVALID|BLOB_UPLOAD_UNKNOWN|UNSUPPORTED)$/)
        else if (read.kind !== 'version') expect(read.path).toMatch(NAME)
      }),
    )
  })

  it('take an encoded colon, and no encoded slash', () => {
    const hex = 'a'.repeat(64)
    expect(parseEndpoint(`/v2/a/blobs/sha256%3A${hex}`)).toEqual({ kind: 'blob', path: 'a', digest: `sha256:${hex}` })
    expect(codeOf(`/v2/a%2Fb/blobs/sha256:${hex}`)).toBe('NAME_INVALID')
    expect(codeOf('/v2/%2e%2e/tags/list')).toBe('NAME_INVALID')
    expect(codeOf('/v2/a/blobs/uploads/../../x')).toBe('UNSUPPORTED')
    expect(codeOf('/v2/a/blobs/uploads/..%2f..%2fx')).toBe('BLOB_UPLOAD_UNKNOWN')
    expect(codeOf('/v2/a/manifests/sha256:abc')).toBe('DIGEST_INVALID')
    expect(parseEndpoint('/v2/a/manifests/-no-tag')).toEqual({ kind: 'manifest', path: 'a', reference: undefined })
    for (const path of ['/v2', '/v2/']) expect(parseEndpoint(path)).toEqual({ kind: 'version' })
    expect(codeOf('/v2/_catalog')).toBe('UNSUPPORTED')
    expect(codeOf(`/v2/${'a'.repeat(5_000)}/tags/list`)).toBe('NAME_INVALID')
  })
})
