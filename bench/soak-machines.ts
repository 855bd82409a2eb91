/**
 * `npm run soak -- machines`: three machines that boot a real systemd live through what people do with the package, from its installation to its removal;
 * each step with its time. Needs root, debootstrap and systemd-nspawn (apt-get install debootstrap systemd-container). The first run makes their root, which
 * takes some minutes more.
 */
import { styleText } from 'node:util'
import { liveThrough } from '../test/machines/steps.ts'
import { ThreeMachines } from '../test/machines/three-machines.ts'

/** Far more than it takes: what is not over by then hangs. */
const MS_MAX = 15 * 60_000

const startedMs = performance.now()
const seconds = (ms: number) => `${(ms / 1_000).toFixed(1).padStart(6)} s`
const print = (line: string) => process.stdout.write(`${line}\n`)
/** Rejects when there is no more waiting: what was made is cleaned up all the same. */
const stopped = Promise.withResolvers<never>()
stopped.promise.catch(() => undefined)
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.once(signal, () => stopped.reject(new Error(`stopped by ${signal}`)))
setTimeout(() => stopped.reject(new Error(`not over after ${MS_MAX / 60_000} minutes`)), MS_MAX).unref()

try {
  await using machines = await ThreeMachines.open(print)
  print(
    `${seconds(performance.now() - startedMs)}  ok      two versions of the package are built, three machines have booted`,
  )
  const lived = liveThrough(machines, ({ what, ms, remark, error }) => {
    const how = error === undefined ? styleText('green', 'ok    ') : styleText('red', 'failed')
    print(`${seconds(ms)}  ${how}  ${what}${remark === undefined ? '' : ` (${remark})`}`)
  })
  await Promise.race([lived, stopped.promise])
} catch (error) {
  print(error instanceof Error ? error.message : String(error))
  process.exitCode = 1
}
print(`${seconds(performance.now() - startedMs)}  in all`)
process.exit()
