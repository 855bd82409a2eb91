/**
 * The cryptography of Noise (Noise_XX_25519_ChaChaPoly_SHA256) by node:crypto, with the cipher's key made ready once for a connection
 * instead of once a message: most of what a bulk transfer pays beyond the cipher itself. Same bytes on the wire as any other Noise.
 *
 * For `noise({ crypto: noiseCrypto })`. Nothing is released before its tag was checked.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createPrivateKey,
  createPublicKey,
  createSecretKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  type KeyObject,
} from 'node:crypto'
import type { ICryptoInterface } from '@chainsafe/libp2p-noise'
import { type EvpCipher, loadEvpCipher } from './evp-cipher.ts'

/** A Uint8Array, or Noise's own version of Uint8ArrayList. */
type Bytes = Parameters<ICryptoInterface['hashSHA256']>[0]

const CIPHER = 'chacha20-poly1305'
const TAG_BYTES = 16
const OPTIONS = { authTagLength: TAG_BYTES }
const KEY_BYTES = 32
/** Yamux's window updates and most of what gossip says. */
const JOINED_BYTES_MAX = 4 * 1024
/** RFC 8410: what stands before the 32 bytes of an X25519 key in PKCS #8 and in SubjectPublicKeyInfo. */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b656e04220420', 'hex')
const SPKI_PREFIX = Buffer.from('302a300506032b656e032100', 'hex')

/** Connections that carry so little are as well off without it, and an agent of which all are like that need not load it. */
const BULK_BYTES_MIN = 1024 * 1024

/** Once there was enough to seal or to open. */
let loaded: EvpCipher | undefined
let passedBytes = 0
let loading: Promise<void> | undefined

/** By identity: Noise keeps one array for each direction of a connection, and never writes to it. */
const readyKeys = new WeakMap<Uint8Array, KeyObject>()

export const noiseCrypto: ICryptoInterface = {
  hashSHA256(data) {
    const hash = createHash('sha256')
    for (const part of parts(data)) hash.update(part)
    return hash.digest()
  },

  getHKDF(chainingKey, inputKey) {
    const keys = new Uint8Array(hkdfSync('sha256', inputKey, chainingKey, '', 3 * KEY_BYTES))
    return [keys.slice(0, 32), keys.slice(32, 64), keys.slice(64, 96)]
  },

  generateX25519KeyPair() {
    const { publicKey, privateKey } = generateKeyPairSync('x25519')
    return {
      publicKey: publicKey.export({ type: 'spki', format: 'der' }).subarray(SPKI_PREFIX.byteLength),
      privateKey: privateKey.export({ type: 'pkcs8', format: 'der' }).subarray(PKCS8_PREFIX.byteLength),
    }
  },

  generateX25519KeyPairFromSeed(seed) {
    const spki = createPublicKey(privateKeyOf(seed)).export({ type: 'spki', format: 'der' })
    return { publicKey: spki.subarray(SPKI_PREFIX.byteLength), privateKey: seed }
  },

  /** Throws on a public key of small order, whose secret would be all zeros. */
  generateX25519SharedKey(privateKey, publicKey) {
    const key = Buffer.concat([SPKI_PREFIX, ...parts(publicKey)])
    return diffieHellman({
      privateKey: privateKeyOf(privateKey),
      publicKey: createPublicKey({ key, type: 'spki', format: 'der' }),
    })
  },

  chaCha20Poly1305Encrypt(plaintext, nonce, ad, key) {
    const evp = ad.byteLength === 0 ? evpFor(plaintext.byteLength) : undefined
    if (evp !== undefined) return evp.seal(key, nonce, parts(plaintext), plaintext.byteLength)
    const cipher = createCipheriv(CIPHER, ready(key), nonce, OPTIONS)
    if (ad.byteLength > 0) cipher.setAAD(ad, { plaintextLength: plaintext.byteLength })
    const sealed: Uint8Array[] = []
    for (const part of parts(plaintext)) sealed.push(cipher.update(part))
    cipher.final()
    sealed.push(cipher.getAuthTag())
    // Each part becomes a write to the socket: that is worth a copy when it is short, not when it is long.
    return plaintext.byteLength < JOINED_BYTES_MAX ? Buffer.concat(sealed) : listed(sealed, plaintext)
  },

  chaCha20Poly1305Decrypt(sealed, nonce, ad, key) {
    const length = sealed.byteLength - TAG_BYTES
    if (length < 0) throw new RangeError('a message shorter than its tag')
    const body = sealed instanceof Uint8Array ? sealed.subarray(0, length) : sealed.sublist(0, length)
    const evp = ad.byteLength === 0 ? evpFor(length) : undefined
    if (evp !== undefined) return evp.open(key, nonce, parts(body), length, sealed.subarray(length))
    const decipher = createDecipheriv(CIPHER, ready(key), nonce, OPTIONS)
    if (ad.byteLength > 0) decipher.setAAD(ad, { plaintextLength: length })
    decipher.setAuthTag(sealed.subarray(length))
    const plaintext: Uint8Array[] = []
    for (const part of parts(body)) plaintext.push(decipher.update(part))
    // Throws when the tag is wrong: only after this is anything given out.
    decipher.final()
    return listed(plaintext, sealed)
  },
}

/** OpenSSL's own, as soon as it is there. */
function evpFor(byteLength: number): EvpCipher | undefined {
  if (loading !== undefined) return loaded
  passedBytes += byteLength
  if (passedBytes >= BULK_BYTES_MIN) {
    loading = loadEvpCipher().then((cipher) => {
      loaded = cipher
    })
  }
  return undefined
}

/** The parts as a list of the same class as `like`, uncopied; joined when that is no list. */
function listed(bytes: Uint8Array[], like: Bytes): Bytes {
  if (like instanceof Uint8Array) return bytes.length === 1 && bytes[0] ? bytes[0] : Buffer.concat(bytes)
  const list = like.sublist(0, 0)
  for (const part of bytes) list.append(part)
  return list
}

function ready(key: Uint8Array): KeyObject {
  const known = readyKeys.get(key)
  if (known) return known
  const made = createSecretKey(key)
  readyKeys.set(key, made)
  return made
}

function privateKeyOf(bytes: Bytes): KeyObject {
  return createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, ...parts(bytes)]), type: 'pkcs8', format: 'der' })
}

function parts(bytes: Bytes): Iterable<Uint8Array> {
  return bytes instanceof Uint8Array ? [bytes] : bytes
}
