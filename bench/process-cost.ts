/** What processes cost so far, with all that they started: CPU time, and memory that is theirs now. Linux only; what is gone costs nothing. */
import { readFileSync } from 'node:fs'

/** User and system time, in seconds. */
export function cpuSecondsOf(pids: readonly number[]): number {
  return withChildren(pids).reduce((sum, pid) => sum + cpuOf(pid), 0)
}

export function rssBytesOf(pids: readonly number[]): number {
  return withChildren(pids).reduce((sum, pid) => sum + rssOf(pid), 0)
}

function withChildren(pids: readonly number[]): number[] {
  return pids.flatMap((pid) => [pid, ...withChildren(childrenOf(pid))])
}

function childrenOf(pid: number): number[] {
  return (read(`/proc/${pid}/task/${pid}/children`) ?? '').split(/\s+/).filter(Boolean).map(Number)
}

function cpuOf(pid: number): number {
  const fields = read(`/proc/${pid}/stat`)?.split(') ').at(-1)?.split(' ') ?? []
  return fields.length === 0 ? 0 : (Number(fields[11]) + Number(fields[12])) / 100
}

function rssOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(read(`/proc/${pid}/status`) ?? '') ?? []
  return Number(kib ?? 0) * 1_024
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}
