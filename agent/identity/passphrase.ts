/**
 * Files that are encrypted with a passphrase (https://age-encryption.org/v1), so that any age tool opens them.
 *
 * Deriving the key of a passphrase takes a second and 256 MiB by design. It runs beside the event loop, on Node's threads.
 */
import { createCipheriv, createDecipheriv, randomBytes, scrypt } from 'node:crypto'
import type { Encrypter, Identity, Recipient, Stanza } from 'age-encryption'
import { AgentError } from '../error.ts'

/** Of age's own command line. */
const WORK_FACTOR = 18
/** 1 GiB of memory, as much as other readers of age files take on. */
const WORK_FACTOR_MAX = 20
/** Against a slip. What withstands guessing is longer: four or five random words. */
const PASSPHRASE_LENGTH_MIN = 8

const SALT_BYTES = 16
const TAG_BYTES = 16
const FILE_KEY_BYTES = 16
const LABEL = Buffer.from('age-encryption.org/v1/scrypt')
/** The key is used once, so its nonce may be zero: so the format has it. */
const NONCE = Buffer.alloc(12)

/** @throws {AgentError} `usage` when the passphrase is too short */
export async function encrypterFor(passphrase: string, workFactor = WORK_FACTOR): Promise<Encrypter> {
  if (passphrase.length < PASSPHRASE_LENGTH_MIN)
    throw new AgentError('usage', `a passphrase has at least ${PASSPHRASE_LENGTH_MIN} characters`, {
      next: 'Whoever has the file and guesses the passphrase has all that is in it: take four or five random words.',
    })
  const { Encrypter, Stanza } = await import('age-encryption')
  const encrypter = new Encrypter()
  encrypter.addRecipient(new PassphraseRecipient(passphrase, workFactor, Stanza))
  return encrypter
}

export function wrongPassphrase(cause: unknown): AgentError {
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

export class PassphraseIdentity implements Identity {
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
