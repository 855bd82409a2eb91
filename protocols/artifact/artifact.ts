/**
 * What a node says of something it shares: the body of an `artifact` record, and the manifests that an artifact's CID may name. See
 * spec.md beside this file.
 *
 * A CID with the raw codec is a file: the hash of its bytes. A CID with the dag-cbor codec is a manifest: of a folder (one NAR) or of
 * a closure of store paths (a NAR each). A manifest holds nothing that depends on who made it, so two nodes that share the same
 * closure share one CID.
 */
import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import { create as createMultihash } from 'multiformats/hashes/digest'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'

/** Multicodec numbers, https://github.com/multiformats/multicodec. */
const RAW = 0x55
const DAG_CBOR = 0x71
const SHA2_256 = 0x12

/** A manifest is fetched whole before anything else, so it is small: this holds a closure of PATHS_MAX. */
export const MANIFEST_BYTES_MAX = 4 * 1024 * 1024
/** Bound by the record, which carries PATH_PREFIX_BYTES of each path. A NixOS desktop has about 3,000. */
export const PATHS_MAX = 10_000
/** Of a store path's 20-byte hash part, this much is in the record: enough that a false match is rare, and harmless. */
export const PATH_PREFIX_BYTES = 6
/** Names are typed and shown in tables. */
export const NAME_LENGTH_MAX = 128
export const DESCRIPTION_LENGTH_MAX = 1_000
/** A key name and 64 bytes in base64, with room. */
export const SIGNATURE_LENGTH_MAX = 256
/** Signatures kept of one path. */
export const SIGNATURES_MAX = 8

/** Letters, digits and `+ - . _ ? =`, as Nix allows in a store path's name: safe in a file name, a URL and a terminal. */
export const NAME_PATTERN = /^[0-9a-zA-Z+\-_?=][0-9a-zA-Z+\-._?=]*$/
/** Directories of printable ASCII, none of which begins with a dot; the hash part; the name. */
const STORE_PATH_PATTERN = /^(?:\/[!-\-0-~][!-.0-~]*)+\/[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+\-._?=]{1,211}$/
/** Of a store path: Nix allows 211 for a name. */
const STORE_PATH_LENGTH_MAX = 446

const cidOf = (codec: number) =>
  z.custom<CID>((value) => {
    const cid = CID.asCID(value)
    return cid?.code === codec && cid.multihash.code === SHA2_256 && cid.multihash.digest.byteLength === 32
  }, 'not a SHA-256 CID of the right codec')
const sha256 = z.instanceof(Uint8Array).refine((bytes) => bytes.byteLength === 32, 'not 32 bytes')
const sizeBytes = z.int().min(0).max(Number.MAX_SAFE_INTEGER)
const text = (lengthMax: number) => z.string().max(lengthMax)

export const storePath = z.string().max(STORE_PATH_LENGTH_MAX).regex(STORE_PATH_PATTERN, 'not a store path')

const common = {
  /** Of the content: the file, the folder's NAR, or all NARs of the closure. */
  sizeBytes,
  description: text(DESCRIPTION_LENGTH_MAX),
}

/** Body of a record of kind `artifact`. The record's name is the artifact's. Unknown fields are ignored: later versions add some. */
export const artifactBody = z.discriminatedUnion('type', [
  z.object({ type: z.literal('file'), cid: cidOf(RAW), ...common }),
  z.object({ type: z.literal('folder'), cid: cidOf(DAG_CBOR), ...common }),
  z.object({
    type: z.literal('nix'),
    cid: cidOf(DAG_CBOR),
    ...common,
    /** The store path that was published; the rest is what it references. */
    root: storePath,
    /** CID of the signatures (see `signatures`), which differ between publishers and so are no part of the manifest. */
    signatures: cidOf(DAG_CBOR),
    /** The publisher's cache key, `name:base64`. */
    signer: text(SIGNATURE_LENGTH_MAX),
    /** PATH_PREFIX_BYTES of the hash part of each path, sorted, concatenated: which narinfos this artifact can answer. */
    paths: z
      .instanceof(Uint8Array)
      .refine(
        (bytes) => bytes.byteLength % PATH_PREFIX_BYTES === 0 && bytes.byteLength <= PATH_PREFIX_BYTES * PATHS_MAX,
        'not a list of path prefixes',
      ),
  }),
])
export type ArtifactBody = z.infer<typeof artifactBody>
export type NixArtifactBody = Extract<ArtifactBody, { type: 'nix' }>

const folderManifest = z.strictObject({ v: z.literal(1), type: z.literal('folder'), nar: sha256, sizeBytes })

const closurePath = z.strictObject({
  /** Full store path. */
  path: storePath,
  /** SHA-256 of its NAR. */
  nar: sha256,
  /** Size of its NAR, never 0. */
  sizeBytes: sizeBytes.min(1),
  /** Indices into `paths`, ascending; a path may refer to itself. */
  references: z.array(z.int().min(0).max(PATHS_MAX)).max(PATHS_MAX),
  /** Nix's content address, of paths that have one (`fixed:r:sha256:...`, `text:sha256:...`). */
  ca: text(SIGNATURE_LENGTH_MAX).optional(),
})
const closureManifest = z.strictObject({
  v: z.literal(1),
  type: z.literal('closure'),
  /** Index of the path that was published. */
  root: z.int().min(0),
  /** Sorted by path, each once; closed under references. */
  paths: z.array(closurePath).min(1).max(PATHS_MAX),
})

type FolderManifest = z.infer<typeof folderManifest>
export type ClosureManifest = z.infer<typeof closureManifest>
export type ClosurePath = z.infer<typeof closurePath>
export type Manifest = FolderManifest | ClosureManifest

const manifest = z.discriminatedUnion('type', [folderManifest, closureManifest])

/** Signatures of a closure's paths: `signatures[i]` are those of `paths[i]`, each `name:base64`, as a narinfo's Sig lines hold them. */
const signatures = z.strictObject({
  v: z.literal(1),
  type: z.literal('signatures'),
  signatures: z.array(z.array(text(SIGNATURE_LENGTH_MAX)).max(SIGNATURES_MAX)).max(PATHS_MAX),
})

export function encodeManifest(value: Manifest): Uint8Array {
  return encodeCbor(manifest.parse(value))
}

/**
 * Decodes a manifest and checks what its schema cannot say: order, and that every reference is inside.
 *
 * @throws {WireError} `malformed`, `too-large`
 */
export function decodeManifest(bytes: Uint8Array): Manifest {
  checkSize(bytes)
  const value = decodeCbor(bytes, manifest)
  if (value.type === 'closure') checkClosure(value)
  return value
}

export function encodeSignatures(list: string[][]): Uint8Array {
  return encodeCbor(signatures.parse({ v: 1, type: 'signatures', signatures: list }))
}

/** @throws {WireError} `malformed`, `too-large` */
export function decodeSignatures(bytes: Uint8Array): string[][] {
  checkSize(bytes)
  return decodeCbor(bytes, signatures).signatures
}

function checkSize({ byteLength }: Uint8Array): void {
  if (byteLength <= MANIFEST_BYTES_MAX) return
  throw new WireError('too-large', `a manifest of ${byteLength} bytes; the limit is ${MANIFEST_BYTES_MAX}`)
}

function checkClosure({ root, paths }: ClosureManifest): void {
  if (root >= paths.length) throw new WireError('malformed', 'the root of the closure is not in it')
  const store = storeOf(paths[0]?.path ?? '')
  for (const [at, { path, references }] of paths.entries()) {
    if (storeOf(path) !== store) throw new WireError('malformed', 'the paths of the closure are of several stores')
    const before = paths[at - 1]
    if (before && before.path >= path) throw new WireError('malformed', 'the paths of the closure are not sorted')
    for (const [nth, reference] of references.entries()) {
      if (reference >= paths.length) throw new WireError('malformed', `${path} refers to a path outside the closure`)
      if (nth > 0 && reference <= (references[nth - 1] ?? 0))
        throw new WireError('malformed', `the references of ${path} are not sorted`)
    }
  }
}

function storeOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/'))
}

const NIX32_DIGITS = '0123456789abcdfghijklmnpqrsvwxyz'

/**
 * What stands in a record for a store path: the first PATH_PREFIX_BYTES of its hash part (the 32 characters before the name), read as
 * digits in base 32, most significant first. So prefixes sort as the paths do.
 */
export function pathPrefix(hashPart: string): Uint8Array {
  let value = 0
  // Ten digits are 50 bits, of which 48 are wanted.
  for (const digit of hashPart.slice(0, 10)) value = value * 32 + Math.max(0, NIX32_DIGITS.indexOf(digit))
  const prefix = Buffer.alloc(PATH_PREFIX_BYTES)
  prefix.writeUIntBE(Math.floor(value / 4), 0, PATH_PREFIX_BYTES)
  return prefix
}

/** SHA-256 as 64 lower-case hexadecimal digits: how blobs are named inside the agent. */
export type Digest = string

/** The CID of a file whose bytes have this digest. */
export function fileCid(digest: Digest): CID {
  return CID.createV1(RAW, createMultihash(SHA2_256, Buffer.from(digest, 'hex')))
}

/** The CID of an encoded manifest. */
export function manifestCid(bytes: Uint8Array): CID {
  return CID.createV1(DAG_CBOR, createMultihash(SHA2_256, createHash('sha256').update(bytes).digest()))
}

/**
 * What a CID names: the digest of the blob to fetch first, and whether that is a manifest.
 *
 * @throws {WireError} `malformed` for hashes other than SHA-256 and codecs other than raw and dag-cbor.
 */
export function blobOf(cid: CID): { digest: Digest; isManifest: boolean } {
  if (cid.multihash.code !== SHA2_256 || cid.multihash.digest.byteLength !== 32)
    throw new WireError('malformed', `${cid.toString()} is not a SHA-256 CID`)
  if (cid.code !== RAW && cid.code !== DAG_CBOR)
    throw new WireError('malformed', `${cid.toString()} is neither raw nor dag-cbor`)
  return { digest: Buffer.from(cid.multihash.digest).toString('hex'), isManifest: cid.code === DAG_CBOR }
}
