/**
 * A network's root key as a file for people: an age file (https://age-encryption.org/v1) in its text form, encrypted with a passphrase, so
 * that any age tool opens it. Inside is JSON: the root key as openssl reads it, and what else it takes to come back into the network
 * with nothing but this file.
 *
 * Deriving the key of a passphrase takes a second and 256 MiB by design. It runs beside the event loop, on Node's threads.
 */
import { createCipheriv, createDecipheriv, type KeyObject, randomBytes, scrypt } from 'node:crypto'
import type { Identity, Recipient, Stanza } from 'age-encryption'
import { z } from 'zod'
import { memberName } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'
import { formatKey, parseKey } from './key-file.ts'

/** Of age's own command line. */
const WORK_FACTOR = 18
/** 1 GiB of memory, as much as other readers of age files take on. */
const WORK_FACTOR_MAX = 20
/** A file is some 700 bytes. */
const ARMORED_LENGTH_MAX = 16_384
/** Against a slip. What withstands guessing is longer: four or five random words. */
const PASSPHRASE_LENGTH_MIN = 8

const SALT_BYTES = 16
const TAG_BYTES = 16
const FILE_KEY_BYTES = 16
const LABEL = Buffer.from('age-encryption.org/v1/scrypt')
/** The key is used once, so its nonce may be zero: so the format has it. */
const NONCE = Buffer.alloc(12)

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
  workFactor = WORK_FACTOR,
): Promise<string> {
  if (passphrase.length < PASSPHRASE_LENGTH_MIN)
    throw new AgentError('usage', `a passphrase has at least ${PASSPHRASE_LENGTH_MIN} characters`, {
      next: 'Whoever has the file and guesses the passphrase owns the network: take four or five random words.',
    })
  const { armor, Encrypter, Stanza } = await import('age-encryption')
  const encrypter = new Encrypter()
  encrypter.addRecipient(new PassphraseRecipient(passphrase, workFactor, Stanza))
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

function wrongPassphrase(cause: unknown): AgentError {
  return new AgentError('not-allowed', 'the passphrase is not the one that the file was encrypted with', {
    cause,
    next: 'Try again. Without the passphrase nobody can open the file.',
  })
}

/** As the library's own, with the derivation on Node's threads. */
class PassphraseRecipient implements Recipient {
  readonly #passphrase: string
  readonly #workFactor: number
  readonly #Stanza: typeof Stanza

  constructor(passphrase: string, workFactor: number, stanza: typeof Stanza) {
    this.#passphrase = passphrase
    this.#workFactor = workFactor
    this.#Stanza = stanza
  }

  async wrapFileKey(fileKey: Uint8Array): Promise<Stanza[]> {
    const salt = randomBytes(SALT_BYTES)
    const key = await derive(this.#passphrase, salt, this.#workFactor)
    const cipher = createCipheriv('chacha20-poly1305', key, NONCE, { authTagLength: TAG_BYTES })
    const body = Buffer.concat([cipher.update(fileKey), cipher.final(), cipher.getAuthTag()])
    return [new this.#Stanza(['scrypt', base64(salt), String(this.#workFactor)], body)]
  }
}

class PassphraseIdentity implements Identity {
  readonly #passphrase: string
  /** Whether the file is one with a passphrase, and this is not it. */
  isWrong = false

  constructor(passphrase: string) {
    this.#passphrase = passphrase
  }

  async unwrapFileKey(stanzas: Stanza[]): Promise<Uint8Array | null> {
    const [stanza, ...others] = stanzas
    const [kind, encoded = '', factor = '', ...rest] = stanza?.args ?? []
    if (stanza === undefined || kind !== 'scrypt') throw new Error('it is encrypted for a key, not with a passphrase')
    const salt = Buffer.from(encoded, 'base64')
    const isWell =
      others.length === 0 &&
      rest.length === 0 &&
      salt.byteLength === SALT_BYTES &&
      base64(salt) === encoded &&
      /^[1-9][0-9]?$/.test(factor) &&
      stanza.body.byteLength === FILE_KEY_BYTES + TAG_BYTES
    if (!isWell) throw new Error('its header is not in order')
    if (Number(factor) > WORK_FACTOR_MAX) throw new Error(`its work factor is ${factor}, over ${WORK_FACTOR_MAX}`)
    const key = await derive(this.#passphrase, salt, Number(factor))
    const decipher = createDecipheriv('chacha20-poly1305', key, NONCE, { authTagLength: TAG_BYTES })
    decipher.setAuthTag(stanza.body.subarray(FILE_KEY_BYTES))
    try {
      return Uint8Array.from(
        Buffer.concat([decipher.update(stanza.body.subarray(0, FILE_KEY_BYTES)), decipher.final()]),
      )
    } catch {
      this.isWrong = true
      return null
    }
  }
}

function derive(passphrase: string, salt: Uint8Array, workFactor: number): Promise<Buffer> {
  const N = 2 ** workFactor
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
  // OpenSSL counts 128 * N * r bytes and a little more.
  const options = { N, r: 8, p: 1, maxmem: 129 * N * 8 + 65_536 }
  scrypt(passphrase, Buffer.concat([LABEL, salt]), 32, options, (error, key) => (error ? reject(error) : resolve(key)))
  return promise
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64').replace(/=+$/, '')
}
