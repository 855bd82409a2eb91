/** The messages of the pieces protocol: vectors, and that no bytes from outside do anything but parse or be refused. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import { encodeFrame, Frames } from '../../../protocols/frame.ts'
import {
  answerPieces,
  decodeRequest,
  encodeRequest,
  GET_PIECES_MAX,
  getRange,
  HASHES_MAX,
  PieceAsker,
  type PieceHolder,
  type PieceRequest,
} from '../../../protocols/pieces/exchange.ts'
import { nameHash, shareWeight } from '../../../protocols/pieces/share.ts'
import { merkleRoot, PIECE_BYTES, PieceHasher, pieceCount, rangeBytes } from '../../../protocols/pieces/tree.ts'
import vectors from '../../../protocols/pieces/vectors.json' with { type: 'json' }
import { duplexPair } from './duplex.ts'
import { pattern } from './pattern.ts'

const never = new AbortController().signal
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const digestBytes = fc.uint8Array({ minLength: 32, maxLength: 32 })

type VectorRequest = { op: string; digest?: string; digests?: string[]; network?: string }
const fromVector = ({ digest, digests, network, ...rest }: VectorRequest) =>
  ({
    ...rest,
    ...(network ? { network: Buffer.from(network, 'hex') } : {}),
    ...(digest ? { digest: Buffer.from(digest, 'hex') } : {}),
    ...(digests ? { digests: digests.map((one) => Buffer.from(one, 'hex')) } : {}),
  }) as PieceRequest

describe('requests', () => {
  test.each(vectors.messages)('$request.op is encoded as in the vectors, and read back', ({ request, payload }) => {
    expect(hex(encodeRequest(fromVector(request)))).toBe(payload)
    expect(decodeRequest(Buffer.from(payload, 'hex'))).toMatchObject({ op: request.op })
  })

  test.each(vectors.refused)('$why is refused', ({ payload }) => {
    expect(() => decodeRequest(Buffer.from(payload, 'hex'))).toThrow(WireError)
  })

  test('any request survives the way there', () => {
    const request = fc.oneof(
      fc.record({ op: fc.constant('have'), digests: fc.array(digestBytes, { minLength: 1, maxLength: 64 }) }),
      fc.record({ op: fc.constant('hashes'), digest: digestBytes, from: fc.nat(2 ** 20), count: fc.nat(HASHES_MAX) }),
      fc.record({
        op: fc.constant('get'),
        digest: digestBytes,
        from: fc.nat(2 ** 20),
        count: fc.integer({ min: 1, max: GET_PIECES_MAX }),
      }),
    ) as fc.Arbitrary<PieceRequest>
    fc.assert(
      fc.property(request, fc.option(digestBytes, { nil: undefined }), (one, network) => {
        const encoded = encodeRequest(network ? { ...one, network } : one)
        const decoded = decodeRequest(encoded) as PieceRequest
        expect(decoded.network && hex(decoded.network)).toBe(network && hex(network))
        expect(hex(encodeRequest(decoded))).toBe(hex(encoded))
      }),
    )
  })

  test('of a later version are told apart from garbage', () => {
    expect(decodeRequest(encodeCbor({ op: 'sing', loud: true }))).toBe('unknown')
    expect(
      decodeRequest(encodeCbor({ op: 'get', digest: new Uint8Array(32), from: 0, count: 1, more: 1 })),
    ).toMatchObject({ op: 'get' })
  })

  test('random bytes parse or are refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        try {
          decodeRequest(bytes)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
      { numRuns: 500 },
    )
  })
})

describe('an asker', () => {
  const answers: [string, (asker: PieceAsker) => Promise<unknown>][] = [
    ['have', (asker) => asker.have([new Uint8Array(32)], never)],
    ['hashes', (asker) => asker.hashes(new Uint8Array(32), { sizeBytesMax: 2 ** 30 }, never)],
    ['pieces', (asker) => asker.readPieces(never)],
    ['hashes and first', (asker) => asker.hashesAndFirst(new Uint8Array(32), { sizeBytesMax: 2 ** 22 }, never)],
    ['get', (asker) => asker.askGet(new Uint8Array(32), 0, 1, never).then(() => asker.readGet(never))],
  ]
  test.each(answers)('takes any bytes as answer to %s, or throws a WireError', async (_op, ask) => {
    const piece = fc.oneof(
      fc.uint8Array({ maxLength: 60 }),
      fc.constantFrom(
        encodeCbor({ error: 'absent' }),
        encodeCbor({ error: 'constructor' }),
        encodeCbor({ error: 'Not a word' }),
        encodeCbor({ have: [null] }),
        encodeCbor({ have: [] }),
        encodeCbor({ have: [{ sizeBytes: 10, pieces: new Uint8Array(2) }] }),
        encodeCbor({ sizeBytes: 10, root: new Uint8Array(32), hashes: new Uint8Array(32) }),
        encodeCbor({ sizeBytes: 2 ** 31, root: new Uint8Array(32), hashes: new Uint8Array(0) }),
        encodeCbor({ sizeBytes: 2 ** 29, root: new Uint8Array(32), hashes: new Uint8Array(33) }),
        encodeCbor({ sizeBytes: 10, root: new Uint8Array(32), hashes: new Uint8Array(0), pieces: new Uint8Array(1) }),
        encodeCbor({ sizeBytes: 10, root: new Uint8Array(32), hashes: new Uint8Array(0), pieces: new Uint8Array(2) }),
        encodeCbor({ sizeBytes: 10, root: new Uint8Array(32), hashes: new Uint8Array(0), askers: ['x', 1] }),
        encodeCbor({ lengthBytes: 100 }),
        encodeCbor({ lengthBytes: -1 }),
      ),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 3 }), async (payloads) => {
        const [ours, theirs] = duplexPair()
        for (const payload of payloads) theirs.send(encodeFrame(payload))
        await theirs.close()
        await ask(new PieceAsker(new Frames(ours))).catch((error: unknown) => expect(error).toBeInstanceOf(WireError))
      }),
      { numRuns: 150 },
    )
  })

  test('reads a list of several answers, and holds it against its root', async () => {
    const { asker, requests } = serving(HASHES_MAX * 2 + 5)
    const list = await asker.hashes(new Uint8Array(32), { sizeBytesMax: 2 ** 38 }, never)
    expect(list.hashes.byteLength).toBe((HASHES_MAX * 2 + 5) * 32)
    expect(requests).toEqual([HASHES_MAX, HASHES_MAX, 5])
  })

  test('asks for no list whose root it knows', async () => {
    const { asker, requests, root } = serving(HASHES_MAX * 2)
    expect(
      (await asker.hashes(new Uint8Array(32), { sizeBytesMax: 2 ** 38, known: root }, never)).hashes.byteLength,
    ).toBe(0)
    expect(requests).toEqual([0])
  })

  test('refuses a list with another root, one that changes, one that is cut short, and a blob too large', async () => {
    const ask = (asker: PieceAsker, sizeBytesMax = 2 ** 38) => asker.hashes(new Uint8Array(32), { sizeBytesMax }, never)
    await expect(ask(serving(10, { lie: 'root' }).asker)).rejects.toMatchObject({ code: 'mismatch' })
    await expect(ask(serving(HASHES_MAX + 1, { lie: 'changes' }).asker)).rejects.toMatchObject({ code: 'mismatch' })
    await expect(ask(serving(HASHES_MAX + 1, { lie: 'short' }).asker)).rejects.toMatchObject({ code: 'malformed' })
    await expect(ask(serving(10).asker, PIECE_BYTES)).rejects.toMatchObject({ code: 'refused' })
  })
})

describe('an answer to hashes', () => {
  const read = async (payload: string) => {
    const [ours, theirs] = duplexPair()
    theirs.send(encodeFrame(Buffer.from(payload, 'hex')))
    return await new PieceAsker(new Frames(ours)).readPieces(never)
  }
  test.each(vectors.answers)('is read as in the vectors', async ({ answer, payload }) => {
    const { pieces, askers, ...list } = await read(payload)
    expect({
      ...list,
      root: hex(list.root),
      hashes: hex(list.hashes),
      ...(pieces ? { pieces: hex(pieces) } : {}),
      ...(askers ? { askers } : {}),
    }).toEqual(answer)
  })

  test.each(vectors.refusedAnswers)('with $why is refused', async ({ payload }) => {
    await expect(read(payload)).rejects.toMatchObject({ code: 'malformed' })
  })
})

describe('a small blob', () => {
  test('comes with its list in one round trip', async () => {
    const blob = pattern(1_000)
    const hasher = new PieceHasher()
    hasher.update(blob)
    const { hashes } = hasher.finish()
    const [ours, theirs] = duplexPair()
    const asked = new PieceAsker(new Frames(ours)).hashesAndFirst(new Uint8Array(32), { sizeBytesMax: 5_000 }, never)
    const requests = new Frames(theirs)
    // Both are asked before anything is answered.
    for (const op of ['hashes', 'get'])
      expect(decodeRequest((await requests.read(never)) ?? new Uint8Array())).toMatchObject({ op })
    theirs.send(encodeFrame(encodeCbor({ sizeBytes: 1_000, root: merkleRoot(hashes), hashes })))
    theirs.send(encodeFrame(encodeCbor({ lengthBytes: 1_000 })))
    theirs.send(blob)
    const { stated, first } = await asked
    expect(stated.sizeBytes).toBe(1_000)
    expect(Buffer.compare(first ?? Buffer.of(), blob)).toBe(0)
  })

  test.each([
    ['has no list, and no piece', [{ error: 'absent' }, { error: 'absent' }], /does not have it/],
    ['has no list, but a piece', [{ error: 'absent' }, { lengthBytes: 3 }, 3], /does not have it/],
  ] as const)('of a peer that %s leaves the stream in order', async (_what, answers, reason) => {
    const [ours, theirs] = duplexPair()
    const asker = new PieceAsker(new Frames(ours))
    const asked = asker.hashesAndFirst(new Uint8Array(32), { sizeBytesMax: 5_000 }, never)
    for (const one of answers) theirs.send(typeof one === 'number' ? new Uint8Array(one) : encodeFrame(encodeCbor(one)))
    await expect(asked).rejects.toThrow(reason)
    theirs.send(encodeFrame(encodeCbor({ have: [null] })))
    expect(await asker.have([new Uint8Array(32)], never)).toEqual([null])
  })

  test('longer than its list says is refused', async () => {
    const [ours, theirs] = duplexPair()
    const asked = new PieceAsker(new Frames(ours)).hashesAndFirst(new Uint8Array(32), { sizeBytesMax: 5_000 }, never)
    theirs.send(encodeFrame(encodeCbor({ sizeBytes: 1_000, root: new Uint8Array(32), hashes: new Uint8Array(32) })))
    theirs.send(encodeFrame(encodeCbor({ lengthBytes: 1_001 })))
    await expect(asked).rejects.toMatchObject({ code: 'malformed' })
  })
})

describe('the shares of those who fetch at once', () => {
  test('are as in the vectors', () => {
    const { peers, of } = vectors.shares
    const owners = of.map((_, run) => {
      const weights = peers.map((peer) => shareWeight(nameHash(peer), run))
      return weights.indexOf(Math.max(...weights))
    })
    expect(owners).toEqual(of)
  })
})

describe('an answerer', () => {
  test('answers any honest questions in order, pieces included', async () => {
    const blob = pattern(5 * PIECE_BYTES + 99)
    const hasher = new PieceHasher()
    hasher.update(blob)
    const { digest, hashes } = hasher.finish()
    const name = Buffer.from(digest, 'hex')
    const { asker } = answering(holderOf(blob, hashes))
    expect(await asker.have([name, new Uint8Array(32)], never)).toEqual([
      { sizeBytes: blob.byteLength, pieces: 'all' },
      null,
    ])
    const runs = [
      { from: 4, count: 2 },
      { from: 0, count: 3 },
    ]
    for (const { from, count } of runs) await asker.askGet(name, from, count, never)
    for (const { from, count } of runs) {
      const lengthBytes = rangeBytes(blob.byteLength, from, count)
      expect(await asker.readGet(never)).toBe(lengthBytes)
      const bytes = new Uint8Array(lengthBytes)
      await asker.readInto(bytes, never)
      expect(Buffer.compare(bytes, blob.subarray(from * PIECE_BYTES, from * PIECE_BYTES + lengthBytes))).toBe(0)
    }
    await asker.askGet(name, 5, 2, never)
    await expect(asker.readGet(never)).rejects.toMatchObject({ code: 'refused' })
    await asker.askGet(new Uint8Array(32), 0, 1, never)
    await expect(asker.readGet(never)).rejects.toMatchObject({ code: 'absent' })
  })

  test.each([
    ['a closed network', new Uint8Array(32).fill(7)],
    ['the open one', undefined],
  ])('is told with every question that it is asked in %s', async (_where, network) => {
    const told: (Uint8Array | undefined)[] = []
    const [ours, theirs] = duplexPair()
    const holder: PieceHolder = {
      have: async (_digest, _signal, ...rest) => {
        told.push(...rest)
        return null
      },
      hashes: async (_digest, _from, _count, _signal, ...rest) => {
        told.push(...rest)
        return { error: 'absent' }
      },
      get: async (_digest, _from, _count, _signal, ...rest) => {
        told.push(...rest)
        return { error: 'absent' }
      },
    }
    answerPieces(new Frames(theirs), holder, never, () => undefined).catch((error: Error) => theirs.abort(error))
    const asker = new PieceAsker(new Frames(ours), network)
    const name = new Uint8Array(32)
    await asker.have([name, name], never)
    await expect(asker.hashes(name, { sizeBytesMax: 1 }, never)).rejects.toMatchObject({ code: 'absent' })
    await asker.askGet(name, 0, 1, never)
    await expect(asker.readGet(never)).rejects.toMatchObject({ code: 'absent' })
    expect(told.map((one) => one && hex(one))).toEqual(Array.from({ length: 4 }, () => network && hex(network)))
  })

  test('says so when it does not know a question, and goes on', async () => {
    const { frames, asker } = answering(holderOf(new Uint8Array(0), new Uint8Array(0)))
    await frames.write(encodeCbor({ op: 'sing' }), never)
    expect(Buffer.from((await frames.read(never)) ?? []).toString()).toContain('unknown')
    expect(await asker.have([new Uint8Array(32)], never)).toEqual([null])
  })

  test('answers a bitmap too large for the frame with null', async () => {
    const sizeBytes = 2 ** 38
    const pieces = new Uint8Array(pieceCount(sizeBytes) / 8)
    const { asker } = answering({
      ...holderOf(new Uint8Array(0), new Uint8Array(0)),
      have: async () => ({ sizeBytes, pieces }),
    })
    const have = await asker.have(
      Array.from({ length: 64 }, () => new Uint8Array(32)),
      never,
    )
    expect(have[0]).toEqual({ sizeBytes, pieces })
    expect(have.at(-1)).toBeNull()
  })

  test('any bytes end it with a WireError or in peace', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.uint8Array({ maxLength: 100 }), { maxLength: 4 }),
        fc.boolean(),
        async (chunks, framed) => {
          const [ours, theirs] = duplexPair()
          for (const chunk of chunks) theirs.send(framed ? encodeFrame(chunk) : chunk)
          await theirs.close()
          const holder = holderOf(new Uint8Array(0), new Uint8Array(0))
          await answerPieces(new Frames(ours), holder, never, () => undefined).catch((error: unknown) =>
            expect(error).toBeInstanceOf(WireError),
          )
        },
      ),
      { numRuns: 200 },
    )
  })
})

/** One end asks, the other answers by `holder`. */
function answering(holder: PieceHolder) {
  const [ours, theirs] = duplexPair()
  const frames = new Frames(ours)
  answerPieces(new Frames(theirs), holder, never, () => undefined).catch((error: Error) => theirs.abort(error))
  return { frames, asker: new PieceAsker(frames) }
}

function holderOf(blob: Uint8Array, hashes: Uint8Array): PieceHolder {
  const hasher = new PieceHasher()
  hasher.update(blob)
  const { digest } = hasher.finish()
  const isIt = (name: Uint8Array) => blob.byteLength > 0 && hex(name) === digest
  return {
    have: async (name) => (isIt(name) ? { sizeBytes: blob.byteLength, pieces: 'all' } : null),
    hashes: async (name, from, count) =>
      isIt(name)
        ? {
            sizeBytes: blob.byteLength,
            root: merkleRoot(hashes),
            hashes: hashes.subarray(from * 32, (from + count) * 32),
          }
        : { error: 'absent' },
    get: async (name, from, count) => {
      if (!isIt(name)) return { error: 'absent' }
      const range = getRange(blob.byteLength, from, count)
      if (!range) return { error: 'range' }
      const bytes = blob.subarray(range.offset, range.offset + range.lengthBytes)
      return {
        lengthBytes: range.lengthBytes,
        chunks: (async function* () {
          for (let at = 0; at < bytes.byteLength; at += 100_000) yield bytes.subarray(at, at + 100_000)
        })(),
      }
    },
  }
}

/** A peer that states a list of so many pieces, and perhaps lies about it. */
function serving(pieces: number, { lie }: { lie?: 'root' | 'changes' | 'short' } = {}) {
  const hashes = pattern(pieces * 32)
  const root = lie === 'root' ? new Uint8Array(32) : merkleRoot(hashes)
  const requests: number[] = []
  const { asker } = answering({
    ...holderOf(new Uint8Array(0), new Uint8Array(0)),
    hashes: async (_digest, from, count) => {
      requests.push(count)
      if (lie === 'short' && from > 0) return { sizeBytes: pieces * PIECE_BYTES, root, hashes: new Uint8Array(0) }
      const stated = lie === 'changes' && from > 0 ? new Uint8Array(32) : root
      return { sizeBytes: pieces * PIECE_BYTES, root: stated, hashes: hashes.subarray(from * 32, (from + count) * 32) }
    },
  })
  return { asker, requests, root }
}
