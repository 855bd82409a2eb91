/**
 * `npm run soak`: a million hostile inputs over every parser that a stranger reaches. `npm run soak -- 100000 42` gives the number and the
 * seed; a failure prints both and the input. `npm run soak -- tunnels` holds two thousand tunnels open instead (soak-tunnels.ts),
 * `npm run soak -- machines` boots three machines with the package on them (soak-machines.ts), `npm run soak -- install` two for
 * `agent install` and its unit (soak-install.ts), `npm run soak -- versions` has agents of two versions live in one network (soak-versions.ts).
 */
import { styleText } from 'node:util'
import { median } from './harness.ts'
import { parsers } from './soak-parsers.ts'
import { type Soaked, soak } from './soak-run.ts'

const INPUTS = 1_000_000
const SEED = 1
/** On a machine with other work the million takes longer than is worth waiting for. */
const MS_MAX = 10 * 60_000
const SHOWN_LENGTH_MAX = 10_000
const MB = 1024 * 1024

if (process.argv[2] === 'tunnels') {
  process.argv.splice(2, 1)
  await import('./soak-tunnels.ts')
}
if (process.argv[2] === 'machines') await import('./soak-machines.ts')
if (process.argv[2] === 'install') await import('./soak-install.ts')
if (process.argv[2] === 'versions') {
  process.argv.splice(2, 1)
  await import('./soak-versions.ts')
}
const [inputs = INPUTS, seed = SEED] = process.argv.slice(2).map(Number)
if (!Number.isSafeInteger(inputs) || !Number.isSafeInteger(seed)) {
  process.stderr.write('usage: npm run soak -- [INPUTS] [SEED]\n')
  process.exit(2)
}
const startedMs = performance.now()
const soaked = await soak({
  parsers: parsers(seed),
  inputs,
  seed,
  msMax: MS_MAX,
  progress: (done) => print(`${done} inputs, ${megabytes(process.memoryUsage.rss())}`),
})
show(soaked, (performance.now() - startedMs) / 1_000)
process.exit(soaked.isBounded && soaked.failure === undefined ? 0 : 1)

function show({ done, tallies, warm, grown, isBounded, failure }: Soaked, seconds: number): void {
  const widest = Math.max(...tallies.map(({ name }) => name.length))
  const columns = [8, 8, 10, 12]
  const row = (first: string, ...rest: string[]) =>
    print([first.padEnd(widest), ...rest.map((one, at) => one.padStart(columns[at] ?? 0))].join('  '))
  row('parser', 'refused', 'taken', 'median us', 'slowest ms')
  for (const { name, refused, taken, us, slowestMs } of tallies)
    row(name, String(refused), String(taken), Math.round(median(us)).toString(), slowestMs.toFixed(1))
  const cut = done < inputs && failure === undefined ? ` (stopped after ${MS_MAX / 60_000} minutes)` : ''
  print(`${done} inputs of seed ${seed} in ${Math.round(seconds)} s${cut}: ${Math.round(done / seconds)} a second`)
  print(
    `resident ${megabytes(warm.residentBytes)} when warm, ${megabytes(grown.residentBytes)} more at the end; kept ${megabytes(warm.keptBytes)}, ${megabytes(grown.keptBytes)} more: ${isBounded ? 'bounded' : styleText('red', 'it grows')}`,
  )
  if (failure === undefined) return
  print(styleText('red', `input ${failure.nth} of seed ${seed}, ${failure.parser}: ${failure.what}`))
  print(failure.input.toString('hex').slice(0, SHOWN_LENGTH_MAX))
}

function megabytes(bytes: number): string {
  return `${(bytes / MB).toFixed(1)} MB`
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}
