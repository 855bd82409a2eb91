/**
 * The parsers that bytes of strangers reach, each with valid inputs to begin from: frames and CBOR, records and the comparing of records,
 * pieces, lanes, artifacts and their manifests, NARs; and those of closed networks and services, which have files of their own. Both sides of a protocol are
 * here: an asker parses what a hostile answerer says.
 */
import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import { create as createDigest } from 'multiformats/hashes/digest'
import { z } from 'zod'
import {
  artifactBody,
  type ClosureManifest,
  decodeManifest,
  decodeSignatures,
  encodeManifest,
  encodeSignatures,
  fileCid,
  type Manifest,
  manifestCid,
} from '../protocols/artifact/artifact.ts'
import { decodeCbor, encodeCbor } from '../protocols/cbor.ts'
import { encodeFrame } from '../protocols/frame.ts'
import { decodeLaneAnswer, decodeLaneRequest, encodeLaneAnswer, encodeLaneRequest } from '../protocols/lane/lane.ts'
import { NAR_MAGIC, parseNar } from '../protocols/nar/read.ts'
import { answerPieces, encodeRequest, PieceAsker, type PieceHolder } from '../protocols/pieces/exchange.ts'
import {
  answerRecords,
  BUCKETS,
  DIGEST_BYTES,
  type RecordHoldings,
  RecordsAsker,
} from '../protocols/records/exchange.ts'
import { addressesIn, presenceBody } from '../protocols/records/presence.ts'
import { decodeRecord, encodeRecord, OPEN_NETWORK, type RecordFields } from '../protocols/records/record.ts'
import { Random } from './random.ts'
import { helloParsers } from './soak-hello.ts'
import { membershipParsers, signerOf } from './soak-membership.ts'
import { pathsParsers } from './soak-paths.ts'
import type { Parser } from './soak-run.ts'
import { serviceParsers } from './soak-services.ts'
import { askAll, cut, framed, incoming } from './soak-stream.ts'

const NOW = Date.UTC(2026, 0, 1)
const DAY_MS = 24 * 3_600_000
const NEVER = new AbortController().signal
const FRAMES_MAX = 100
const STORE_PATH = '/nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello'

export function parsers(seed: number): Parser[] {
  const random = new Random(seed)
  const records = recordSeeds(random)
  return [
    { name: 'frames', seeds: frameSeeds(random), parse: readFrames },
    { name: 'CBOR', seeds: cborSeeds(random), parse: (input) => decodeCbor(input, z.unknown()) },
    { name: 'records', seeds: records, parse: (input) => decodeRecord(input) },
    {
      name: 'records: presence',
      seeds: presenceSeeds(),
      parse: (input) => addressesIn(decodeCbor(input, presenceBody)),
    },
    { name: 'records: requests', seeds: recordRequests(random, records), parse: answerRecordRequests },
    { name: 'records: answers', seeds: recordAnswers(random, records), parse: readRecordAnswers },
    { name: 'pieces: requests', seeds: pieceRequests(random), parse: answerPieceRequests },
    { name: 'pieces: answers', seeds: pieceAnswers(random), parse: readPieceAnswers },
    { name: 'lanes: requests', seeds: laneRequests(random), parse: (input) => decodeLaneRequest(input) },
    { name: 'lanes: answers', seeds: laneAnswers(random), parse: (input) => decodeLaneAnswer(input) },
    { name: 'artifacts', seeds: artifactSeeds(random), parse: (input) => decodeCbor(input, artifactBody) },
    { name: 'artifacts: manifests', seeds: manifestSeeds(random), parse: (input) => decodeManifest(input) },
    { name: 'artifacts: signatures', seeds: signatureSeeds(), parse: (input) => decodeSignatures(input) },
    { name: 'NARs', seeds: narSeeds(random), parse: (input, cuts) => parseNar(chunksOf(input, cuts), VISITOR) },
    ...membershipParsers(random),
    ...helloParsers(random),
    ...pathsParsers(random),
    ...serviceParsers(random),
  ]
}

// Frames

function frameSeeds(random: Random): Buffer[] {
  return [0, 1, 127, 128, 300, 20_000].map((length) =>
    Buffer.concat([encodeFrame(random.bytes(length)), encodeFrame(random.bytes(5)), encodeFrame(random.bytes(200))]),
  )
}

async function readFrames(input: Buffer, random: Random): Promise<void> {
  const frames = incoming(input, random)
  for (let read = 0; read < FRAMES_MAX; read++) if ((await frames.read(NEVER)) === undefined) return
}

function cborSeeds(random: Random): Buffer[] {
  const deep = Array.from({ length: 30 }).reduce<unknown>((inner) => [inner], 'x')
  const values = [
    { a: 1, b: [-1, 2 ** 40, 1.5, true, null], c: 'text', d: new Uint8Array(random.bytes(20)) },
    deep,
    Object.fromEntries(Array.from({ length: 100 }, (_, nth) => [`key${nth}`, nth])),
    CID.createV1(0x55, createDigest(0x12, new Uint8Array(random.bytes(32)))),
  ]
  return values.map((value) => Buffer.from(encodeCbor(value)))
}

async function* chunksOf(input: Buffer, random: Random): AsyncGenerator<Uint8Array> {
  yield* cut(input, random)
}

// Records

function recordSeeds(random: Random): Buffer[] {
  const signer = signerOf(random)
  const common = { network: OPEN_NETWORK, issued: NOW, expires: NOW + DAY_MS }
  const all: RecordFields[] = [
    { ...common, kind: 'presence', name: 'node', seq: 1, body: presence() },
    { ...common, kind: 'artifact', name: 'site', seq: 2, body: artifacts(random)[0] },
    { ...common, kind: 'artifact', name: 'closure', seq: 3, body: artifacts(random)[2] },
    { ...common, kind: 'unknown', name: 'later', seq: 2 ** 40, body: { deep: [[[['x']]], { y: [1, -1, 2 ** 50] }] } },
    { ...common, kind: 'artifact', name: 'site', seq: 4, deleted: true },
  ]
  return all.map((fields) => Buffer.from(encodeRecord(fields, signer).bytes))
}

function presence() {
  return { name: 'node', version: '0.1.0', capabilities: { system: 'x86_64-linux', cpus: 2, memoryBytes: 2 ** 34 } }
}

function presenceSeeds(): Buffer[] {
  const addresses = ['/ip4/192.0.2.7/tcp/7477', '/dns4/host.example/tcp/7477/p2p-circuit']
  return [presence(), { ...presence(), addresses }].map((body) => Buffer.from(encodeCbor(body)))
}

function recordRequests(random: Random, records: readonly Buffer[]): Buffer[] {
  return framed([
    { ask: 'summary', network: OPEN_NETWORK, now: NOW },
    { ask: 'publishers', buckets: random.bytes(10) },
    { ask: 'positions', publishers: random.bytes(64) },
    { ask: 'records', ids: random.bytes(96) },
    { ask: 'offer', records: [...records] },
  ])
}

/** Holds a little of everything; what is asked of it is the stranger's business. */
const HOLDINGS: RecordHoldings = {
  network: OPEN_NETWORK,
  now: () => NOW,
  bucketDigests: () => new Uint8Array(BUCKETS * DIGEST_BYTES),
  publishers: () => [{ publisher: new Uint8Array(32), count: 1, digest: new Uint8Array(DIGEST_BYTES) }],
  positions: () => [{ tag: new Uint8Array(8), seq: 1, id: new Uint8Array(32) }],
  fetch: () => new Uint8Array(100),
  offer: async (list) => {
    for (const one of list) decodeRecord(one)
    return { accepted: list.length, refused: 0 }
  },
  onClock: () => undefined,
}

function answerRecordRequests(input: Buffer, random: Random): Promise<void> {
  return answerRecords(incoming(input, random), HOLDINGS, { requestsMax: FRAMES_MAX, signal: () => NEVER })
}

function recordAnswers(random: Random, records: readonly Buffer[]): Buffer[] {
  return framed([
    { buckets: random.bytes(BUCKETS * DIGEST_BYTES), now: NOW },
    { publishers: random.bytes(3 * 52) },
    { positions: [random.bytes(2 * 48)] },
    { records: [records[0], null] },
    { accepted: 1, refused: 0 },
    { error: 'refused' },
  ])
}

async function readRecordAnswers(input: Buffer, random: Random): Promise<void> {
  const asker = () => new RecordsAsker(incoming(input, random))
  const ids = [new Uint8Array(32), new Uint8Array(32)]
  await askAll([
    () => asker().summary(OPEN_NETWORK, NOW, NEVER),
    () => asker().publishers(new Uint8Array(3), NEVER),
    () => asker().positions(ids, NEVER),
    () => asker().records(ids, NEVER),
    () => asker().offer([new Uint8Array(10)], NEVER),
  ])
}

// Pieces

function pieceRequests(random: Random): Buffer[] {
  const digest = random.bytes(32)
  const requests = [
    encodeRequest({ op: 'have', digests: [digest, random.bytes(32)] }),
    encodeRequest({ op: 'hashes', digest, from: 0, count: 100 }),
    encodeRequest({ op: 'get', digest, from: 3, count: 4 }),
    encodeRequest({ op: 'get', digest, from: 0, count: 1, network: random.bytes(32) }),
  ]
  const frames = requests.map((one) => Buffer.from(encodeFrame(one)))
  return [...frames, Buffer.concat(frames)]
}

// Lanes

function laneRequests(random: Random): Buffer[] {
  const [digest, network] = [random.bytes(32), random.bytes(32)]
  return [
    { digest, count: 1 },
    { digest, count: 4, network },
  ].map((one) => Buffer.from(encodeLaneRequest(one)))
}

function laneAnswers(random: Random): Buffer[] {
  const lanes = [1, 2].map(() => ({ id: random.bytes(16), key: random.bytes(32) }))
  const answers = [{ port: 7_476, expiresMs: 10_000, lanes }, { error: 'busy' } as const]
  return answers.map((one) => Buffer.from(encodeLaneAnswer(one)))
}

const HOLDER: PieceHolder = {
  have: async () => ({ sizeBytes: 1_000_000, pieces: new Uint8Array([0xf0]) }),
  hashes: async (_digest, _from, count) => ({
    sizeBytes: 1_000_000,
    root: new Uint8Array(32),
    hashes: new Uint8Array(32 * Math.min(count, 4)),
  }),
  get: async (_digest, _from, count) => ({
    lengthBytes: count,
    chunks: chunksOf(Buffer.alloc(count), new Random(count)),
  }),
}

function answerPieceRequests(input: Buffer, random: Random): Promise<void> {
  return answerPieces(incoming(input, random), HOLDER, NEVER, () => undefined)
}

function pieceAnswers(random: Random): Buffer[] {
  const [one, two] = [random.bytes(32), random.bytes(32)]
  const root = createHash('sha256').update(one).update(two).digest()
  return framed([
    { have: [{ sizeBytes: 300_000, pieces: 'all' }, null] },
    { have: [{ sizeBytes: 3_000_000, pieces: Buffer.from([0xff, 0xf0]) }, null] },
    { sizeBytes: 300_000, root, hashes: Buffer.concat([one, two]) },
    { lengthBytes: 300_000 },
    { error: 'absent' },
  ])
}

async function readPieceAnswers(input: Buffer, random: Random): Promise<void> {
  const asker = () => new PieceAsker(incoming(input, random))
  const digest = new Uint8Array(32)
  await askAll([
    () => asker().have([digest, digest], NEVER),
    () => asker().hashes(digest, { sizeBytesMax: 2 ** 38 }, NEVER),
    () => asker().readGet(NEVER),
  ])
}

// Artifacts

function artifacts(random: Random): object[] {
  const cid = fileCid(random.bytes(32).toString('hex'))
  const folder = manifestCid(random.bytes(40))
  const common = { sizeBytes: 1_234, description: 'what it is' }
  return [
    { type: 'file', cid, ...common },
    { type: 'folder', cid: folder, ...common },
    {
      type: 'nix',
      cid: folder,
      ...common,
      root: STORE_PATH,
      signatures: folder,
      signer: `key:${random.bytes(32).toString('base64')}`,
      paths: random.bytes(6 * 20),
    },
  ]
}

function artifactSeeds(random: Random): Buffer[] {
  return artifacts(random).map((body) => Buffer.from(encodeCbor(body)))
}

function manifestSeeds(random: Random): Buffer[] {
  const entry = (letter: string, references: number[]) => ({
    path: STORE_PATH.replace('0', letter),
    nar: new Uint8Array(random.bytes(32)),
    sizeBytes: 1_000,
    references,
  })
  const closure: ClosureManifest = {
    v: 1,
    type: 'closure',
    root: 1,
    paths: [entry('1', [0]), entry('2', [0, 2]), { ...entry('3', []), ca: 'text:sha256:abc' }],
  }
  const folder: Manifest = { v: 1, type: 'folder', nar: new Uint8Array(random.bytes(32)), sizeBytes: 5 }
  return [encodeManifest(closure), encodeManifest(folder)].map((one) => Buffer.from(one))
}

function signatureSeeds(): Buffer[] {
  return [Buffer.from(encodeSignatures([['key:abcd', 'other:efgh'], [], ['key:ijkl']]))]
}

// NARs

const VISITOR = {
  directory: () => undefined,
  symlink: () => undefined,
  file: () => undefined,
  contents: () => undefined,
  fileEnd: () => undefined,
}

function narSeeds(random: Random): Buffer[] {
  const file = (contents: Buffer) => ['(', 'type', 'regular', 'contents', contents, ')']
  const script = ['(', 'type', 'regular', 'executable', '', 'contents', '#!/bin/sh\n', ')']
  const link = ['(', 'type', 'symlink', 'target', '../x', ')']
  const entry = (name: string, node: (string | Buffer)[]) => ['entry', '(', 'name', name, 'node', ...node, ')']
  const inner = ['(', 'type', 'directory', ...entry('a', link), ...entry('b', file(random.bytes(9_000))), ')']
  const tree = ['(', 'type', 'directory', ...entry('bin', inner), ...entry('run', script), ')']
  return [file(random.bytes(13)), script, link, tree].map((node) => Buffer.concat([NAR_MAGIC, ...node].map(word)))
}

/** Length in eight bytes, contents, zeros up to a multiple of eight. */
function word(value: string | Buffer): Buffer {
  const bytes = Buffer.from(value as string)
  const whole = Buffer.alloc(8 + Math.ceil(bytes.byteLength / 8) * 8)
  whole.writeBigUInt64LE(BigInt(bytes.byteLength))
  bytes.copy(whole, 8)
  return whole
}
