/**
 * `npm run bench`: asks every question and prints one table. `npm run bench -- start nar` asks some, and `--quick` asks less often, to
 * see that a benchmark works. A full run takes about half an hour and wants the machine for itself.
 */
import { cpus, loadavg } from 'node:os'
import { type Bench, Report } from './harness.ts'

const LOAD_MAX = 0.5
/** In the order of the table; the longest come last. */
const NAMES = [
  'start',
  'nar',
  'narinfo',
  'realise',
  'store-filter',
  'memory',

  'transfer',
  'forward',

  'swarm',

  'oci',
  'image-crowd',
  'hello',
  'propagation',
  'nat-matrix',
  'sleep',
  'idle',
] as const

const wanted = process.argv.slice(2).filter((word) => !word.startsWith('-'))
const unknown = wanted.filter((name) => !NAMES.some((known) => known === name))
if (unknown.length > 0) {
  process.stderr.write(`There is no benchmark ${unknown.join(', ')}. There are: ${NAMES.join(', ')}.\n`)
  process.exit(2)
}

const report = new Report()
const [load = 0] = loadavg()
if (load > LOAD_MAX) report.note(`The machine was not calm at the start (load ${load.toFixed(2)}): trust the ratios.`)
const failed: string[] = []
for (const name of NAMES.filter((known) => wanted.length === 0 || wanted.includes(known))) {
  const { bench } = (await import(`./${name}.ts`)) as { bench: Bench }
  report.begin(bench)
  try {
    await bench.run(report, AbortSignal.timeout(bench.minutesMax * 60_000))
  } catch (error) {
    failed.push(name)
    report.note(`${name} failed: ${error instanceof Error ? error.stack : String(error)}`)
  }
}
const [cpu] = cpus()
process.stdout.write(`\nNode ${process.version}, ${cpus().length} x ${cpu?.model.trim()}\n\n${report.table()}\n`)
process.exit(failed.length > 0 ? 1 : 0)
