/** What the process takes: memory, time, file descriptors, and how busy its event loop is. Costs nothing until it is asked for. */
import { readdirSync, readFileSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import type { MetricName, Sample } from './table.ts'

export async function processSamples(): Promise<Sample[]> {
  const { user, system } = process.cpuUsage()
  const { rss, heapUsed, heapTotal, external } = process.memoryUsage()
  const { active, idle } = performance.eventLoopUtilization()
  const values: Partial<Record<MetricName, number | undefined>> = {
    process_cpu_seconds_total: (user + system) / 1e6,
    process_resident_memory_bytes: rss,
    process_start_time_seconds: Math.round(performance.timeOrigin) / 1_000,
    process_open_fds: openFiles(),
    process_max_fds: filesMax(),
    nodejs_heap_size_used_bytes: heapUsed,
    nodejs_heap_size_total_bytes: heapTotal,
    nodejs_external_memory_bytes: external,
    nodejs_eventloop_lag_seconds: await lagSeconds(),
    nodejs_eventloop_active_seconds_total: active / 1_000,
    nodejs_eventloop_idle_seconds_total: idle / 1_000,
  }
  return Object.entries(values).flatMap(([name, value]) =>
    value === undefined ? [] : [{ name: name as MetricName, value }],
  )
}

async function lagSeconds(): Promise<number> {
  const startMs = performance.now()
  const { promise, resolve } = Promise.withResolvers<void>()
  setImmediate(resolve)
  await promise
  return (performance.now() - startMs) / 1_000
}

/** Undefined where there is no /proc. */
function openFiles(): number | undefined {
  try {
    return readdirSync('/proc/self/fd').length
  } catch {
    return undefined
  }
}

function filesMax(): number | undefined {
  try {
    const [, soft] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
    return soft === undefined ? undefined : Number(soft)
  } catch {
    return undefined
  }
}
