/**
 * A network's root key as a file for people: an age file (https://age-encryption.org/v1) in its text form, encrypted with a passphrase, so
 * that any age tool opens it. Inside is JSON: the root key as openssl reads it, and what else it takes to come back into the network
 * with nothing but this file.
 */
import type { KeyObject } from 'node:crypto'
import { z } from 'zod'
import { memberName } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'
import { formatKey, parseKey } from './key-file.ts'
import { encrypterFor, PassphraseIdentity, wrongPassphrase } from './passphrase.ts'

/** A file is some 700 bytes. */
const ARMORED_LENGTH_MAX = 16_384

const payload = z.strictObject({
  v: z.literal(1),
  network: z.string().regex(/^[0-9a-f]{64}$/),
  name: memberName,
  /** The network's secret, in hexadecimal. */
  secret: z.string().regex(/^[0-9a-f]{64}$/),
  rootKey: z.string().max(1_024),
})

export type ExportedRoot = {
  /** The network's id. */
  readonly id: string
  readonly name: string
  readonly secret: Uint8Array
  readonly rootKey: KeyObject
}

/** @throws {AgentError} `usage` when the passphrase is too short */
export async function sealRoot(
  { id, name, secret, rootKey }: ExportedRoot,
  passphrase: string,
  workFactor?: number,
): Promise<string> {
  const { armor } = await import('age-encryption')
  const encrypter = await encrypterFor(passphrase, workFactor)
  const text = JSON.stringify({
    v: 1,
    network: id,
    name,
    secret: Buffer.from(secret).toString('hex'),
    rootKey: formatKey(rootKey),
  } satisfies z.infer<typeof payload>)
  return armor.encode(await encrypter.encrypt(text))
}

/** @throws {AgentError} `not-allowed` when the passphrase is another one; `corrupt` when it is no such file, or damaged */
export async function openRoot(armored: string, passphrase: string): Promise<ExportedRoot> {
  const { armor, Decrypter } = await import('age-encryption')
  const identity = new PassphraseIdentity(passphrase)
  let text: string
  try {
    if (armored.length > ARMORED_LENGTH_MAX) throw new Error('it is too long')
    const decrypter = new Decrypter()
    decrypter.addIdentity(identity)
    text = await decrypter.decrypt(armor.decode(armored), 'text')
  } catch (cause) {
    if (identity.isWrong) throw wrongPassphrase(cause)
    throw new AgentError('corrupt', `this is not the export of a root key, or it is damaged: ${reasonOf(cause)}`, {
      cause,
      next: 'Give the file that `agent network export-root` wrote, whole, from -----BEGIN to END-----.',
    })
  }
  return readPayload(text)
}

function readPayload(text: string): ExportedRoot {
  try {
    const { network, name, secret, rootKey } = payload.parse(JSON.parse(text))
    return { id: network, name, secret: Uint8Array.from(Buffer.from(secret, 'hex')), rootKey: parseKey(rootKey) }
  } catch {
    // Not as a cause: what is wrong with it may quote it.
    throw new AgentError('corrupt', 'the file was opened, but there is no root key in it', {
      next: 'Give the file that `agent network export-root` wrote.',
    })
  }
}
