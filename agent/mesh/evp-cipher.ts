/**
 * ChaCha20-Poly1305 by OpenSSL's own functions, as they are in the program that runs Node: node:crypto makes an object for each message and buffers
 * that nobody asked for, which takes as long as the cipher itself (64 KiB: 37 us, and 20 so; 100 bytes: 4 and 1). Nothing is released before its tag
 * was checked.
 *
 * Loaded when there is something to gain by it. Where it cannot be loaded, or does not do what node:crypto does, there is none, and everything goes
 * on as before.
 */
import { createCipheriv } from 'node:crypto'

const TAG_BYTES = 16
const KEY_BYTES = 32
const NONCE_BYTES = 12
/** EVP_CTRL_AEAD_GET_TAG and EVP_CTRL_AEAD_SET_TAG of openssl/evp.h. */
const GET_TAG = 0x10
const SET_TAG = 0x11
const OK = 1
/** What the trial seals: longer than the shortest of OpenSSL's code paths, and no multiple of a block. */
const TRIAL_BYTES = 1_000

/** One after the other, the bytes of a message. */
type Parts = Iterable<Uint8Array>

/** Both without associated data; the result is in a buffer of its own. */
export type EvpCipher = {
  /** So many bytes in parts: sealed, tag included. */
  seal(key: Uint8Array, nonce: Uint8Array, plaintext: Parts, length: number): Buffer
  /** So many bytes in parts, and the tag. @throws when that is wrong */
  open(key: Uint8Array, nonce: Uint8Array, sealed: Parts, length: number, tag: Uint8Array): Buffer
}

type Pointer = unknown
type Init = (context: Pointer, type: Pointer, engine: null, key: Uint8Array, nonce: Uint8Array) => number
type Update = (context: Pointer, into: Uint8Array, written: Int32Array, from: Uint8Array, length: number) => number
type Final = (context: Pointer, into: Uint8Array, written: Int32Array) => number
type Control = (context: Pointer, what: number, length: number, bytes: Uint8Array) => number

type Functions = {
  context: Pointer
  type: Pointer
  init: Record<'seal' | 'open', Init>
  update: Record<'seal' | 'open', Update>
  final: Record<'seal' | 'open', Final>
  control: Control
}

/** Undefined where there is none. */
export async function loadEvpCipher(): Promise<EvpCipher | undefined> {
  try {
    const cipher = cipherOf(await load())
    return isRight(cipher) ? cipher : undefined
  } catch {
    return undefined
  }
}

async function load(): Promise<Functions> {
  const { default: koffi } = await import('koffi')
  const program = koffi.load(null)
  const both = <F>(name: (word: string) => string): Record<'seal' | 'open', F> => ({
    seal: program.func(name('Encrypt')) as F,
    open: program.func(name('Decrypt')) as F,
  })
  const makeContext = program.func('void *EVP_CIPHER_CTX_new()') as () => Pointer
  const chacha = program.func('void *EVP_chacha20_poly1305()') as () => Pointer
  return {
    // One for all, made once: it is given key and nonce for each message, and nothing of it lasts.
    context: makeContext(),
    type: chacha(),
    init: both((word) => `int EVP_${word}Init_ex(void *, void *, void *, const uint8_t *key, const uint8_t *nonce)`),
    update: both(
      (word) => `int EVP_${word}Update(void *, uint8_t *into, int *written, const uint8_t *from, int length)`,
    ),
    final: both((word) => `int EVP_${word}Final_ex(void *, uint8_t *into, int *written)`),
    control: program.func('int EVP_CIPHER_CTX_ctrl(void *, int what, int length, uint8_t *bytes)') as Control,
  }
}

function cipherOf({ context, type, init, update, final, control }: Functions): EvpCipher {
  const written = new Int32Array(1)
  const nothing = Buffer.alloc(TAG_BYTES)
  const begin = (way: 'seal' | 'open', key: Uint8Array, nonce: Uint8Array) => {
    // OpenSSL reads so many bytes whatever there are.
    if (key.byteLength !== KEY_BYTES || nonce.byteLength !== NONCE_BYTES) throw new RangeError('no key or no nonce')
    expectOk(init[way](context, type, null, key, nonce))
  }
  const run = (way: 'seal' | 'open', into: Buffer, parts: Parts, length: number) => {
    let at = 0
    for (const part of parts) {
      if (part.byteLength > length - at) throw new RangeError('more bytes than were said')
      if (part.byteLength === 0) continue
      expectOk(update[way](context, into.subarray(at), written, part, part.byteLength))
      if (written[0] !== part.byteLength) throw new Error('a stream cipher kept bytes')
      at += part.byteLength
    }
    if (at !== length) throw new RangeError('fewer bytes than were said')
  }
  return {
    seal(key, nonce, plaintext, length) {
      const sealed = Buffer.allocUnsafeSlow(length + TAG_BYTES)
      begin('seal', key, nonce)
      run('seal', sealed, plaintext, length)
      expectOk(final.seal(context, nothing, written))
      expectOk(control(context, GET_TAG, TAG_BYTES, sealed.subarray(length)))
      return sealed
    },
    open(key, nonce, sealed, length, tag) {
      if (tag.byteLength !== TAG_BYTES) throw new RangeError('a message without its tag')
      const plaintext = Buffer.allocUnsafeSlow(length)
      begin('open', key, nonce)
      expectOk(control(context, SET_TAG, TAG_BYTES, tag))
      run('open', plaintext, sealed, length)
      if (final.open(context, nothing, written) !== OK) throw new Error('the message was changed')
      return plaintext
    },
  }
}

function expectOk(result: number): void {
  if (result !== OK) throw new Error('OpenSSL failed')
}

/** Whether it does what node:crypto does, and tells what was changed. */
function isRight(made: EvpCipher): boolean {
  const [key, nonce, text] = [Buffer.alloc(KEY_BYTES, 7), Buffer.alloc(NONCE_BYTES, 9), Buffer.alloc(TRIAL_BYTES, 11)]
  const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: TAG_BYTES })
  const expected = Buffer.concat([cipher.update(text), cipher.final(), cipher.getAuthTag()])
  const halves = (bytes: Buffer) => [bytes.subarray(0, 1), bytes.subarray(1, TRIAL_BYTES)]
  const sealed = made.seal(key, nonce, halves(text), TRIAL_BYTES)
  const opened = () => made.open(key, nonce, halves(sealed), TRIAL_BYTES, sealed.subarray(TRIAL_BYTES))
  if (!sealed.equals(expected) || !opened().equals(text)) return false
  sealed[0] = (sealed[0] ?? 0) ^ 1
  try {
    opened()
    return false
  } catch {
    return true
  }
}
