/**
 * The disk under the state directory: how much is free, and what its errors mean to people. Files and SQLite report them differently; both
 * become one AgentError that says what to do.
 */
import { existsSync, statfsSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { AgentError, reasonOf } from '../error.ts'

/** https://www.sqlite.org/rescode.html; the extended codes have these in their low byte. */
const SQLITE_CORRUPT = 11
const SQLITE_FULL = 13
const SQLITE_NOTADB = 26

/** What the disk's error means, for a message; every other error is left as it is. `directory` is where it was met. */
export function diskError(cause: unknown, directory: string): unknown {
  const { code, errcode } = cause as { code?: string; errcode?: number }
  const sqlite = code === 'ERR_SQLITE_ERROR' && errcode !== undefined ? errcode & 0xff : undefined
  if (code === 'ENOSPC' || code === 'EDQUOT' || sqlite === SQLITE_FULL) {
    return new AgentError('limit', `the disk of ${directory} is full: ${freeText(directory)} free`, {
      cause,
      next: 'Free some space there, or lower `quota` in the configuration so that the agent keeps less.',
    })
  }
  if (sqlite === SQLITE_CORRUPT || sqlite === SQLITE_NOTADB) {
    return new AgentError('corrupt', `the state database in ${directory} is corrupt: ${reasonOf(cause)}`, {
      cause,
      next: 'Stop the agent, and start it again: it then says what can be saved. Check the disk, too.',
    })
  }
  return cause
}

/** What a failed write to the file means. What fails on this side is never a peer's fault: it is told apart by its class. */
export function writeFault(cause: unknown, path: string): AgentError {
  const told = diskError(cause, dirname(path))
  if (told instanceof AgentError) return told
  return new AgentError('failed', `${path} cannot be written: ${reasonOf(cause)}`, { cause })
}

/** Has a file, or the names in a directory, be on the disk for good. */
export async function syncPath(path: string): Promise<void> {
  await using file = await open(path, 'r')
  await file.sync()
}

/** Undefined where the file system does not say. */
export function freeBytesOf(directory: string): number | undefined {
  if (!existsSync(directory)) return undefined
  const { bavail, bsize } = statfsSync(directory)
  return bavail * bsize
}

export function sizeText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const step = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10))
  return `${(bytes / 1024 ** step).toFixed(step === 0 ? 0 : 1)} ${units[step]}`
}

function freeText(directory: string): string {
  const free = freeBytesOf(directory)
  return free === undefined ? 'an unknown amount' : sizeText(free)
}
