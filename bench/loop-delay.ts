/**
 * Loaded into an agent by `--import`: SIGUSR2 begins to measure how late its main thread's event loop is, and another one ends that and writes it to
 * a file. It costs nothing else meanwhile.
 */
import { renameSync, writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { isMainThread } from 'node:worker_threads'

const file = process.env.LOOP_DELAY_FILE

// Loaded into the agent's threads, too, which are not to be measured.
if (isMainThread && file !== undefined) {
  const delays = monitorEventLoopDelay({ resolution: 1 })
  process.on('SIGUSR2', () => {
    if (delays.enable()) {
      delays.reset()
      return
    }
    delays.disable()
    writeFileSync(`${file}.new`, JSON.stringify({ p99Ms: delays.percentile(99) / 1e6 }))
    renameSync(`${file}.new`, file)
  })
}
