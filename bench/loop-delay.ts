/**
 * Loaded into an agent by `--import`: tells how late its main thread's event loop was, in a file that is written again and again.
 * SIGUSR2 begins anew.
 */
import { renameSync, writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { isMainThread } from 'node:worker_threads'

const file = process.env.LOOP_DELAY_FILE
const WRITE_MS = 100

// Loaded into the agent's threads, too, which are not to be measured.
if (isMainThread && file !== undefined) {
  const delays = monitorEventLoopDelay({ resolution: 1 })
  delays.enable()
  process.on('SIGUSR2', () => delays.reset())
  setInterval(() => {
    writeFileSync(`${file}.new`, JSON.stringify({ p99Ms: delays.percentile(99) / 1e6 }))
    renameSync(`${file}.new`, file)
  }, WRITE_MS).unref()
}
