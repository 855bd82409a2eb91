/**
 * The node's Ed25519 key: made on first start, kept for good, readable by its owner only. It is the libp2p identity and signs the
 * node's records; losing it is losing the node's name, so nothing here ever overwrites a file that exists.
 *
 * File: PKCS #8 PEM (RFC 8410), so that openssl can read it.
 */
import { createPrivateKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import type { Ed25519PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { AgentError, reasonOf } from '../error.ts'

/** What signs, as the parts that sign see it. */
type Signer = {
  /** Raw Ed25519 public key, 32 bytes. */
  readonly publicKey: Uint8Array
  /** Ed25519 signature, 64 bytes. */
  sign(bytes: Uint8Array): Uint8Array
}

export type NodeKey = Signer & {
  /** The peer id in its usual base58 form (12D3Koo...). */
  readonly peerId: string
  /** For libp2p's handshake only. */
  readonly libp2pKey: Ed25519PrivateKey
}

/**
 * The key in `path`; made there when the file does not exist.
 *
 * @throws {AgentError} `corrupt` when the file is not an Ed25519 key, `not-allowed` when it cannot be read.
 */
export function loadOrMakeNodeKey(path: string): NodeKey {
  return nodeKeyFrom(readKey(path) ?? makeKey(path))
}

/** A key that lives in memory only, for tests. */
export function ephemeralNodeKey(): NodeKey {
  return nodeKeyFrom(generateKeyPairSync('ed25519').privateKey)
}

/** Reads an Ed25519 PEM key; undefined when there is no such file. */
function readKey(path: string): KeyObject | undefined {
  let pem: string
  try {
    pem = readFileSync(path, 'utf8')
    if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new AgentError('not-allowed', `the key ${path} cannot be read: ${reasonOf(cause)}`, {
      cause,
      next: 'Start the agent as the user who owns the state directory.',
    })
  }
  try {
    const key = createPrivateKey(pem)
    if (key.asymmetricKeyType !== 'ed25519') throw new Error(`it is an ${key.asymmetricKeyType} key`)
    return key
  } catch (cause) {
    throw new AgentError('corrupt', `${path} is not an Ed25519 private key: ${reasonOf(cause)}`, {
      cause,
      next: 'Restore it from a backup. Without one, move the file away: the node then starts with a new identity.',
    })
  }
}

/** Makes a key and writes it whole or not at all (temporary file, fsync, rename, fsync of the directory). */
function makeKey(path: string): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519')
  const partial = `${path}.${process.pid}.new`
  const fd = openSync(partial, 'wx', 0o600)
  try {
    writeSync(fd, privateKey.export({ type: 'pkcs8', format: 'pem' }) as string)
    fsyncSync(fd)
    renameSync(partial, path)
  } catch (error) {
    unlinkSync(partial)
    throw error
  } finally {
    closeSync(fd)
  }
  const directory = openSync(dirname(path), 'r')
  fsyncSync(directory)
  closeSync(directory)
  return privateKey
}

/** Raw 32-byte public key of an Ed25519 key object. */
export function rawPublicKey(key: KeyObject): Uint8Array {
  return Buffer.from(key.export({ format: 'jwk' }).x ?? '', 'base64url')
}

function nodeKeyFrom(key: KeyObject): NodeKey {
  const { d, x } = key.export({ format: 'jwk' })
  const libp2pKey = privateKeyFromRaw(
    Buffer.concat([Buffer.from(d ?? '', 'base64url'), Buffer.from(x ?? '', 'base64url')]),
  )
  if (libp2pKey.type !== 'Ed25519') throw new TypeError('a raw key of 64 bytes is Ed25519')
  return {
    publicKey: rawPublicKey(key),
    peerId: peerIdFromPrivateKey(libp2pKey).toString(),
    libp2pKey,
    sign: (bytes) => sign(null, bytes, key),
  }
}
