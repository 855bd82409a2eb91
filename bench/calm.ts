/**
 * The same machine for each contender. A virtual machine may give memory that was freed back to its host, and then waits some 10 us for each page when it
 * is used again: a transfer of a gigabyte takes as long again for that. And what was written before may wait to be written out.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const execute = promisify(execFile)

/** Resolves when nothing waits for the disk and the machine has as much memory at hand as the contender is about to fill. */
export async function calm(bytes: number): Promise<void> {
  await execute('sync')
  await execute(process.execPath, ['-e', `Buffer.alloc(${bytes}, 1)`])
}
