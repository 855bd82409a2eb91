/**
 * Content-addressed store paths: their name follows from their contents and references, so they need no signature.
 *
 * Follows makeStorePath, makeTextPath and makeFixedOutputPath of Nix (libstore/store-api.cc). Only what can be known without the contents
 * is checked here: that the address makes the name and, where the address is the NAR's own hash, that this is the one. Nix checks the
 * contents against the address itself before it takes a path.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { decodeNix32, encodeNix32 } from './nix32.ts'

/** Bytes of a store path's hash part. */
const HASH_PART_BYTES = 20
const HASH_PART_LENGTH = 32
const HASH_BYTES: Readonly<Record<string, number>> = { md5: 16, sha1: 20, sha256: 32, sha512: 64 }

type Facts = { path: string; narHash: Digest; references: readonly string[] }

/** Whether `ca` (`text:sha256:...`, `fixed:r:sha256:...`, `fixed:sha1:...`) is the content address that makes this path. */
export function contentAddressFits({ path, narHash, references }: Facts, ca: string): boolean {
  const parsed = /^(text|fixed):(r:)?([a-z0-9]+):([0-9a-df-np-sv-z]+)$/.exec(ca)
  const algorithm = parsed?.[3] ?? ''
  const hash = decodeNix32(parsed?.[4] ?? '', HASH_BYTES[algorithm] ?? 0)
  if (!parsed || !hash || hash.byteLength === 0) return false
  const recursive = parsed[2] !== undefined
  const others = references.filter((reference) => reference !== path)
  const refersToSelf = others.length < references.length
  const inner = Buffer.from(hash).toString('hex')
  if (parsed[1] === 'text') {
    if (recursive || refersToSelf || algorithm !== 'sha256') return false
    return isNamed(path, ['text', ...others].join(':'), `sha256:${inner}`)
  }
  if (recursive && algorithm === 'sha256') {
    if (!refersToSelf && inner !== narHash) return false
    const type = ['source', ...others, ...(refersToSelf ? ['self'] : [])].join(':')
    return isNamed(path, type, `sha256:${inner}`)
  }
  if (references.length > 0) return false
  const outer = sha256(`fixed:out:${recursive ? 'r:' : ''}${algorithm}:${inner}:`).toString('hex')
  return isNamed(path, 'output:out', `sha256:${outer}`)
}

/** Whether the hash part of `path` is that of a path of this type and inner hash. */
function isNamed(path: string, type: string, innerHash: string): boolean {
  const slash = path.lastIndexOf('/')
  const directory = path.slice(0, slash)
  const name = path.slice(slash + 1)
  const hash = sha256([type, innerHash, directory, name.slice(HASH_PART_LENGTH + 1)].join(':'))
  // Folded to 20 bytes by XOR, as Nix does.
  const folded = new Uint8Array(HASH_PART_BYTES)
  for (const [at, byte] of hash.entries()) {
    folded[at % HASH_PART_BYTES] = (folded[at % HASH_PART_BYTES] ?? 0) ^ byte
  }
  return encodeNix32(folded) === name.slice(0, HASH_PART_LENGTH)
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}
