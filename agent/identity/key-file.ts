/**
 * Ed25519 keys in files: PKCS #8 PEM (RFC 8410), so that openssl can read them, for their owner only. A file is written whole or not at
 * all, and nothing here overwrites one that exists.
 */
import { createPrivateKey, type KeyObject, sign } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import type { StatementSigner } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'

/**
 * Reads a key; undefined when there is no such file.
 *
 * @throws {AgentError} `corrupt` when the file is not an Ed25519 key, `not-allowed` when it cannot be read.
 */
export function readKeyFile(path: string, ifLost: string): KeyObject | undefined {
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
    return parseKey(pem)
  } catch (cause) {
    throw new AgentError('corrupt', `${path} is not an Ed25519 private key: ${reasonOf(cause)}`, {
      cause,
      next: ifLost,
    })
  }
}

/** @throws whatever is wrong with the text */
export function parseKey(pem: string): KeyObject {
  const key = createPrivateKey(pem)
  if (key.asymmetricKeyType !== 'ed25519') throw new TypeError(`it is an ${key.asymmetricKeyType} key`)
  return key
}

export function formatKey(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }) as string
}

/**
 * Writes a new file: a temporary one, fsync, its name, fsync of the directory. The state directory belongs to one agent, so between the
 * look and the rename nobody else makes one.
 *
 * @throws {AgentError} `taken` when there is a file already
 */
export function writeKeyFile(path: string, key: KeyObject): void {
  if (existsSync(path)) throw new AgentError('taken', `there is a key in ${path} already`)
  const partial = `${path}.${process.pid}.new`
  const fd = openSync(partial, 'w', 0o600)
  try {
    writeSync(fd, formatKey(key))
    fsyncSync(fd)
    renameSync(partial, path)
  } catch (error) {
    unlinkSync(partial)
    throw error
  } finally {
    closeSync(fd)
  }
  syncDirectory(dirname(path))
}

/** Makes names that were given, changed or taken in a directory outlive a power cut. */
export function syncDirectory(path: string): void {
  const directory = openSync(path, 'r')
  fsyncSync(directory)
  closeSync(directory)
}

/** Raw 32-byte public key of an Ed25519 key object. */
export function rawPublicKey(key: KeyObject): Uint8Array {
  return Uint8Array.from(Buffer.from(key.export({ format: 'jwk' }).x ?? '', 'base64url'))
}

export function signerOf(key: KeyObject): StatementSigner {
  return { publicKey: rawPublicKey(key), sign: (bytes) => sign(null, bytes, key) }
}
