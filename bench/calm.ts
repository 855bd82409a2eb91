/**
 * The same machine for each contender. A virtual machine may give memory that was freed back to its host, and then waits some 10 us for each page when it
 * is used again: a transfer of a gigabyte takes as long again for that. And what was written before may wait to be written out.
 */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'

const execute = promisify(execFile)

/** Resolves when nothing waits for the disk and the machine has as much memory at hand as the contender is about to fill. */
export async function calm(bytes: number): Promise<void> {
  await execute('sync')
  await execute(process.execPath, ['-e', `Buffer.alloc(${bytes}, 1)`])
}

/** What is left for a benchmark that keeps what it writes: soon full of that, and then used again and again. */
const LEFT_BYTES = 4 * 2 ** 30

/**
 * Takes the rest of the memory until disposed, for what takes longer than freed memory stays here: whoever needs some gets what the system's file
 * cache can do without, which the machine has.
 */
export async function holdMemory(): Promise<Disposable> {
  const availableKib = Number(/MemAvailable: *(\d+) kB/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0)
  const bytes = Math.max(0, availableKib * 1024 - LEFT_BYTES)
  const script = `globalThis.held = Buffer.alloc(${bytes}, 1); console.log('held'); process.stdin.resume()`
  const holder = spawn(process.execPath, ['-e', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  await once(holder.stdout, 'data')
  return { [Symbol.dispose]: () => void holder.kill() }
}
