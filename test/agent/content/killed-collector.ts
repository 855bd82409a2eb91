/**
 * A process that writes blobs, pins some of them and collects the others, telling of each, until somebody kills it. Arguments: state
 * directory, number of this run.
 */
import { writeSync } from 'node:fs'
import { collectGarbage } from '../../../agent/content/gc.ts'
import { Pins } from '../../../agent/content/pins.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { never, Store } from './peers.ts'

const BLOBS = 200
/** One in so many is pinned. */
const PINNED = 10

const [directory = '', run = ''] = process.argv.slice(2)
const store = new Store({ directory })
const pins = new Pins({ db: store.db, index: store.index, blobs: store.blobs })
for (let at = 0; at < BLOBS; at++) {
  const { digest, sizeBytes } = await store.blobs.write(undefined, [pattern(3_000, Number(run) * BLOBS + at)], never)
  if (at % PINNED !== 0) continue
  pins.add({ network: OPEN_NETWORK_ID, cid: digest, name: `n${at}`, type: 'file', sizeBytes }, [digest])
  writeSync(1, `pinned ${digest}\n`)
}
await collectGarbage(
  store.blobs,
  { all: true, dryRun: false, onFree: (digest) => void writeSync(1, `freed ${digest}\n`) },
  never,
)
// Killed a little too late, it waits for it.
setInterval(() => undefined, 1_000)
