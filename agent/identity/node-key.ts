/**
 * The node's Ed25519 key: made on first start, kept for good, readable by its owner only. It is the libp2p identity and signs the
 * node's records; losing it is losing the node's name, so nothing here ever overwrites a file that exists.
 */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import type { Ed25519PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { rawPublicKey, readKeyFile, writeKeyFile } from './key-file.ts'

const IF_LOST = 'Restore it from a backup. Without one, move the file away: the node then starts with a new identity.'

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
  return nodeKeyFrom(readKeyFile(path, IF_LOST) ?? makeKey(path))
}

/** The same without making one; undefined when there is no such file. */
export function loadNodeKey(path: string): NodeKey | undefined {
  const key = readKeyFile(path, IF_LOST)
  return key && nodeKeyFrom(key)
}

/** A key that lives in memory only, for tests. */
export function ephemeralNodeKey(): NodeKey {
  return nodeKeyFrom(generateKeyPairSync('ed25519').privateKey)
}

function makeKey(path: string): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519')
  writeKeyFile(path, privateKey)
  return privateKey
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
