/** Artifact bodies, manifests and CIDs, against vectors made by another implementation. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import { describe, expect, it } from 'vitest'
import {
  artifactBody,
  blobOf,
  type ClosureManifest,
  DESCRIPTION_LENGTH_MAX,
  decodeManifest,
  decodeSignatures,
  encodeManifest,
  encodeSignatures,
  fileCid,
  MANIFEST_BYTES_MAX,
  manifestCid,
  NAME_LENGTH_MAX,
  PATHS_MAX,
  pathPrefix,
} from '../../protocols/artifact/artifact.ts'
import { decodeCbor, encodeCbor } from '../../protocols/cbor.ts'
import { WireError } from '../../protocols/error.ts'
import { encodeRecord, LEASE_MS_MAX, OPEN_NETWORK, RECORD_BYTES_MAX } from '../../protocols/records/record.ts'

type Refused = { why: string; bytes: string }
const vectors = JSON.parse(readFileSync('protocols/artifact/vectors.json', 'utf8')) as {
  files: { bytes: string; digest: string; cid: string }[]
  manifests: { name: string; bytes: string; cid: string; digest: string }[]
  refusedManifests: Refused[]
  signatures: { bytes: string; signatures: string[][] }[]
  bodies: { name: string; bytes: string }[]
  refusedBodies: Refused[]
  pathPrefixes: { hashPart: string; prefix: string }[]
  otherCids: { why: string; cid: string }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

describe('CIDs', () => {
  it.each(vectors.files)('names a file $cid', ({ bytes, digest, cid }) => {
    expect(createHash('sha256').update(hex(bytes)).digest('hex')).toBe(digest)
    expect(fileCid(digest).toString()).toBe(cid)
    expect(blobOf(CID.parse(cid))).toEqual({ digest, isManifest: false })
  })

  it.each(vectors.otherCids)('refuses $why', ({ cid }) => {
    expect(() => blobOf(CID.parse(cid))).toThrow(WireError)
  })
})

describe('manifests', () => {
  it.each(vectors.manifests)('reads $name, and writes the same bytes', ({ bytes, cid, digest }) => {
    const manifest = decodeManifest(hex(bytes))
    expect(text(encodeManifest(manifest))).toBe(bytes)
    expect(manifestCid(hex(bytes)).toString()).toBe(cid)
    expect(blobOf(CID.parse(cid))).toEqual({ digest, isManifest: true })
  })

  it.each(vectors.refusedManifests)('refuses $why', ({ bytes }) => {
    expect(() => decodeManifest(hex(bytes))).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('refuses one over the size limit before it looks at it', () => {
    const bytes = new Uint8Array(MANIFEST_BYTES_MAX + 1)
    expect(() => decodeManifest(bytes)).toThrow(expect.objectContaining({ code: 'too-large' }))
    expect(() => decodeSignatures(bytes)).toThrow(expect.objectContaining({ code: 'too-large' }))
  })

  it('throws a WireError for altered bytes, or reads what they then say', () => {
    const [, closure] = vectors.manifests
    const bytes = hex(closure?.bytes ?? '')
    fc.assert(
      fc.property(fc.nat(bytes.byteLength - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const altered = Uint8Array.from(bytes, (byte, nth) => (nth === at ? byte ^ flip : byte))
        try {
          expect(text(encodeManifest(decodeManifest(altered)))).toBe(text(altered))
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
      { numRuns: 1_000 },
    )
  })

  it('holds a closure of the largest size in one manifest', () => {
    const paths = Array.from({ length: PATHS_MAX }, (_, nth) => ({
      path: `/nix/store/${nth.toString().padStart(32, '0')}-some-package-of-usual-length-1.2.3`,
      nar: new Uint8Array(32),
      sizeBytes: 2 ** 40,
      references: Array.from({ length: Math.min(nth, 20) }, (_, back) => nth - Math.min(nth, 20) + back),
    }))
    const closure: ClosureManifest = { v: 1, type: 'closure', root: PATHS_MAX - 1, paths }
    const bytes = encodeManifest(closure)
    expect(bytes.byteLength).toBeLessThan(MANIFEST_BYTES_MAX)
    expect(decodeManifest(bytes)).toEqual(closure)
  })

  it.each(vectors.signatures)('reads signatures, and writes the same bytes', ({ bytes, signatures }) => {
    expect(decodeSignatures(hex(bytes))).toEqual(signatures)
    expect(text(encodeSignatures(signatures))).toBe(bytes)
  })
})

describe('bodies', () => {
  it.each(vectors.bodies)('reads $name', ({ bytes }) => {
    expect(decodeCbor(hex(bytes), artifactBody)).toHaveProperty('cid')
  })

  it.each(vectors.refusedBodies)('refuses $why', ({ bytes }) => {
    expect(() => decodeCbor(hex(bytes), artifactBody)).toThrow(expect.objectContaining({ code: 'malformed' }))
  })

  it('of the largest size fits a record', () => {
    const cid = manifestCid(new Uint8Array())
    const body = artifactBody.parse({
      type: 'nix',
      cid,
      sizeBytes: Number.MAX_SAFE_INTEGER,
      description: '\uffff'.repeat(DESCRIPTION_LENGTH_MAX),
      root: `${'/a'.repeat(100)}/${'0'.repeat(32)}-${'a'.repeat(211)}`,
      signatures: cid,
      signer: '\uffff'.repeat(256),
      paths: new Uint8Array(6 * PATHS_MAX),
    })
    const issued = Number.MAX_SAFE_INTEGER - LEASE_MS_MAX
    const signer = { publicKey: new Uint8Array(32), sign: () => new Uint8Array(64) }
    const name = 'a'.repeat(NAME_LENGTH_MAX)
    const expires = Number.MAX_SAFE_INTEGER
    const fields = { network: OPEN_NETWORK, kind: 'artifact', name, seq: expires, issued, expires, body }
    expect(encodeRecord(fields, signer).bytes.byteLength).toBeLessThan(RECORD_BYTES_MAX)
  })

  it('is not fooled by a map that says it is a CID', () => {
    const like = { code: 0x55, version: 1, multihash: { code: 0x12 } }
    const bytes = encodeCbor({ type: 'file', cid: like, sizeBytes: 1, description: '' })
    expect(() => decodeCbor(bytes, artifactBody)).toThrow(WireError)
  })
})

describe('path prefixes', () => {
  it.each(vectors.pathPrefixes)('of $hashPart is $prefix', ({ hashPart, prefix }) => {
    expect(text(pathPrefix(hashPart))).toBe(prefix)
  })

  it('sort as the hash parts do', () => {
    const digits = fc.constantFrom(...'0123456789abcdfghijklmnpqrsvwxyz'.split(''))
    const hashPart = fc.array(digits, { minLength: 32, maxLength: 32 }).map((list) => list.join(''))
    fc.assert(
      fc.property(hashPart, hashPart, (a, b) => {
        const [first, second] = a < b ? [a, b] : [b, a]
        expect(Buffer.compare(pathPrefix(first), pathPrefix(second))).toBeLessThanOrEqual(0)
      }),
    )
  })
})
