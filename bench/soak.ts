/**
 * `npm run soak`: a million hostile inputs over every parser that a stranger reaches. Each input is a valid one that was damaged (bits,
 * lengths, pieces cut out, doubled, mixed in from another), in chunks cut at random. Whatever comes, a parser takes it or throws a
 * WireError, soon, and keeps nothing. `npm run soak -- 100000 42` gives the number and the seed; a failure prints both and the input.
 */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { styleText } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { WireError } from '../protocols/error.ts'
import { median } from './harness.ts'
import { Random } from './random.ts'
import { type Parser, parsers } from './soak-parsers.ts'

const INPUTS = 1_000_000
const SEED = 1
/** Stops early, and says so: on a machine with other work the million takes longer than is worth waiting for. */
const MS_MAX = 15 * 60_000
/** A stranger must not make us busy with one message. The event loop of a loaded machine may be late by this as well. */
const INPUT_MS_MAX = 1_000
/** From when all is warm until the end, after a garbage collection: what is kept. 20 bytes of each input would be 18 MB. */
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
const MB = 1024 * 1024

type Tally = { parser: Parser; taken: number; refused: number; us: number[]; slowestMs: number }

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

const [inputs = INPUTS, seed = SEED] = process.argv.slice(2).map(Number)
if (!Number.isSafeInteger(inputs) || !Number.isSafeInteger(seed)) {
  process.stderr.write('usage: npm run soak -- [INPUTS] [SEED]\n')
  process.exit(2)
}
process.exit((await soak(inputs, seed)) ? 0 : 1)

async function soak(count: number, seedOfRun: number): Promise<boolean> {
  const random = new Random(seedOfRun)
  const tallies = parsers(seedOfRun).map((parser): Tally => ({ parser, taken: 0, refused: 0, us: [], slowestMs: 0 }))
  const startedMs = performance.now()
  let warm = { rssBytes: 0, keptBytes: 0 }
  let done = 0
  for (; done < count && performance.now() - startedMs < MS_MAX; done++) {
    const tally = tallies[done % tallies.length] as Tally
    const input = damaged(tally.parser.seeds, random)
    const failure = await parsed(tally, input, random)
    if (failure !== undefined) {
      print(styleText('red', `input ${done} of seed ${seedOfRun}, ${tally.parser.name}: ${failure}`))
      print(input.toString('hex').slice(0, 10_000))
      return false
    }
    if (done % TURN === 0) await nextTurn()
    if (done === Math.floor(count * WARM_UP_SHARE)) warm = await memory()
    if (done > 0 && done % PROGRESS_EVERY === 0)
      print(`${done} inputs, ${Math.round(process.memoryUsage.rss() / MB)} MB`)
  }
  const seconds = (performance.now() - startedMs) / 1_000
  for (const { parser, taken, refused, us, slowestMs } of tallies) {
    print(
      `${parser.name.padEnd(28)} ${String(refused).padStart(7)} refused  ${String(taken).padStart(7)} taken  median ${Math.round(median(us))} us  slowest ${slowestMs.toFixed(1)} ms`,
    )
  }
  const end = await memory()
  const grown = { rssBytes: end.rssBytes - warm.rssBytes, keptBytes: end.keptBytes - warm.keptBytes }
  const isBounded = grown.rssBytes <= GROWTH_BYTES_MAX && grown.keptBytes <= KEPT_BYTES_MAX
  const cut = done < count ? ` (stopped after ${MS_MAX / 60_000} minutes)` : ''
  print(`${done} inputs of seed ${seedOfRun} in ${Math.round(seconds)} s${cut}: ${Math.round(done / seconds)} a second`)
  print(
    `resident ${megabytes(warm.rssBytes)} when warm, ${megabytes(grown.rssBytes)} more at the end; kept ${megabytes(warm.keptBytes)}, ${megabytes(grown.keptBytes)} more: ${isBounded ? 'bounded' : styleText('red', 'it grows')}`,
  )
  return isBounded
}

/** Why the input is a fault of the parser; undefined when it behaved. */
async function parsed(tally: Tally, input: Buffer, random: Random): Promise<string | undefined> {
  const startedMs = performance.now()
  try {
    await tally.parser.parse(input, random)
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
  return tookMs > INPUT_MS_MAX ? `it took ${Math.round(tookMs)} ms` : undefined
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
async function memory(): Promise<{ rssBytes: number; keptBytes: number }> {
  for (let nth = 0; nth < COLLECTIONS; nth++) {
    collectGarbage()
    await delay(50)
  }
  const { rss, heapUsed, external } = process.memoryUsage()
  return { rssBytes: rss, keptBytes: heapUsed + external }
}

function megabytes(bytes: number): string {
  return `${(bytes / MB).toFixed(1)} MB`
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}
