/**
 * Signatures of store paths, as Nix makes and checks them: Ed25519 over a fingerprint of the path, the hash and size of its NAR, and
 * its references. Keys and signatures are written `name:base64`; the name only says which key to try.
 *
 * The cache key is the agent's own: it signs what was built here, and what is handed to the local Nix once it has been checked. Its file
 * is in Nix's own format, so Nix's tools can use it; it is made once, and nothing here overwrites one.
 */
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
} from 'node:crypto'
import { closeSync, fsyncSync, linkSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError, reasonOf } from '../error.ts'
import { encodeNix32 } from './nix32.ts'

/** Of the node's name, this much goes into the name of its key. */
const LABEL_LENGTH_MAX = 32
/** As long as a key's name may be: the longest that fits an artifact's record with its base64. */
const KEY_NAME_LENGTH_MAX = 128
const SEED_BYTES = 32
const SIGNATURE_BYTES = 64
/** What precedes the raw key in DER (RFC 8410). */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')

/** What a signature of a store path speaks of. */
export type SignedFacts = {
  path: string
  narHash: Digest
  narSize: number
  /** Full paths, sorted. */
  references: readonly string[]
}

/** The text that is signed. */
export function fingerprint({ path, narHash, narSize, references }: SignedFacts): string {
  return `1;${path};sha256:${encodeNix32(Buffer.from(narHash, 'hex'))};${narSize};${references.join(',')}`
}

export type PublicKey = {
  readonly name: string
  /** `name:base64`. */
  readonly text: string
  readonly key: KeyObject
}

/** @throws {AgentError} `usage` when it is not `name:base64` of 32 bytes. */
export function parsePublicKey(text: string): PublicKey {
  const { name, bytes } = split(text.trim())
  if (!isKeyName(name) || bytes?.byteLength !== 32) {
    throw new AgentError('usage', `${JSON.stringify(text)} is not a public key of a Nix cache`, {
      next: 'Give it as it stands in nix.conf: a name, a colon, and 44 characters of base64.',
    })
  }
  const key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, bytes]), format: 'der', type: 'spki' })
  return { name, text: `${name}:${bytes.toString('base64')}`, key }
}

/** Whether the text has the form of a signature: what is not so is never passed on, nor shown. */
export function isSignature(text: string): boolean {
  const { name, bytes } = split(text)
  return isKeyName(name) && bytes?.byteLength === SIGNATURE_BYTES
}

/** The name of the key that a signature says it was made with. */
export function signerOf(signature: string): string {
  return split(signature).name
}

/** Whether `signature` is one by `key` over these facts. */
export function isSignedBy(key: PublicKey, facts: SignedFacts, signature: string): boolean {
  const { name, bytes } = split(signature)
  if (name !== key.name || bytes?.byteLength !== SIGNATURE_BYTES) return false
  return verify(null, Buffer.from(fingerprint(facts)), key.key, bytes)
}

export class CacheKey {
  readonly publicKey: PublicKey
  readonly #secret: KeyObject

  private constructor(name: string, seed: Uint8Array) {
    this.#secret = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, seed]), format: 'der', type: 'pkcs8' })
    this.publicKey = parsePublicKey(`${name}:${rawPublicKey(this.#secret).toString('base64')}`)
  }

  /**
   * The key in `path`; made there when there is none. Nix keeps trusted keys by name, so the name has a part of the key in it, after
   * `label`, which is the node's name at that time.
   *
   * @throws {AgentError} `corrupt` when the file is not a key, `not-allowed` when it cannot be read or made.
   */
  static loadOrMake(path: string, label: string): CacheKey {
    const text = readSecret(path) ?? makeSecret(path, label)
    const { name, bytes } = split(text.trim())
    const seed = bytes?.subarray(0, SEED_BYTES)
    if (isKeyName(name) && seed && (bytes?.byteLength === SEED_BYTES || bytes?.byteLength === 2 * SEED_BYTES)) {
      const key = new CacheKey(name, seed)
      const rest = bytes.subarray(SEED_BYTES)
      if (rest.byteLength === 0 || key.publicKey.text === `${name}:${rest.toString('base64')}`) return key
    }
    throw new AgentError('corrupt', `${path} is not a secret key of a Nix cache`, {
      next: 'Restore it from a backup, or move it away: the agent then makes another, which nix.conf has to trust instead.',
    })
  }

  /** A key that lives in memory only, for tests. */
  static ephemeral(label: string): CacheKey {
    const { name, seed } = newKey(label)
    return new CacheKey(name, seed)
  }

  /** The signature, `name:base64`. */
  sign(facts: SignedFacts): string {
    return `${this.publicKey.name}:${sign(null, Buffer.from(fingerprint(facts)), this.#secret).toString('base64')}`
  }
}

function readSecret(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new AgentError('not-allowed', `the cache key ${path} cannot be read: ${reasonOf(cause)}`, {
      cause,
      next: 'Start the agent as the user who owns the state directory.',
    })
  }
}

/** Whole or not at all: a temporary file, fsync, link (which fails where there is one), fsync of the directory. */
function makeSecret(path: string, label: string): string {
  const { name, seed, raw } = newKey(label)
  const text = `${name}:${Buffer.concat([seed, raw]).toString('base64')}\n`
  const partial = `${path}.${process.pid}.new`
  try {
    const fd = openSync(partial, 'wx', 0o600)
    try {
      writeSync(fd, text)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    try {
      linkSync(partial, path)
    } finally {
      unlinkSync(partial)
    }
    const directory = openSync(dirname(path), 'r')
    fsyncSync(directory)
    closeSync(directory)
  } catch (cause) {
    throw new AgentError('not-allowed', `the cache key ${path} cannot be written: ${reasonOf(cause)}`, { cause })
  }
  return text
}

function newKey(label: string): { name: string; seed: Buffer; raw: Buffer } {
  const { privateKey } = generateKeyPairSync('ed25519')
  const seed = Buffer.from(privateKey.export({ format: 'jwk' }).d ?? '', 'base64url')
  const raw = rawPublicKey(privateKey)
  const suffix = encodeNix32(createHash('sha256').update(raw).digest()).slice(0, 8)
  const plain = label
    .toLowerCase()
    .replaceAll(/[^a-z0-9.]+/g, '-')
    .slice(0, LABEL_LENGTH_MAX)
    .replaceAll(/^-|-$/g, '')
  return { name: `${plain || 'node'}-undernet-${suffix}`, seed, raw }
}

function rawPublicKey(key: KeyObject): Buffer {
  return Buffer.from(key.export({ format: 'jwk' }).x ?? '', 'base64url')
}

function isKeyName(name: string): boolean {
  return name.length <= KEY_NAME_LENGTH_MAX && /^[!-9;-~]+$/.test(name)
}

/** `name:base64`; `bytes` is undefined unless it is base64 in its one canonical form. */
function split(text: string): { name: string; bytes: Buffer | undefined } {
  const colon = text.indexOf(':')
  if (colon < 0) return { name: text, bytes: undefined }
  const base64 = text.slice(colon + 1)
  const bytes = Buffer.from(base64, 'base64')
  return { name: text.slice(0, colon), bytes: bytes.toString('base64') === base64 ? bytes : undefined }
}
