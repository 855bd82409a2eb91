/** Our cryptography for Noise does what Noise's own does: function by function, and in a connection with a stock peer. */
import { createHash } from 'node:crypto'
import { noise, pureJsCrypto } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { tcp } from '@libp2p/tcp'
import fc from 'fast-check'
import { createLibp2p } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { noiseCrypto } from '../../../agent/mesh/noise-cipher.ts'
import { Frames } from '../../../protocols/frame.ts'

const never = new AbortController().signal
const hex = (bytes: { subarray(): Uint8Array }) => Buffer.from(bytes.subarray()).toString('hex')
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length })
const message = fc.uint8Array({ maxLength: 9_000, size: 'max' })

describe('the cryptography for Noise', () => {
  test('seals and opens as Noise itself does, with and without associated data, short and long', () => {
    fc.assert(
      fc.property(bytes(32), bytes(12), fc.uint8Array({ maxLength: 40 }), message, (key, nonce, ad, plaintext) => {
        const sealed = noiseCrypto.chaCha20Poly1305Encrypt(plaintext, nonce, ad, key)
        expect(hex(sealed)).toBe(hex(pureJsCrypto.chaCha20Poly1305Encrypt(plaintext, nonce, ad, key)))
        expect(hex(noiseCrypto.chaCha20Poly1305Decrypt(sealed, nonce, ad, key))).toBe(hex(plaintext))
      }),
    )
  })

  test('opens nothing that was changed, cut short, or sealed with another key, nonce or associated data', () => {
    const flip = (part: Uint8Array, at: number) =>
      part.map((byte, index) => (index === at % part.byteLength ? byte ^ 1 : byte))
    fc.assert(
      fc.property(bytes(32), bytes(12), bytes(8), message, fc.nat(), (key, nonce, ad, plaintext, at) => {
        const sealed = noiseCrypto.chaCha20Poly1305Encrypt(plaintext, nonce, ad, key).subarray()
        const open: typeof noiseCrypto.chaCha20Poly1305Decrypt = (...args) =>
          noiseCrypto.chaCha20Poly1305Decrypt(...args)
        expect(() => open(flip(sealed, at), nonce, ad, key)).toThrow()
        expect(() => open(sealed.subarray(0, at % sealed.byteLength), nonce, ad, key)).toThrow()
        expect(() => open(sealed, flip(nonce, at), ad, key)).toThrow()
        expect(() => open(sealed, nonce, flip(ad, at), key)).toThrow()
        expect(() => open(sealed, nonce, ad, flip(key, at))).toThrow()
      }),
    )
  })

  test('agrees on secrets, hashes and derived keys', () => {
    fc.assert(
      fc.property(bytes(32), bytes(32), message, (a, b, data) => {
        const [ours, theirs] = [
          noiseCrypto.generateX25519KeyPairFromSeed(a),
          pureJsCrypto.generateX25519KeyPairFromSeed(b),
        ]
        expect(hex(ours.publicKey)).toBe(hex(pureJsCrypto.generateX25519KeyPairFromSeed(a).publicKey))
        expect(hex(noiseCrypto.generateX25519SharedKey(ours.privateKey, theirs.publicKey))).toBe(
          hex(pureJsCrypto.generateX25519SharedKey(theirs.privateKey, ours.publicKey)),
        )
        expect(hex(noiseCrypto.hashSHA256(data))).toBe(hex(pureJsCrypto.hashSHA256(data)))
        expect(noiseCrypto.getHKDF(a, data).map(hex)).toEqual(pureJsCrypto.getHKDF(a, data).map(hex))
      }),
      { numRuns: 20 },
    )
    const { publicKey, privateKey } = noiseCrypto.generateX25519KeyPair()
    expect(hex(pureJsCrypto.generateX25519KeyPairFromSeed(privateKey).publicKey)).toBe(hex(publicKey))
  })

  test.each([
    ['zero', '00'.repeat(32)],
    ['one', `01${'00'.repeat(31)}`],
    ['of order eight', 'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800'],
  ])('refuses a public key that is %s, whose secret everybody knows', (_what, key) => {
    const { privateKey } = noiseCrypto.generateX25519KeyPair()
    expect(() => noiseCrypto.generateX25519SharedKey(privateKey, Buffer.from(key, 'hex'))).toThrow()
  })

  test.each([
    ['dials', noise({ crypto: noiseCrypto }), noise()],
    ['is dialled by', noise(), noise({ crypto: noiseCrypto })],
    ['dials, with itself,', noise({ crypto: noiseCrypto }), noise({ crypto: noiseCrypto })],
  ])('%s a stock peer, and carries messages of all lengths both ways', async (_how, dialling, listening) => {
    const options = { transports: [tcp()], streamMuxers: [yamux()] }
    const a = await createLibp2p({ ...options, connectionEncrypters: [dialling] })
    const b = await createLibp2p({
      ...options,
      connectionEncrypters: [listening],
      addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    })
    onTestFinished(async () => {
      await Promise.all([a.stop(), b.stop()])
    })
    await b.handle('/test/echo', async (stream) => {
      const frames = new Frames(stream)
      for (let one = await frames.read(never); one; one = await frames.read(never)) await frames.write(one, never)
      await frames.close()
    })
    const frames = new Frames(await a.dialProtocol(b.getMultiaddrs(), '/test/echo'))
    const lengths = [0, 1, 11, 12, 1_199, 1_200, 4_095, 4_096, 65_519, 65_520, 300_000, 1_000_000]
    const digest = (data: Uint8Array) => createHash('sha256').update(data).digest('hex')
    for (const length of lengths) {
      const sent = Buffer.alloc(length, `${length}`)
      const [, echoed] = await Promise.all([frames.write(sent, never), frames.read(never)])
      expect(digest(echoed ?? Buffer.of(1))).toBe(digest(sent))
    }
    await frames.close()
  })
})
