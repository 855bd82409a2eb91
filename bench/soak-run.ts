/**
 * Hostile inputs over parsers. Each input is a valid one that was damaged (bits, lengths, pieces cut out, doubled, mixed in from another),
 * or noise. Whatever comes, a parser takes it or throws a WireError, soon, and keeps nothing. The same seed makes the same inputs.
 */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { WireError } from '../protocols/error.ts'
import { Random } from './random.ts'

/**
 * A stranger must not make us busy with one message. It is the process's own time that counts: how long other processes let it wait, on a
 * machine with other work, is not the parser's doing.
 */
const INPUT_CPU_MS_MAX = 1_000
/** From when all is warm until the end, after a garbage collection: what is kept. 20 bytes of each of a million inputs would be 18 MB. */
const KEPT_BYTES_MAX = 8 * 1024 * 1024
/** The same of resident memory, most of which is garbage that V8 has not collected yet. */
const GROWTH_BYTES_MAX = 128 * 1024 * 1024
const WARM_UP_SHARE = 0.1
/** Inputs between two turns of the event loop: some garbage is freed in those only. */
const TURN = 100
const COLLECTIONS = 4
const SAMPLES_MAX = 1_000
const PROGRESS_EVERY = 100_000
/** Larger than any message: what a parser makes of a declared length. */
const INPUT_BYTES_MAX = 256 * 1024
/** Heads of CBOR items that claim much, zeros, ones. */
const TELLING_BYTES = [
  0x00, 0x01, 0x7f, 0x80, 0xff, 0x1b, 0x3b, 0x5b, 0x7b, 0x9b, 0xbb, 0x5f, 0x9f, 0xbf, 0xd8, 0xf6, 0xfb,
]

/** What bytes of strangers reach, with valid inputs to begin from. */
export type Parser = {
  name: string
  seeds: readonly Buffer[]
  /** May take its time: what it returns is awaited. @throws {WireError} and nothing else. */
  readonly parse: (input: Buffer, random: Random) => unknown
}

export type SoakOptions = {
  parsers: readonly Parser[]
  inputs: number
  seed: number
  /** Stops early. */
  msMax: number
  progress?: (done: number) => void
}

export type Tally = {
  readonly name: string
  taken: number
  refused: number
  /** A sample of the times. */
  readonly us: number[]
  /** By the clock: a loaded machine may be late. */
  slowestMs: number
}
type Memory = { residentBytes: number; keptBytes: number }
export type Soaked = {
  done: number
  tallies: readonly Tally[]
  /** What was used when all was warm, and how much more at the end. */
  warm: Memory
  grown: Memory
  isBounded: boolean
  /** What a parser did wrong, and the input; the soak ends there. */
  failure?: { parser: string; nth: number; what: string; input: Buffer }
}

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

export async function soak({ parsers, inputs, seed, msMax, progress }: SoakOptions): Promise<Soaked> {
  const random = new Random(seed)
  const tallies = parsers.map(({ name }): Tally => ({ name, taken: 0, refused: 0, us: [], slowestMs: 0 }))
  const startedMs = performance.now()
  let warm = await memory()
  let done = 0
  let failure: Soaked['failure']
  for (; done < inputs && failure === undefined && performance.now() - startedMs < msMax; done++) {
    const [parser, tally] = [parsers[done % parsers.length] as Parser, tallies[done % parsers.length] as Tally]
    const input = damaged(parser.seeds, random)
    const what = await faultOf(parser, tally, input, random)
    if (what !== undefined) failure = { parser: parser.name, nth: done, what, input }
    if (done % TURN === 0) await nextTurn()
    if (done === Math.floor(inputs * WARM_UP_SHARE)) warm = await memory()
    if (done > 0 && done % PROGRESS_EVERY === 0) progress?.(done)
  }
  const end = await memory()
  const grown = { residentBytes: end.residentBytes - warm.residentBytes, keptBytes: end.keptBytes - warm.keptBytes }
  const isBounded = grown.residentBytes <= GROWTH_BYTES_MAX && grown.keptBytes <= KEPT_BYTES_MAX
  return { done, tallies, warm, grown, isBounded, ...(failure && { failure }) }
}

/** Why the input is a fault of the parser; undefined when it behaved. */
async function faultOf(parser: Parser, tally: Tally, input: Buffer, random: Random): Promise<string | undefined> {
  const startedMs = performance.now()
  const startedCpu = process.cpuUsage()
  try {
    await parser.parse(input, random)
    tally.taken++
  } catch (error) {
    if (!(error instanceof WireError)) return error instanceof Error ? (error.stack ?? error.message) : String(error)
    tally.refused++
  }
  const tookMs = performance.now() - startedMs
  tally.slowestMs = Math.max(tally.slowestMs, tookMs)
  // A sample is enough, and does not grow by a million.
  if (tally.us.length < SAMPLES_MAX) tally.us.push(tookMs * 1_000)
  else if (random.oneIn(SAMPLES_MAX)) tally.us[random.below(SAMPLES_MAX)] = tookMs * 1_000
  if (tookMs < INPUT_CPU_MS_MAX) return undefined
  const { user, system } = process.cpuUsage(startedCpu)
  const cpuMs = (user + system) / 1_000
  return cpuMs > INPUT_CPU_MS_MAX ? `it took ${Math.round(cpuMs)} ms` : undefined
}

function damaged(seeds: readonly Buffer[], random: Random): Buffer {
  let bytes: Buffer = Buffer.from(random.pick(seeds))
  // Now and then nothing but noise.
  if (random.oneIn(50)) return random.bytes(random.below(300))
  for (let damage = 1 + random.below(4); damage > 0; damage--) bytes = damagedOnce(bytes, seeds, random)
  return bytes.subarray(0, INPUT_BYTES_MAX)
}

function damagedOnce(bytes: Buffer, seeds: readonly Buffer[], random: Random): Buffer {
  const at = random.below(bytes.byteLength + 1)
  const length = random.below(Math.min(64, bytes.byteLength - at) + 1)
  const before = bytes.subarray(0, at)
  switch (random.below(8)) {
    case 0:
      if (at < bytes.byteLength) bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << random.below(8)), at)
      return bytes
    case 1:
      if (at < bytes.byteLength) bytes.writeUInt8(random.pick(TELLING_BYTES), at)
      return bytes
    case 2:
      return Buffer.concat([before, bytes.subarray(at + length)])
    case 3:
      return Buffer.concat([before, bytes.subarray(at, at + length), bytes.subarray(at)])
    case 4:
      return Buffer.concat([before, random.bytes(random.below(16)), bytes.subarray(at)])
    case 5:
      return Buffer.from(before)
    case 6: {
      const other = random.pick(seeds)
      return Buffer.concat([before, other.subarray(random.below(other.byteLength + 1))])
    }
    default:
      return withLength(bytes, at, random)
  }
}

/** A length where there may be one: eight bytes of either order, near the limits of numbers. */
function withLength(bytes: Buffer, at: number, random: Random): Buffer {
  if (at + 8 > bytes.byteLength) return bytes
  const value = random.pick([0n, 1n, 0x7fffffffn, 0xffffffffn, 2n ** 53n, 2n ** 63n - 1n, 2n ** 64n - 1n])
  if (random.oneIn(2)) bytes.writeBigUInt64LE(value, at)
  else bytes.writeBigUInt64BE(value, at)
  return bytes
}

/** Memory outside the heap is freed after a collection, in turns of its own. */
async function memory(): Promise<Memory> {
  for (let nth = 0; nth < COLLECTIONS; nth++) {
    collectGarbage()
    await delay(50)
  }
  const { rss, heapUsed, external } = process.memoryUsage()
  return { residentBytes: rss, keptBytes: heapUsed + external }
}
