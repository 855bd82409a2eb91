/**
 * The shared ground of all protocols against its vectors, which were made by another implementation: frames, canonical DAG-CBOR, signing.
 */
import { createPrivateKey, createPublicKey, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../../protocols/cbor.ts'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame, FRAME_BYTES_MAX, Frames } from '../../protocols/frame.ts'
import { streamPair } from '../stream-pair.ts'

type Refused = { why: string; bytes: string; code?: string }
const vectors = JSON.parse(readFileSync('protocols/vectors.json', 'utf8')) as {
  frames: {
    valid: { payload: string; frame: string }[]
    prefixes: { length: number; prefix: string }[]
    refused: Refused[]
  }
  cbor: { valid: { what: string; bytes: string }[]; refused: Refused[] }
  signing: { seed: string; publicKey: string; domain: string; payload: string; signature: string }[]
}
const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'))
const never = new AbortController().signal

describe('frames', () => {
  it.each(vectors.frames.valid)('writes and reads $frame', async ({ payload, frame }) => {
    expect(Buffer.from(encodeFrame(hex(payload))).toString('hex')).toBe(frame)
    const [ours, theirs] = streamPair()
    ours.send(hex(frame))
    expect(Buffer.from((await new Frames(theirs).read(never)) ?? []).toString('hex')).toBe(payload)
  })

  it.each(vectors.frames.prefixes.filter(({ length }) => length <= FRAME_BYTES_MAX * 2))(
    'puts $prefix before $length bytes',
    ({ length, prefix }) => {
      const frame = encodeFrame(new Uint8Array(length))
      expect(frame.byteLength).toBe(length + prefix.length / 2)
      expect(Buffer.from(frame.subarray(0, prefix.length / 2)).toString('hex')).toBe(prefix)
    },
  )

  it.each(vectors.frames.refused)('refuses what is $why', async ({ bytes, code }) => {
    const [ours, theirs] = streamPair()
    ours.send(hex(bytes))
    await ours.close()
    await expect(new Frames(theirs).read(never)).rejects.toMatchObject({ name: 'WireError', code })
  })

  it('gives the same frames however the bytes are cut', async () => {
    const payloads = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 6 })
    const cuts = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 })
    await fc.assert(
      fc.asyncProperty(payloads, cuts, async (sent, sizes) => {
        const [ours, theirs] = streamPair()
        const bytes = Buffer.concat(sent.map(encodeFrame))
        for (let at = 0, nth = 0; at < bytes.byteLength; nth++) {
          const size = sizes[nth % sizes.length] ?? 1
          ours.send(bytes.subarray(at, at + size))
          at += size
        }
        await ours.close()
        const frames = new Frames(theirs)
        for (const payload of sent) expect(Buffer.from((await frames.read(never)) ?? [])).toEqual(Buffer.from(payload))
        expect(await frames.read(never)).toBeUndefined()
      }),
    )
  })

  it('reserves nothing for a length over the limit, whatever follows', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1_001, max: 2 ** 28 - 1 }), async (length) => {
        const [ours, theirs] = streamPair()
        ours.send(prefixOf(length))
        await expect(new Frames(theirs).read(never, 1_000)).rejects.toMatchObject({ code: 'too-large' })
      }),
    )
  })

  it('stays quick when half a mebibyte comes in single bytes', async () => {
    const [ours, theirs] = streamPair()
    const frames = new Frames(theirs)
    const payload = new Uint8Array(500_000).fill(7)
    const started = performance.now()
    for (const byte of encodeFrame(payload)) ours.send(Uint8Array.of(byte))
    expect(Buffer.compare((await frames.read(never)) ?? new Uint8Array(), payload)).toBe(0)
    expect(performance.now() - started).toBeLessThan(5_000)
  })
})

describe('canonical DAG-CBOR', () => {
  it.each(vectors.cbor.valid)('reads $what, and writes the same bytes', ({ bytes }) => {
    const value = decodeCbor(hex(bytes), z.unknown())
    expect(Buffer.from(encodeCbor(value)).toString('hex')).toBe(bytes)
  })

  it.each(vectors.cbor.refused)('refuses $why', ({ bytes }) => {
    expect(() => decodeCbor(hex(bytes), z.unknown())).toThrow(WireError)
  })

  it('gives back what was written', () => {
    fc.assert(
      fc.property(plain(), (value) => {
        expect(decodeCbor(encodeCbor(value), z.unknown())).toEqual(value)
      }),
    )
  })

  it('takes arbitrary bytes as the canonical form of something, or throws a WireError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
        try {
          expect(Buffer.compare(encodeCbor(decodeCbor(bytes, z.unknown())), bytes)).toBe(0)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
      { numRuns: 2_000 },
    )
  })

  it('survives a mebibyte of nesting', () => {
    expect(() => decodeCbor(new Uint8Array(1024 * 1024).fill(0x81), z.unknown())).toThrow(WireError)
  })

  it('is not fooled by maps that look like links or prototypes', () => {
    for (const value of [{ '/': 'x', bytes: 'x' }, { asCID: 1 }, { ['__proto__']: { v: 1 } }]) {
      let read: unknown
      try {
        read = decodeCbor(encodeMap(value), z.unknown())
      } catch (error) {
        expect(error).toBeInstanceOf(WireError)
        continue
      }
      expect(CID.asCID(read)).toBeNull()
      expect(Object.getPrototypeOf(read)).toBe(Object.prototype)
    }
  })
})

describe('signing', () => {
  it.each(vectors.signing)(
    'signs the domain, a zero byte and the payload',
    ({ seed, publicKey, domain, payload, signature }) => {
      const der = Buffer.concat([hex('302e020100300506032b657004220420'), hex(seed)])
      const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
      expect(createPublicKey(key).export({ format: 'jwk' }).x).toBe(Buffer.from(hex(publicKey)).toString('base64url'))
      const signed = Buffer.concat([Buffer.from(`${domain}\0`), hex(payload)])
      expect(sign(null, signed, key).toString('hex')).toBe(signature)
    },
  )
})

function plain(): fc.Arbitrary<unknown> {
  const leaf = fc.oneof(
    fc.maxSafeInteger(),
    fc.string(),
    fc.boolean(),
    fc.constant(null),
    fc.uint8Array(),
    fc.double({ noNaN: true, noDefaultInfinity: true, noInteger: true }),
  )
  const key = fc.string().filter((text) => text !== '__proto__')
  return fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 5 },
      leaf,
      fc.array(tie('value'), { maxLength: 4 }),
      fc.dictionary(key, tie('value'), { maxKeys: 4, noNullPrototype: true }),
    ),
  })).value
}

/** CBOR of a map of text or small integers or such maps, without any library. */
function encodeMap(value: unknown): Uint8Array {
  const text = (one: string) => Buffer.concat([Buffer.from([0x60 + Buffer.byteLength(one)]), Buffer.from(one)])
  if (typeof value === 'string') return text(value)
  if (typeof value === 'number') return Uint8Array.of(value)
  const entries = Object.entries(value as object).sort(([a], [b]) => a.length - b.length)
  return Buffer.concat([
    Buffer.from([0xa0 + entries.length]),
    ...entries.flatMap(([key, one]) => [text(key), encodeMap(one)]),
  ])
}

function prefixOf(length: number): Uint8Array {
  const bytes: number[] = []
  for (let rest = length; ; rest >>>= 7) {
    if (rest < 0x80) return Uint8Array.of(...bytes, rest)
    bytes.push((rest & 0x7f) | 0x80)
  }
}
